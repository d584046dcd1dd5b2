// SPDX-License-Identifier: GPL-2.0-only
/*
 * split.c - large folios: when it pays to split one
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
#include "../include/index.h"
#include "../include/scan.h"
#include "../include/shared.h"
#include "../include/sweep.h"

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

/* Does a page speak for a split? A large folio may reach beyond the window. */
static bool has_vote(struct chunk *chunk, unsigned int nr)
{
	return chunk_has_slot(chunk, nr) && chunk_slot(chunk, nr)->vote;
}

/* The page of the folio that a slot is of. */
static struct page *page_at(const struct splitter *splitter, unsigned int nr)
{
	return splitter->kept + nr - splitter->nr;
}

/* What speaks for a page's vote, as far as the indexes know. */
static bool has_partner(const struct splitter *splitter, unsigned int nr)
{
	struct chunk *chunk = splitter->chunk;
	struct domain *domain = chunk->region->domain;
	struct page *page = page_at(splitter, nr), *kpage;
	u32 numbers[INDEX_TRIES];
	u64 fingerprint, sample;

	if (!chunk_has_fingerprint(chunk, nr) || PageHWPoison(page))
		return false;
	fingerprint = chunk_fingerprint(chunk, nr);
	if (fingerprint == domain->zero || index_find(chunk, nr, false, numbers) ||
	    shared_known(domain, fingerprint))
		return true;
	if (!sample_of_marked(domain, page, &sample) || sample == fingerprint)
		return false;
	/* Of those that are found by the sample few equal it. */
	kpage = shared_find(domain, sample, sample, page, true);
	if (kpage)
		put_page(kpage);
	return kpage || index_find_like(domain, sample, numbers);
}

static bool enough(unsigned int votes, unsigned int nr)
{
	/* In proportion where the folio is smaller, or only a part of it is ours. */
	return votes * CHUNK_SLOTS >= READ_ONCE(ksmdev_thp_split_threshold) * nr;
}

/* Do the votes pay for a split? Those of partners that are gone do not count. */
static bool votes_enough(const struct splitter *splitter, unsigned int first, unsigned int last)
{
	struct chunk *chunk = splitter->chunk;
	unsigned int nr, votes = 0;

	for (nr = first; nr < last; nr++)
		votes += has_vote(chunk, nr);
	if (!enough(votes, last - first))
		return false;
	votes = 0;
	for (nr = first; nr < last; nr++) {
		if (!has_vote(chunk, nr))
			continue;
		if (has_partner(splitter, nr))
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
	if (!votes_enough(splitter, first, last))
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
	struct page *page = page_at(splitter, nr);
	struct domain *domain = chunk->region->domain;
	u64 fingerprint = chunk_fingerprint(chunk, nr), sample = fingerprint;
	struct page *kpage;

	sample_of_marked(domain, page, &sample);
	kpage = shared_find(domain, fingerprint, sample, page, true);
	if (!kpage && sweep_room())
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
			look_again(chunk, nr);
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
