// SPDX-License-Identifier: GPL-2.0-only
/*
 * merge.c - verify, then share
 *
 * Pages of a chunk that have a shared page to go to are merged together, in batches:
 * one notifier window, one write-protect sweep and one TLB flush, the comparisons,
 * one replace sweep and one flush. The scan that found them held no lock since, so
 * everything is looked at again here.
 */
#include <linux/sched/mm.h>

#include "../include/scan.h"
#include "../include/trace.h"

/*
 * How often pages of a chunk are made read-only to watch them. Each of them that is written
 * costs its guest a fault. With a CPU to itself kksmd passes over a small guest hundreds of times a
 * second; a guest whose pages are protected again that fast does not get through its own boot.
 */
#define WATCH_INTERVAL_NS (100 * NSEC_PER_MSEC)

/*
 * How many pages that stay as they are may lie between two that change under one notifier
 * window: a secondary MMU forgets those, too, and the guest faults for each that it uses.
 */
#define WINDOW_GAP 4

static bool is_gap(unsigned int slot, unsigned int next)
{
	return abs((int)next - (int)slot) > WINDOW_GAP;
}

/* Merge what lies in one mapping, under one window. */
static void merge_under_window(struct vm_area_struct *vma, struct ksmdev_mapping *map,
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

			if (i + 1 < nr) {
				ksmdev_prefetch_page(m[1].page);
				if (m[1].kpage)
					ksmdev_prefetch_page(m[1].kpage);
			}
			if (m->err)
				continue;
			if (m->kpage ? !ksmdev_pages_identical(m->page, m->kpage) :
				       !ksmdev_page_is_zero(m->page))
				m->err = -EILSEQ;
			/* Another mapping than the one that the page was found in. */
			else if (!m->kpage && !ksmdev_zero_page_allowed(vma))
				m->err = -ESTALE;
		}
	}
	/* Also unlocks what cannot be merged. */
	replace_page(vma, map, nr);
	ksmdev_notify_end(&range);
}

/* Merge what lies in one mapping. */
static void merge_in_vma(struct vm_area_struct *vma, struct ksmdev_mapping *map,
			 unsigned int nr)
{
	bool watched = mm_has_notifiers(vma->vm_mm);
	unsigned int i, n;

	for (i = 0; i < nr; i += n) {
		n = 1;
		while (i + n < nr && !(watched && is_gap(map[i + n - 1].slot, map[i + n].slot)))
			n++;
		merge_under_window(vma, &map[i], n);
	}
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

static void count_merge(struct ksmdev_scan *scan, struct mm_struct *mm, unsigned long addr)
{
	scan->merged++;
	if (mm == scan->mm && addr >= scan->start && addr < scan->end)
		scan->merged_there++;
}

/* Note what became of pages that were to be merged. */
static void note_merges(struct ksmdev_scan *scan, struct chunk *chunk,
			struct ksmdev_mapping *map, unsigned int nr)
{
	struct mm_struct *mm = chunk->region->mm;
	unsigned int i;

	for (i = 0; i < nr; i++) {
		struct ksmdev_mapping *m = &map[i];

		if (m->err) {
			trace_ksmdev_merge_failed(mm, m->addr, m->err);
			if (m->kpage)
				put_page(m->kpage);
			/* The next gather cannot tell any more. */
			if (m->written && *chunk_seen(chunk, m->slot) & KSMDEV_SEEN_CLEAN) {
				*chunk_seen(chunk, m->slot) &= ~KSMDEV_SEEN_CLEAN;
				chunk_set(chunk, m->slot, SLOT_VOLATILE, 0);
			}
			if (m->err == -EBUSY || merge_held(m->err))
				scan->busy++;
		} else {
			trace_ksmdev_merge(mm, m->addr,
					   m->kpage ? page_to_pfn(m->kpage) :
						      page_to_pfn(ZERO_PAGE(m->addr)));
			chunk_remap(chunk, m->slot, m->kpage ? SLOT_SHARED : SLOT_ZERO);
			count_merge(scan, mm, m->addr);
		}
	}
}

/*
 * Take a process and its mmap lock, for unlock_mm(); the time in @since.
 * Return: 0, -ESRCH if it is gone, -ETIMEDOUT if somebody else has the lock.
 */
static int lock_mm(struct ksmdev_scan *scan, struct mm_struct *mm, u64 *since)
{
	if (!mmget_not_zero(mm))
		return -ESRCH;
	if (mmlock_get(scan, mm, since))
		return 0;
	mmput_async(mm);
	return -ETIMEDOUT;
}

static void unlock_mm(struct mm_struct *mm, struct chunk *chunk, u64 since)
{
	mmlock_put(mm, chunk->addr, since);
	/* If we are the last, exit_mmap() is not for us to run. */
	mmput_async(mm);
}

/**
 * merge_mappings() - merge pages of one chunk with shared pages
 * @scan: the scanning context, whose counts go up
 * @chunk: the chunk
 * @map: the pages, and what each is to be merged with; a reference to @kpage is
 *	consumed, the one to @page is not. @err says why a page was not merged.
 * @nr: how many, at most MERGE_BATCH
 *
 * Context: @chunk->lock held, no mmap lock. May sleep.
 */
void merge_mappings(struct ksmdev_scan *scan, struct chunk *chunk,
		    struct ksmdev_mapping *map, unsigned int nr)
{
	struct mm_struct *mm = chunk->region->mm;
	u64 since;
	int err;

	lockdep_assert_held(&chunk->lock);
	if (!nr)
		return;
	err = lock_mm(scan, mm, &since);
	if (err) {
		fail_all(map, nr, err);
	} else {
		merge_in_mm(mm, map, nr);
		unlock_mm(mm, chunk, since);
	}
	note_merges(scan, chunk, map, nr);
}

/* Merge pages of a huge page that was just split, with the mmap lock held. */
static void merge_split_off(struct mm_struct *mm, struct ksmdev_mapping *map, unsigned int nr)
{
	unsigned int i;

	ksmdev_get_pages(mm, map, nr);
	for (i = 0; i < nr; i++) {
		/* Since 6.12 the split has mapped that wherever it found zeros. */
		if (!map[i].page) {
			map[i].page = ZERO_PAGE(map[i].addr);
			get_page(map[i].page);
		}
	}
	merge_in_mm(mm, map, nr);
	for (i = 0; i < nr; i++)
		put_page(map[i].page);
}

/**
 * merge_split() - split a huge page and merge some of its pages
 * @scan: the scanning context, whose counts go up
 * @chunk: the chunk that it fills
 * @page: a page of it, as for ksmdev_split()
 * @map: the pages, as for merge_mappings(), but without @page, and none of them is @page; in
 *	ascending order
 * @nr: how many
 *
 * khugepaged, which wants the mmap lock for itself, finds these merged or does not find
 * them at all.
 *
 * Context: @chunk->lock held, no mmap lock. May sleep.
 * Return: true if it was split, whatever came of the merges.
 */
bool merge_split(struct ksmdev_scan *scan, struct chunk *chunk, struct page *page,
		 struct ksmdev_mapping *map, unsigned int nr)
{
	struct mm_struct *mm = chunk->region->mm;
	u64 since;
	int err;

	lockdep_assert_held(&chunk->lock);
	err = lock_mm(scan, mm, &since);
	if (!err) {
		err = ksmdev_split(page);
		if (!err)
			merge_split_off(mm, map, nr);
		unlock_mm(mm, chunk, since);
	}
	if (err)
		fail_all(map, nr, err);
	note_merges(scan, chunk, map, nr);
	return !err;
}

/*
 * Have writes to some of the pages noticed that were found, from number @i on: those that lie so
 * close to each other that they take one window. @i is one of them.
 * Return: the number of the first one behind.
 */
static unsigned int watch_some(struct ksmdev_scan *scan, struct chunk *chunk,
			       struct vm_area_struct *vma, unsigned int i)
{
	struct ksmdev_found *found = scan->found;
	struct mmu_notifier_range range;
	unsigned int first = i, last = i;

	while (++i < scan->nr_found && !is_gap(found[last].nr, found[i].nr))
		if (found[i].watch)
			last = i;
	ksmdev_notify_start(&range, vma, chunk->addr + found[first].nr * PAGE_SIZE,
			    chunk->addr + (found[last].nr + 1) * PAGE_SIZE);
	ksmdev_watch_writes(vma, chunk->addr, &found[first], last - first + 1);
	ksmdev_notify_end(&range);
	return i;
}

/*
 * Leave those pages that need not be watched, as they are about to be merged; and those of a
 * huge page that cannot be, as the page is mapped as a whole and not all of it is meant.
 * Return: are there any?
 */
static bool choose_watched(struct ksmdev_scan *scan)
{
	unsigned int i, watched = 0;

	for (i = 0; i < scan->nr_found; i++) {
		scan->found[i].watch &= !scan->found[i].planned;
		watched += scan->found[i].watch;
	}
	if (watched == CHUNK_SLOTS || !watched)
		return watched;
	watched = 0;
	for (i = 0; i < scan->nr_found; i++) {
		struct ksmdev_found *found = &scan->found[i];

		if (found->watch && compound_nr(compound_head(found->page)) >= CHUNK_SLOTS)
			found->watch = false;
		watched += found->watch;
	}
	return watched;
}

/**
 * watch_writes() - have the next write to pages that were found unchanged noticed
 * @scan: the scanning context, with the pages of a piece
 * @chunk: the chunk they are in, locked
 * @start: first address of the piece
 * @end: last address plus one
 *
 * Pages that it is too early for are read again in the next pass.
 *
 * Context: Process; the mm's users are held, not its mmap lock. May sleep.
 */
void watch_writes(struct ksmdev_scan *scan, struct chunk *chunk, unsigned long start,
		  unsigned long end)
{
	struct mm_struct *mm = chunk->region->mm;
	struct vm_area_struct *vma;
	unsigned int i = 0;
	u64 since, now;

	if (!mm_has_notifiers(mm) || !choose_watched(scan))
		return;
	now = ktime_get_ns();
	if (chunk->watched && now < chunk->watched + WATCH_INTERVAL_NS)
		return;
	if (!mmlock_get(scan, mm, &since))
		return;
	vma = vma_lookup(mm, start);
	if (vma && end <= vma->vm_end && ksmdev_mergeable(vma)) {
		chunk->watched = now;
		while (i < scan->nr_found)
			if (scan->found[i].watch)
				i = watch_some(scan, chunk, vma, i);
			else
				i++;
	}
	mmlock_put(mm, chunk->addr, since);
}
