// SPDX-License-Identifier: GPL-2.0-only
/*
 * region.c - regions: ranges of addresses, and the trees that hold them in order
 *
 * See region.h for the structures and the locks. All regions of all areas are in
 * one tree, ordered by mm and address. That order answers the question whether a
 * new range overlaps one of the same mm, and it is the order of scanning: see tour.c. Those of a
 * domain, and those of an area, are in smaller trees of the same order. A region holds its area, so
 * what ends both is here.
 */
#include <linux/slab.h>

#include "../include/region.h"

/* The trees of regions, and all tours. It spins: whoever is told to sleep does not hold it. */
DEFINE_SPINLOCK(regions_lock);

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

/**
 * region_next() - the first region that begins behind another one
 * @root: of these regions
 * @tree: which of their trees that is
 * @region: the other one, which may have left the tree; NULL: the first of all
 *
 * Context: regions_lock held.
 * Return: the region, or NULL.
 */
struct region *region_next(struct rb_root *root, enum region_tree tree,
			   const struct region *region)
{
	struct rb_node *node = root->rb_node;
	struct region *best = NULL;

	lockdep_assert_held(&regions_lock);
	while (node) {
		struct region *other = region_in(node, tree);

		if (!region || compare(other->mm, other->start, region->mm, region->start) > 0) {
			best = other;
			node = node->rb_left;
		} else {
			node = node->rb_right;
		}
	}
	return best;
}

/**
 * region_add_to() - put a region in its place in a tree
 * @root: the tree
 * @region: the region
 * @tree: which of its trees that is
 *
 * Context: regions_lock held.
 */
void region_add_to(struct rb_root *root, struct region *region, enum region_tree tree)
{
	struct rb_node **link = &root->rb_node, *parent = NULL;

	lockdep_assert_held(&regions_lock);
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

/**
 * area_put() - drop a reference to an area
 * @area: the area
 *
 * Context: Process.
 */
void area_put(struct ksmdev_area *area)
{
	kref_put(&area->ref, area_free);
}

static void region_free(struct kref *ref)
{
	struct region *region = container_of(ref, struct region, ref);

	atomic_long_sub(sizeof(*region), &region->area->counters.metadata);
	area_put(region->area);
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
