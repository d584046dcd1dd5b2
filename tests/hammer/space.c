// SPDX-License-Identifier: GPL-2.0-only
/*
 * space.c - operations on the address space, in ranges of any length
 */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hammer.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

void op_munmap(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "munmap", page, n);
	if (munmap(page_addr(t, page), n * PAGE_BYTES))
		bad_call(t, "munmap");
	set_unmapped(t, page, n);
}

void op_mmap(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "mmap", page, n);
	if (mmap(page_addr(t, page), n * PAGE_BYTES, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
		 -1, 0) == MAP_FAILED)
		bad_call(t, "mmap");
	set_mapped(t, page, n);
}

void op_mremap(struct thread *t, unsigned int page, unsigned int n)
{
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
	unsigned int i, to = rnd(t, THREAD_PAGES);
	bool keep = !rnd(t, 3);

	note(t, keep ? "mremap, source stays" : "mremap", page, n);
	if (!all_mapped(t, page, n) || to + n > THREAD_PAGES ||
	    (to < page + n && page < to + n) || is_held(t, to, n))
		return;
	note(t, "  ... to", to, n);
	if (keep)
		flags |= MREMAP_DONTUNMAP;
	if (mremap(page_addr(t, page), n * PAGE_BYTES, n * PAGE_BYTES, flags,
		   page_addr(t, to)) == MAP_FAILED) {
		/*
		 * The source may span several mappings or be locked, and what
		 * was at the destination may be gone already.
		 */
		if (errno != EFAULT && errno != EINVAL && errno != EAGAIN &&
		    errno != ENOMEM)
			bad_call(t, "mremap");
		if (mmap(page_addr(t, to), n * PAGE_BYTES, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
			 -1, 0) == MAP_FAILED)
			bad_call(t, "mmap after mremap");
		set_mapped(t, to, n);
		return;
	}
	for (i = 0; i < n; i++)
		t->shadow[to + i] = t->shadow[page + i];
	if (keep) {
		set_zero(t, page, n);
		return;
	}
	set_unmapped(t, page, n);
}

void op_mprotect(struct thread *t, unsigned int page, unsigned int n)
{
	static const int prots[] = {
		PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE,
	};
	int prot = prots[rnd(t, 4)];
	unsigned int i;

	note(t, "mprotect", page, n);
	if (!all_mapped(t, page, n))
		return;
	if (mprotect(page_addr(t, page), n * PAGE_BYTES, prot)) {
		if (errno != ENOMEM)
			bad_call(t, "mprotect");
		/* Split into too many mappings, perhaps half done: start anew. */
		op_mmap(t, page, n);
		return;
	}
	for (i = 0; i < n; i++)
		t->shadow[page + i].prot = prot;
}

void op_dontneed(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "madvise dontneed", page, n);
	if (!all_mapped(t, page, n))
		return;
	/* Locked memory refuses it. */
	if (munlock(page_addr(t, page), n * PAGE_BYTES) && errno != ENOMEM)
		bad_call(t, "munlock");
	if (madvise(page_addr(t, page), n * PAGE_BYTES, MADV_DONTNEED))
		bad_call(t, "madvise dontneed");
	set_zero(t, page, n);
}

/* MADV_FREE may take the contents any time until the next write: so write. */
void op_free(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "madvise free", page, n);
	if (!all_writable(t, page, n))
		return;
	if (munlock(page_addr(t, page), n * PAGE_BYTES) && errno != ENOMEM)
		bad_call(t, "munlock");
	if (madvise(page_addr(t, page), n * PAGE_BYTES, MADV_FREE))
		bad_call(t, "madvise free");
	if (rnd(t, 2))
		usleep(rnd(t, 3000));
	op_write(t, page, n);
}

/* None of these changes what a page holds, whatever it returns. */
void op_advise(struct thread *t, unsigned int page, unsigned int n)
{
	static const struct {
		int advice;
		const char *name;
	} all[] = {
		{ MADV_PAGEOUT, "madvise pageout" },
		{ MADV_PAGEOUT, "madvise pageout" },
		{ MADV_COLD, "madvise cold" },
		{ MADV_WILLNEED, "madvise willneed" },
		{ MADV_HUGEPAGE, "madvise hugepage" },
		{ MADV_NOHUGEPAGE, "madvise nohugepage" },
		{ MADV_COLLAPSE, "madvise collapse" },
		{ MADV_POPULATE_WRITE, "madvise populate write" },
		{ MADV_MERGEABLE, "madvise mergeable" },
		{ MADV_UNMERGEABLE, "madvise unmergeable" },
	};
	unsigned int i = rnd(t, sizeof(all) / sizeof(all[0]));

	note(t, all[i].name, page, n);
	if (all[i].advice == MADV_COLLAPSE || all[i].advice == MADV_HUGEPAGE) {
		if (rnd(t, 4))
			return;
		page -= page % WINDOW_PAGES;
		n = WINDOW_PAGES;
	}
	/* The lists of vmsplice and io_uring tell what populating would add. */
	madvise(page_addr(t, page), n * PAGE_BYTES, all[i].advice);
}

void op_mlock(struct thread *t, unsigned int page, unsigned int n)
{
	bool lock = rnd(t, 2);

	note(t, lock ? "mlock" : "munlock", page, n);
	if (lock)
		mlock2(page_addr(t, page), n * PAGE_BYTES,
		       rnd(t, 2) ? MLOCK_ONFAULT : 0);
	else
		munlock(page_addr(t, page), n * PAGE_BYTES);
}

void op_clear_refs(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "clear soft-dirty", page, n);
	if (!rnd(t, 4))
		write_text("/proc/self/clear_refs", "4");
}
