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
 * struct shared_entry - stands for one shared page
 * @node: in the table
 * @key: see shared_key()
 * @page: the page; holds no reference, see mm/kpage.c
 *
 * Its memory is an entry's, whosever, for as long as the RCU read lock is held.
 */
struct shared_entry {
	struct rhash_head node;
	u64 key;
	struct page *page;
};

/*
 * Ways from INDEX_TRIES on are not in the table: of a page that is full, or has a memory
 * error; and of an entry that nobody uses.
 */
#define WAY_RETIRED	INDEX_TRIES
#define WAY_FREE	(INDEX_TRIES + 1)

/* The domain in the upper half; the way above the fingerprint in the lower one. */
static_assert(FINGERPRINT_BITS <= 28 && WAY_FREE < 8);

static inline u64 shared_key(u32 domain, u32 fingerprint, u32 way)
{
	return (u64)domain << 32 | way << 28 | fingerprint;
}

static inline u64 shared_key_with(u64 key, u32 way)
{
	return (key & ~(7ULL << 28)) | way << 28;
}

static inline u32 shared_way(const struct shared_entry *entry)
{
	/* Who finds an entry in use finds its page. Pairs with pool_take(). */
	return (u32)smp_load_acquire(&entry->key) >> 28 & 7;
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
