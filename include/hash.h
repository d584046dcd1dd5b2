/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * hash.h - fingerprints: so many bits of a page's hash
 */
#ifndef KSMDEV_HASH_H
#define KSMDEV_HASH_H

#include <linux/types.h>

struct page;

/* Unit tests take fewer, to have many collisions. */
#ifndef FINGERPRINT_BITS
#define FINGERPRINT_BITS 28
#endif

/* engine/hash.c */
u32 hash_page(struct page *page, u32 domain);

#endif /* KSMDEV_HASH_H */
