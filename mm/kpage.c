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
 *	it knows whose it is: the entry of our index that stands for it; and when who pays for
 *	it was last seen to map it: payer.c.
 *
 * Nobody but its mappings holds a reference, and whoever is about to map it once more. So
 * when its last mapping goes, by whatever way, the kernel frees it then and there, and takes
 * the charge from whose it was; the index finds out later, which is why a page that the index
 * names is only one when ksmdev_kpage_get() says so. And the last process that maps
 * it may write to it: the kernel sees that it has the page for itself, and gives it the
 * page, as after a fork. That is decided with the page locked, by the count of references:
 * who has looked with the page locked and holds a reference keeps it shared.
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
#include <linux/memory_hotplug.h>
#include <linux/prefetch.h>
#include <linux/rmap.h>
#include <linux/slab.h>

#include "internal.h"

/*
 * Our view of the struct page of a shared page: what reverse mapping calls its index is ours, and
 * so is what would be its place in swap.
 */
struct kpage {
	unsigned long flags;
	struct list_head lru;
	void *mapping;
	void *owner;
	unsigned long round;
};

#define KPAGE_MATCH(type, page_field, field)				\
	static_assert(offsetof(type, page_field) == offsetof(struct kpage, field))
KPAGE_MATCH(struct page, flags, flags);
KPAGE_MATCH(struct page, lru, lru);
KPAGE_MATCH(struct page, mapping, mapping);
KPAGE_MATCH(struct folio, index, owner);
KPAGE_MATCH(struct folio, private, round);

static_assert((u64)KSMDEV_MAX_SHARING * PID_MAX_LIMIT <= INT_MAX / 2 + 1);

/* One part of so many is left free of a zone that the kernel cannot do without. */
#define KERNEL_PART 16

/* Of all shared pages of this load. */
static struct anon_vma *kpage_anon_vma __read_mostly;
/* A page lives on that the index does not know any more. */
static bool left_behind;

static struct kpage *kpage(struct page *page)
{
	return (struct kpage *)page;
}

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

/*
 * A shared page cannot be moved, so it does not come from the zone for pages that can. Where
 * the page that it stands for did, merging takes from what is left for the kernel itself.
 */
static bool takes_too_much(struct page *page, struct page *from)
{
	struct zone *zone = page_zone(page);

	return page_zonenum(from) == ZONE_MOVABLE &&
	       zone_page_state(zone, NR_FREE_PAGES) <
			high_wmark_pages(zone) + zone_managed_pages(zone) / KERNEL_PART;
}

/* Which round of visits to all that is registered goes on: see payer.c. */
static unsigned long round;

/**
 * ksmdev_kpage_next_round() - all that is registered was visited, and shared pages were looked at
 *
 * Context: Any; one caller at a time.
 */
void ksmdev_kpage_next_round(void)
{
	WRITE_ONCE(round, round + 1);
}

/**
 * ksmdev_kpage_payer_seen() - note that who pays for a shared page maps it in this round, or soon
 * @page: the page, mapped under its page table's lock, or referenced
 *
 * Context: Any.
 */
void ksmdev_kpage_payer_seen(struct page *page)
{
	WRITE_ONCE(kpage(page)->round, READ_ONCE(round));
}

/**
 * ksmdev_kpage_payer_unseen() - how long ago was that
 * @page: as above
 *
 * Context: Any.
 * Return: how many rounds have begun since.
 */
unsigned long ksmdev_kpage_payer_unseen(struct page *page)
{
	return READ_ONCE(round) - READ_ONCE(kpage(page)->round);
}

/**
 * ksmdev_kpage_alloc() - allocate a shared page and copy a page's contents to it
 * @from: the page to copy; it may change while it is copied
 *
 * The active memory cgroup pays. Takes what is there: nothing is reclaimed, and nobody waited
 * for, killed or made to wait for the limit of a cgroup that is not his. The memory is of the
 * node that @from is of, which whoever allocated that has chosen, and not of that of the scan.
 *
 * Context: Any.
 * Return: the page with one reference, or NULL if there is no memory or the cgroup has no
 * room.
 */
struct page *ksmdev_kpage_alloc(struct page *from)
{
	struct page *page = alloc_pages_node(page_to_nid(from), GFP_NOWAIT | __GFP_HIGHMEM |
					     __GFP_THISNODE | __GFP_NOWARN, 0);

	if (!page)
		return NULL;
	if (takes_too_much(page, from) || ksmdev_charge(page_folio(page), GFP_NOWAIT)) {
		put_page(page);
		return NULL;
	}
	copy_bytes(page, from);
	__SetPageUptodate(page);
	__folio_set_swapbacked(page_folio(page));
	/* As what it stands for, which no pte says here: smaps tells of it. */
	folio_set_dirty(page_folio(page));
	INIT_LIST_HEAD(&kpage(page)->lru);
	kpage(page)->owner = NULL;
	ksmdev_kpage_payer_seen(page);
	WRITE_ONCE(kpage(page)->mapping, kpage_mapping());
	return page;
}

/**
 * ksmdev_kpage_set_owner() - say whose a shared page is
 * @page: the page; the caller holds a reference
 * @owner: what ksmdev_kpage_get() is to be asked with
 *
 * Context: Any.
 */
void ksmdev_kpage_set_owner(struct page *page, void *owner)
{
	WRITE_ONCE(kpage(page)->owner, owner);
}

/**
 * ksmdev_kpage_owner() - whose is a shared page
 * @page: the page; the caller holds a reference from ksmdev_kpage_get()
 *
 * Context: Any.
 * Return: what ksmdev_kpage_set_owner() was told.
 */
void *ksmdev_kpage_owner(struct page *page)
{
	return READ_ONCE(kpage(page)->owner);
}

/**
 * ksmdev_kpage_alive() - is this a certain shared page yet
 * @page: what once was the page, whatever it is now; there is a struct page of it
 * @owner: whose the shared page was
 *
 * Context: Any.
 * Return: false if the page was freed, or one process has it for itself, for good; true is
 * out of date at once.
 */
bool ksmdev_kpage_alive(struct page *page, const void *owner)
{
	return ksmdev_is_kpage(page) && ksmdev_kpage_owner(page) == owner &&
	       page_ref_count(page);
}

/* The lock is held for a few instructions. Who waits has a spinlock. */
#define LOCK_SPINS 100

/**
 * ksmdev_kpage_get() - take a reference to a shared page, so that it may be mapped
 * @page: as for ksmdev_kpage_alive()
 * @owner: the same
 *
 * Context: Any.
 * Return: 0: it is one, and stays one for as long as the reference is held; -ENOENT if it is
 * one no more, for good; -EBUSY if that cannot be told now.
 */
int ksmdev_kpage_get(struct page *page, const void *owner)
{
	unsigned int spins = LOCK_SPINS;
	int err = 0;

	if (!ksmdev_kpage_alive(page, owner) || !get_page_unless_zero(page))
		return -ENOENT;
	/*
	 * It may have been freed just before that, and be somebody's new page, the flags of which
	 * he takes for his alone.
	 */
	if (!ksmdev_kpage_alive(page, owner)) {
		put_page(page);
		return -ENOENT;
	}
	/* Whoever finds with the page locked that he has the only reference may write to it. */
	while (!trylock_page(page)) {
		if (!spins--) {
			put_page(page);
			return -EBUSY;
		}
		cpu_relax();
	}
	if (!ksmdev_kpage_alive(page, owner))
		err = -ENOENT;
	unlock_page(page);
	if (err)
		put_page(page);
	return err;
}

/**
 * ksmdev_kpage_forget() - the index is about to forget a shared page that lives on
 * @page: the page, which is nobody's from then on
 *
 * Context: Any.
 */
void ksmdev_kpage_forget(struct page *page)
{
	ksmdev_kpage_set_owner(page, NULL);
	WRITE_ONCE(left_behind, true);
}

/**
 * ksmdev_kpage_leave() - the module goes: a shared page may live on
 * @page: as for ksmdev_kpage_alive()
 * @owner: the same
 *
 * The last process that maps it may exit just now.
 *
 * Context: Any.
 */
void ksmdev_kpage_leave(struct page *page, const void *owner)
{
	int err = ksmdev_kpage_get(page, owner);

	/*
	 * It keeps the name of its owner, who is gone: by that the next load knows it for one that
	 * is on no list, see adopt.c.
	 */
	if (!err)
		put_page(page);
	if (err != -ENOENT)
		WRITE_ONCE(left_behind, true);
}

/**
 * ksmdev_kpage_pins() - is there a shared page with a memory error in a range
 * @pfn: of the first page
 * @nr: how many
 *
 * The kernel could not unmap it, and it is not moved either: its memory is in use.
 *
 * Context: Process.
 * Return: true if there is one.
 */
bool ksmdev_kpage_pins(unsigned long pfn, unsigned long nr)
{
	for (; nr; pfn++, nr--) {
		struct page *page = pfn_to_online_page(pfn);

		if (page && PageHWPoison(page) && ksmdev_is_kpage(page) && page_ref_count(page))
			return true;
		if (!(pfn % MAX_ORDER_NR_PAGES))
			cond_resched();
	}
	return false;
}

static u64 line_or(const u64 *p)
{
	return p[0] | p[1] | p[2] | p[3] | p[4] | p[5] | p[6] | p[7];
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

	for (i = 0; i < PAGE_SIZE / sizeof(u64); i += KSMDEV_LINE_WORDS)
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

	for (i = 0; i < PAGE_SIZE / sizeof(u64); i += KSMDEV_LINE_WORDS)
		if (ksmdev_line_differs(data_a + i, data_b + i))
			break;
	kunmap_local(data_b);
	kunmap_local(data_a);
	return i == PAGE_SIZE / sizeof(u64);
}
