// SPDX-License-Identifier: GPL-2.0-only
/*
 * region.c - areas and regions: what is registered
 *
 * See region.h for the structures and the locks. All regions of all areas are in
 * one tree, ordered by mm and address. That order answers the question whether a
 * new range overlaps one of the same mm, and it is the order of scanning: the
 * cursor is a position in it, not a pointer into it, so that regions may come and
 * go and no scan loses its place.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "../include/charge.h"
#include "../include/compat.h"
#include "../include/engine.h"
#include "../include/hold.h"
#include "../include/mm.h"
#include "../include/region.h"

static unsigned int regions_per_area = 1024;
module_param(regions_per_area, uint, 0644);
MODULE_PARM_DESC(regions_per_area, "how many regions one area may hold");

static DEFINE_MUTEX(regions_lock);
static struct rb_root regions = RB_ROOT;
static LIST_HEAD(areas);

/*
 * Where the next scan goes on, how often it came past the end, and since when and until when
 * the piece there is waited for; 0: it is not.
 */
static struct {
	struct mm_struct *mm;
	unsigned long addr;
	unsigned long passes;
	u64 waits_since, waits_until;
} cursor;

/* Longer than any rest: others were faster, again and again. */
#define LEAVE_NS	(300 * NSEC_PER_MSEC)

/* Sums of areas that are gone. */
static long gone_scanned, gone_skipped, gone_hashed;

static int compare(struct mm_struct *mm_a, unsigned long addr_a,
		   struct mm_struct *mm_b, unsigned long addr_b)
{
	if (mm_a != mm_b)
		return mm_a < mm_b ? -1 : 1;
	if (addr_a != addr_b)
		return addr_a < addr_b ? -1 : 1;
	return 0;
}

/*
 * A region is in two trees of the same order: that of all regions, and its area's.
 */
#define in_tree(at) rb_entry(at, struct region, node)
#define in_area(at) rb_entry(at, struct region, in_area)

/* The first region that ends behind a position. */
static struct region *region_behind(struct mm_struct *mm, unsigned long addr)
{
	struct rb_node *node = regions.rb_node;
	struct region *best = NULL;

	lockdep_assert_held(&regions_lock);
	while (node) {
		struct region *region = in_tree(node);

		if (compare(region->mm, region->end, mm, addr) > 0) {
			best = region;
			node = node->rb_left;
		} else {
			node = node->rb_right;
		}
	}
	return best;
}

static bool less(const struct region *a, const struct region *b)
{
	return compare(a->mm, a->start, b->mm, b->start) < 0;
}

static bool less_in_tree(struct rb_node *a, const struct rb_node *b)
{
	return less(in_tree(a), in_tree(b));
}

static bool less_in_area(struct rb_node *a, const struct rb_node *b)
{
	return less(in_area(a), in_area(b));
}

static void area_free(struct kref *ref)
{
	struct ksmdev_area *area = container_of(ref, struct ksmdev_area, ref);

	kfree(area);
}

static void region_free(struct kref *ref)
{
	struct region *region = container_of(ref, struct region, ref);

	atomic_long_sub(sizeof(*region), &region->area->counters.metadata);
	kref_put(&region->area->ref, area_free);
	mmdrop(region->mm);
	kfree(region);
}

/**
 * region_get() - take a reference to a region
 * @region: the region
 *
 * Context: Any.
 */
void region_get(struct region *region)
{
	kref_get(&region->ref);
}

/**
 * region_put() - drop a reference to a region
 * @region: the region
 *
 * Context: Process.
 */
void region_put(struct region *region)
{
	kref_put(&region->ref, region_free);
}

/**
 * ksmdev_area_create() - create an area without regions
 *
 * Context: Process; charged to its cgroup.
 * Return: the area, or NULL if there is no memory.
 */
struct ksmdev_area *ksmdev_area_create(void)
{
	struct ksmdev_area *area = kzalloc(sizeof(*area), GFP_TENANT);

	if (!area)
		return NULL;
	kref_init(&area->ref);
	area->regions = RB_ROOT;
	atomic_long_set(&area->counters.metadata, sizeof(*area));
	mutex_lock(&regions_lock);
	list_add_tail(&area->node, &areas);
	mutex_unlock(&regions_lock);
	return area;
}

/*
 * Take a region out of the trees, from where on nobody finds it, unless somebody else
 * already did; @gone gets it.
 */
static void region_unlink(struct region *region, struct list_head *gone)
{
	lockdep_assert_held(&regions_lock);
	if (region->dead)
		return;
	WRITE_ONCE(region->dead, true);
	rb_erase(&region->node, &regions);
	rb_erase(&region->in_area, &region->area->regions);
	region->area->nr_regions--;
	region->area->pages -= (region->end - region->start) >> PAGE_SHIFT;
	/* Who registers next begins a pass, and does not end one that saw nothing. */
	if (RB_EMPTY_ROOT(&regions)) {
		cursor.mm = NULL;
		cursor.addr = 0;
	}
	list_add_tail(&region->gone, gone);
}

/* How long whoever unlinked regions empties them; a work item does the rest. */
#define EMPTY_NS	(10 * NSEC_PER_MSEC)

/* How long who wants to see that done waits for it. */
#define SETTLE_TIME	(HZ / 10)

/* Regions that wait for the work item, and how many it has not done with. */
static LIST_HEAD(unlinked);
static DEFINE_SPINLOCK(unlinked_lock);
static unsigned int nr_unlinked;
static DECLARE_WAIT_QUEUE_HEAD(unlinked_wait);

/*
 * Free what unlinked regions hold, and the trees' references, in order. Those that are
 * not empty when the time is up stay in the list.
 * Return: how many do not.
 */
static unsigned int empty_list(struct list_head *list, ktime_t until)
{
	struct region *region, *next;
	unsigned int done = 0;

	list_for_each_entry_safe(region, next, list, gone) {
		if (region_forget(region, 0, ULONG_MAX, until) != ULONG_MAX)
			break;
		list_del(&region->gone);
		region_put(region);
		done++;
	}
	chunks_resize_index();
	return done;
}

static void empty_unlinked(struct work_struct *work)
{
	unsigned int done;
	LIST_HEAD(list);

	spin_lock(&unlinked_lock);
	list_splice_init(&unlinked, &list);
	spin_unlock(&unlinked_lock);
	done = empty_list(&list, KTIME_MAX);
	spin_lock(&unlinked_lock);
	WRITE_ONCE(nr_unlinked, nr_unlinked - done);
	spin_unlock(&unlinked_lock);
	wake_up_all(&unlinked_wait);
}

static DECLARE_WORK(unlinked_work, empty_unlinked);

/*
 * Empty regions that were unlinked just now. A terabyte has half a million chunks: who
 * closes an area, or is killed, or scans, does not wait for all of them.
 */
static void empty_regions(struct list_head *list)
{
	if (list_empty(list))
		return;
	/* They were marked dead before their chunks are looked for: see chunk_publish(). */
	smp_mb();
	empty_list(list, ktime_add_ns(ktime_get(), EMPTY_NS));
	if (list_empty(list))
		return;
	spin_lock(&unlinked_lock);
	WRITE_ONCE(nr_unlinked, nr_unlinked + list_count_nodes(list));
	list_splice_tail(list, &unlinked);
	spin_unlock(&unlinked_lock);
	queue_work(system_dfl_wq, &unlinked_work);
}

/**
 * regions_settle() - wait a moment until what was removed is freed
 *
 * For who counts what there is. Large regions may take longer.
 *
 * Context: Process. Ends early on a fatal signal.
 */
void regions_settle(void)
{
	wait_event_killable_timeout(unlinked_wait, !READ_ONCE(nr_unlinked), SETTLE_TIME);
}

/**
 * ksmdev_areas_exit() - wait until what was removed is freed
 *
 * Context: Module exit; nothing is registered any more.
 */
void ksmdev_areas_exit(void)
{
	flush_work(&unlinked_work);
}

/**
 * region_bury() - drop a region whose process is gone
 * @region: the region; the caller holds a reference
 *
 * Context: Process; no chunk's lock held.
 */
void region_bury(struct region *region)
{
	LIST_HEAD(dead);

	mutex_lock(&regions_lock);
	region_unlink(region, &dead);
	mutex_unlock(&regions_lock);
	empty_regions(&dead);
}

/* How many regions are looked at while others wait for the lock. */
#define BURY_BATCH 256

/*
 * Unlink some of the dead, from a position on, which is moved on.
 * Return: are there more regions?
 */
static bool unlink_dead(struct mm_struct **mm, unsigned long *end, struct list_head *dead)
{
	struct region *region = region_behind(*mm, *end), *next;
	unsigned int n = 0;

	for (; region && n < BURY_BATCH; region = next, n++) {
		*mm = region->mm;
		*end = region->end;
		next = rb_entry_safe(rb_next(&region->node), struct region, node);
		if (!atomic_read(&region->mm->mm_users))
			region_unlink(region, dead);
	}
	return region;
}

/**
 * regions_bury_dead() - drop all regions whose process is gone
 *
 * Scans find such regions by themselves. This is for when nobody scans.
 *
 * Context: Process; no chunk's lock held.
 */
void regions_bury_dead(void)
{
	struct mm_struct *mm = NULL;
	unsigned long end = 0;
	LIST_HEAD(dead);
	bool more;

	do {
		mutex_lock(&regions_lock);
		more = unlink_dead(&mm, &end, &dead);
		mutex_unlock(&regions_lock);
		cond_resched();
	} while (more);
	empty_regions(&dead);
}

/**
 * ksmdev_area_remove_all() - drop all registrations of an area
 * @area: the area
 *
 * Merged pages stay merged until they are written to. A scan that is in the middle of a
 * piece may finish it.
 *
 * Context: Process.
 */
void ksmdev_area_remove_all(struct ksmdev_area *area)
{
	struct rb_node *node, *next;
	LIST_HEAD(removed);

	mutex_lock(&regions_lock);
	for (node = rb_first(&area->regions); node; node = next) {
		next = rb_next(node);
		region_unlink(in_area(node), &removed);
	}
	mutex_unlock(&regions_lock);
	empty_regions(&removed);
}

/**
 * ksmdev_area_release() - the last user of an area's fd closed it
 * @area: the area
 *
 * Context: Process.
 */
void ksmdev_area_release(struct ksmdev_area *area)
{
	ksmdev_area_remove_all(area);
	mutex_lock(&regions_lock);
	list_del(&area->node);
	gone_scanned += atomic_long_read(&area->counters.scanned);
	gone_skipped += atomic_long_read(&area->counters.skipped);
	gone_hashed += atomic_long_read(&area->counters.hashed);
	mutex_unlock(&regions_lock);
	kref_put(&area->ref, area_free);
}

static int area_check(struct ksmdev_area *area, struct region *region)
{
	struct region *behind;

	lockdep_assert_held(&regions_lock);
	if (area->nr_regions >= READ_ONCE(regions_per_area))
		return -ENOSPC;
	behind = region_behind(region->mm, region->start);
	if (behind && behind->mm == region->mm && behind->start < region->end)
		return -EEXIST;
	return 0;
}

static int area_add(struct ksmdev_area *area, struct region *region)
{
	int err;

	mutex_lock(&regions_lock);
	err = area_check(area, region);
	if (!err) {
		kref_get(&area->ref);
		mmgrab(region->mm);
		rb_add(&region->node, &regions, less_in_tree);
		rb_add(&region->in_area, &area->regions, less_in_area);
		area->nr_regions++;
		area->pages += (region->end - region->start) >> PAGE_SHIFT;
		atomic_long_add(sizeof(*region), &area->counters.metadata);
	}
	mutex_unlock(&regions_lock);
	return err;
}

/**
 * ksmdev_area_register() - register a range of the caller's memory
 * @area: the area to hold it
 * @addr: first address
 * @npages: length in pages
 *
 * Context: Process; the memory it takes is charged to its cgroup.
 * Return: 0; -EINVAL if @addr is not page aligned or the range is empty, too long
 * or not all in user space; -EEXIST if it overlaps a registered one of this mm;
 * -ENOSPC if the area is full; -ENOMEM.
 */
int ksmdev_area_register(struct ksmdev_area *area, u64 addr, u64 npages)
{
	struct region *region;
	int err;

	if (!PAGE_ALIGNED(addr) || !npages || npages > U32_MAX)
		return -EINVAL;
	if (addr >= TASK_SIZE || npages > (TASK_SIZE - addr) >> PAGE_SHIFT)
		return -EINVAL;

	region = kzalloc(sizeof(*region), GFP_TENANT);
	if (!region)
		return -ENOMEM;
	kref_init(&region->ref);
	xa_init_flags(&region->chunks, XA_FLAGS_ACCOUNT);
	region->area = area;
	region->mm = current->mm;
	region->start = addr;
	region->end = addr + (npages << PAGE_SHIFT);

	err = area_add(area, region);
	if (err == -ENOSPC) {
		/* An area that outlives many processes may be full of the dead. */
		regions_bury_dead();
		err = area_add(area, region);
	}
	if (err) {
		kfree(region);
		return err;
	}
	ksmdev_kksmd_wake();
	return 0;
}

/**
 * area_next_region() - walk an area's regions
 * @area: the area
 * @region: the one before, whose reference is dropped; NULL to start
 *
 * Context: Process. Regions may come and go between two calls.
 * Return: the area's first region, by mm and address, after @region, with a
 * reference; NULL at the end.
 */
struct region *area_next_region(struct ksmdev_area *area, struct region *region)
{
	struct region *next = NULL;
	struct rb_node *node;

	mutex_lock(&regions_lock);
	for (node = area->regions.rb_node; node; ) {
		struct region *other = in_area(node);

		if (!region || compare(other->mm, other->start, region->mm, region->start) > 0) {
			next = other;
			node = node->rb_left;
		} else {
			node = node->rb_right;
		}
	}
	if (next)
		region_get(next);
	mutex_unlock(&regions_lock);
	if (region)
		region_put(region);
	return next;
}

/**
 * area_region_at() - the region of an area that covers an address
 * @area: the area
 * @mm: of this address space
 * @addr: the address
 *
 * Context: Process.
 * Return: the region with a reference, or NULL.
 */
struct region *area_region_at(struct ksmdev_area *area, struct mm_struct *mm, unsigned long addr)
{
	struct region *region;

	mutex_lock(&regions_lock);
	region = region_behind(mm, addr);
	if (region && region->mm == mm && region->start <= addr && region->area == area)
		region_get(region);
	else
		region = NULL;
	mutex_unlock(&regions_lock);
	return region;
}

/* The first region behind the cursor, which is set to the beginning of a new pass at the end. */
static struct region *region_at_cursor(bool *new_pass)
{
	struct region *region = region_behind(cursor.mm, cursor.addr);

	*new_pass = !region && !RB_EMPTY_ROOT(&regions);
	if (*new_pass) {
		cursor.passes++;
		cursor.mm = NULL;
		cursor.addr = 0;
		region = region_behind(NULL, 0);
	}
	return region;
}

/* May the piece at the cursor be left for the next pass? @until: it may not be visited yet. */
static bool leave_piece(u64 until)
{
	u64 now = ktime_get_ns();

	/* The wait begins, or who waited did not come back. */
	if (!cursor.waits_until || now > cursor.waits_until + LEAVE_NS)
		cursor.waits_since = now;
	cursor.waits_until = until;
	return until && now - cursor.waits_since > LEAVE_NS;
}

/**
 * regions_claim() - take the next piece of work
 * @budget: how many pages at the most
 * @start: set to the first address
 * @end: set to the last address plus one; in the same chunk as @start
 * @new_pass: set to whether a new pass begins with this call
 * @until: set to 0, or to when to ask again, as the piece may not be visited before
 *
 * The cursor moves on at once: scans that run side by side get different pieces. It stays
 * where the piece is to be waited for, unless others visit that all the time: who scans his
 * own memory without end does not keep everybody's from being scanned.
 *
 * Context: Process.
 * Return: the region, with a reference, and hold_leave() must follow for @start; NULL if
 * @until says so, or nothing is registered.
 */
struct region *regions_claim(unsigned long budget, unsigned long *start, unsigned long *end,
			     bool *new_pass, u64 *until)
{
	struct region *region;
	bool leave;

	*until = 0;
	mutex_lock(&regions_lock);
	region = region_at_cursor(new_pass);
	if (region) {
		*start = region->start;
		if (region->mm == cursor.mm)
			*start = max(*start, cursor.addr);
		*end = min(region->end, (*start & ~(CHUNK_SIZE - 1)) + CHUNK_SIZE);
		if ((*end - *start) >> PAGE_SHIFT > budget)
			*end = *start + (budget << PAGE_SHIFT);
		*until = hold_claim(region->mm, *start);
		leave = leave_piece(*until);
		if (!*until || leave) {
			cursor.mm = region->mm;
			cursor.addr = *end;
			cursor.waits_until = 0;
		}
		if (*until)
			region = NULL;
		else
			region_get(region);
	}
	mutex_unlock(&regions_lock);
	return region;
}

/**
 * regions_skip_to() - let the cursor jump over a hole
 * @region: the region
 * @from: the end of a claimed piece
 * @to: where pages may be found again
 *
 * Context: Process.
 */
void regions_skip_to(struct region *region, unsigned long from, unsigned long to)
{
	mutex_lock(&regions_lock);
	/* Unless another scan already took what follows. */
	if (cursor.mm == region->mm && cursor.addr == from)
		cursor.addr = max(from, min(to, region->end));
	mutex_unlock(&regions_lock);
}

/**
 * regions_passes() - how often all regions were passed over
 *
 * Context: Any.
 * Return: complete passes since load.
 */
unsigned long regions_passes(void)
{
	return READ_ONCE(cursor.passes);
}

/**
 * regions_empty() - is nothing registered
 *
 * Context: Any; for a hint.
 * Return: true if there is no region.
 */
bool regions_empty(void)
{
	return !READ_ONCE(regions.rb_node);
}

/**
 * regions_totals() - add up all areas
 * @totals: filled in
 *
 * Context: Process.
 */
void regions_totals(struct ksmdev_totals *totals)
{
	struct ksmdev_area *area;
	int i;

	memset(totals, 0, sizeof(*totals));
	mutex_lock(&regions_lock);
	totals->scanned = gone_scanned;
	totals->skipped = gone_skipped;
	totals->hashed = gone_hashed;
	list_for_each_entry(area, &areas, node) {
		totals->areas++;
		totals->regions += area->nr_regions;
		totals->pages += area->pages;
		for (i = 0; i < SLOT_STATES; i++)
			totals->slots[i] += atomic_long_read(&area->counters.slots[i]);
		totals->scanned += atomic_long_read(&area->counters.scanned);
		totals->skipped += atomic_long_read(&area->counters.skipped);
		totals->hashed += atomic_long_read(&area->counters.hashed);
		totals->metadata += atomic_long_read(&area->counters.metadata);
	}
	mutex_unlock(&regions_lock);
}
