/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * mm.h - what the mm room offers to the engine
 *
 * mm/ does with page tables what this kernel does not lend to modules. It knows
 * nothing of regions, hashes or scanning.
 */
#ifndef KSMDEV_MM_H
#define KSMDEV_MM_H

#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pgtable.h>
#include <linux/rhashtable.h>

/**
 * enum ksmdev_kind - what a pte maps, as far as merging is concerned
 * @KSMDEV_NONE: nothing that can be merged
 * @KSMDEV_ANON: an ordinary anonymous page
 * @KSMDEV_SHARED: a shared page of ours that others map too
 * @KSMDEV_SINGLE: a shared page of ours that only this pte maps
 * @KSMDEV_ZERO: the kernel's zero page
 */
enum ksmdev_kind {
	KSMDEV_NONE,
	KSMDEV_ANON,
	KSMDEV_SHARED,
	KSMDEV_SINGLE,
	KSMDEV_ZERO,
};

/**
 * struct ksmdev_found - one pte as ksmdev_gather() saw it
 * @page: the page, with a reference, if @kind is KSMDEV_ANON, else NULL
 * @mapcount: how many ptes map it, if it is a shared page; else 0
 * @kind: what it is
 * @split: for the caller: this page is part of a large folio worth splitting
 * @planned: for the caller: this page is about to be merged
 */
struct ksmdev_found {
	struct page *page;
	u32 mapcount;
	u8 kind;
	bool split;
	bool planned;
};

/**
 * struct ksmdev_mapping - one page to be replaced by another of equal content
 * @addr: where it is mapped
 * @page: the anonymous page; the caller holds a reference
 * @kpage: the shared page to map instead, the caller's reference becomes the
 *	mapping's on success; NULL for the kernel's zero page
 * @pte: the write-protected pte, from page_wrprotect() to replace_page()
 * @err: 0, or why this page is left alone
 * @locked: page_wrprotect() locked @page, replace_page() unlocks it
 * @slot: for the caller
 */
struct ksmdev_mapping {
	unsigned long addr;
	struct page *page;
	struct page *kpage;
	pte_t pte;
	int err;
	bool locked;
	u16 slot;
};

/* A shared page: one that this module allocated. mm/kpage.c */

/* How many ptes may map one shared page; see mm/kpage.c for why. */
#define KSMDEV_MAX_SHARING 256

/*
 * Our view of the struct page of a shared page. Its words are free for the
 * owner of a page that is on no LRU list and in no page cache.
 */
struct ksmdev_kpage {
	unsigned long flags;
	/* Bit 0 must stay clear: it would make this a tail page. */
	unsigned long generation;
	struct rhash_head node;
	/* NULL: to the kernel this is a page whose file was truncated. */
	void *mapping;
	u64 hash;
	unsigned long cookie;
};

static inline struct ksmdev_kpage *ksmdev_page_kpage(struct page *page)
{
	return (struct ksmdev_kpage *)page;
}

static inline struct page *ksmdev_kpage_page(struct ksmdev_kpage *kpage)
{
	return (struct page *)kpage;
}

bool ksmdev_is_kpage(struct page *page);
struct ksmdev_kpage *ksmdev_kpage_alloc(struct page *from);
void ksmdev_kpage_forget(struct ksmdev_kpage *kpage);

static inline unsigned int ksmdev_kpage_mapcount(struct ksmdev_kpage *kpage)
{
	return atomic_read(&ksmdev_kpage_page(kpage)->_mapcount) + 1;
}

/* Content. mm/kpage.c */
bool ksmdev_page_is_zero(struct page *page);
bool ksmdev_pages_identical(struct page *a, struct page *b);

/* Finding pages. mm/walk.c */
bool ksmdev_mergeable(struct vm_area_struct *vma);
bool ksmdev_table_present(struct mm_struct *mm, unsigned long addr, unsigned long *next);
void ksmdev_gather(struct vm_area_struct *vma, unsigned long start,
		   unsigned long end, struct ksmdev_found *found);
int ksmdev_split(struct page *page);
void ksmdev_drain_lru(void);

/* The three changes to page tables. mm/wrprotect.c, mm/replace.c, mm/unshare.c */
void ksmdev_notify_start(struct mmu_notifier_range *range,
			 struct vm_area_struct *vma,
			 unsigned long start, unsigned long end);
void ksmdev_notify_end(struct mmu_notifier_range *range);
unsigned int page_wrprotect(struct vm_area_struct *vma,
			    struct ksmdev_mapping *map, unsigned int nr);
unsigned int replace_page(struct vm_area_struct *vma,
			  struct ksmdev_mapping *map, unsigned int nr);
int ksmdev_unshare(struct vm_area_struct *vma, unsigned long addr);

/* mm/symbols.c */
int ksmdev_mm_init(void);

#endif /* KSMDEV_MM_H */
