// SPDX-License-Identifier: GPL-2.0-only
/*
 * look.c - read the pages that changed, and see which ones may be merged
 *
 * A page may be merged when it did not change between two looks: pages that change all
 * the time are not worth a place in the index. Where its pte tells whether it was written, it is
 * not read before it was not; what is written all the time is never read. Where nothing tells (a
 * secondary MMU writes without a trace until the page is read-only; a large folio may have one
 * dirty bit for many pages) a hash of all of it does.
 *
 * Parts of a large folio are looked at like other pages; see split.c.
 */
#include "../include/hash.h"
#include "../include/index.h"
#include "../include/scan.h"
#include "../include/shared.h"
#include "../include/trace.h"

/*
 * How eager to look at an unchanged page again: that was not matched yet; that failed
 * to be merged once; that fails all the time. The last is looked at in one pass of
 * many: a page that a device has pinned stays so for long.
 */
enum {
	EAGER_NOT,
	EAGER_FAILS,
	EAGER_FAILED,
	EAGER_NEW,
};

#define FAILS_INTERVAL 16

static unsigned int eagerness(struct chunk *chunk, unsigned int nr)
{
	return *chunk_seen(chunk, nr) >> KSMDEV_SEEN_WANTED_SHIFT;
}

static void set_eagerness(struct chunk *chunk, unsigned int nr, unsigned int eager)
{
	u16 *seen = chunk_seen(chunk, nr);

	*seen = (*seen & ~KSMDEV_SEEN_WANTED) | eager << KSMDEV_SEEN_WANTED_SHIFT;
}

/**
 * look_eager() - how eager a pass is
 * @pass: its number
 *
 * Context: Any.
 * Return: how much a page must be wanted to be looked at.
 */
unsigned int look_eager(unsigned long pass)
{
	return pass % FAILS_INTERVAL ? EAGER_FAILED : EAGER_FAILS;
}

/**
 * look_settle() - note what came of a page that might have been merged and was not
 * @chunk: its chunk, locked
 * @found: the page
 *
 * Context: Process.
 */
void look_settle(struct chunk *chunk, struct ksmdev_found *found)
{
	struct slot *slot = chunk_slot(chunk, found->nr);
	unsigned int eager = eagerness(chunk, found->nr);

	/* Not its fault: next time. */
	if (found->held || found->moved)
		return;
	if (!found->partner)
		set_eagerness(chunk, found->nr, EAGER_NOT);
	else if (eager > EAGER_FAILS)
		set_eagerness(chunk, found->nr, eager - 1);
	/*
	 * Others may equal it, too, and have no luck with the same partner. But with so
	 * many alike in the index, one more would only lengthen the chain.
	 */
	if (slot->state == SLOT_STABLE && found->alike < ALIKE_MAX)
		chunk_set(chunk, found->nr, SLOT_UNSHARED, chunk_fingerprint(chunk, found->nr));
}

/**
 * look_candidate_left() - a candidate was wanted and not merged
 * @chunk: its chunk, locked
 * @nr: its slot, if the chunk is still the one that it was found in
 *
 * What wanted it may find another partner, or has one; then it is the candidate's turn
 * to ask.
 *
 * Context: Process.
 */
void look_candidate_left(struct chunk *chunk, unsigned int nr)
{
	if (chunk_has_slot(chunk, nr) && eagerness(chunk, nr) == EAGER_NOT)
		set_eagerness(chunk, nr, EAGER_FAILS);
}

/**
 * look_again() - a page is worth another look, though it did not change
 * @chunk: its chunk, locked
 * @nr: its slot
 *
 * Context: Process.
 */
void look_again(struct chunk *chunk, unsigned int nr)
{
	set_eagerness(chunk, nr, EAGER_NEW);
}

/*
 * Did a page that is read not change since the last look? If only a hash of all of it can tell, it
 * is in @hash; else, and where nobody waits for the next look, 0.
 */
static bool is_same(struct ksmdev_scan *scan, struct chunk *chunk,
		    const struct ksmdev_found *found, u64 fingerprint, u64 *hash)
{
	u64 was = chunk_fingerprint(chunk, found->nr);

	*hash = 0;
	if (chunk_has_fingerprint(chunk, found->nr) && !found->written && was == fingerprint)
		return true;
	if (!found->watched && !found->unchanged && !scan->at_once)
		*hash = hash_page(found->page, chunk->region->domain->id);
	if (chunk_slot(chunk, found->nr)->state != SLOT_VOLATILE)
		return false;
	return found->unchanged || (*hash && *hash == was);
}

/* A page that was not read before, or changed, or whose turn it is to be read anew. */
static void read_anon(struct ksmdev_scan *scan, struct chunk *chunk, struct ksmdev_found *found)
{
	u64 fingerprint = fingerprint_page(chunk->region->domain, found->page), hash;
	bool same = is_same(scan, chunk, found, fingerprint, &hash);

	trace_ksmdev_hash(chunk->region->mm, chunk->addr + found->nr * PAGE_SIZE, fingerprint);
	/* If a write after this look would leave no trace. */
	found->watch = same && !(*chunk_seen(chunk, found->nr) & KSMDEV_SEEN_CLEAN);
	found->eligible = same || scan->at_once;
	if (!found->eligible)
		chunk_set(chunk, found->nr, SLOT_VOLATILE, hash);
	else if (!same || !chunk_has_fingerprint(chunk, found->nr))
		chunk_set(chunk, found->nr, SLOT_STABLE, fingerprint);
	if (!same)
		scan->fresh = true;
	set_eagerness(chunk, found->nr, EAGER_NEW);
}

/* A page that changed, and of which the next look can tell whether it does so again. */
static void put_off(struct ksmdev_scan *scan, struct chunk *chunk, struct ksmdev_found *found)
{
	chunk_set(chunk, found->nr, SLOT_VOLATILE, 0);
	scan->fresh = true;
	set_eagerness(chunk, found->nr, EAGER_NEW);
}

/*
 * A shared page that only this pte maps. Its other mappers left; or the merge of
 * the second one failed and comes later, so it gets one more look.
 */
static void look_at_single(struct ksmdev_scan *scan, struct chunk *chunk, unsigned int nr)
{
	struct slot *slot = chunk_slot(chunk, nr);

	if (slot->state == SLOT_SHARED && slot->upper == SHARED_SINGLE) {
		scan->due[scan->nr_due++] = (struct due) { .slot = nr };
	} else {
		chunk_set(chunk, nr, SLOT_SHARED, fingerprint_of(SHARED_SINGLE, 0));
		shared_lost_mapper();
	}
}

/* Others map the zero page too, as read faults do, and since 6.12 splits of folios. */
static void look_at_zero(struct chunk *chunk, unsigned int nr)
{
	struct slot *slot = chunk_slot(chunk, nr);

	if (slot->state == SLOT_ZERO)
		return;
	if (chunk_has_fingerprint(chunk, nr) &&
	    chunk_fingerprint(chunk, nr) == chunk->region->domain->zero)
		chunk_set(chunk, nr, SLOT_ZERO, 0);
	else
		chunk_set(chunk, nr, SLOT_NONE, 0);
}

/* What there is to do with an anonymous page. */
enum reading {
	READ_NOT,	/* it is known what it holds */
	READ_LATER,	/* if it has not changed by then */
	READ_NOW,
};

static enum reading reading_of(struct ksmdev_scan *scan, struct chunk *chunk,
			       const struct ksmdev_found *found)
{
	bool known = chunk_has_fingerprint(chunk, found->nr);

	if (found->unchanged)
		return known && scan->again != found->nr ? READ_NOT : READ_NOW;
	if (scan->at_once || !found->watched)
		return READ_NOW;
	return known && !found->written ? READ_NOW : READ_LATER;
}

/**
 * look() - look at the pages that were gathered
 * @scan: the scanning context
 * @chunk: the chunk they are in, locked
 * @skipped: how many pages more were visited and not reported
 *
 * Context: Process; no mmap lock needed.
 */
void look(struct ksmdev_scan *scan, struct chunk *chunk, unsigned int skipped)
{
	struct ksmdev_counters *counters = &chunk->region->area->counters;
	unsigned int i, hashed = 0, later = 0, known = skipped;

	scan->nr_due = 0;
	for (i = 0; i < scan->nr_found; i++) {
		struct ksmdev_found *found = &scan->found[i];

		switch (found->kind) {
		case KSMDEV_ANON:
			switch (reading_of(scan, chunk, found)) {
			case READ_NOT:
				found->eligible = true;
				known++;
				break;
			case READ_LATER:
				put_off(scan, chunk, found);
				later++;
				break;
			case READ_NOW:
				if (i + 1 < scan->nr_found && found[1].page &&
				    reading_of(scan, chunk, &found[1]) == READ_NOW)
					hash_prefetch(found[1].page);
				read_anon(scan, chunk, found);
				hashed++;
				cond_resched();
			}
			if (ksmdev_is_stray(found->page))
				scan->due[scan->nr_due++] = (struct due) { .slot = found->nr };
			/* What failed once is compared first; and so is what must not. */
			found->trusted = !scan->at_once &&
					 eagerness(chunk, found->nr) == EAGER_NEW;
			break;
		case KSMDEV_SINGLE:
			look_at_single(scan, chunk, found->nr);
			known++;
			break;
		case KSMDEV_SHARED:
			chunk_set(chunk, found->nr, SLOT_SHARED, 0);
			if (found->owed)
				scan->due[scan->nr_due++] = (struct due) {
					.slot = found->nr,
					.paid = true,
				};
			set_eagerness(chunk, found->nr, EAGER_NOT);
			known++;
			break;
		case KSMDEV_ZERO:
			look_at_zero(chunk, found->nr);
			set_eagerness(chunk, found->nr, EAGER_NOT);
			known++;
			break;
		default:
			chunk_set(chunk, found->nr, SLOT_NONE, 0);
			set_eagerness(chunk, found->nr, EAGER_NOT);
		}
	}
	atomic_long_add(hashed + later + known, &counters->scanned);
	atomic_long_add(later + known, &counters->skipped);
	atomic_long_add(hashed, &counters->hashed);
	if (scan->tour) {
		atomic_long_add(hashed + later + known, &scan->tour->scanned);
		atomic_long_add(known, &scan->tour->skipped);
	}
}
