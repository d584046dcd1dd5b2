// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksm_memory.c - memory of the test program, and what it holds. See ksm_memory.h.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_frames.h"
#include "ksm_memory.h"
#include "ksm_program.h"

void *ksm_mmap(size_t npages)
{
	/*
	 * A page without access on either side keeps the kernel from merging the
	 * VMA with a neighbour, whose flags it would then take over.
	 */
	char *p = mmap(NULL, (npages + 2) * PGSZ, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED || mprotect(p + PGSZ, npages * PGSZ, PROT_READ | PROT_WRITE))
		ksm_die("cannot map %zu pages: %s; give the VM more memory (--mem)",
			npages, strerror(errno));
	if (madvise(p + PGSZ, npages * PGSZ, MADV_NOHUGEPAGE) && errno != EINVAL)
		ksm_die("MADV_NOHUGEPAGE: %s", strerror(errno));
	return p + PGSZ;
}

char *ksm_mmap_huge(size_t n)
{
	char *p = ksm_mmap((n + 1) * KSM_HUGE_PAGES);
	bool all = true;

	if (ksm_write_file("/sys/kernel/mm/transparent_hugepage/enabled", "madvise"))
		ksm_die("the kernel needs transparent huge pages");
	p += -(uintptr_t)p % KSM_HUGE_SIZE;
	if (madvise(p, n * KSM_HUGE_SIZE, MADV_HUGEPAGE))
		ksm_die("MADV_HUGEPAGE: %s", strerror(errno));
	for (size_t i = 0; i < n; i++) {
		p[i * KSM_HUGE_SIZE] = 1;
		all &= ksm_pfn_is(ksm_pfn(0, p + i * KSM_HUGE_SIZE), KPF_BIT_THP);
	}
	if (!all)
		ksm_die("no memory for %zu huge pages; give the VM more (--mem)", n);
	return p;
}

/* The finalizer of splitmix64: neighbouring inputs give unrelated outputs. */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static uint64_t page_key(uint64_t seed, uint64_t index)
{
	return mix(mix(seed) ^ index);
}

#define WORD_STEP 0x9e3779b97f4a7c15ULL

void ksm_fill_page(void *page, uint64_t seed, uint64_t index)
{
	uint64_t *word = page, value = page_key(seed, index);

	for (size_t i = 0; i < PGSZ / sizeof(*word); i++, value += WORD_STEP)
		word[i] = value;
}

bool ksm_page_is(const void *page, uint64_t seed, uint64_t index)
{
	const uint64_t *word = page;
	uint64_t value = page_key(seed, index);

	for (size_t i = 0; i < PGSZ / sizeof(*word); i++, value += WORD_STEP)
		if (word[i] != value)
			return false;
	return true;
}

bool ksm_page_is_zero(const void *page)
{
	const uint64_t *word = page;

	for (size_t i = 0; i < PGSZ / sizeof(*word); i++)
		if (word[i])
			return false;
	return true;
}

void ksm_fill(void *addr, size_t npages, uint64_t seed)
{
	for (size_t i = 0; i < npages; i++)
		ksm_fill_page(ksm_page(addr, i), seed, i);
}

size_t ksm_wrong(const void *addr, size_t npages, uint64_t seed)
{
	size_t wrong = 0;

	for (size_t i = 0; i < npages; i++)
		wrong += !ksm_page_is(ksm_page(addr, i), seed, i);
	return wrong;
}

void ksm_fill_same(void *addr, size_t npages, uint64_t seed)
{
	for (size_t i = 0; i < npages; i++)
		ksm_fill_page(ksm_page(addr, i), seed, 0);
}

size_t ksm_wrong_same(const void *addr, size_t npages, uint64_t seed)
{
	size_t wrong = 0;

	for (size_t i = 0; i < npages; i++)
		wrong += !ksm_page_is(ksm_page(addr, i), seed, 0);
	return wrong;
}

size_t ksm_wrong_zero(const void *addr, size_t npages)
{
	size_t wrong = 0;

	for (size_t i = 0; i < npages; i++)
		wrong += !ksm_page_is_zero(ksm_page(addr, i));
	return wrong;
}

bool ksm_can_read(const void *addr)
{
	int fds[2];
	bool ok;

	if (pipe(fds))
		ksm_die("pipe: %s", strerror(errno));
	ok = write(fds[1], addr, 1) == 1;
	close(fds[0]);
	close(fds[1]);
	return ok;
}
