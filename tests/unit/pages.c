// SPDX-License-Identifier: GPL-2.0-only
/*
 * pages.c - what mm/ offers to the indexes: shared pages, which come and go; and fingerprints
 *
 * A page that is gone is used again soon, as another one: whoever still has its address must find
 * out. What is in a page is a number; the hash of its sample is the number's lowest bits, so that it
 * is known which contents collide.
 */
#include "unit.h"

#include "../../include/hash.h"
#include "../../include/mm.h"

#define FRAMES 4096

static struct page frames[FRAMES];

bool unit_busy;
long unit_pages;

static void read_page(const struct page *page)
{
	if (PageHWPoison(page))
		unit_die("a page with a memory error is read");
}

static u64 bits_of(u32 number)
{
	return number & ((1ULL << FINGERPRINT_BITS) - 1);
}

u64 hash_sample(struct page *page, u32 domain)
{
	(void)domain;
	read_page(page);
	return bits_of(page->content);
}

/* All of it says something else. */
u64 hash_page(struct page *page, u32 domain)
{
	(void)domain;
	read_page(page);
	return bits_of(page->content * 2654435761U >> 16);
}

/* Of a sample one bit is known that is not in its hash, and that is the first to be looked at. */
bool pages_resemble(struct page *a, struct page *b)
{
	return pages_alike(a, b);
}

bool pages_alike(struct page *a, struct page *b)
{
	read_page(a);
	read_page(b);
	return !((a->content ^ b->content) & ((2ULL << FINGERPRINT_BITS) - 1));
}

bool ksmdev_pages_identical(struct page *a, struct page *b)
{
	read_page(a);
	read_page(b);
	return a->content == b->content;
}

bool ksmdev_page_is_zero(struct page *page)
{
	read_page(page);
	return false;
}

bool ksmdev_kpage_alive(struct page *page, const void *owner)
{
	return page->kpage && page->owner == owner && page->refs;
}

struct page *ksmdev_kpage_alloc(struct page *from)
{
	unsigned int i = 0;

	if (unit_fail())
		return NULL;
	/* The first one, so that it is used again soon. */
	while (frames[i].refs)
		if (++i == FRAMES)
			unit_die("no frame is left");
	read_page(from);
	frames[i] = (struct page) {
		._mapcount = { -1 },
		.refs = 1,
		.kpage = true,
		.content = from->content,
	};
	unit_pages++;
	return &frames[i];
}

void put_page(struct page *page)
{
	if (page->refs < 1)
		unit_die("a page's reference too few");
	if (!--page->refs) {
		page->kpage = false;
		page->error.hwpoison = false;
		unit_pages--;
	}
}

void ksmdev_kpage_set_owner(struct page *page, void *owner)
{
	page->owner = owner;
}

void *ksmdev_kpage_owner(struct page *page)
{
	return page->owner;
}

int ksmdev_kpage_get(struct page *page, const void *owner)
{
	if (!ksmdev_kpage_alive(page, owner))
		return -ENOENT;
	if (unit_busy && !unit_below(8))
		return -EBUSY;
	page->refs++;
	return 0;
}

void ksmdev_kpage_forget(struct page *page)
{
	page->owner = NULL;
}

void ksmdev_kpage_leave(struct page *page, const void *owner)
{
	(void)page;
	(void)owner;
}

bool ksmdev_kpage_pins(unsigned long pfn, unsigned long nr)
{
	(void)pfn;
	(void)nr;
	return false;
}
