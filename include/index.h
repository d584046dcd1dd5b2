/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * index.h - candidates: slots whose page was seen unchanged and has no twin yet
 *
 * They are found by domain and fingerprint, which proves nothing: only a comparison of
 * write-protected pages does. What becomes of them is in shared.h.
 */
#ifndef KSMDEV_INDEX_H
#define KSMDEV_INDEX_H

#include "hash.h"
#include "region.h"

/*
 * How many candidates of one fingerprint are tried before giving up, and how many contents of one
 * shared pages may have. Chance never comes to so many; a build with few bits does.
 */
#define INDEX_TRIES 32

/* engine/index.c */
int index_add_chunk(struct chunk *chunk, gfp_t gfp);
void index_remove_chunk(struct chunk *chunk);
struct chunk *index_chunk(u32 id);
unsigned long index_bytes(void);
void index_resize(unsigned long slots);
void index_move(struct chunk *chunk, struct slot *slots, unsigned int first);
void index_insert(struct chunk *chunk, unsigned int nr, u32 rest);
u32 index_rest(struct chunk *chunk, unsigned int nr);
void index_remove(struct chunk *chunk, unsigned int nr);
unsigned int index_find(struct chunk *chunk, unsigned int nr, bool insert,
			u32 found[INDEX_TRIES]);
unsigned int index_find_like(const struct domain *domain, u64 fingerprint,
			     u32 found[INDEX_TRIES]);

#endif /* KSMDEV_INDEX_H */
