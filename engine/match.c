// SPDX-License-Identifier: GPL-2.0-only
/*
 * match.c - find partners for the pages that may be merged
 *
 * In this order: the zero page, where that may be mapped, a shared page, a candidate. What
 * seems to have one of the first two is merged with it. Candidates lie in chunks of their
 * own, so they are sorted, and all that lie in one chunk are looked up, compared and merged
 * together; only when a candidate has become a shared page do the pages that equal it follow.
 *
 * Which page equals which is for the merge to prove. The first time that a page is looked
 * up, a fingerprint in common is enough to try one.
 *
 * All this is about a batch of pages at a time, so that what was copied is still in the
 * processor's cache when it is compared under protection.
 */
#include <linux/sched/mm.h>
#include <linux/sort.h>

#include "../include/scan.h"
#include "../include/shared.h"
#include "../include/sweep.h"

/* May this call still merge more pages? */
static bool may_merge(struct ksmdev_scan *scan)
{
	return scan->merged + scan->planned < scan->max_merges;
}

/* A page of a large folio has a partner: that speaks for splitting. */
static void vote(struct chunk *chunk, unsigned int nr, struct page *page)
{
	if (PageCompound(page))
		chunk_slot(chunk, nr)->vote = true;
}

/*
 * A page of the piece has a partner: the shared page, whose reference is taken over,
 * or NULL for the zero page.
 */
static void plan(struct ksmdev_scan *scan, struct chunk *chunk, struct ksmdev_found *found,
		 struct page *kpage)
{
	found->partner = true;
	/*
	 * Who equals it has that partner, too: nobody needs it in the index. There might be any
	 * number of pages alike that cannot be merged, and their chain would be as long.
	 */
	found->alike = INDEX_TRIES;
	if (PageCompound(found->page)) {
		vote(chunk, found->nr, found->page);
		if (kpage)
			put_page(kpage);
		return;
	}
	scan->map[scan->nr_maps++] = (struct ksmdev_mapping) {
		.addr = chunk->addr + found->nr * PAGE_SIZE,
		.page = found->page,
		.kpage = kpage,
		.slot = found->nr,
		.found = found - scan->found,
	};
	found->planned = true;
}

/*
 * Is its fingerprint enough to try to merge a page? The merge compares in any case, so
 * the first try does without a comparison of its own; a vote must not.
 */
static bool is_trusted(const struct ksmdev_found *found)
{
	return found->trusted && !PageCompound(found->page);
}

/* Is it worth trying to merge a page with another of the same fingerprint? */
static bool may_equal(const struct ksmdev_found *found, struct page *page)
{
	return (is_trusted(found) && !PageCompound(page)) ||
	       ksmdev_pages_identical(found->page, page);
}

static bool may_be_zero(const struct ksmdev_found *found)
{
	return is_trusted(found) || ksmdev_page_is_zero(found->page);
}

/* Plan to merge a page with the shared page that equals it, if there is one. */
static bool find_shared(struct ksmdev_scan *scan, struct chunk *chunk,
			struct ksmdev_found *found)
{
	struct page *kpage = shared_find(chunk->region->domain,
					 chunk_slot(chunk, found->nr)->fingerprint,
					 is_trusted(found) ? NULL : found->page);

	if (!kpage)
		return false;
	plan(scan, chunk, found, kpage);
	scan->planned++;
	return true;
}

static void find_partner(struct ksmdev_scan *scan, struct chunk *chunk,
			 struct ksmdev_found *found)
{
	u32 fingerprint = chunk_slot(chunk, found->nr)->fingerprint;
	u32 numbers[INDEX_TRIES];
	unsigned int i;

	if (!may_merge(scan)) {
		found->held = true;
		return;
	}
	if (fingerprint == chunk->region->domain->zero && scan->zero_page &&
	    may_be_zero(found)) {
		plan(scan, chunk, found, NULL);
		scan->planned++;
		return;
	}
	if (find_shared(scan, chunk, found))
		return;
	found->alike = chunk_candidates(chunk, found->nr, numbers);
	if (!found->alike) {
		/*
		 * It is one now, for the next page to find. Another scan may have just
		 * made a shared page of the one that was there.
		 */
		if (!find_shared(scan, chunk, found)) {
			look_settle(chunk, found);
			found->eligible = false;
		}
		return;
	}
	if (scan->no_room || !sweep_room()) {
		/* No need to ask again for each page. */
		scan->no_room = true;
		found->held = true;
		return;
	}
	for (i = 0; i < found->alike; i++)
		scan->want[scan->nr_wants++] = (struct want) {
			.slot = numbers[i],
			.found = found - scan->found,
		};
	/* The page and the candidate. */
	scan->planned += 2;
}

static int by_slot(const void *a, const void *b)
{
	const struct want *x = a, *y = b;

	if (x->slot != y->slot)
		return x->slot < y->slot ? -1 : 1;
	return (int)x->found - (int)y->found;
}

/**
 * page_here() - the page of a slot, if it is one of those that were gathered
 * @scan: the scanning context
 * @nr: the slot
 *
 * Context: Any.
 * Return: the page, with a reference that is the piece's, or NULL.
 */
struct page *page_here(struct ksmdev_scan *scan, unsigned int nr)
{
	unsigned int low = 0, high = scan->nr_found;

	while (low < high) {
		unsigned int mid = (low + high) / 2;

		if (scan->found[mid].nr < nr)
			low = mid + 1;
		else
			high = mid;
	}
	return low < scan->nr_found && scan->found[low].nr == nr ? scan->found[low].page : NULL;
}

/*
 * Look up the candidates that are wanted of one chunk.
 * Return: how many there are in scan->candidate; @page is NULL where there is none, and
 * @here where the reference to it is that of the piece. If not even their page table could be
 * looked at, @locked is false.
 */
static unsigned int get_candidates(struct ksmdev_scan *scan, struct chunk *chunk,
				   struct chunk *other, struct want *want, unsigned int nr,
				   bool *locked)
{
	struct mm_struct *mm = other->region->mm;
	unsigned int i, n = 0;
	u64 since;

	for (i = 0; i < nr; i++) {
		unsigned int slot = want[i].slot % CHUNK_SLOTS;

		if (n && scan->candidate[n - 1].slot == slot)
			continue;
		scan->candidate[n++] = (struct ksmdev_mapping) {
			.addr = other->addr + slot * PAGE_SIZE,
			.slot = slot,
		};
		/* A second reference of ours would look like somebody else's. */
		if (other == chunk)
			scan->candidate[n - 1].page = page_here(scan, slot);
		scan->candidate[n - 1].here = scan->candidate[n - 1].page;
	}
	*locked = true;
	if (!mmget_not_zero(mm))
		return n;
	*locked = mmlock_get(scan, mm, &since);
	if (*locked) {
		ksmdev_get_pages(mm, scan->candidate, n);
		mmlock_put(mm, other->addr, since);
	}
	/* If we are the last, exit_mmap() is not for us to run. */
	mmput_async(mm);
	return n;
}

/*
 * Compare a page with a candidate. If they are equal and both can be merged, make the
 * shared page for both: it is the candidate's @kpage then.
 */
static void compare(struct ksmdev_scan *scan, struct chunk *chunk, struct ksmdev_found *found,
		    struct chunk *other, struct ksmdev_mapping *candidate)
{
	if (candidate->page == found->page)
		return;
	if (!chunk_has_slot(other, candidate->slot) ||
	    chunk_slot(other, candidate->slot)->state != SLOT_UNSHARED) {
		/* Another scan merged it: next time there is a shared page. Or it is gone. */
		found->partner = true;
		return;
	}
	if (!may_equal(found, candidate->page))
		return;
	found->partner = true;
	vote(other, candidate->slot, candidate->page);
	vote(chunk, found->nr, found->page);
	if (PageCompound(candidate->page) || PageCompound(found->page))
		return;
	if (!scan->no_room)
		candidate->kpage = shared_create(chunk->region, found->page);
	if (!candidate->kpage) {
		/* No need to ask again for each page. */
		scan->no_room = true;
		found->held = true;
	}
	candidate->found = found - scan->found;
}

/* What equals the candidates of one chunk, which is locked. */
static void match_with(struct ksmdev_scan *scan, struct chunk *chunk, struct chunk *other,
		       struct want *want, unsigned int nr)
{
	struct splitter splitter = { .scan = scan, .chunk = other };
	unsigned int i, c = 0, n, nr_pairs = 0;
	bool locked;

	if (!other->slots)
		return;
	n = get_candidates(scan, chunk, other, want, nr, &locked);
	for (i = 0; i < nr; i++) {
		struct ksmdev_found *found = &scan->found[want[i].found];
		struct ksmdev_mapping *candidate;

		while (scan->candidate[c].slot != want[i].slot % CHUNK_SLOTS)
			c++;
		candidate = &scan->candidate[c];
		if (!candidate->page && !locked) {
			found->held = true;
		} else if (found->planned || !candidate->page) {
			found->partner = true;
			look_candidate_left(other, candidate->slot);
		} else if (!candidate->kpage) {
			compare(scan, chunk, found, other, candidate);
			/* Planned when the candidate was merged. */
			found->planned = !!candidate->kpage;
		} else if (may_equal(found, candidate->kpage)) {
			get_page(candidate->kpage);
			plan(scan, chunk, found, candidate->kpage);
		}
	}
	for (i = 0; i < n; i++) {
		if (!scan->candidate[i].kpage)
			continue;
		get_page(scan->candidate[i].kpage);
		scan->pair[nr_pairs++] = scan->candidate[i];
	}
	merge_mappings(scan, other, scan->pair, nr_pairs);
	for (i = 0; i < nr_pairs; i++) {
		struct ksmdev_found *found = &scan->found[scan->pair[i].found];

		found->planned = false;
		if (merge_held(scan->pair[i].err))
			found->held = true;
		if (scan->pair[i].err) {
			put_page(scan->pair[i].kpage);
			look_candidate_left(other, scan->pair[i].slot);
		} else {
			plan(scan, chunk, found, scan->pair[i].kpage);
		}
	}
	for (i = 0; i < n; i++)
		if (scan->candidate[i].page && !scan->candidate[i].here)
			splitter_put(&splitter, scan->candidate[i].page, scan->candidate[i].slot);
	splitter_end(&splitter);
}

/*
 * The chunk of candidates that were found a moment ago; NULL if it is gone. Its number may have
 * been given out anew, to a chunk of another domain.
 */
static struct chunk *candidates_chunk(struct chunk *chunk, u32 id)
{
	struct chunk *other;

	ksmdev_race_delay();
	other = chunk_by_id(id);
	if (other && other->region->domain != chunk->region->domain) {
		chunk_put(other);
		return NULL;
	}
	return other;
}

/* All pages that want candidates. */
static void match_wants(struct ksmdev_scan *scan, struct chunk *chunk)
{
	unsigned int i, n, j;

	sort(scan->want, scan->nr_wants, sizeof(scan->want[0]), by_slot, NULL);
	for (i = 0; i < scan->nr_wants; i += n) {
		struct want *want = &scan->want[i];
		u32 id = want->slot / CHUNK_SLOTS;
		struct chunk *other = candidates_chunk(chunk, id);

		for (n = 1; i + n < scan->nr_wants && want[n].slot / CHUNK_SLOTS == id; n++)
			;
		if (!other) {
			/* Gone just now: next time there is another, or none. */
			for (j = 0; j < n; j++)
				scan->found[want[j].found].partner = true;
			continue;
		}
		if (other == chunk) {
			match_with(scan, chunk, other, want, n);
		} else if (mutex_trylock(&other->lock)) {
			match_with(scan, chunk, other, want, n);
			mutex_unlock(&other->lock);
		} else {
			/* Another scan is busy with it. */
			for (j = 0; j < n; j++)
				scan->found[want[j].found].held = true;
		}
		chunk_put(other);
	}
}

/* Find partners for a batch of pages, and merge them. */
static void match_batch(struct ksmdev_scan *scan, struct chunk *chunk, u16 *batch,
			unsigned int nr)
{
	unsigned int i;

	scan->nr_maps = 0;
	scan->nr_wants = 0;
	scan->planned = 0;
	for (i = 0; i < nr; i++)
		find_partner(scan, chunk, &scan->found[batch[i]]);
	match_wants(scan, chunk);
	merge_mappings(scan, chunk, scan->map, scan->nr_maps);
	for (i = 0; i < scan->nr_maps; i++) {
		if (!scan->map[i].err)
			continue;
		scan->found[scan->map[i].found].planned = false;
		/* For want of a lock, or a batch has it yet: that is not the page's fault. */
		if (merge_held(scan->map[i].err))
			scan->found[scan->map[i].found].held = true;
	}
	for (i = 0; i < nr; i++) {
		struct ksmdev_found *found = &scan->found[batch[i]];

		if (found->eligible && !found->planned)
			look_settle(chunk, found);
	}
	cond_resched();
}

/**
 * match() - merge what may be merged with whatever equals it
 * @scan: the scanning context, with the pages that were looked at
 * @chunk: the chunk they are in, locked
 *
 * Context: Process; no mmap lock held. May sleep.
 */
void match(struct ksmdev_scan *scan, struct chunk *chunk)
{
	unsigned int i, n = 0;

	scan->no_room = false;
	for (i = 0; i < scan->nr_found; i++) {
		if (scan->found[i].eligible)
			scan->batch[n++] = i;
		if (n == MERGE_BATCH || (n && i + 1 == scan->nr_found)) {
			match_batch(scan, chunk, scan->batch, n);
			n = 0;
		}
	}
}
