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
 * The pmd of @addr, or NULL and in @next the first address that another table
 * could map.
 */
static pmd_t *find_pmd(struct mm_struct *mm, unsigned long addr, unsigned long *next)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;
	pud_t *pud;

	*next = (addr & PGDIR_MASK) + PGDIR_SIZE;
	if (pgd_none(*pgd) || pgd_bad(*pgd))
		return NULL;
	p4d = p4d_offset(pgd, addr);
	*next = (addr & P4D_MASK) + P4D_SIZE;
	if (p4d_none(*p4d) || p4d_bad(*p4d))
		return NULL;
	pud = pud_offset(p4d, addr);
	*next = (addr & PUD_MASK) + PUD_SIZE;
	if (!pud_present(*pud) || pud_leaf(*pud) || pud_bad(*pud))
		return NULL;
	*next = (addr & PMD_MASK) + PMD_SIZE;
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
	pmd_t *pmd = find_pmd(mm, addr, next);

	return pmd && pmd_present(READ_ONCE(*pmd));
}

/**
 * ksmdev_pte_lock() - lock the page table that maps an address
 * @mm: the address space
 * @addr: the address
 * @table: filled in; the page table in it is NULL if there is none (nothing at all,
 *	or a huge page)
 *
 * Context: mmap lock held. A lock is held until ksmdev_pte_unlock(), also if there
 * is no page table.
 */
void ksmdev_pte_lock(struct mm_struct *mm, unsigned long addr,
		     struct ksmdev_table *table) __acquires(table->ptl)
{
	unsigned long next;
	pmd_t *pmd = find_pmd(mm, addr, &next);
	pmd_t seen = pmd ? READ_ONCE(*pmd) : __pmd(0);

	table->pte = NULL;
	if (pmd_present(seen) && !pmd_leaf(seen) && !pmd_bad(seen)) {
		table->ptl = pte_lockptr(mm, pmd);
		spin_lock(table->ptl);
		/* Or a huge page came to be here. */
		if (likely(pmd_same(seen, READ_ONCE(*pmd))))
			table->pte = pte_offset_kernel(pmd, addr & PMD_MASK);
	} else {
		table->ptl = &mm->page_table_lock;
		spin_lock(table->ptl);
	}
}

static void look_at_page(struct page *page, struct ksmdev_found *found)
{
	if (PageAnon(page) && !PageKsm(page)) {
		get_page(page);
		found->page = page;
		found->kind = KSMDEV_ANON;
	} else if (ksmdev_is_kpage(page)) {
		found->mapcount = ksmdev_kpage_mapcount(ksmdev_page_kpage(page));
		found->kind = found->mapcount > 1 ? KSMDEV_SHARED : KSMDEV_SINGLE;
	}
}

static void look_at_pte(pte_t pte, struct ksmdev_found *found)
{
	if (!pte_present(pte) || pte_devmap(pte) || pte_uffd_wp(pte))
		return;
	if (is_zero_pfn(pte_pfn(pte)))
		found->kind = KSMDEV_ZERO;
	else if (!pte_special(pte))
		look_at_page(pte_page(pte), found);
}

static bool gather_huge(struct mm_struct *mm, unsigned long start,
			unsigned long end, struct ksmdev_found *found)
{
	unsigned long next;
	pmd_t *pmd = find_pmd(mm, start, &next);
	spinlock_t *ptl;
	struct page *page;

	if (!pmd || !pmd_trans_huge(READ_ONCE(*pmd)))
		return false;
	ptl = pmd_lock(mm, pmd);
	if (!pmd_trans_huge(*pmd)) {
		spin_unlock(ptl);
		return false;
	}
	page = pmd_page(*pmd) + ((start & ~PMD_MASK) >> PAGE_SHIFT);
	for (; start < end; start += PAGE_SIZE)
		look_at_page(page++, found++);
	spin_unlock(ptl);
	return true;
}

/**
 * ksmdev_gather() - look at the pages that a range maps
 * @vma: the mapping that holds the whole range
 * @start: first address
 * @end: last address plus one; in the same page table as @start
 * @found: one for each page of the range, filled in; for KSMDEV_ANON the caller
 *	drops the reference
 *
 * Context: mmap lock held. Takes the page table's lock.
 */
void ksmdev_gather(struct vm_area_struct *vma, unsigned long start,
		   unsigned long end, struct ksmdev_found *found)
{
	struct mm_struct *mm = vma->vm_mm;
	struct ksmdev_table table;

	memset(found, 0, ((end - start) >> PAGE_SHIFT) * sizeof(*found));
	if (gather_huge(mm, start, end, found))
		return;
	ksmdev_pte_lock(mm, start, &table);
	for (; table.pte && start < end; start += PAGE_SIZE)
		look_at_pte(ptep_get(ksmdev_pte(&table, start)), found++);
	ksmdev_pte_unlock(&table);
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
#if COMPAT_SPLIT_TO_ORDER
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
