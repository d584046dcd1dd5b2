// SPDX-License-Identifier: GPL-2.0-only
/*
 * shared.c - the index of shared pages: from a hash to the page that has it
 *
 * A resizable hash table whose entries are the struct pages themselves, so that a
 * shared page costs a bucket and nothing else. The table holds one reference to
 * each; a lookup gives the caller another; so
 *
 *	references = 1 + mappings + those that are just being planned
 *
 * and a page with one reference left is of no use to anybody. Such pages are
 * looked for after each pass, when memory is short, and when an area was closed.
 *
 * A page with as many references as KSMDEV_MAX_SHARING allows is full. It stays in
 * the table, to be counted and freed, under a key that no lookup asks for: its
 * generation, 0 for the page that new mappings are to use.
 */
#include <linux/llist.h>
#include <linux/module.h>
#include <linux/rhashtable.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "../include/charge.h"
#include "../include/compat.h"
#include "../include/index.h"
#include "../include/stats.h"

struct shared_key {
	u64 hash;
	unsigned long generation;
};

/* Guards changes of the table; lookups go without. */
static DEFINE_SPINLOCK(shared_lock);
static struct rhashtable shared_table;
/* Even, as struct page wants it; 0 is for the pages that are to be found. */
static unsigned long last_generation;
static atomic_long_t nr_shared = ATOMIC_LONG_INIT(0);
static struct shrinker *shared_shrinker;

/* Shared pages cannot be swapped out, so there is a bound. */
unsigned long ksmdev_max_kernel_pages = ULONG_MAX;
module_param_named(max_kernel_pages, ksmdev_max_kernel_pages, ulong, 0644);
MODULE_PARM_DESC(max_kernel_pages,
		 "how many shared pages there may be; they cannot be swapped (default: a quarter of memory)");

static u32 key_hash(const void *data, u32 len, u32 seed)
{
	const struct shared_key *key = data;

	return hash_64(key->hash ^ (u64)key->generation << 32 ^ seed, 32);
}

static u32 kpage_hash(const void *data, u32 len, u32 seed)
{
	const struct ksmdev_kpage *kpage = data;
	struct shared_key key = { kpage->hash, kpage->generation };

	return key_hash(&key, len, seed);
}

static int kpage_differs(struct rhashtable_compare_arg *arg, const void *object)
{
	const struct shared_key *key = arg->key;
	const struct ksmdev_kpage *kpage = object;

	return key->hash != kpage->hash || key->generation != kpage->generation;
}

static const struct rhashtable_params shared_params = {
	.head_offset = offsetof(struct ksmdev_kpage, node),
	.key_len = sizeof(struct shared_key),
	.hashfn = key_hash,
	.obj_hashfn = kpage_hash,
	.obj_cmpfn = kpage_differs,
	.automatic_shrinking = true,
};

static void prune_work(struct work_struct *work);
static DECLARE_DELAYED_WORK(prune_later, prune_work);

/* The table's reference goes; the page is known to nobody but its mappings. */
static void shared_drop(struct ksmdev_kpage *kpage)
{
	ksmdev_kpage_forget(kpage);
	atomic_long_dec(&nr_shared);
	put_page(ksmdev_kpage_page(kpage));
}

/* The page is full: let lookups find another. */
static void shared_retire(struct ksmdev_kpage *kpage)
{
	spin_lock(&shared_lock);
	if (!kpage->generation &&
	    !rhashtable_remove_fast(&shared_table, &kpage->node, shared_params)) {
		last_generation += 2;
		WRITE_ONCE(kpage->generation, last_generation);
		/* Without memory for the table the page lives on uncounted. */
		if (rhashtable_insert_fast(&shared_table, &kpage->node, shared_params))
			shared_drop(kpage);
	}
	spin_unlock(&shared_lock);
}

/**
 * shared_find() - the shared page whose contents have a hash
 * @hash: from index_hash()
 *
 * Context: Any.
 * Return: the page with a reference, or NULL if there is none with room.
 */
struct page *shared_find(u64 hash)
{
	struct shared_key key = { .hash = hash };
	struct ksmdev_kpage *kpage;
	struct page *page = NULL;
	int refs = 0;

	rcu_read_lock();
	kpage = rhashtable_lookup(&shared_table, &key, shared_params);
	if (kpage && get_page_unless_zero(ksmdev_kpage_page(kpage))) {
		page = ksmdev_kpage_page(kpage);
		refs = page_ref_count(page);
		if (refs - 1 > KSMDEV_MAX_SHARING)
			shared_retire(kpage);
	}
	rcu_read_unlock();

	/* Of no use when full, and when nobody maps it: it will be freed. */
	if (page && (refs - 1 > KSMDEV_MAX_SHARING || refs == 2)) {
		put_page(page);
		page = NULL;
	}
	return page;
}

/*
 * Return: false if another scan was faster, or there is no memory.
 */
static bool insert(struct ksmdev_kpage *kpage)
{
	struct shared_key key = { .hash = kpage->hash };
	void *other;

	spin_lock(&shared_lock);
	other = rhashtable_lookup_get_insert_key(&shared_table, &key, &kpage->node,
						 shared_params);
	spin_unlock(&shared_lock);
	return !other;
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
 * @mm: whose cgroup is charged
 * @from: the page to copy
 * @hash: what its contents hash to
 *
 * Context: May sleep for memory.
 * Return: the page with a reference for the caller; NULL if the bound is reached,
 * there is no memory, the contents changed, or there is such a page already.
 */
struct page *shared_create(struct mm_struct *mm, struct page *from, u64 hash)
{
	struct ksmdev_kpage *kpage;
	struct charge charge;
	struct page *page;

	if (!reserve())
		return NULL;
	charge_begin(&charge, mm);
	kpage = ksmdev_kpage_alloc(from);
	charge_end(&charge);
	if (!kpage)
		goto err_alloc;
	page = ksmdev_kpage_page(kpage);
	kpage->hash = index_hash(page);
	if (kpage->hash != hash)
		goto err_page;
	get_page(page);
	if (!insert(kpage))
		goto err_insert;
	return page;

err_insert:
	put_page(page);
err_page:
	ksmdev_kpage_forget(kpage);
	put_page(page);
err_alloc:
	atomic_long_dec(&nr_shared);
	return NULL;
}

/*
 * Pages that left the table. A lookup may still stand on one, so they are freed
 * after a grace period, all together: a callback for each would be slow.
 */
static LLIST_HEAD(pruned);

/* The link takes the place of the generation: pointers leave bit 0 clear, too. */
static struct llist_node *kpage_link(struct ksmdev_kpage *kpage)
{
	BUILD_BUG_ON(sizeof(kpage->generation) != sizeof(struct llist_node));
	return (struct llist_node *)&kpage->generation;
}

static void free_pruned(struct work_struct *work)
{
	struct llist_node *node = llist_del_all(&pruned), *next;

	if (!node)
		return;
	synchronize_rcu();
	for (; node; node = next) {
		struct page *page = container_of((unsigned long *)node, struct page,
						 compound_head);

		next = node->next;
		node->next = NULL;
		page_ref_unfreeze(page, 1);
		put_page(page);
		cond_resched();
	}
}

static DECLARE_WORK(free_pruned_work, free_pruned);

/* Take a page out of the table that only the table refers to. */
static bool prune(struct ksmdev_kpage *kpage)
{
	struct page *page = ksmdev_kpage_page(kpage);

	if (page_ref_count(page) != 1)
		return false;
	spin_lock(&shared_lock);
	if (!page_ref_freeze(page, 1)) {
		spin_unlock(&shared_lock);
		return false;
	}
	rhashtable_remove_fast(&shared_table, &kpage->node, shared_params);
	spin_unlock(&shared_lock);
	ksmdev_kpage_forget(kpage);
	llist_add(kpage_link(kpage), &pruned);
	atomic_long_dec(&nr_shared);
	return true;
}

/* Returns true if it removed the page from the table. */
typedef bool (*visit_fn)(struct ksmdev_kpage *kpage, void *data);

/* One walk at a time: a walk that pauses loses its place if another removes it. */
static DEFINE_MUTEX(walk_mutex);

/*
 * Call a function for each shared page. While the table is being resized, entries
 * move from the old one to the new one, which the walk comes to when it is through
 * with the old one and was told so by -EAGAIN: none is missed, but one may come
 * twice. Who cannot have that holds the table's mutex, without which none moves.
 */
static void walk_shared(visit_fn visit, void *data)
{
	struct rhashtable_iter iter;
	struct ksmdev_kpage *kpage;
	unsigned int n = 0;
	bool removed;

	lockdep_assert_held(&walk_mutex);
	rhashtable_walk_enter(&shared_table, &iter);
	rhashtable_walk_start(&iter);
	while ((kpage = rhashtable_walk_next(&iter))) {
		if (IS_ERR(kpage))
			continue;
		removed = visit(kpage, data);
		if (++n < 256 || removed)
			continue;
		n = 0;
		rhashtable_walk_stop(&iter);
		cond_resched();
		rhashtable_walk_start(&iter);
	}
	rhashtable_walk_stop(&iter);
	rhashtable_walk_exit(&iter);
}

static bool prune_one(struct ksmdev_kpage *kpage, void *data)
{
	unsigned long *freed = data;
	bool removed = prune(kpage);

	*freed += removed;
	return removed;
}

/* Take all pages out of the table that nobody maps; the caller frees them. */
static unsigned long prune_all(void)
{
	unsigned long freed = 0;

	lockdep_assert_held(&walk_mutex);
	if (atomic_long_read(&nr_shared))
		walk_shared(prune_one, &freed);
	return freed;
}

/**
 * shared_prune() - free the shared pages that nobody maps
 *
 * Context: May sleep, for a grace period if there are any.
 */
void shared_prune(void)
{
	mutex_lock(&walk_mutex);
	prune_all();
	mutex_unlock(&walk_mutex);
	free_pruned(NULL);
}

/* From one walk to the next; doubled each time, up to a limit. */
static unsigned long prune_delay;

#define PRUNE_DELAY_MIN	(HZ / 10)
#define PRUNE_DELAY_MAX	(4 * HZ)

static void prune_work(struct work_struct *work)
{
	unsigned long delay = READ_ONCE(prune_delay) * 2;

	shared_prune();
	/* A process that exits takes its time until its last page is unmapped. */
	if (delay <= PRUNE_DELAY_MAX && atomic_long_read(&nr_shared)) {
		WRITE_ONCE(prune_delay, delay);
		schedule_delayed_work(&prune_later, delay);
	}
}

/**
 * shared_prune_soon() - free unmapped shared pages in a moment
 *
 * For when processes exit or areas are closed, and nobody may be scanning. Many
 * calls make one walk, and a few more as time goes by.
 *
 * Context: Any.
 */
void shared_prune_soon(void)
{
	if (atomic_long_read(&nr_shared)) {
		WRITE_ONCE(prune_delay, PRUNE_DELAY_MIN);
		mod_delayed_work(system_wq, &prune_later, PRUNE_DELAY_MIN);
	}
}

/* How many could be freed is not known without looking at each. */
static unsigned long shrink_count(struct shrinker *shrinker, struct shrink_control *sc)
{
	return atomic_long_read(&nr_shared) ?: SHRINK_EMPTY;
}

static unsigned long shrink_scan(struct shrinker *shrinker, struct shrink_control *sc)
{
	static unsigned long last;
	unsigned long freed;

	/* A walk is not cheap, and reclaim asks often. */
	if (last && time_before(jiffies, READ_ONCE(last) + HZ / 10))
		return SHRINK_STOP;
	if (!mutex_trylock(&walk_mutex))
		return SHRINK_STOP;
	WRITE_ONCE(last, jiffies | 1);
	sc->nr_scanned = sc->nr_to_scan;
	freed = prune_all();
	mutex_unlock(&walk_mutex);
	/* Reclaim must not wait for a grace period. */
	schedule_work(&free_pruned_work);
	return freed;
}

static bool add_one(struct ksmdev_kpage *kpage, void *data)
{
	struct shared_totals *totals = data;
	unsigned int mapcount = ksmdev_kpage_mapcount(kpage);

	if (mapcount) {
		totals->shared++;
		totals->sharing += mapcount - 1;
	}
	return false;
}

/**
 * shared_totals() - count shared pages and their mappings as they are now
 * @totals: filled in
 *
 * Context: May sleep. Takes some time a shared page.
 */
void shared_totals(struct shared_totals *totals)
{
	/* What is about to be freed does not count any more. */
	if (delayed_work_pending(&prune_later))
		shared_prune();
	memset(totals, 0, sizeof(*totals));
	mutex_lock(&walk_mutex);
	mutex_lock(&shared_table.mutex);
	walk_shared(add_one, totals);
	mutex_unlock(&shared_table.mutex);
	mutex_unlock(&walk_mutex);
	totals->pages = atomic_long_read(&nr_shared);
	rcu_read_lock();
	totals->metadata = index_bytes() + sizeof(void *) *
		rht_dereference_rcu(shared_table.tbl, &shared_table)->size;
	rcu_read_unlock();
}

/**
 * shared_init() - set up the index of shared pages
 *
 * Context: Module init.
 * Return: 0 or -ENOMEM.
 */
int shared_init(void)
{
	int err;

	if (ksmdev_max_kernel_pages == ULONG_MAX)
		ksmdev_max_kernel_pages = totalram_pages() / 4;

	err = rhashtable_init(&shared_table, &shared_params);
	if (err)
		return err;
	shared_shrinker = compat_shrinker_alloc("ksmdev");
	if (!shared_shrinker) {
		err = -ENOMEM;
		goto err_table;
	}
	shared_shrinker->count_objects = shrink_count;
	shared_shrinker->scan_objects = shrink_scan;
	shared_shrinker->seeks = DEFAULT_SEEKS;
	err = compat_shrinker_register(shared_shrinker, "ksmdev");
	if (err)
		goto err_table;
	return 0;

err_table:
	rhashtable_destroy(&shared_table);
	return err;
}

static void let_go(void *object, void *arg)
{
	shared_drop(object);
}

/**
 * shared_exit() - forget all shared pages
 *
 * Context: Module exit; nothing scans any more. May sleep.
 */
void shared_exit(void)
{
	compat_shrinker_unregister(shared_shrinker);
	cancel_delayed_work_sync(&prune_later);
	cancel_work_sync(&free_pruned_work);
	free_pruned(NULL);
	rhashtable_free_and_destroy(&shared_table, let_go, NULL);
}
