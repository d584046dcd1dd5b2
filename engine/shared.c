// SPDX-License-Identifier: GPL-2.0-only
/*
 * shared.c - the index of shared pages: from a fingerprint to the pages that have it
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
 * The key is the fingerprint and a number, the way: pages of different contents that
 * happen to have one fingerprint take the ways 0, 1, 2 and 3, and a lookup compares
 * contents. More are not shared: that many alike are not chance.
 *
 * A page with as many references as KSMDEV_MAX_SHARING allows is full. It goes from the
 * table, so that no lookup finds it, to a list of those that are retired, to be counted
 * and freed. A page with a memory error is not ours any more: what it holds must not be
 * read, and nobody knows when it may be freed.
 */
#include <linux/llist.h>
#include <linux/module.h>
#include <linux/rhashtable.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "../include/charge.h"
#include "../include/compat.h"
#include "../include/index.h"

/* Guards changes of the table; lookups go without. */
static DEFINE_SPINLOCK(shared_lock);
static struct rhashtable shared_table;
/* Pages that are full. Whoever takes some from it holds walk_mutex. */
static LLIST_HEAD(retired);
static atomic_long_t nr_shared = ATOMIC_LONG_INIT(0);
static struct shrinker *shared_shrinker;

/* Shared pages cannot be swapped out, so there is a bound. */
unsigned long ksmdev_max_kernel_pages = ULONG_MAX;
module_param_named(max_kernel_pages, ksmdev_max_kernel_pages, ulong, 0644);
MODULE_PARM_DESC(max_kernel_pages,
		 "how many shared pages there may be; they cannot be swapped (default: a quarter of memory)");

static u64 shared_key(u32 fingerprint, u32 way)
{
	return (u64)way << 32 | fingerprint;
}

/* In the key of a page that is not in the table: no lookup asks for this way. */
#define WAY_RETIRED	INDEX_TRIES

static bool is_retired(const struct ksmdev_kpage *kpage)
{
	return kpage->key >> 32 == WAY_RETIRED;
}

static u32 key_hash(const void *data, u32 len, u32 seed)
{
	const u64 *key = data;

	return hash_64(*key ^ seed, 32);
}

/* memcmp(), which the table would take, is slow for one word. */
static int key_differs(struct rhashtable_compare_arg *arg, const void *object)
{
	const struct ksmdev_kpage *kpage = object;
	const u64 *key = arg->key;

	return *key != kpage->key;
}

static const struct rhashtable_params shared_params = {
	.head_offset = offsetof(struct ksmdev_kpage, node),
	.key_offset = offsetof(struct ksmdev_kpage, key),
	.key_len = sizeof(u64),
	.hashfn = key_hash,
	.obj_cmpfn = key_differs,
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

/* The page is full, or has a memory error: let lookups find another. */
static void retire_locked(struct ksmdev_kpage *kpage)
{
	lockdep_assert_held(&shared_lock);
	if (is_retired(kpage))
		return;
	/* A lookup that stands on it goes on from there: its link in the table stays. */
	rhashtable_remove_fast(&shared_table, &kpage->node, shared_params);
	WRITE_ONCE(kpage->key, shared_key((u32)kpage->key, WAY_RETIRED));
	llist_add(&kpage->link, &retired);
}

static void shared_retire(struct ksmdev_kpage *kpage)
{
	spin_lock(&shared_lock);
	retire_locked(kpage);
	spin_unlock(&shared_lock);
}

/* The page with a key, with a reference. */
static struct page *lookup(u64 key)
{
	struct ksmdev_kpage *kpage;
	struct page *page = NULL;

	rcu_read_lock();
	kpage = rhashtable_lookup(&shared_table, &key, shared_params);
	if (kpage && get_page_unless_zero(ksmdev_kpage_page(kpage)))
		page = ksmdev_kpage_page(kpage);
	rcu_read_unlock();
	return page;
}

/* A page with a memory error must not be read. */
static bool may_equal(struct page *page, struct page *like)
{
	return PageHWPoison(page) || ksmdev_pages_identical(page, like);
}

/*
 * Can a page that was looked up take another mapping? Not when it is full, and not
 * when nobody maps it: then it is about to be freed.
 */
static bool has_room(struct page *page)
{
	int refs = page_ref_count(page);

	if (refs - 1 <= KSMDEV_MAX_SHARING && !PageHWPoison(page))
		return refs > 2;
	shared_retire(ksmdev_page_kpage(page));
	return false;
}

/**
 * shared_find() - a shared page that may equal a page
 * @fingerprint: what the page hashes to
 * @like: the page, to be compared with; the caller holds a reference. NULL: who has the
 *	fingerprint will do
 *
 * Context: Any.
 * Return: the shared page with a reference; NULL if there is none with room.
 */
struct page *shared_find(u32 fingerprint, struct page *like)
{
	struct page *page;
	u32 way;

	for (way = 0; way < INDEX_TRIES; way++) {
		page = lookup(shared_key(fingerprint, way));
		if (!page)
			break;
		if ((!like || may_equal(page, like)) && has_room(page))
			return page;
		put_page(page);
	}
	return NULL;
}

/**
 * shared_known() - is there a shared page of a fingerprint
 * @fingerprint: the fingerprint
 *
 * Context: Any; for a hint.
 * Return: true if there is one, of whatever contents.
 */
bool shared_known(u32 fingerprint)
{
	struct page *page = lookup(shared_key(fingerprint, 0));

	if (page)
		put_page(page);
	return page;
}

/*
 * Put a page into the table.
 * Return: the page; or another of the same contents, as another scan was faster, with
 * a reference; NULL if there is no memory or no way left.
 */
static struct page *insert(struct ksmdev_kpage *kpage, u32 fingerprint)
{
	struct page *page = ksmdev_kpage_page(kpage), *other;
	struct ksmdev_kpage *old = NULL;
	u32 way;

	spin_lock(&shared_lock);
	for (way = 0; way < INDEX_TRIES; way++) {
		kpage->key = shared_key(fingerprint, way);
		old = rhashtable_lookup_get_insert_fast(&shared_table, &kpage->node,
							shared_params);
		if (IS_ERR_OR_NULL(old))
			break;
		other = ksmdev_kpage_page(old);
		if (PageHWPoison(other)) {
			/* Its way is free now. */
			retire_locked(old);
			way--;
		} else if (ksmdev_pages_identical(page, other)) {
			/* Under the lock: it cannot have been pruned. */
			get_page(other);
			spin_unlock(&shared_lock);
			return other;
		}
	}
	spin_unlock(&shared_lock);
	return old ? NULL : page;
}

/**
 * shared_room() - may there be more shared pages
 *
 * Context: Any; for a hint.
 * Return: false if the bound is reached.
 */
bool shared_room(void)
{
	return (unsigned long)atomic_long_read(&nr_shared) < READ_ONCE(ksmdev_max_kernel_pages);
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
 *
 * @from may have changed since it was read. So what is hashed is the copy, which cannot:
 * under another fingerprint nobody would ever find it.
 *
 * Context: May sleep for memory.
 * Return: a page with a reference for the caller, if another scan was faster the one
 * that it made; NULL if the bound is reached, there is no memory, or too many pages
 * have the same fingerprint.
 */
struct page *shared_create(struct mm_struct *mm, struct page *from)
{
	struct ksmdev_kpage *kpage;
	struct page *page, *in_table;
	struct charge charge;

	if (!reserve())
		return NULL;
	charge_begin(&charge, mm);
	kpage = ksmdev_kpage_alloc(from);
	charge_end(&charge);
	if (!kpage) {
		atomic_long_dec(&nr_shared);
		return NULL;
	}
	page = ksmdev_kpage_page(kpage);
	/* The table's reference, and the caller's. */
	get_page(page);
	in_table = insert(kpage, index_fingerprint(page));
	if (in_table == page)
		return page;
	put_page(page);
	shared_drop(kpage);
	return in_table;
}

/*
 * Pages that left the table. A lookup may still stand on one, so they are freed
 * after a grace period, all together: a callback for each would be slow.
 */
static LLIST_HEAD(pruned);

/*
 * Who frees them. Another waits for him, so that what was pruned is free when whoever
 * pruned it says so, though somebody else took it from the list.
 */
static DEFINE_MUTEX(free_mutex);

static void free_pruned(struct work_struct *work)
{
	struct llist_node *node, *next;

	mutex_lock(&free_mutex);
	node = llist_del_all(&pruned);
	if (node)
		synchronize_rcu();
	for (; node; node = next) {
		struct page *page = ksmdev_kpage_page(container_of(node, struct ksmdev_kpage,
								   link));

		next = node->next;
		node->next = NULL;
		/* Not that of one with a memory error. */
		if (!page_ref_count(page))
			page_ref_unfreeze(page, 1);
		put_page(page);
		/* Only now: until then it takes memory, which the limit is for. */
		atomic_long_dec(&nr_shared);
		cond_resched();
	}
	mutex_unlock(&free_mutex);
}

static DECLARE_WORK(free_pruned_work, free_pruned);

/*
 * Take a page out of the table, or of those that are retired, that only we refer to; or
 * one with a memory error, whoever else does.
 */
static bool prune(struct ksmdev_kpage *kpage)
{
	struct page *page = ksmdev_kpage_page(kpage);

	if (page_ref_count(page) != 1 && !PageHWPoison(page))
		return false;
	spin_lock(&shared_lock);
	if (!PageHWPoison(page) && !page_ref_freeze(page, 1)) {
		spin_unlock(&shared_lock);
		return false;
	}
	if (!is_retired(kpage))
		rhashtable_remove_fast(&shared_table, &kpage->node, shared_params);
	spin_unlock(&shared_lock);
	if (page_ref_count(page))
		ksmdev_kpage_forget(kpage);
	llist_add(&kpage->link, &pruned);
	return true;
}

/* Returns true if it removed the page. */
typedef bool (*visit_fn)(struct ksmdev_kpage *kpage, void *data);

/* One walk at a time: a walk that pauses loses its place if another removes it. */
static DEFINE_MUTEX(walk_mutex);

/* Call a function for each page that is retired. */
static void walk_retired(visit_fn visit, void *data)
{
	struct llist_node *node, *next;

	lockdep_assert_held(&walk_mutex);
	for (node = llist_del_all(&retired); node; node = next) {
		next = node->next;
		if (!visit(container_of(node, struct ksmdev_kpage, link), data))
			llist_add(node, &retired);
		cond_resched();
	}
}

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
	walk_retired(visit, data);
}

/* What pruning came upon: pages that it took out, and pages that have one mapping. */
struct pruning {
	unsigned long freed, singles;
};

static bool prune_one(struct ksmdev_kpage *kpage, void *data)
{
	struct pruning *pruning = data;
	bool removed = prune(kpage);

	pruning->freed += removed;
	pruning->singles += !removed && ksmdev_kpage_mapcount(kpage) == 1;
	return removed;
}

/* Take all pages out of the table that nobody maps; the caller frees them. */
static struct pruning prune_all(void)
{
	struct pruning pruning = {};

	lockdep_assert_held(&walk_mutex);
	if (atomic_long_read(&nr_shared))
		walk_shared(prune_one, &pruning);
	return pruning;
}

/* A page that was mapped is no longer: its shared page may have one mapper, or none. */
static atomic_t lost_mappers = ATOMIC_INIT(0);
static unsigned long lost_looked = INITIAL_JIFFIES;

/* Nobody tells when a process forks, exits or writes outside what is registered. */
#define LOST_INTERVAL	(10 * HZ)

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
 * shared_take_lost() - is it time to look for shared pages with few mappers
 *
 * Context: Any.
 * Return: true if mappers were lost since the last call, or it is long ago.
 */
bool shared_take_lost(void)
{
	bool lost = atomic_xchg(&lost_mappers, 0) ||
		    time_after(jiffies, READ_ONCE(lost_looked) + LOST_INTERVAL);

	if (lost)
		WRITE_ONCE(lost_looked, jiffies);
	return lost;
}

/**
 * shared_prune() - free the shared pages that nobody maps
 *
 * Context: May sleep, for a grace period if there are any.
 * Return: true if there are some that have one mapping.
 */
bool shared_prune(void)
{
	struct pruning pruning;

	mutex_lock(&walk_mutex);
	pruning = prune_all();
	mutex_unlock(&walk_mutex);
	free_pruned(NULL);
	return pruning.singles;
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
		mod_delayed_work(system_percpu_wq, &prune_later, PRUNE_DELAY_MIN);
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
	freed = prune_all().freed;
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

static bool drop_one(struct ksmdev_kpage *kpage, void *data)
{
	shared_drop(kpage);
	return true;
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
	mutex_lock(&walk_mutex);
	walk_retired(drop_one, NULL);
	mutex_unlock(&walk_mutex);
}
