// SPDX-License-Identifier: GPL-2.0-only
/*
 * duplicates.c - how much guests hold more than once; see duplicates.h
 *
 * All of it is read and compared by a hash, and frames that two guests map count once. So this
 * is independent of both scanners, and of how much a guest happened to touch in its boot.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "duplicates.h"
#include "ksm_util.h"

struct page {
	uint64_t contents;
	uint64_t frame;
};

static int compare(const void *a, const void *b)
{
	const struct page *x = a, *y = b;

	if (x->contents != y->contents)
		return x->contents < y->contents ? -1 : 1;
	return (x->frame > y->frame) - (x->frame < y->frame);
}

static uint64_t hash(const uint64_t *words)
{
	uint64_t h = 0;

	for (size_t i = 0; i < PGSZ / sizeof(*words); i++) {
		h = (h ^ words[i]) * 0x9e3779b97f4a7c15;
		h ^= h >> 29;
	}
	return h;
}

/* Those that are there: to read others would bring them. */
static size_t read_guest(const struct guest *g, struct page *pages)
{
	uint64_t *frames = guest_frames(g);
	static uint64_t words[512];
	struct iovec here = { words, sizeof(words) }, there = { .iov_len = sizeof(words) };
	size_t n = 0;

	for (size_t i = 0; i < guest_pages(g); i++) {
		if (!frames[i])
			continue;
		there.iov_base = guest_page(g, i);
		if (process_vm_readv(g->pid, &here, 1, &there, 1, 0) != (ssize_t)PGSZ)
			ksm_die("cannot read guest %d: %s", g->id, strerror(errno));
		pages[n++] = (struct page){ hash(words), frames[i] };
	}
	free(frames);
	return n;
}

double duplicates(const struct guest *g, int count)
{
	size_t most = 0, n = 0, frames = 0, contents = 0;
	struct page *pages;

	for (int i = 0; i < count; i++)
		most += guest_pages(&g[i]);
	pages = calloc(most, sizeof(*pages));
	if (!pages)
		ksm_die("no memory: give the VM more");
	for (int i = 0; i < count; i++)
		n += read_guest(&g[i], pages + n);
	qsort(pages, n, sizeof(*pages), compare);
	for (size_t i = 0; i < n; i++) {
		bool first = !i || pages[i].contents != pages[i - 1].contents;

		contents += first;
		frames += first || pages[i].frame != pages[i - 1].frame;
	}
	free(pages);
	return (double)(frames - contents) * PGSZ / (1 << 20);
}
