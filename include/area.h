/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * area.h - areas, and what all of them come to
 */
#ifndef KSMDEV_AREA_H
#define KSMDEV_AREA_H

#include "region.h"

/* engine/bury.c */
void region_bury(struct region *region);
void regions_bury_dead(void);
void regions_settle(void);

/**
 * struct ksmdev_totals - sums over all areas
 * @areas: open areas
 * @regions: regions whose process lives
 * @pages: their length in pages
 * @slots: pages by the state in which the last scan found them
 * @scanned: pages visited
 * @skipped: of these, not read
 * @hashed: of these, read
 * @metadata: bytes of areas, regions, chunks and slots
 */
struct ksmdev_totals {
	unsigned long areas, regions, pages;
	long slots[SLOT_STATES];
	long scanned, skipped, hashed, metadata;
};

/* engine/area.c */
struct region *area_next_region(struct ksmdev_area *area, struct region *region);
struct region *area_region_at(struct ksmdev_area *area, struct mm_struct *mm, unsigned long addr);
void area_bury_dead(struct ksmdev_area *area);
void regions_totals(struct ksmdev_totals *totals);

#endif /* KSMDEV_AREA_H */
