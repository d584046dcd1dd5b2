// SPDX-License-Identifier: GPL-2.0-only
/*
 * payer.c - that who pays for a shared page maps it
 *
 * A shared page is charged to the memory cgroup of one of those that map it. That one's processes
 * may write to it, unmap it or exit, and others still map it; and nobody tells, nor is there a
 * way from the page to who maps it. So whoever visits the page tables of all that is registered
 * notes, at each shared page that the visited process's group pays for, the number of the round.
 * Where another group's process maps a page whose payer was not seen at it for a whole round, or
 * has no room, that group pays from then on, if it has room.
 *
 * No group pays so for what it does not map, unless all who do are full, or registered nowhere
 * any more.
 */
#include "internal.h"

/* So many rounds have begun since the payer was last seen: one was a whole one. */
#define ROUNDS_UNSEEN 2

#ifdef CONFIG_MEMCG
/**
 * ksmdev_payer_seen() - a shared page is mapped by a process that its payer may be in
 * @page: the page, mapped, its page table's lock held
 * @memcg: the process's group
 *
 * Context: Any.
 * Return: true if another one pays, and it is for this one to do so.
 */
bool ksmdev_payer_seen(struct page *page, struct mem_cgroup *memcg)
{
	struct mem_cgroup *payer;
	bool owed = false;

	if (mem_cgroup_disabled() || !compat_may_recharge())
		return false;
	rcu_read_lock();
	payer = folio_memcg(page_folio(page));
	if (payer == memcg)
		ksmdev_kpage_payer_seen(page);
	else if (payer)
		owed = (ksmdev_kpage_payer_unseen(page) >= ROUNDS_UNSEEN ||
			!ksmdev_has_margin(payer)) && ksmdev_has_margin(memcg);
	rcu_read_unlock();
	return owed;
}
#else
bool ksmdev_payer_seen(struct page *page, struct mem_cgroup *memcg)
{
	return false;
}
#endif

/**
 * ksmdev_payer_change() - have a process's group pay for a shared page that it maps
 * @vma: a mapping of the process
 * @addr: the page's address in it
 * @to: the active memory cgroup, that of the process
 * @from: set to the one that has paid, with a reference; or NULL
 *
 * Context: mmap read lock held. Takes the page table's lock. Does not sleep.
 * Return: 0; -ESTALE if there is no such page; -EBUSY if somebody else has it locked; -ENOMEM if
 * the group has no room.
 */
int ksmdev_payer_change(struct vm_area_struct *vma, unsigned long addr, struct mem_cgroup *to,
			struct mem_cgroup **from)
{
	struct ksmdev_table table;
	struct page *page;
	int err = -ESTALE;

	*from = NULL;
	ksmdev_table_lock(vma, addr, &table);
	page = ksmdev_mapped_page(&table, addr);
	if (!page || !ksmdev_is_kpage(page))
		goto out;
	err = -EBUSY;
	if (trylock_page(page)) {
		err = ksmdev_recharge(page_folio(page), to, from);
		if (!err)
			ksmdev_kpage_payer_seen(page);
		unlock_page(page);
	}
out:
	ksmdev_table_unlock(&table);
	return err;
}
