/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * entry.h - the entries of the index of shared pages
 *
 *	pool.c	where they lie, one after the other, so that they can be gone over
 *	shared.c	how one is found by a fingerprint
 *	sweep.c	going over them: what is shared, and what is no more
 */
#ifndef KSMDEV_ENTRY_H
#define KSMDEV_ENTRY_H

#include <linux/rhashtable.h>

#include "hash.h"
#include "index.h"

/**
 * struct shared_key - by what a shared page is found
 * @contents: the fingerprint, and above it the way
 * @domain: the number of the domain
 */
struct shared_key {
	u64 contents;
	u32 domain;
};

/**
 * struct shared_entry - stands for one shared page
 * @node: in the table
 * @key: see struct shared_key
 * @page: the page; holds no reference, see mm/kpage.c
 *
 * Its memory is an entry's, whosever, for as long as the RCU read lock is held.
 */
struct shared_entry {
	struct rhash_head node;
	struct shared_key key;
	struct page *page;
};

/*
 * Ways from INDEX_TRIES on are not in the table: of a page that is full, or has a memory
 * error; and of an entry that nobody uses.
 */
#define WAY_RETIRED	INDEX_TRIES
#define WAY_FREE	(INDEX_TRIES + 1)
#define WAY_SHIFT	58
#define WAY_MASK	63ULL

static_assert(FINGERPRINT_BITS <= WAY_SHIFT && WAY_FREE <= WAY_MASK);

static inline u64 shared_contents(u64 fingerprint, u32 way)
{
	return (u64)way << WAY_SHIFT | fingerprint;
}

static inline u64 shared_contents_with(u64 contents, u32 way)
{
	return (contents & ~(WAY_MASK << WAY_SHIFT)) | (u64)way << WAY_SHIFT;
}

static inline u32 shared_way(const struct shared_entry *entry)
{
	/* Who finds an entry in use finds its page. Pairs with pool_take(). */
	return smp_load_acquire(&entry->key.contents) >> WAY_SHIFT & WAY_MASK;
}

/* engine/pool.c */
struct shared_entry *pool_take(struct page *page);
void pool_give(struct shared_entry *entry);
unsigned int pool_visit(unsigned long *block, void (*visit)(struct shared_entry *entry, void *data),
			void *data);
unsigned long pool_used(void);
unsigned long pool_blocks(void);

/* engine/shared.c */
bool shared_drop_stale(struct shared_entry *entry);

#endif /* KSMDEV_ENTRY_H */
