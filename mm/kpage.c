// SPDX-License-Identifier: GPL-2.0-only
/*
 * kpage.c - the shared page itself
 *
 * A shared page is a page that this module allocates and maps in place of equal
 * anonymous pages, read-only. It is an anonymous page itself, so everything that the
 * kernel tells and assumes of private memory stays true: fork, copy-on-write, exit, what
 * /proc says, checkpoints, page_table_check. It differs in three ways:
 *
 *	its anon_vma is one of ours, in which no mapping is. Who looks for the page's
 *	mappings (reclaim, migration, memory failure) finds none, and leaves the page where
 *	it is. No field of a VMA ever leads to that anon_vma.
 *
 *	it is on no LRU list, so reclaim does not come to look; it is allocated
 *	unmovable.
 *
 *	our index holds a reference. So a page fault that asks if the process has the
 *	page for itself is told no, and copies it.
 *
 * It is never exclusive (PageAnonExclusive), so it cannot be pinned: who wants to pin it
 * gets a private copy first.
 *
 * When the module goes, pages that are still mapped live on by the references of their
 * mappings, as anonymous pages that several processes share; the next load may merge
 * them again. Only the anon_vma that they point to must stay: some hundred bytes for each
 * load that left pages behind.
 *
 * One page is mapped by KSMDEV_MAX_SHARING ptes at the most when it is merged.
 * Each of them can be multiplied by fork, at most once a process, and there are
 * at most 2^22 processes (PID_MAX_LIMIT): 2^30, half of what the reference count,
 * an int, can hold.
 */
#include <linux/highmem.h>
#include <linux/kmemleak.h>
#include <linux/prefetch.h>
#include <linux/rmap.h>
#include <linux/slab.h>

#include "../include/compat-mm.h"
#include "../include/mm.h"

#define KPAGE_MATCH(page_field, field)					\
	static_assert(offsetof(struct page, page_field) ==		\
		      offsetof(struct ksmdev_kpage, field))
KPAGE_MATCH(flags, flags);
KPAGE_MATCH(lru.next, link);
KPAGE_MATCH(lru.prev, node);
KPAGE_MATCH(mapping, mapping);
static_assert(offsetof(struct folio, index) == offsetof(struct ksmdev_kpage, key));
static_assert(sizeof(struct ksmdev_kpage) <= offsetof(struct page, private));

static_assert((u64)KSMDEV_MAX_SHARING * PID_MAX_LIMIT <= INT_MAX / 2 + 1);

/* Of all shared pages of this load. */
static struct anon_vma *kpage_anon_vma __read_mostly;
/* A page was forgotten that somebody still maps. */
static bool left_behind;

static void *kpage_mapping(void)
{
	return (void *)kpage_anon_vma + FOLIO_MAPPING_ANON;
}

/**
 * ksmdev_kpage_init() - make what all shared pages have in common
 *
 * Context: Module init.
 * Return: 0 or -ENOMEM.
 */
int ksmdev_kpage_init(void)
{
	struct anon_vma *anon_vma = kzalloc(sizeof(*anon_vma), GFP_KERNEL);

	if (!anon_vma)
		return -ENOMEM;
	init_rwsem(&anon_vma->rwsem);
	atomic_set(&anon_vma->refcount, 1);
	anon_vma->rb_root = RB_ROOT_CACHED;
	anon_vma->root = anon_vma;
	/* As that of a VMA which was never forked, but for the VMA. */
	anon_vma->parent = anon_vma;
	anon_vma->num_children = 1;
	kpage_anon_vma = anon_vma;
	return 0;
}

/**
 * ksmdev_kpage_exit() - no more shared pages are made
 *
 * What pages that live on point to stays for ever.
 *
 * Context: Module exit; all pages were forgotten. May sleep.
 */
void ksmdev_kpage_exit(void)
{
	/* Who walks the mappings of a page may hold a reference a little longer. */
	synchronize_rcu();
	if (left_behind || atomic_read(&kpage_anon_vma->refcount) != 1)
		kmemleak_ignore(kpage_anon_vma);
	else
		kfree(kpage_anon_vma);
}

/**
 * ksmdev_is_kpage() - is this a shared page of the loaded module
 * @page: a page that cannot go away: mapped under its page table's lock, or
 *	referenced
 *
 * Context: Any.
 * Return: true for pages from ksmdev_kpage_alloc().
 */
bool ksmdev_is_kpage(struct page *page)
{
	return READ_ONCE(page->mapping) == kpage_mapping() && !PageTail(page);
}

/*
 * The bytes alone: copy_highpage() would copy memory tags, if the page just got some, and all
 * who share the copy would have another's.
 */
static void copy_bytes(struct page *to, struct page *from)
{
	void *data_to = kmap_local_page(to);
	void *data_from = kmap_local_page(from);

	copy_page(data_to, data_from);
	kunmap_local(data_from);
	kunmap_local(data_to);
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

	copy_bytes(page, from);
	__SetPageUptodate(page);
	__folio_set_swapbacked(page_folio(page));
	kpage = ksmdev_page_kpage(page);
	kpage->link.next = NULL;
	kpage->mapping = kpage_mapping();
	return kpage;
}

/**
 * ksmdev_kpage_forget() - a shared page is about to leave the index
 * @kpage: the page
 *
 * Its mappings, if any, stay. The caller drops the index's reference afterwards.
 *
 * Context: Any.
 */
void ksmdev_kpage_forget(struct ksmdev_kpage *kpage)
{
	/* Mapped, or about to be. */
	if (page_ref_count(ksmdev_kpage_page(kpage)) > 1)
		WRITE_ONCE(left_behind, true);
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
