// SPDX-License-Identifier: GPL-2.0-only
/*
 * tour.c - in which order regions are scanned, and by whom
 *
 * A tour goes over regions again and again, a piece of at most a chunk at a time. All regions are
 * in one, which is that of kksmd and of whoever may scan for everybody; those of a domain are in
 * another, for users who scan what is theirs. Scans that are on the same tour share it: whoever
 * comes takes the next piece.
 *
 * Where it goes on is a position in the order of regions, not a pointer to one, so that regions
 * may come and go and no scan loses its place.
 */
#include "../include/hold.h"
#include "../include/region.h"

/*
 * How long a pass waits, in all, beyond the rests that locks need: for pieces that others were
 * faster to get, again and again. After that it leaves such a piece the first time.
 */
#define LEAVE_NS	(300 * NSEC_PER_MSEC)

struct tour tour_all = { .regions = RB_ROOT, .tree = TREE_ALL };

/* The next region; after the last one a new pass begins. */
static struct region *next_region(struct tour *tour, bool *new_pass)
{
	struct region *region = region_behind(tour, tour->mm, tour->addr);

	*new_pass = !region && !RB_EMPTY_ROOT(&tour->regions);
	if (*new_pass) {
		WRITE_ONCE(tour->passes, tour->passes + 1);
		tour->mm = NULL;
		tour->addr = 0;
		tour->lost_before = 0;
		tour->left_mm = NULL;
		region = region_behind(tour, NULL, 0);
	}
	return region;
}

/* How many pieces are left while others wait for the lock. */
#define CLAIM_BATCH 64

/*
 * May the next piece, one of @mm, be left for the next pass? @until: it may not be visited yet.
 * Where one was left all of the process's are that would have to be waited for: who scans his
 * own memory without end has as many page tables as he likes.
 */
static bool leave_piece(struct tour *tour, struct mm_struct *mm, u64 until)
{
	u64 now = ktime_get_ns();

	if (until && mm == tour->left_mm)
		return true;
	/*
	 * It may be had, the wait begins, who is in the way may be on this tour as well, or who
	 * waited did not come back.
	 */
	if (!until || !tour->waits_until || tour->visits ||
	    now > tour->waits_until + LEAVE_NS)
		tour->waits_from = until;
	else if (now > tour->waits_from)
		tour->lost = now - tour->waits_from;
	tour->waits_until = until;
	return until && tour->lost && tour->lost_before + tour->lost > LEAVE_NS;
}

/**
 * tour_claim() - take the next piece of work
 * @tour: of this tour
 * @budget: how many pages at the most
 * @start: set to the first address
 * @end: set to the last address plus one; in the same chunk as @start
 * @new_pass: set to whether a new pass begins with this call
 * @until: set to 0, or to when to ask again, as the piece may not be visited before
 *
 * The tour moves on at once: scans that run side by side get different pieces. It stays
 * where the piece is to be waited for, unless others visit that all the time: who scans his
 * own memory without end does not keep everybody's from being scanned.
 *
 * Context: Process.
 * Return: the region, with a reference, to be given back by tour_leave(); NULL if @until says so,
 * or nothing is registered.
 */
struct region *tour_claim(struct tour *tour, unsigned long budget, unsigned long *start,
			  unsigned long *end, bool *new_pass, u64 *until)
{
	struct region *region;
	unsigned int tries = 0;
	bool leave, passed;

	*until = 0;
	*new_pass = false;
	spin_lock(&regions_lock);
	do {
		region = next_region(tour, &passed);
		*new_pass |= passed;
		if (!region)
			break;
		*start = region->start;
		if (region->mm == tour->mm)
			*start = max(*start, tour->addr);
		*end = min(region->end, (*start & ~(CHUNK_SIZE - 1)) + CHUNK_SIZE);
		if ((*end - *start) >> PAGE_SHIFT > budget)
			*end = *start + (budget << PAGE_SHIFT);
		*until = hold_claim(region->mm, *start);
		leave = leave_piece(tour, region->mm, *until);
		if (!*until || leave) {
			tour->mm = region->mm;
			tour->addr = *end;
			tour->waits_until = 0;
			tour->lost_before += tour->lost;
			tour->lost = 0;
		}
		if (leave) {
			tour->left_mm = region->mm;
			WRITE_ONCE(tour->incomplete, true);
		}
	} while (leave && ++tries < CLAIM_BATCH);
	if (region && *until) {
		region = NULL;
	} else if (region) {
		region_get(region);
		tour->visits++;
	} else {
		*until = 0;
	}
	spin_unlock(&regions_lock);
	return region;
}

/**
 * tour_leave() - a piece is done
 * @tour: the tour
 * @region: from tour_claim()
 * @start: what that has set
 *
 * Context: Process.
 */
void tour_leave(struct tour *tour, struct region *region, unsigned long start)
{
	hold_leave(region->mm, start);
	spin_lock(&regions_lock);
	tour->visits--;
	spin_unlock(&regions_lock);
	region_put(region);
}

/**
 * tour_skip_to() - jump over a hole
 * @tour: the tour
 * @region: the region
 * @from: the end of a claimed piece
 * @to: where pages may be found again
 *
 * Context: Process.
 */
void tour_skip_to(struct tour *tour, struct region *region, unsigned long from, unsigned long to)
{
	spin_lock(&regions_lock);
	/* Unless another scan already took what follows. */
	if (tour->mm == region->mm && tour->addr == from)
		tour->addr = max(from, min(to, region->end));
	spin_unlock(&regions_lock);
}

/**
 * tour_region_gone() - a region was taken out of a tour
 * @tour: the tour
 *
 * Who registers next begins a pass, and does not end one that saw nothing.
 *
 * Context: regions_lock held.
 */
void tour_region_gone(struct tour *tour)
{
	lockdep_assert_held(&regions_lock);
	if (!RB_EMPTY_ROOT(&tour->regions))
		return;
	tour->mm = NULL;
	tour->addr = 0;
}

/**
 * tour_passes() - how often all regions of a tour were passed over
 * @tour: the tour
 *
 * Context: Any.
 * Return: complete passes since load.
 */
unsigned long tour_passes(struct tour *tour)
{
	return READ_ONCE(tour->passes);
}

/**
 * regions_empty() - is nothing registered
 *
 * Context: Any; for a hint.
 * Return: true if there is no region.
 */
bool regions_empty(void)
{
	return !READ_ONCE(tour_all.regions.rb_node);
}
