// SPDX-License-Identifier: GPL-2.0-only
/*
 * scan.c - look at pages, find equal ones, have them merged
 *
 * A scanning context (kksmd, or a task in KSM_SCAN) claims one piece of at most a
 * chunk at a time and works on it alone:
 *
 *	gather	mmap lock and page table lock held: which pages are there
 *	look	no lock but the chunk's: hash each page; one that did not change
 *		since the last scan is looked up among the shared pages, then among
 *		the candidates
 *	merge	what has a partner, all together; then the partners elsewhere
 *
 * A page is a candidate only when two scans saw the same contents: pages that
 * change all the time are not worth a place in the index. The mmap lock is only
 * tried: a process that holds it for long, or hangs while it does, delays the
 * sharing of its own pages and of nobody else's.
 */
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "../include/charge.h"
#include "../include/engine.h"
#include "../include/scan.h"
#include "../include/trace.h"

/*
 * Pages were seen that are new, or that could not be merged because somebody held
 * a reference: see ksmdev_drain_lru().
 */
static atomic_t want_drain = ATOMIC_INIT(0);

/* In the fingerprint of a SLOT_SHARED slot: nobody else mapped the page last time. */
#define SHARED_SINGLE 1

/* How a piece of work ended. */
enum piece_result {
	PIECE_DONE,
	PIECE_AGAIN,	/* large folios were split: look at the pages again */
};

/* May this call still merge more pages? */
static bool may_merge(struct ksmdev_scan *scan)
{
	return scan->merged + scan->nr_maps + scan->nr_twins < scan->max_merges;
}

/* Merge a page of this piece with @kpage, whose reference is taken over. */
static void plan_merge(struct ksmdev_scan *scan, struct chunk *chunk, unsigned int first,
		       unsigned int i, struct page *kpage)
{
	scan->map[scan->nr_maps++] = (struct ksmdev_mapping) {
		.addr = chunk->addr + (first + i) * PAGE_SIZE,
		.page = scan->found[i].page,
		.kpage = kpage,
		.slot = first + i,
	};
	scan->found[i].planned = true;
}

/*
 * A candidate in the piece that is being looked at: its page is at hand. Where it
 * is part of a large folio that must be split first, both are marked for that.
 */
static bool equals_here(struct ksmdev_found *here, struct ksmdev_found *found)
{
	if (here->kind != KSMDEV_ANON || here->planned || here->page == found->page ||
	    !ksmdev_pages_identical(here->page, found->page))
		return false;
	if (PageCompound(here->page)) {
		here->split = true;
		return false;
	}
	return true;
}

/*
 * Look for a candidate that equals a page, and plan to merge both.
 * Return: true if so, or if so once a large folio is split; false with @tries the
 * number of candidates that have the same fingerprint.
 */
static bool find_twin(struct ksmdev_scan *scan, struct chunk *chunk, unsigned int first,
		      unsigned int i, u64 hash, unsigned int *tries)
{
	struct ksmdev_found *found = &scan->found[i];
	u32 numbers[INDEX_TRIES];
	unsigned int t;

	*tries = index_find(index_fingerprint(hash), chunk, first + i, numbers);
	for (t = 0; t < *tries; t++) {
		/* Wraps around for slots before the piece. */
		unsigned int here = numbers[t] % CHUNK_SLOTS - first;
		bool is_here = numbers[t] / CHUNK_SLOTS == chunk->id && here < scan->nr_found;
		struct page *kpage;
		bool equal;

		if (is_here) {
			equal = equals_here(&scan->found[here], found);
			if (scan->found[here].split)
				return true;
		} else {
			equal = merge_candidate(numbers[t], found->page);
		}
		if (!equal)
			continue;
		if (PageCompound(found->page)) {
			found->split = true;
			return true;
		}
		kpage = shared_create(chunk->region->mm, found->page, hash);
		if (!kpage)
			return false;
		get_page(kpage);
		plan_merge(scan, chunk, first, i, kpage);
		if (is_here)
			plan_merge(scan, chunk, first, here, kpage);
		else
			scan->twins[scan->nr_twins++] = (struct twin) { numbers[t], kpage };
		return true;
	}
	return false;
}

/* A page whose contents are those of the last scan: find it a partner. */
static void look_for_partner(struct ksmdev_scan *scan, struct chunk *chunk,
			     unsigned int first, unsigned int i, u64 hash)
{
	struct ksmdev_found *found = &scan->found[i];
	u32 fingerprint = index_fingerprint(hash);
	unsigned int tries;
	struct page *kpage;

	if (!may_merge(scan))
		return;
	if (hash == scan->zero_hash && ksmdev_page_is_zero(found->page)) {
		if (PageCompound(found->page))
			found->split = true;
		else
			plan_merge(scan, chunk, first, i, NULL);
		return;
	}
	kpage = shared_find(hash);
	if (kpage && PageCompound(found->page)) {
		found->split = true;
		put_page(kpage);
		return;
	}
	if (kpage) {
		plan_merge(scan, chunk, first, i, kpage);
		return;
	}
	if (find_twin(scan, chunk, first, i, hash, &tries))
		return;
	/* So many alike that did not merge: one more would only lengthen the chain. */
	if (tries < INDEX_TRIES)
		chunk_set(chunk, first + i, SLOT_UNSHARED, fingerprint);
}

static void look_at_anon(struct ksmdev_scan *scan, struct chunk *chunk,
			 unsigned int first, unsigned int i, bool *fresh)
{
	struct slot *slot = &chunk->slots[first + i];
	u64 hash = index_hash(scan->found[i].page);
	u32 fingerprint = index_fingerprint(hash);

	if ((slot->state == SLOT_VOLATILE || slot->state == SLOT_UNSHARED) &&
	    slot->fingerprint == fingerprint) {
		look_for_partner(scan, chunk, first, i, hash);
	} else {
		chunk_set(chunk, first + i, SLOT_VOLATILE, fingerprint);
		*fresh = true;
	}
}

/*
 * A shared page that only this pte maps. Its other mappers left; or the merge of
 * the second one failed and comes later, so it gets one more pass.
 */
static void look_at_single(struct ksmdev_scan *scan, struct chunk *chunk, unsigned int slot)
{
	struct slot *s = &chunk->slots[slot];

	if (s->state == SLOT_SHARED && s->fingerprint == SHARED_SINGLE)
		scan->single[scan->nr_single++] = slot;
	else
		chunk_set(chunk, slot, SLOT_SHARED, SHARED_SINGLE);
}

/* Look at what was gathered, and plan what is to be merged. */
static void look(struct ksmdev_scan *scan, struct chunk *chunk, unsigned int first)
{
	struct ksmdev_counters *counters = &chunk->region->area->counters;
	unsigned int i, slot, read = 0, known = 0;
	bool fresh = false;

	scan->nr_maps = 0;
	scan->nr_twins = 0;
	scan->nr_single = 0;
	for (i = 0; i < scan->nr_found; i++) {
		slot = first + i;
		switch (scan->found[i].kind) {
		case KSMDEV_ANON:
			if (!scan->found[i].planned)
				look_at_anon(scan, chunk, first, i, &fresh);
			read++;
			break;
		case KSMDEV_SINGLE:
			look_at_single(scan, chunk, slot);
			known++;
			break;
		case KSMDEV_SHARED:
			chunk_set(chunk, slot, SLOT_SHARED, 0);
			known++;
			break;
		case KSMDEV_ZERO:
			/* Others map the zero page too, as read faults do. */
			if (chunk->slots[slot].state == SLOT_ZERO)
				known++;
			else
				chunk_set(chunk, slot, SLOT_NONE, 0);
			break;
		default:
			chunk_set(chunk, slot, SLOT_NONE, 0);
		}
		cond_resched();
	}
	if (fresh)
		atomic_set(&want_drain, 1);
	atomic_long_add(read + known, &counters->scanned);
	atomic_long_add(known, &counters->skipped);
}

/*
 * Drop the references to the pages that were gathered, and split the large folios
 * that have a page to merge: a split wants no reference but one.
 */
static enum piece_result let_go(struct ksmdev_scan *scan)
{
	enum piece_result result = PIECE_DONE;
	struct page *kept = NULL;
	unsigned int i;

	for (i = 0; i < scan->nr_found; i++) {
		struct ksmdev_found *found = &scan->found[i];

		if (!found->page)
			continue;
		/* Pages of one folio come one after the other; the last one stays. */
		if (kept && compound_head(kept) != compound_head(found->page)) {
			if (!ksmdev_split(kept))
				result = PIECE_AGAIN;
			put_page(kept);
			kept = NULL;
		}
		if (found->split && !kept)
			kept = found->page;
		else
			put_page(found->page);
	}
	if (kept) {
		if (!ksmdev_split(kept))
			result = PIECE_AGAIN;
		put_page(kept);
	}
	return result;
}

/*
 * Shared pages that nobody else maps: they cannot be swapped out and save nothing.
 * Back to ordinary memory.
 */
static void unshare_singles(struct ksmdev_scan *scan, struct chunk *chunk)
{
	struct mm_struct *mm = chunk->region->mm;
	struct ksmdev_found found;
	unsigned int i;

	if (!scan->nr_single || !mmap_read_trylock(mm))
		return;
	for (i = 0; i < scan->nr_single; i++) {
		unsigned int slot = scan->single[i];
		unsigned long addr = chunk->addr + slot * PAGE_SIZE;
		struct vm_area_struct *vma = vma_lookup(mm, addr);
		int err;

		if (!vma || !ksmdev_mergeable(vma))
			continue;
		/* It may have got company in this very piece. */
		ksmdev_gather(vma, addr, addr + PAGE_SIZE, &found);
		if (found.page)
			put_page(found.page);
		if (found.kind != KSMDEV_SINGLE)
			continue;
		err = ksmdev_unshare(vma, addr);
		trace_ksmdev_unmerge(mm, addr, err);
		if (!err)
			chunk_set(chunk, slot, SLOT_NONE, 0);
	}
	mmap_read_unlock(mm);
}

static void note_busy_pages(struct ksmdev_mapping *map, unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++)
		if (map[i].err == -EBUSY)
			atomic_set(&want_drain, 1);
}

/* There is nothing to merge in a range: forget what was known of it. */
static void forget_range(struct region *region, unsigned long start, unsigned long end)
{
	struct chunk *chunk = chunk_lookup(region, start);

	if (!chunk)
		return;
	if (mutex_trylock(&chunk->lock)) {
		if (chunk->slots)
			for (; start < end; start += PAGE_SIZE)
				chunk_set(chunk, (start - chunk->addr) >> PAGE_SHIFT,
					  SLOT_NONE, 0);
		mutex_unlock(&chunk->lock);
	}
	chunk_put(chunk);
}

/**
 * region_find_pages() - find something to look at
 * @region: the region
 * @start: where to begin
 * @end: where to stop
 * @stop: set to the end of what was found, at most @end; or, if there is nothing at
 *	@start, to where there may be, which can be beyond @end
 *
 * Context: The region's mmap lock held.
 * Return: the mapping that holds all of @start to @stop; NULL if there is nothing.
 */
struct vm_area_struct *region_find_pages(struct region *region, unsigned long start,
					 unsigned long end, unsigned long *stop)
{
	struct vm_area_struct *vma = find_vma(region->mm, start);
	unsigned long next;

	if (!vma) {
		*stop = region->end;
		return NULL;
	}
	if (vma->vm_start > start) {
		*stop = vma->vm_start;
		return NULL;
	}
	if (!ksmdev_mergeable(vma)) {
		*stop = vma->vm_end;
		return NULL;
	}
	if (!ksmdev_table_present(region->mm, start, &next)) {
		/* A table may cover the start of the next mapping, too. */
		*stop = next ? min(next, vma->vm_end) : vma->vm_end;
		return NULL;
	}
	*stop = min(end, vma->vm_end);
	return vma;
}

/*
 * Scan from @start as far as one mapping goes, at most to @end. The mm's users are
 * held.
 * Return: where to go on.
 */
static unsigned long scan_piece(struct ksmdev_scan *scan, struct region *region,
				unsigned long start, unsigned long end,
				enum piece_result *result)
{
	struct mm_struct *mm = region->mm;
	struct vm_area_struct *vma;
	struct chunk *chunk;
	unsigned long stop;
	unsigned int first;

	*result = PIECE_DONE;
	if (!mmap_read_trylock(mm))
		return end;
	vma = region_find_pages(region, start, end, &stop);
	if (!vma) {
		mmap_read_unlock(mm);
		forget_range(region, start, min(stop, end));
		if (stop > end) {
			region_forget(region, end, stop);
			regions_skip_to(region, end, stop);
		}
		return stop;
	}
	chunk = chunk_lookup(region, start) ?: chunk_create(region, start);
	if (!chunk) {
		mmap_read_unlock(mm);
		return end;
	}
	if (!mutex_trylock(&chunk->lock)) {
		mmap_read_unlock(mm);
		goto out_put;
	}
	if (!chunk->slots) {
		mmap_read_unlock(mm);
		goto out_unlock;
	}
	scan->nr_found = (stop - start) >> PAGE_SHIFT;
	ksmdev_gather(vma, start, stop, scan->found);
	mmap_read_unlock(mm);

	first = (start - chunk->addr) >> PAGE_SHIFT;
	look(scan, chunk, first);
	scan->merged += merge_mappings(chunk, scan->map, scan->nr_maps);
	note_busy_pages(scan->map, scan->nr_maps);
	scan->merged += merge_twins(scan, chunk);
	unshare_singles(scan, chunk);
	*result = let_go(scan);
out_unlock:
	mutex_unlock(&chunk->lock);
out_put:
	chunk_put(chunk);
	return stop;
}

static void scan_range(struct ksmdev_scan *scan, struct region *region,
		       unsigned long start, unsigned long end)
{
	enum piece_result result;
	unsigned long next;
	bool again = false;

	if (!mmget_not_zero(region->mm)) {
		region_bury(region);
		return;
	}
	while (start < end) {
		next = scan_piece(scan, region, start, end, &result);
		/* Once: khugepaged could make huge pages as fast as we split them. */
		if (result == PIECE_AGAIN && !again) {
			again = true;
			continue;
		}
		start = next;
		cond_resched();
	}
	mmput_async(region->mm);
}

/* What is due once all regions were passed over. */
static void end_of_pass(void)
{
	if (atomic_xchg(&want_drain, 0))
		ksmdev_drain_lru();
	shared_prune();
}

/**
 * ksmdev_scan_run() - scan
 * @scan: the scanning context
 * @pages: how many pages to visit, absent ones included
 * @max_merges: return once so many were merged; 0 for no limit
 * @interrupted: asked between two pieces of work whether to return early
 *
 * Contexts share the work: whoever comes takes the next piece. A piece that was
 * begun is finished, so an early return skips nothing.
 *
 * Context: Process. Sleeps.
 * Return: 0, also if nothing is registered; -EINTR if @interrupted said so, or if
 * a signal came while another call used @scan.
 */
int ksmdev_scan_run(struct ksmdev_scan *scan, unsigned long pages,
		    unsigned long max_merges, bool (*interrupted)(void))
{
	unsigned long start, end, passes, visited = 0;
	int err = 0;

	if (mutex_lock_interruptible(&scan->lock))
		return -EINTR;
	trace_ksmdev_scan_start(pages, max_merges);
	scan->merged = 0;
	scan->max_merges = max_merges ?: ULONG_MAX;
	scan->zero_hash = index_hash(ZERO_PAGE(0));
	passes = regions_passes();

	while (visited < pages && scan->merged < scan->max_merges) {
		struct region *region;

		if (interrupted()) {
			err = -EINTR;
			break;
		}
		region = regions_claim(pages - visited, &start, &end);
		if (passes != regions_passes() || !region) {
			passes = regions_passes();
			end_of_pass();
		}
		if (!region)
			break;
		scan_range(scan, region, start, end);
		region_put(region);
		visited += (end - start) >> PAGE_SHIFT;
	}
	trace_ksmdev_scan_end(visited, scan->merged, err);
	mutex_unlock(&scan->lock);
	return err;
}

/**
 * ksmdev_scan_wait() - wait until nobody uses a scanning context
 * @scan: the context
 *
 * Context: Process. A user that was told to return does so within one piece.
 */
void ksmdev_scan_wait(struct ksmdev_scan *scan)
{
	mutex_lock(&scan->lock);
	mutex_unlock(&scan->lock);
}

/**
 * ksmdev_scan_create() - create a scanning context
 *
 * Context: Process; charged to its cgroup.
 * Return: the context, or NULL if there is no memory.
 */
struct ksmdev_scan *ksmdev_scan_create(void)
{
	struct ksmdev_scan *scan;

	scan = kvzalloc(sizeof(*scan), GFP_TENANT);
	if (scan)
		mutex_init(&scan->lock);
	return scan;
}

/**
 * ksmdev_scan_destroy() - free a scanning context
 * @scan: the context; nobody uses it
 *
 * Context: Process.
 */
void ksmdev_scan_destroy(struct ksmdev_scan *scan)
{
	mutex_destroy(&scan->lock);
	kvfree(scan);
}
