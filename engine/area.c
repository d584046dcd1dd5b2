// SPDX-License-Identifier: GPL-2.0-only
/*
 * area.c - areas: who has registered what, and what that comes to
 *
 * An area is one fd's. It is there as long as that is open, or one of its regions is known to
 * somebody.
 */
#include <linux/module.h>
#include <linux/slab.h>

#include "../include/area.h"
#include "../include/charge.h"
#include "../include/engine.h"

static unsigned int regions_per_area = 1024;
module_param(regions_per_area, uint, 0644);
MODULE_PARM_DESC(regions_per_area, "how many regions one area may hold");

/* How many areas are added up in one hold of their lock. */
#define TOTALS_BATCH 64

/* All areas, and sums of those that are gone. It spins, as regions_lock does; scans do without. */
static DEFINE_SPINLOCK(areas_lock);
static LIST_HEAD(areas);
static struct ksmdev_totals gone;

/* The adding up that goes on, or went last; where to, or NULL. Guarded by areas_lock. */
static unsigned int totals_round;
static struct ksmdev_totals *totals_now;

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
	struct region *next;

	spin_lock(&regions_lock);
	next = region_next(&area->regions, TREE_AREA, region);
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
	area_put(area);
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
		region_add_to(&tour_all.regions, region, TREE_ALL);
		region_add_to(&region->domain->tour.regions, region, TREE_DOMAIN);
		region_add_to(&area->regions, region, TREE_AREA);
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
	return 0;
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
