// SPDX-License-Identifier: GPL-2.0-only
/*
 * region.c - areas and regions: what is registered
 *
 * See region.h for the structures and the locks. All regions of all areas are in
 * one tree, ordered by mm and address. That order answers the question whether a
 * new range overlaps one of the same mm, and it is the order of scanning: see tour.c. Those of a
 * domain, and those of an area, are in smaller trees of the same order.
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

/* How many areas are added up in one hold of their lock. */
#define TOTALS_BATCH 64

/* The trees of regions, and all tours. It spins: whoever is told to sleep does not hold it. */
DEFINE_SPINLOCK(regions_lock);

/* All areas, and sums of those that are gone. It spins, too; scans do without. */
static DEFINE_SPINLOCK(areas_lock);
static LIST_HEAD(areas);
static struct ksmdev_totals gone;

/* The adding up that goes on, or went last; where to, or NULL. Guarded by areas_lock. */
static unsigned int totals_round;
static struct ksmdev_totals *totals_now;

static int compare(struct mm_struct *mm_a, unsigned long addr_a,
		   struct mm_struct *mm_b, unsigned long addr_b)
{
	if (mm_a != mm_b)
		return mm_a < mm_b ? -1 : 1;
	if (addr_a != addr_b)
		return addr_a < addr_b ? -1 : 1;
	return 0;
}

/**
 * region_behind() - the first region that ends behind a position
 * @tour: of these regions
 * @mm: the position: an address space,
 * @addr: and an address in it
 *
 * Context: regions_lock held.
 * Return: the region, or NULL.
 */
struct region *region_behind(struct tour *tour, struct mm_struct *mm, unsigned long addr)
{
	struct rb_node *node = tour->regions.rb_node;
	struct region *best = NULL;

	lockdep_assert_held(&regions_lock);
	while (node) {
		struct region *region = region_in(node, tour->tree);

		if (compare(region->mm, region->end, mm, addr) > 0) {
			best = region;
			node = node->rb_left;
		} else {
			node = node->rb_right;
		}
	}
	return best;
}

static void add_to(struct rb_root *root, struct region *region, enum region_tree tree)
{
	struct rb_node **link = &root->rb_node, *parent = NULL;

	while (*link) {
		struct region *other = region_in(*link, tree);

		parent = *link;
		if (compare(region->mm, region->start, other->mm, other->start) < 0)
			link = &parent->rb_left;
		else
			link = &parent->rb_right;
	}
	rb_link_node(&region->in[tree], parent, link);
	rb_insert_color(&region->in[tree], root);
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
	domain_put(region->domain);
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
	spin_lock(&areas_lock);
	list_add(&area->node, &areas);
	spin_unlock(&areas_lock);
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
	rb_erase(&region->in[TREE_ALL], &tour_all.regions);
	rb_erase(&region->in[TREE_DOMAIN], &region->domain->tour.regions);
	rb_erase(&region->in[TREE_AREA], &region->area->regions);
	WRITE_ONCE(region->area->nr_regions, region->area->nr_regions - 1);
	WRITE_ONCE(region->area->pages,
		   region->area->pages - ((region->end - region->start) >> PAGE_SHIFT));
	tour_region_gone(&tour_all);
	tour_region_gone(&region->domain->tour);
	list_add_tail(&region->gone, gone);
}

/* How many regions are looked at, or unlinked, while others wait for the lock. */
#define LOCK_BATCH 256

/* How long whoever unlinked regions empties them; a work item does the rest. */
#define EMPTY_NS	(10 * NSEC_PER_MSEC)

/* How long who wants to see that done waits for it. */
#define SETTLE_TIME	(HZ / 10)

/* How long the work item leaves regions alone that a scan is in. */
#define EMPTY_AGAIN	(HZ / 100 + 1)

/* Regions that wait for the work item, and how many it has not done with. */
static LIST_HEAD(unlinked);
static DEFINE_SPINLOCK(unlinked_lock);
static unsigned int nr_unlinked;
static DECLARE_WAIT_QUEUE_HEAD(unlinked_wait);

/*
 * Free what unlinked regions hold, and the trees' references. Those that are not empty when the
 * time is up, or that a scan is in, stay in the list.
 * Return: how many do not.
 */
static unsigned int empty_list(struct list_head *list, ktime_t until)
{
	struct region *region, *next;
	unsigned int done = 0;

	list_for_each_entry_safe(region, next, list, gone) {
		if (region_forget(region, 0, ULONG_MAX, until) != ULONG_MAX)
			continue;
		list_del(&region->gone);
		region_put(region);
		done++;
	}
	return done;
}

static void empty_unlinked(struct work_struct *work);
static DECLARE_DELAYED_WORK(unlinked_work, empty_unlinked);

static void empty_unlinked(struct work_struct *work)
{
	unsigned int done;
	LIST_HEAD(list);
	bool again;

	spin_lock(&unlinked_lock);
	list_splice_init(&unlinked, &list);
	spin_unlock(&unlinked_lock);
	done = empty_list(&list, KTIME_MAX);
	spin_lock(&unlinked_lock);
	WRITE_ONCE(nr_unlinked, nr_unlinked - done);
	again = !list_empty(&list);
	list_splice_tail(&list, &unlinked);
	spin_unlock(&unlinked_lock);
	wake_up_all(&unlinked_wait);
	if (again)
		queue_delayed_work(system_dfl_wq, &unlinked_work, EMPTY_AGAIN);
}

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
	mod_delayed_work(system_dfl_wq, &unlinked_work, 0);
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
	/*
	 * Nobody scans any more, so nothing is left over; but for what was left by a run that began
	 * when somebody did, and has the next one begin later.
	 */
	do {
		flush_delayed_work(&unlinked_work);
	} while (READ_ONCE(nr_unlinked));
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

	spin_lock(&regions_lock);
	region_unlink(region, &dead);
	spin_unlock(&regions_lock);
	empty_regions(&dead);
}

/*
 * Unlink some of the dead, from a position on, which is moved on.
 * Return: are there more regions?
 */
static bool unlink_dead(struct mm_struct **mm, unsigned long *end, struct list_head *dead)
{
	struct region *region = region_behind(&tour_all, *mm, *end), *next;
	struct rb_node *node;
	unsigned int n = 0;

	for (; region && n < LOCK_BATCH; region = next, n++) {
		*mm = region->mm;
		*end = region->end;
		node = rb_next(&region->in[TREE_ALL]);
		next = node ? region_in(node, TREE_ALL) : NULL;
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
		spin_lock(&regions_lock);
		more = unlink_dead(&mm, &end, &dead);
		spin_unlock(&regions_lock);
		cond_resched();
	} while (more);
	empty_regions(&dead);
}

/**
 * area_bury_dead() - drop an area's regions whose process is gone
 * @area: the area
 *
 * Context: Process; no chunk's lock held.
 */
void area_bury_dead(struct ksmdev_area *area)
{
	struct region *region = NULL;

	while ((region = area_next_region(area, region))) {
		if (!atomic_read(&region->mm->mm_users))
			region_bury(region);
		cond_resched();
	}
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
	struct rb_node *node;
	LIST_HEAD(removed);
	unsigned int n;

	do {
		spin_lock(&regions_lock);
		for (n = 0; n < LOCK_BATCH && (node = rb_first(&area->regions)); n++)
			region_unlink(region_in(node, TREE_AREA), &removed);
		spin_unlock(&regions_lock);
		cond_resched();
	} while (node);
	empty_regions(&removed);
}

/* What an area adds to the sums that only grow. */
static void add_past(struct ksmdev_totals *totals, struct ksmdev_area *area)
{
	totals->scanned += atomic_long_read(&area->counters.scanned);
	totals->skipped += atomic_long_read(&area->counters.skipped);
	totals->hashed += atomic_long_read(&area->counters.hashed);
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
	spin_lock(&areas_lock);
	list_del(&area->node);
	add_past(&gone, area);
	if (totals_now && area->round != totals_round)
		add_past(totals_now, area);
	spin_unlock(&areas_lock);
	kref_put(&area->ref, area_free);
}

static int area_check(struct ksmdev_area *area, struct region *region)
{
	struct region *behind;

	lockdep_assert_held(&regions_lock);
	if (area->nr_regions >= READ_ONCE(regions_per_area))
		return -ENOSPC;
	behind = region_behind(&tour_all, region->mm, region->start);
	if (behind && behind->mm == region->mm && behind->start < region->end)
		return -EEXIST;
	return 0;
}

static int area_add(struct ksmdev_area *area, struct region *region)
{
	int err;

	spin_lock(&regions_lock);
	err = area_check(area, region);
	if (!err) {
		kref_get(&area->ref);
		mmgrab(region->mm);
		add_to(&tour_all.regions, region, TREE_ALL);
		add_to(&region->domain->tour.regions, region, TREE_DOMAIN);
		add_to(&area->regions, region, TREE_AREA);
		WRITE_ONCE(area->nr_regions, area->nr_regions + 1);
		WRITE_ONCE(area->pages,
			   area->pages + ((region->end - region->start) >> PAGE_SHIFT));
		atomic_long_add(sizeof(*region), &area->counters.metadata);
	}
	spin_unlock(&regions_lock);
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
	region->domain = domain_get(current_euid());
	if (!region->domain) {
		kfree(region);
		return -ENOMEM;
	}
	kref_init(&region->ref);
	xa_init_flags(&region->chunks, XA_FLAGS_ACCOUNT);
	region->area = area;
	region->mm = current->mm;
	region->start = addr;
	region->end = addr + (npages << PAGE_SHIFT);

	err = area_add(area, region);
	if (err == -ENOSPC) {
		/* An area that outlives many processes may be full of the dead. */
		area_bury_dead(area);
		err = area_add(area, region);
	}
	if (err) {
		domain_put(region->domain);
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

	spin_lock(&regions_lock);
	for (node = area->regions.rb_node; node; ) {
		struct region *other = region_in(node, TREE_AREA);

		if (!region || compare(other->mm, other->start, region->mm, region->start) > 0) {
			next = other;
			node = node->rb_left;
		} else {
			node = node->rb_right;
		}
	}
	if (next)
		region_get(next);
	spin_unlock(&regions_lock);
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

	spin_lock(&regions_lock);
	region = region_behind(&tour_all, mm, addr);
	if (region && region->mm == mm && region->start <= addr && region->area == area)
		region_get(region);
	else
		region = NULL;
	spin_unlock(&regions_lock);
	return region;
}

static void add_area(struct ksmdev_totals *totals, struct ksmdev_area *area)
{
	int i;

	totals->areas++;
	totals->regions += READ_ONCE(area->nr_regions);
	totals->pages += READ_ONCE(area->pages);
	for (i = 0; i < SLOT_STATES; i++)
		totals->slots[i] += atomic_long_read(&area->counters.slots[i]);
	totals->metadata += atomic_long_read(&area->counters.metadata);
	add_past(totals, area);
	area->round = totals_round;
}

/**
 * regions_totals() - add up all areas
 * @totals: filled in
 *
 * Whoever opens or closes an area waits for some of them at most. What is opened meanwhile is not
 * there yet; of what is closed meanwhile there are the sums that only grow, in any case.
 *
 * Context: Process. One caller at a time.
 */
void regions_totals(struct ksmdev_totals *totals)
{
	struct ksmdev_area *area;
	LIST_HEAD(cursor);

	spin_lock(&areas_lock);
	*totals = gone;
	totals_now = totals;
	totals_round++;
	list_add(&cursor, &areas);
	while (!list_is_last(&cursor, &areas)) {
		area = list_entry(cursor.next, struct ksmdev_area, node);
		add_area(totals, area);
		list_move(&cursor, &area->node);
		if (totals->areas % TOTALS_BATCH)
			continue;
		spin_unlock(&areas_lock);
		cond_resched();
		spin_lock(&areas_lock);
	}
	list_del(&cursor);
	totals_now = NULL;
	spin_unlock(&areas_lock);
}
