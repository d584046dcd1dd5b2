// SPDX-License-Identifier: GPL-2.0-only
/*
 * walk.c - find the pages that an address range maps
 *
 * apply_to_existing_page_range() is exported but warns about huge pages, which a
 * page fault may install at any time under the mmap read lock. So this is a walk
 * of our own: the inline helpers down to the pmd, a lockless look at it, then the
 * lock of the page table or of the pmd, then the look again.
 *
 * The mmap read lock keeps page tables of anonymous memory from being freed:
 * munmap() and khugepaged take it for writing before they free one.
 */
#include <linux/pagemap.h>
#include <linux/userfaultfd_k.h>

#include "internal.h"

/*
 * What is beneath a registered range is looked at on every scan. These are the
 * mappings that mm/ksm.c leaves alone too, and userfaultfd, whose owner must see
 * each write.
 */
#define VM_UNMERGEABLE (VM_SHARED | VM_MAYSHARE | VM_PFNMAP | VM_IO | VM_DONTEXPAND |	\
			VM_HUGETLB | VM_MIXEDMAP | VM_DROPPABLE | VM_SHADOW_STACK)

/**
 * ksmdev_mergeable() - may pages of this mapping be merged
 * @vma: the mapping
 *
 * Context: mmap lock held.
 * Return: true for private anonymous memory that holds or held a page.
 */
bool ksmdev_mergeable(struct vm_area_struct *vma)
{
	return vma_is_anonymous(vma) && vma->anon_vma &&
	       !(vma->vm_flags & VM_UNMERGEABLE) && !userfaultfd_armed(vma);
}

/*
 * The pud of @addr, or NULL; in @next the first address that another one could map.
 */
static pud_t *find_pud(struct mm_struct *mm, unsigned long addr, unsigned long *next)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;

	*next = (addr & PGDIR_MASK) + PGDIR_SIZE;
	if (pgd_none(*pgd) || pgd_bad(*pgd))
		return NULL;
	p4d = p4d_offset(pgd, addr);
	*next = (addr & P4D_MASK) + P4D_SIZE;
	if (p4d_none(*p4d) || p4d_bad(*p4d))
		return NULL;
	*next = (addr & PUD_MASK) + PUD_SIZE;
	return pud_offset(p4d, addr);
}

/* The pmd of @addr, or NULL; @pud is from find_pud(). */
static pmd_t *find_pmd(pud_t *pud, unsigned long addr)
{
	if (!pud || !pud_present(*pud) || pud_leaf(*pud) || pud_bad(*pud))
		return NULL;
	return pmd_offset(pud, addr);
}

/**
 * ksmdev_table_present() - is there a page table, or a huge page, at an address
 * @mm: the address space
 * @addr: the address
 * @next: set to the first address that another page table could map; 0 at the
 *	end of the address space
 *
 * Context: mmap lock held. The answer may be out of date at once.
 * Return: true if there is one.
 */
bool ksmdev_table_present(struct mm_struct *mm, unsigned long addr, unsigned long *next)
{
	pud_t *pud = find_pud(mm, addr, next);
	pmd_t *pmd = find_pmd(pud, addr);

	/* Of what is empty, more may follow in the same table, which is at hand. */
	if (pmd) {
		*next = (addr & PMD_MASK) + PMD_SIZE;
		if (pmd_present(READ_ONCE(*pmd)))
			return true;
		while (*next & ~PUD_MASK && pmd_none(READ_ONCE(*++pmd)))
			*next += PMD_SIZE;
	} else if (pud) {
		while (*next & ~P4D_MASK && pud_none(READ_ONCE(*++pud)))
			*next += PUD_SIZE;
	}
	return false;
}

/**
 * ksmdev_table_lock() - lock what maps an address
 * @mm: the address space
 * @addr: the address
 * @table: filled in: the page table, or the huge page, or neither
 *
 * Context: mmap lock held. A lock is held until ksmdev_table_unlock(), also if there
 * is nothing.
 */
void ksmdev_table_lock(struct mm_struct *mm, unsigned long addr,
		       struct ksmdev_table *table) __acquires(table->ptl)
{
	unsigned long next;
	pmd_t *pmd = find_pmd(find_pud(mm, addr, &next), addr);
	pmd_t seen = pmd ? READ_ONCE(*pmd) : __pmd(0);

	table->pte = NULL;
	table->huge = NULL;
	table->ptl = &mm->page_table_lock;
	if (pmd_trans_huge(seen))
		table->ptl = pmd_lockptr(mm, pmd);
	else if (pmd_present(seen) && !pmd_leaf(seen) && !pmd_bad(seen))
		table->ptl = pte_lockptr(mm, pmd);
	else
		pmd = NULL;
	spin_lock(table->ptl);
	if (!pmd)
		return;
	/* A huge page may have come or gone; then there is nothing for this time. */
	if (pmd_trans_huge(seen)) {
		if (pmd_trans_huge(READ_ONCE(*pmd)))
			table->huge = pmd;
	} else if (likely(pmd_same(seen, READ_ONCE(*pmd)))) {
		table->pte = pte_offset_kernel(pmd, addr & PMD_MASK);
	}
}

/**
 * ksmdev_page_look() - what a mapped page is
 * @page: the page; mapped, under its page table's lock
 * @look: filled in
 *
 * Context: Page table lock held.
 */
void ksmdev_page_look(struct page *page, struct ksmdev_look *look)
{
	look->mapcount = 0;
	look->kind = KSMDEV_NONE;
	if (PageAnon(page) && !PageKsm(page)) {
		look->kind = KSMDEV_ANON;
	} else if (ksmdev_is_kpage(page)) {
		look->mapcount = ksmdev_kpage_mapcount(ksmdev_page_kpage(page));
		look->kind = look->mapcount > 1 ? KSMDEV_SHARED : KSMDEV_SINGLE;
	}
}

static void look_at_pte(pte_t pte, struct ksmdev_look *look)
{
	look->mapcount = 0;
	look->kind = KSMDEV_NONE;
	if (!pte_present(pte) || pte_devmap(pte) || pte_uffd_wp(pte))
		return;
	if (is_zero_pfn(pte_pfn(pte)))
		look->kind = KSMDEV_ZERO;
	else if (!pte_special(pte))
		ksmdev_page_look(pte_page(pte), look);
}

/* The page of a huge page that maps an address. */
static struct page *huge_page_at(pmd_t pmd, unsigned long addr)
{
	return pmd_page(pmd) + ((addr & ~PMD_MASK) >> PAGE_SHIFT);
}

/**
 * ksmdev_look() - look at the pages that a range maps
 * @vma: the mapping that holds the whole range
 * @start: first address
 * @end: last address plus one; in the same page table as @start
 * @look: one for each page of the range, filled in
 *
 * Context: mmap lock held. Takes the page table's lock.
 */
void ksmdev_look(struct vm_area_struct *vma, unsigned long start,
		 unsigned long end, struct ksmdev_look *look)
{
	struct mm_struct *mm = vma->vm_mm;
	struct ksmdev_table table;

	ksmdev_table_lock(mm, start, &table);
	for (; start < end; start += PAGE_SIZE, look++) {
		if (table.huge)
			ksmdev_page_look(huge_page_at(*table.huge, start), look);
		else if (table.pte)
			look_at_pte(ptep_get(ksmdev_pte(&table, start)), look);
		else
			*look = (struct ksmdev_look) { .kind = KSMDEV_NONE };
	}
	ksmdev_table_unlock(&table);
}

/**
 * ksmdev_look_at() - look at one page
 * @vma: the mapping
 * @addr: its address
 *
 * Context: mmap lock held. Takes the page table's lock.
 * Return: what it is.
 */
enum ksmdev_kind ksmdev_look_at(struct vm_area_struct *vma, unsigned long addr)
{
	struct ksmdev_look look;

	ksmdev_look(vma, addr, addr + PAGE_SIZE, &look);
	return look.kind;
}

/* The anonymous page that one entry names, with a reference. */
static struct page *get_anon(struct page *page)
{
	struct ksmdev_look look;

	ksmdev_page_look(page, &look);
	if (look.kind != KSMDEV_ANON)
		return NULL;
	get_page(page);
	return page;
}

static struct page *get_anon_at(pte_t pte)
{
	struct ksmdev_look look;

	look_at_pte(pte, &look);
	if (look.kind != KSMDEV_ANON)
		return NULL;
	get_page(pte_page(pte));
	return pte_page(pte);
}

/**
 * ksmdev_get_pages() - take references to anonymous pages
 * @mm: the address space
 * @map: @addr is read, @page set to the page with a reference, or to NULL if no
 *	mergeable page is there. An entry that comes with a page is left alone.
 * @nr: how many; in ascending order, all in one page table
 *
 * Context: mmap lock held. Takes the page table's lock.
 * Return: how many pages were found.
 */
unsigned int ksmdev_get_pages(struct mm_struct *mm, struct ksmdev_mapping *map,
			      unsigned int nr)
{
	struct vm_area_struct *vma = NULL;
	struct ksmdev_table table;
	unsigned int i, found = 0;

	ksmdev_table_lock(mm, map[0].addr, &table);
	for (i = 0; i < nr; i++) {
		struct ksmdev_mapping *m = &map[i];

		if (m->page)
			continue;
		if (!vma || m->addr >= vma->vm_end)
			vma = find_vma(mm, m->addr);
		if (!vma || m->addr < vma->vm_start || !ksmdev_mergeable(vma))
			continue;
		if (table.huge)
			m->page = get_anon(huge_page_at(*table.huge, m->addr));
		else if (table.pte)
			m->page = get_anon_at(ptep_get(ksmdev_pte(&table, m->addr)));
		found += !!m->page;
	}
	ksmdev_table_unlock(&table);
	return found;
}

/**
 * ksmdev_split() - split the large folio that a page is part of
 * @page: the page; the caller's reference must be the only one besides the
 *	mappings', and stays with it
 *
 * Context: No mmap lock needed. May sleep.
 * Return: 0; -EBUSY if the folio is locked or others hold references.
 */
int ksmdev_split(struct page *page)
{
	struct folio *folio = page_folio(page);
	int err;

	if (!folio_trylock(folio))
		return -EBUSY;
#ifndef CONFIG_TRANSPARENT_HUGEPAGE
	err = -EBUSY;
#elif COMPAT_SPLIT_TO_ORDER
	err = static_call(ksmdev_split_huge_page_to_list_to_order)(page, NULL, 0);
#else
	err = static_call(ksmdev_split_huge_page_to_list)(page, NULL);
#endif
	/* After a split the lock is on @page's own folio. */
	unlock_page(page);
	return err ? -EBUSY : 0;
}

/**
 * ksmdev_drain_lru() - put back the references that per-CPU LRU batches hold
 *
 * A page that was just faulted in waits in such a batch with a reference too
 * many to be merged.
 *
 * Context: May sleep; waits for a work item on every CPU.
 */
void ksmdev_drain_lru(void)
{
	static_call(ksmdev_lru_add_drain_all)();
}
