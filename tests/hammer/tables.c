// SPDX-License-Identifier: GPL-2.0-only
/*
 * tables.c - operations on whole page tables
 *
 * A window is what one page table maps, and nothing else is near. So when it is unmapped,
 * its page table is freed, while scans may be on their way there; if both of a thread's
 * windows go at once, the tables above as well. And mremap() moves a whole page table by
 * one entry of the table above, with all that is merged in it.
 */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hammer.h"

/* One window, or all of them; @n is 0 if a pin is in the way. */
static void draw_windows(struct thread *t, unsigned int *page, unsigned int *n)
{
	unsigned int window = rnd(t, WINDOWS + 1);

	*page = window < WINDOWS ? window * WINDOW_PAGES : 0;
	*n = window < WINDOWS ? WINDOW_PAGES : THREAD_PAGES;
	if (is_held(t, *page, *n))
		*n = 0;
}

/* Bring memory back, with something in it; empty memory tests little. */
static void map_again(struct thread *t, unsigned int page, unsigned int n)
{
	op_mmap(t, page, n);
	if (rnd(t, 4))
		op_write(t, page + rnd(t, n / 2), n / 2);
}

void op_munmap_tables(struct thread *t, unsigned int page, unsigned int n)
{
	draw_windows(t, &page, &n);
	if (!n)
		return;
	op_munmap(t, page, n);
	/* Scans may come and find nothing, or somebody else's page table. */
	if (!rnd(t, 4))
		usleep(rnd(t, 3000));
	map_again(t, page, n);
}

void op_discard_tables(struct thread *t, unsigned int page, unsigned int n)
{
	draw_windows(t, &page, &n);
	if (!n)
		return;
	if (!all_mapped(t, page, n))
		map_again(t, page, n);
	op_dontneed(t, page, n);
	if (rnd(t, 2) && all_writable(t, page, n))
		op_write(t, page, n);
}

static char *move(struct thread *t, char *from, char *to)
{
	const unsigned long len = WINDOW_PAGES * PAGE_BYTES;

	if (mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to)
		return to;
	/* It may span several mappings; or there are too many. */
	if (errno != EFAULT && errno != EINVAL && errno != EAGAIN && errno != ENOMEM)
		bad_call(t, "mremap of a window");
	return NULL;
}

/* What a thread may do with a window while it is away: any of this. */
static void work_away(struct thread *t, unsigned int page)
{
	if (rnd(t, 2))
		op_verify(t, page, WINDOW_PAGES);
	if (rnd(t, 2))
		op_write(t, page + rnd(t, WINDOW_PAGES / 2), 1 + rnd(t, WINDOW_PAGES / 2));
	if (rnd(t, 2))
		usleep(rnd(t, 3000));
	if (rnd(t, 2))
		op_write_word(t, page + rnd(t, WINDOW_PAGES / 2), 1 + rnd(t, WINDOW_PAGES / 2));
}

void op_move_tables(struct thread *t, unsigned int page, unsigned int n)
{
	char *home = t->mem, *away;

	page -= page % WINDOW_PAGES;
	n = WINDOW_PAGES;
	note(t, "move a table away", page, n);
	if (is_held(t, page, n))
		return;
	away = (char *)(MEM_AWAY + t->nr * MEM_STEP) + page * PAGE_BYTES;
	if (!all_mapped(t, page, n) || !move(t, page_addr(t, page), away)) {
		/* What is one mapping can be moved. */
		map_again(t, page, n);
		op_pause(t, page, n);
		if (!move(t, page_addr(t, page), away))
			bad_call(t, "mremap of a fresh window");
	}
	t->mem = away - page * PAGE_BYTES;
	work_away(t, page);
	t->mem = home;
	note(t, "move a table back", page, n);
	if (move(t, away, page_addr(t, page))) {
		op_verify(t, page, n);
		t->account->moves++;
		return;
	}
	if (munmap(away, n * PAGE_BYTES))
		bad_call(t, "munmap of a window that was away");
	map_again(t, page, n);
}
