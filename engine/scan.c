// SPDX-License-Identifier: GPL-2.0-only
/*
 * scan.c - go over what is registered, one piece at a time
 *
 * A scanning context (kksmd, or a task in KSM_SCAN) claims one piece of at most a
 * chunk at a time and works on it alone, with the chunk's lock held:
 *
 *	gather	mmap lock and page table lock held: which pages changed since the last
 *		scan, or were not merged yet though they may be. In memory that nobody
 *		wrote there are none, and that was all.
 *	look	read the ones that changed: look.c
 *	match	find partners for those that were seen before, and merge: match.c
 *
 * Nobody's lock is waited for, but for a moment: see mmlock.c.
 */
#include <linux/cred.h>
#include <linux/delay.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "../include/charge.h"
#include "../include/engine.h"
#include "../include/scan.h"
#include "../include/trace.h"

/*
 * Pages were seen that are new, or that could not be merged because somebody held
 * a reference: see ksmdev_drain_lru().
 */
static atomic_t want_drain = ATOMIC_INIT(0);

/* A user's own scans look at shared pages so often, if there are some with one mapping. */
#define LOOK_INTERVAL (10 * HZ)

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

static void scan_range(struct ksmdev_scan *scan, struct region *region,
		       unsigned long start, unsigned long end)
{
	unsigned int tries = BUSY_TRIES;
	enum piece_result result;
	unsigned long next;
	bool again = false;

	if (!mmget_not_zero(region->mm)) {
		region_bury(region);
		return;
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
	if (scan->busy || scan->fresh)
		atomic_set(&want_drain, 1);
}

/* What is due once all regions were passed over. */
static void end_of_pass(struct ksmdev_scan *scan)
{
	struct tour *tour = scan->tour;
	/* Who may scan for all may do that to all. */
	bool often = !scan->domain && !scan->waiter;

	if ((often || ksmdev_drain_due()) && atomic_xchg(&want_drain, 0)) {
		/* kksmd comes by again, and may be told to stop before that. */
		if (scan->waiter)
			ksmdev_drain_start();
		else
			ksmdev_drain_lru(often);
	}
	/*
	 * To find who has the last mapping of a page, or pays and has none, all that map some are
	 * looked at.
	 */
	if (tour == &tour_all) {
		if (READ_ONCE(tour->looks))
			ksmdev_payer_round();
		WRITE_ONCE(tour->looks, sweep_wants_looks());
	} else {
		bool look = sweep_has_singles() &&
			    time_after(jiffies, READ_ONCE(tour->looked) + LOOK_INTERVAL);

		if (look)
			WRITE_ONCE(tour->looked, jiffies);
		WRITE_ONCE(tour->looks, look);
	}
}

/**
 * ksmdev_scan_run() - scan
 * @scan: the scanning context
 * @pages: how many pages to visit, absent ones included
 * @max_merges: return once so many were merged; 0 for no limit
 * @interrupted: asked between two pieces of work whether to return early
 *
 * Contexts on one tour share the work: whoever comes takes the next piece. A piece that was
 * begun is finished, so an early return skips nothing.
 *
 * Context: Process. Sleeps.
 * Return: 0, also if nothing is registered; -EINTR if @interrupted said so, or if
 * a signal came while another call used @scan.
 */
int ksmdev_scan_run(struct ksmdev_scan *scan, unsigned long pages,
		    unsigned long max_merges, bool (*interrupted)(void))
{
	unsigned long start, end, visited = 0;
	int err = 0;
	u64 until;

	if (mutex_lock_interruptible(&scan->lock))
		return -EINTR;
	trace_ksmdev_scan_start(pages, max_merges);
	scan->merged = 0;
	scan->max_merges = max_merges ?: ULONG_MAX;

	while (visited < pages && scan->merged < scan->max_merges) {
		struct region *region;
		bool new_pass;

		if (interrupted()) {
			err = -EINTR;
			break;
		}
		region = tour_claim(scan->tour, pages - visited, &start, &end, &new_pass, &until);
		if (new_pass || (!region && !until))
			end_of_pass(scan);
		if (!region && until) {
			hold_wait(until, interrupted);
			continue;
		}
		if (!region)
			break;
		scan->again = tour_passes(scan->tour) % CHUNK_SLOTS;
		scan->eager = look_eager(tour_passes(scan->tour));
		scan->shared = READ_ONCE(scan->tour->looks);
		scan->fresh = false;
		scan->busy = 0;
		mmlock_piece(scan, region->mm);
		scan_range(scan, region, start, end);
		tour_leave(scan->tour, region, start);
		visited += (end - start) >> PAGE_SHIFT;
	}
	trace_ksmdev_scan_end(visited, scan->merged, err);
	mutex_unlock(&scan->lock);
	return err;
}

static struct ksmdev_scan *scan_alloc(void)
{
	struct ksmdev_scan *scan = kvzalloc(sizeof(*scan), GFP_TENANT);

	if (scan)
		mutex_init(&scan->lock);
	return scan;
}

/* Is all of a range covered by an area's regions of this process? */
static bool area_covers(struct ksmdev_area *area, unsigned long addr, unsigned long end)
{
	while (addr < end) {
		struct region *region = area_region_at(area, current->mm, addr);

		if (!region)
			return false;
		addr = region->end;
		region_put(region);
	}
	return true;
}

/* One round over a range; pages that are removed from the area meanwhile are left. */
static int merge_round(struct ksmdev_scan *scan, struct ksmdev_area *area,
		       bool (*interrupted)(void))
{
	unsigned long addr, next;

	for (addr = scan->start; addr < scan->end; addr = next) {
		struct region *region;

		next = min(scan->end, (addr & ~(CHUNK_SIZE - 1)) + CHUNK_SIZE);
		if (interrupted() || !hold_visit(scan->mm, addr, interrupted))
			return -EINTR;
		region = area_region_at(area, scan->mm, addr);
		if (region) {
			next = min(next, region->end);
			scan_range(scan, region, addr, next);
			region_put(region);
		}
		hold_leave(scan->mm, addr);
	}
	return scan->cut ? -EINTR : 0;
}

/* Pages that somebody holds for a moment are tried so often. */
#define MERGE_ROUNDS 4

/**
 * ksmdev_merge_range() - scan a range of the caller's memory now, and merge it
 * @area: the area that it is registered with
 * @addr: first address, page aligned
 * @npages: length in pages, not 0; the range does not wrap
 * @merged: set to the number of pages in the range that were merged
 * @privileged: the caller may have all CPUs work for him whenever he likes
 * @interrupted: asked between two pieces of work whether to return early
 *
 * A page is merged with any that is equal and known: in the range, or scanned before.
 *
 * Context: Process. Sleeps.
 * Return: 0; -ENOENT if the range is not all registered with @area by this process;
 * -EINTR if @interrupted said so, or a signal ended a wait; -ENOMEM if pages were left for want
 * of memory, or of room under chunks_per_user.
 */
int ksmdev_merge_range(struct ksmdev_area *area, u64 addr, u64 npages, u64 *merged,
		       bool privileged, bool (*interrupted)(void))
{
	struct ksmdev_scan *scan;
	unsigned int round;
	int err = 0;

	*merged = 0;
	if (!area_covers(area, addr, addr + (npages << PAGE_SHIFT)))
		return -ENOENT;
	scan = scan_alloc();
	if (!scan)
		return -ENOMEM;
	scan->at_once = true;
	scan->max_merges = ULONG_MAX;
	scan->mm = current->mm;
	scan->start = addr;
	scan->end = addr + (npages << PAGE_SHIFT);
	scan->again = -1;
	scan->eager = look_eager(0);
	/* What was just written waits with a reference too many. */
	ksmdev_drain_local();
	for (round = 0; round < MERGE_ROUNDS; round++) {
		if (round)
			ksmdev_drain_lru(privileged);
		scan->busy = 0;
		scan->no_memory = false;
		err = merge_round(scan, area, interrupted);
		if (err || !scan->busy)
			break;
	}
	if (!err && scan->no_memory)
		err = -ENOMEM;
	*merged = scan->merged_there;
	ksmdev_scan_destroy(scan);
	return err;
}

/**
 * ksmdev_scan_wait() - wait until nobody uses a scanning context
 * @scan: the context
 *
 * Context: Process. A user that was told to return does so within one piece.
 */
void ksmdev_scan_wait(struct ksmdev_scan *scan)
{
	mutex_lock(&scan->lock);
	mutex_unlock(&scan->lock);
}

/**
 * ksmdev_scan_create() - create a scanning context
 * @all: it is for everybody's memory; else for that of the calling user
 *
 * Who scans holds locks of whose memory it is, for as long as he is let run.
 *
 * Context: Process; charged to its cgroup.
 * Return: the context, or NULL if there is no memory.
 */
struct ksmdev_scan *ksmdev_scan_create(bool all)
{
	struct ksmdev_scan *scan = scan_alloc();

	if (!scan)
		return NULL;
	scan->tour = &tour_all;
	if (all)
		return scan;
	scan->domain = domain_get(current_euid());
	if (!scan->domain) {
		ksmdev_scan_destroy(scan);
		return NULL;
	}
	scan->tour = &scan->domain->tour;
	return scan;
}

/**
 * ksmdev_scan_destroy() - free a scanning context
 * @scan: the context; nobody uses it
 *
 * Context: Process.
 */
void ksmdev_scan_destroy(struct ksmdev_scan *scan)
{
	if (scan->domain)
		domain_put(scan->domain);
	mutex_destroy(&scan->lock);
	kvfree(scan);
}
