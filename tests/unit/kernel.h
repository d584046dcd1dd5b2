/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * kernel.h - as much of a kernel as the engine's indexes need, in user space
 *
 * There is one thread. So locks only say when one is taken that is held already, or is not held
 * where it should be; and what another CPU might do in between is done by the test, where the code
 * under test offers to be scheduled: see unit_resched. Allocations fail when the test wants it,
 * are counted, and may sleep or not as their flags say; what is freed after a grace period is freed
 * when the test says that one is over. A page holds a number; to read one that has a memory error
 * ends the test.
 *
 * All of the kernel's own headers that the files under test include are this one: see the Makefile.
 */
#ifndef UNIT_KERNEL_H
#define UNIT_KERNEL_H

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s64 s64;
typedef unsigned int gfp_t;
typedef s64 ktime_t;
typedef struct { unsigned int val; } kuid_t;

#define U32_MAX			UINT32_MAX
#define KTIME_MAX		INT64_MAX
#define HZ			250
#define PAGE_SHIFT		12
#define PAGE_SIZE		(1UL << PAGE_SHIFT)
#define PAGE_MASK		(~(PAGE_SIZE - 1))
#define PMD_SHIFT		21

#define GFP_KERNEL		1U	/* may sleep */
#define GFP_NOWAIT		0U
#define GFP_SCAN		0U
#define __GFP_NORETRY		0U
#define __GFP_NOWARN		0U
#define __GFP_ZERO		0U

#define __read_mostly
#define READ_ONCE(x)		(*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, value)	(*(volatile __typeof__(x) *)&(x) = (value))
#define smp_mb()		((void)0)
#define smp_load_acquire(p)	READ_ONCE(*(p))
#define smp_store_release(p, v)	WRITE_ONCE(*(p), v)

#define container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))
#define ARRAY_SIZE(a)		(sizeof(a) / sizeof((a)[0]))
#define min(a, b)		((a) < (b) ? (a) : (b))
#define max(a, b)		((a) > (b) ? (a) : (b))
#define clamp_t(type, v, lo, hi) min(max((type)(v), (type)(lo)), (type)(hi))
#define round_down(x, y)	((x) & ~((__typeof__(x))(y) - 1))
#define round_up(x, y)		((((x) - 1) | ((__typeof__(x))(y) - 1)) + 1)
#define WARN_ON_ONCE(x)		(unit_warn(!!(x), #x))

/* What a mistake is. Ends the test. */
void unit_die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

static inline bool unit_warn(bool wrong, const char *what)
{
	if (wrong)
		unit_die("WARN_ON_ONCE(%s)", what);
	return wrong;
}

static inline int fls(unsigned int x)
{
	return x ? 32 - __builtin_clz(x) : 0;
}

static inline unsigned int order_base_2(unsigned long x)
{
	return x > 1 ? 64 - __builtin_clzl(x - 1) : 0;
}

static inline u32 hash_64(u64 value, unsigned int bits)
{
	return value * 0x61C8864680B583EBULL >> (64 - bits);
}

/* ---- errors in pointers ---- */

#define ERR_PTR(err)		((void *)(long)(err))
#define PTR_ERR(p)		((long)(p))
#define IS_ERR(p)		((unsigned long)(p) >= -4095UL)
#define IS_ERR_OR_NULL(p)	(!(p) || IS_ERR(p))

/* ---- chance ---- */

/* The same in each run. */
u32 unit_random(void);
u32 unit_below(u32 n);

/* ---- locks ---- */

/* Spinlocks of all kinds that are held: then nobody sleeps. */
extern unsigned int unit_spinning, unit_rcu;

struct unit_lock {
	unsigned int readers;
	bool locked;
};

typedef struct unit_lock spinlock_t;
typedef struct unit_lock rwlock_t;
struct mutex { struct unit_lock lock; };

#define DEFINE_SPINLOCK(name)	spinlock_t name
#define DEFINE_RWLOCK(name)	rwlock_t name
#define spin_lock_init(l)	(*(l) = (spinlock_t) { 0 })
#define mutex_init(m)		(*(m) = (struct mutex) { { 0 } })
#define mutex_destroy(m)	unit_free(&(m)->lock)
#define spin_lock(l)		(unit_lock(l), (void)unit_spinning++)
#define spin_unlock(l)		(unit_unlock(l), (void)unit_spinning--)
#define write_lock(l)		spin_lock(l)
#define write_unlock(l)		spin_unlock(l)
#define mutex_lock(m)		(unit_sleeps(), unit_lock(&(m)->lock))
#define mutex_unlock(m)		unit_unlock(&(m)->lock)
#define lockdep_assert_held(l)	unit_is_held((const struct unit_lock *)(l))

static inline void unit_free(const struct unit_lock *lock)
{
	if (lock->locked || lock->readers)
		unit_die("a lock is held that should not be");
}

static inline void unit_is_held(const struct unit_lock *lock)
{
	if (!lock->locked)
		unit_die("a lock is not held that should be");
}

static inline void unit_sleeps(void)
{
	if (unit_spinning || unit_rcu)
		unit_die("sleeps with a spinlock held, or under RCU");
}

static inline void unit_lock(struct unit_lock *lock)
{
	unit_free(lock);
	lock->locked = true;
}

static inline void unit_unlock(struct unit_lock *lock)
{
	unit_is_held(lock);
	lock->locked = false;
}

static inline bool mutex_trylock(struct mutex *mutex)
{
	if (mutex->lock.locked)
		return false;
	unit_lock(&mutex->lock);
	return true;
}

static inline void read_lock(rwlock_t *lock)
{
	if (lock->locked)
		unit_die("a lock is held for writing that should not be");
	lock->readers++;
	unit_spinning++;
}

static inline void read_unlock(rwlock_t *lock)
{
	lock->readers--;
	unit_spinning--;
}

/* Set by the test: what others do meanwhile. */
extern void (*unit_resched)(void);

static inline void cond_resched(void)
{
	unit_sleeps();
	if (unit_resched)
		unit_resched();
}

/* ---- counters ---- */

typedef struct { int counter; } atomic_t;
typedef struct { long counter; } atomic_long_t;

#define ATOMIC_INIT(i)			{ (i) }
#define ATOMIC_LONG_INIT(i)		{ (i) }
#define atomic_read(a)			((a)->counter)
#define atomic_set(a, i)		((void)((a)->counter = (i)))
#define atomic_inc(a)			((void)(a)->counter++)
#define atomic_dec(a)			((void)(a)->counter--)
#define atomic_inc_return(a)		(++(a)->counter)
#define atomic_long_read(a)		((a)->counter)
#define atomic_long_add(i, a)		((void)((a)->counter += (i)))
#define atomic_long_sub(i, a)		((void)((a)->counter -= (i)))
#define atomic_long_inc(a)		((void)(a)->counter++)
#define atomic_long_dec(a)		((void)(a)->counter--)
#define atomic_long_add_return(i, a)	((a)->counter += (i))

static inline int atomic_xchg(atomic_t *a, int i)
{
	int old = a->counter;

	a->counter = i;
	return old;
}

static inline bool atomic_long_try_cmpxchg(atomic_long_t *a, long *old, long new)
{
	if (a->counter != *old) {
		*old = a->counter;
		return false;
	}
	a->counter = new;
	return true;
}

typedef struct { int refs; } refcount_t;
struct kref { int refs; };

static inline void kref_init(struct kref *kref)
{
	kref->refs = 1;
}

static inline void kref_get(struct kref *kref)
{
	if (!kref->refs)
		unit_die("a reference to what is gone");
	kref->refs++;
}

static inline bool kref_get_unless_zero(struct kref *kref)
{
	kref->refs += !!kref->refs;
	return kref->refs;
}

static inline void kref_put(struct kref *kref, void (*release)(struct kref *kref))
{
	if (!kref->refs)
		unit_die("a reference too few");
	if (!--kref->refs)
		release(kref);
}

/* ---- memory ---- */

/* Of so many allocations one fails; 0: none. */
extern unsigned int unit_fails;
/* How many there are. */
extern long unit_allocated;

bool unit_fail(void);
void *unit_alloc(size_t align, size_t size, gfp_t gfp);
void kfree(void *p);

#define kzalloc(size, gfp)	unit_alloc(sizeof(long), size, gfp)
#define kcalloc(n, size, gfp)	unit_alloc(sizeof(long), (n) * (size), gfp)
#define kvcalloc(n, size, gfp)	unit_alloc(sizeof(long), (n) * (size), gfp)
#define __vmalloc(size, gfp)	unit_alloc(sizeof(long), size, gfp)

static inline bool test_bit(unsigned long nr, const unsigned long *bits)
{
	return bits[nr / (8 * sizeof(*bits))] >> nr % (8 * sizeof(*bits)) & 1;
}

static inline void set_bit(unsigned long nr, unsigned long *bits)
{
	bits[nr / (8 * sizeof(*bits))] |= 1UL << nr % (8 * sizeof(*bits));
}

#define cmpxchg(at, old, new) ({			\
	__typeof__(*(at)) unit_was = *(at);		\
							\
	if (unit_was == (old))				\
		*(at) = (new);				\
	unit_was;					\
})
#define BITS_PER_BYTE		8
#define get_zeroed_page(gfp)	((unsigned long)unit_alloc(PAGE_SIZE, PAGE_SIZE, gfp))
#define free_page(addr)		kfree((void *)(addr))
#define kvfree(p)		(unit_sleeps(), kfree(p))

/* ---- RCU ---- */

struct rcu_head {
	struct rcu_head *next;
	void (*func)(struct rcu_head *head);
	void *object;
};

#define rcu_read_lock()		((void)unit_rcu++)
#define rcu_read_unlock()	((void)unit_rcu--)
#define kfree_rcu(p, member)	unit_kfree_rcu(&(p)->member, p)
#define synchronize_rcu()	unit_grace_period()
#define rcu_barrier()		unit_grace_period()

void call_rcu(struct rcu_head *head, void (*func)(struct rcu_head *head));
void unit_kfree_rcu(struct rcu_head *head, void *object);
void unit_grace_period(void);

/* ---- lists and trees that nothing here walks but pool.c ---- */

struct list_head { struct list_head *next, *prev; };
struct hlist_node { struct hlist_node *next, **pprev; };
struct rb_node { struct rb_node *left, *right; };
struct rb_root { struct rb_node *rb_node; };

#define LIST_HEAD(name)		struct list_head name = { &(name), &(name) }
#define list_empty(head)	((head)->next == (head))
#define list_first_entry(head, type, member) container_of((head)->next, type, member)

static inline void list_add(struct list_head *new, struct list_head *head)
{
	new->next = head->next;
	new->prev = head;
	head->next->prev = new;
	head->next = new;
}

static inline void list_del(struct list_head *entry)
{
	entry->next->prev = entry->prev;
	entry->prev->next = entry->next;
	entry->next = NULL;
	entry->prev = NULL;
}

/* ---- xarray: pairs in order ---- */

struct unit_pair {
	unsigned long index;
	void *entry;
};

struct xarray {
	struct unit_pair *pairs;
	size_t nr;
};

struct xa_limit { u32 max, min; };

#define DEFINE_XARRAY_ALLOC(name)	struct xarray name
#define DEFINE_XARRAY_ALLOC1(name)	struct xarray name
#define XA_LIMIT(lowest, highest)	((struct xa_limit) { .min = (lowest), .max = (highest) })
#define xa_limit_32b			XA_LIMIT(0, UINT32_MAX)
#define XA_PRESENT			0
#define xa_is_err(p)			IS_ERR(p)
#define xa_err(p)			((int)PTR_ERR(p))

void *xa_load(struct xarray *xa, unsigned long index);
void *xa_cmpxchg(struct xarray *xa, unsigned long index, void *old, void *new, gfp_t gfp);
void *xa_erase(struct xarray *xa, unsigned long index);
int xa_alloc(struct xarray *xa, u32 *id, void *entry, struct xa_limit limit, gfp_t gfp);
void *xa_find(struct xarray *xa, unsigned long *index, unsigned long last, int present);

#define xa_for_each_range(xa, index, entry, first, last) \
	for ((index) = (first); ((entry) = xa_find(xa, &(index), last, XA_PRESENT)); (index)++)

/* ---- rhashtable: a list ---- */

struct rhash_head { struct rhash_head *next; };
struct rhashtable;

struct rhashtable_compare_arg {
	struct rhashtable *ht;
	const void *key;
};

struct rhashtable_params {
	size_t head_offset, key_offset, key_len;
	u32 (*hashfn)(const void *data, u32 len, u32 seed);
	int (*obj_cmpfn)(struct rhashtable_compare_arg *arg, const void *object);
	bool automatic_shrinking;
};

struct unit_bucket_table { unsigned int size; };

struct rhashtable {
	struct rhash_head *first;
	struct unit_bucket_table *tbl;
};

#define rht_dereference_rcu(p, ht) (p)

int rhashtable_init(struct rhashtable *ht, const struct rhashtable_params *params);
void rhashtable_destroy(struct rhashtable *ht);
void *rhashtable_lookup(struct rhashtable *ht, const void *key, struct rhashtable_params params);
void *rhashtable_lookup_get_insert_fast(struct rhashtable *ht, struct rhash_head *node,
					struct rhashtable_params params);
int rhashtable_remove_fast(struct rhashtable *ht, struct rhash_head *node,
			   struct rhashtable_params params);

/* ---- work ---- */

struct work_struct { int unused; };
struct delayed_work {
	void (*func)(struct work_struct *work);
	bool queued;
};

#define DECLARE_DELAYED_WORK(name, function) struct delayed_work name = { .func = (function) }
#define system_dfl_wq			NULL
#define queue_delayed_work(wq, work, delay) unit_queue(work)
#define cancel_delayed_work_sync(work)	((void)((work)->queued = false))

void unit_queue(struct delayed_work *work);
/* Do it, if there is some. */
void unit_work(void);

/* ---- pages ---- */

struct unit_error { bool hwpoison; };

struct page {
	atomic_t _mapcount;
	int refs;
	bool kpage, busy;
	struct unit_error error;
	void *owner;
	u32 content;
};

struct mm_struct { int unused; };
struct vm_area_struct;
struct mmu_notifier_range;
typedef struct { unsigned long pte; } pte_t;

#define PageHWPoison(page)	((page)->error.hwpoison)
#define page_ref_count(page)	((page)->refs)
#define page_to_pfn(page)	((unsigned long)(page))
#define totalram_pages()	(1UL << 20)

void put_page(struct page *page);

/* ---- what a module has, and memory that comes and goes ---- */

#define module_param(name, type, mode) extern int unit_param
#define module_param_named(name, value, type, mode) extern int unit_param
#define MODULE_PARM_DESC(name, text) extern int unit_param

struct notifier_block {
	int (*notifier_call)(struct notifier_block *block, unsigned long action, void *data);
};

struct memory_notify { unsigned long start_pfn, nr_pages; };

enum { MEM_OFFLINE, MEM_GOING_OFFLINE };

#define NOTIFY_OK			0
#define notifier_from_errno(err)	(err)
#define register_memory_notifier(b)	((void)(b), 0)
#define unregister_memory_notifier(b)	((void)(b))

#define ktime_get()			((ktime_t)0)
#define ktime_after(a, b)		((a) > (b))

/* ---- who pays, which is nobody here; and versions, of which there are none ---- */

#define KSMDEV_CHARGE_H
#define KSMDEV_COMPAT_H

struct charge { int unused; };

#define charge_begin(charge, mm)	((void)(charge), (void)(mm))
#define charge_end(charge)		((void)(charge))

#endif /* UNIT_KERNEL_H */
