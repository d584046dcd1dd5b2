// SPDX-License-Identifier: GPL-2.0-only
/*
 * access_test.c - the ways to read and write memory, around merged pages
 *
 * Whoever writes to a merged page (the program, a debugger, the kernel on behalf of a system
 * call) must get a private copy, and nobody else may see it. Who may not read or write it by
 * its protection still may not. For what a device writes see pinned_test.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm_access.h"

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

TEST_F(device, read_only_mapping)
{
	char *a, *b;
	uint64_t pfns[N];

	make_twins(self->area, &a, &b, N, 1);
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

	make_twins(self->area, &a, &b, N, 3);
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

	make_twins(self->area, &a, &b, N, 5);
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

	make_twins(self->area, &a, &b, N, 20);
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

TEST_HARNESS_MAIN
