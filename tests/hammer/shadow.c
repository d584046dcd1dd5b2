// SPDX-License-Identifier: GPL-2.0-only
/*
 * shadow.c - what each page must hold
 *
 * A page holds a function of its fill, a number, but for one word that may differ. So a few
 * bytes in shared memory, which is never registered, say what 4096 must be; and two pages
 * with the same fill are twins, or nearly.
 */
#include <sys/mman.h>

#include "hammer.h"

uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

uint64_t rnd64(struct thread *t)
{
	t->rng += 0x9e3779b97f4a7c15ULL;
	return mix(t->rng);
}

unsigned int rnd(struct thread *t, unsigned int below)
{
	return (rnd64(t) >> 32) % below;
}

uint64_t fill_word(uint32_t fill, unsigned int i)
{
	uint64_t v;

	if (!fill)
		return 0;
	v = ((uint64_t)fill << 20 | i) * 0x9e3779b97f4a7c15ULL;
	return v ^ (v >> 29);
}

uint64_t want_word(const struct shadow *s, unsigned int i)
{
	return fill_word(s->fill, i) ^ (i == s->pos ? s->delta : 0);
}

char *page_addr(struct thread *t, unsigned int page)
{
	return t->mem + (size_t)page * PAGE_BYTES;
}

bool readable(const struct shadow *s)
{
	return s->mapped && (s->prot & PROT_READ);
}

bool writable(const struct shadow *s)
{
	return s->mapped && (s->prot & PROT_WRITE);
}

void verify_page(struct thread *t, unsigned int page)
{
	const volatile uint64_t *p = (void *)page_addr(t, page);
	const struct shadow *s = &t->shadow[page];
	unsigned int i;

	for (i = 0; i < WORDS; i++)
		if (p[i] != want_word(s, i))
			mismatch(t, page, i);
	t->account->verified++;
}

void verify_all(struct thread *t)
{
	unsigned int page;
	bool was_none;

	for (page = 0; page < THREAD_PAGES; page++) {
		struct shadow *s = &t->shadow[page];

		if (!s->mapped)
			continue;
		was_none = !readable(s);
		/* What a PROT_NONE page holds is of interest too. */
		if (was_none && mprotect(page_addr(t, page), PAGE_BYTES, PROT_READ))
			bad_call(t, "mprotect to verify");
		verify_page(t, page);
		if (was_none && mprotect(page_addr(t, page), PAGE_BYTES, PROT_NONE))
			bad_call(t, "mprotect back");
	}
}

void set_mapped(struct thread *t, unsigned int page, unsigned int n)
{
	for (; n; n--, page++)
		t->shadow[page] = (struct shadow) {
			.mapped = 1,
			.prot = PROT_READ | PROT_WRITE,
		};
}

void set_unmapped(struct thread *t, unsigned int page, unsigned int n)
{
	for (; n; n--, page++) {
		t->shadow[page].mapped = 0;
		t->shadow[page].prot = 0;
	}
}

void set_zero(struct thread *t, unsigned int page, unsigned int n)
{
	for (; n; n--, page++) {
		t->shadow[page].fill = 0;
		t->shadow[page].delta = 0;
	}
}

bool all_mapped(struct thread *t, unsigned int page, unsigned int n)
{
	for (; n; n--, page++)
		if (!t->shadow[page].mapped)
			return false;
	return true;
}

bool all_writable(struct thread *t, unsigned int page, unsigned int n)
{
	for (; n; n--, page++)
		if (!writable(&t->shadow[page]))
			return false;
	return true;
}

bool is_held(struct thread *t, unsigned int page, unsigned int n)
{
	return t->hold != HOLD_NONE && page < t->hold_page + t->hold_pages &&
	       t->hold_page < page + n;
}

static uint32_t draw_fill(struct thread *t)
{
	unsigned int r = rnd(t, 100);

	if (r < 20)
		return 0;
	if (r < 88)
		return 1 + rnd(t, SHARED_FILLS);
	/* A fill of one's own: no twin, must stay what it is. */
	return 1000 + (rnd64(t) >> 32) % 100000000;
}

/* Few places and few values, so that near twins find twins of their own. */
uint16_t draw_pos(struct thread *t)
{
	static const uint16_t pos[] = { 0, 1, 7, 8, 63, 255, 256, 510, 511 };

	if (!rnd(t, 8))
		return rnd(t, WORDS);
	return pos[rnd(t, sizeof(pos) / sizeof(pos[0]))];
}

uint64_t draw_delta(struct thread *t)
{
	static const uint64_t delta[] = { 0, 1, 0x80, 1ULL << 63, 0x100000000ULL };

	return delta[rnd(t, sizeof(delta) / sizeof(delta[0]))];
}

void make_page(uint64_t *to, const struct shadow *s)
{
	unsigned int i;

	for (i = 0; i < WORDS; i++)
		to[i] = want_word(s, i);
}

void draw_page(struct thread *t, struct shadow *s)
{
	s->fill = draw_fill(t);
	s->pos = draw_pos(t);
	s->delta = rnd(t, 4) ? 0 : draw_delta(t);
}

void draw_range(struct thread *t, unsigned int *page, unsigned int *n,
		       unsigned int max)
{
	const unsigned int eighth = THREAD_PAGES / 8;

	*n = 1 + rnd(t, rnd(t, 3) ? 4 : max);
	if (rnd(t, 5))
		*page = t->hot * eighth + rnd(t, eighth);
	else
		*page = rnd(t, THREAD_PAGES);
	if (*page + *n > THREAD_PAGES)
		*n = THREAD_PAGES - *page;
	/* Pages that a pin holds are left alone until it is over. */
	if (is_held(t, *page, *n))
		*n = 0;
}
