/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * shared.h - shared pages: those that candidates became
 *
 * They are found by domain and fingerprint, which proves nothing: only a comparison of
 * write-protected pages does. What they lie in is in entry.h.
 */
#ifndef KSMDEV_SHARED_H
#define KSMDEV_SHARED_H

#include "region.h"

/* engine/shared.c */
extern unsigned long ksmdev_max_kernel_pages;

struct page *shared_find(struct domain *domain, u64 fingerprint, u64 sample, struct page *like,
			 bool whole);
bool shared_known(struct domain *domain, u64 fingerprint);
struct page *shared_create(struct region *region, struct page *from);
void shared_lost_mapper(void);
bool shared_lost_mappers(void);
unsigned long shared_count(void);
unsigned long shared_table_bytes(void);

#endif /* KSMDEV_SHARED_H */
