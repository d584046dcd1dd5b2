// SPDX-License-Identifier: GPL-2.0-only
/*
 * kernel.c - what kernel.h declares: memory, RCU, xarray, rhashtable, work
 */
#include <stdarg.h>

#include "kernel.h"

unsigned int unit_spinning, unit_rcu, unit_fails;
long unit_allocated;
void (*unit_resched)(void);

static struct delayed_work *works[8];
static unsigned int nr_works;
static struct rcu_head *waiting;

void unit_die(const char *format, ...)
{
	va_list args;

	fputs("# ", stdout);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	puts("\nBail out!");
	fflush(stdout);
	/* Sanitizers and gdb show where. */
	abort();
}

u32 unit_random(void)
{
	static u64 state = 88172645463325252ULL;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state >> 16;
}

u32 unit_below(u32 n)
{
	return unit_random() % n;
}

bool unit_fail(void)
{
	return unit_fails && !unit_below(unit_fails);
}

void *unit_alloc(size_t align, size_t size, gfp_t gfp)
{
	void *p;

	if (gfp & GFP_KERNEL)
		unit_sleeps();
	if (unit_fail())
		return NULL;
	p = aligned_alloc(align, (size + align - 1) / align * align);
	if (!p)
		unit_die("no memory");
	memset(p, 0, size);
	unit_allocated++;
	return p;
}

void kfree(void *p)
{
	unit_allocated -= !!p;
	free(p);
}

void call_rcu(struct rcu_head *head, void (*func)(struct rcu_head *head))
{
	head->func = func;
	head->next = waiting;
	waiting = head;
}

static void free_object(struct rcu_head *head)
{
	kfree(head->object);
}

void unit_kfree_rcu(struct rcu_head *head, void *object)
{
	head->object = object;
	call_rcu(head, free_object);
}

void unit_grace_period(void)
{
	unit_sleeps();
	while (waiting) {
		struct rcu_head *head = waiting;

		waiting = head->next;
		head->func(head);
	}
}

/* ---- xarray ---- */

/* The first pair from an index on; may be one behind the last. */
static size_t pair_from(const struct xarray *xa, unsigned long index)
{
	size_t i = 0;

	while (i < xa->nr && xa->pairs[i].index < index)
		i++;
	return i;
}

void *xa_load(struct xarray *xa, unsigned long index)
{
	size_t i = pair_from(xa, index);

	return i < xa->nr && xa->pairs[i].index == index ? xa->pairs[i].entry : NULL;
}

void *xa_erase(struct xarray *xa, unsigned long index)
{
	void *entry = xa_load(xa, index);
	size_t i = pair_from(xa, index);

	if (!entry)
		return NULL;
	memmove(&xa->pairs[i], &xa->pairs[i + 1], (--xa->nr - i) * sizeof(xa->pairs[0]));
	if (!xa->nr) {
		free(xa->pairs);
		xa->pairs = NULL;
	}
	return entry;
}

static void store(struct xarray *xa, unsigned long index, void *entry)
{
	size_t i = pair_from(xa, index);

	xa->pairs = realloc(xa->pairs, (xa->nr + 1) * sizeof(xa->pairs[0]));
	if (!xa->pairs)
		unit_die("no memory");
	memmove(&xa->pairs[i + 1], &xa->pairs[i], (xa->nr++ - i) * sizeof(xa->pairs[0]));
	xa->pairs[i] = (struct unit_pair) { index, entry };
}

void *xa_cmpxchg(struct xarray *xa, unsigned long index, void *old, void *new, gfp_t gfp)
{
	void *entry = xa_load(xa, index);

	(void)gfp;
	if (entry != old)
		return entry;
	if (new && unit_fail())
		return ERR_PTR(-ENOMEM);
	xa_erase(xa, index);
	if (new)
		store(xa, index, new);
	return entry;
}

int xa_alloc(struct xarray *xa, u32 *id, void *entry, struct xa_limit limit, gfp_t gfp)
{
	unsigned long index = limit.min;

	(void)gfp;
	if (unit_fail())
		return -ENOMEM;
	while (xa_load(xa, index))
		index++;
	if (index > limit.max)
		return -EBUSY;
	*id = index;
	store(xa, index, entry);
	return 0;
}

void *xa_find(struct xarray *xa, unsigned long *index, unsigned long last, int present)
{
	size_t i = pair_from(xa, *index);

	(void)present;
	if (i == xa->nr || xa->pairs[i].index > last)
		return NULL;
	*index = xa->pairs[i].index;
	return xa->pairs[i].entry;
}

/* ---- rhashtable ---- */

static void *object_of(struct rhash_head *node, const struct rhashtable_params *params)
{
	return (char *)node - params->head_offset;
}

int rhashtable_init(struct rhashtable *ht, const struct rhashtable_params *params)
{
	(void)params;
	ht->first = NULL;
	ht->tbl = kzalloc(sizeof(*ht->tbl), GFP_KERNEL);
	return ht->tbl ? 0 : -ENOMEM;
}

void rhashtable_destroy(struct rhashtable *ht)
{
	kfree(ht->tbl);
}

void *rhashtable_lookup(struct rhashtable *ht, const void *key, struct rhashtable_params params)
{
	struct rhashtable_compare_arg arg = { ht, key };
	struct rhash_head *node;

	for (node = ht->first; node; node = node->next)
		if (!params.obj_cmpfn(&arg, object_of(node, &params)))
			return object_of(node, &params);
	return NULL;
}

void *rhashtable_lookup_get_insert_fast(struct rhashtable *ht, struct rhash_head *node,
					struct rhashtable_params params)
{
	void *key = (char *)object_of(node, &params) + params.key_offset;
	void *old = rhashtable_lookup(ht, key, params);

	if (old)
		return old;
	if (unit_fail())
		return ERR_PTR(-ENOMEM);
	node->next = ht->first;
	ht->first = node;
	return NULL;
}

int rhashtable_remove_fast(struct rhashtable *ht, struct rhash_head *node,
			   struct rhashtable_params params)
{
	struct rhash_head **link = &ht->first;

	(void)params;
	while (*link && *link != node)
		link = &(*link)->next;
	if (!*link)
		unit_die("what is to be taken out of a table is not in it");
	*link = node->next;
	return 0;
}

/* ---- work ---- */

void unit_queue(struct delayed_work *work)
{
	unsigned int i;

	for (i = 0; i < nr_works && works[i] != work; i++)
		;
	if (i == nr_works) {
		if (i == ARRAY_SIZE(works))
			unit_die("too many kinds of work");
		works[nr_works++] = work;
	}
	work->queued = true;
}

void unit_work(void)
{
	/* A work item does not run beside itself. */
	static bool working;
	unsigned int i;

	if (working)
		return;
	working = true;
	for (i = 0; i < nr_works; i++) {
		if (!works[i]->queued)
			continue;
		works[i]->queued = false;
		works[i]->func(NULL);
	}
	working = false;
}
