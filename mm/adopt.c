// SPDX-License-Identifier: GPL-2.0-only
/*
 * adopt.c - make a page that one process has for itself an ordinary one again
 *
 * There are two such. A shared page that one pte maps, as its other mappings are gone: it
 * saves nothing and cannot be swapped out. And a stray: one that the kernel gave to the last
 * process that mapped it, when that wrote to it; the kernel does not know that it is on no
 * LRU list, and that its index is not its place in the mapping.
 *
 * Neither needs memory for that, nor a page fault: the page stays where it is, and gets what
 * every anonymous page has.
 */
#include <linux/pagemap.h>

#include "internal.h"

/**
 * ksmdev_is_stray() - is this an anonymous page that once was shared
 * @page: a page that is no shared one; referenced, or mapped under its page table's lock
 *
 * Its index tells: that was a pointer into the kernel, which is no place in any mapping.
 *
 * Context: Any.
 * Return: true if so: it is one for ksmdev_adopt().
 */
bool ksmdev_is_stray(struct page *page)
{
	return PageAnon(page) && !PageCompound(page) && !PageLRU(page) &&
	       (long)page_folio(page)->index < 0;
}

/* The page is locked, and this pte is its only mapping. */
static void adopt(struct vm_area_struct *vma, unsigned long addr, struct page *page)
{
	struct folio *folio = page_folio(page);

	/* As the kernel does for the last one that maps a page and writes to it. */
	if (!PageAnonExclusive(page))
		SetPageAnonExclusive(page);
	/* Or reclaim, after MADV_FREE in a process that is gone, could drop it. */
	SetPageDirty(page);
	WRITE_ONCE(folio->index, linear_anon_page_index(vma, addr));
	folio->private = NULL;
	WRITE_ONCE(folio->mapping, (void *)vma->anon_vma + FOLIO_MAPPING_ANON);
	folio_add_lru(folio);
}

/**
 * ksmdev_adopt() - give a page that only this pte maps to its mapping
 * @vma: the mapping
 * @addr: the page's address in it
 * @held: a page that the caller holds a reference to, whether or not it is the one; or NULL
 * @to: the active memory cgroup, that of the mapping's process
 * @from: set to the one that has paid for it, which may not map it at all, with a reference;
 *	or NULL
 *
 * Context: mmap read lock held. Takes the page table's lock. Does not sleep.
 * Return: 0; -ESTALE if there is no such page; -EBUSY if somebody else holds it; -ENOMEM if
 * another cgroup pays for it, and that of the process has no room.
 */
int ksmdev_adopt(struct vm_area_struct *vma, unsigned long addr, struct page *held,
		 struct mem_cgroup *to, struct mem_cgroup **from)
{
	struct ksmdev_table table;
	struct page *page;
	int err = -ESTALE;

	*from = NULL;
	if (!vma->anon_vma)
		return err;
	ksmdev_table_lock(vma, addr, &table);
	page = ksmdev_mapped_page(&table, addr);
	if (!page || (!ksmdev_is_kpage(page) && !ksmdev_is_stray(page)) ||
	    ksmdev_kpage_mapcount(page) != 1 || PageHWPoison(page))
		goto out;
	err = -EBUSY;
	/* With the page locked nobody takes a reference to map it: see ksmdev_kpage_get(). */
	if (trylock_page(page)) {
		if (page_ref_count(page) == (page == held ? 2 : 1))
			err = ksmdev_recharge(page_folio(page), to, from);
		if (!err)
			adopt(vma, addr, page);
		unlock_page(page);
	}
out:
	ksmdev_table_unlock(&table);
	return err;
}
