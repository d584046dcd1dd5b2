// SPDX-License-Identifier: GPL-2.0-only
/*
 * chunk.c - chunks and slots: what is known of each page
 *
 * See region.h for the structures and the locks. A chunk is made by the first scan
 * that finds a page there, and emptied when the page table or the region is gone.
 * It can be found by address, through its region, and by number, through what the index of
 * candidates knows; it is complete before it can be found in either way.
 *
 * It keeps slots for the pages in its window only, so that what a process makes us keep is in
 * proportion to its pages, however far they lie apart. The window grows to where pages are, and
 * does not shrink. It at least doubles each time, so that all the copying for one chunk comes to
 * less than a page.
 */
#include <linux/module.h>
#include <linux/slab.h>

#include "../include/charge.h"
#include "../include/index.h"
#include "../include/mm.h"
#include "../include/region.h"
#include "../include/shared.h"

/* The slots in all windows. */
static atomic_long_t nr_slots = ATOMIC_LONG_INIT(0);

/* Their numbers are for everybody. 4 TiB, with pages of 4 KiB. */
static unsigned int chunks_per_user = CHUNK_MAX_ID / 4;
module_param(chunks_per_user, uint, 0644);
MODULE_PARM_DESC(chunks_per_user, "of how many page tables of one user's memory to keep track");

static void chunk_free(struct kref *ref)
{
	struct chunk *chunk = container_of(ref, struct chunk, ref);

	atomic_long_sub(sizeof(*chunk), &chunk->region->area->counters.metadata);
	atomic_dec(&chunk->region->domain->chunks);
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
	chunk = index_chunk(id);
	if (chunk && !kref_get_unless_zero(&chunk->ref))
		chunk = NULL;
	rcu_read_unlock();
	/* What was removed is not merged any more, though it may take time to forget it. */
	if (chunk && READ_ONCE(chunk->region->dead)) {
		chunk_put(chunk);
		chunk = NULL;
	}
	return chunk;
}

/* The fewest slots of a window, 8: they fill a cache line. */
#define WINDOW_MIN_BITS 3

/* What is kept of each page in a window. */
#define PAGE_BYTES	(sizeof(struct slot) + sizeof(u16))
static_assert(CHUNK_SLOTS * sizeof(struct slot) == PAGE_SIZE);

/* What a chunk has for its window. */
struct window {
	unsigned int first;
	unsigned int count;
	struct slot *slots;
	u16 *seen;
};

/* How many slots the smallest window has that holds two. */
static unsigned int window_count(unsigned int low, unsigned int high)
{
	return 1U << max(fls(low ^ high), WINDOW_MIN_BITS);
}

static void window_free(struct window *window)
{
	if (window->count == CHUNK_SLOTS)
		free_page((unsigned long)window->slots);
	else
		kfree(window->slots);
	kfree(window->seen);
}

/*
 * Slots and what was seen are apart: each has a size that the allocator has.
 * Return: false if there is no memory; there is nothing to free then.
 */
static bool window_alloc(struct window *window, unsigned int low, unsigned int high)
{
	window->count = window_count(low, high);
	window->first = round_down(low, window->count);
	if (window->count == CHUNK_SLOTS)
		window->slots = (struct slot *)get_zeroed_page(GFP_SCAN);
	else
		window->slots = kcalloc(window->count, sizeof(*window->slots), GFP_SCAN);
	window->seen = kcalloc(window->count, sizeof(*window->seen), GFP_SCAN);
	if (window->slots && window->seen)
		return true;
	window_free(window);
	return false;
}

static struct window window_of(const struct chunk *chunk)
{
	return (struct window) {
		.first = chunk->first,
		.count = chunk->count,
		.slots = chunk->slots,
		.seen = chunk->seen,
	};
}

static void count_slots(struct chunk *chunk, long more)
{
	atomic_long_add(more * (long)PAGE_BYTES, &chunk->region->area->counters.metadata);
	index_resize(atomic_long_add_return(more, &nr_slots));
}

static struct chunk *chunk_alloc(struct region *region, unsigned long addr, unsigned int low,
				 unsigned int high)
{
	atomic_t *used = &region->domain->chunks;
	struct window window;
	struct chunk *chunk;

	if (atomic_inc_return(used) > READ_ONCE(chunks_per_user))
		goto err_used;
	chunk = kzalloc(sizeof(*chunk), GFP_SCAN);
	if (!chunk)
		goto err_used;
	if (!window_alloc(&window, low, high))
		goto err_window;
	chunk->first = window.first;
	chunk->count = window.count;
	chunk->slots = window.slots;
	chunk->seen = window.seen;
	kref_init(&chunk->ref);
	mutex_init(&chunk->lock);
	chunk->addr = addr & ~(CHUNK_SIZE - 1);
	chunk->region = region;
	region_get(region);
	ksmdev_race_delay();
	/*
	 * Last: from here on it can be found by its number, which a chunk that is gone may
	 * have had, and somebody still asks for that.
	 */
	if (index_add_chunk(chunk, GFP_SCAN))
		goto err_id;
	atomic_long_add(sizeof(*chunk), &region->area->counters.metadata);
	count_slots(chunk, chunk->count);
	return chunk;

err_id:
	region_put(region);
	mutex_destroy(&chunk->lock);
	window_free(&window);
err_window:
	kfree(chunk);
err_used:
	atomic_dec(used);
	return NULL;
}

/* Forget all that is known of a chunk's pages, with its lock held; the chunk itself goes later. */
static void chunk_empty(struct chunk *chunk)
{
	struct window window = window_of(chunk);
	unsigned int i;

	for (i = 0; i < window.count; i++)
		chunk_set(chunk, window.first + i, SLOT_NONE, 0);
	chunk->count = 0;
	chunk->slots = NULL;
	chunk->seen = NULL;
	window_free(&window);
	count_slots(chunk, -(long)window.count);
	index_remove_chunk(chunk);
}

/*
 * Let a chunk be found by its address. Whoever marks the region dead looks for chunks
 * after that, and we look at the mark after this: one of the two sees the other.
 */
static int chunk_publish(struct region *region, struct chunk *chunk)
{
	unsigned long index = chunk->addr >> CHUNK_SHIFT;
	struct chunk *other = xa_cmpxchg(&region->chunks, index, NULL, chunk, GFP_SCAN);

	if (other)
		return xa_is_err(other) ? xa_err(other) : -EEXIST;
	/* Pairs with the one in empty_regions(). */
	smp_mb();
	if (!READ_ONCE(region->dead))
		return 0;
	/* If it is no longer there, somebody else empties it. */
	return xa_cmpxchg(&region->chunks, index, chunk, NULL, 0) == chunk ? -ENOENT : 0;
}

/**
 * chunk_create() - add the chunk of a region that covers an address
 * @region: the region
 * @addr: the address
 * @low: the first of its pages that was seen there
 * @high: the last one
 *
 * Context: Process. The mm's users are held.
 * Return: the chunk with a reference, which may have been somebody else's to make, with another
 * window; ERR_PTR(-ENOMEM) if there is no memory, or the cgroup's or the user's limit is reached;
 * ERR_PTR(-ENOENT) if the region is dead; ERR_PTR(-EAGAIN) if there was somebody else's, which was
 * forgotten just now.
 */
struct chunk *chunk_create(struct region *region, unsigned long addr, unsigned int low,
			   unsigned int high)
{
	struct chunk *chunk, *raced;
	struct charge charge;
	int err;

	charge_begin(&charge, region->mm);
	chunk = chunk_alloc(region, addr, low, high);
	if (!chunk) {
		chunk = ERR_PTR(-ENOMEM);
		goto out;
	}

	/*
	 * Counted and referenced before it can be found: another scan, or a removal,
	 * may empty it as soon as it is.
	 */
	kref_get(&chunk->ref);
	err = chunk_publish(region, chunk);
	if (err) {
		raced = ERR_PTR(err);
		if (err == -EEXIST)
			raced = chunk_lookup(region, addr) ?: ERR_PTR(-EAGAIN);
		mutex_lock(&chunk->lock);
		chunk_empty(chunk);
		mutex_unlock(&chunk->lock);
		chunk_put(chunk);
		chunk_put(chunk);
		chunk = raced;
	}
out:
	charge_end(&charge);
	return chunk;
}

/**
 * chunk_grow() - let a chunk's window hold more pages
 * @chunk: the chunk
 * @low: the first page that was seen outside of it
 * @high: the last one
 *
 * It holds what is between these and what it held, too.
 *
 * Context: Process; @chunk->lock held, and the mm's users, no mmap lock.
 * Return: false if there is no memory or the cgroup's limit is reached; all is as before then.
 */
bool chunk_grow(struct chunk *chunk, unsigned int low, unsigned int high)
{
	struct window new, old = window_of(chunk);
	struct charge charge;
	bool room;

	lockdep_assert_held(&chunk->lock);
	charge_begin(&charge, chunk->region->mm);
	room = window_alloc(&new, min(low, old.first), max(high, old.first + old.count - 1));
	charge_end(&charge);
	if (!room)
		return false;
	index_move(chunk, new.slots, new.first);
	memcpy(&new.seen[old.first - new.first], old.seen, old.count * sizeof(*old.seen));
	chunk->seen = new.seen;
	chunk->count = new.count;
	count_slots(chunk, (long)new.count - old.count);
	window_free(&old);
	return true;
}

/*
 * Take a chunk out of its region and empty it, unless a scan is in it: that may be let run again
 * much later, if it is a user's.
 * Return: false if it is still there.
 */
static bool chunk_forget(struct region *region, unsigned long addr)
{
	struct chunk *chunk = chunk_lookup(region, addr);
	bool ours;

	if (!chunk)
		return true;
	if (!mutex_trylock(&chunk->lock)) {
		chunk_put(chunk);
		return false;
	}
	/* Or somebody else was faster. */
	ours = xa_cmpxchg(&region->chunks, addr >> CHUNK_SHIFT, chunk, NULL, 0) == chunk;
	if (ours)
		chunk_empty(chunk);
	mutex_unlock(&chunk->lock);
	if (ours)
		chunk_put(chunk);
	chunk_put(chunk);
	return true;
}

/**
 * region_known_from() - where in a region pages were seen
 * @region: the region
 * @addr: from where on
 *
 * Context: Any.
 * Return: the start of the first chunk there that was scanned before, or the region's end.
 */
unsigned long region_known_from(struct region *region, unsigned long addr)
{
	unsigned long index = addr >> CHUNK_SHIFT;

	if (!xa_find(&region->chunks, &index, (region->end - 1) >> CHUNK_SHIFT, XA_PRESENT))
		return region->end;
	return index << CHUNK_SHIFT;
}

/**
 * region_forget() - free the chunks that lie wholly in a range
 * @region: the region
 * @start: first address
 * @end: last address plus one
 * @until: when to stop, if there are more than can be freed by then
 *
 * Context: Process; no chunk's lock held. Waits for nobody.
 * Return: @end, or the address of the first chunk that is left: there was no time, or somebody
 * scans it.
 */
unsigned long region_forget(struct region *region, unsigned long start, unsigned long end,
			    ktime_t until)
{
	unsigned long index, first = round_up(start, CHUNK_SIZE) >> CHUNK_SHIFT;
	unsigned long last = end >> CHUNK_SHIFT;
	struct chunk *chunk;

	if (first >= last)
		return end;
	xa_for_each_range(&region->chunks, index, chunk, first, last - 1) {
		if (until != KTIME_MAX && ktime_after(ktime_get(), until))
			return index << CHUNK_SHIFT;
		if (!chunk_forget(region, index << CHUNK_SHIFT))
			return index << CHUNK_SHIFT;
		cond_resched();
	}
	return end;
}

/* What is not worth a place in the index is no candidate either, and most of it soon is. */
static enum slot_state counted_as(enum slot_state state)
{
	return state == SLOT_STABLE ? SLOT_VOLATILE : state;
}

static void count_state(struct chunk *chunk, enum slot_state from, enum slot_state to)
{
	atomic_long_t *counters = chunk->region->area->counters.slots;

	from = counted_as(from);
	to = counted_as(to);
	if (from != to) {
		atomic_long_dec(&counters[from]);
		atomic_long_inc(&counters[to]);
	}
}

/**
 * chunk_fingerprint() - what chunk_set() was given for a slot
 * @chunk: the chunk
 * @nr: which slot, of its window
 *
 * Context: @chunk->lock held.
 * Return: the fingerprint, in SLOT_STABLE and SLOT_UNSHARED; else what chunk_set() says.
 */
u64 chunk_fingerprint(struct chunk *chunk, unsigned int nr)
{
	struct slot *slot = chunk_slot(chunk, nr);

	return fingerprint_of(slot->upper, slot->state == SLOT_UNSHARED ? index_rest(chunk, nr) :
									  slot->next);
}

/* Is all of that what is known of it already? */
static bool is_set(struct chunk *chunk, unsigned int nr, enum slot_state state, u64 fingerprint)
{
	struct slot *slot = chunk_slot(chunk, nr);

	return slot->state == state && slot->upper == fingerprint_upper(fingerprint) &&
	       chunk_fingerprint(chunk, nr) == fingerprint;
}

/**
 * chunk_set() - record what was found at a page
 * @chunk: the chunk
 * @nr: which slot, of its window
 * @state: what was found
 * @fingerprint: the page's, for SLOT_STABLE and SLOT_UNSHARED; for SLOT_VOLATILE a hash of all of
 *	it, or 0 if it was not read; for SLOT_SHARED the scan's mark, in the upper bits; else 0
 *
 * Keeps the index of candidates and the counters in step.
 *
 * Context: @chunk->lock held.
 */
void chunk_set(struct chunk *chunk, unsigned int nr, enum slot_state state, u64 fingerprint)
{
	struct slot *slot = chunk_slot(chunk, nr);

	lockdep_assert_held(&chunk->lock);
	if (is_set(chunk, nr, state, fingerprint))
		return;
	if (slot->vote && chunk_fingerprint(chunk, nr) != fingerprint)
		slot->vote = false;
	if (slot->state == SLOT_UNSHARED)
		index_remove(chunk, nr);
	if (slot->state == SLOT_SHARED && state != SLOT_SHARED)
		shared_lost_mapper();
	count_state(chunk, slot->state, state);
	slot->state = state;
	slot->upper = fingerprint_upper(fingerprint);
	slot->next = fingerprint_rest(fingerprint);
	if (state == SLOT_UNSHARED)
		index_insert(chunk, nr, fingerprint_rest(fingerprint));
}

/**
 * chunk_remap() - record that we have mapped another page
 * @chunk: the chunk
 * @nr: which slot, of its window
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
	*chunk_seen(chunk, nr) = state == SLOT_NONE ? 0 : KSMDEV_SEEN_PRESENT;
}

/**
 * chunk_candidates() - find candidates for a slot's page, or make it one
 * @chunk: the chunk
 * @nr: which slot, in SLOT_STABLE or SLOT_UNSHARED
 * @found: room for INDEX_TRIES; set to the numbers of slots with its fingerprint
 *
 * Context: @chunk->lock held.
 * Return: how many there are; if none, the slot is in SLOT_UNSHARED now.
 */
unsigned int chunk_candidates(struct chunk *chunk, unsigned int nr, u32 *found)
{
	struct slot *slot = chunk_slot(chunk, nr);
	unsigned int n = index_find(chunk, nr, slot->state != SLOT_UNSHARED, found);

	lockdep_assert_held(&chunk->lock);
	if (!n) {
		count_state(chunk, slot->state, SLOT_UNSHARED);
		slot->state = SLOT_UNSHARED;
	}
	return n;
}
