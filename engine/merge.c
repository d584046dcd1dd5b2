// SPDX-License-Identifier: GPL-2.0-only
/*
 * merge.c - verify, then share
 *
 * All pages of a chunk that have a shared page to go to are merged together: one
 * notifier window, one write-protect sweep and one TLB flush, the comparisons, one
 * replace sweep and one flush. The scan that found them held no lock since, so
 * everything is looked at again here.
 */
#include <linux/sched/mm.h>

#include "../include/scan.h"
#include "../include/trace.h"

/* Merge what lies in one mapping. */
static void merge_in_vma(struct vm_area_struct *vma, struct ksmdev_mapping *map,
			 unsigned int nr)
{
	unsigned long first = ULONG_MAX, last = 0;
	struct mmu_notifier_range range;
	unsigned int i;

	for (i = 0; i < nr; i++) {
		first = min(first, map[i].addr);
		last = max(last, map[i].addr + PAGE_SIZE);
	}
	ksmdev_notify_start(&range, vma, first, last);
	if (page_wrprotect(vma, map, nr)) {
		for (i = 0; i < nr; i++) {
			struct ksmdev_mapping *m = &map[i];

			if (m->err)
				continue;
			if (m->kpage ? !ksmdev_pages_identical(m->page, m->kpage) :
				       !ksmdev_page_is_zero(m->page))
				m->err = -EILSEQ;
		}
	}
	/* Also unlocks what cannot be merged. */
	replace_page(vma, map, nr);
	ksmdev_notify_end(&range);
}

static void merge_in_mm(struct mm_struct *mm, struct ksmdev_mapping *map, unsigned int nr)
{
	unsigned int i, n;

	for (i = 0; i < nr; i += n) {
		struct vm_area_struct *vma = vma_lookup(mm, map[i].addr);

		n = 1;
		if (!vma || !ksmdev_mergeable(vma)) {
			map[i].err = -ESTALE;
			continue;
		}
		while (i + n < nr && map[i + n].addr >= vma->vm_start &&
		       map[i + n].addr < vma->vm_end)
			n++;
		merge_in_vma(vma, &map[i], n);
	}
}

static void fail_all(struct ksmdev_mapping *map, unsigned int nr, int err)
{
	unsigned int i;

	for (i = 0; i < nr; i++)
		map[i].err = err;
}

/**
 * merge_mappings() - merge pages of one chunk with shared pages
 * @chunk: the chunk
 * @map: the pages, and what each is to be merged with; a reference to @kpage is
 *	consumed, the one to @page is not
 * @nr: how many
 *
 * Context: @chunk->lock held, no mmap lock. May sleep.
 * Return: how many were merged; @err says why one was not.
 */
unsigned int merge_mappings(struct chunk *chunk, struct ksmdev_mapping *map, unsigned int nr)
{
	struct mm_struct *mm = chunk->region->mm;
	unsigned int i, merged = 0;

	lockdep_assert_held(&chunk->lock);
	if (!nr)
		return 0;
	if (!mmget_not_zero(mm)) {
		fail_all(map, nr, -ESRCH);
	} else {
		if (mmap_read_trylock(mm)) {
			merge_in_mm(mm, map, nr);
			mmap_read_unlock(mm);
		} else {
			fail_all(map, nr, -EAGAIN);
		}
		/* If we are the last, exit_mmap() is not for us to run. */
		mmput_async(mm);
	}

	for (i = 0; i < nr; i++) {
		struct ksmdev_mapping *m = &map[i];

		if (m->err) {
			trace_ksmdev_merge_failed(mm, m->addr, m->err);
			if (m->kpage)
				put_page(m->kpage);
		} else {
			trace_ksmdev_merge(mm, m->addr,
					   m->kpage ? page_to_pfn(m->kpage) :
						      my_zero_pfn(m->addr));
			chunk_set(chunk, m->slot, m->kpage ? SLOT_SHARED : SLOT_ZERO, 0);
			merged++;
		}
	}
	return merged;
}

/*
 * The page of a slot, with a reference, if it is anonymous; else NULL.
 */
static struct page *slot_page(struct chunk *chunk, unsigned int nr)
{
	unsigned long addr = chunk->addr + nr * PAGE_SIZE;
	struct mm_struct *mm = chunk->region->mm;
	struct ksmdev_found found = { };
	struct vm_area_struct *vma;

	if (!mmget_not_zero(mm))
		return NULL;
	if (mmap_read_trylock(mm)) {
		vma = vma_lookup(mm, addr);
		if (vma && ksmdev_mergeable(vma))
			ksmdev_gather(vma, addr, addr + PAGE_SIZE, &found);
		mmap_read_unlock(mm);
	}
	mmput_async(mm);
	return found.page;
}

/**
 * merge_candidate() - does a candidate's page still equal a page
 * @number: the candidate's slot number
 * @like: the page to compare with; the caller holds a reference
 *
 * A large folio that the candidate is part of is split, as it is about to be
 * merged.
 *
 * Context: No mmap lock held. May sleep.
 * Return: true if they were equal a moment ago and the candidate can be merged.
 */
bool merge_candidate(u32 number, struct page *like)
{
	struct chunk *chunk = chunk_by_id(number / CHUNK_SLOTS);
	struct page *page;
	bool equal;

	if (!chunk)
		return false;
	page = slot_page(chunk, number % CHUNK_SLOTS);
	chunk_put(chunk);
	if (!page)
		return false;
	equal = page != like && ksmdev_pages_identical(page, like) &&
		(!PageCompound(page) || !ksmdev_split(page));
	put_page(page);
	return equal;
}

/* Merge twins that all lie in @chunk, whose lock is held. */
static unsigned int merge_twins_of(struct ksmdev_scan *scan, struct chunk *chunk,
				   struct twin *twins, unsigned int nr)
{
	unsigned int i, n = 0, merged;

	for (i = 0; i < nr; i++) {
		struct ksmdev_mapping *m = &scan->twin_map[n];
		unsigned int slot = twins[i].slot % CHUNK_SLOTS;
		struct page *page = NULL;

		if (chunk->slots && chunk->slots[slot].state == SLOT_UNSHARED)
			page = slot_page(chunk, slot);
		if (!page) {
			put_page(twins[i].kpage);
			continue;
		}
		*m = (struct ksmdev_mapping) {
			.addr = chunk->addr + slot * PAGE_SIZE,
			.page = page,
			.kpage = twins[i].kpage,
			.slot = slot,
		};
		n++;
	}
	merged = merge_mappings(chunk, scan->twin_map, n);
	for (i = 0; i < n; i++)
		put_page(scan->twin_map[i].page);
	return merged;
}

/**
 * merge_twins() - merge the candidates that pages of a chunk were found to equal
 * @scan: whose twins; none are left afterwards
 * @locked: the chunk whose lock the caller holds
 *
 * A twin in a chunk that another scan is busy with is left for its own scan.
 *
 * Context: @locked->lock held, no mmap lock. May sleep.
 * Return: how many were merged.
 */
unsigned int merge_twins(struct ksmdev_scan *scan, struct chunk *locked)
{
	unsigned int i, n, merged = 0;

	for (i = 0; i < scan->nr_twins; i += n) {
		struct twin *first = &scan->twins[i];
		u32 id = first->slot / CHUNK_SLOTS;
		struct chunk *chunk = chunk_by_id(id);

		for (n = 1; i + n < scan->nr_twins && first[n].slot / CHUNK_SLOTS == id; n++)
			;
		if (chunk && (chunk == locked || mutex_trylock(&chunk->lock))) {
			merged += merge_twins_of(scan, chunk, first, n);
			if (chunk != locked)
				mutex_unlock(&chunk->lock);
		} else {
			unsigned int j;

			for (j = 0; j < n; j++)
				put_page(first[j].kpage);
		}
		if (chunk)
			chunk_put(chunk);
	}
	scan->nr_twins = 0;
	return merged;
}
