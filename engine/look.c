// SPDX-License-Identifier: GPL-2.0-only
/*
 * look.c - read the pages that changed, and see which ones may be merged
 *
 * A page may be merged when two looks found the same contents: pages that change all
 * the time are not worth a place in the index. The second look costs no reading where
 * mm/watch.c says that nothing was written in between.
 *
 * Parts of a large folio cannot be shared. They are looked at like other pages, and
 * each that has a partner is a vote to split the folio. A split costs time, and the
 * process its huge mapping; it is done when there are votes enough to pay for that.
 *
 * What was split khugepaged makes huge again as soon as it comes by, if all that was merged
 * there are zeros: to it the kernel's zero page is no page. We would split that, and so on for
 * ever. So who splits a huge page a second time leaves two marks in it (see choose_marks()) that
 * keep khugepaged away until the process writes to both. And should it be rebuilt
 * nevertheless, it is left alone for much longer each time.
 */
#include "../include/engine.h"
#include "../include/scan.h"
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

/*
 * Where it saves this many pages of a page table, a large folio is split. The time of a split
 * is that of about so many merges: Documentation/performance.rst has the figures.
 */
unsigned int ksmdev_thp_split_threshold = CHUNK_SLOTS / 8;
atomic_long_t ksmdev_thp_splits = ATOMIC_LONG_INIT(0);

/*
 * How long a huge page stays that is the first to be seen where another was split; how many
 * times longer each that follows; how often that is done: ten seconds, five minutes, three hours.
 */
#define KEEP_NS		(10 * (u64)NSEC_PER_SEC)
#define KEEP_TIMES	32
#define KEEP_STEPS	3

/* What keeps khugepaged away. With one alone nobody would share it, and it would be given back. */
#define MARKS		2U

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
		fingerprint = index_fingerprint(found->page, domain->id);
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

/* Does a page speak for a split? A large folio may reach beyond the window. */
static bool has_vote(struct chunk *chunk, unsigned int nr)
{
	return chunk_has_slot(chunk, nr) && chunk_slot(chunk, nr)->vote;
}

/* What speaks for a page's vote, as far as the indexes know. */
static bool has_partner(struct chunk *chunk, unsigned int nr)
{
	u32 fingerprint = chunk_slot(chunk, nr)->fingerprint, numbers[INDEX_TRIES];
	struct domain *domain = chunk->region->domain;

	return fingerprint == domain->zero || index_find(chunk, nr, false, numbers) ||
	       shared_known(domain, fingerprint);
}

static bool enough(unsigned int votes, unsigned int nr)
{
	/* In proportion where the folio is smaller, or only a part of it is ours. */
	return votes * CHUNK_SLOTS >= READ_ONCE(ksmdev_thp_split_threshold) * nr;
}

/* Do the votes pay for a split? Those of partners that are gone do not count. */
static bool votes_enough(struct chunk *chunk, unsigned int first, unsigned int last)
{
	unsigned int nr, votes = 0;

	for (nr = first; nr < last; nr++)
		votes += has_vote(chunk, nr);
	if (!enough(votes, last - first))
		return false;
	votes = 0;
	for (nr = first; nr < last; nr++) {
		if (!has_vote(chunk, nr))
			continue;
		if (has_partner(chunk, nr))
			votes++;
		else
			chunk_slot(chunk, nr)->vote = false;
	}
	return enough(votes, last - first);
}

/* Does a folio fill a page table? These are the ones that khugepaged makes. */
static bool is_huge(struct folio *folio)
{
	return folio_nr_pages(folio) >= CHUNK_SLOTS;
}

/*
 * Are there votes enough, and is it time? Where a huge page was split another stays for a while,
 * counted from when it could be split, unless its own process asks for it.
 */
static bool may_split(struct splitter *splitter, unsigned int first, unsigned int last)
{
	struct chunk *chunk = splitter->chunk;
	bool again = chunk->splits && is_huge(page_folio(splitter->kept)) &&
		     chunk->region->mm != splitter->scan->mm;
	u64 now = ktime_get_ns(), keep = KEEP_NS;
	unsigned int i;

	if (again && now < chunk->keep_until)
		return false;
	if (!votes_enough(chunk, first, last))
		return false;
	if (!again || chunk->keep_until)
		return true;
	for (i = 1; i < chunk->splits; i++)
		keep *= KEEP_TIMES;
	chunk->keep_until = now + keep;
	return false;
}

/* A shared page that equals a page of the huge page, or NULL. */
static struct page *shared_like(struct splitter *splitter, unsigned int nr)
{
	struct chunk *chunk = splitter->chunk;
	struct page *page = splitter->kept + nr - splitter->nr;
	struct page *kpage = shared_find(chunk->region->domain,
					 chunk_slot(chunk, nr)->fingerprint, page);

	if (!kpage && shared_room())
		kpage = shared_create(chunk->region, page);
	return kpage;
}

/*
 * Which pages are to be merged as a huge page is split, so that khugepaged finds them merged. A
 * shared page is on no LRU list, and where one is, no huge page is made, whatever the settings.
 * Nor does MADV_COLLAPSE make one, so this is not done the first time. And as few as will do are
 * taken, as unlike the zero page they count as the process's memory: the first and the last of
 * those that have partners. Memory that is written from one end to the other keeps one for long.
 * Return: how many.
 */
static unsigned int choose_marks(struct splitter *splitter, unsigned int first,
				 unsigned int last, struct ksmdev_mapping *map)
{
	struct chunk *chunk = splitter->chunk;
	unsigned int nr, n = 0, marks = 0, i;
	u16 slots[MARKS];

	for (nr = first; nr < last; nr++) {
		/* A reference is held to that one, which would look like somebody else's. */
		if (!has_vote(chunk, nr) || nr == splitter->nr)
			continue;
		slots[min(n, MARKS - 1)] = nr;
		n++;
	}
	for (i = 0; i < min(n, MARKS); i++) {
		struct page *kpage = shared_like(splitter, slots[i]);

		if (kpage)
			map[marks++] = (struct ksmdev_mapping) {
				.addr = chunk->addr + slots[i] * PAGE_SIZE,
				.kpage = kpage,
				.slot = slots[i],
			};
	}
	return marks;
}

/* Split the folio that the kept page is part of. */
static bool split(struct splitter *splitter, unsigned int first, unsigned int last)
{
	struct chunk *chunk = splitter->chunk;
	bool huge = is_huge(page_folio(splitter->kept)), done;
	struct ksmdev_mapping map[MARKS];

	if (!huge || !chunk->splits)
		done = !ksmdev_split(splitter->kept);
	else
		done = merge_split(splitter->scan, chunk, splitter->kept, map,
				   choose_marks(splitter, first, last, map));
	if (done && huge) {
		chunk->splits = min(chunk->splits + 1, KEEP_STEPS);
		chunk->keep_until = 0;
	}
	return done;
}

static void split_kept(struct splitter *splitter)
{
	struct chunk *chunk = splitter->chunk;
	unsigned int nr = splitter->nr, first, last;
	struct folio *folio;
	unsigned long idx;

	if (!splitter->kept)
		return;
	folio = page_folio(splitter->kept);
	/* It may begin or end outside of the chunk, where mremap() has put it. */
	idx = folio_page_idx(folio, splitter->kept);
	first = nr - min_t(unsigned long, nr, idx);
	last = min_t(unsigned long, CHUNK_SLOTS, nr + folio_nr_pages(folio) - idx);
	if (may_split(splitter, first, last) && split(splitter, first, last)) {
		atomic_long_inc(&ksmdev_thp_splits);
		splitter->split = true;
		for (nr = first; nr < last; nr++) {
			if (!has_vote(chunk, nr))
				continue;
			chunk_slot(chunk, nr)->vote = false;
			set_eagerness(chunk, nr, EAGER_NEW);
		}
	}
	put_page(splitter->kept);
	splitter->kept = NULL;
}

/**
 * splitter_put() - drop the reference to the next page
 * @splitter: zeroed before the first one, but for the scan and the chunk
 * @page: the page
 * @nr: its slot
 *
 * Context: @splitter->chunk->lock held. May sleep.
 */
void splitter_put(struct splitter *splitter, struct page *page, unsigned int nr)
{
	if (splitter->kept && page_folio(splitter->kept) != page_folio(page))
		split_kept(splitter);
	/* What has the votes and is to stay for a while is asked about by whatever page comes. */
	if (!splitter->kept && PageCompound(page) &&
	    (has_vote(splitter->chunk, nr) || splitter->chunk->keep_until)) {
		splitter->kept = page;
		splitter->nr = nr;
	} else {
		put_page(page);
	}
}

/**
 * splitter_end() - no more pages come
 * @splitter: the splitter
 *
 * Context: @splitter->chunk->lock held. May sleep.
 * Return: true if a folio was split.
 */
bool splitter_end(struct splitter *splitter)
{
	split_kept(splitter);
	return splitter->split;
}

/**
 * let_go() - drop the references to the pages that were gathered
 * @scan: the scanning context
 * @chunk: the chunk they are in, locked
 *
 * Context: Process. May sleep.
 * Return: true if a folio was split, so that its pages are worth another look.
 */
bool let_go(struct ksmdev_scan *scan, struct chunk *chunk)
{
	struct splitter splitter = { .scan = scan, .chunk = chunk };
	unsigned int i;

	for (i = 0; i < scan->nr_found; i++)
		if (scan->found[i].page)
			splitter_put(&splitter, scan->found[i].page, scan->found[i].nr);
	scan->nr_found = 0;
	return splitter_end(&splitter);
}
