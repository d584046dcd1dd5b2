// SPDX-License-Identifier: GPL-2.0-only
/*
 * look.c - read the pages that changed, and see which ones may be merged
 *
 * A page may be merged when two looks found the same contents: pages that change all
 * the time are not worth a place in the index. The second look costs no reading where
 * mm/watch.c says that nothing was written in between.
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
	if (found->held)
		return;
	if (!found->partner)
		set_eagerness(chunk, found->nr, EAGER_NOT);
	else if (eager > EAGER_FAILS)
		set_eagerness(chunk, found->nr, eager - 1);
	/*
	 * Others may equal it, too, and have no luck with the same partner. But with so
	 * many alike in the index, one more would only lengthen the chain.
	 */
	if (slot->state == SLOT_VOLATILE && found->alike < INDEX_TRIES)
		chunk_set(chunk, found->nr, SLOT_UNSHARED, slot->fingerprint);
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

/* Does the fingerprint tell what the page held at the last look? */
static bool has_fingerprint(const struct slot *slot)
{
	return slot->state == SLOT_VOLATILE || slot->state == SLOT_UNSHARED;
}

/* Contents that were not seen before, or a page whose turn it is to be read anew. */
static void read_anon(struct ksmdev_scan *scan, struct chunk *chunk, struct ksmdev_found *found)
{
	struct slot *slot = chunk_slot(chunk, found->nr);
	struct domain *domain = chunk->region->domain;
	u32 fingerprint = domain->zero;

	if (!ksmdev_page_is_zero(found->page))
		fingerprint = hash_page(found->page, domain->id);
	trace_ksmdev_hash(chunk->region->mm, chunk->addr + found->nr * PAGE_SIZE, fingerprint);

	if (has_fingerprint(slot) && slot->fingerprint == fingerprint) {
		found->eligible = true;
		/* If a write after this look would leave no trace. */
		found->watch = !(*chunk_seen(chunk, found->nr) & KSMDEV_SEEN_CLEAN);
	} else {
		chunk_set(chunk, found->nr, SLOT_VOLATILE, fingerprint);
		scan->fresh = true;
		found->eligible = scan->at_once;
	}
	set_eagerness(chunk, found->nr, EAGER_NEW);
}

/*
 * A shared page that only this pte maps. Its other mappers left; or the merge of
 * the second one failed and comes later, so it gets one more look.
 */
static void look_at_single(struct ksmdev_scan *scan, struct chunk *chunk, unsigned int nr)
{
	struct slot *slot = chunk_slot(chunk, nr);

	if (slot->state == SLOT_SHARED && slot->fingerprint == SHARED_SINGLE) {
		scan->due[scan->nr_due++] = (struct due) { .slot = nr };
	} else {
		chunk_set(chunk, nr, SLOT_SHARED, SHARED_SINGLE);
		shared_lost_mapper();
	}
}

/* Others map the zero page too, as read faults do, and since 6.12 splits of folios. */
static void look_at_zero(struct chunk *chunk, unsigned int nr)
{
	struct slot *slot = chunk_slot(chunk, nr);

	if (slot->state == SLOT_ZERO)
		return;
	if (has_fingerprint(slot) && slot->fingerprint == chunk->region->domain->zero)
		chunk_set(chunk, nr, SLOT_ZERO, 0);
	else
		chunk_set(chunk, nr, SLOT_NONE, 0);
}

static bool is_to_be_read(struct ksmdev_scan *scan, struct chunk *chunk,
			  struct ksmdev_found *found)
{
	return !found->unchanged || scan->again == found->nr ||
	       !has_fingerprint(chunk_slot(chunk, found->nr));
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
	unsigned int i, hashed = 0, known = skipped;

	scan->nr_due = 0;
	for (i = 0; i < scan->nr_found; i++) {
		struct ksmdev_found *found = &scan->found[i];

		switch (found->kind) {
		case KSMDEV_ANON:
			if (is_to_be_read(scan, chunk, found)) {
				if (i + 1 < scan->nr_found && found[1].page && !found[1].unchanged)
					ksmdev_prefetch_page(found[1].page);
				read_anon(scan, chunk, found);
				hashed++;
				cond_resched();
			} else {
				found->eligible = true;
				known++;
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
	atomic_long_add(hashed + known, &counters->scanned);
	atomic_long_add(known, &counters->skipped);
	atomic_long_add(hashed, &counters->hashed);
	if (scan->tour) {
		atomic_long_add(hashed + known, &scan->tour->scanned);
		atomic_long_add(known, &scan->tour->skipped);
	}
}
