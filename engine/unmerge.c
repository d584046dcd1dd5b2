// SPDX-License-Identifier: GPL-2.0-only
/*
 * unmerge.c - break the sharing of an area's pages now
 *
 * What is shared is read from the page tables: pages may have been moved, or merged
 * under an earlier registration. Only of the zero page do the slots know whether it
 * was mapped by us or by a read fault, whose pages need no copies.
 */
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>

#include "../include/engine.h"
#include "../include/scan.h"
#include "../include/trace.h"

/* How many pages to look at before the mmap lock is let go for a moment. */
#define UNMERGE_BATCH 64

static bool is_merged(const struct ksmdev_look *found, const struct slot *slot)
{
	return found->kind == KSMDEV_SHARED || found->kind == KSMDEV_SINGLE ||
	       (found->kind == KSMDEV_ZERO && slot && slot->state == SLOT_ZERO);
}

/*
 * @chunk is NULL, or locked.
 */
static int unmerge_pages(struct chunk *chunk, struct vm_area_struct *vma,
			 unsigned long start, unsigned long end)
{
	struct ksmdev_look found[UNMERGE_BATCH];
	unsigned int i, nr = 0;
	int err = 0;

	ksmdev_look(vma, start, end, found);
	for (i = 0; start < end; i++, start += PAGE_SIZE) {
		struct slot *slot = NULL;

		if (chunk && chunk->slots) {
			nr = (start - chunk->addr) >> PAGE_SHIFT;
			slot = &chunk->slots[nr];
		}
		if (err || !is_merged(&found[i], slot))
			continue;
		err = ksmdev_unshare(vma, start);
		trace_ksmdev_unmerge(vma->vm_mm, start, err);
		if (!err && slot)
			chunk_remap(chunk, nr, SLOT_NONE);
		/* A page that cannot be read (hwpoison) is not ours to report. */
		if (err == -EFAULT)
			err = 0;
	}
	return err;
}

/*
 * Unmerge some pages from @start on. The mm's users are held.
 * Return: 0 or an error, and in @stop where to go on.
 */
static int unmerge_batch(struct region *region, unsigned long start, unsigned long *stop)
{
	unsigned long chunk_end = (start & ~(CHUNK_SIZE - 1)) + CHUNK_SIZE;
	unsigned long end = min3(region->end, chunk_end, start + UNMERGE_BATCH * PAGE_SIZE);
	struct mm_struct *mm = region->mm;
	struct vm_area_struct *vma;
	struct chunk *chunk;
	int err;

	err = mmap_read_lock_killable(mm);
	if (err)
		return err;
	vma = region_find_pages(region, start, end, stop);
	if (!vma)
		goto out_unlock;
	chunk = chunk_lookup(region, start);
	/* Scans only try to get the mmap lock while they hold a chunk's. */
	if (chunk)
		mutex_lock(&chunk->lock);
	err = unmerge_pages(chunk, vma, start, *stop);
	if (chunk) {
		mutex_unlock(&chunk->lock);
		chunk_put(chunk);
	}
out_unlock:
	mmap_read_unlock(mm);
	return err;
}

static int unmerge_region(struct region *region)
{
	unsigned long addr = region->start;
	int err = 0;

	if (!mmget_not_zero(region->mm))
		return 0;
	while (addr < region->end && !err && !READ_ONCE(region->dead)) {
		err = unmerge_batch(region, addr, &addr);
		cond_resched();
	}
	mmput_async(region->mm);
	return err;
}

/**
 * ksmdev_area_unmerge() - give an area's merged pages copies of their own
 * @area: the area
 *
 * Pages that a scan merges meanwhile may stay merged. After an error the pages
 * that were done are private, the others still merged, and all is consistent.
 *
 * Context: Process. Sleeps.
 * Return: 0; -ENOMEM; -EINTR on a fatal signal.
 */
int ksmdev_area_unmerge(struct ksmdev_area *area)
{
	struct region *region = NULL;
	int err;

	while ((region = area_next_region(area, region))) {
		err = unmerge_region(region);
		if (err) {
			region_put(region);
			return err;
		}
	}
	shared_prune();
	return 0;
}
