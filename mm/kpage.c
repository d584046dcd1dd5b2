// SPDX-License-Identifier: GPL-2.0-only
/*
 * kpage.c - the shared page itself
 *
 * A shared page is a page that this module allocates and maps in place of equal
 * anonymous pages, read-only, with the reverse mapping of a file page. To the
 * rest of the kernel it looks like a page-cache page whose file was truncated
 * while it was mapped: on no LRU list, page->mapping NULL, kept by its references
 * alone. Copy-on-write, fork and exit know how to deal with that. Reclaim,
 * migration and memory failure find mappers through page->mapping, so such a page
 * stays where it is; it is allocated unmovable for that reason.
 *
 * While the module is loaded its index holds one reference to each shared page.
 * When the module goes, pages that are still mapped live on by the references of
 * their mappings, and nothing in them leads back here: they are recognised by a
 * random cookie that each load of the module draws anew.
 *
 * One page is mapped by KSMDEV_MAX_SHARING ptes at the most when it is merged.
 * Each of them can be multiplied by fork, at most once a process, and there are
 * at most 2^22 processes (PID_MAX_LIMIT): 2^30, half of what the reference count,
 * an int, can hold.
 */
#include <linux/highmem.h>
#include <linux/prefetch.h>
#include <linux/random.h>

#include "../include/mm.h"

#define KPAGE_MATCH(page_field, field)					\
	static_assert(offsetof(struct page, page_field) ==		\
		      offsetof(struct ksmdev_kpage, field))
KPAGE_MATCH(flags, flags);
KPAGE_MATCH(compound_head, link);
KPAGE_MATCH(lru.prev, node);
KPAGE_MATCH(mapping, mapping);
KPAGE_MATCH(index, key);
KPAGE_MATCH(private, cookie);
static_assert(sizeof(struct ksmdev_kpage) <= offsetof(struct page, _mapcount));

static_assert((u64)KSMDEV_MAX_SHARING * PID_MAX_LIMIT <= INT_MAX / 2 + 1);

/* Drawn at load; never 0 once drawn. */
static unsigned long kpage_cookie __read_mostly;

static unsigned long draw_cookie(void)
{
	while (!kpage_cookie) {
		unsigned long cookie = get_random_long();

		cmpxchg(&kpage_cookie, 0, cookie);
	}
	return kpage_cookie;
}

/**
 * ksmdev_is_kpage() - is this a shared page of the loaded module
 * @page: a page that cannot go away: mapped under its page table's lock, or
 *	referenced
 *
 * Context: Any.
 * Return: true for pages from ksmdev_kpage_alloc() that were not forgotten.
 */
bool ksmdev_is_kpage(struct page *page)
{
	return !PageCompound(page) && !READ_ONCE(page->mapping) &&
	       kpage_cookie && page_private(page) == kpage_cookie;
}

/**
 * ksmdev_kpage_alloc() - allocate a shared page and copy a page's contents to it
 * @from: the page to copy; it may change while it is copied
 *
 * Context: May sleep for memory. Charged to the active memory cgroup.
 * Return: the page with one reference, or NULL if there is no memory or the
 * cgroup's limit is reached.
 */
struct ksmdev_kpage *ksmdev_kpage_alloc(struct page *from)
{
	struct ksmdev_kpage *kpage;
	struct page *page;

	page = alloc_page(GFP_HIGHUSER | __GFP_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN);
	if (!page)
		return NULL;

	copy_highpage(page, from);
	__SetPageUptodate(page);
	kpage = ksmdev_page_kpage(page);
	kpage->link.next = NULL;
	kpage->mapping = NULL;
	kpage->cookie = draw_cookie();
	return kpage;
}

/**
 * ksmdev_kpage_forget() - make a shared page unknown to this module
 * @kpage: the page
 *
 * Its mappings, if any, stay. The caller drops its reference afterwards.
 *
 * Context: Any.
 */
void ksmdev_kpage_forget(struct ksmdev_kpage *kpage)
{
	WRITE_ONCE(kpage->cookie, 0);
}

/*
 * Words of a cache line: one branch for each is all that the loops below take. The
 * kernel's memcmp() compares word by word, or byte by byte where the architecture
 * does not say that unaligned words are cheap.
 */
#define LINE_WORDS 8

static u64 line_or(const u64 *p)
{
	return p[0] | p[1] | p[2] | p[3] | p[4] | p[5] | p[6] | p[7];
}

static u64 line_differs(const u64 *p, const u64 *q)
{
	return (p[0] ^ q[0]) | (p[1] ^ q[1]) | (p[2] ^ q[2]) | (p[3] ^ q[3]) |
	       (p[4] ^ q[4]) | (p[5] ^ q[5]) | (p[6] ^ q[6]) | (p[7] ^ q[7]);
}

/**
 * ksmdev_page_is_zero() - are all bytes of a page zero
 * @page: a page the caller holds a reference to
 *
 * Context: Any.
 * Return: true if so; as of now only, unless the page is write-protected.
 */
bool ksmdev_page_is_zero(struct page *page)
{
	const u64 *data = kmap_local_page(page);
	unsigned int i;

	for (i = 0; i < PAGE_SIZE / sizeof(u64); i += LINE_WORDS)
		if (line_or(data + i))
			break;
	kunmap_local(data);
	return i == PAGE_SIZE / sizeof(u64);
}

/* The hardware fetches the rest by itself; more than this was measured to cost time. */
#define PREFETCH_BYTES 512

/**
 * ksmdev_prefetch_page() - have the start of a page fetched into the processor's cache
 * @page: a page that is about to be read
 *
 * The hardware does that by itself within a page, but does not know which is next.
 *
 * Context: Any.
 */
void ksmdev_prefetch_page(struct page *page)
{
	const char *data = page_address(page);
	unsigned int i;

	if (PageHighMem(page))
		return;
	for (i = 0; i < PREFETCH_BYTES; i += L1_CACHE_BYTES)
		prefetch(data + i);
}

/**
 * ksmdev_pages_identical() - compare two pages byte for byte
 * @a: a page the caller holds a reference to
 * @b: another
 *
 * Context: Any.
 * Return: true if equal; as of now only, unless both are write-protected.
 */
bool ksmdev_pages_identical(struct page *a, struct page *b)
{
	const u64 *data_a = kmap_local_page(a);
	const u64 *data_b = kmap_local_page(b);
	unsigned int i;

	for (i = 0; i < PAGE_SIZE / sizeof(u64); i += LINE_WORDS)
		if (line_differs(data_a + i, data_b + i))
			break;
	kunmap_local(data_b);
	kunmap_local(data_a);
	return i == PAGE_SIZE / sizeof(u64);
}
