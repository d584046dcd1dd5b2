// SPDX-License-Identifier: GPL-2.0-only
/*
 * replace.c - replace_page(): map a shared page in place of an anonymous one
 *
 * The pages were write-protected by page_wrprotect() and compared; a pte that is
 * still the same says that nothing has happened to the page since. So, for all pages
 * at once: clear the ptes, flush the TLB, set the ptes, drop the old pages. arm64 wants
 * a pte that names another page than before to have been clear while the TLB was
 * flushed ("break before make"); elsewhere it costs nothing, as the old pages may not
 * be freed before the flush anyway. Who finds a pte clear waits for the table's lock.
 */
#include <linux/pagemap.h>

#include "internal.h"

/*
 * What the kernel's functions for anonymous pages do: those check on debug kernels that
 * the page's anon_vma is related to the mapping's, and that of a shared page is to none.
 */
static void add_rmap(struct page *kpage, struct vm_area_struct *vma)
{
	struct folio *folio = page_folio(kpage);

	if (atomic_inc_and_test(&kpage->_mapcount))
		lruvec_stat_mod_folio(folio, NR_ANON_MAPPED, 1);
	if (vma->vm_flags & VM_LOCKED)
		static_call(ksmdev_mlock_folio)(folio);
}

static void remove_rmap(struct page *page, struct vm_area_struct *vma)
{
#if COMPAT_FOLIO_RMAP
	static_call(ksmdev_folio_remove_rmap_ptes)(page_folio(page), page, 1, vma);
#else
	static_call(ksmdev_page_remove_rmap)(page, vma, false);
#endif
}

/*
 * The zero page as an anonymous read fault maps it. Clean: since 6.8 mm/ksm.c
 * takes a dirty one for its own.
 */
static pte_t zero_pte(struct vm_area_struct *vma, unsigned long addr)
{
	return pte_mkspecial(pfn_pte(page_to_pfn(ZERO_PAGE(addr)), vma->vm_page_prot));
}

static pte_t replacement(struct vm_area_struct *vma, struct ksmdev_mapping *map)
{
	pte_t pte;

	if (map->kpage)
		pte = pte_wrprotect(mk_pte(map->kpage, vma->vm_page_prot));
	else
		pte = zero_pte(vma, map->addr);
	if (pte_soft_dirty(map->pte))
		pte = pte_mksoft_dirty(pte);
	return pte;
}

/* The pte is clear and the TLB flushed: the new page comes, the old one goes. */
static void switch_pages(struct vm_area_struct *vma, struct ksmdev_mapping *map, pte_t *pte)
{
	struct folio *folio = page_folio(map->page);

	if (map->kpage)
		add_rmap(map->kpage, vma);
	set_pte_at(vma->vm_mm, map->addr, pte, replacement(vma, map));
	/* Nobody counts who maps that. */
	if (ksmdev_is_zero_page(map->page))
		return;
	remove_rmap(map->page, vma);
	if (!folio_mapped(folio))
		static_call(ksmdev_folio_free_swap)(folio);
	folio_put(folio);
}

/**
 * replace_page() - replace pages by others of equal content
 * @vma: the mapping that holds them
 * @map: the pages, as page_wrprotect() left them and compared since. An entry
 *	that comes with @err set is only unlocked.
 * @nr: how many; all in one page table
 *
 * On success the pte maps @kpage, or the zero page if that is NULL; the caller's
 * reference to @kpage is now the mapping's. @err is -ESTALE for an entry whose pte
 * changed since it was protected: its page is mapped as whoever changed it wants.
 * The caller's references to @page stay his.
 *
 * Context: mmap read lock held since page_wrprotect() and the same notifier window
 * open. Takes the page table's lock. Does not sleep.
 * Return: how many pages were replaced.
 */
unsigned int replace_page(struct vm_area_struct *vma,
			  struct ksmdev_mapping *map, unsigned int nr)
{
	struct mm_struct *mm = vma->vm_mm;
	unsigned long first = ULONG_MAX, last = 0;
	struct ksmdev_table table;
	unsigned int i, done = 0;
	long anon = 0;

	if (!nr)
		return 0;
	ksmdev_table_lock(vma, map[0].addr, &table);

	for (i = 0; i < nr; i++) {
		struct ksmdev_mapping *m = &map[i];
		pte_t *pte = ksmdev_pte(&table, m->addr);

		if (m->err)
			continue;
		if (!table.pte || !pte_same(ptep_get(pte), m->pte)) {
			m->err = -ESTALE;
			continue;
		}
		flush_cache_page(vma, m->addr, page_to_pfn(m->page));
		ptep_get_and_clear(mm, m->addr, pte);
		first = min(first, m->addr);
		last = max(last, m->addr + PAGE_SIZE);
		done++;
	}
	if (done) {
		ksmdev_flush_tlb(vma, first, last);
		for (i = 0; i < nr; i++) {
			struct ksmdev_mapping *m = &map[i];

			if (m->err)
				continue;
			switch_pages(vma, m, ksmdev_pte(&table, m->addr));
			/* The kernel does not count its zero page as anybody's memory. */
			anon += !!m->kpage - !ksmdev_is_zero_page(m->page);
		}
		if (anon)
			compat_add_mm_counter(mm, MM_ANONPAGES, anon);
	}
	ksmdev_table_unlock(&table);

	for (i = 0; i < nr; i++) {
		if (map[i].locked)
			unlock_page(map[i].page);
		map[i].locked = false;
	}
	return done;
}
