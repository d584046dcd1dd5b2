// SPDX-License-Identifier: GPL-2.0-only
/*
 * wrprotect.c - page_wrprotect(): make pages unchangeable for a comparison
 *
 * A page may be compared, and then replaced, only while nobody can write to it.
 * Writers come through ptes, through get_user_pages() (O_DIRECT, vmsplice, RDMA)
 * and, without a lock, through its fast variant. So, for all pages at once:
 *
 *	clear the pte		new writers fault and wait for the table's lock
 *	flush the TLB		old writers are gone, those in devices with a TLB of
 *				their own, too; and all CPUs see that the pte is
 *				clear: get_user_pages_fast(), which takes a reference
 *				and then reads the pte once more, has its reference
 *				by now or will drop it again
 *	count the references	mappings + ours + swap cache, or somebody else has
 *				the page and may write to it: put the pte back
 *	drop PageAnonExclusive	refused if the page may be pinned
 *	set the pte again	clean and read-only, its dirtiness kept in the page
 *
 * An anonymous page that several processes map is read-only in all of them, and
 * one that is exclusive has this one mapping: to protect one pte is enough. What
 * mm/ksm.c does for one page with one flush, this does for a whole page table.
 */
#include <linux/pagemap.h>

#include "internal.h"

/**
 * ksmdev_notify_start() - open a window in which ptes may be changed
 * @range: filled in, for ksmdev_notify_end()
 * @vma: the mapping
 * @start: first address
 * @end: last address plus one
 *
 * Secondary MMUs (KVM) drop what they know of the range and wait for the end.
 *
 * Context: mmap lock held. May sleep.
 */
void ksmdev_notify_start(struct mmu_notifier_range *range,
			 struct vm_area_struct *vma,
			 unsigned long start, unsigned long end)
{
	compat_notifier_range_init(range, vma, start, end);
#ifdef CONFIG_MMU_NOTIFIER
	if (mm_has_notifiers(vma->vm_mm)) {
		range->flags |= MMU_NOTIFIER_RANGE_BLOCKABLE;
		static_call(ksmdev___mmu_notifier_invalidate_range_start)(range);
	}
#endif
}

/**
 * ksmdev_notify_end() - close the window again
 * @range: from ksmdev_notify_start()
 *
 * Context: mmap lock held. May sleep.
 */
void ksmdev_notify_end(struct mmu_notifier_range *range)
{
#ifdef CONFIG_MMU_NOTIFIER
	if (!mm_has_notifiers(range->mm))
		return;
#if COMPAT_FLUSH_SECONDARY_TLB
	/* ksmdev_flush_tlb() has called ->invalidate_range() wherever a pte changed. */
	static_call(ksmdev___mmu_notifier_invalidate_range_end)(range, true);
#else
	static_call(ksmdev___mmu_notifier_invalidate_range_end)(range);
#endif
#endif
}

/* Does the pte still map the page, and is it a page that can be merged? */
static int lock_mapped_page(pte_t pte, struct ksmdev_mapping *map)
{
	struct page *page = map->page;

	if (!pte_present(pte) || pte_pfn(pte) != page_to_pfn(page) || pte_uffd(pte))
		return -ESTALE;
	/* A dirty pte of the zero page is one that mm/ksm.c counts. */
	if (ksmdev_is_zero_page(page))
		return pte_dirty(pte) ? -ESTALE : 0;
	if (pte_special(pte))
		return -ESTALE;
	if (!PageAnon(page) || folio_test_ksm(page_folio(page)) || ksmdev_is_kpage(page) ||
	    PageHWPoison(page))
		return -ESTALE;
	if (PageCompound(page))
		return -E2BIG;
	if (!trylock_page(page))
		return -EBUSY;
	map->locked = true;
	return 0;
}

/*
 * The pte is clear and the TLB flushed: decide whether the page may be shared.
 * Return: 0, or why it may not.
 */
static int claim_page(struct page *page)
{
	/* A small page: its own count is all there is. */
	int mapcount = atomic_read(&page->_mapcount) + 1;

	/* That one never changes, and is mapped all over. */
	if (ksmdev_is_zero_page(page))
		return 0;
	/* A virtual machine's fault may have given it tags until now; see mm/internal.h. */
	if (ksmdev_page_tagged(page))
		return -ESTALE;
	if (mapcount + 1 + folio_test_swapcache(page_folio(page)) != page_ref_count(page))
		return PageLRU(page) || ksmdev_is_stray(page) ? -EBUSY : -EAGAIN;
	if (PageAnonExclusive(page))
		return compat_try_share_anon_rmap(page);
	return 0;
}

/**
 * page_wrprotect() - write-protect pages, so that their contents cannot change
 * @vma: the mapping that holds them
 * @map: the pages; @addr and @page are read, @pte, @err, @locked and @written set.
 *	An entry that comes with @err set is left alone.
 * @nr: how many; all in one page table, each at most once
 *
 * Succeeds for a page that is anonymous, small, still mapped at its address and held by nobody
 * but its mappings, the swap cache and the caller's one reference; and for the kernel's zero page,
 * which nobody can write to. Such a page's contents stay as they are for as long as its pte stays
 * @pte. A page that fails is mapped as before; @err says why: -ESTALE (no longer this page, or it
 * got memory tags), -EBUSY (locked, pinned or otherwise in use), -EAGAIN (in use, and it waits in
 * some CPU's batch to be put on an LRU list: see drain.c), -E2BIG (part of a large folio).
 *
 * Every entry must be passed on to replace_page(), which unlocks the pages.
 *
 * Context: mmap read lock held and a notifier window open over all addresses.
 * Takes the page table's lock. Does not sleep.
 * Return: how many pages are write-protected now.
 */
unsigned int page_wrprotect(struct vm_area_struct *vma,
			    struct ksmdev_mapping *map, unsigned int nr)
{
	struct mm_struct *mm = vma->vm_mm;
	unsigned long first = ULONG_MAX, last = 0;
	struct ksmdev_table table;
	unsigned int i, done = 0;

	if (!nr)
		return 0;
	ksmdev_table_lock(vma, map[0].addr, &table);

	for (i = 0; i < nr; i++) {
		struct ksmdev_mapping *m = &map[i];
		pte_t *pte = ksmdev_pte(&table, m->addr);

		if (!m->err && !table.pte)
			m->err = -ESTALE;
		if (m->err)
			continue;
		m->err = lock_mapped_page(ptep_get(pte), m);
		if (m->err)
			continue;
		flush_cache_page(vma, m->addr, page_to_pfn(m->page));
		m->pte = ptep_get_and_clear(mm, m->addr, pte);
		first = min(first, m->addr);
		last = max(last, m->addr + PAGE_SIZE);
	}
	if (last)
		ksmdev_flush_tlb(vma, first, last);

	for (i = 0; i < nr; i++) {
		struct ksmdev_mapping *m = &map[i];

		if (m->err)
			continue;
		m->err = claim_page(m->page);
		if (!m->err) {
			/* The traces that mm/watch.c looks for. */
			m->written = pte_dirty(m->pte) ||
				     (mm_has_notifiers(mm) && compat_pte_may_write(m->pte));
			/* Or reclaim could drop the only copy of the data. */
			if (pte_dirty(m->pte))
				set_page_dirty(m->page);
			m->pte = pte_mkclean(m->pte);
			if (compat_pte_may_write(m->pte))
				m->pte = compat_pte_wrprotect(m->pte);
			done++;
		}
		set_pte_at(mm, m->addr, ksmdev_pte(&table, m->addr), m->pte);
	}
	ksmdev_table_unlock(&table);
	return done;
}
