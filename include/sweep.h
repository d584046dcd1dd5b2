/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sweep.h - what going over all shared pages tells
 */
#ifndef KSMDEV_SWEEP_H
#define KSMDEV_SWEEP_H

#include "area.h"

/**
 * struct told - statistics, as of a moment ago
 * @regions: what is registered
 * @shared: shared pages that are mapped
 * @sharing: mappings of them beyond the first of each
 * @kernel_pages: shared pages
 * @metadata: bytes of everything
 * @age_ms: how long ago this was begun to be counted
 */
struct told {
	struct ksmdev_totals regions;
	unsigned long shared, sharing, kernel_pages, age_ms;
	long metadata;
};

/* engine/sweep.c */
bool sweep_room(void);
void sweep_tell(struct told *copy);
bool sweep_has_singles(void);
bool sweep_wants_looks(void);

#endif /* KSMDEV_SWEEP_H */
