/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * scan.h - one scanning context and what it does with one piece of memory
 *
 *	scan.c	which piece is next
 *	piece.c	gather what changed in it
 *	match.c	find each page a partner, elsewhere or in the same piece
 *	split.c	large folios that stand in the way
 *	look.c	read what changed, and decide what may be merged
 *	merge.c	verify, then share
 *	mmlock.c	the mmap locks that all of them want
 */
#ifndef KSMDEV_SCAN_H
#define KSMDEV_SCAN_H

#include <linux/timer.h>

#include "hold.h"
#include "index.h"
#include "mm.h"
#include "region.h"

/*
 * How many pages are merged under one notifier window: what a page fault or a
 * virtual processor may have to wait for. With more, the comparisons fall out of
 * the processor's cache, too.
 */
#define MERGE_BATCH 64

/* How many candidates may equal each other. One more that cannot be merged is of no use. */
#define ALIKE_MAX 4

/* How many candidates are looked up together; those of one page at least. */
#define WANTS_MAX (4 * MERGE_BATCH)
static_assert(WANTS_MAX >= 2 * INDEX_TRIES);

/* In the upper bits of a SLOT_SHARED slot: nobody else mapped the page last time. */
#define SHARED_SINGLE 1

/**
 * struct want - a candidate that may equal a page
 * @slot: its number
 * @found: the page, in the list of those that were found
 * @whole: what they have in common is a sample that tells too little: compare all of them first
 */
struct want {
	u32 slot;
	u16 found;
	bool whole;
};

/**
 * struct due - a shared page whose other mappings are gone, or whose payer is
 * @slot: where it is mapped
 * @paid: it is to be paid for; else nobody else maps it, and it becomes an ordinary page
 */
struct due {
	u16 slot;
	bool paid;
};

/**
 * struct ksmdev_scan - the workspace of one scanning context
 * @lock: one user at a time
 * @tour: which regions it goes over; NULL if it is told a range
 * @domain: whose tour that is; NULL: everybody's
 * @at_once: do not wait until a page was seen unchanged; wait for locks instead
 * @waiter: the thread that waits for mmap locks; NULL if none does
 * @interrupted: asked whether it may not, now
 * @alarm: ends such a wait
 * @wait_from: no more waits until then, in ns
 * @pass: the pass of the tour that it is in
 * @wants: it would have waited for a lock in this piece
 * @wanted: in how many of this pass
 * @refused: in one of them there was no time left for it
 * @wait_behind: behind so many of them it may wait
 * @waited: how long it has waited in this piece, in ns
 * @missed: how often in a row the mmap lock of @missed_mm was not to be had
 * @missed_mm: the process that it is at, or was
 * @merged: pages merged so far by the current call
 * @max_merges: when it returns
 * @start: of the range of @mm that @merged_there is about
 * @end: of that range
 * @mm: whose
 * @merged_there: pages merged in that range
 * @busy: pages that were left because somebody held them
 * @cut: a signal came while it waited for a lock, so a part of the range was left
 * @no_memory: pages were left because there is no memory to keep track of them
 * @fresh: pages were seen for the first time
 * @no_room: no shared page could be made for the piece
 * @eager: how eager the pass is; see look.c
 * @again: which page of each chunk is read anew in this pass; -1 for none
 * @shared: look at all shared pages in this pass
 * @zero_page: the kernel's zero page may be mapped in the piece being scanned
 * @found: the pages of the piece being scanned that are to be looked at
 * @nr_found: how many
 * @batch: those of them that are being matched
 * @map: those that are to be merged
 * @nr_maps: how many
 * @planned: how many merges the batch may come to
 * @want: candidates elsewhere that may equal some
 * @nr_wants: how many
 * @candidate: the candidates of one chunk
 * @pair: those that equal a page, and are to be merged with it
 * @due: slots of shared pages that the process is to have for itself, or to pay for
 * @nr_due: how many
 */
struct ksmdev_scan {
	struct mutex lock;
	struct tour *tour;
	struct domain *domain;
	bool at_once;
	struct task_struct *waiter;
	bool (*interrupted)(void);
	struct timer_list alarm;
	u64 wait_from;
	unsigned long pass;
	bool wants;
	unsigned int wanted;
	bool refused;
	unsigned int wait_behind;
	u64 waited;
	unsigned int missed;
	struct mm_struct *missed_mm;
	unsigned long merged;
	unsigned long max_merges;
	unsigned long start;
	unsigned long end;
	struct mm_struct *mm;
	unsigned long merged_there;
	unsigned long busy;
	bool cut;
	bool no_memory;
	bool fresh;
	bool no_room;
	unsigned int eager;
	int again;
	bool shared;
	bool zero_page;
	struct ksmdev_found found[CHUNK_SLOTS];
	unsigned int nr_found;
	u16 batch[MERGE_BATCH];
	struct ksmdev_mapping map[MERGE_BATCH];
	unsigned int nr_maps;
	unsigned int planned;
	struct want want[WANTS_MAX];
	unsigned int nr_wants;
	struct ksmdev_mapping candidate[WANTS_MAX];
	struct ksmdev_mapping pair[MERGE_BATCH];
	struct due due[CHUNK_SLOTS];
	unsigned int nr_due;
};

/* engine/mmlock.c */
void mmlock_wait(struct ksmdev_scan *scan, bool (*interrupted)(void));
void mmlock_piece(struct ksmdev_scan *scan, struct mm_struct *mm);
bool mmlock_get(struct ksmdev_scan *scan, struct mm_struct *mm, u64 *since);
bool mmlock_nap(struct ksmdev_scan *scan, unsigned int us);
void mmlock_put(struct mm_struct *mm, unsigned long addr, u64 since);

/* engine/merge.c */
/* Was a page not merged for want of a lock, or as a CPU's batch has it yet? It is not its fault. */
static inline bool merge_held(int err)
{
	return err == -ETIMEDOUT || err == -EAGAIN;
}

void merge_mappings(struct ksmdev_scan *scan, struct chunk *chunk,
		    struct ksmdev_mapping *map, unsigned int nr);
bool merge_split(struct ksmdev_scan *scan, struct chunk *chunk, struct page *page,
		 struct ksmdev_mapping *map, unsigned int nr);
void watch_writes(struct ksmdev_scan *scan, struct chunk *chunk, unsigned long start,
		  unsigned long end);

/* engine/look.c */
void look(struct ksmdev_scan *scan, struct chunk *chunk, unsigned int skipped);
unsigned int look_eager(unsigned long pass);
void look_settle(struct chunk *chunk, struct ksmdev_found *found);
void look_candidate_left(struct chunk *chunk, unsigned int nr);
void look_again(struct chunk *chunk, unsigned int nr);

/**
 * struct splitter - puts pages, and splits the large folios among them that pay
 * @scan: the scanning context
 * @chunk: the pages' chunk, locked
 * @kept: the last page of a large folio, with the only reference that is ours
 * @nr: its slot
 * @split: a folio was split
 */
struct splitter {
	struct ksmdev_scan *scan;
	struct chunk *chunk;
	struct page *kept;
	unsigned int nr;
	bool split;
};

/* engine/split.c */
void splitter_put(struct splitter *splitter, struct page *page, unsigned int nr);
bool splitter_end(struct splitter *splitter);
bool let_go(struct ksmdev_scan *scan, struct chunk *chunk);

extern unsigned int ksmdev_thp_split_threshold;
extern atomic_long_t ksmdev_thp_splits;

/* engine/match.c */
struct page *page_here(struct ksmdev_scan *scan, unsigned int nr);
void match(struct ksmdev_scan *scan, struct chunk *chunk);

/* engine/piece.c */
struct vm_area_struct *region_find_pages(struct region *region, unsigned long start,
					 unsigned long end, unsigned long *stop);
bool scan_range(struct ksmdev_scan *scan, struct region *region, unsigned long start,
		unsigned long end);

/* engine/scan.c */
void ksmdev_scan_wait(struct ksmdev_scan *scan);

#endif /* KSMDEV_SCAN_H */
