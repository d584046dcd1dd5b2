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

struct mem_cgroup;

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
 * struct ksmdev_look - one pte as ksmdev_look() saw it
 * @mapcount: how many ptes map the page, if it is a shared page; else 0
 * @kind: what it is, enum ksmdev_kind
 */
struct ksmdev_look {
	u32 mapcount;
	u8 kind;
};

/*
 * What is remembered of a pte from one ksmdev_gather() to the next, in 16 bits; 0:
 * nothing. Another tag means another page. CLEAN says that the pte was clean
 * before the page was given out to be read, so that a clean one now means the same
 * contents; RDONLY says that it was read-only as well. WANTED is the caller's: how
 * eager it is to have the page reported although it did not change.
 */
#define KSMDEV_SEEN_TAG		0x07ff
#define KSMDEV_SEEN_PRESENT	0x0800
#define KSMDEV_SEEN_CLEAN	0x1000
#define KSMDEV_SEEN_RDONLY	0x2000
#define KSMDEV_SEEN_WANTED	0xc000
#define KSMDEV_SEEN_WANTED_SHIFT 14

/**
 * struct ksmdev_found - a page that ksmdev_gather() reports
 * @page: the page, with a reference, if @kind is KSMDEV_ANON; else NULL
 * @nr: which page of the page table
 * @kind: what it is, enum ksmdev_kind
 * @unchanged: its contents are those of the last time
 * @written: it was written since; if neither, that cannot be told. Pages of a large folio may have
 *	one dirty bit for several, so of those it never can.
 * @watched: the next ksmdev_gather() can tell whether it was written from now on
 * @eligible: for the caller: may be merged now
 * @watch: to ksmdev_watch_writes(): make it read-only
 * @planned: for the caller: is about to be merged
 * @partner: for the caller: there is something it could be merged with
 * @held: for the caller: it could not be merged for no reason of its own
 * @owed: a shared page that @memcg of struct ksmdev_gather is to pay for
 * @trusted: for the caller: its fingerprint is enough to try a merge
 * @moved: for the caller: what it, or a candidate of it, is found by is another fingerprint now
 * @alike: for the caller: how many candidates with the same fingerprint may equal it
 */
struct ksmdev_found {
	struct page *page;
	u16 nr;
	u8 kind;
	bool unchanged : 1;
	bool written : 1;
	bool watched : 1;
	bool eligible : 1;
	bool watch : 1;
	bool planned : 1;
	bool partner : 1;
	bool held : 1;
	bool owed : 1;
	bool trusted : 1;
	bool moved : 1;
	u8 alike;
};

/**
 * struct ksmdev_mapping - one page to be replaced by another of equal content
 * @addr: where it is mapped
 * @page: the anonymous page, or the kernel's zero page; the caller holds a reference
 * @kpage: the shared page to map instead, the caller's reference becomes the
 *	mapping's on success; NULL for the kernel's zero page
 * @pte: the write-protected pte, from page_wrprotect() to replace_page()
 * @err: 0, or why this page is left alone
 * @locked: page_wrprotect() locked @page, replace_page() unlocks it
 * @written: page_wrprotect() took away the trace that a write had left since
 *	ksmdev_gather()
 * @here: for the caller
 * @slot: for the caller
 * @found: for the caller
 */
struct ksmdev_mapping {
	unsigned long addr;
	struct page *page;
	struct page *kpage;
	pte_t pte;
	int err;
	bool locked;
	bool written;
	bool here;
	u16 slot;
	u16 found;
};

/* A shared page: one that this module allocated. mm/kpage.c */

/* How many ptes may map one shared page; see mm/kpage.c for why. */
#define KSMDEV_MAX_SHARING 256

bool ksmdev_is_kpage(struct page *page);
bool ksmdev_kpage_alive(struct page *page, const void *owner);
struct page *ksmdev_kpage_alloc(struct page *from);
void ksmdev_kpage_set_owner(struct page *page, void *owner);
void *ksmdev_kpage_owner(struct page *page);
int ksmdev_kpage_get(struct page *page, const void *owner);
void ksmdev_kpage_forget(struct page *page);
void ksmdev_kpage_leave(struct page *page, const void *owner);
void ksmdev_kpage_next_round(void);
bool ksmdev_kpage_pins(unsigned long pfn, unsigned long nr);
int ksmdev_kpage_init(void);
void ksmdev_kpage_exit(void);

/**
 * ksmdev_kpage_mapcount() - how many ptes map a shared page
 * @page: the page
 *
 * Context: Any.
 * Return: how many, as of now.
 */
static inline unsigned int ksmdev_kpage_mapcount(struct page *page)
{
	return atomic_read(&page->_mapcount) + 1;
}

/* Races, in a build that is to be tested for them. mm/walk.c */
#ifdef KSMDEV_RACE_DELAY
void ksmdev_race_delay(void);
#else
static inline void ksmdev_race_delay(void)
{
}
#endif

/*
 * Words of a cache line: one branch for each is all that comparing pages takes. The
 * kernel's memcmp() compares word by word, or byte by byte where the architecture
 * does not say that unaligned words are cheap.
 */
#define KSMDEV_LINE_WORDS 8

/**
 * ksmdev_line_differs() - compare two cache lines
 * @p: one
 * @q: the other
 *
 * Context: Any.
 * Return: 0 if they are equal.
 */
static inline u64 ksmdev_line_differs(const u64 *p, const u64 *q)
{
	return (p[0] ^ q[0]) | (p[1] ^ q[1]) | (p[2] ^ q[2]) | (p[3] ^ q[3]) |
	       (p[4] ^ q[4]) | (p[5] ^ q[5]) | (p[6] ^ q[6]) | (p[7] ^ q[7]);
}

/* Content. mm/kpage.c */
bool ksmdev_page_is_zero(struct page *page);
void ksmdev_prefetch_page(struct page *page);
bool ksmdev_pages_identical(struct page *a, struct page *b);

/* Finding pages. mm/walk.c */
bool ksmdev_mergeable(struct vm_area_struct *vma);
bool ksmdev_zero_page_allowed(struct vm_area_struct *vma);
bool ksmdev_table_present(struct vm_area_struct *vma, unsigned long addr, unsigned long *next);
void ksmdev_look(struct vm_area_struct *vma, unsigned long start,
		 unsigned long end, struct ksmdev_look *look);
enum ksmdev_kind ksmdev_look_at(struct vm_area_struct *vma, unsigned long addr);
unsigned int ksmdev_get_pages(struct mm_struct *mm, struct ksmdev_mapping *map,
			      unsigned int nr);
int ksmdev_split(struct page *page);

/* References that per-CPU batches hold. mm/drain.c */
void ksmdev_drain_local(void);
bool ksmdev_drain_due(void);
void ksmdev_drain_start(void);
void ksmdev_drain_lru(bool often);
void ksmdev_drain_exit(void);

/* Which pages changed since they were seen last. mm/watch.c */

/**
 * struct ksmdev_gather - which pages ksmdev_gather() reports
 * @seen: what is remembered of each page in the window; kept up to date
 * @first: the first page of the page table that is in the window
 * @count: how many are; 0: nothing can be remembered yet
 * @fixed: the window stays as it is; report what is in it, whatever is outside
 * @low: unless @fixed, set to the first page that is present outside of the window
 * @high: and to the last one; less than @low if there is none
 * @again: a page to report whether or not it changed; -1 for none
 * @eager: report pages that are wanted at least as much; not 0
 * @shared: report all shared pages
 * @memcg: of the process, with a reference; NULL: who pays for shared pages is no matter now
 * @whole: all of the page table is the caller's: a huge page's one dirty bit may
 *	be cleared
 * @skipped: increased by the number of pages that were not reported
 */
struct ksmdev_gather {
	u16 *seen;
	unsigned int first;
	unsigned int count;
	bool fixed;
	unsigned int low;
	unsigned int high;
	int again;
	unsigned int eager;
	bool shared;
	struct mem_cgroup *memcg;
	bool whole;
	unsigned int skipped;
};

unsigned int ksmdev_gather(struct vm_area_struct *vma, unsigned long start,
			   unsigned long end, struct ksmdev_gather *how,
			   struct ksmdev_found *found);
void ksmdev_watch_writes(struct vm_area_struct *vma, unsigned long base,
			 struct ksmdev_found *found, unsigned int nr);

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

/* mm/charge.c */
int ksmdev_make_room(struct mem_cgroup *memcg);

/* Pages that are nobody else's. mm/adopt.c */
bool ksmdev_is_stray(struct page *page);
int ksmdev_adopt(struct vm_area_struct *vma, unsigned long addr, struct page *held,
		 struct mem_cgroup *to, struct mem_cgroup **from);

/* Who pays for pages that several share. mm/payer.c */
int ksmdev_payer_change(struct vm_area_struct *vma, unsigned long addr, struct mem_cgroup *to,
			struct mem_cgroup **from);

/* mm/symbols.c */
int ksmdev_mm_init(void);

#endif /* KSMDEV_MM_H */
