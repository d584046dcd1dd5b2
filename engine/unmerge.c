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

#include "../include/area.h"
#include "../include/charge.h"
#include "../include/engine.h"
#include "../include/hold.h"
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
 * Unmerge what a mapping holds from @start to @end, at most UNMERGE_BATCH pages, until
 * the lock was held for long. @chunk is NULL, or locked.
 * Return: 0 or an error, and in @stop where to go on.
 */
static int unmerge_pages(struct chunk *chunk, struct vm_area_struct *vma, u64 since,
			 unsigned long start, unsigned long end, unsigned long *stop)
{
	struct ksmdev_look found[UNMERGE_BATCH];
	unsigned int i, nr = 0;
	struct charge charge;
	int err = 0;

	ksmdev_look(vma, start, end, found);
	/* What follows takes the page table's lock for a moment each, as a page fault does. */
	hold_table(vma->vm_mm, start, ktime_get_ns() - since);
	charge_begin(&charge, vma->vm_mm);
	for (i = 0; start < end && !err; i++, start += PAGE_SIZE) {
		struct slot *slot = NULL;

		if (chunk) {
			nr = (start - chunk->addr) >> PAGE_SHIFT;
			if (chunk_has_slot(chunk, nr))
				slot = chunk_slot(chunk, nr);
		}
		if (!is_merged(&found[i], slot))
			continue;
		/* The last one that is left to map a page may keep it. */
		err = charge_adopt(&charge, vma, start, NULL);
		if (err)
			err = ksmdev_make_room(charge.memcg) ?: ksmdev_unshare(vma, start);
		trace_ksmdev_unmerge(vma->vm_mm, start, err);
		if (!err && slot)
			chunk_remap(chunk, nr, SLOT_NONE);
		/* A page that cannot be read (hwpoison) is not ours to report. */
		if (err == -EFAULT)
			err = 0;
		if (hold_is_long(since))
			end = start + PAGE_SIZE;
	}
	charge_end(&charge);
	*stop = start;
	return err;
}

/*
 * Unmerge some pages from @start on, with the mmap lock held. The mm's users are held.
 * Return: 0 or an error, and in @stop where to go on; -EBUSY if somebody has the chunk.
 */
static int unmerge_locked(struct region *region, struct chunk *chunk, unsigned long start,
			  unsigned long *stop)
{
	unsigned long chunk_end = (start & ~(CHUNK_SIZE - 1)) + CHUNK_SIZE;
	unsigned long end = min3(region->end, chunk_end, start + UNMERGE_BATCH * PAGE_SIZE);
	struct vm_area_struct *vma;
	int err;
	u64 since;

	err = mmap_read_lock_killable(region->mm);
	if (err)
		return err;
	since = hold_begin(region->mm);
	vma = region_find_pages(region, start, end, stop);
	if (vma && chunk && !mutex_trylock(&chunk->lock)) {
		err = -EBUSY;
	} else if (vma) {
		err = unmerge_pages(chunk, vma, since, start, *stop, stop);
		if (chunk)
			mutex_unlock(&chunk->lock);
	}
	mmap_read_unlock(region->mm);
	hold_end(region->mm, since);
	return err;
}

static int unmerge_batch(struct region *region, unsigned long start, unsigned long *stop)
{
	struct chunk *chunk;
	int err;

	if (!mmget_not_zero(region->mm)) {
		*stop = region->end;
		return 0;
	}
	chunk = chunk_lookup(region, start);
	err = unmerge_locked(region, chunk, start, stop);
	if (err == -EBUSY) {
		/* A scan, which takes a while, and only tries to get the mmap lock. */
		*stop = start;
		err = mutex_lock_killable(&chunk->lock);
		if (!err)
			mutex_unlock(&chunk->lock);
	}
	if (chunk)
		chunk_put(chunk);
	mmput_async(region->mm);
	return err;
}

static int unmerge_region(struct region *region, bool (*interrupted)(void))
{
	unsigned long addr = region->start, here;
	int err = 0;

	while (addr < region->end && !err && !READ_ONCE(region->dead)) {
		here = addr;
		if (interrupted() || !hold_visit(region->mm, here, interrupted))
			return -EINTR;
		err = unmerge_batch(region, here, &addr);
		hold_leave(region->mm, here);
		cond_resched();
	}
	return err;
}

/**
 * ksmdev_area_unmerge() - give an area's merged pages copies of their own
 * @area: the area
 * @interrupted: asked between two pieces of work whether to return early
 *
 * Pages that a scan merges meanwhile may stay merged. After an error the pages
 * that were done are private, the others still merged, and all is consistent. What was done
 * is passed over when it is called again.
 *
 * Context: Process. Sleeps.
 * Return: 0; -ENOMEM; -EINTR if @interrupted said so, or on a fatal signal.
 */
int ksmdev_area_unmerge(struct ksmdev_area *area, bool (*interrupted)(void))
{
	struct region *region = NULL;
	int err;

	while ((region = area_next_region(area, region))) {
		err = unmerge_region(region, interrupted);
		if (err) {
			region_put(region);
			return err;
		}
	}
	return 0;
}
