// SPDX-License-Identifier: GPL-2.0-only
/*
 * piece.c - scan one piece of memory, of at most a chunk, with the chunk's lock held
 *
 *	gather	mmap lock and page table lock held: which pages changed since the last
 *		scan, or were not merged yet though they may be. In memory that nobody
 *		wrote there are none, and that was all.
 *	look	read the ones that changed: look.c
 *	match	find partners for those that were seen before, and merge: match.c
 *	settle	what came of shared pages whose other mappings, or whose payer, left
 *
 * A scan that goes round waits for nobody's lock, but for a moment: see mmlock.c. One that is told
 * a range does, if no signal says not to.
 */
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>

#include "../include/area.h"
#include "../include/charge.h"
#include "../include/hold.h"
#include "../include/mm.h"
#include "../include/scan.h"
#include "../include/trace.h"

/* How long to free what was known of a hole, in one piece of work. */
#define FORGET_NS (10 * NSEC_PER_MSEC)

/*
 * How often, and how long, to wait for whoever works in the same chunk. He may be scheduled
 * out, by a limit that is his own.
 */
#define BUSY_TRIES 10
#define BUSY_US 500

/* How often in a row a process's mmap lock is tried where nothing of it is known. */
#define MISSES_MAX 64

/* How a piece of work ended. */
enum piece_result {
	PIECE_DONE,
	PIECE_AGAIN,	/* large folios were split: look at the pages again */
	PIECE_LOCKED,	/* somebody else has the mmap lock */
	PIECE_BUSY,	/* somebody else scans it */
};

/* Settle as many of the pages from number @i on as may be in one hold; where to go on. */
static unsigned int settle_some(struct ksmdev_scan *scan, struct chunk *chunk, unsigned int i)
{
	struct mm_struct *mm = chunk->region->mm;
	unsigned int end = min(scan->nr_due, i + MERGE_BATCH);
	struct charge charge;
	u64 since;

	if (!mmlock_get(scan, mm, &since))
		return scan->nr_due;
	charge_begin(&charge, mm);
	do {
		unsigned int slot = scan->due[i].slot;
		unsigned long addr = chunk->addr + slot * PAGE_SIZE;
		struct vm_area_struct *vma = vma_lookup(mm, addr);
		int err;

		if (!vma || !ksmdev_mergeable(vma))
			continue;
		if (scan->due[i].paid) {
			charge_take_over(&charge, vma, addr);
			continue;
		}
		/* What was found here may have been merged in this very piece. */
		err = charge_adopt(&charge, vma, addr, page_here(scan, slot));
		trace_ksmdev_unmerge(mm, addr, err);
		if (!err && chunk_slot(chunk, slot)->state == SLOT_SHARED)
			chunk_remap(chunk, slot, SLOT_NONE);
	} while (++i < end && !hold_is_long(since));
	charge_end(&charge);
	mmlock_put(mm, chunk->addr, since);
	/* What was made ordinary waits in a batch of this CPU, with a reference too many. */
	ksmdev_drain_local();
	return i;
}

/*
 * Shared pages that nobody else maps: they cannot be swapped out and save nothing.
 * Back to ordinary memory. And those that somebody pays for who does not map them. What is not
 * done here is found again by another visit.
 */
static void settle(struct ksmdev_scan *scan, struct chunk *chunk)
{
	unsigned int i = 0;

	while (i < scan->nr_due) {
		i = settle_some(scan, chunk, i);
		cond_resched();
	}
}

/* There is nothing to merge in a range: forget what was known of it. */
static void forget_pages(struct chunk *chunk, unsigned long start, unsigned long end)
{
	unsigned long window = chunk->addr + chunk->first * PAGE_SIZE;

	start = max(start, window);
	end = min(end, window + chunk->count * PAGE_SIZE);
	for (; start < end; start += PAGE_SIZE)
		chunk_remap(chunk, (start - chunk->addr) >> PAGE_SHIFT, SLOT_NONE);
}

/**
 * region_find_pages() - find something to look at
 * @region: the region
 * @start: where to begin
 * @end: where to stop
 * @stop: set to the end of what was found, at most @end; or, if there is nothing at
 *	@start, to where there may be, which can be beyond @end
 *
 * Context: The region's mmap lock held.
 * Return: the mapping that holds all of @start to @stop; NULL if there is nothing.
 */
struct vm_area_struct *region_find_pages(struct region *region, unsigned long start,
					 unsigned long end, unsigned long *stop)
{
	struct vm_area_struct *vma = find_vma(region->mm, start);
	unsigned long next;

	if (!vma) {
		*stop = region->end;
		return NULL;
	}
	if (vma->vm_start > start) {
		*stop = vma->vm_start;
		return NULL;
	}
	if (!ksmdev_mergeable(vma)) {
		*stop = vma->vm_end;
		return NULL;
	}
	if (!ksmdev_table_present(vma, start, &next)) {
		/* A table may cover the start of the next mapping, too. */
		*stop = next ? min(next, vma->vm_end) : vma->vm_end;
		return NULL;
	}
	*stop = min(end, vma->vm_end);
	return vma;
}

/* Gather what is to be looked at; without a chunk, where there is anything. */
static void gather(struct ksmdev_scan *scan, struct region *region, struct chunk *chunk,
		   struct vm_area_struct *vma, unsigned long start, unsigned long end,
		   struct ksmdev_gather *how)
{
	unsigned long base = start & ~(CHUNK_SIZE - 1);

	if (chunk) {
		how->seen = chunk->seen;
		how->first = chunk->first;
		how->count = chunk->count;
	}
	how->again = scan->again;
	how->eager = scan->eager;
	how->shared = scan->shared;
	how->whole = region->start <= base && region->end >= base + CHUNK_SIZE;
	if (scan->shared)
		how->memcg = get_mem_cgroup_from_mm(region->mm);
	scan->zero_page = ksmdev_zero_page_allowed(vma);
	scan->nr_found = ksmdev_gather(vma, start, end, how, scan->found);
	if (scan->shared)
		mem_cgroup_put(how->memcg);
}

/* Have a chunk to ourselves; only one that is to be scanned at once is worth a wait. */
static bool lock_chunk(struct ksmdev_scan *scan, struct chunk *chunk)
{
	if (scan->at_once)
		return !mutex_lock_killable(&chunk->lock);
	return mutex_trylock(&chunk->lock);
}

/*
 * Find and gather what is in a piece, with the mmap lock held; *@chunk is locked, or NULL.
 * It is not made under that lock: that may take long.
 * Return: false if somebody else has the lock. In @vma what was found; NULL: nothing. In @how for
 * which pages the chunk has no room.
 */
static bool gather_piece(struct ksmdev_scan *scan, struct region *region, struct chunk *chunk,
			 unsigned long start, unsigned long *stop,
			 struct vm_area_struct **vma, struct ksmdev_gather *how)
{
	struct mm_struct *mm = region->mm;
	u64 since;

	how->low = 1;
	how->high = 0;
	if (!mmlock_get(scan, mm, &since))
		return false;
	*vma = region_find_pages(region, start, *stop, stop);
	if (*vma && (!chunk || chunk->slots))
		gather(scan, region, chunk, *vma, start, *stop, how);
	mmlock_put(mm, start, since);
	return true;
}

/* As gather_piece(), with a chunk, which gets room for what is there. */
static bool gather_all(struct ksmdev_scan *scan, struct region *region, struct chunk *chunk,
		       unsigned long start, unsigned long *stop, struct vm_area_struct **vma,
		       struct ksmdev_gather *how)
{
	const unsigned long end = *stop;

	while (gather_piece(scan, region, chunk, start, stop, vma, how)) {
		if (how->low > how->high)
			return true;
		/* No room now: what is in the window is done, the rest in another pass. */
		how->fixed = !chunk_grow(chunk, how->low, how->high);
		scan->no_memory |= how->fixed;
		*stop = end;
	}
	return false;
}

/*
 * The mmap lock is not to be had, once more. There may be nothing for terabytes, which only
 * who has it can see: after some tries only what was seen before is tried in this pass.
 */
static void skip_unknown(struct ksmdev_scan *scan, struct region *region, unsigned long end)
{
	if (scan->tour && ++scan->missed > MISSES_MAX)
		tour_skip_to(scan->tour, region, end, region_known_from(region, end));
}

/*
 * Scan from @start as far as one mapping goes, at most to @end. The mm's users are
 * held.
 * Return: where to go on.
 */
static unsigned long scan_piece(struct ksmdev_scan *scan, struct region *region,
				unsigned long start, unsigned long end,
				enum piece_result *result)
{
	struct chunk *chunk = chunk_lookup(region, start);
	struct vm_area_struct *vma = NULL;
	struct ksmdev_gather how = { };
	unsigned long stop = end;

	*result = PIECE_LOCKED;
	scan->nr_found = 0;
	if (!chunk) {
		/* Is there anything to make one for? */
		if (!gather_piece(scan, region, NULL, start, &stop, &vma, &how)) {
			skip_unknown(scan, region, end);
			return stop;
		}
		scan->missed = 0;
		*result = PIECE_DONE;
		if (!vma)
			goto out;
		if (how.low > how.high)
			return stop;
		chunk = chunk_create(region, start, how.low, how.high);
		if (IS_ERR(chunk)) {
			scan->no_memory |= PTR_ERR(chunk) == -ENOMEM;
			if (PTR_ERR(chunk) == -EAGAIN)
				*result = PIECE_BUSY;
			return stop;
		}
		*result = PIECE_LOCKED;
	}
	if (!lock_chunk(scan, chunk)) {
		*result = PIECE_BUSY;
		goto out_put;
	}
	stop = end;
	if (!gather_all(scan, region, chunk, start, &stop, &vma, &how))
		goto out_unlock;
	scan->missed = 0;
	*result = PIECE_DONE;
	if (!vma) {
		forget_pages(chunk, start, min(stop, end));
	} else if (chunk->slots) {
		look(scan, chunk, how.skipped);
		if (scan->nr_found) {
			match(scan, chunk);
			watch_writes(scan, chunk, start, stop);
			settle(scan, chunk);
			if (let_go(scan, chunk))
				*result = PIECE_AGAIN;
		}
	}
out_unlock:
	mutex_unlock(&chunk->lock);
out_put:
	chunk_put(chunk);
out:
	if (*result == PIECE_DONE && !vma && stop > end) {
		/* The next piece begins where there was no time left to forget more. */
		ktime_t until = ktime_add_ns(ktime_get(), FORGET_NS);
		unsigned long to = region_forget(region, end, stop, until);

		if (scan->tour)
			tour_skip_to(scan->tour, region, end, to);
	}
	return stop;
}

/* Wait until whoever has the mmap lock lets go; false if a signal says not to. */
static bool wait_for_mmap_lock(struct mm_struct *mm)
{
	if (mmap_read_lock_killable(mm))
		return false;
	mmap_read_unlock(mm);
	return true;
}

/**
 * scan_range() - scan a range of a region, piece by piece
 * @scan: the scanning context
 * @region: the region
 * @start: first address
 * @end: last address plus one
 *
 * Context: Process, with a visit of the range's page table claimed; no lock that others wait for
 * held. May sleep.
 * Return: true if pages were seen in this round of @scan that are new, or that could not be merged
 * because somebody held a reference: a drain of what CPUs hold back may help.
 */
bool scan_range(struct ksmdev_scan *scan, struct region *region, unsigned long start,
		unsigned long end)
{
	unsigned int tries = BUSY_TRIES;
	enum piece_result result;
	unsigned long next;
	bool again = false;

	if (!mmget_not_zero(region->mm)) {
		region_bury(region);
		return false;
	}
	while (start < end) {
		next = scan_piece(scan, region, start, end, &result);
		/* Once: khugepaged could make huge pages as fast as we split them. */
		if (result == PIECE_AGAIN && !again) {
			again = true;
			continue;
		}
		/* Or others get it first again, for as long as they please. */
		if (result == PIECE_LOCKED && scan->at_once && !task_sigpending(current) &&
		    wait_for_mmap_lock(region->mm))
			continue;
		if (result == PIECE_BUSY && tries && !task_sigpending(current) &&
		    mmlock_nap(scan, BUSY_US)) {
			tries--;
			continue;
		}
		/* The one that was told by a signal not to wait for it. */
		if ((result == PIECE_LOCKED || result == PIECE_BUSY) && scan->at_once &&
		    task_sigpending(current))
			scan->cut = true;
		if (result == PIECE_BUSY && scan->tour)
			WRITE_ONCE(scan->tour->incomplete, true);
		start = next;
		cond_resched();
	}
	mmput_async(region->mm);
	return scan->busy || scan->fresh;
}
