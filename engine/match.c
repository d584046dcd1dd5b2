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
 * up, a fingerprint in common is enough to try one. Where that turns out to be a sample that others
 * have, too, it is marked, and both are filed by all they hold: sample.c.
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
	found->alike = ALIKE_MAX;
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
 * Is its fingerprint enough to try to merge a page, if it was no chance? The merge compares
 * in any case, so the first try does without a comparison of the whole; a vote must not.
 */
static bool is_trusted(const struct ksmdev_found *found)
{
	return found->trusted && !PageCompound(found->page);
}

/* Is it worth trying to merge a page with another? @whole: only if all of them is the same. */
static bool may_equal(const struct ksmdev_found *found, struct page *page, bool whole)
{
	return !whole && is_trusted(found) && !PageCompound(page) ?
	       pages_resemble(found->page, page) : ksmdev_pages_identical(found->page, page);
}

static bool may_be_zero(const struct ksmdev_found *found)
{
	return is_trusted(found) ? pages_resemble(found->page, ZERO_PAGE(0)) :
				   ksmdev_page_is_zero(found->page);
}

/*
 * Let a page be found by what its fingerprint is by now: its sample may have been marked since it
 * was looked at, or it was written without a trace.
 * Return: is it another one than before?
 */
static bool refile(struct chunk *chunk, unsigned int nr, struct page *page)
{
	u64 was = chunk_fingerprint(chunk, nr);
	u64 fingerprint = fingerprint_page(chunk->region->domain, page);

	chunk_set(chunk, nr, chunk_slot(chunk, nr)->state, fingerprint);
	return fingerprint != was;
}

/*
 * A page has its fingerprint in common with one that it does not equal. If they are @alike that is
 * their sample's: mark it. @payer: who pays for that.
 * Return: is the page found by another fingerprint from now on?
 */
static bool tell_apart(struct chunk *chunk, unsigned int nr, struct page *page, bool alike,
		       struct mm_struct *payer)
{
	if (!chunk_has_slot(chunk, nr) || !chunk_has_fingerprint(chunk, nr))
		return false;
	if (alike)
		sample_mark(chunk->region->domain, payer, page, chunk_fingerprint(chunk, nr));
	return refile(chunk, nr, page);
}

/* A page and a candidate differ that have a fingerprint in common. */
static void tell_both_apart(struct chunk *chunk, struct ksmdev_found *found, struct chunk *other,
			    const struct ksmdev_mapping *candidate)
{
	bool alike = pages_alike(found->page, candidate->page);
	struct mm_struct *mm = chunk->region->mm;

	found->moved |= tell_apart(other, candidate->slot, candidate->page, alike, mm);
	found->moved |= tell_apart(chunk, found->nr, found->page, alike, mm);
}

/* Plan to merge a page with the shared page that equals it, if there is one. */
static bool find_shared(struct ksmdev_scan *scan, struct chunk *chunk,
			struct ksmdev_found *found, u64 fingerprint, u64 sample)
{
	struct page *kpage = shared_find(chunk->region->domain, fingerprint, sample, found->page,
					 !is_trusted(found));

	if (!kpage)
		return false;
	plan(scan, chunk, found, kpage);
	scan->planned++;
	return true;
}

/*
 * A candidate is not to be had, for no reason of its own: next time. One that has a sample in
 * common with many may never be worth that: now and then.
 */
static void note_held(struct ksmdev_found *found, bool whole)
{
	if (whole)
		found->partner = true;
	else
		found->held = true;
}

static void add_wants(struct ksmdev_scan *scan, struct ksmdev_found *found, const u32 *slots,
		      unsigned int nr, bool whole)
{
	unsigned int i;

	for (i = 0; i < nr; i++)
		scan->want[scan->nr_wants++] = (struct want) {
			.slot = slots[i],
			.found = found - scan->found,
			.whole = whole,
		};
}

/*
 * Want the candidates that a page may equal; if there are none it is one from now on.
 * Return: how many there are.
 */
static unsigned int want_candidates(struct ksmdev_scan *scan, struct chunk *chunk,
				    struct ksmdev_found *found, u64 fingerprint, u64 sample)
{
	u32 slots[INDEX_TRIES];
	unsigned int n, before;

	n = chunk_candidates(chunk, found->nr, slots);
	/* With so many, one more would only lengthen the chain, whatever they hold. */
	found->alike = n < INDEX_TRIES ? 0 : ALIKE_MAX;
	add_wants(scan, found, slots, n, false);
	if (sample == fingerprint)
		return n;
	before = index_find_like(chunk->region->domain, sample, slots);
	add_wants(scan, found, slots, before, true);
	return n + before;
}

static void find_partner(struct ksmdev_scan *scan, struct chunk *chunk,
			 struct ksmdev_found *found)
{
	struct domain *domain = chunk->region->domain;
	unsigned int before = scan->nr_wants, n;
	u64 fingerprint, sample;

	/* It was merged as another one's candidate, or written. */
	if (!chunk_has_fingerprint(chunk, found->nr)) {
		found->eligible = false;
		return;
	}
	if (!may_merge(scan)) {
		found->held = true;
		return;
	}
	fingerprint = chunk_fingerprint(chunk, found->nr);
	if (fingerprint == domain->zero && scan->zero_page && may_be_zero(found)) {
		plan(scan, chunk, found, NULL);
		scan->planned++;
		return;
	}
	sample = fingerprint;
	/* Marked since it was looked at? */
	if (sample_of_marked(domain, found->page, &sample) && sample == fingerprint &&
	    refile(chunk, found->nr, found->page))
		fingerprint = chunk_fingerprint(chunk, found->nr);
	if (find_shared(scan, chunk, found, fingerprint, sample))
		return;
	n = want_candidates(scan, chunk, found, fingerprint, sample);
	if (!n) {
		/*
		 * It is one now, for the next page to find. Another scan may have just
		 * made a shared page of the one that was there.
		 */
		if (!find_shared(scan, chunk, found, fingerprint, sample)) {
			look_settle(chunk, found);
			found->eligible = false;
		}
		return;
	}
	if (scan->no_room || !sweep_room()) {
		/* No need to ask again for each page. */
		scan->no_room = true;
		note_held(found, scan->want[before].whole);
		scan->nr_wants = before;
		return;
	}
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
		    struct chunk *other, struct ksmdev_mapping *candidate, bool whole)
{
	if (candidate->page == found->page)
		return;
	if (!chunk_has_slot(other, candidate->slot) ||
	    chunk_slot(other, candidate->slot)->state != SLOT_UNSHARED) {
		/* Another scan merged it: next time there is a shared page. Or it is gone. */
		found->partner = true;
		return;
	}
	if (!may_equal(found, candidate->page, whole)) {
		tell_both_apart(chunk, found, other, candidate);
		return;
	}
	found->partner = true;
	found->alike++;
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
			note_held(found, want[i].whole);
		} else if (found->planned || !candidate->page) {
			/* As far as is known it is one that the page equals. */
			found->partner = true;
			found->alike += !want[i].whole;
			look_candidate_left(other, candidate->slot);
		} else if (!candidate->kpage) {
			compare(scan, chunk, found, other, candidate, want[i].whole);
			/* Planned when the candidate was merged. */
			found->planned = !!candidate->kpage;
		} else if (may_equal(found, candidate->kpage, want[i].whole)) {
			get_page(candidate->kpage);
			plan(scan, chunk, found, candidate->kpage);
		} else {
			found->moved |= tell_apart(chunk, found->nr, found->page,
						   pages_alike(found->page, candidate->kpage),
						   chunk->region->mm);
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
		if (scan->pair[i].err == -EILSEQ) {
			found->trusted = false;
			tell_both_apart(chunk, found, other, &scan->pair[i]);
		}
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
				note_held(&scan->found[want[j].found], want[j].whole);
		}
		chunk_put(other);
	}
}

/*
 * Find partners for a batch of pages, and merge them.
 * Return: how many of the pages were done; the others would want too many candidates.
 */
static unsigned int match_batch(struct ksmdev_scan *scan, struct chunk *chunk, u16 *batch,
				unsigned int nr)
{
	unsigned int i, done;

	scan->nr_maps = 0;
	scan->nr_wants = 0;
	scan->planned = 0;
	for (done = 0; done < nr && scan->nr_wants + 2 * INDEX_TRIES <= WANTS_MAX; done++)
		find_partner(scan, chunk, &scan->found[batch[done]]);
	match_wants(scan, chunk);
	merge_mappings(scan, chunk, scan->map, scan->nr_maps);
	for (i = 0; i < scan->nr_maps; i++) {
		struct ksmdev_found *found = &scan->found[scan->map[i].found];

		if (!scan->map[i].err)
			continue;
		found->planned = false;
		/* For want of a lock, or a batch has it yet: that is not the page's fault. */
		if (merge_held(scan->map[i].err))
			found->held = true;
		/* Both had one sample, or it has changed since; the shared page has been put. */
		if (scan->map[i].err == -EILSEQ) {
			found->trusted = false;
			found->moved |= tell_apart(chunk, found->nr, found->page, true,
						   chunk->region->mm);
		}
	}
	for (i = 0; i < done; i++) {
		struct ksmdev_found *found = &scan->found[batch[i]];

		if (found->eligible && !found->planned)
			look_settle(chunk, found);
	}
	cond_resched();
	return done;
}

/* Those of a batch that are found by another fingerprint now, or may find another candidate. */
static unsigned int moved_ones(struct ksmdev_scan *scan, unsigned int nr)
{
	unsigned int i, n = 0;

	for (i = 0; i < nr; i++) {
		struct ksmdev_found *found = &scan->found[scan->batch[i]];

		if (found->eligible && found->moved && !found->planned) {
			found->moved = false;
			scan->batch[n++] = scan->batch[i];
		}
	}
	return n;
}

static void match_all(struct ksmdev_scan *scan, struct chunk *chunk, unsigned int nr)
{
	unsigned int done = 0;

	while (done < nr)
		done += match_batch(scan, chunk, &scan->batch[done], nr - done);
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
	unsigned int i = 0, n;

	scan->no_room = false;
	while (i < scan->nr_found) {
		for (n = 0; i < scan->nr_found && n < MERGE_BATCH; i++)
			if (scan->found[i].eligible)
				scan->batch[n++] = i;
		match_all(scan, chunk, n);
		/* Once: what moves again does so in the next pass. */
		match_all(scan, chunk, moved_ones(scan, n));
	}
}
