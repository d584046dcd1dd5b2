// SPDX-License-Identifier: GPL-2.0-only
/*
 * reach.c - what a split of a huge page takes, and what the process loses by it
 *
 * A huge page takes one entry of the TLB, its 512 pages take one each. An emulated
 * processor has a TLB of another kind, so this runs on the host, without the module: the
 * kernel splits a huge page that is advised in part. What is lost shows in a chain of
 * random reads, each of which waits for the one before; no program depends more on huge
 * pages than that.
 *
 * Prints samples for tests/bench/report. Where the kernel gives no huge pages there is
 * nothing to measure.
 */
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>

#include "../ksm_util.h"
#include "scanner.h"

#define MIB (1UL << 20)
#define READS 1000000UL
#define RUNS 9

static void sample(const char *workload, const char *figure, const char *unit, double value)
{
	printf("sample\t%s\t%s\t%s\tksmdev\t%.9g\n", workload, figure, unit, value);
}

/* ns that one takes. */
static double random_reads(const volatile uint64_t *mem, size_t size)
{
	double start = now();
	uint64_t x = 88172645463325252;
	size_t i;

	for (i = 0; i < READS; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		/* What is there is 0, but the processor has to see it. */
		x += mem[x % (size / sizeof(*mem))];
	}
	return (now() - start) * 1e9 / READS;
}

/* All of it touched, on huge pages or on small ones. Stays until the end. */
static char *map(size_t size, bool huge)
{
	char *p = mmap(NULL, size + KSM_HUGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t i;

	if (p == MAP_FAILED)
		ksm_die("no %zu MiB of memory to measure with: %m", size / MIB);
	p = (char *)(((uintptr_t)p + KSM_HUGE_SIZE - 1) & ~(KSM_HUGE_SIZE - 1));
	madvise(p, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (i = 0; i < size; i += PGSZ)
		((volatile char *)p)[i] = 0;
	return p;
}

static size_t nr_huge(const char *mem)
{
	return ksm_smaps(mem, "AnonHugePages") / KSM_HUGE_PAGES;
}

/* us for each. */
static double split(char *mem, size_t size)
{
	double start = now();
	size_t i;

	for (i = 0; i < size; i += KSM_HUGE_SIZE)
		if (madvise(mem + i, PGSZ, MADV_COLD))
			ksm_die("MADV_COLD: %m");
	return (now() - start) * 1e6 * KSM_HUGE_SIZE / size;
}

static void measure(size_t size)
{
	char *huge = map(size, true), *small = map(size, false), name[32];
	unsigned int run;
	double took;

	if (nr_huge(huge) < size / KSM_HUGE_SIZE) {
		fprintf(stderr, "reach: no huge pages, or not enough, for %zu MiB\n", size / MIB);
		return;
	}
	snprintf(name, sizeof(name), "reach, %zu MiB", size / MIB);
	for (run = 0; run < RUNS; run++) {
		double with = random_reads((void *)huge, size);
		double without = random_reads((void *)small, size);

		sample(name, "random read, huge pages", "ns", with);
		sample(name, "random read, small pages", "ns", without);
		sample(name, "lost without huge pages", "%", 100 * (without / with - 1));
	}
	took = split(huge, size);
	/* Some kernels only split the mapping for such advice, or nothing. */
	if (!nr_huge(huge))
		sample(name, "split of a huge page", "us", took);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	measure(128 * MIB);
	return 0;
}
