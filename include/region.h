/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * region.h - what is registered, and what is known of each page of it
 *
 * An area (one fd) holds regions (address ranges of one mm), a region is cut into
 * chunks (one page table each: 2 MiB, or 32 MiB where pages are of 16 KiB), a chunk has
 * slots (512 or 2048), one for each page, and memory for those of them that lie in its
 * window: where pages were seen so far. A region is only an address range: what lies
 * beneath it changes, and nothing here follows that; the scan looks again each time.
 *
 * Locks, outermost first:
 *	chunk->lock	a chunk's slots; a scan holds it for one unit of work and
 *			only tries to get a second one
 *	mmap lock	with a chunk's lock held only tried, or waited for by kksmd for a
 *			moment (mmlock.c), and never two at once
 *	regions_lock	spins: the trees of regions, the tours
 *	index bucket	leaf
 * A region that left the trees is dead: its chunks are emptied under their locks, the
 * first at once and the rest by a work item, and the struct stays until the last scan that
 * holds a reference lets go.
 */
#ifndef KSMDEV_REGION_H
#define KSMDEV_REGION_H

#include <linux/kref.h>
#include <linux/ktime.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/pgtable.h>
#include <linux/rbtree.h>
#include <linux/refcount.h>
#include <linux/sched/mm.h>
#include <linux/spinlock.h>
#include <linux/uidgid.h>
#include <linux/xarray.h>

#define CHUNK_SHIFT	PMD_SHIFT
#define CHUNK_SIZE	(1UL << CHUNK_SHIFT)
#define CHUNK_SLOTS	(CHUNK_SIZE >> PAGE_SHIFT)

/**
 * enum slot_state - what the last scan of a page found
 * @SLOT_NONE: nothing to merge
 * @SLOT_VOLATILE: seen once, or it changed since
 * @SLOT_STABLE: seen unchanged; not in the index of candidates
 * @SLOT_UNSHARED: seen unchanged and without a twin; in the index
 * @SLOT_SHARED: the page maps a shared page
 * @SLOT_ZERO: we mapped the zero page here
 * @SLOT_STATES: how many states there are
 */
enum slot_state {
	SLOT_NONE,
	SLOT_VOLATILE,
	SLOT_STABLE,
	SLOT_UNSHARED,
	SLOT_SHARED,
	SLOT_ZERO,
	SLOT_STATES,
};

/**
 * struct slot - what is known of one page
 * @state: enum slot_state
 * @vote: the page could be shared if the large folio that it is part of were split
 * @upper: the upper bits of the page's fingerprint, in SLOT_STABLE and SLOT_UNSHARED; of a hash
 *	of all of it in SLOT_VOLATILE, if only that can tell whether it changes; in SLOT_SHARED the
 *	scan's own mark
 * @next: the rest of it; in SLOT_UNSHARED the number of the next slot in the same chain of the
 *	index, or what its end says: see index.c
 */
struct slot {
	u32 state : 3;
	u32 vote : 1;
	u32 upper : 28;
	u32 next;
};

/**
 * enum region_tree - the trees that a region is in; all by mm and address
 * @TREE_ALL: of all regions
 * @TREE_DOMAIN: of those of its domain
 * @TREE_AREA: of those of its area
 * @REGION_TREES: how many trees there are
 */
enum region_tree {
	TREE_ALL,
	TREE_DOMAIN,
	TREE_AREA,
	REGION_TREES,
};

/**
 * struct tour - regions that are scanned in turn, and where the next scan goes on
 * @regions: the regions
 * @tree: which of their trees that is
 * @mm: the last piece was of this address space,
 * @addr: and ended here: a position and not a pointer
 * @passes: how often all were passed over
 * @waits_from: from when on the next piece, which is waited for, might have been had, in ns
 * @waits_until: when to ask for it again; 0: it is not waited for
 * @lost: for how long it was waited for since @waits_from, while others were faster
 * @lost_before: the same for the pass's pieces before it
 * @visits: how many pieces are being scanned
 * @left_mm: the process whose pieces are left in this pass where they would be waited for
 * @scanned: pages that were visited, by whoever is on this tour
 * @skipped: those of them that had not changed
 * @incomplete: a piece was left, since somebody else had a lock
 * @looks: this pass looks at all shared pages
 * @looked: the last one of a domain's tour that did began then, in jiffies
 *
 * Guarded by regions_lock, but for the counters and the last three.
 */
struct tour {
	struct rb_root regions;
	enum region_tree tree;
	struct mm_struct *mm;
	unsigned long addr;
	unsigned long passes;
	u64 waits_from, waits_until;
	u64 lost, lost_before;
	unsigned int visits;
	struct mm_struct *left_mm;
	atomic_long_t scanned, skipped;
	bool incomplete;
	bool looks;
	unsigned long looked;
};

/* Pages for the marks of a domain: room for two million of them where a page has 4 KiB. */
#define SAMPLE_MARK_PAGES 64

/**
 * struct domain - whose memory may be shared with whose: that of one user
 * @ref: one of each region, and of each scan that is for this domain alone
 * @node: in the table of all
 * @id: in the keys of the indexes; the same domain has the same for ever
 * @chunks: how many its regions have
 * @zero: the fingerprint of a page of zeroes
 * @zero_sample: what a sample of zeroes hashes to
 * @marks: of samples that tell too little, see sample.c; NULL where there are none
 * @has_marks: there are some
 * @tour: its regions
 *
 * Pages of two domains never meet: who guesses what another user's memory holds cannot have the
 * guess confirmed.
 */
struct domain {
	refcount_t ref;
	struct hlist_node node;
	u32 id;
	atomic_t chunks;
	u64 zero;
	u64 zero_sample;
	unsigned long *marks[SAMPLE_MARK_PAGES];
	bool has_marks;
	struct tour tour;
};

/**
 * struct ksmdev_counters - what an area counts
 * @slots: how many slots are in each state; SLOT_STABLE counts as SLOT_VOLATILE
 * @scanned: pages visited
 * @skipped: pages visited whose contents were not read: known, or just written
 * @hashed: pages visited whose contents were read
 * @metadata: bytes that the area's regions, chunks and slots take
 */
struct ksmdev_counters {
	atomic_long_t slots[SLOT_STATES];
	atomic_long_t scanned;
	atomic_long_t skipped;
	atomic_long_t hashed;
	atomic_long_t metadata;
};

/**
 * struct ksmdev_area - a shared memory area: one fd's registrations
 * @ref: one of the fd, one of each region
 * @node: in the list of all areas, the newest first
 * @round: when it was added up last
 * @regions: the area's regions, by mm and address
 * @nr_regions: how many
 * @pages: their length together
 * @counters: for statistics
 */
struct ksmdev_area {
	struct kref ref;
	struct list_head node;
	unsigned int round;
	struct rb_root regions;
	unsigned int nr_regions;
	unsigned long pages;
	struct ksmdev_counters counters;
};

/**
 * struct region - a registered address range
 * @ref: one while it is in the tree, one of each chunk, one of each user
 * @in: in each tree, by mm and address
 * @gone: once it left the trees: in a list of those that are to be emptied
 * @area: the area
 * @domain: of the user who registered it
 * @mm: the address space; its mm_count is held, never its mm_users
 * @start: first address
 * @end: last address plus one
 * @dead: it left the trees
 * @chunks: those of its chunks in which a page was seen, by address
 */
struct region {
	struct kref ref;
	struct rb_node in[REGION_TREES];
	struct list_head gone;
	struct ksmdev_area *area;
	struct domain *domain;
	struct mm_struct *mm;
	unsigned long start;
	unsigned long end;
	bool dead;
	struct xarray chunks;
};

/**
 * struct chunk - the slots of one page table's pages
 * @ref: one of its region, one of each user
 * @first: the first slot of its window
 * @count: how many are in it: a power of two, and @first a multiple of it; 0 once the region
 *	is dead
 * @lock: guards the slots, and that the chunk is still its region's
 * @region: the region
 * @addr: its first address, whether or not the region covers that
 * @id: its slots have the numbers from @id * CHUNK_SLOTS; never 0
 * @splits: how often a huge page was split there; counted as far as split.c cares
 * @slots: those of the window, for chunk_slot(); NULL once the region is dead
 * @seen: what mm/watch.c remembers of each page in it, and in KSMDEV_SEEN_WANTED how often
 *	a page that did not change is still to be offered for merging
 * @watched: when watch_writes() last made pages of it read-only, in ns; 0: never
 * @keep_until: until when a huge page that was rebuilt stays, in ns; 0: none was seen
 * @rcu: to free it, when nobody asks for the former two any more
 *
 * Nothing is known of a page outside of the window. @first and @slots change only where
 * nobody can follow a chain of the index; see index_move().
 */
struct chunk {
	struct kref ref;
	u16 first;
	u16 count;
	struct mutex lock;
	struct region *region;
	unsigned long addr;
	u32 id;
	u8 splits;
	struct slot *slots;
	u16 *seen;
	union {
		struct {
			u64 watched;
			u64 keep_until;
		};
		struct rcu_head rcu;
	};
};

/* Slot numbers are 32 bits. */
#define CHUNK_MAX_ID ((u32)(U32_MAX / CHUNK_SLOTS))

/**
 * chunk_has_slot() - is a page in a chunk's window
 * @chunk: the chunk
 * @nr: which page of the page table
 *
 * Context: @chunk->lock held.
 * Return: true if so; if not, nothing is known of it.
 */
static inline bool chunk_has_slot(const struct chunk *chunk, unsigned int nr)
{
	return nr - chunk->first < chunk->count;
}

/**
 * chunk_slot() - the slot of a page
 * @chunk: the chunk
 * @nr: which page of the page table; in the window
 *
 * Context: @chunk->lock held, or as for slot_of().
 * Return: the slot.
 */
static inline struct slot *chunk_slot(const struct chunk *chunk, unsigned int nr)
{
	return &chunk->slots[nr - chunk->first];
}

/**
 * chunk_has_fingerprint() - does a slot say what its page is found by
 * @chunk: the chunk
 * @nr: which slot, of its window
 *
 * Context: @chunk->lock held.
 * Return: true if so: the page was seen unchanged.
 */
static inline bool chunk_has_fingerprint(const struct chunk *chunk, unsigned int nr)
{
	const struct slot *slot = chunk_slot(chunk, nr);

	return slot->state == SLOT_STABLE || slot->state == SLOT_UNSHARED;
}

/**
 * chunk_seen() - what mm/watch.c remembers of a page
 * @chunk: the chunk
 * @nr: which page of the page table; in the window
 *
 * Context: @chunk->lock held.
 * Return: where it is.
 */
static inline u16 *chunk_seen(const struct chunk *chunk, unsigned int nr)
{
	return &chunk->seen[nr - chunk->first];
}

/**
 * region_in() - the region of a node of a tree
 * @node: the node
 * @tree: which tree it is of
 *
 * Context: Any.
 * Return: the region.
 */
static inline struct region *region_in(struct rb_node *node, enum region_tree tree)
{
	return container_of(node - tree, struct region, in[0]);
}

/* engine/domain.c */
struct domain *domain_get(kuid_t owner);
void domain_put(struct domain *domain);

/* engine/region.c */
extern spinlock_t regions_lock;
struct region *region_behind(struct tour *tour, struct mm_struct *mm, unsigned long addr);
struct region *region_next(struct rb_root *root, enum region_tree tree,
			   const struct region *region);
void region_add_to(struct rb_root *root, struct region *region, enum region_tree tree);
void region_get(struct region *region);
void region_put(struct region *region);
void area_put(struct ksmdev_area *area);

/* engine/tour.c */
extern struct tour tour_all;
struct region *tour_claim(struct tour *tour, unsigned long budget, unsigned long *start,
			  unsigned long *end, bool *new_pass, u64 *until);
void tour_leave(struct tour *tour, struct region *region, unsigned long start);
void tour_skip_to(struct tour *tour, struct region *region, unsigned long from, unsigned long to);
void tour_region_gone(struct tour *tour);
unsigned long tour_passes(struct tour *tour);
bool regions_empty(void);

/* engine/chunk.c */
struct chunk *chunk_lookup(struct region *region, unsigned long addr);
struct chunk *chunk_create(struct region *region, unsigned long addr, unsigned int low,
			   unsigned int high);
bool chunk_grow(struct chunk *chunk, unsigned int low, unsigned int high);
struct chunk *chunk_by_id(u32 id);
void chunk_put(struct chunk *chunk);
void chunk_set(struct chunk *chunk, unsigned int nr, enum slot_state state, u64 fingerprint);
u64 chunk_fingerprint(struct chunk *chunk, unsigned int nr);
void chunk_remap(struct chunk *chunk, unsigned int nr, enum slot_state state);
unsigned int chunk_candidates(struct chunk *chunk, unsigned int nr, u32 *found);
unsigned long region_known_from(struct region *region, unsigned long addr);
unsigned long region_forget(struct region *region, unsigned long start, unsigned long end,
			    ktime_t until);

#endif /* KSMDEV_REGION_H */
