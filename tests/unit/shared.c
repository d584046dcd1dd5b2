// SPDX-License-Identifier: GPL-2.0-only
/*
 * shared.c - engine/shared.c, engine/pool.c and engine/sample.c, against a list of all mappings
 *
 * Random contents are shared in two domains, looked up, mapped until a page is full, unmapped until it
 * is gone and its memory is another page's; pages fail, are locked by others, samples are marked, and
 * allocations fail. Four bits of a fingerprint stand for 640 contents, so that all ways of a key are in
 * use, and more would be. What is found is compared with the list; what is not found may be behind a page that is
 * gone, and is only counted, but for what must be found when nothing is in the way.
 */
#include "unit.h"

#include "../../include/engine.h"
#include "../../include/entry.h"
#include "../../include/mm.h"
#include "../../include/shared.h"

#define DOMAINS		2
#define CONTENTS	640
#define MAPPINGS	2000
#define STEPS		300000
#define LIMIT		40

/* One that maps a shared page. */
struct mapping {
	struct page *page;
	struct domain *domain;
};

static struct domain domains[DOMAINS] = { { .id = 7 }, { .id = 1000 } };
static struct mm_struct mm;
static struct region regions[DOMAINS] = { { .domain = &domains[0] }, { .domain = &domains[1] } };
static struct mapping mappings[MAPPINGS];
static unsigned int nr_mappings;
static unsigned long shared, alone, refused, full, failed;

/* What must be so of a page that is given out for certain contents. */
static void check_page(struct page *page, const struct domain *domain)
{
	CHECK(page->kpage && page->refs > 1 && !PageHWPoison(page));
	CHECK(page->refs <= KSMDEV_MAX_SHARING + 1, "%d references", page->refs);
	for (unsigned int i = 0; i < nr_mappings; i++)
		if (mappings[i].page == page)
			CHECK(mappings[i].domain == domain, "of another domain");
}

static void map(struct page *page, struct domain *domain)
{
	mappings[nr_mappings++] = (struct mapping) { page, domain };
	atomic_inc(&page->_mapcount);
	full += page->refs >= KSMDEV_MAX_SHARING;
}

static void unmap(unsigned int i)
{
	atomic_dec(&mappings[i].page->_mapcount);
	put_page(mappings[i].page);
	mappings[i] = mappings[--nr_mappings];
}

static struct page page_of(u32 content)
{
	return (struct page) { .content = content, .refs = 1 };
}

/* May a page of these contents be found by a fingerprint? By that of its sample, or of all of it. */
static bool has_fingerprint(u32 content, u64 fingerprint)
{
	struct page page = page_of(content);

	return hash_sample(&page, 0) == fingerprint || hash_page(&page, 0) == fingerprint;
}

static bool may_collide(u32 a, u32 b)
{
	struct page page = page_of(b);

	return has_fingerprint(a, hash_sample(&page, 0)) ||
	       has_fingerprint(a, hash_page(&page, 0));
}

/* Is a page of these contents mapped, and no other one that may be found by the same? */
static bool is_alone(const struct domain *domain, u32 content)
{
	bool mapped = false;

	for (unsigned int i = 0; i < nr_mappings; i++) {
		const struct page *page = mappings[i].page;

		if (mappings[i].domain != domain || !may_collide(page->content, content))
			continue;
		if (page->content != content || PageHWPoison(page) ||
		    page->refs >= KSMDEV_MAX_SHARING)
			return false;
		mapped = true;
	}
	return mapped;
}

static void look_up(unsigned int d, u32 content, bool whole)
{
	struct page from = page_of(content);
	u64 fingerprint = fingerprint_page(&domains[d], &from);
	bool sure = !unit_busy && is_alone(&domains[d], content);
	u64 sample = fingerprint;
	struct page *page;

	sample_of_marked(&domains[d], &from, &sample);
	page = shared_find(&domains[d], fingerprint, sample, &from, whole);
	if (page) {
		CHECK(may_collide(page->content, content));
		CHECK(!whole || page->content == content);
		CHECK(pages_resemble(page, &from));
		check_page(page, &domains[d]);
		/* Who was told that it is alike compares himself. */
		if (page->content == content && nr_mappings < MAPPINGS)
			map(page, &domains[d]);
		else
			put_page(page);
	}
	/* A hole of a page that is gone, before it, may hide it until somebody shares anew. */
	shared += !!page;
	alone += sure;
	refused += sure && !page;
}

/* A hint: there is one of these only if one is mapped, or kept by a sweep to come. */
static void known(unsigned int d, u32 content)
{
	struct page from = page_of(content);
	u64 fingerprint = fingerprint_page(&domains[d], &from);
	bool is = shared_known(&domains[d], fingerprint), mapped = false;

	for (unsigned int i = 0; i < nr_mappings; i++)
		mapped |= mappings[i].domain == &domains[d] &&
			  has_fingerprint(mappings[i].page->content, fingerprint);
	CHECK(!is || mapped);
}

/* A page is found not to equal one that has its fingerprint. */
static void mark(unsigned int d, u32 content)
{
	struct page page = page_of(content);
	u64 sample;

	sample_mark(&domains[d], &mm, &page, fingerprint_page(&domains[d], &page));
	if (sample_of_marked(&domains[d], &page, &sample))
		CHECK(fingerprint_page(&domains[d], &page) == hash_page(&page, 0));
	else
		CHECK(unit_fails, "not marked");
}

/* Forget which samples are marked: the next ones share a domain's number, and its pages. */
static void unmark(unsigned int d)
{
	samples_free(&domains[d]);
	memset(domains[d].marks, 0, sizeof(domains[d].marks));
	domains[d].has_marks = false;
}

static void create(unsigned int d, u32 content)
{
	struct page from = page_of(content);
	unsigned long before = shared_count();
	struct page *page;

	if (nr_mappings == MAPPINGS)
		return;
	page = shared_create(&regions[d], &from);
	if (!page) {
		failed++;
		return;
	}
	CHECK(page->content == content);
	CHECK(page->kpage && page->refs && !PageHWPoison(page));
	CHECK(before < ksmdev_max_kernel_pages || shared_count() <= before);
	/* Who was faster has made it; it may be full since. */
	if (page->refs > KSMDEV_MAX_SHARING)
		put_page(page);
	else
		map(page, &domains[d]);
}

static void sweep_one(struct shared_entry *entry, void *data)
{
	unsigned long *kept = data;

	*kept += !shared_drop_stale(entry);
}

/* After this what is counted is what is there; pages that have failed are not counted. */
static void sweep(void)
{
	unsigned long block = 0, kept = 0;

	while (pool_visit(&block, sweep_one, &kept))
		;
	CHECK(kept == pool_used() && kept == shared_count(), "%lu kept, %lu used, %lu counted",
	      kept, pool_used(), shared_count());
	CHECK(kept <= (unsigned long)unit_pages);
}

static void step(void)
{
	unsigned int d = unit_below(DOMAINS);
	/* Of two there are so many that pages are full; of some, that they may be alone. */
	u32 content = unit_below(unit_below(2) ? 2 : unit_below(2) ? 12 : CONTENTS);

	switch (unit_below(64)) {
	case 0:
		sweep();
		break;
	case 1:
		unit_grace_period();
		break;
	case 2:
		if (nr_mappings && !unit_below(20))
			mappings[unit_below(nr_mappings)].page->error.hwpoison = true;
		break;
	case 3:
		known(d, content);
		break;
	case 57:
		if (!unit_below(50))
			mark(d, content);
		break;
	case 58:
		if (!unit_below(20))
			unmark(d);
		break;
	case 4 ... 11:
		create(d, content);
		break;
	case 12 ... 50:
		look_up(d, content, unit_below(2));
		break;
	case 51 ... 55:
		if (nr_mappings)
			unmap(unit_below(nr_mappings));
		break;
	case 56:
		/* All of a page, or it would never be gone. */
		if (nr_mappings) {
			struct page *page = mappings[unit_below(nr_mappings)].page;

			for (unsigned int i = nr_mappings; i-- > 0;)
				if (mappings[i].page == page)
					unmap(i);
		}
		break;
	default:
		create(d, content);
	}
}

static void run(unsigned int number, const char *name, unsigned int fails, bool busy,
		unsigned long limit)
{
	long before = unit_allocated;

	shared = 0;
	alone = 0;
	refused = 0;
	full = 0;
	failed = 0;
	ksmdev_max_kernel_pages = limit;
	CHECK(!ksmdev_shared_init());
	unit_fails = fails;
	unit_busy = busy;
	for (unsigned int i = 0; i < STEPS; i++)
		step();
	unit_fails = 0;
	unit_busy = false;
	for (unsigned int d = 0; d < DOMAINS; d++)
		unmark(d);
	CHECK(!samples_bytes());
	/* One that is full: the next lookup does not find it. */
	while (nr_mappings)
		unmap(nr_mappings - 1);
	sweep();
	create(0, 1);
	CHECK(nr_mappings == 1);
	for (unsigned int i = 1; i < KSMDEV_MAX_SHARING; i++)
		look_up(0, 1, true);
	CHECK(nr_mappings == KSMDEV_MAX_SHARING, "%u mappings", nr_mappings);
	look_up(0, 1, true);
	CHECK(nr_mappings == KSMDEV_MAX_SHARING, "a page is mapped too often");
	create(0, 1);
	CHECK(nr_mappings == KSMDEV_MAX_SHARING + 1, "no other page comes after a full one");
	CHECK(mappings[0].page != mappings[nr_mappings - 1].page);
	while (nr_mappings)
		unmap(nr_mappings - 1);
	sweep();
	/* So many contents of one fingerprint are not chance. */
	for (unsigned int i = 0; i <= INDEX_TRIES; i++) {
		create(0, i << FINGERPRINT_BITS);
		unmark(0);
	}
	CHECK(nr_mappings == INDEX_TRIES, "%u contents of one fingerprint", nr_mappings);
	for (unsigned int i = 0; i < INDEX_TRIES; i++)
		look_up(0, i << FINGERPRINT_BITS, true);
	CHECK(nr_mappings == 2 * INDEX_TRIES);
	while (nr_mappings)
		unmap(nr_mappings - 1);
	sweep();
	CHECK(!shared_count() && !pool_used() && !pool_blocks() && !unit_pages);
	ksmdev_shared_exit();
	CHECK(unit_allocated == before, "%ld allocations are left", unit_allocated - before);
	CHECK(shared > STEPS / 100 && full && failed, "too little happened: %lu %lu %lu", shared, full,
	      failed);
	UNIT_OK(number, "%s: found %lu times, of %lu alone not %lu times, not made %lu times", name,
		shared, alone, refused, failed);
}

int main(void)
{
	UNIT_PLAN(4);
	run(1, "shared pages", 0, false, 100000);
	run(2, "allocations fail", 5, false, 100000);
	run(3, "pages are locked", 0, true, 100000);
	run(4, "a low bound, and all of that", 5, true, LIMIT);
	return 0;
}
