// SPDX-License-Identifier: GPL-2.0-only
/*
 * region.c - areas, regions and chunks: what is registered
 *
 * See region.h for the structures and the locks. All regions of all areas are in
 * one tree, ordered by mm and address. That order answers the question whether a
 * new range overlaps one of the same mm, and it is the order of scanning: the
 * cursor is a position in it, not a pointer into it, so that regions may come and
 * go and no scan loses its place.
 */
#include <linux/module.h>
#include <linux/slab.h>

#include "../include/charge.h"
#include "../include/engine.h"
#include "../include/index.h"
#include "../include/mm.h"
#include "../include/region.h"

static unsigned int regions_per_area = 1024;
module_param(regions_per_area, uint, 0644);
MODULE_PARM_DESC(regions_per_area, "how many regions one area may hold");

static DEFINE_MUTEX(regions_lock);
static struct rb_root regions = RB_ROOT;
static LIST_HEAD(areas);
static atomic_long_t nr_chunks = ATOMIC_LONG_INIT(0);

/* All chunks by id, for the index. */
static DEFINE_XARRAY_ALLOC1(chunks);

/* Where the next scan goes on, and how often it came past the end. */
static struct {
	struct mm_struct *mm;
	unsigned long addr;
	unsigned long passes;
} cursor;

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

/* The first region that ends behind a position. */
static struct region *region_behind(struct mm_struct *mm, unsigned long addr)
{
	struct rb_node *node = regions.rb_node;
	struct region *best = NULL;

	lockdep_assert_held(&regions_lock);
	while (node) {
		struct region *region = rb_entry(node, struct region, node);

		if (compare(region->mm, region->end, mm, addr) > 0) {
			best = region;
			node = node->rb_left;
		} else {
			node = node->rb_right;
		}
	}
	return best;
}

static void region_insert(struct region *region)
{
	struct rb_node **link = &regions.rb_node, *parent = NULL;

	lockdep_assert_held(&regions_lock);
	while (*link) {
		struct region *other = rb_entry(*link, struct region, node);

		parent = *link;
		if (compare(region->mm, region->start, other->mm, other->start) < 0)
			link = &parent->rb_left;
		else
			link = &parent->rb_right;
	}
	rb_link_node(&region->node, parent, link);
	rb_insert_color(&region->node, &regions);
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

static void chunk_free(struct kref *ref)
{
	struct chunk *chunk = container_of(ref, struct chunk, ref);

	atomic_long_sub(sizeof(*chunk), &chunk->region->area->counters.metadata);
	region_put(chunk->region);
	mutex_destroy(&chunk->lock);
	/* chunk_by_id() may be looking at the reference count. */
	kfree_rcu(chunk, rcu);
}

/**
 * chunk_put() - drop a reference to a chunk
 * @chunk: the chunk
 *
 * Context: Process; @chunk->lock not held.
 */
void chunk_put(struct chunk *chunk)
{
	kref_put(&chunk->ref, chunk_free);
}

/**
 * chunk_lookup() - the chunk of a region that covers an address
 * @region: the region
 * @addr: the address
 *
 * Context: Any.
 * Return: the chunk with a reference, or NULL if no page was seen there yet.
 */
struct chunk *chunk_lookup(struct region *region, unsigned long addr)
{
	struct chunk *chunk;

	rcu_read_lock();
	chunk = xa_load(&region->chunks, addr >> CHUNK_SHIFT);
	if (chunk && !kref_get_unless_zero(&chunk->ref))
		chunk = NULL;
	rcu_read_unlock();
	return chunk;
}

/**
 * chunk_by_id() - the chunk with a number
 * @id: slot number / CHUNK_SLOTS
 *
 * Context: Any.
 * Return: the chunk with a reference, or NULL if it is gone.
 */
struct chunk *chunk_by_id(u32 id)
{
	struct chunk *chunk;

	rcu_read_lock();
	chunk = xa_load(&chunks, id);
	if (chunk && !kref_get_unless_zero(&chunk->ref))
		chunk = NULL;
	rcu_read_unlock();
	return chunk;
}

/**
 * chunk_of_linked_slot() - the chunk with a number, while the index pins it
 * @id: slot number / CHUNK_SLOTS
 *
 * Context: The lock of a bucket that holds one of the chunk's slots is held.
 * Return: the chunk.
 */
struct chunk *chunk_of_linked_slot(u32 id)
{
	return xa_load(&chunks, id);
}

/* What is kept of each page. */
#define SEEN_BYTES	(CHUNK_SLOTS * sizeof(u16))
#define SLOTS_BYTES	(PAGE_SIZE + SEEN_BYTES)

static struct chunk *chunk_alloc(struct region *region, unsigned long addr)
{
	struct chunk *chunk = kzalloc(sizeof(*chunk), GFP_TENANT);

	if (!chunk)
		return NULL;
	chunk->slots = (struct slot *)get_zeroed_page(GFP_TENANT);
	if (!chunk->slots)
		goto err_slots;
	chunk->seen = kzalloc(SEEN_BYTES, GFP_TENANT);
	if (!chunk->seen)
		goto err_seen;
	if (xa_alloc(&chunks, &chunk->id, chunk, XA_LIMIT(1, CHUNK_MAX_ID), GFP_TENANT))
		goto err_id;
	kref_init(&chunk->ref);
	mutex_init(&chunk->lock);
	chunk->addr = addr & ~(CHUNK_SIZE - 1);
	chunk->region = region;
	region_get(region);
	atomic_long_add(sizeof(*chunk) + SLOTS_BYTES, &region->area->counters.metadata);
	return chunk;

err_id:
	kfree(chunk->seen);
err_seen:
	free_page((unsigned long)chunk->slots);
err_slots:
	kfree(chunk);
	return NULL;
}

/* Forget all that is known of a chunk's pages; the chunk itself goes later. */
static void chunk_empty(struct chunk *chunk)
{
	unsigned int i;

	mutex_lock(&chunk->lock);
	for (i = 0; i < CHUNK_SLOTS; i++)
		chunk_set(chunk, i, SLOT_NONE, 0);
	free_page((unsigned long)chunk->slots);
	kfree(chunk->seen);
	chunk->slots = NULL;
	chunk->seen = NULL;
	mutex_unlock(&chunk->lock);
	atomic_long_sub(SLOTS_BYTES, &chunk->region->area->counters.metadata);
	xa_erase(&chunks, chunk->id);
	atomic_long_dec(&nr_chunks);
}

/**
 * chunk_create() - add the chunk of a region that covers an address
 * @region: the region
 * @addr: the address
 *
 * Context: May sleep for memory. The mm's users are held.
 * Return: the chunk with a reference; NULL if there is no memory, the cgroup's
 * limit is reached, or the region is dead.
 */
struct chunk *chunk_create(struct region *region, unsigned long addr)
{
	struct chunk *chunk = NULL, *raced = NULL;
	struct charge charge;
	int err = -ENOMEM;

	charge_begin(&charge, region->mm);
	/* First, so that there are never more slots than the index is made for. */
	if (!index_resize((atomic_long_read(&nr_chunks) + 1) * CHUNK_SLOTS))
		chunk = chunk_alloc(region, addr);
	if (!chunk)
		goto out;

	/*
	 * Counted and referenced before it can be found: another scan, or a removal,
	 * may empty it as soon as it is.
	 */
	atomic_long_inc(&nr_chunks);
	kref_get(&chunk->ref);
	mutex_lock(&regions_lock);
	if (!region->dead) {
		raced = chunk_lookup(region, addr);
		err = raced ? -EEXIST : xa_err(xa_store(&region->chunks, addr >> CHUNK_SHIFT,
							chunk, GFP_TENANT));
	}
	mutex_unlock(&regions_lock);

	if (err) {
		chunk_empty(chunk);
		chunk_put(chunk);
		chunk_put(chunk);
		chunk = raced;
	}
out:
	charge_end(&charge);
	return chunk;
}

static void count_state(struct chunk *chunk, enum slot_state from, enum slot_state to)
{
	atomic_long_t *counters = chunk->region->area->counters.slots;

	if (from != to) {
		atomic_long_dec(&counters[from]);
		atomic_long_inc(&counters[to]);
	}
}

/**
 * chunk_set() - record what was found at a page
 * @chunk: the chunk
 * @nr: which slot
 * @state: what was found
 * @fingerprint: of the contents, for SLOT_VOLATILE and SLOT_UNSHARED
 *
 * Keeps the index of candidates and the counters in step.
 *
 * Context: @chunk->lock held.
 */
void chunk_set(struct chunk *chunk, unsigned int nr, enum slot_state state, u32 fingerprint)
{
	struct slot *slot = &chunk->slots[nr];

	lockdep_assert_held(&chunk->lock);
	if (slot->state == state && slot->fingerprint == fingerprint)
		return;
	if (slot->state == SLOT_UNSHARED)
		index_remove(chunk, nr);
	if (slot->state == SLOT_SHARED && state != SLOT_SHARED)
		shared_lost_mapper();
	if (slot->fingerprint != fingerprint)
		slot->vote = false;
	count_state(chunk, slot->state, state);
	slot->state = state;
	slot->fingerprint = fingerprint;
	if (state == SLOT_UNSHARED)
		index_insert(chunk, nr);
}

/**
 * chunk_remap() - record that we have mapped another page
 * @chunk: the chunk
 * @nr: which slot
 * @state: SLOT_SHARED, SLOT_ZERO, or SLOT_NONE for a private copy
 *
 * What was seen of the old page's pte says nothing about the new one, and a frame
 * number may have the same tag by chance.
 *
 * Context: @chunk->lock held.
 */
void chunk_remap(struct chunk *chunk, unsigned int nr, enum slot_state state)
{
	chunk_set(chunk, nr, state, 0);
	/* Something is there, of which nothing more is known. */
	chunk->seen[nr] = state == SLOT_NONE ? 0 : KSMDEV_SEEN_PRESENT;
}

/**
 * chunk_candidates() - find candidates for a slot's page, or make it one
 * @chunk: the chunk
 * @nr: which slot, in SLOT_VOLATILE or SLOT_UNSHARED
 * @found: room for INDEX_TRIES; set to the numbers of slots with its fingerprint
 *
 * Context: @chunk->lock held.
 * Return: how many there are; if none, the slot is in SLOT_UNSHARED now.
 */
unsigned int chunk_candidates(struct chunk *chunk, unsigned int nr, u32 *found)
{
	struct slot *slot = &chunk->slots[nr];
	unsigned int n = index_find(chunk, nr, slot->state != SLOT_UNSHARED, found);

	lockdep_assert_held(&chunk->lock);
	if (!n) {
		count_state(chunk, slot->state, SLOT_UNSHARED);
		slot->state = SLOT_UNSHARED;
	}
	return n;
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
	INIT_LIST_HEAD(&area->regions);
	atomic_long_set(&area->counters.metadata, sizeof(*area));
	mutex_lock(&regions_lock);
	list_add_tail(&area->node, &areas);
	mutex_unlock(&regions_lock);
	return area;
}

/*
 * Take a region out of the tree and its area: from here on nobody finds it.
 * Return: false if somebody else already did.
 */
static bool region_unlink(struct region *region)
{
	lockdep_assert_held(&regions_lock);
	if (region->dead)
		return false;
	region->dead = true;
	rb_erase(&region->node, &regions);
	list_del(&region->in_area);
	region->area->nr_regions--;
	region->area->pages -= (region->end - region->start) >> PAGE_SHIFT;
	/* Who registers next begins a pass, and does not end one that saw nothing. */
	if (RB_EMPTY_ROOT(&regions)) {
		cursor.mm = NULL;
		cursor.addr = 0;
	}
	return true;
}

/**
 * region_forget() - free the chunks that lie wholly in a range
 * @region: the region
 * @start: first address
 * @end: last address plus one
 *
 * Context: Process; no chunk's lock held. Waits for scans to leave the chunks.
 */
void region_forget(struct region *region, unsigned long start, unsigned long end)
{
	struct chunk *chunk;
	unsigned long index;

	start = round_up(start, CHUNK_SIZE) >> CHUNK_SHIFT;
	end = end >> CHUNK_SHIFT;
	if (start >= end)
		return;
	xa_for_each_range(&region->chunks, index, chunk, start, end - 1) {
		chunk = xa_erase(&region->chunks, index);
		/* Or somebody else was faster. */
		if (chunk) {
			chunk_empty(chunk);
			chunk_put(chunk);
		}
		cond_resched();
	}
}

/* Free what an unlinked region holds, and the tree's reference. */
static void region_empty(struct region *region)
{
	region_forget(region, 0, ULONG_MAX);
	index_resize(atomic_long_read(&nr_chunks) * CHUNK_SLOTS);
	region_put(region);
	shared_prune_soon();
}

/**
 * region_bury() - drop a region whose process is gone
 * @region: the region; the caller holds a reference
 *
 * Context: Process; no chunk's lock held.
 */
void region_bury(struct region *region)
{
	bool mine;

	mutex_lock(&regions_lock);
	mine = region_unlink(region);
	mutex_unlock(&regions_lock);
	if (mine)
		region_empty(region);
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
	struct region *region, *next;
	struct ksmdev_area *area;
	LIST_HEAD(dead);

	mutex_lock(&regions_lock);
	list_for_each_entry(area, &areas, node) {
		list_for_each_entry_safe(region, next, &area->regions, in_area) {
			if (atomic_read(&region->mm->mm_users))
				continue;
			region_unlink(region);
			list_add(&region->in_area, &dead);
		}
	}
	mutex_unlock(&regions_lock);
	list_for_each_entry_safe(region, next, &dead, in_area)
		region_empty(region);
}

/**
 * ksmdev_area_remove_all() - drop all registrations of an area
 * @area: the area
 *
 * Merged pages stay merged until they are written to.
 *
 * Context: Process. Waits for scans to leave the area's chunks.
 */
void ksmdev_area_remove_all(struct ksmdev_area *area)
{
	struct region *region, *next;
	LIST_HEAD(removed);

	mutex_lock(&regions_lock);
	list_for_each_entry_safe(region, next, &area->regions, in_area) {
		region_unlink(region);
		list_add(&region->in_area, &removed);
	}
	mutex_unlock(&regions_lock);
	list_for_each_entry_safe(region, next, &removed, in_area)
		region_empty(region);
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
		region_insert(region);
		list_add_tail(&region->in_area, &area->regions);
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
	struct region *other, *next = NULL;

	mutex_lock(&regions_lock);
	list_for_each_entry(other, &area->regions, in_area) {
		if (region && compare(other->mm, other->start, region->mm, region->start) <= 0)
			continue;
		if (!next || compare(other->mm, other->start, next->mm, next->start) < 0)
			next = other;
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

/**
 * regions_claim() - take the next piece of work
 * @budget: how many pages at the most
 * @start: set to the first address
 * @end: set to the last address plus one; in the same chunk as @start
 * @new_pass: set to whether this is the first piece of a new pass
 *
 * The cursor moves on at once: scans that run side by side get different pieces.
 *
 * Context: Process.
 * Return: the region, with a reference; NULL if nothing is registered.
 */
struct region *regions_claim(unsigned long budget, unsigned long *start, unsigned long *end,
			     bool *new_pass)
{
	struct region *region;

	*new_pass = false;
	mutex_lock(&regions_lock);
	region = region_behind(cursor.mm, cursor.addr);
	if (!region && !RB_EMPTY_ROOT(&regions)) {
		cursor.passes++;
		*new_pass = true;
		cursor.mm = NULL;
		cursor.addr = 0;
		region = region_behind(NULL, 0);
	}
	if (region) {
		*start = region->start;
		if (region->mm == cursor.mm)
			*start = max(*start, cursor.addr);
		*end = min(region->end, (*start & ~(CHUNK_SIZE - 1)) + CHUNK_SIZE);
		if ((*end - *start) >> PAGE_SHIFT > budget)
			*end = *start + (budget << PAGE_SHIFT);
		cursor.mm = region->mm;
		cursor.addr = *end;
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
