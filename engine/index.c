// SPDX-License-Identifier: GPL-2.0-only
/*
 * index.c - candidates: pages seen unchanged that have no twin yet
 *
 * A hash table whose chains run through the slots themselves: 4 bytes in each
 * slot link it to the next, and there is one 4-byte bucket for two to four slots.
 * An entry stays from pass to pass and changes only when its page's contents did,
 * where mm/ksm.c throws its unstable tree away after every pass.
 *
 * The table grows and shrinks with the number of slots, in a work item, some chains at a time.
 * Nobody waits for that, nor ever for somebody who was told to sleep: all locks here spin.
 *
 * Two contents may have the same fingerprint; so chains are bounded in how much of them is
 * looked at.
 *
 * Which bucket a fingerprint belongs to is said by all of its rest, which a slot has no room for,
 * and some of its upper bits, the more the larger the table. So all slots of a chain have the
 * same rest, and its end says which: where the number of a next slot would be, the rest plus one.
 * No slot has so small a number.
 *
 * What a slot's number means is known here, too: the table of all chunks.
 */
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>

#include "../include/compat.h"
#include "../include/engine.h"
#include "../include/index.h"

/* A few locks at least; and a bucket for four slots of all that there can be. */
#define INDEX_MIN_BITS	(FINGERPRINT_REST_BITS + 2)
#define INDEX_MAX_BITS	min(FINGERPRINT_BITS, 30)
#define LOCK_BITS_MAX	8U

/* What ends a chain: these numbers are no slot's. 0: one that is empty. */
#define CHAIN_ENDS	(1U << FINGERPRINT_REST_BITS)
#define CHUNK_MIN_ID	(CHAIN_ENDS / CHUNK_SLOTS + 1)

/* How far a chain is followed, in all, for INDEX_TRIES matches. */
#define INDEX_CHAIN_MAX	128

/* How many slots and buckets are moved to another table at a time: some 20 us. */
#define MOVE_AT_ONCE	256

/* When what is wanted of the table's size is done: what comes meanwhile is done with it. */
#define RESIZE_DELAY	(HZ / 100 + 1)

/**
 * struct table - where chains begin
 * @buckets: the number of the first slot of each, 0 if there is none
 * @bits: how many there are, as a power of two
 */
struct table {
	u32 *buckets;
	unsigned int bits;
};

/* Held for reading around each access, for writing while chains, or a chunk's slots, move. */
static DEFINE_RWLOCK(table_lock);
static struct table table;
/* The table before, if it is not empty yet, and how many of its chains have moved. */
static struct table old_table;
static unsigned long moved;
/* A chain's lock is said by upper bits that all of it have, in both tables: so many. */
static spinlock_t chain_locks[1 << LOCK_BITS_MAX];
static unsigned int lock_bits;

static unsigned long wanted_slots;

/* All chunks by id. */
static DEFINE_XARRAY_ALLOC1(chunks);

/**
 * index_add_chunk() - give a chunk the number that its slots go by
 * @chunk: the chunk; complete but for @chunk->id, as whoever asks for that number finds it
 * @gfp: how to allocate
 *
 * Context: Any that @gfp is for.
 * Return: 0; -EBUSY if all numbers are in use; -ENOMEM.
 */
int index_add_chunk(struct chunk *chunk, gfp_t gfp)
{
	return xa_alloc(&chunks, &chunk->id, chunk, XA_LIMIT(CHUNK_MIN_ID, CHUNK_MAX_ID), gfp);
}

/**
 * index_remove_chunk() - a chunk's number is free again
 * @chunk: the chunk; none of its slots is a candidate
 *
 * Context: @chunk->lock held.
 */
void index_remove_chunk(struct chunk *chunk)
{
	xa_erase(&chunks, chunk->id);
}

/**
 * index_chunk() - the chunk with a number
 * @id: slot number / CHUNK_SLOTS
 *
 * Context: RCU read lock held; or while one of the chunk's slots is a candidate, the lock of its
 * chain, or all tables.
 * Return: the chunk, or NULL; under RCU it may be on its way out, without a reference.
 */
struct chunk *index_chunk(u32 id)
{
	return xa_load(&chunks, id);
}

/* Where in a table of so many buckets a fingerprint belongs. */
static u32 bucket_of(u64 fingerprint, unsigned int bits)
{
	u32 upper = fingerprint_upper(fingerprint) & ((1U << (bits - FINGERPRINT_REST_BITS)) - 1);

	return fingerprint_of(upper, fingerprint_rest(fingerprint));
}

static u32 *chain_of(u64 fingerprint)
{
	if (old_table.buckets) {
		u32 old = bucket_of(fingerprint, old_table.bits);

		if (old >= moved)
			return &old_table.buckets[old];
	}
	return &table.buckets[bucket_of(fingerprint, table.bits)];
}

/* With table_lock held: it changes with the tables. */
static spinlock_t *lock_of(u32 upper)
{
	return &chain_locks[upper & ((1U << lock_bits) - 1)];
}

/* The tables have changed. */
static void set_lock_bits(void)
{
	unsigned int bits = table.bits;

	if (old_table.buckets)
		bits = min(bits, old_table.bits);
	lock_bits = min(bits - FINGERPRINT_REST_BITS, LOCK_BITS_MAX);
}

static bool is_end(u32 number)
{
	return number <= CHAIN_ENDS;
}

static u32 number_of(struct chunk *chunk, unsigned int nr)
{
	return chunk->id * CHUNK_SLOTS + nr;
}

/*
 * The slot with a number. Only for numbers in a chain whose lock is held: a slot
 * is taken out of its chain before its chunk can go. And it does not move: see index_move().
 */
static struct slot *slot_of(u32 number)
{
	return chunk_slot(index_chunk(number / CHUNK_SLOTS), number % CHUNK_SLOTS);
}

/* The domain of the slot with a number; as slot_of(). */
static struct domain *domain_of(u32 number)
{
	return index_chunk(number / CHUNK_SLOTS)->region->domain;
}

static unsigned int wanted_bits(unsigned long slots)
{
	unsigned int bits = slots > 3 ? order_base_2(slots) - 2 : 0;

	return clamp_t(unsigned int, bits, INDEX_MIN_BITS, INDEX_MAX_BITS);
}

static void link_slot(struct slot *slot, u32 number, u32 rest)
{
	u32 *chain = chain_of(fingerprint_of(slot->upper, rest));

	slot->next = is_end(*chain) ? rest + 1 : *chain;
	*chain = number;
}

/* The rest of a candidate's fingerprint, with its chain's lock held. */
static u32 rest_of(const struct slot *slot)
{
	u32 number = slot->next;

	while (!is_end(number))
		number = slot_of(number)->next;
	return number - 1;
}

/* Move the next chain of the old table. Return: how many slots were in it. */
static unsigned int move_chain(void)
{
	u32 rest = fingerprint_rest(moved), number = old_table.buckets[moved++];
	unsigned int n;

	for (n = 0; !is_end(number); n++) {
		struct slot *slot = slot_of(number);
		u32 next = slot->next;

		link_slot(slot, number, rest);
		number = next;
	}
	return n;
}

/* Move some chains. Return: are there more? */
static bool move_some(void)
{
	unsigned int n = 0;
	bool more;

	write_lock(&table_lock);
	while ((more = moved < 1UL << old_table.bits) && n < MOVE_AT_ONCE)
		n += 1 + move_chain();
	write_unlock(&table_lock);
	return more;
}

static bool fits(unsigned int bits)
{
	unsigned int now = READ_ONCE(table.bits);

	return bits <= now && bits + 2 >= now;
}

/* kvcalloc() gives no more than 2 GiB. */
static u32 *alloc_buckets(unsigned int bits)
{
	const gfp_t gfp = GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN;

	if (bits > 20)
		return __vmalloc(sizeof(u32) << bits, gfp | __GFP_ZERO);
	return kvcalloc(1UL << bits, sizeof(u32), gfp);
}

/*
 * Where there is no memory for it the chains get longer, and that is all. It serves everybody,
 * so nobody is charged.
 */
static void resize(struct work_struct *work)
{
	unsigned int bits = wanted_bits(READ_ONCE(wanted_slots));
	u32 *buckets;

	if (fits(bits))
		return;
	buckets = alloc_buckets(bits);
	/* Half of that is better than nothing. */
	while (!buckets && --bits > table.bits)
		buckets = alloc_buckets(bits);
	if (!buckets)
		return;
	write_lock(&table_lock);
	old_table = table;
	moved = 0;
	table.buckets = buckets;
	WRITE_ONCE(table.bits, bits);
	set_lock_bits();
	write_unlock(&table_lock);
	while (move_some())
		cond_resched();
	write_lock(&table_lock);
	buckets = old_table.buckets;
	old_table.buckets = NULL;
	set_lock_bits();
	write_unlock(&table_lock);
	kvfree(buckets);
}

static DECLARE_DELAYED_WORK(resize_work, resize);

/**
 * index_resize() - let the table of candidates fit a number of slots, soon
 * @slots: how many slots there are
 *
 * Grows with them, shrinks when it is four times too large.
 *
 * Context: Any.
 */
void index_resize(unsigned long slots)
{
	WRITE_ONCE(wanted_slots, slots);
	if (!fits(wanted_bits(slots)))
		queue_delayed_work(system_dfl_wq, &resize_work, RESIZE_DELAY);
}

/**
 * index_move() - let a chunk's slots lie elsewhere
 * @chunk: the chunk
 * @slots: where to copy them to
 * @first: the number in the chunk of the first one that has room there
 *
 * Slots are linked by number, so all links stay as they are. But whoever follows a chain, with its
 * lock alone held, reads slots of any chunk and writes their links. So for a moment nobody may.
 *
 * Context: @chunk->lock held.
 */
void index_move(struct chunk *chunk, struct slot *slots, unsigned int first)
{
	lockdep_assert_held(&chunk->lock);
	write_lock(&table_lock);
	memcpy(&slots[chunk->first - first], chunk->slots, chunk->count * sizeof(*slots));
	chunk->slots = slots;
	chunk->first = first;
	write_unlock(&table_lock);
}

/**
 * index_insert() - make a slot's page a candidate
 * @chunk: the chunk
 * @nr: which slot; the upper bits of its fingerprint are set
 * @rest: the rest of it
 *
 * Context: @chunk->lock held.
 */
void index_insert(struct chunk *chunk, unsigned int nr, u32 rest)
{
	struct slot *slot = chunk_slot(chunk, nr);
	spinlock_t *lock;

	read_lock(&table_lock);
	lock = lock_of(slot->upper);
	spin_lock(lock);
	link_slot(slot, number_of(chunk, nr), rest);
	spin_unlock(lock);
	read_unlock(&table_lock);
}

/**
 * index_rest() - the rest of a candidate's fingerprint
 * @chunk: the chunk
 * @nr: which slot; it is a candidate
 *
 * Context: @chunk->lock held.
 * Return: what a slot has no room for.
 */
u32 index_rest(struct chunk *chunk, unsigned int nr)
{
	struct slot *slot = chunk_slot(chunk, nr);
	spinlock_t *lock;
	u32 rest;

	read_lock(&table_lock);
	lock = lock_of(slot->upper);
	spin_lock(lock);
	rest = rest_of(slot);
	spin_unlock(lock);
	read_unlock(&table_lock);
	return rest;
}

/**
 * index_remove() - a slot's page is no longer a candidate
 * @chunk: the chunk
 * @nr: which slot; the upper bits of its fingerprint are still those it was inserted with
 *
 * Context: @chunk->lock held.
 */
void index_remove(struct chunk *chunk, unsigned int nr)
{
	struct slot *slot = chunk_slot(chunk, nr);
	u32 *link, number = number_of(chunk, nr);
	spinlock_t *lock;

	read_lock(&table_lock);
	lock = lock_of(slot->upper);
	spin_lock(lock);
	link = chain_of(fingerprint_of(slot->upper, rest_of(slot)));
	while (!is_end(*link) && *link != number)
		link = &slot_of(*link)->next;
	if (!WARN_ON_ONCE(is_end(*link)))
		*link = slot->next;
	spin_unlock(lock);
	read_unlock(&table_lock);
}

/* Those of a domain that have a fingerprint, but for one slot; with the chain's lock held. */
static unsigned int find_in_chain(const struct domain *domain, u64 fingerprint, u32 but,
				  u32 found[INDEX_TRIES])
{
	u32 number, upper = fingerprint_upper(fingerprint);
	unsigned int n = 0, length = 0;

	for (number = *chain_of(fingerprint);
	     !is_end(number) && n < INDEX_TRIES && length < INDEX_CHAIN_MAX; length++) {
		struct slot *slot = slot_of(number);

		if (slot->upper == upper && number != but && domain_of(number) == domain)
			found[n++] = number;
		number = slot->next;
	}
	return n;
}

/**
 * index_find_like() - candidates that have a fingerprint
 * @domain: those of this domain
 * @fingerprint: the fingerprint
 * @found: set to the numbers of their slots
 *
 * Context: Any.
 * Return: how many were found.
 */
unsigned int index_find_like(const struct domain *domain, u64 fingerprint,
			     u32 found[INDEX_TRIES])
{
	spinlock_t *lock;
	unsigned int n;

	read_lock(&table_lock);
	lock = lock_of(fingerprint_upper(fingerprint));
	spin_lock(lock);
	/* 0 is no slot's number. */
	n = find_in_chain(domain, fingerprint, 0, found);
	spin_unlock(lock);
	read_unlock(&table_lock);
	return n;
}

/**
 * index_find() - candidates whose contents may be those of a slot's page
 * @chunk: the chunk
 * @nr: which slot, in SLOT_STABLE or SLOT_UNSHARED; it is not a match itself
 * @insert: make it a candidate if there are none, so that of two scans that come with
 *	equal pages one finds the other's
 * @found: set to the numbers of matching slots
 *
 * Context: @chunk->lock held.
 * Return: how many were found.
 */
unsigned int index_find(struct chunk *chunk, unsigned int nr, bool insert,
			u32 found[INDEX_TRIES])
{
	struct slot *own = chunk_slot(chunk, nr);
	u32 rest, self = number_of(chunk, nr);
	spinlock_t *lock;
	unsigned int n;

	read_lock(&table_lock);
	lock = lock_of(own->upper);
	spin_lock(lock);
	rest = own->state == SLOT_UNSHARED ? rest_of(own) : own->next;
	n = find_in_chain(chunk->region->domain, fingerprint_of(own->upper, rest), self, found);
	if (!n && insert)
		link_slot(own, self, rest);
	spin_unlock(lock);
	read_unlock(&table_lock);
	return n;
}

/**
 * index_bytes() - the memory that the table of candidates takes
 *
 * Context: Any.
 * Return: bytes, without the slots.
 */
unsigned long index_bytes(void)
{
	unsigned long bytes;

	read_lock(&table_lock);
	bytes = sizeof(*table.buckets) << table.bits;
	if (old_table.buckets)
		bytes += sizeof(*old_table.buckets) << old_table.bits;
	read_unlock(&table_lock);
	return bytes;
}

/**
 * ksmdev_index_init() - set up the index of candidates
 *
 * Context: Module init.
 * Return: 0 or -ENOMEM.
 */
int ksmdev_index_init(void)
{
	unsigned int i;

	for (i = 0; i < 1U << LOCK_BITS_MAX; i++)
		spin_lock_init(&chain_locks[i]);
	table.bits = INDEX_MIN_BITS;
	set_lock_bits();
	table.buckets = kvcalloc(1UL << table.bits, sizeof(*table.buckets), GFP_KERNEL);
	return table.buckets ? 0 : -ENOMEM;
}

/**
 * ksmdev_index_exit() - free the index of candidates
 *
 * Context: Module exit; no area is left, so no slot is in the index.
 */
void ksmdev_index_exit(void)
{
	cancel_delayed_work_sync(&resize_work);
	kvfree(table.buckets);
}
