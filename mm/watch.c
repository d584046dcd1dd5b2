// SPDX-License-Identifier: GPL-2.0-only
/*
 * watch.c - tell pages that were written to from those that were not
 *
 * A processor that writes to a page sets the dirty bit of its pte. So a pte that is
 * cleaned before the page is read, and clean the next time, still maps the contents
 * that were read. Its dirtiness is passed on to the page, and the TLB is flushed
 * before the lock is dropped: a processor that remembers the pte as dirty would not
 * set the bit again, and reclaim, which may put off its own flush of a clean pte,
 * would miss the write.
 *
 * A secondary MMU (KVM) writes through page tables of its own, and no bit of ours
 * tells. In an mm that has one, a page is watched by making its pte read-only, with
 * a notification: the next writer of either kind faults, and the pte that it gets is
 * writable and dirty. It may have been written to since it was read; so it is read once
 * more when it is found read-only.
 *
 * What is remembered of each page is two bytes: see KSMDEV_SEEN_TAG. A pass over
 * memory that nobody wrote reads those and the ptes, and no struct page. The caller may have
 * these bytes for a part of a page table only, the window; of what is present outside of it he
 * is told before anything else is done, so that he can have more. A write that
 * leaves no trace in the pte (by a device, through a page that was already pinned; before
 * reclaim unmapped a page that is then found in the swap cache), and another page with
 * the same tag, go unnoticed until the page's turn to be reported @again: that costs a
 * failed comparison or a merge that comes late, never a wrong one.
 */
#include <linux/pagemap.h>

#include "internal.h"

static u16 tag_of(unsigned long pfn)
{
	return (pfn ^ pfn >> 11) & KSMDEV_SEEN_TAG;
}

/* Is a present page that of the last time, and would a write since then have left a trace? */
static bool is_watched(u16 seen, unsigned long pfn)
{
	const u16 mask = KSMDEV_SEEN_CLEAN | KSMDEV_SEEN_TAG;

	return (seen & mask) == (KSMDEV_SEEN_CLEAN | tag_of(pfn));
}

/* Do the contents of a present page tell the same as the last time, as far as its mm can tell? */
static bool clean(u16 seen, unsigned long pfn, bool dirty)
{
	return !dirty && is_watched(seen, pfn);
}

/* And as far as a secondary MMU can tell? */
static bool unwritable(u16 seen, bool writable)
{
	return seen & KSMDEV_SEEN_RDONLY && !writable;
}

/*
 * The number of a present pte's page, or its complement (x86, against L1TF), with some bits of
 * flags above: the same tag. This is done for each page of a pass over idle memory.
 */
static unsigned long pfn_for_tag(pte_t pte)
{
	return pte_val(pte) >> PAGE_SHIFT;
}

/* What to remember of a page that is given out to be read now. */
static u16 seen_now(unsigned long pfn, bool dirty, bool writable, bool notified)
{
	u16 seen = tag_of(pfn) | KSMDEV_SEEN_PRESENT;

	if (dirty || (notified && writable))
		return seen;
	return seen | KSMDEV_SEEN_CLEAN | (writable ? 0 : KSMDEV_SEEN_RDONLY);
}

/* Is a page to be reported though it did not change? */
static bool is_asked_for(u16 seen, unsigned int nr, const struct ksmdev_gather *how)
{
	return seen >> KSMDEV_SEEN_WANTED_SHIFT >= how->eager || how->again == nr;
}

/* Report a page; NULL is the zero page. */
static void report(struct page *page, unsigned int nr, bool same, struct mem_cgroup *memcg,
		   struct ksmdev_found *found)
{
	struct ksmdev_look look = { .kind = KSMDEV_ZERO };

	if (page)
		ksmdev_page_look(page, &look);
	*found = (struct ksmdev_found) { .nr = nr, .kind = look.kind, .unchanged = same };
	if (look.kind == KSMDEV_ANON) {
		get_page(page);
		found->page = page;
	} else if (look.kind == KSMDEV_SHARED && memcg) {
		found->owed = ksmdev_payer_seen(page, memcg);
	}
}

/* Nothing that can be merged is there any more. */
static unsigned int report_none(unsigned int nr, u16 *seen, struct ksmdev_found *found)
{
	if (!seen[nr])
		return 0;
	seen[nr] = 0;
	*found = (struct ksmdev_found) { .nr = nr, .kind = KSMDEV_NONE };
	return 1;
}

static void clean_pte(struct vm_area_struct *vma, unsigned long addr, pte_t *ptep)
{
	pte_t pte = ptep_get_and_clear(vma->vm_mm, addr, ptep);

	set_page_dirty(pte_page(pte));
	set_pte_at(vma->vm_mm, addr, ptep, pte_mkclean(pte));
}

static unsigned int gather_table(struct vm_area_struct *vma, unsigned long addr,
				 unsigned long end, pte_t *table, struct ksmdev_gather *how,
				 struct ksmdev_found *found)
{
	unsigned int nr = (addr & ~PMD_MASK) >> PAGE_SHIFT, n = 0, skipped = 0;
	unsigned int last_nr = nr + ((end - addr) >> PAGE_SHIFT);
	unsigned long base = addr & PMD_MASK;
	bool notified = mm_has_notifiers(vma->vm_mm);
	unsigned long first = ULONG_MAX, last = 0;
	/* The loop is what a pass over idle memory consists of. */
	const unsigned int wanted = how->eager << KSMDEV_SEEN_WANTED_SHIFT;
	const bool shared = how->shared;
	const int again = how->again;
	/* By the number in the page table, as all else; of what is in the window. */
	u16 *seen = how->seen - how->first;

	for (; nr < last_nr; nr++) {
		pte_t pte = table ? ptep_get(table + nr) : __pte(0);
		const u16 was = seen[nr];
		bool same, dirty, zero, alone;

		if (!pte_present(pte)) {
			n += report_none(nr, seen, &found[n]);
			continue;
		}
		same = clean(was, pfn_for_tag(pte), pte_dirty(pte)) &&
		       (!notified || unwritable(was, compat_pte_may_write(pte)));
		if (likely(same && was < wanted && nr != again && !shared)) {
			skipped++;
			continue;
		}
		zero = is_zero_pfn(pte_pfn(pte));
		if (compat_pte_devmap(pte) || pte_uffd(pte) || (pte_special(pte) && !zero)) {
			n += report_none(nr, seen, &found[n]);
			continue;
		}
		/* Looked at only because it may be a shared page. */
		if (same && !is_asked_for(was, nr, how) &&
		    (zero || !ksmdev_is_kpage(pte_page(pte)))) {
			skipped++;
			continue;
		}
		report(zero ? NULL : pte_page(pte), nr, same, how->memcg, &found[n]);
		dirty = pte_dirty(pte);
		if (found[n].kind == KSMDEV_ANON && dirty && !notified) {
			addr = base + nr * PAGE_SIZE;
			clean_pte(vma, addr, table + nr);
			first = min(first, addr);
			last = addr + PAGE_SIZE;
			dirty = false;
		}
		/* On arm64 the ptes of a large folio may have one dirty bit for several. */
		alone = found[n].page && !PageCompound(found[n].page);
		if (!same) {
			found[n].written = alone && is_watched(was, pfn_for_tag(pte));
			seen[nr] = seen_now(pte_pfn(pte), dirty, compat_pte_may_write(pte),
					    notified);
		}
		found[n].watched = alone && seen[nr] & KSMDEV_SEEN_CLEAN;
		n++;
	}
	if (last)
		ksmdev_flush_tlb(vma, first, last);
	how->skipped += skipped;
	return n;
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/* Neither a file's pages, nor the huge zero page, nor what a userfaultfd has protected. */
static bool huge_is_ours(pmd_t pmd)
{
	return PageAnon(pmd_page(pmd)) && !pmd_uffd(pmd);
}

/*
 * Change a huge page's pmd in one step: a pmd that is none for a moment would look
 * like a hole to MADV_DONTNEED. The caller flushes the TLB.
 */
static void change_huge(struct vm_area_struct *vma, unsigned long addr, pmd_t *pmdp, pmd_t pmd)
{
	pmd_t old = pmdp_establish(vma, addr & PMD_MASK, pmdp, pmd);

	if (pmd_dirty(old))
		set_page_dirty(pmd_page(old));
}

static unsigned int gather_huge(struct vm_area_struct *vma, unsigned long addr,
				unsigned long end, pmd_t *pmdp,
				struct ksmdev_gather *how, struct ksmdev_found *found)
{
	bool notified = mm_has_notifiers(vma->vm_mm);
	u16 *window = how->seen - how->first;
	pmd_t pmd = *pmdp;
	bool dirty = pmd_dirty(pmd);
	unsigned int n = 0;

	if (!huge_is_ours(pmd)) {
		for (; addr < end; addr += PAGE_SIZE)
			n += report_none((addr & ~PMD_MASK) >> PAGE_SHIFT, window, &found[n]);
		return n;
	}
	/* One bit for all its pages, even if this call is about some of them. */
	if (dirty && !notified && how->whole) {
		unsigned int nr;

		change_huge(vma, addr, pmdp, pmd_mkclean(pmd));
		ksmdev_flush_tlb(vma, addr & PMD_MASK, (addr & PMD_MASK) + PMD_SIZE);
		for (nr = 0; nr < how->count; nr++)
			how->seen[nr] &= ~KSMDEV_SEEN_CLEAN;
		dirty = false;
	}
	for (; addr < end; addr += PAGE_SIZE) {
		unsigned int nr = (addr & ~PMD_MASK) >> PAGE_SHIFT;
		unsigned long pfn = pmd_pfn(pmd) + nr;
		u16 *seen = &window[nr];
		bool same = clean(*seen, pfn, dirty) &&
			    (!notified || unwritable(*seen, pmd_write(pmd)));

		if (same && !is_asked_for(*seen, nr, how)) {
			how->skipped++;
			continue;
		}
		report(pfn_to_page(pfn), nr, same, NULL, &found[n]);
		if (!same)
			*seen = seen_now(pfn, dirty, pmd_write(pmd), notified);
		n++;
	}
	return n;
}

/* Make a huge page read-only. */
static void watch_huge(struct vm_area_struct *vma, unsigned long addr, pmd_t *pmdp)
{
	change_huge(vma, addr, pmdp, pmd_mkclean(pmd_wrprotect(*pmdp)));
	ksmdev_flush_tlb(vma, addr & PMD_MASK, (addr & PMD_MASK) + PMD_SIZE);
}
#else
static bool huge_is_ours(pmd_t pmd)
{
	return false;
}

static unsigned int gather_huge(struct vm_area_struct *vma, unsigned long addr,
				unsigned long end, pmd_t *pmdp,
				struct ksmdev_gather *how, struct ksmdev_found *found)
{
	return 0;
}

static void watch_huge(struct vm_area_struct *vma, unsigned long addr, pmd_t *pmdp)
{
}
#endif

/* Note which of some pages are present. */
static void look_outside(const struct ksmdev_table *table, unsigned int nr, unsigned int last_nr,
			 struct ksmdev_gather *how)
{
	const bool huge = table->huge && huge_is_ours(*table->huge);
	pte_t *ptes = table->pte;

	if (!huge && !ptes)
		return;
	for (; nr < last_nr; nr++) {
		if (!huge && !pte_present(ptep_get(ptes + nr)))
			continue;
		how->low = min(how->low, nr);
		how->high = nr;
	}
}

/* Are pages present outside of the window? Note which. */
static bool is_outgrown(const struct ksmdev_table *table, unsigned long start, unsigned long end,
			struct ksmdev_gather *how)
{
	unsigned int nr = (start & ~PMD_MASK) >> PAGE_SHIFT;
	unsigned int last_nr = nr + ((end - start) >> PAGE_SHIFT);

	how->low = PTRS_PER_PTE;
	how->high = 0;
	look_outside(table, nr, min(last_nr, how->first), how);
	look_outside(table, max(nr, how->first + how->count), last_nr, how);
	return how->low <= how->high;
}

/**
 * ksmdev_gather() - find the pages that changed, and those that are asked for
 * @vma: the mapping that holds the whole range
 * @start: first address
 * @end: last address plus one; in the same page table as @start
 * @how: what is remembered of the pages, which are in the window, and which ones are asked for
 * @found: filled in, in ascending order; room for each page of the range. For
 *	KSMDEV_ANON the caller drops the reference.
 *
 * If there are pages outside of the window that is all that is noted, and nothing reported, unless
 * the window is fixed: then it is as if these were not there.
 *
 * The contents of a page that is reported as changed are to be read after this
 * call: a later write is noticed by the next one.
 *
 * Context: mmap lock held. Takes the page table's lock. Nobody else uses @how->seen.
 * Return: how many pages were reported.
 */
unsigned int ksmdev_gather(struct vm_area_struct *vma, unsigned long start,
			   unsigned long end, struct ksmdev_gather *how,
			   struct ksmdev_found *found)
{
	unsigned long window = (start & PMD_MASK) + how->first * PAGE_SIZE;
	struct ksmdev_table table;
	unsigned int n = 0;

	ksmdev_table_lock(vma, start, &table);
	if (!how->fixed && is_outgrown(&table, start, end, how))
		goto out;
	start = max(start, window);
	end = min(end, window + how->count * PAGE_SIZE);
	if (start >= end)
		goto out;
	if (table.huge)
		n = gather_huge(vma, start, end, table.huge, how, found);
	else
		n = gather_table(vma, start, end, table.pte, how, found);
out:
	ksmdev_table_unlock(&table);
	return n;
}

static bool watch_pte(struct vm_area_struct *vma, unsigned long addr, pte_t *ptep,
		      struct page *page)
{
	pte_t pte = ptep_get(ptep);

	if (!pte_present(pte) || pte_special(pte) || pte_page(pte) != page)
		return false;
	pte = ptep_get_and_clear(vma->vm_mm, addr, ptep);
	if (pte_dirty(pte))
		set_page_dirty(page);
	pte = pte_mkclean(pte);
	if (compat_pte_may_write(pte))
		pte = compat_pte_wrprotect(pte);
	set_pte_at(vma->vm_mm, addr, ptep, pte);
	return true;
}

/* Only if all pages of a huge page are to be watched. */
static bool all_watched(struct ksmdev_found *found, unsigned int nr, pmd_t pmd)
{
	unsigned int i;

	if (nr != PTRS_PER_PTE)
		return false;
	for (i = 0; i < nr; i++)
		if (!found[i].watch || found[i].page != pmd_page(pmd) + i)
			return false;
	return true;
}

/**
 * ksmdev_watch_writes() - make pages read-only, so that the next write leaves a trace
 * @vma: the mapping that holds them
 * @base: the first address of their page table, whether or not @vma begins there
 * @found: the pages; those with @watch are meant
 * @nr: how many; in ascending order
 *
 * Only for an mm with a secondary MMU; elsewhere dirty bits tell and cost nothing. A
 * huge page is made read-only if all its pages are meant.
 *
 * Context: mmap lock held and a notifier window open over all addresses, for a huge
 * page over all of it. Takes the page table's lock.
 */
void ksmdev_watch_writes(struct vm_area_struct *vma, unsigned long base,
			 struct ksmdev_found *found, unsigned int nr)
{
	struct ksmdev_table table;
	bool changed = false;
	unsigned int i;

	if (!nr)
		return;
	ksmdev_table_lock(vma, base + found[0].nr * PAGE_SIZE, &table);
	if (table.huge && all_watched(found, nr, *table.huge))
		watch_huge(vma, base, table.huge);
	for (i = 0; table.pte && i < nr; i++) {
		struct ksmdev_found *f = &found[i];

		if (f->watch)
			changed |= watch_pte(vma, base + f->nr * PAGE_SIZE, table.pte + f->nr,
					     f->page);
	}
	if (changed)
		ksmdev_flush_tlb(vma, base + found[0].nr * PAGE_SIZE,
				 base + (found[nr - 1].nr + 1) * PAGE_SIZE);
	ksmdev_table_unlock(&table);
}
