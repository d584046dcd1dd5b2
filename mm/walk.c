// SPDX-License-Identifier: GPL-2.0-only
/*
 * walk.c - find the pages that an address range maps
 *
 * apply_to_existing_page_range() is exported but warns about huge pages, which a
 * page fault may install at any time under the mmap read lock. So this is a walk
 * of our own: the inline helpers down to the pmd, a lockless look at it, then the
 * lock of the page table or of the pmd, then the look again.
 *
 * What keeps a page table is the mmap lock *and* a mapping, found under it, that covers
 * the address. The lock alone does not: munmap(), brk() and mremap() take their mappings
 * out of the tree, then go on with the lock downgraded to a read lock, and free the tables.
 * So all that is asked here is asked of a mapping. Since 6.14 MADV_DONTNEED frees the lowest
 * table of a mapping that stays, and khugepaged that of a file mapping, both after an RCU
 * grace period: the table's lock is taken under RCU, from a copy of the pmd, and whoever
 * holds it keeps the table, as who frees one needs the lock to take it out.
 */
#include <linux/dax.h>
#include <linux/delay.h>
#include <linux/moduleparam.h>
#include <linux/pagemap.h>
#include <linux/userfaultfd_k.h>

#include "internal.h"

/*
 * What is beneath a registered range is looked at on every scan. These are the
 * mappings that mm/ksm.c leaves alone too.
 */
#define VM_UNMERGEABLE (VM_SHARED | VM_MAYSHARE | VM_PFNMAP | VM_IO | VM_DONTEXPAND |	\
			VM_HUGETLB | VM_MIXEDMAP | VM_DROPPABLE | VM_SHADOW_STACK |	\
			VM_MTE)

/**
 * ksmdev_mergeable() - may pages of this mapping be merged
 * @vma: the mapping
 *
 * Of a file mapping those are meant that were written to, and so are anonymous. A
 * userfaultfd may watch anonymous memory: to merge a page changes nothing that it tells,
 * but for ptes that it has write-protected, which are left alone. A file it may not: a pte
 * is none for a moment while its page is write-protected, and there a page fault asks the
 * userfaultfd for the missing page before it looks again under the page table's lock.
 *
 * Context: mmap lock held.
 * Return: true for private memory that holds or held an anonymous page.
 */
bool ksmdev_mergeable(struct vm_area_struct *vma)
{
	return vma->anon_vma && !(vma->vm_flags & VM_UNMERGEABLE) && !vma_is_dax(vma) &&
	       (vma_is_anonymous(vma) || !userfaultfd_armed(vma));
}

/**
 * ksmdev_zero_page_allowed() - may the kernel's zero page stand for pages of this mapping
 * @vma: the mapping
 *
 * In a file mapping it is no anonymous page: who punches a hole into the file would drop
 * it, and the process would see the file again. In locked memory it would count as a
 * page that is not resident.
 *
 * Context: mmap lock held.
 * Return: true if so.
 */
bool ksmdev_zero_page_allowed(struct vm_area_struct *vma)
{
	return vma_is_anonymous(vma) && !(vma->vm_flags & VM_LOCKED);
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
 * @vma: a mapping that covers the address
 * @addr: the address
 * @next: set to the first address that another page table could map; 0 at the
 *	end of the address space
 *
 * Context: mmap lock held. The answer may be out of date at once.
 * Return: true if there is one.
 */
bool ksmdev_table_present(struct vm_area_struct *vma, unsigned long addr, unsigned long *next)
{
	pud_t *pud = find_pud(vma->vm_mm, addr, next);
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

#ifdef KSMDEV_RACE_DELAY
static unsigned int race_delay_us;
module_param(race_delay_us, uint, 0644);

/**
 * ksmdev_race_delay() - wait where somebody else may come in between, for tests of races
 *
 * Only in debug builds, and only if the module parameter says how long.
 *
 * Context: Any.
 */
void ksmdev_race_delay(void)
{
	udelay(READ_ONCE(race_delay_us));
}
#endif

/* What a pmd pointed to, and its lock; of a pmd of zeros nothing. */
static void find_table(struct mm_struct *mm, pmd_t *pmd, pmd_t *seen, unsigned long addr,
		       struct ksmdev_table *table)
{
	*table = (struct ksmdev_table) { .ptl = &mm->page_table_lock };
	if (pmd_trans_huge(*seen)) {
		table->ptl = pmd_lockptr(mm, pmd);
		table->huge = pmd;
	} else if (pmd_present(*seen) && !pmd_leaf(*seen) && !pmd_bad(*seen)) {
		table->ptl = pte_lockptr(mm, seen);
		table->pte = pte_offset_kernel(seen, addr & PMD_MASK);
	}
}

/* Now that its lock is held: is it still there? */
static bool table_stays(pmd_t *pmd, pmd_t seen, const struct ksmdev_table *table)
{
	/* Of a huge page other bits may have changed. */
	if (table->huge)
		return pmd_trans_huge(READ_ONCE(*pmd));
	return !table->pte || pmd_same(seen, READ_ONCE(*pmd));
}

/**
 * ksmdev_table_lock() - lock what maps an address
 * @vma: a mapping that covers the address
 * @addr: the address
 * @table: filled in: the page table, or the huge page, or neither
 *
 * Context: mmap lock held. A lock is held until ksmdev_table_unlock(), also if there
 * is nothing.
 */
void ksmdev_table_lock(struct vm_area_struct *vma, unsigned long addr,
		       struct ksmdev_table *table) __acquires(table->ptl)
{
	struct mm_struct *mm = vma->vm_mm;
	unsigned long next;
	pmd_t *pmd = NULL;
	pmd_t seen;

	/* Or nothing would keep the table. */
	if (!WARN_ON_ONCE(addr < vma->vm_start || addr >= vma->vm_end))
		pmd = find_pmd(find_pud(mm, addr, &next), addr);
again:
	rcu_read_lock();
	seen = pmd ? READ_ONCE(*pmd) : __pmd(0);
	find_table(mm, pmd, &seen, addr, table);
	ksmdev_race_delay();
	spin_lock(table->ptl);
	if (unlikely(!table_stays(pmd, seen, table))) {
		spin_unlock(table->ptl);
		rcu_read_unlock();
		goto again;
	}
	rcu_read_unlock();
}

/**
 * ksmdev_page_look() - what a mapped page is
 * @page: the page; mapped, under its page table's lock
 * @look: filled in
 *
 * A page with a memory error is not to be read, and so is none; nor is a device's
 * memory, which is anonymous where it is coherent, nor one that has memory tags.
 *
 * Context: Page table lock held.
 */
void ksmdev_page_look(struct page *page, struct ksmdev_look *look)
{
	look->mapcount = 0;
	look->kind = KSMDEV_NONE;
	if (PageHWPoison(page) || is_zone_device_page(page))
		return;
	if (ksmdev_is_kpage(page)) {
		look->mapcount = ksmdev_kpage_mapcount(page);
		look->kind = look->mapcount > 1 ? KSMDEV_SHARED : KSMDEV_SINGLE;
	} else if (PageAnon(page) && !folio_test_ksm(page_folio(page)) &&
		   !ksmdev_page_tagged(page)) {
		look->kind = KSMDEV_ANON;
	}
}

static void look_at_pte(pte_t pte, struct ksmdev_look *look)
{
	look->mapcount = 0;
	look->kind = KSMDEV_NONE;
	if (!pte_present(pte) || compat_pte_devmap(pte))
		return;
	if (is_zero_pfn(pte_pfn(pte)))
		look->kind = KSMDEV_ZERO;
	else if (!pte_special(pte))
		ksmdev_page_look(pte_page(pte), look);
	/* What a userfaultfd has protected is not to be merged; it may have been before. */
	if (pte_uffd(pte) && !look->mapcount)
		look->kind = KSMDEV_NONE;
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
	struct ksmdev_table table;

	ksmdev_table_lock(vma, start, &table);
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

/* The mapping that covers an address, if its pages may be merged. */
static struct vm_area_struct *mergeable_at(struct mm_struct *mm, unsigned long addr)
{
	struct vm_area_struct *vma = vma_lookup(mm, addr);

	return vma && ksmdev_mergeable(vma) ? vma : NULL;
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

	/* One mapping that covers one of them keeps the table for all. */
	for (i = 0; i < nr && !vma; i++)
		if (!map[i].page)
			vma = mergeable_at(mm, map[i].addr);
	if (!vma)
		return 0;
	i--;
	ksmdev_table_lock(vma, map[i].addr, &table);
	for (; i < nr; i++) {
		struct ksmdev_mapping *m = &map[i];

		if (m->page)
			continue;
		if (!vma || m->addr >= vma->vm_end)
			vma = mergeable_at(mm, m->addr);
		if (!vma)
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
#elif COMPAT_SPLIT_INLINE
	err = static_call(ksmdev___split_huge_page_to_list_to_order)(page, NULL, 0);
#elif COMPAT_SPLIT_TO_ORDER
	err = static_call(ksmdev_split_huge_page_to_list_to_order)(page, NULL, 0);
#else
	err = static_call(ksmdev_split_huge_page_to_list)(page, NULL);
#endif
	/* After a split the lock is on @page's own folio. */
	unlock_page(page);
	return err ? -EBUSY : 0;
}
