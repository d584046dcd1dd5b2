// SPDX-License-Identifier: GPL-2.0-only
/*
 * first_write.c - how long a page fault waits for those who scan its page table
 *
 * The worst case for who is scanned: little memory, in one page table, and three scanners at
 * full speed. A process discards it and writes to each page again, which takes a page
 * fault and so the page table's lock. It has priority: what it waits for are locks.
 *
 * Not part of bench.c, whose workloads compare what is merged; tests/bench/run -w first
 * runs it alone. MODE is ksmdev (kksmd and two that call KSM_SCAN), ksmd (the kernel's own), or
 * none, for which no samples are printed.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../ksm_util.h"

#define PAGES	128UL
#define KSMD	"/sys/kernel/mm/ksm/"

static pid_t scanner(int dev)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	for (int fd = ioctl(dev, KSM_CREATE_SCAN);;)
		ksm_scan(fd, PAGES);
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

/* Small pages, all in one page table. */
static char *map(void)
{
	char *mem = mmap(NULL, 2 * KSM_HUGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED)
		ksm_die("no memory: %m");
	mem = (char *)(((uintptr_t)mem + KSM_HUGE_SIZE - 1) & ~(KSM_HUGE_SIZE - 1));
	madvise(mem, KSM_HUGE_SIZE, MADV_NOHUGEPAGE);
	return mem;
}

static void start_ksmdev(char *mem, pid_t pids[2])
{
	int dev = ksm_open(), area = ioctl(dev, KSM_CREATE_SHARED_MEMORY_AREA);

	if (area < 0 || ksm_register(area, mem, PAGES) || ksm_start(dev, 100, 0, 0))
		ksm_die("/dev/ksm refuses: %m");
	for (int i = 0; i < 2; i++)
		pids[i] = scanner(dev);
}

static void start_ksmd(char *mem)
{
	if (madvise(mem, PAGES * PGSZ, MADV_MERGEABLE) ||
	    ksm_write_file(KSMD "sleep_millisecs", "0") ||
	    ksm_write_file(KSMD "pages_to_scan", "100") || ksm_write_file(KSMD "run", "1"))
		ksm_die("ksmd refuses: %m");
}

static void sample(const char *who, const char *figure, double seconds)
{
	if (strcmp(who, "none"))
		printf("sample\tfirst writes\t%s\tus\t%s\t%f\n", figure, who, seconds * 1e6);
}

int main(int argc, char **argv)
{
	size_t writes = argc > 2 ? strtoul(argv[2], NULL, 0) : 100000;
	double *took = calloc(writes, sizeof(*took)), begin = ksm_now();
	struct sched_param param = { .sched_priority = 1 };
	pid_t pids[2] = { 0, 0 };
	char *mem = map();

	if (argc > 1 && !strcmp(argv[1], "ksmdev"))
		start_ksmdev(mem, pids);
	else if (argc > 1 && !strcmp(argv[1], "ksmd"))
		start_ksmd(mem);
	else if (argc < 2 || strcmp(argv[1], "none"))
		ksm_die("usage: first_write ksmdev|ksmd|none [WRITES]");
	if (sched_setscheduler(0, SCHED_FIFO, &param))
		ksm_die("no priority: %m");

	for (size_t n = 0; n < writes; n += PAGES) {
		/* On one CPU this is when they scan. */
		madvise(mem, PAGES * PGSZ, MADV_DONTNEED);
		usleep(1000);
		for (size_t i = 0; i < PAGES && n + i < writes; i++) {
			double at = ksm_now();

			/* Each has a twin. */
			*(volatile uint64_t *)(mem + i * PGSZ) = n * PAGES + i / 2;
			took[n + i] = ksm_now() - at;
		}
		usleep(1000);
	}
	for (int i = 0; i < 2; i++) {
		if (pids[i]) {
			kill(pids[i], SIGKILL);
			waitpid(pids[i], NULL, 0);
		}
	}
	if (!strcmp(argv[1], "ksmd"))
		ksm_write_file(KSMD "run", "2");
	qsort(took, writes, sizeof(*took), by_size);
	sample(argv[1], "median", took[writes / 2]);
	sample(argv[1], "p99.9", took[writes * 999 / 1000]);
	sample(argv[1], "slowest", took[writes - 1]);
	printf("%s: %zu first writes: p50 %.1f us, p99 %.1f us, p99.9 %.1f us, slowest %.1f us; %.1f s\n",
	       argv[1], writes, took[writes / 2] * 1e6, took[writes * 99 / 100] * 1e6,
	       took[writes * 999 / 1000] * 1e6, took[writes - 1] * 1e6, ksm_now() - begin);
	return 0;
}
