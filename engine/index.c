// SPDX-License-Identifier: GPL-2.0-only
/*
 * index.c - candidates: pages seen unchanged that have no twin yet
 *
 * A hash table whose chains run through the slots themselves: 4 bytes in each
 * slot link it to the next, and there is one 4-byte bucket for two to four slots.
 * An entry stays from pass to pass and changes only when its page's contents did,
 * where mm/ksm.c throws its unstable tree away after every pass.
 *
 * Two contents may have the same fingerprint, by chance or by design; so chains
 * are bounded in how much of them is looked at, and the hash that fingerprints
 * are taken from is keyed with a random secret.
 */
#include <linux/hash.h>
#include <linux/highmem.h>
#include <linux/random.h>
#include <linux/rwsem.h>
#include <linux/siphash.h>
#include <linux/slab.h>

#include "../include/charge.h"
#include "../include/engine.h"
#include "../include/index.h"

#define INDEX_MIN_BITS	10
#define INDEX_LOCKS	256

/* How far a chain is followed, in all, for INDEX_TRIES matches. */
#define INDEX_CHAIN_MAX	64

/* Held for reading around each access, for writing while the table or a chunk's slots move. */
static DECLARE_RWSEM(resize_sem);
static u32 *buckets;
static unsigned int bucket_bits;
static spinlock_t bucket_locks[INDEX_LOCKS];

/* The secrets: a number for each word of a page, and a key for what comes of them. */
static u64 hash_numbers[PAGE_SIZE / sizeof(u64)] __read_mostly;
static siphash_key_t hash_key __read_mostly;

/**
 * index_fingerprint() - hash a page's contents
 * @page: a page the caller holds a reference to
 * @domain: the number of the domain that it is of
 *
 * Whoever knows how one page hashes relative to another makes pages that all hash
 * alike, and pages that hash as somebody else's do and keep those from being merged.
 * A seed does not prevent that: of xxh64() with two words changed to make up for each
 * other, every fourth pair collides, whatever the seed. The sum of products here (the
 * NH of UMAC) is the same for two given pages with a probability of 2^-64 over the
 * secret numbers; siphash() hides it.
 *
 * Context: Any.
 * Return: the upper bits of the keyed hash of what the page holds now.
 */
u32 index_fingerprint(struct page *page, u32 domain)
{
	unsigned __int128 sum = 0;
	const u64 *word = kmap_local_page(page);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(hash_numbers); i += 2)
		sum += (unsigned __int128)(word[i] + hash_numbers[i]) *
		       (word[i + 1] + hash_numbers[i + 1]);
	kunmap_local(word);
	return siphash_3u64(sum, sum >> 64, domain, &hash_key) >> (64 - FINGERPRINT_BITS);
}

static u32 bucket_of(u32 fingerprint)
{
	return fingerprint & ((1U << bucket_bits) - 1);
}

static spinlock_t *lock_of(u32 bucket)
{
	return &bucket_locks[bucket % INDEX_LOCKS];
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
	return chunk_slot(chunk_of_linked_slot(number / CHUNK_SLOTS), number % CHUNK_SLOTS);
}

/* The domain of the slot with a number; as slot_of(). */
static struct domain *domain_of(u32 number)
{
	return chunk_of_linked_slot(number / CHUNK_SLOTS)->region->domain;
}

static unsigned int wanted_bits(unsigned long slots)
{
	unsigned int bits = slots > 3 ? order_base_2(slots) - 2 : 0;

	return clamp_t(unsigned int, bits, INDEX_MIN_BITS, FINGERPRINT_BITS);
}

static void move_chains(u32 *from, unsigned int from_bits)
{
	unsigned long i;

	for (i = 0; i < 1UL << from_bits; i++) {
		u32 number = from[i];

		while (number) {
			struct slot *slot = slot_of(number);
			u32 next = slot->next;
			u32 bucket = bucket_of(slot->fingerprint);

			slot->next = buckets[bucket];
			buckets[bucket] = number;
			number = next;
		}
		if (i % 1024 == 0)
			cond_resched();
	}
}

/**
 * index_resize() - fit the table of candidates to a number of slots
 * @slots: how many slots there are or will be
 *
 * Grows at once, shrinks when it is four times too large.
 *
 * Where there is no memory for it the chains get longer, and that is all. It serves everybody,
 * so nobody is charged.
 *
 * Context: May sleep for memory.
 */
void index_resize(unsigned long slots)
{
	unsigned int bits = wanted_bits(slots);
	unsigned int old_bits = READ_ONCE(bucket_bits);
	u32 *new, *old = NULL;

	if (bits <= old_bits && bits + 2 >= old_bits)
		return;
	new = kvcalloc(1UL << bits, sizeof(*new), GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN);
	if (!new)
		return;

	down_write(&resize_sem);
	if (bucket_bits == old_bits) {
		old = buckets;
		buckets = new;
		bucket_bits = bits;
		move_chains(old, old_bits);
		new = NULL;
	}
	up_write(&resize_sem);
	kvfree(old);
	kvfree(new);
}

/* How often to look whether nobody follows a chain just now: each time takes a moment only. */
#define MOVE_TRIES 100

/**
 * index_move() - let a chunk's slots lie elsewhere
 * @chunk: the chunk
 * @slots: where to copy them to
 * @first: the number in the chunk of the first one that has room there
 *
 * Slots are linked by number, so all links stay as they are. But whoever follows a chain, with its
 * lock alone held, reads slots of any chunk and writes their links. So nobody may: for a moment
 * that is short enough, and neither waited for nor slept in. Who waits for writing has all
 * scans wait for the slowest reader, and some user's scan may be let run again only much later.
 *
 * Context: @chunk->lock held.
 * Return: false if somebody was in the way each time; nothing has changed then.
 */
bool index_move(struct chunk *chunk, struct slot *slots, unsigned int first)
{
	unsigned int tries = MOVE_TRIES;
	bool alone;

	lockdep_assert_held(&chunk->lock);
	preempt_disable();
	while (!(alone = down_write_trylock(&resize_sem)) && --tries)
		cpu_relax();
	if (alone) {
		memcpy(&slots[chunk->first - first], chunk->slots,
		       chunk->count * sizeof(*slots));
		chunk->slots = slots;
		chunk->first = first;
		up_write(&resize_sem);
	}
	preempt_enable();
	return alone;
}

static void link_slot(struct chunk *chunk, unsigned int nr, u32 bucket)
{
	lockdep_assert_held(lock_of(bucket));
	chunk_slot(chunk, nr)->next = buckets[bucket];
	buckets[bucket] = number_of(chunk, nr);
}

/**
 * index_insert() - make a slot's page a candidate
 * @chunk: the chunk
 * @nr: which slot; its fingerprint is set
 *
 * Context: @chunk->lock held.
 */
void index_insert(struct chunk *chunk, unsigned int nr)
{
	u32 bucket;

	down_read(&resize_sem);
	bucket = bucket_of(chunk_slot(chunk, nr)->fingerprint);
	spin_lock(lock_of(bucket));
	link_slot(chunk, nr, bucket);
	spin_unlock(lock_of(bucket));
	up_read(&resize_sem);
}

/**
 * index_remove() - a slot's page is no longer a candidate
 * @chunk: the chunk
 * @nr: which slot; its fingerprint is still the one it was inserted with
 *
 * Context: @chunk->lock held.
 */
void index_remove(struct chunk *chunk, unsigned int nr)
{
	struct slot *slot = chunk_slot(chunk, nr);
	u32 number = number_of(chunk, nr);
	u32 bucket, *link;

	down_read(&resize_sem);
	bucket = bucket_of(slot->fingerprint);
	spin_lock(lock_of(bucket));
	link = &buckets[bucket];
	while (*link && *link != number)
		link = &slot_of(*link)->next;
	if (!WARN_ON_ONCE(!*link))
		*link = slot->next;
	spin_unlock(lock_of(bucket));
	up_read(&resize_sem);
}

/**
 * index_find() - candidates whose contents may be those of a slot's page
 * @chunk: the chunk
 * @nr: which slot; it is not a match itself
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
	u32 fingerprint = chunk_slot(chunk, nr)->fingerprint;
	u32 self = number_of(chunk, nr);
	unsigned int n = 0, length = 0;
	u32 bucket, number;

	down_read(&resize_sem);
	bucket = bucket_of(fingerprint);
	spin_lock(lock_of(bucket));
	for (number = buckets[bucket]; number && n < INDEX_TRIES && length < INDEX_CHAIN_MAX;
	     length++) {
		struct slot *slot = slot_of(number);

		if (slot->fingerprint == fingerprint && number != self &&
		    domain_of(number) == chunk->region->domain)
			found[n++] = number;
		number = slot->next;
	}
	if (!n && insert)
		link_slot(chunk, nr, bucket);
	spin_unlock(lock_of(bucket));
	up_read(&resize_sem);
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
	return sizeof(*buckets) << READ_ONCE(bucket_bits);
}

/**
 * ksmdev_index_init() - set up both indexes
 *
 * Context: Module init.
 * Return: 0 or -ENOMEM.
 */
int ksmdev_index_init(void)
{
	unsigned int i;
	int err;

	get_random_bytes(hash_numbers, sizeof(hash_numbers));
	get_random_bytes(&hash_key, sizeof(hash_key));
	for (i = 0; i < INDEX_LOCKS; i++)
		spin_lock_init(&bucket_locks[i]);
	bucket_bits = INDEX_MIN_BITS;
	buckets = kvcalloc(1UL << bucket_bits, sizeof(*buckets), GFP_KERNEL);
	if (!buckets)
		return -ENOMEM;
	err = shared_init();
	if (err)
		kvfree(buckets);
	return err;
}

/**
 * ksmdev_index_exit() - free both indexes
 *
 * Shared pages that are still mapped live on without us.
 *
 * Context: Module exit; no area is left, so no slot is in the index.
 */
void ksmdev_index_exit(void)
{
	shared_exit();
	kvfree(buckets);
}
