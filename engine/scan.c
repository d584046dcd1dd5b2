// SPDX-License-Identifier: GPL-2.0-only
/*
 * scan.c - go over what is registered, again and again, or over a range at once
 *
 * A scanning context (kksmd, or a task in KSM_SCAN) claims one piece of at most a
 * chunk at a time and works on it alone: piece.c. KSM_MERGE_RANGE goes over a range of the caller's
 * own memory, and over what is left of it a few times more.
 */
#include <linux/cred.h>
#include <linux/slab.h>

#include "../include/area.h"
#include "../include/charge.h"
#include "../include/engine.h"
#include "../include/hold.h"
#include "../include/mm.h"
#include "../include/scan.h"
#include "../include/sweep.h"
#include "../include/trace.h"

/*
 * Pages were seen that are new, or that could not be merged because somebody held
 * a reference: see ksmdev_drain_lru().
 */
static atomic_t want_drain = ATOMIC_INIT(0);

/* A user's own scans look at shared pages so often, if there are some with one mapping. */
#define LOOK_INTERVAL (10 * HZ)

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
			ksmdev_kpage_next_round();
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
		if (scan_range(scan, region, start, end))
			atomic_set(&want_drain, 1);
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
			if (scan_range(scan, region, addr, next))
				atomic_set(&want_drain, 1);
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
