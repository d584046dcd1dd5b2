// SPDX-License-Identifier: GPL-2.0-only
/*
 * pins.c - pages that the kernel holds while others work on them
 *
 * vmsplice() holds a plain reference, to read from; a buffer that is registered with io_uring is a
 * long-term pin, which is written through.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "hammer.h"

void ring_open(struct ring *r)
{
	memset(r, 0, sizeof(*r));
	r->fd = syscall(__NR_io_uring_setup, 4, &r->p);
	if (r->fd < 0)
		return;
	fcntl(r->fd, F_SETFD, FD_CLOEXEC);
	r->sq_len = r->p.sq_off.array + r->p.sq_entries * sizeof(uint32_t);
	if (r->sq_len < r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe))
		r->sq_len = r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe);
	r->sqes_len = r->p.sq_entries * sizeof(struct io_uring_sqe);
	r->sq = mmap(NULL, r->sq_len, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd,
		     IORING_OFF_SQ_RING);
	r->sqes = mmap(NULL, r->sqes_len, PROT_READ | PROT_WRITE, MAP_SHARED,
		       r->fd, IORING_OFF_SQES);
	if (r->sq == MAP_FAILED || r->sqes == MAP_FAILED ||
	    !(r->p.features & IORING_FEAT_SINGLE_MMAP)) {
		close(r->fd);
		r->fd = -1;
	}
}

/* Reads from @fd into the registered buffer; returns the kernel's result. */
static int ring_read_fixed(struct ring *r, int fd, void *to, unsigned int len)
{
	_Atomic uint32_t *sq_tail = (void *)((char *)r->sq + r->p.sq_off.tail);
	uint32_t sq_mask = *(uint32_t *)((char *)r->sq + r->p.sq_off.ring_mask);
	uint32_t *array = (void *)((char *)r->sq + r->p.sq_off.array);
	_Atomic uint32_t *cq_head = (void *)((char *)r->sq + r->p.cq_off.head);
	uint32_t cq_mask = *(uint32_t *)((char *)r->sq + r->p.cq_off.ring_mask);
	struct io_uring_cqe *cqes = (void *)((char *)r->sq + r->p.cq_off.cqes);
	uint32_t tail = *sq_tail, slot = tail & sq_mask;
	struct io_uring_sqe *sqe = &r->sqes[slot];
	int res;

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_READ_FIXED;
	sqe->fd = fd;
	sqe->off = -1;
	sqe->addr = (uintptr_t)to;
	sqe->len = len;
	array[slot] = slot;
	*sq_tail = tail + 1;
	do {
		res = syscall(__NR_io_uring_enter, r->fd, 1, 1,
			      IORING_ENTER_GETEVENTS, NULL, 0);
	} while (res < 0 && errno == EINTR);
	if (res < 0)
		return -errno;
	res = cqes[*cq_head & cq_mask].res;
	(*cq_head)++;
	return res;
}

/*
 * Hands pages to the kernel and leaves them there over some other operations.
 * vmsplice holds a plain reference to read from; a registered io_uring buffer
 * is a long-term pin that will be written through. A page that was merged in
 * between either way shows in op_pin_end().
 */
void op_pin_start(struct thread *t, unsigned int page, unsigned int n)
{
	struct iovec iov;
	bool splice = rnd(t, 2);

	if (n > PIN_PAGES)
		n = PIN_PAGES;
	note(t, splice ? "vmsplice" : "io_uring pin", page, n);
	if (t->hold != HOLD_NONE || !all_writable(t, page, n))
		return;
	iov.iov_base = page_addr(t, page);
	iov.iov_len = n * PAGE_BYTES;
	if (splice) {
		if (vmsplice(t->pipe[1], &iov, 1, 0) != (ssize_t)iov.iov_len)
			bad_call(t, "vmsplice");
		t->hold = HOLD_SPLICE;
	} else {
		if (t->ring.fd < 0 || t->depth)
			return;
		if (syscall(__NR_io_uring_register, t->ring.fd,
			    IORING_REGISTER_BUFFERS, &iov, 1)) {
			if (errno == ENOMEM || errno == EAGAIN || errno == EINTR)
				return;
			bad_call(t, "io_uring register buffers");
		}
		t->hold = HOLD_URING;
	}
	t->hold_page = page;
	t->hold_pages = n;
	t->hold_ops = rnd(t, 60);
	if (splice)
		t->account->splices++;
	else
		t->account->pins++;
}

void op_pin_end(struct thread *t)
{
	static __thread uint64_t buf[PIN_PAGES * WORDS];
	unsigned int i, w, page = t->hold_page, n = t->hold_pages;
	size_t len = (size_t)n * PAGE_BYTES, got = 0;
	ssize_t r;
	int res;

	if (t->hold == HOLD_SPLICE) {
		note(t, "read the splice", page, n);
		while (got < len) {
			r = read(t->pipe[0], (char *)buf + got, len - got);
			if (r <= 0)
				bad_call(t, "read spliced pages");
			got += r;
		}
		for (i = 0; i < n; i++)
			for (w = 0; w < WORDS; w++)
				if (buf[i * WORDS + w] != want_word(&t->shadow[page + i], w)) {
					fprintf(stderr,
						"hammer: spliced page %u holds %016llx\n", page + i,
						(unsigned long long)buf[i * WORDS + w]);
					mismatch(t, page + i, w);
				}
	} else {
		note(t, "read through the pin", page, n);
		for (i = 0; i < n; i++)
			draw_page(t, &t->shadow[page + i]);
		for (i = 0; i < n; i++) {
			make_page(buf, &t->shadow[page + i]);
			if (write(t->pipe[1], buf, PAGE_BYTES) != PAGE_BYTES)
				bad_call(t, "write to the pipe");
			res = ring_read_fixed(&t->ring, t->pipe[0],
					      page_addr(t, page + i), PAGE_BYTES);
			if (res != PAGE_BYTES) {
				errno = res < 0 ? -res : 0;
				bad_call(t, "read into a registered buffer");
			}
		}
		if (syscall(__NR_io_uring_register, t->ring.fd,
			    IORING_UNREGISTER_BUFFERS, NULL, 0))
			bad_call(t, "io_uring unregister buffers");
	}
	t->hold = HOLD_NONE;
	for (i = 0; i < n; i++)
		verify_page(t, page + i);
}
