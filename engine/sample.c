// SPDX-License-Identifier: GPL-2.0-only
/*
 * sample.c - what a page is found by: a sample of it, or all of it where samples tell too little
 *
 * Most pages that are not equal differ in whatever lines one looks at. So a page's fingerprint
 * is that of its sample, and the rest is read only where there is a page to compare it with. Two
 * that differ and are the same in the sample (most of it zeros, say; or made so) are an exception:
 * that sample is marked then, and pages that have it go by all they hold from there on. What was
 * found by such a sample before stays where it is: who looks for a page asks for both.
 *
 * Marks are bits of a bitmap, so a mark is that of other samples, too, by chance: of those, whole
 * pages are read without need. One that is full of marks costs what reading all pages does, and a
 * little more. A bitmap is a domain's own, so users cannot fill each other's, and is charged to
 * whose pages collide. Marks stay for as long as their domain; shared pages may stay longer, and
 * those that were found by all they hold are not found then until their sample is marked anew.
 */
#include <linux/bitmap.h>
#include <linux/mm.h>

#include "../include/charge.h"
#include "../include/hash.h"
#include "../include/mm.h"
#include "../include/region.h"

#define MARKS_OF_PAGE	(PAGE_SIZE * BITS_PER_BYTE)

static atomic_long_t nr_pages = ATOMIC_LONG_INIT(0);

static unsigned int marks_page(u64 sample)
{
	return sample / MARKS_OF_PAGE % SAMPLE_MARK_PAGES;
}

/* Is a sample one of several contents, or has a mark in common with one? */
static bool sample_is_marked(const struct domain *domain, u64 sample)
{
	unsigned long *marks = READ_ONCE(domain->marks[marks_page(sample)]);

	return marks && test_bit(sample % MARKS_OF_PAGE, marks);
}

/**
 * fingerprint_page() - what a page is found by
 * @domain: the domain that it is of
 * @page: the page; the caller holds a reference
 *
 * Context: Any.
 * Return: the fingerprint, as of now.
 */
u64 fingerprint_page(struct domain *domain, struct page *page)
{
	u64 sample = hash_sample(page, domain->id);

	if (sample == domain->zero_sample && ksmdev_page_is_zero(page))
		return domain->zero;
	return sample_is_marked(domain, sample) ? hash_page(page, domain->id) : sample;
}

/**
 * sample_of_marked() - what else a page may be found by
 * @domain: the domain that it is of
 * @page: the page; the caller holds a reference
 * @sample: set, if its sample is marked, to what pages that equal it are found by if they were
 *	looked at before that; else left alone
 *
 * Context: Any.
 * Return: true if it is marked.
 */
bool sample_of_marked(const struct domain *domain, struct page *page, u64 *sample)
{
	u64 hash;

	if (!READ_ONCE(domain->has_marks))
		return false;
	hash = hash_sample(page, domain->id);
	if (!sample_is_marked(domain, hash))
		return false;
	*sample = hash;
	return true;
}

static bool add_marks(unsigned long **marks, struct mm_struct *mm)
{
	struct charge charge;
	unsigned long *new;

	charge_begin(&charge, mm);
	new = (unsigned long *)get_zeroed_page(GFP_SCAN);
	charge_end(&charge);
	if (!new)
		return false;
	if (cmpxchg(marks, NULL, new))
		free_page((unsigned long)new);
	else
		atomic_long_inc(&nr_pages);
	return true;
}

/**
 * sample_mark() - a page has its fingerprint in common with one that it does not equal: mark its
 * sample, if it is found by that
 * @domain: the domain that both are of
 * @mm: who pays for the mark; its users are held
 * @page: the page; the caller holds a reference
 * @fingerprint: what it is found by
 *
 * Where there is no memory nothing is noted, and the next such page comes to the same.
 *
 * Context: Process.
 */
void sample_mark(struct domain *domain, struct mm_struct *mm, struct page *page, u64 fingerprint)
{
	u64 sample = hash_sample(page, domain->id);
	unsigned long **marks = &domain->marks[marks_page(sample)];

	if (sample != fingerprint || !(READ_ONCE(*marks) || add_marks(marks, mm)))
		return;
	/* Before somebody goes by all that a page holds and does not ask for its sample. */
	WRITE_ONCE(domain->has_marks, true);
	set_bit(sample % MARKS_OF_PAGE, *marks);
}

/**
 * samples_free() - forget a domain's marks
 * @domain: the domain, which nobody uses any more
 *
 * Context: Any.
 */
void samples_free(struct domain *domain)
{
	unsigned int i;

	for (i = 0; i < SAMPLE_MARK_PAGES; i++) {
		if (!domain->marks[i])
			continue;
		free_page((unsigned long)domain->marks[i]);
		atomic_long_dec(&nr_pages);
	}
}

/**
 * samples_bytes() - what all marks take
 *
 * Context: Any.
 * Return: bytes.
 */
unsigned long samples_bytes(void)
{
	return atomic_long_read(&nr_pages) * PAGE_SIZE;
}
