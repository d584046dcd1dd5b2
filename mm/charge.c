// SPDX-License-Identifier: GPL-2.0-only
/*
 * charge.c - whose memory a shared page is
 *
 * A shared page is charged as any anonymous page is, to the cgroup of one of the processes that
 * map it, and the kernel takes the charge back when it frees the page. Never more than the
 * cgroup has room for: nothing is reclaimed, nobody killed. Only who gives copies back has room
 * made for them, and nobody killed for that either.
 */
#include "../include/charge.h"
#include "internal.h"

#ifdef CONFIG_MEMCG
/**
 * ksmdev_charge() - charge a page to the active memory cgroup, if that has room
 * @folio: the page, charged to nobody
 * @gfp: GFP_NOWAIT; or GFP_ATOMIC: whether or not it has room
 *
 * Context: Any.
 * Return: 0 or -ENOMEM.
 */
int ksmdev_charge(struct folio *folio, gfp_t gfp)
{
	if (mem_cgroup_disabled())
		return 0;
	return static_call(ksmdev___mem_cgroup_charge)(folio, NULL, gfp | __GFP_NOWARN);
}

/* Who is charged now, with a reference; NULL: nobody. */
static struct mem_cgroup *payer(struct folio *folio)
{
	struct mem_cgroup *memcg;

	rcu_read_lock();
	memcg = folio_memcg(folio);
	if (memcg && !css_tryget(&memcg->css))
		memcg = NULL;
	rcu_read_unlock();
	return memcg;
}

/* One part of so many of a limit is left to the group, for what it is about to ask for. */
#define MARGIN_PART 16

/**
 * ksmdev_has_margin() - does a group, and do those that it is in, have room to spare
 * @memcg: the group; it is referenced, or the RCU read lock held
 *
 * Context: Any.
 * Return: true if it may be charged for what it has not asked for.
 */
bool ksmdev_has_margin(struct mem_cgroup *memcg)
{
	for (; memcg; memcg = parent_mem_cgroup(memcg)) {
		unsigned long limit = min(READ_ONCE(memcg->memory.max),
					  READ_ONCE(memcg->memory.high));

		if (limit - limit / MARGIN_PART <= page_counter_read(&memcg->memory))
			return false;
	}
	return true;
}

/* What is left of a limit, in pages: a CPU charges so many in advance, and there are others. */
#define ROOM MEMCG_CHARGE_BATCH

static bool has_room(struct mem_cgroup *memcg)
{
	for (; memcg; memcg = parent_mem_cgroup(memcg))
		if (page_counter_read(&memcg->memory) + ROOM > READ_ONCE(memcg->memory.max))
			return false;
	return true;
}

/**
 * ksmdev_make_room() - have the active memory cgroup make room for a page
 * @memcg: the active memory cgroup
 *
 * A page fault at the limit would kill for it. Pages that are charged for a moment only have as
 * much reclaimed.
 *
 * Context: Process. May sleep.
 * Return: 0 or -ENOMEM.
 */
int ksmdev_make_room(struct mem_cgroup *memcg)
{
	struct page *page, *next;
	unsigned int i;
	LIST_HEAD(pages);

	if (mem_cgroup_disabled() || has_room(memcg))
		return 0;
	/* Of what is given back the CPU keeps a part charged. */
	for (i = 0; i < 2 * ROOM; i++) {
		page = alloc_page(GFP_TENANT);
		if (!page)
			break;
		list_add(&page->lru, &pages);
	}
	list_for_each_entry_safe(page, next, &pages, lru)
		__free_page(page);
	return has_room(memcg) ? 0 : -ENOMEM;
}

/**
 * ksmdev_recharge() - charge a mapped page to the active memory cgroup, if that has room
 * @folio: the page, of order 0, on no LRU list
 * @to: the active memory cgroup
 * @from: set to the one that was charged, with a reference; or NULL
 *
 * Nobody has asked for it just now, so it takes nothing that the group may need itself.
 *
 * A mapped page is counted in the statistics of its cgroup; it stays mapped until this
 * is done, as the caller holds the lock of a page table that maps it.
 *
 * Context: @folio locked, and the lock held of a page table that maps it.
 * Return: 0, or -ENOMEM if there is no room: it is charged as before.
 */
int ksmdev_recharge(struct folio *folio, struct mem_cgroup *to, struct mem_cgroup **from)
{
	int err;

	*from = NULL;
	if (mem_cgroup_disabled())
		return 0;
	*from = payer(folio);
	if (*from == to)
		return 0;
	if (!ksmdev_has_margin(to))
		return -ENOMEM;
	lruvec_stat_mod_folio(folio, NR_ANON_MAPPED, -1);
	static_call(ksmdev___mem_cgroup_uncharge)(folio);
	err = ksmdev_charge(folio, GFP_NOWAIT);
	if (err && *from) {
		/* What was theirs a moment ago is so again, whatever their limit says. */
		set_active_memcg(*from);
		ksmdev_charge(folio, GFP_ATOMIC);
		set_active_memcg(to);
	}
	lruvec_stat_mod_folio(folio, NR_ANON_MAPPED, 1);
	return err;
}
#else
int ksmdev_charge(struct folio *folio, gfp_t gfp)
{
	return 0;
}

int ksmdev_make_room(struct mem_cgroup *memcg)
{
	return 0;
}

int ksmdev_recharge(struct folio *folio, struct mem_cgroup *to, struct mem_cgroup **from)
{
	*from = NULL;
	return 0;
}
#endif
