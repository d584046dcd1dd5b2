// SPDX-License-Identifier: GPL-2.0-only
/*
 * access_test.c - every way to read and write memory, around merged pages
 *
 * Whoever writes to a merged page (the program, a debugger, the kernel on behalf
 * of a system call, a device) must get a private copy, and nobody else may see
 * it. A page that a device or a pipe holds must not be merged, because what
 * arrives there would be lost. Swapped-out, swap-cached, locked and discarded
 * pages keep their contents.
 *
 * Needs the modules zram, loop and nbd in the VM: these tests do not skip.
 */
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/io_uring.h>
#include <linux/nbd.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "ksm_harness.h"

#define N 64

#ifndef MADV_PAGEOUT
#define MADV_COLD 20
#define MADV_PAGEOUT 21
#endif

static bool can_write(void *addr)
{
	int fds[2];
	bool ok;

	if (pipe(fds) || write(fds[1], "w", 1) != 1)
		ksm_die("pipe: %s", strerror(errno));
	ok = read(fds[0], addr, 1) == 1;
	close(fds[0]);
	close(fds[1]);
	return ok;
}

/* Two registered buffers of the same @n pages. */
static void make_twins(const struct ksm *k, int area, char **a, char **b, size_t n,
		       uint64_t seed)
{
	(void)k;
	*a = ksm_mmap(n);
	*b = ksm_mmap(n);
	ksm_fill(*a, n, seed);
	ksm_fill(*b, n, seed);
	if (ksm_register(area, *a, n) || ksm_register(area, *b, n))
		ksm_die("KSM_REGISTER_MEMORY_REGION of ordinary memory failed");
}

TEST_F(device, read_only_mapping)
{
	char *a, *b;
	uint64_t pfns[N];

	make_twins(&self->k, self->area, &a, &b, N, 1);
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_READ), 0);
	ksm_merge_all(&self->k);
	ksm_pfns(0, b, N, pfns);
	EXPECT_EQ(ksm_moved(0, a, N, pfns), 0);
	EXPECT_EQ(ksm_wrong(a, N, 1), 0);
	EXPECT_FALSE(can_write(a));

	/* Writable again, a write goes to a copy. */
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_READ | PROT_WRITE), 0);
	EXPECT_EQ(ksm_moved(0, a, N, pfns), 0);
	ksm_fill(a, N, 2);
	EXPECT_EQ(ksm_moved(0, a, N, pfns), N);
	EXPECT_EQ(ksm_wrong(a, N, 2), 0);
	EXPECT_EQ(ksm_wrong(b, N, 1), 0);
}

TEST_F(device, read_only_and_back_after_merge)
{
	char *a, *b;

	make_twins(&self->k, self->area, &a, &b, N, 3);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_READ), 0);
	EXPECT_FALSE(can_write(a));
	ksm_merge_all(&self->k);
	EXPECT_FALSE(can_write(a));
	EXPECT_EQ(ksm_wrong(a, N, 3), 0);
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_READ | PROT_WRITE), 0);
	ksm_fill(a, N, 4);
	EXPECT_EQ(ksm_wrong(a, N, 4), 0);
	EXPECT_EQ(ksm_wrong(b, N, 3), 0);
}

TEST_F(device, no_access_and_back)
{
	char *a, *b, *c;

	make_twins(&self->k, self->area, &a, &b, N, 5);
	c = ksm_mmap(N);
	ksm_fill(c, N, 5);
	ASSERT_EQ(ksm_register(self->area, c, N), 0);

	/* c before it was ever scanned, a and b after the merge. */
	ASSERT_EQ(mprotect(c, N * PGSZ, PROT_NONE), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_FALSE(ksm_can_read(c));
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_NONE), 0);
	ksm_merge_all(&self->k);
	for (int i = 0; i < N; i++) {
		EXPECT_FALSE(ksm_can_read(ksm_page(a, i)));
		EXPECT_FALSE(ksm_can_read(ksm_page(c, i)));
	}
	ASSERT_EQ(mprotect(a, N * PGSZ, PROT_READ | PROT_WRITE), 0);
	ASSERT_EQ(mprotect(c, N * PGSZ, PROT_READ | PROT_WRITE), 0);
	EXPECT_EQ(ksm_wrong(a, N, 5), 0);
	EXPECT_EQ(ksm_wrong(c, N, 5), 0);
	ksm_fill(a, N, 6);
	ksm_fill(c, N, 7);
	EXPECT_EQ(ksm_wrong(a, N, 6), 0);
	EXPECT_EQ(ksm_wrong(b, N, 5), 0);
	EXPECT_EQ(ksm_wrong(c, N, 7), 0);
}

/* ---- writes by another process ---- */

static long fn_mprotect(long addr, long npages, long prot, long unused)
{
	(void)unused;
	return mprotect((void *)addr, npages * PGSZ, prot);
}

static void attach(pid_t pid)
{
	int status;

	if (ptrace(PTRACE_ATTACH, pid, NULL, NULL) || waitpid(pid, &status, __WALL) != pid)
		ksm_die("PTRACE_ATTACH: %s; run the tests as root", strerror(errno));
}

static bool poke(pid_t pid, void *addr, long value)
{
	bool ok;

	attach(pid);
	ok = !ptrace(PTRACE_POKEDATA, pid, addr, value);
	ptrace(PTRACE_DETACH, pid, NULL, NULL);
	return ok;
}

static bool vm_write(pid_t pid, void *addr, long value)
{
	struct iovec local = { &value, sizeof(value) };
	struct iovec remote = { addr, sizeof(value) };

	return process_vm_writev(pid, &local, 1, &remote, 1, 0) == sizeof(value);
}

static bool mem_write(pid_t pid, void *addr, long value)
{
	char path[64];
	bool ok;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDWR);
	if (fd < 0)
		ksm_die("cannot open %s: %s; run the tests as root", path, strerror(errno));
	ok = pwrite(fd, &value, sizeof(value), (uintptr_t)addr) == sizeof(value);
	close(fd);
	return ok;
}

/* Where the memory is read-only, some kernels want a tracer (CONFIG_PROC_MEM_FORCE_PTRACE). */
static bool mem_write_traced(pid_t pid, void *addr, long value)
{
	bool ok;

	attach(pid);
	ok = mem_write(pid, addr, value);
	ptrace(PTRACE_DETACH, pid, NULL, NULL);
	return ok;
}

static long fn_peek(long addr, long unused, long unused2, long unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	return *(volatile long *)addr;
}

FIXTURE(remote_write)
{
	struct ksm k;
};

FIXTURE_VARIANT(remote_write)
{
	bool (*write)(pid_t pid, void *addr, long value);
	int prot;
	bool allowed;
};

FIXTURE_VARIANT_ADD(remote_write, ptrace) {
	.write = poke, .prot = PROT_READ | PROT_WRITE, .allowed = true,
};
FIXTURE_VARIANT_ADD(remote_write, ptrace_read_only) {
	.write = poke, .prot = PROT_READ, .allowed = true,
};
FIXTURE_VARIANT_ADD(remote_write, process_vm_writev) {
	.write = vm_write, .prot = PROT_READ | PROT_WRITE, .allowed = true,
};
FIXTURE_VARIANT_ADD(remote_write, process_vm_writev_read_only) {
	.write = vm_write, .prot = PROT_READ, .allowed = false,
};
FIXTURE_VARIANT_ADD(remote_write, proc_mem) {
	.write = mem_write, .prot = PROT_READ | PROT_WRITE, .allowed = true,
};
FIXTURE_VARIANT_ADD(remote_write, proc_mem_read_only) {
	.write = mem_write_traced, .prot = PROT_READ, .allowed = true,
};

FIXTURE_SETUP(remote_write)
{
	ksm_begin(&self->k);
}

FIXTURE_TEARDOWN(remote_write)
{
	ksm_finish(&self->k);
}

/* The target sees what was written, its twin does not, and it merges again. */
TEST_F(remote_write, into_merged_page)
{
	char *buf = ksm_mmap(N), *word = ksm_page(buf, 3) + 1024;
	struct ksm_child c[2];
	uint64_t pfns[N];
	long old;

	for (int i = 0; i < 2; i++) {
		ksm_spawn(&c[i]);
		ksm_call(&c[i], ksm_fn_fill, buf, N, 10);
		ksm_call(&c[i], ksm_fn_zero, ksm_page(buf, 9), 1, 0);
		ASSERT_GE(ksm_call(&c[i], ksm_fn_area_register, self->k.dev, buf, N), 0);
	}
	ASSERT_EQ(ksm_call(&c[0], fn_mprotect, buf, N, variant->prot), 0);
	ksm_merge_all(&self->k);
	ksm_pfns(c[1].pid, buf, N, pfns);
	ASSERT_EQ(ksm_moved(c[0].pid, buf, N, pfns), 0);
	old = ksm_call(&c[0], fn_peek, word, 0, 0);

	EXPECT_EQ(variant->write(c[0].pid, word, ~old), variant->allowed);
	EXPECT_EQ(ksm_call(&c[0], fn_peek, word, 0, 0), variant->allowed ? ~old : old);
	EXPECT_EQ(ksm_call(&c[1], fn_peek, word, 0, 0), old);
	EXPECT_EQ(ksm_moved(c[0].pid, buf, N, pfns), variant->allowed ? 1 : 0);
	EXPECT_EQ(ksm_moved(c[1].pid, buf, N, pfns), 0);

	/* The same with a page that became the zero page. */
	EXPECT_EQ(variant->write(c[0].pid, ksm_page(buf, 9) + 8, 5), variant->allowed);
	EXPECT_EQ(ksm_call(&c[0], fn_peek, ksm_page(buf, 9) + 8, 0, 0),
		  variant->allowed ? 5 : 0);
	EXPECT_EQ(ksm_call(&c[1], fn_peek, ksm_page(buf, 9) + 8, 0, 0), 0);

	if (variant->allowed) {
		EXPECT_TRUE(variant->write(c[0].pid, word, old));
		EXPECT_TRUE(variant->write(c[0].pid, ksm_page(buf, 9) + 8, 0));
	}
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(c[0].pid, buf, c[1].pid, buf, N), N);
	/* All pages but the zero page are right in both. */
	EXPECT_EQ(ksm_call(&c[0], ksm_fn_wrong, buf, N, 10), 1);
	EXPECT_EQ(ksm_call(&c[1], ksm_fn_wrong, buf, N, 10), 1);
	ksm_end(&c[0]);
	ksm_end(&c[1]);
}

/* ---- writes by the kernel for us ---- */

TEST_F(device, system_calls_write)
{
	char *a, *b, data[PGSZ];
	int fds[2], fd;

	make_twins(&self->k, self->area, &a, &b, N, 20);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);

	/* read(2) from a pipe into page 0, part of page 1 */
	ksm_fill_page(data, 21, 0);
	ASSERT_EQ(pipe(fds), 0);
	ASSERT_EQ(write(fds[1], data, PGSZ), PGSZ);
	ASSERT_EQ(read(fds[0], a, PGSZ), PGSZ);
	EXPECT_TRUE(ksm_page_is(a, 21, 0));
	ASSERT_EQ(write(fds[1], "hello", 5), 5);
	ASSERT_EQ(read(fds[0], ksm_page(a, 1) + 100, 5), 5);
	EXPECT_EQ(memcmp(ksm_page(a, 1) + 100, "hello", 5), 0);
	EXPECT_NE(memcmp(ksm_page(b, 1) + 100, "hello", 5), 0);

	/* pread(2) from a file across pages 2 and 3 */
	fd = open("/tmp/ksm_access_test", O_RDWR | O_CREAT | O_TRUNC, 0600);
	ASSERT_GE(fd, 0);
	unlink("/tmp/ksm_access_test");
	ASSERT_EQ(write(fd, data, PGSZ), PGSZ);
	ASSERT_EQ(pread(fd, ksm_page(a, 2) + PGSZ / 2, PGSZ, 0), PGSZ);
	EXPECT_EQ(memcmp(ksm_page(a, 2) + PGSZ / 2, data, PGSZ), 0);

	/* write(2) out of a merged page breaks nothing */
	ASSERT_EQ(pwrite(fd, ksm_page(a, 4), PGSZ, 0), PGSZ);
	ASSERT_EQ(pread(fd, data, PGSZ, 0), PGSZ);
	EXPECT_TRUE(ksm_page_is(data, 20, 4));

	EXPECT_EQ(ksm_wrong(a, N, 20), 4);
	EXPECT_EQ(ksm_wrong(b, N, 20), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N - 4);
	close(fds[0]);
	close(fds[1]);
	close(fd);
}

/* ---- writes in the midst of a merge ---- */

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000ULL + ts.tv_nsec / 1000;
}

static void *scan_once(void *arg)
{
	ksm_passes(arg, 1);
	return NULL;
}

struct toggler {
	volatile uint64_t *word[4];
	volatile int stop;
	unsigned long lost, done;
};

/* Change a word and change it back at once: nearly always the page is as it was. */
static void *toggle(void *arg)
{
	struct toggler *t = arg;

	while (!t->stop) {
		for (size_t i = 0; i < ARRAY_SIZE(t->word); i++) {
			uint64_t old = *t->word[i];

			*t->word[i] = ~old;
			t->lost += *t->word[i] != ~old;
			*t->word[i] = old;
			t->lost += *t->word[i] != old;
			t->done++;
			for (volatile int spin = 0; spin < 300; spin++)
				;
		}
	}
	return NULL;
}

/*
 * A write between the comparison and the replacement of a page must stop the
 * merge; it would be lost. Many pages are merged at a time, so that the moment is
 * long for the first of them.
 */
TEST_F(device, write_during_merge)
{
	enum { PAGES = 256, SECONDS = 8 };
	struct toggler t = { 0 };
	long long most = 0;
	pthread_t thread;
	uint64_t begin;
	char *a, *b;

	make_twins(&self->k, self->area, &a, &b, PAGES, 25);
	for (size_t i = 0; i < ARRAY_SIZE(t.word); i++)
		t.word[i] = (uint64_t *)ksm_page(a, i + 1) - 1;
	ASSERT_EQ(pthread_create(&thread, NULL, toggle, &t), 0);
	begin = now_us();
	while (now_us() - begin < SECONDS * 1000000ULL) {
		long long sharing;

		ksm_merge_all(&self->k);
		sharing = ksm_stat("pages_sharing");
		most = sharing > most ? sharing : most;
		ASSERT_EQ(ksm_unmerge(self->area), 0);
	}
	t.stop = 1;
	pthread_join(thread, NULL);
	EXPECT_EQ(t.lost, 0);
	EXPECT_GT(t.done, 100);
	EXPECT_GE(most, PAGES - (long long)ARRAY_SIZE(t.word));
	EXPECT_EQ(ksm_wrong(a, PAGES, 25), 0);
	EXPECT_EQ(ksm_wrong(b, PAGES, 25), 0);
}

/* ---- pages that somebody holds ---- */

/* Page 0 of @a is held: not merged, while its neighbours are. */
#define EXPECT_HELD(a, b, pfn) do { \
	ksm_passes(&self->k, 6); \
	EXPECT_EQ(ksm_pfn(0, a), (pfn)); \
	EXPECT_NE(ksm_pfn(0, b), (pfn)); \
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N - 1); \
} while (0)

TEST_F(device, vmsplice)
{
	char *a, *b, data[PGSZ];
	struct iovec iov;
	uint64_t pfn;
	int fds[2];

	make_twins(&self->k, self->area, &a, &b, N, 30);
	ASSERT_EQ(pipe(fds), 0);
	iov = (struct iovec){ a, PGSZ };
	ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), PGSZ);
	pfn = ksm_pfn(0, a);
	EXPECT_HELD(a, b, pfn);
	EXPECT_TRUE(ksm_page_is(a, 30, 0));

	/* The pipe holds the very page: what is written now is read there. */
	ksm_fill_page(a, 31, 0);
	EXPECT_EQ(ksm_pfn(0, a), pfn);
	ASSERT_EQ(read(fds[0], data, PGSZ), PGSZ);
	EXPECT_TRUE(ksm_page_is(data, 31, 0));

	/* Let go, it merges. */
	ksm_fill_page(a, 30, 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);

	/* A merged page in a pipe: the pipe keeps it when the owner writes. */
	ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), PGSZ);
	ksm_passes(&self->k, 2);
	ksm_fill_page(a, 32, 0);
	ksm_fill_page(b, 33, 0);
	ksm_passes(&self->k, 4);
	ASSERT_EQ(read(fds[0], data, PGSZ), PGSZ);
	EXPECT_TRUE(ksm_page_is(data, 30, 0));
	EXPECT_TRUE(ksm_page_is(a, 32, 0));
	EXPECT_TRUE(ksm_page_is(b, 33, 0));

	/* The pipe outlives the mapping, the region and the area. */
	ksm_fill_page(a, 30, 0);
	ksm_fill_page(b, 30, 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), PGSZ);
	munmap(a, N * PGSZ);
	munmap(b, N * PGSZ);
	ASSERT_EQ(ksm_remove(self->area), 0);
	ASSERT_EQ(read(fds[0], data, PGSZ), PGSZ);
	EXPECT_TRUE(ksm_page_is(data, 30, 0));
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	close(fds[0]);
	close(fds[1]);
}

/* A minimal ring: one submission at a time, no liburing in the VM. */
struct ring {
	int fd;
	struct io_uring_params params;
	char *sq, *cq;
	struct io_uring_sqe *sqes;
};

static void ring_open(struct ring *r)
{
	memset(r, 0, sizeof(*r));
	r->fd = syscall(SYS_io_uring_setup, 4, &r->params);
	if (r->fd < 0)
		ksm_die("io_uring_setup: %s; set kernel.io_uring_disabled=0", strerror(errno));
	r->sq = mmap(NULL, r->params.sq_off.array + r->params.sq_entries * sizeof(__u32),
		     PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQ_RING);
	r->cq = mmap(NULL, r->params.cq_off.cqes +
		     r->params.cq_entries * sizeof(struct io_uring_cqe),
		     PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_CQ_RING);
	r->sqes = mmap(NULL, r->params.sq_entries * sizeof(*r->sqes),
		       PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQES);
	if (r->sq == MAP_FAILED || r->cq == MAP_FAILED || r->sqes == MAP_FAILED)
		ksm_die("cannot map an io_uring: %s", strerror(errno));
}

static int ring_read_fixed(struct ring *r, int fd, void *addr, unsigned int len)
{
	__u32 *tail = (__u32 *)(r->sq + r->params.sq_off.tail);
	__u32 *array = (__u32 *)(r->sq + r->params.sq_off.array);
	__u32 mask = *(__u32 *)(r->sq + r->params.sq_off.ring_mask);
	__u32 *head = (__u32 *)(r->cq + r->params.cq_off.head);
	__u32 cq_mask = *(__u32 *)(r->cq + r->params.cq_off.ring_mask);
	struct io_uring_cqe *cqes = (void *)(r->cq + r->params.cq_off.cqes);
	__u32 index = *tail & mask;
	int res;

	r->sqes[index] = (struct io_uring_sqe){
		.opcode = IORING_OP_READ_FIXED,
		.fd = fd,
		.addr = (uintptr_t)addr,
		.len = len,
	};
	array[index] = index;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, r->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		ksm_die("io_uring_enter: %s", strerror(errno));
	res = cqes[*head & cq_mask].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return res;
}

/* Buffers registered with io_uring are pinned for as long as it likes. */
TEST_F(device, io_uring_fixed_buffer)
{
	char *a, *b, data[PGSZ];
	struct iovec iov;
	struct ring ring;
	uint64_t pfn;
	int fd;

	fd = open("/tmp/ksm_access_test", O_RDWR | O_CREAT | O_TRUNC, 0600);
	ASSERT_GE(fd, 0);
	unlink("/tmp/ksm_access_test");
	ksm_fill_page(data, 41, 0);
	ASSERT_EQ(write(fd, data, PGSZ), PGSZ);
	ring_open(&ring);

	/* Twice: pinned before any scan, and pinned when merged already. */
	make_twins(&self->k, self->area, &a, &b, N, 40);
	for (int round = 0; round < 2; round++) {
		iov = (struct iovec){ a, PGSZ };
		ASSERT_EQ(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS,
				  &iov, 1), 0);
		pfn = ksm_pfn(0, a);
		EXPECT_HELD(a, b, pfn);
		EXPECT_TRUE(ksm_page_is(a, 40, 0));
		EXPECT_EQ(ring_read_fixed(&ring, fd, a, PGSZ), PGSZ);
		EXPECT_TRUE(ksm_page_is(a, 41, 0));
		EXPECT_TRUE(ksm_page_is(b, 40, 0));
		ksm_fill_page(a, 40, 0);
		EXPECT_EQ(ksm_pfn(0, a), pfn);
		ASSERT_EQ(syscall(SYS_io_uring_register, ring.fd,
				  IORING_UNREGISTER_BUFFERS, NULL, 0), 0);
		/* The kernel may give up the pin a little later. */
		for (int i = 0; i < 1000 && ksm_same_frames(0, a, 0, b, N) < N; i++) {
			ksm_merge_all(&self->k);
			usleep(20000);
		}
		EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
		EXPECT_EQ(ksm_wrong(a, N, 40), 0);
	}
	close(ring.fd);
	close(fd);
}

struct pinned_write {
	char *to, *from;
	ssize_t result;
};

struct pinned_read {
	char *to, *from;
	size_t npages;
	uint64_t when_us;
	ssize_t result;
};

static void *pinned_writer(void *arg)
{
	struct pinned_write *w = arg;
	struct iovec local = { w->from, PGSZ };
	struct iovec remote = { w->to, PGSZ };

	w->result = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
	return NULL;
}

/*
 * process_vm_writev() pins the target's page and then reads the source, which
 * is made to wait in a page fault: a pin as long as we like, and what is written
 * at its end must arrive in the target.
 */
TEST_F(device, write_through_pin)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_api api = { .api = UFFD_API };
	char *a, *b, *source, data[PGSZ];
	int uffd;

	make_twins(&self->k, self->area, &a, &b, N, 50);
	source = ksm_mmap(1);
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	ASSERT_GE(uffd, 0);
	ASSERT_EQ(ioctl(uffd, UFFDIO_API, &api), 0);
	reg.range.start = (uintptr_t)source;
	reg.range.len = PGSZ;
	ASSERT_EQ(ioctl(uffd, UFFDIO_REGISTER, &reg), 0);

	/* Pinned before any scan, then pinned when merged already. */
	for (int round = 0; round < 2; round++) {
		struct pinned_write w = { .to = a, .from = source };
		struct pollfd pfd = { .fd = uffd, .events = POLLIN };
		struct uffdio_copy copy = {
			.dst = (uintptr_t)source,
			.src = (uintptr_t)data,
			.len = PGSZ,
		};
		struct uffd_msg msg;
		pthread_t thread;
		uint64_t pfn;

		ASSERT_EQ(pthread_create(&thread, NULL, pinned_writer, &w), 0);
		ASSERT_EQ(poll(&pfd, 1, 20000), 1);
		ASSERT_EQ(read(uffd, &msg, sizeof(msg)), (ssize_t)sizeof(msg));
		ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
		pfn = ksm_pfn(0, a);
		EXPECT_HELD(a, b, pfn);

		ksm_fill_page(data, 51, round);
		ASSERT_EQ(ioctl(uffd, UFFDIO_COPY, &copy), 0);
		pthread_join(thread, NULL);
		EXPECT_EQ(w.result, (ssize_t)PGSZ);
		EXPECT_EQ(ksm_pfn(0, a), pfn);
		EXPECT_TRUE(ksm_page_is(a, 51, round));
		EXPECT_TRUE(ksm_page_is(b, 50, 0));

		ksm_fill_page(a, 50, 0);
		ksm_merge_all(&self->k);
		EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
		ASSERT_EQ(madvise(source, PGSZ, MADV_DONTNEED), 0);
	}
	close(uffd);
}

static void *pinned_reader(void *arg)
{
	struct pinned_read *r = arg;
	struct iovec local = { r->to, r->npages * PGSZ };
	struct iovec remote = { r->from, r->npages * PGSZ };
	struct timespec ts = {
		.tv_sec = r->when_us / 1000000,
		.tv_nsec = r->when_us % 1000000 * 1000,
	};

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
	r->result = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	return NULL;
}

/*
 * Frames that are no longer where @addr maps them and that somebody holds all the
 * same: anonymous still, and mapped by nobody.
 */
static size_t count_left_behind(const char *addr, size_t npages, const uint64_t *before)
{
	size_t n = 0;

	for (size_t i = 0; i < npages; i++)
		n += ksm_pfn(0, ksm_page(addr, i)) != before[i] &&
		     ksm_pfn_is(before[i], KPF_BIT_ANON) && !ksm_kpagecount(before[i]);
	return n;
}

/*
 * While pages are compared their ptes are read-only and do not change, so that
 * pages can be pinned for reading; and who pins a page, for however long, must see
 * what is written to it afterwards. That the page lost its exclusiveness is all that
 * tells get_user_pages() to pin a copy instead, which ends the merge.
 *
 * process_vm_readv() pins its source, then waits in a page fault for its
 * destination. Many of them, for a few pages each, come one after the other around
 * the time when the pages were merged in the round before.
 */
TEST_F(device, read_pin_during_merge)
{
	enum { READERS = 16, EACH = 16, PAGES = READERS * EACH, ROUNDS = 96 };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_api api = { .api = UFFD_API };
	size_t late = 0, prevented = 0;
	/* A debug kernel comes to fewer rounds. */
	const uint64_t enough = now_us() + 60 * 1000000ULL;
	uint64_t before[PAGES], length, span, first;
	static char data[PAGES * PGSZ];
	char *a, *b, *to;
	int uffd;

	make_twins(&self->k, self->area, &a, &b, PAGES, 55);
	to = ksm_mmap(PAGES);
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	ASSERT_GE(uffd, 0);
	ASSERT_EQ(ioctl(uffd, UFFDIO_API, &api), 0);
	reg.range.start = (uintptr_t)to;
	reg.range.len = PAGES * PGSZ;
	ASSERT_EQ(ioctl(uffd, UFFDIO_REGISTER, &reg), 0);

	ksm_passes(&self->k, 1);
	length = now_us();
	ksm_passes(&self->k, 1);
	length = now_us() - length;
	first = 0;
	span = length;
	for (int round = 0; round < ROUNDS && now_us() < enough; round++) {
		struct pollfd pfd = { .fd = uffd, .events = POLLIN };
		struct uffdio_copy copy = {
			.dst = (uintptr_t)to,
			.src = (uintptr_t)data,
			.len = PAGES * PGSZ,
		};
		struct pinned_read r[READERS];
		pthread_t threads[READERS];
		struct uffd_msg msg;
		uint64_t begin;

		ASSERT_EQ(ksm_unmerge(self->area), 0);
		ksm_fill(a, PAGES, 100 + round);
		ksm_fill(b, PAGES, 100 + round);
		ksm_pfns(0, a, PAGES, before);
		ksm_passes(&self->k, 1);

		begin = now_us() + 2000;
		for (int i = 0; i < READERS; i++) {
			r[i] = (struct pinned_read){
				.to = ksm_page(to, i * EACH),
				.from = ksm_page(a, i * EACH),
				.npages = EACH,
				.when_us = begin + first + span * i / READERS,
			};
			ASSERT_EQ(pthread_create(&threads[i], NULL, pinned_reader, &r[i]), 0);
		}
		while (now_us() < begin)
			;
		ksm_passes(&self->k, 1);
		for (int i = 0; i < READERS; i++) {
			ASSERT_EQ(poll(&pfd, 1, 20000), 1);
			ASSERT_EQ(read(uffd, &msg, sizeof(msg)), (ssize_t)sizeof(msg));
			ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
		}

		/* What is on its way to the LRU lists is held as well. */
		ksm_write_file("/proc/sys/vm/compact_memory", "1");
		EXPECT_EQ(count_left_behind(a, PAGES, before), 0) TH_LOG("round %d", round);
		first += span;
		for (int i = READERS - 1; i >= 0; i--) {
			/* Who pins a merged page gets a copy: a third frame. */
			size_t n = ksm_moved(0, r[i].from, EACH, before + i * EACH);

			late += n == EACH;
			prevented += !n;
			if (n == EACH)
				first = r[i].when_us - begin;
		}
		span = length / 4;
		first -= first < span / 2 ? first : span / 2;

		ASSERT_EQ(ioctl(uffd, UFFDIO_COPY, &copy), 0);
		for (int i = 0; i < READERS; i++) {
			pthread_join(threads[i], NULL);
			EXPECT_EQ(r[i].result, (ssize_t)(EACH * PGSZ));
		}
		ASSERT_EQ(madvise(to, PAGES * PGSZ, MADV_DONTNEED), 0);
		ASSERT_EQ(ksm_wrong(a, PAGES, 100 + round), 0);
		ASSERT_EQ(ksm_wrong(b, PAGES, 100 + round), 0);
	}
	TH_LOG("of %d pins, %zu came too late for the merge and %zu prevented it",
	       ROUNDS * READERS, late, prevented);
	/* Some on either side, so that some came in between. */
	EXPECT_GT(late, 0);
	EXPECT_GT(prevented, 0);
	close(uffd);
}

/*
 * A network block device whose server is this test: a direct read from it is
 * on its way for as long as the server keeps the answer back, and the data are
 * received into the reader's page at the very end.
 */
#define NBD_DEVICE	"/dev/nbd0"
#define NBD_BLOCKS	256		/* of a page each */
#define NBD_SLOW_BLOCK	100		/* only this one's answer is kept back */

static bool nbd_transfer(int fd, void *buf, size_t size, bool out)
{
	for (size_t done = 0; done < size; ) {
		ssize_t len = out ? write(fd, (char *)buf + done, size - done) :
				    read(fd, (char *)buf + done, size - done);

		if (len <= 0)
			return false;
		done += len;
	}
	return true;
}

/* Serve: tell @held when the slow block was asked for, answer it after @go. */
static long fn_nbd_serve(long sock, long held, long go, long seed)
{
	static char data[1 << 20];
	struct nbd_request req;

	while (nbd_transfer(sock, &req, sizeof(req), false)) {
		struct nbd_reply reply = { .magic = htonl(NBD_REPLY_MAGIC) };
		size_t len = ntohl(req.len), block = be64toh(req.from) / PGSZ;
		unsigned int type = ntohl(req.type) & 0xffff;
		char token;

		if (type == NBD_CMD_DISC) {
			/* Other processes have this socket open; the kernel waits for its end. */
			shutdown(sock, SHUT_RDWR);
			break;
		}
		if (len > sizeof(data))
			return -E2BIG;
		if (type == NBD_CMD_WRITE && !nbd_transfer(sock, data, len, false))
			return -EIO;
		if (block == NBD_SLOW_BLOCK) {
			if (!nbd_transfer(held, "h", 1, true) ||
			    !nbd_transfer(go, &token, 1, false))
				return -EPIPE;
		}
		memcpy(reply.handle, req.handle, sizeof(reply.handle));
		if (!nbd_transfer(sock, &reply, sizeof(reply), true))
			return -EIO;
		if (type != NBD_CMD_READ)
			continue;
		for (size_t i = 0; i < len / PGSZ; i++)
			ksm_fill_page(data + i * PGSZ, seed, block + i);
		if (!nbd_transfer(sock, data, len / PGSZ * PGSZ, true))
			return -EIO;
	}
	return 0;
}

/* Sits in NBD_DO_IT for as long as the device is connected. */
static long fn_nbd_run(long sock, long unused, long unused2, long unused3)
{
	int fd = open(NBD_DEVICE, O_RDWR);

	(void)unused;
	(void)unused2;
	(void)unused3;
	if (fd < 0)
		return -errno;
	ioctl(fd, NBD_CLEAR_SOCK);
	if (ioctl(fd, NBD_SET_BLKSIZE, PGSZ) ||
	    ioctl(fd, NBD_SET_SIZE_BLOCKS, NBD_BLOCKS) ||
	    ioctl(fd, NBD_SET_SOCK, sock))
		return -errno;
	ioctl(fd, NBD_DO_IT);
	ioctl(fd, NBD_CLEAR_QUE);
	ioctl(fd, NBD_CLEAR_SOCK);
	close(fd);
	return 0;
}

static long fn_direct_io(long addr, long block, long out, long unused)
{
	int fd = open(NBD_DEVICE, O_RDWR | O_DIRECT);
	ssize_t len;

	(void)unused;
	if (fd < 0)
		return -errno;
	len = out ? pwrite(fd, (void *)addr, PGSZ, block * PGSZ) :
		    pread(fd, (void *)addr, PGSZ, block * PGSZ);
	if (len < 0)
		len = -errno;
	close(fd);
	return len;
}

TEST_F(device, direct_io_in_flight)
{
	struct ksm_child server, run, c;
	char *a = ksm_mmap(N), *b = ksm_mmap(N), token;
	int sock[2], held[2], go[2], fd;
	uint64_t pfn;

	ksm_shell("modprobe nbd");
	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sock), 0);
	ASSERT_EQ(pipe(held), 0);
	ASSERT_EQ(pipe(go), 0);
	ksm_spawn(&server);
	ksm_spawn(&run);
	ksm_spawn(&c);
	ksm_call_start(&server, fn_nbd_serve, sock[1], held[1], go[0], 60);
	ksm_call_start(&run, fn_nbd_run, sock[0], 0, 0, 0);
	/* Connected as soon as a read of another block succeeds. */
	for (int i = 0; ; i++) {
		long ret = ksm_call(&c, fn_direct_io, a, 1, 0);

		if (ret == (long)PGSZ)
			break;
		ASSERT_LT(i, 100) TH_LOG("reading " NBD_DEVICE ": %s", strerror(-ret));
		usleep(50000);
	}
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, 1, 60), 1);

	ksm_call(&c, ksm_fn_fill, a, N, 61);
	ksm_call(&c, ksm_fn_fill, b, N, 61);
	ASSERT_GE(ksm_call(&c, ksm_fn_area_register, self->k.dev, a, N), 0);
	ASSERT_GE(ksm_call(&c, ksm_fn_area_register, self->k.dev, b, N), 0);

	/* A read before any scan; a read and a write of a merged page. */
	for (int round = 0; round < 3; round++) {
		bool out = round == 2;

		ksm_call_start(&c, fn_direct_io, KSM_ARG(a), NBD_SLOW_BLOCK, out, 0);
		ASSERT_EQ(read(held[0], &token, 1), 1);
		pfn = ksm_pfn(c.pid, a);
		ksm_passes(&self->k, 6);
		EXPECT_EQ(ksm_pfn(c.pid, a), pfn);
		/* A device that only reads from it may hold a merged page on 6.1. */
		if (!out) {
			EXPECT_NE(ksm_pfn(c.pid, b), pfn);
		}
		EXPECT_GE(ksm_same_frames(c.pid, a, c.pid, b, N), N - 1);
		ASSERT_EQ(write(go[1], "g", 1), 1);
		EXPECT_EQ(ksm_call_finish(&c), (long)PGSZ);
		EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N, 61), out ? 0 : 1);
		EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, b, N, 61), 0);
		if (!out) {
			/* What came from the device is there. */
			EXPECT_EQ(ksm_pfn(c.pid, a), pfn);
			EXPECT_NE(ksm_call(&c, fn_peek, a, 0, 0),
				  ksm_call(&c, fn_peek, b, 0, 0));
			ksm_call(&c, ksm_fn_fill, a, 1, 61);
		}
		/* On 6.12 it is copied to be written out, and was held, so that it waits its turn. */
		ksm_merge_held(&self->k);
		EXPECT_EQ(ksm_same_frames(c.pid, a, c.pid, b, N), N);
	}

	fd = open(NBD_DEVICE, O_RDWR);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(ioctl(fd, NBD_DISCONNECT), 0);
	close(fd);
	ksm_call_finish(&run);
	EXPECT_EQ(ksm_call_finish(&server), 0);
	ksm_end(&server);
	ksm_end(&run);
	ksm_end(&c);
}

/* ---- locked memory ---- */

TEST_F(device, mlock)
{
	enum { PAGES = 256 };
	long locked = ksm_meminfo("Mlocked"), slack = 48;
	char *a, *b, *c;

	make_twins(&self->k, self->area, &a, &b, PAGES, 70);
	c = ksm_mmap(PAGES);
	ksm_fill(c, PAGES, 70);
	ASSERT_EQ(ksm_register(self->area, c, PAGES), 0);

	/* a is locked before the merge, b after it, c never. */
	ASSERT_EQ(mlock(a, PAGES * PGSZ), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
	ASSERT_EQ(mlock(b, PAGES * PGSZ), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(a, PAGES, 70), 0);
	EXPECT_EQ(ksm_wrong(b, PAGES, 70), 0);
	EXPECT_EQ(ksm_wrong(c, PAGES, 70), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, c, PAGES), PAGES);

	/* Written while locked, and merged once more. */
	ksm_fill(a, PAGES, 71);
	ksm_fill(b, PAGES, 71);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
	EXPECT_EQ(ksm_wrong(a, PAGES, 71), 0);
	ASSERT_EQ(munlock(a, PAGES * PGSZ), 0);
	ksm_merge_all(&self->k);
	ksm_fill(a, PAGES, 72);
	EXPECT_EQ(ksm_wrong(a, PAGES, 72), 0);
	EXPECT_EQ(ksm_wrong(b, PAGES, 71), 0);
	EXPECT_EQ(ksm_wrong(c, PAGES, 70), 0);

	/* Nothing may stay locked when all of it is gone. */
	munmap(a, PAGES * PGSZ);
	munmap(b, PAGES * PGSZ);
	munmap(c, PAGES * PGSZ);
	EXPECT_LE(ksm_meminfo("Mlocked"), locked + slack);
	EXPECT_GE(ksm_meminfo("Mlocked"), locked - slack);
}

TEST_F(device, mlockall)
{
	char *a, *b, *c;

	make_twins(&self->k, self->area, &a, &b, N, 73);
	ASSERT_EQ(mlockall(MCL_CURRENT | MCL_FUTURE), 0);
	c = ksm_mmap(N);
	ksm_fill(c, N, 73);
	ASSERT_EQ(ksm_register(self->area, c, N), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_same_frames(0, a, 0, c, N), N);
	ksm_fill(b, N, 74);
	EXPECT_EQ(ksm_wrong(a, N, 73), 0);
	EXPECT_EQ(ksm_wrong(b, N, 74), 0);
	ASSERT_EQ(munlockall(), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(a, N, 73), 0);
	EXPECT_EQ(ksm_wrong(b, N, 74), 0);
	EXPECT_EQ(ksm_wrong(c, N, 73), 0);
}

/* ---- advice ---- */

TEST_F(device, dontneed)
{
	char *a, *b;

	make_twins(&self->k, self->area, &a, &b, N, 75);
	ksm_merge_all(&self->k);
	ASSERT_EQ(madvise(a, N / 2 * PGSZ, MADV_DONTNEED), 0);
	EXPECT_EQ(ksm_distinct(0, a, N / 2), 0);
	EXPECT_EQ(ksm_stat("pages_sharing"), N / 2);
	EXPECT_EQ(ksm_wrong_zero(a, N / 2), 0);
	EXPECT_EQ(ksm_wrong(b, N, 75), 0);
	ASSERT_EQ(madvise(b, N * PGSZ, MADV_DONTNEED), 0);
	EXPECT_EQ(ksm_wrong_zero(b, N), 0);
	ksm_fill(b, N, 76);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong_zero(a, N / 2), 0);
	EXPECT_EQ(ksm_wrong(b, N, 76), 0);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
}

TEST_F(device, cold)
{
	char *a, *b;

	make_twins(&self->k, self->area, &a, &b, N, 77);
	ASSERT_EQ(madvise(a, N * PGSZ, MADV_COLD), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(madvise(b, N * PGSZ, MADV_COLD), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 77), 0);
	EXPECT_EQ(ksm_wrong(b, N, 77), 0);
}

/*
 * A page given up with MADV_FREE holds its contents or zeroes, no third thing;
 * what is written to it afterwards stays.
 */
TEST_F(device, lazyfree)
{
	size_t other = 0;
	char *a, *b;

	make_twins(&self->k, self->area, &a, &b, N, 78);
	/* Half of it unmerged, half of it merged. */
	ASSERT_EQ(madvise(a, N / 2 * PGSZ, MADV_FREE), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(madvise(ksm_page(a, N / 2), N / 2 * PGSZ, MADV_FREE), 0);
	ksm_merge_all(&self->k);
	for (int i = 0; i < N; i++)
		other += !ksm_page_is(ksm_page(a, i), 78, i) &&
			 !ksm_page_is_zero(ksm_page(a, i));
	EXPECT_EQ(other, 0);
	EXPECT_EQ(ksm_wrong(b, N, 78), 0);

	/* Freed, written, scanned (which may clean the pte), reclaimed. */
	ksm_fill(a, N, 79);
	ASSERT_EQ(madvise(a, N * PGSZ, MADV_FREE), 0);
	ksm_fill(a, N, 80);
	for (int i = 0; i < 3; i++) {
		ksm_passes(&self->k, 1);
		madvise(a, N * PGSZ, MADV_PAGEOUT);
		EXPECT_EQ(ksm_wrong(a, N, 80), 0);
	}
	EXPECT_EQ(ksm_wrong(b, N, 78), 0);
}

/* ---- swap ---- */

#define SWAP_PAGES 4096

FIXTURE(swap)
{
	struct ksm k;
	int area;
	struct ksm_swap swap;
};

FIXTURE_VARIANT(swap)
{
	bool loop;
};

/* Swapped in by reading directly into the page; the swap cache is left out. */
FIXTURE_VARIANT_ADD(swap, zram) { .loop = false };
/* An ordinary device: pages stay in the swap cache after they were read. */
FIXTURE_VARIANT_ADD(swap, loop) { .loop = true };

FIXTURE_SETUP(swap)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	ksm_swap_on(&self->swap, variant->loop, SWAP_PAGES);
}

FIXTURE_TEARDOWN(swap)
{
	ksm_swap_off(&self->swap);
	close(self->area);
	ksm_finish(&self->k);
}

static size_t count_swapcache(const void *addr, size_t npages)
{
	size_t n = 0;

	for (size_t i = 0; i < npages; i++)
		n += ksm_pfn_is(ksm_pfn(0, ksm_page(addr, i)), KPF_BIT_SWAPCACHE);
	return n;
}

/* Swapped-out pages stay out; brought back they merge like others. */
TEST_F(swap, swapped_out)
{
	char *a, *b;

	make_twins(&self->k, self->area, &a, &b, N, 90);
	ASSERT_EQ(ksm_page_out(a, N), N);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_swapped(a, N), N);
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	EXPECT_EQ(ksm_wrong(a, N, 90), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 90), 0);
	EXPECT_EQ(ksm_wrong(b, N, 90), 0);
	EXPECT_STATS(N, N, 0, 0, 0);
}

/* Merged pages cannot go out; unmerged ones can again. */
TEST_F(swap, merged_stay)
{
	uint64_t pfns[N];
	char *a, *b;

	make_twins(&self->k, self->area, &a, &b, N, 91);
	ksm_merge_all(&self->k);
	ksm_pfns(0, a, N, pfns);
	ASSERT_EQ(madvise(a, N * PGSZ, MADV_PAGEOUT), 0);
	ASSERT_EQ(madvise(b, N * PGSZ, MADV_PAGEOUT), 0);
	EXPECT_EQ(ksm_swapped(a, N), 0);
	EXPECT_EQ(ksm_moved(0, a, N, pfns), 0);
	EXPECT_EQ(ksm_moved(0, b, N, pfns), 0);
	EXPECT_EQ(ksm_wrong(a, N, 91), 0);

	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_page_out(a, N), N);
	/* An unmerge does not bring in what is swapped out. */
	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_swapped(a, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 91), 0);
	EXPECT_EQ(ksm_wrong(b, N, 91), 0);
}

/*
 * The scan may clean a dirty pte only when it tells the page: else reclaim
 * believes that the copy in swap is good. Unique pages and ones with a twin,
 * after any number of passes.
 */
TEST_F(swap, dirty_not_lost)
{
	enum { PAGES = 256 };
	char *a = ksm_mmap(PAGES);

	ASSERT_EQ(ksm_register(self->area, a, PAGES), 0);
	for (int passes = 0; passes < 5; passes++) {
		/* Out and in again, so that there is an old copy in swap. */
		ksm_fill(a, PAGES, 100 + passes);
		ksm_passes(&self->k, passes);
		EXPECT_EQ(ksm_page_out(a, PAGES), PAGES);
		EXPECT_EQ(ksm_wrong(a, PAGES, 100 + passes), 0);
		/* In the loop variant the pages now are clean and in the swap cache. */
		if (variant->loop) {
			EXPECT_GT(count_swapcache(a, PAGES), PAGES / 2);
		}

		ksm_fill(a, PAGES, 200 + passes);
		ksm_passes(&self->k, passes);
		ksm_page_out(a, PAGES);
		EXPECT_EQ(ksm_wrong(a, PAGES, 200 + passes), 0) TH_LOG("%d passes", passes);
	}
}

/* The same when the pages were cleaned for a merge that then did not happen. */
TEST_F(swap, dirty_not_lost_after_failed_merge)
{
	struct iovec iov;
	char *a, *b;
	int fds[2];

	make_twins(&self->k, self->area, &a, &b, 8, 110);
	ASSERT_EQ(ksm_page_out(a, 8), 8);
	EXPECT_EQ(ksm_wrong(a, 8, 110), 0);
	ksm_fill(a, 8, 111);
	ksm_fill(b, 8, 111);
	ASSERT_EQ(pipe(fds), 0);
	iov = (struct iovec){ a, 8 * PGSZ };
	ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), (ssize_t)(8 * PGSZ));
	ksm_passes(&self->k, 6);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, 8), 0);
	close(fds[0]);
	close(fds[1]);
	ksm_page_out(a, 8);
	ksm_page_out(b, 8);
	EXPECT_EQ(ksm_wrong(a, 8, 111), 0);
	EXPECT_EQ(ksm_wrong(b, 8, 111), 0);
}

/*
 * And when the merge fails at the comparison, because a page was written after
 * it was hashed: by then its pte is clean. Each page is written once while the
 * pass that would merge it runs.
 */
TEST_F(swap, dirty_not_lost_after_late_write)
{
	enum { PAGES = 256, ROUNDS = 6 };
	char *a, *b;

	make_twins(&self->k, self->area, &a, &b, PAGES, 115);
	for (int round = 0; round < ROUNDS; round++) {
		size_t wrong = 0;
		uint64_t begin, length;
		pthread_t thread;

		/* Clean pages in the swap cache, then dirty ptes over them. */
		ksm_fill(a, PAGES, 115);
		ksm_fill(b, PAGES, 115);
		ASSERT_EQ(ksm_unmerge(self->area), 0);
		ASSERT_EQ(ksm_page_out(a, PAGES), PAGES);
		ASSERT_EQ(ksm_wrong(a, PAGES, 115), 0);
		ksm_fill(a, PAGES, 116 + round);
		ksm_fill(b, PAGES, 116 + round);
		begin = now_us();
		ksm_passes(&self->k, 1);
		length = now_us() - begin;

		begin = now_us();
		ASSERT_EQ(pthread_create(&thread, NULL, scan_once, &self->k), 0);
		for (int i = 0; i < PAGES; i++) {
			/* In no order, at all times of the pass. */
			int page = (i * 37 + round) % PAGES;

			while (now_us() < begin + 2 * length * i / PAGES)
				;
			((uint64_t *)ksm_page(a, page))[7] = i;
		}
		pthread_join(thread, NULL);
		ksm_page_out(a, PAGES);
		for (int i = 0; i < PAGES; i++)
			wrong += ((uint64_t *)ksm_page(a, (i * 37 + round) % PAGES))[7] !=
				 (uint64_t)i;
		EXPECT_EQ(wrong, 0) TH_LOG("round %d", round);
		EXPECT_EQ(ksm_wrong(b, PAGES, 116 + round), 0);
	}
}

/* A page in the swap cache has one reference more, and merges all the same. */
TEST_F(swap, swapcache)
{
	char *a, *b;

	make_twins(&self->k, self->area, &a, &b, N, 120);
	ASSERT_EQ(ksm_page_out(a, N), N);
	ASSERT_EQ(ksm_page_out(b, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 120), 0);
	EXPECT_EQ(ksm_wrong(b, N, 120), 0);
	if (variant->loop) {
		EXPECT_GT(count_swapcache(a, N), N / 2);
	}
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 120), 0);
	ksm_fill(a, N, 121);
	EXPECT_EQ(ksm_wrong(a, N, 121), 0);
	EXPECT_EQ(ksm_wrong(b, N, 120), 0);
}

/* Swap entries shared by parent and child, brought in by one or both. */
TEST_F(swap, forked)
{
	struct ksm_child c;
	char *a, *b;

	make_twins(&self->k, self->area, &a, &b, N, 130);
	ASSERT_EQ(ksm_page_out(a, N), N);
	ksm_spawn(&c);
	EXPECT_EQ(ksm_wrong(a, N, 130), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N / 2, 130), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_wrong(a, N, 130), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N, 130), 0);
	ksm_fill(a, N, 131);
	ksm_merge_all(&self->k);
	ksm_page_out(a, N);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N, 130), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, b, N, 130), 0);
	EXPECT_EQ(ksm_wrong(a, N, 131), 0);
	ksm_end(&c);
	EXPECT_EQ(ksm_wrong(b, N, 130), 0);
}

TEST_F(swap, lazyfree)
{
	size_t other = 0;
	char *a, *b;

	make_twins(&self->k, self->area, &a, &b, N, 140);
	ASSERT_EQ(madvise(a, N * PGSZ, MADV_FREE), 0);
	ksm_passes(&self->k, 1);
	madvise(a, N * PGSZ, MADV_PAGEOUT);
	ksm_passes(&self->k, 3);
	for (int i = 0; i < N; i++)
		other += !ksm_page_is(ksm_page(a, i), 140, i) &&
			 !ksm_page_is_zero(ksm_page(a, i));
	EXPECT_EQ(other, 0);
	for (int passes = 0; passes < 5; passes++) {
		ASSERT_EQ(madvise(a, N * PGSZ, MADV_FREE), 0);
		ksm_fill(a, N, 141 + passes);
		ksm_passes(&self->k, passes);
		madvise(a, N * PGSZ, MADV_PAGEOUT);
		EXPECT_EQ(ksm_wrong(a, N, 141 + passes), 0) TH_LOG("%d passes", passes);
	}
	EXPECT_EQ(ksm_wrong(b, N, 140), 0);
}

TEST_HARNESS_MAIN
