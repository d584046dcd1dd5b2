// SPDX-License-Identifier: GPL-2.0-only
/*
 * bury.c - the end of regions: they leave the trees at once, and what they hold is freed
 *
 * A region that left the trees is dead, and is found by nobody. Its chunks are emptied under their
 * locks, the first by who has unlinked it and the rest by a work item: there may be half a
 * million of them, and a scan may be in one.
 */
#include <linux/workqueue.h>

#include "../include/area.h"
#include "../include/compat.h"
#include "../include/engine.h"

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
