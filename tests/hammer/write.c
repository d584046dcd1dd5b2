// SPDX-License-Identifier: GPL-2.0-only
/*
 * write.c - writers of all kinds, and readers
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "hammer.h"

void op_write(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "write", page, n);
	for (; n; n--, page++) {
		if (!writable(&t->shadow[page]))
			continue;
		draw_page(t, &t->shadow[page]);
		make_page((void *)page_addr(t, page), &t->shadow[page]);
	}
}

/* The two places are written one after the other: the scan may see both. */
void op_write_word(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "write word", page, n);
	for (; n; n--, page++) {
		struct shadow *s = &t->shadow[page];
		volatile uint64_t *p = (void *)page_addr(t, page);

		if (!writable(s))
			continue;
		p[s->pos] = fill_word(s->fill, s->pos);
		s->pos = draw_pos(t);
		s->delta = draw_delta(t);
		p[s->pos] = want_word(s, s->pos);
	}
}

/* Counts up in one word: a write lost to a late TLB flush shows at once. */
void op_count(struct thread *t, unsigned int page, unsigned int n)
{
	struct shadow *s = &t->shadow[page];
	volatile uint64_t *p = (void *)page_addr(t, page);
	unsigned int i, loops = 1 + rnd(t, 300);
	uint64_t base;

	(void)n;
	note(t, "count", page, loops);
	if (!writable(s))
		return;
	base = fill_word(s->fill, s->pos);
	for (i = 0; i < loops; i++) {
		if (p[s->pos] != (base ^ s->delta))
			mismatch(t, page, s->pos);
		s->delta++;
		p[s->pos] = base ^ s->delta;
	}
	s->delta = 0;
	p[s->pos] = base;
}

/* Writes as a debugger does: past the protection, and from outside. */
void op_write_remote(struct thread *t, unsigned int page, unsigned int n)
{
	uint64_t buf[WORDS];
	struct shadow s;
	ssize_t done;
	int fd;

	(void)n;
	note(t, "remote write", page, 1);
	s = t->shadow[page];
	if (!s.mapped)
		return;
	draw_page(t, &s);
	make_page(buf, &s);
	if (rnd(t, 2)) {
		struct iovec local = { buf, PAGE_BYTES };
		struct iovec remote = { page_addr(t, page), PAGE_BYTES };

		done = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
		if (done < 0 && errno == EFAULT && !writable(&s))
			return;
	} else {
		fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
		if (fd < 0)
			bad_call(t, "open /proc/self/mem");
		done = pwrite(fd, buf, PAGE_BYTES, (uintptr_t)page_addr(t, page));
		close(fd);
		/* Some kernels do not let a debugger past the protection. */
		if (done < 0 && errno == EIO && !writable(&s))
			return;
	}
	if (done < 0 && errno == ENOMEM)
		return;
	if (done != PAGE_BYTES)
		bad_call(t, "remote write");
	t->shadow[page] = s;
}

/* The kernel itself writes, through a pipe. */
void op_read_into(struct thread *t, unsigned int page, unsigned int n)
{
	uint64_t buf[WORDS];

	(void)n;
	note(t, "read() into", page, 1);
	if (!writable(&t->shadow[page]) || t->hold == HOLD_SPLICE)
		return;
	draw_page(t, &t->shadow[page]);
	make_page(buf, &t->shadow[page]);
	if (write(t->pipe[1], buf, PAGE_BYTES) != PAGE_BYTES ||
	    read(t->pipe[0], page_addr(t, page), PAGE_BYTES) != PAGE_BYTES)
		bad_call(t, "read through a pipe");
}

void op_verify(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "verify", page, n);
	for (; n; n--, page++)
		if (readable(&t->shadow[page]))
			verify_page(t, page);
}

void op_verify_all(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "verify all", page, n);
	if (!rnd(t, 8))
		verify_all(t);
}
