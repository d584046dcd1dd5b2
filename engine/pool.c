// SPDX-License-Identifier: GPL-2.0-only
/*
 * pool.c - where the entries of the index of shared pages lie
 *
 * In blocks of a page, which have numbers, so that whoever goes over all entries can stop
 * after each block and go on from there later, whatever came and went meanwhile. A block
 * without an entry in use is freed after an RCU grace period: lookups stand on entries without
 * a lock. An entry may be used again at once; who finds one asks the page whose it is.
 *
 * The memory is nobody's in particular: an entry is 32 bytes for a page of 4096, and the
 * bound for shared pages bounds it.
 */
#include <linux/slab.h>
#include <linux/xarray.h>

#include "../include/entry.h"
#include "../include/mm.h"

/**
 * struct block - entries
 * @partial: in the list of blocks with a free entry, if it has one
 * @rcu: to free it
 * @id: its number
 * @used: how many of the entries are in use
 * @free: the first one that is not; each has the next in its key
 * @entries: those that are free have WAY_FREE
 */
struct block {
	struct list_head partial;
	struct rcu_head rcu;
	u32 id;
	u16 used;
	u16 free;
	struct shared_entry entries[];
};

#define BLOCK_ENTRIES \
	((PAGE_SIZE - sizeof(struct block)) / sizeof(struct shared_entry))

static DEFINE_XARRAY_ALLOC(blocks);
/* Guards the list, and which entries are free. */
static DEFINE_SPINLOCK(pool_lock);
static LIST_HEAD(partial);
static atomic_long_t nr_used = ATOMIC_LONG_INIT(0);
static atomic_long_t nr_blocks = ATOMIC_LONG_INIT(0);

static struct block *block_of(struct shared_entry *entry)
{
	return (struct block *)((unsigned long)entry & PAGE_MASK);
}

/* Takes what memory there is: nobody waits for it. */
static bool add_block(void)
{
	struct block *block = (void *)get_zeroed_page(GFP_NOWAIT | __GFP_NOWARN);
	unsigned int i;

	if (!block)
		return false;
	for (i = 0; i < BLOCK_ENTRIES; i++)
		block->entries[i].key.contents = shared_contents(i + 1, WAY_FREE);
	if (xa_alloc(&blocks, &block->id, block, xa_limit_32b, GFP_NOWAIT | __GFP_NOWARN)) {
		free_page((unsigned long)block);
		return false;
	}
	atomic_long_inc(&nr_blocks);
	spin_lock(&pool_lock);
	list_add(&block->partial, &partial);
	spin_unlock(&pool_lock);
	return true;
}

static struct shared_entry *take_from(struct block *block)
{
	struct shared_entry *entry = &block->entries[block->free];

	block->free = (u16)entry->key.contents;
	if (++block->used == BLOCK_ENTRIES)
		list_del(&block->partial);
	return entry;
}

/**
 * pool_take() - an entry for a shared page
 * @page: the page, which is the entry's from then on; the caller holds a reference
 *
 * Context: Any.
 * Return: the entry, which is not in the table yet; NULL if there is no memory.
 */
struct shared_entry *pool_take(struct page *page)
{
	struct shared_entry *entry = NULL;

	do {
		spin_lock(&pool_lock);
		if (!list_empty(&partial)) {
			entry = take_from(list_first_entry(&partial, struct block, partial));
			WRITE_ONCE(entry->page, page);
			ksmdev_kpage_set_owner(page, entry);
			/* From here on a sweep finds it, and asks the page if it is alive. */
			smp_store_release(&entry->key.contents,
					  shared_contents(0, WAY_RETIRED));
		}
		spin_unlock(&pool_lock);
	} while (!entry && add_block());
	if (entry)
		atomic_long_inc(&nr_used);
	return entry;
}

static void free_block(struct rcu_head *rcu)
{
	free_page((unsigned long)container_of(rcu, struct block, rcu));
}

/**
 * pool_give() - give back an entry
 * @entry: the entry, which is not in the table any more
 *
 * Context: Any.
 */
void pool_give(struct shared_entry *entry)
{
	struct block *block = block_of(entry);
	bool empty;

	spin_lock(&pool_lock);
	WRITE_ONCE(entry->key.contents, shared_contents(block->free, WAY_FREE));
	block->free = entry - block->entries;
	if (block->used == BLOCK_ENTRIES)
		list_add(&block->partial, &partial);
	empty = !--block->used;
	if (empty)
		list_del(&block->partial);
	spin_unlock(&pool_lock);
	atomic_long_dec(&nr_used);
	if (empty) {
		xa_erase(&blocks, block->id);
		atomic_long_dec(&nr_blocks);
		call_rcu(&block->rcu, free_block);
	}
}

/**
 * pool_visit() - call a function for each entry of a block that is in use
 * @block: its number at least; set to that of the next one
 * @visit: the function, which may give the entry back
 * @data: for it
 *
 * Context: Any. Takes some ten microseconds.
 * Return: how many entries there were; 0 if no block is left.
 */
unsigned int pool_visit(unsigned long *block, void (*visit)(struct shared_entry *entry, void *data),
			void *data)
{
	unsigned int i, n = 0;
	struct block *b;

	rcu_read_lock();
	b = xa_find(&blocks, block, ULONG_MAX, XA_PRESENT);
	for (i = 0; b && i < BLOCK_ENTRIES; i++) {
		if (shared_way(&b->entries[i]) == WAY_FREE)
			continue;
		visit(&b->entries[i], data);
		n++;
	}
	++*block;
	rcu_read_unlock();
	return b ? max(n, 1U) : 0;
}

/**
 * pool_used() - how many entries are in use
 *
 * Context: Any.
 * Return: how many.
 */
unsigned long pool_used(void)
{
	return atomic_long_read(&nr_used);
}

/**
 * pool_blocks() - how many blocks there are
 *
 * Context: Any.
 * Return: how many pages of memory they take.
 */
unsigned long pool_blocks(void)
{
	return atomic_long_read(&nr_blocks);
}
