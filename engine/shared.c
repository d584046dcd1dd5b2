// SPDX-License-Identifier: GPL-2.0-only
/*
 * shared.c - the index of shared pages: from a fingerprint to the pages that have it
 *
 * A resizable hash table of entries that name a page without holding it: the page lives as
 * long as it is mapped, and an entry may name one that is gone. So a lookup asks the page
 * whether it is the entry's yet, and takes a reference, which keeps it so; an entry whose page
 * is gone is dropped by whoever comes upon it.
 *
 * The key is the domain, the fingerprint and a number, the way: pages of different contents that
 * happen to have one fingerprint take the ways 0, 1, 2 and so on, and a lookup compares
 * contents. More than INDEX_TRIES are not shared: that many alike are not chance.
 *
 * A page with as many references as KSMDEV_MAX_SHARING allows is full. It goes from the
 * table, so that no lookup finds it, and its entry stays, to be counted. A page with a memory
 * error is not ours any more: what it holds must not be read.
 */
#include <linux/memory.h>
#include <linux/module.h>

#include "../include/charge.h"
#include "../include/engine.h"
#include "../include/entry.h"
#include "../include/mm.h"
#include "../include/shared.h"

/* Guards changes of the table, and of the entries' ways; lookups go without. */
static DEFINE_SPINLOCK(shared_lock);
static struct rhashtable shared_table;
/* Entries in use, and pages that are about to get one. */
static atomic_long_t nr_shared = ATOMIC_LONG_INIT(0);

/* Shared pages cannot be swapped out, so there is a bound. */
unsigned long ksmdev_max_kernel_pages = ULONG_MAX;
module_param_named(max_kernel_pages, ksmdev_max_kernel_pages, ulong, 0644);
MODULE_PARM_DESC(max_kernel_pages,
		 "how many shared pages there may be; they cannot be swapped (default: a quarter of memory)");

static u32 key_hash(const void *data, u32 len, u32 seed)
{
	const struct shared_key *key = data;

	/* The fingerprint is a hash of the domain, too. */
	return hash_64(key->contents ^ seed, 32);
}

/* memcmp(), which the table would take, is slow for two words. */
static int key_differs(struct rhashtable_compare_arg *arg, const void *object)
{
	const struct shared_entry *entry = object;
	const struct shared_key *key = arg->key;

	return key->contents != READ_ONCE(entry->key.contents) ||
	       key->domain != READ_ONCE(entry->key.domain);
}

static const struct rhashtable_params shared_params = {
	.head_offset = offsetof(struct shared_entry, node),
	.key_offset = offsetof(struct shared_entry, key),
	.key_len = sizeof(struct shared_key),
	.hashfn = key_hash,
	.obj_cmpfn = key_differs,
	.automatic_shrinking = true,
};

/* Is it in the table? */
static bool is_found(const struct shared_entry *entry)
{
	return shared_way(entry) < INDEX_TRIES;
}

static void drop_locked(struct shared_entry *entry)
{
	lockdep_assert_held(&shared_lock);
	if (is_found(entry))
		rhashtable_remove_fast(&shared_table, &entry->node, shared_params);
	pool_give(entry);
	atomic_long_dec(&nr_shared);
}

/* Is it of no use? Nobody knows when a page with a memory error may be freed. */
static bool is_stale(const struct shared_entry *entry)
{
	struct page *page = READ_ONCE(entry->page);

	return !ksmdev_kpage_alive(page, entry) || PageHWPoison(page);
}

/**
 * shared_drop_stale() - drop an entry whose page is gone
 * @entry: the entry, under the RCU read lock since it was found
 *
 * Context: Any.
 * Return: true if it was dropped.
 */
bool shared_drop_stale(struct shared_entry *entry)
{
	bool drop;

	if (!is_stale(entry))
		return false;
	spin_lock(&shared_lock);
	drop = shared_way(entry) != WAY_FREE && is_stale(entry);
	if (drop) {
		/* One with a memory error. */
		if (ksmdev_kpage_alive(entry->page, entry))
			ksmdev_kpage_forget(entry->page);
		drop_locked(entry);
	}
	spin_unlock(&shared_lock);
	return drop;
}

/* The page is full, or has a memory error: let lookups find another. */
static void retire_locked(struct shared_entry *entry)
{
	lockdep_assert_held(&shared_lock);
	if (!is_found(entry))
		return;
	rhashtable_remove_fast(&shared_table, &entry->node, shared_params);
	WRITE_ONCE(entry->key.contents, shared_contents_with(entry->key.contents, WAY_RETIRED));
}

static void shared_retire(struct page *page)
{
	struct shared_entry *entry;

	spin_lock(&shared_lock);
	/* None, if it has a memory error and was dropped meanwhile. */
	entry = ksmdev_kpage_owner(page);
	if (entry)
		retire_locked(entry);
	spin_unlock(&shared_lock);
}

/* The page with a key, with a reference; NULL if there is no such entry; or an error. */
static struct page *lookup(struct domain *domain, u64 fingerprint, u32 way)
{
	struct shared_key key = {
		.contents = shared_contents(fingerprint, way),
		.domain = domain->id,
	};
	struct shared_entry *entry;
	struct page *page = NULL;
	int err;

	rcu_read_lock();
	entry = rhashtable_lookup(&shared_table, &key, shared_params);
	if (entry) {
		page = READ_ONCE(entry->page);
		err = ksmdev_kpage_get(page, entry);
		if (err == -ENOENT)
			shared_drop_stale(entry);
		/* The entry may have been used again, for a page that is another domain's. */
		if (!err && (READ_ONCE(entry->key.contents) != key.contents ||
			     READ_ONCE(entry->key.domain) != key.domain)) {
			put_page(page);
			err = -EBUSY;
		}
		if (err)
			page = ERR_PTR(err);
	}
	rcu_read_unlock();
	return page;
}

/* A page with a memory error must not be read. */
static bool may_equal(struct page *page, struct page *like, bool whole)
{
	return PageHWPoison(page) || (whole ? ksmdev_pages_identical(page, like) :
					      pages_resemble(page, like));
}

/* Can a page that was looked up take another mapping? */
static bool has_room(struct page *page)
{
	if (page_ref_count(page) <= KSMDEV_MAX_SHARING && !PageHWPoison(page))
		return true;
	shared_retire(page);
	return false;
}

/* A shared page with a fingerprint that may equal a page. */
static struct page *find(struct domain *domain, u64 fingerprint, struct page *like, bool whole)
{
	struct page *page;
	u32 way;

	for (way = 0; way < INDEX_TRIES; way++) {
		page = lookup(domain, fingerprint, way);
		if (!page)
			break;
		if (IS_ERR(page))
			continue;
		if (may_equal(page, like, whole) && has_room(page))
			return page;
		put_page(page);
	}
	return NULL;
}

/**
 * shared_find() - a shared page that may equal a page
 * @domain: whose the page is
 * @fingerprint: what it is found by
 * @sample: what those that equal it were found by before its sample was marked; or the same
 * @like: the page, to be compared with; the caller holds a reference
 * @whole: compare all of it; or who has the fingerprint and the same sample will do
 *
 * Context: Any.
 * Return: the shared page with a reference; NULL if there is none with room.
 */
struct page *shared_find(struct domain *domain, u64 fingerprint, u64 sample, struct page *like,
			 bool whole)
{
	struct page *page = find(domain, fingerprint, like, whole);

	if (!page && sample != fingerprint)
		page = find(domain, sample, like, true);
	return page;
}

/**
 * shared_known() - is there a shared page that may equal a page
 * @domain: whose the page is
 * @fingerprint: what it is found by
 *
 * Context: Any; for a hint.
 * Return: true if one has the fingerprint, of whatever contents.
 */
bool shared_known(struct domain *domain, u64 fingerprint)
{
	struct page *page = lookup(domain, fingerprint, 0);

	if (IS_ERR_OR_NULL(page))
		return false;
	put_page(page);
	return true;
}

/*
 * Put a page's entry into the table.
 * Return: the page; or another of the same contents, as another scan was faster, with
 * a reference; NULL if there is no memory or no way left. @alike is set if there is one that has
 * the same sample and is another.
 */
static struct page *insert(struct shared_entry *entry, struct domain *domain, u64 fingerprint,
			   bool *alike)
{
	struct page *page = entry->page, *other, *result = NULL;
	struct shared_entry *old;
	u32 way = 0;
	int err;

	spin_lock(&shared_lock);
	WRITE_ONCE(entry->key.domain, domain->id);
	while (way < INDEX_TRIES && !result) {
		WRITE_ONCE(entry->key.contents, shared_contents(fingerprint, way));
		old = rhashtable_lookup_get_insert_fast(&shared_table, &entry->node,
							shared_params);
		if (!old)
			result = page;
		if (IS_ERR_OR_NULL(old))
			break;
		other = old->page;
		err = ksmdev_kpage_get(other, old);
		if (err == -EBUSY)
			break;
		if (err) {
			/* Its way is free now. */
			drop_locked(old);
			continue;
		}
		if (PageHWPoison(other)) {
			retire_locked(old);
		} else if (ksmdev_pages_identical(page, other)) {
			result = other;
		} else {
			*alike |= pages_alike(page, other);
			way++;
		}
		if (!result)
			put_page(other);
	}
	if (result != page)
		WRITE_ONCE(entry->key.contents,
			   shared_contents_with(entry->key.contents, WAY_RETIRED));
	spin_unlock(&shared_lock);
	return result;
}

/**
 * shared_count() - how many shared pages there are, and some that are gone
 *
 * Context: Any.
 * Return: how many the bound is for.
 */
unsigned long shared_count(void)
{
	return atomic_long_read(&nr_shared);
}

/* Count a shared page before it is there, so that many scans keep the bound. */
static bool reserve(void)
{
	long n = atomic_long_read(&nr_shared);

	do {
		if ((unsigned long)n >= READ_ONCE(ksmdev_max_kernel_pages))
			return false;
	} while (!atomic_long_try_cmpxchg(&nr_shared, &n, n + 1));
	return true;
}

/**
 * shared_create() - make a shared page out of the contents of a page
 * @region: where the page is: that process's cgroup is charged
 * @from: the page to copy
 *
 * @from may have changed since it was read. So what is hashed is the copy, which cannot:
 * under another fingerprint nobody would ever find it.
 *
 * Context: Process.
 * Return: a page with a reference for the caller, if another scan was faster the one
 * that it made; NULL if the bound is reached, there is no memory, or too many pages
 * have the same fingerprint.
 */
struct page *shared_create(struct region *region, struct page *from)
{
	struct shared_entry *entry = NULL;
	struct page *page, *in_table;
	struct charge charge;
	bool alike = false;
	u64 fingerprint;

	if (!reserve())
		return NULL;
	charge_begin(&charge, region->mm);
	page = ksmdev_kpage_alloc(from);
	charge_end(&charge);
	if (page)
		entry = pool_take(page);
	if (!entry) {
		atomic_long_dec(&nr_shared);
		if (page)
			put_page(page);
		return NULL;
	}
	fingerprint = fingerprint_page(region->domain, page);
	in_table = insert(entry, region->domain, fingerprint, &alike);
	/* So that no more of them come to have this fingerprint. */
	if (alike)
		sample_mark(region->domain, region->mm, page, fingerprint);
	if (in_table == page)
		return page;
	/* Without our reference a sweep may drop the entry, too. */
	rcu_read_lock();
	put_page(page);
	shared_drop_stale(entry);
	rcu_read_unlock();
	return in_table;
}

/* A page that was mapped is no longer: its shared page may have one mapper, or none. */
static atomic_t lost_mappers = ATOMIC_INIT(0);

/**
 * shared_lost_mapper() - a slot that mapped a shared page no longer does
 *
 * Context: Any.
 */
void shared_lost_mapper(void)
{
	if (!atomic_read(&lost_mappers))
		atomic_set(&lost_mappers, 1);
}

/**
 * shared_lost_mappers() - did any, since this was asked last
 *
 * Context: Any.
 * Return: true if so.
 */
bool shared_lost_mappers(void)
{
	return atomic_xchg(&lost_mappers, 0);
}

/**
 * shared_table_bytes() - what the table takes
 *
 * Context: Any.
 * Return: bytes.
 */
unsigned long shared_table_bytes(void)
{
	unsigned long bytes;

	rcu_read_lock();
	bytes = sizeof(void *) * rht_dereference_rcu(shared_table.tbl, &shared_table)->size;
	rcu_read_unlock();
	return bytes;
}

static void drop_in(struct shared_entry *entry, void *data)
{
	const struct memory_notify *memory = data;
	unsigned long pfn = page_to_pfn(READ_ONCE(entry->page));

	if (pfn < memory->start_pfn || pfn >= memory->start_pfn + memory->nr_pages)
		return;
	spin_lock(&shared_lock);
	if (shared_way(entry) != WAY_FREE)
		drop_locked(entry);
	spin_unlock(&shared_lock);
}

/*
 * Memory went offline, which it cannot while a page of ours is in it, if we say so of those with a
 * memory error: what entries name there is gone, and soon the struct pages that tell will be.
 */
static int memory_changed(struct notifier_block *block, unsigned long action, void *data)
{
	const struct memory_notify *memory = data;
	unsigned long nr = 0;

	if (action == MEM_GOING_OFFLINE && ksmdev_kpage_pins(memory->start_pfn, memory->nr_pages))
		return notifier_from_errno(-EBUSY);
	if (action != MEM_OFFLINE)
		return NOTIFY_OK;
	while (pool_visit(&nr, drop_in, data))
		cond_resched();
	/* Who read one of them has looked. */
	synchronize_rcu();
	return NOTIFY_OK;
}

static struct notifier_block memory_block = { .notifier_call = memory_changed };

/**
 * ksmdev_shared_init() - set up the index of shared pages
 *
 * Context: Module init.
 * Return: 0 or -ENOMEM.
 */
int ksmdev_shared_init(void)
{
	int err;

	if (ksmdev_max_kernel_pages == ULONG_MAX)
		ksmdev_max_kernel_pages = totalram_pages() / 4;

	err = rhashtable_init(&shared_table, &shared_params);
	if (err)
		return err;
	err = register_memory_notifier(&memory_block);
	if (err)
		rhashtable_destroy(&shared_table);
	return err;
}

static void drop_any(struct shared_entry *entry, void *data)
{
	ksmdev_kpage_leave(entry->page, entry);
	spin_lock(&shared_lock);
	drop_locked(entry);
	spin_unlock(&shared_lock);
}

/**
 * ksmdev_shared_exit() - forget all shared pages
 *
 * Those that are still mapped live on without us.
 *
 * Context: Module exit; nothing scans any more. May sleep.
 */
void ksmdev_shared_exit(void)
{
	unsigned long nr = 0;

	unregister_memory_notifier(&memory_block);
	while (pool_visit(&nr, drop_any, NULL))
		cond_resched();
	rhashtable_destroy(&shared_table);
	/* The blocks' callbacks are ours. */
	rcu_barrier();
}
