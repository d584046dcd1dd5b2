/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * scan.h - one scanning context and the two things it does
 */
#ifndef KSMDEV_SCAN_H
#define KSMDEV_SCAN_H

#include "index.h"
#include "mm.h"
#include "region.h"

/**
 * struct twin - a candidate that turned out to equal a page being scanned
 * @slot: its number
 * @kpage: the shared page for both, with a reference
 */
struct twin {
	u32 slot;
	struct page *kpage;
};

/**
 * struct ksmdev_scan - the workspace of one scanning context
 * @lock: one user at a time
 * @merged: pages merged so far by the current call
 * @max_merges: when it returns
 * @zero_hash: what a page of zeroes hashes to
 * @found: the pages of the piece being scanned
 * @nr_found: how many, absent ones included
 * @map: those that are to be merged
 * @nr_maps: how many
 * @twins: pages elsewhere that are to be merged with them
 * @nr_twins: how many
 * @twin_map: the twins of one chunk
 * @single: slots whose shared page nobody else maps
 * @nr_single: how many
 */
struct ksmdev_scan {
	struct mutex lock;
	unsigned long merged;
	unsigned long max_merges;
	u64 zero_hash;
	struct ksmdev_found found[CHUNK_SLOTS];
	unsigned int nr_found;
	struct ksmdev_mapping map[CHUNK_SLOTS];
	unsigned int nr_maps;
	struct twin twins[CHUNK_SLOTS];
	unsigned int nr_twins;
	struct ksmdev_mapping twin_map[CHUNK_SLOTS];
	u16 single[CHUNK_SLOTS];
	unsigned int nr_single;
};

/* engine/scan.c */
struct vm_area_struct *region_find_pages(struct region *region, unsigned long start,
					 unsigned long end, unsigned long *stop);
void ksmdev_scan_wait(struct ksmdev_scan *scan);

/* engine/merge.c */
unsigned int merge_mappings(struct chunk *chunk, struct ksmdev_mapping *map, unsigned int nr);
unsigned int merge_twins(struct ksmdev_scan *scan, struct chunk *locked);
bool merge_candidate(u32 number, struct page *like);

#endif /* KSMDEV_SCAN_H */
