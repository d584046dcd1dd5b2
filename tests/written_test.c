// SPDX-License-Identifier: GPL-2.0-only
/*
 * written_test.c - a scan finds a page that changed, in whatever way
 *
 * Which pages were read is told by the tracepoint ksmdev_hash; that a change was found is
 * proven by a merge that follows from it. Writes by programs and by the kernel, what leaves
 * no trace in a pte too; pages that are exchanged, unmerged, or shared with a child. Passes
 * are counted, never seconds. watch_test.c has what is not read.
 *
 * Needs the module loop in the VM, and a VM where the kernel may patch its text, as enabling
 * a tracepoint does: tests/suite.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ksm_traced.h"

#define N 64
#define HUGE_PAGES	KSM_HUGE_PAGES

#define SYSFS "/sys/class/misc/ksm/"

/* Fills @to, N pages that were found clean, with pattern @seed. */
typedef void (*write_fn)(char *to, uint64_t seed);

static void write_plain(char *to, uint64_t seed)
{
	ksm_fill(to, N, seed);
}

struct filler {
	char *to;
	uint64_t seed;
};

static void *fill_main(void *arg)
{
	struct filler *f = arg;

	ksm_use_cpu(1);
	ksm_fill(f->to, N, f->seed);
	return NULL;
}

static void write_thread(char *to, uint64_t seed)
{
	struct filler f = { to, seed };
	pthread_t thread;

	if (pthread_create(&thread, NULL, fill_main, &f) || pthread_join(thread, NULL))
		ksm_die("cannot start a thread");
}

static void write_after_fork(char *to, uint64_t seed)
{
	struct ksm_child c;

	ksm_spawn(&c);
	ksm_fill(to, N, seed);
	/* Its pages are the old ones. */
	if ((size_t)ksm_call(&c, ksm_fn_wrong, to, N, seed) != N)
		ksm_die("the child sees what the parent wrote");
	ksm_end(&c);
}

static void write_when_child_is_gone(char *to, uint64_t seed)
{
	struct ksm_child c;

	/* Read-only after the fork, and not copied: the child has let go. */
	ksm_spawn(&c);
	ksm_end(&c);
	ksm_fill(to, N, seed);
}

static void write_after_clear_refs(char *to, uint64_t seed)
{
	if (ksm_write_file("/proc/self/clear_refs", "4"))
		ksm_die("cannot clear the soft-dirty bits");
	ksm_fill(to, N, seed);
}

static void write_after_mprotect(char *to, uint64_t seed)
{
	if (mprotect(to, N * PGSZ, PROT_READ) ||
	    mprotect(to, N * PGSZ, PROT_READ | PROT_WRITE))
		ksm_die("mprotect: %s", strerror(errno));
	ksm_fill(to, N, seed);
}

static void move_over(char *to, uint64_t seed)
{
	char *from = ksm_mmap(N);

	ksm_fill(from, N, seed);
	if (mremap(from, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		ksm_die("mremap: %s", strerror(errno));
}

static void map_anew(char *to, uint64_t seed)
{
	if (munmap(to, N * PGSZ) ||
	    mmap(to, N * PGSZ, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != to)
		ksm_die("mmap: %s", strerror(errno));
	madvise(to, N * PGSZ, MADV_NOHUGEPAGE);
	ksm_fill(to, N, seed);
}

static void discard(char *to, uint64_t seed)
{
	if (madvise(to, N * PGSZ, MADV_DONTNEED))
		ksm_die("MADV_DONTNEED: %s", strerror(errno));
	ksm_fill(to, N, seed);
}

static void write_read(char *to, uint64_t seed)
{
	char data[PGSZ];
	int fds[2];

	if (pipe(fds))
		ksm_die("pipe: %s", strerror(errno));
	for (int i = 0; i < N; i++) {
		ksm_fill_page(data, seed, i);
		if (write(fds[1], data, PGSZ) != (ssize_t)PGSZ ||
		    read(fds[0], ksm_page(to, i), PGSZ) != (ssize_t)PGSZ)
			ksm_die("reading from a pipe: %s", strerror(errno));
	}
	close(fds[0]);
	close(fds[1]);
}

/* These two write to the page, and not through the pte. */
static void write_vm_writev(char *to, uint64_t seed)
{
	char data[PGSZ];

	for (int i = 0; i < N; i++) {
		struct iovec local = { data, PGSZ }, remote = { ksm_page(to, i), PGSZ };

		ksm_fill_page(data, seed, i);
		if (process_vm_writev(getpid(), &local, 1, &remote, 1, 0) != (ssize_t)PGSZ)
			ksm_die("process_vm_writev: %s", strerror(errno));
	}
}

static void write_direct_io(char *to, uint64_t seed)
{
	char *data = ksm_mmap(N);
	struct ksm_loop loop;
	int fd;

	ksm_fill(data, N, seed);
	ksm_loop_open(&loop, N);
	fd = open(loop.path, O_WRONLY);
	if (fd < 0 || pwrite(fd, data, N * PGSZ, 0) != (ssize_t)(N * PGSZ) || fsync(fd))
		ksm_die("cannot write to %s: %s", loop.path, strerror(errno));
	close(fd);
	fd = open(loop.path, O_RDONLY | O_DIRECT);
	if (fd < 0 || read(fd, to, N * PGSZ) != (ssize_t)(N * PGSZ))
		ksm_die("cannot read %s directly: %s", loop.path, strerror(errno));
	close(fd);
	ksm_loop_close(&loop);
	munmap(data, N * PGSZ);
}

FIXTURE(written)
{
	struct ksm k;
	int area;
};

FIXTURE_VARIANT(written)
{
	write_fn write;
	bool traceless;	/* it may take until the page's turn to be read anew */
};

FIXTURE_VARIANT_ADD(written, plain) { .write = write_plain };
FIXTURE_VARIANT_ADD(written, by_a_thread) { .write = write_thread };
FIXTURE_VARIANT_ADD(written, after_fork) { .write = write_after_fork };
FIXTURE_VARIANT_ADD(written, when_the_child_is_gone) { .write = write_when_child_is_gone };
FIXTURE_VARIANT_ADD(written, after_clear_refs) { .write = write_after_clear_refs };
FIXTURE_VARIANT_ADD(written, after_mprotect) { .write = write_after_mprotect };
FIXTURE_VARIANT_ADD(written, mremap) { .write = move_over };
FIXTURE_VARIANT_ADD(written, munmap) { .write = map_anew };
FIXTURE_VARIANT_ADD(written, dontneed) { .write = discard };
FIXTURE_VARIANT_ADD(written, read) { .write = write_read };
FIXTURE_VARIANT_ADD(written, process_vm_writev) { .write = write_vm_writev, .traceless = true };
FIXTURE_VARIANT_ADD(written, direct_io) { .write = write_direct_io, .traceless = true };

FIXTURE_SETUP(written)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	trace_clear();
}

FIXTURE_TEARDOWN(written)
{
	close(self->area);
	ksm_finish(&self->k);
}

/* Two clean buffers; one is made equal to the other, and the scan finds out. */
TEST_F(written, is_found)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);
	unsigned char times[N];
	size_t unread = 0;

	ksm_fill(a, N, 10);
	ksm_fill(b, N, 11);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	for (int round = 0; round < 2; round++) {
		const uint64_t seed = 11 + round;

		ksm_fill(b, N, seed);
		ksm_passes(&self->k, PASSES);
		EXPECT_STATS(0, 0, 2 * N, 0, 0);
		trace_clear();
		variant->write(a, seed);
		/* In the first one it may still be written. */
		ksm_passes(&self->k, 2);
		traced(a, N, times);
		for (int i = 0; i < N; i++)
			unread += !times[i];
		EXPECT_EQ(variant->traceless ? 0 : unread, 0);
		ksm_passes(&self->k, variant->traceless ? ROUND + PASSES : PASSES);
		EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
		EXPECT_EQ(ksm_wrong(a, N, seed), 0);
		EXPECT_EQ(ksm_wrong(b, N, seed), 0);
		EXPECT_STATS(N, N, 0, 0, 0);
		/* Private and clean again, with writable ptes. */
		ASSERT_EQ(ksm_unmerge(self->area), 0);
		ksm_fill(a, N, 10);
	}
	if (variant->traceless)
		TH_LOG("%zu of %d writes left no trace", unread, 2 * N);
}

/*
 * To try to merge a page takes away the dirty bit that says that it was written. Here a
 * scan comes upon pages that equal others as those were the last time it read them.
 */
TEST_F(watch, failed_merge_forgets_no_write)
{
	/* The scan goes by address, and from one registration to the next. */
	char *first = ksm_mmap(2 * N), *second = ksm_page(first, N), *other = ksm_mmap(N);
	unsigned char times[N];
	size_t unread = 0;
	long faults;

	ksm_fill(first, N, 15);
	ksm_fill(second, N, 16);
	ksm_fill(other, N, 17);
	ASSERT_EQ(ksm_register(self->area, first, N), 0);
	ASSERT_EQ(ksm_register(self->area, second, N), 0);
	ASSERT_EQ(ksm_register(self->area, other, N), 0);
	ksm_passes(&self->k, PASSES);
	EXPECT_STATS(0, 0, 3 * N, 0, 0);

	ksm_fill(first, N, 16);
	ksm_passes(&self->k, 1);
	/* Each in another cache line: most look the same to a sample, whatever that is. */
	for (int i = 0; i < N; i++)
		ksm_page(second, i)[i * 64 % PGSZ]++;
	trace_clear();
	ksm_passes(&self->k, 2);
	traced(second, N, times);
	for (int i = 0; i < N; i++)
		unread += !times[i];
	EXPECT_EQ(unread, 0);
	/* Protected, or all this shows nothing. */
	faults = ksm_minflt();
	ksm_fill(second, N, 17);
	EXPECT_GE(ksm_minflt() - faults, N / 2);
	ksm_passes(&self->k, PASSES);
	EXPECT_EQ(ksm_same_frames(0, second, 0, other, N), N);
	EXPECT_EQ(ksm_wrong(first, N, 16), 0);
	EXPECT_EQ(ksm_wrong(second, N, 17), 0);
	EXPECT_EQ(ksm_wrong(other, N, 17), 0);
}

/*
 * Two pages become equal by writes that the scan does not notice. It merges them for what
 * they were; a third one must find what they share all the same.
 */
TEST_F(watch, merged_as_what_they_were)
{
	char *first = ksm_mmap(N), *second = ksm_mmap(N), *third = ksm_mmap(N), text[32];

	ksm_fill(first, N, 18);
	ksm_fill(second, N, 18);
	ASSERT_EQ(ksm_register(self->area, first, N), 0);
	ASSERT_EQ(ksm_register(self->area, second, N), 0);
	/* Read as equals, and not to be merged before they are something else. */
	snprintf(text, sizeof(text), "%lld", ksm_stat("max_kernel_pages"));
	ASSERT_EQ(ksm_write_file(SYSFS "max_kernel_pages", "0"), 0);
	ksm_passes(&self->k, PASSES);
	EXPECT_STATS(0, 0, N, N, 0);
	write_vm_writev(first, 20);
	write_vm_writev(second, 20);
	ASSERT_EQ(ksm_write_file(SYSFS "max_kernel_pages", text), 0);
	ksm_passes(&self->k, 1);
	/* Or this shows nothing. A page of each may have been read as it was its turn. */
	EXPECT_GE(ksm_same_frames(0, first, 0, second, N), N - 2);

	ksm_fill(third, N, 20);
	ASSERT_EQ(ksm_register(self->area, third, N), 0);
	ksm_passes(&self->k, PASSES);
	/* The other one of that pair is still taken for what it was. */
	EXPECT_GE(ksm_same_frames(0, first, 0, third, N), N - 2);
	EXPECT_EQ(ksm_wrong(first, N, 20), 0);
	EXPECT_EQ(ksm_wrong(second, N, 20), 0);
	EXPECT_EQ(ksm_wrong(third, N, 20), 0);
}

/* Pages that the scan knows well, but at another place. */
TEST_F(watch, pages_change_places)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N), *other = ksm_mmap(N), *place = ksm_mmap(N);
	uint64_t pfns[2][N];
	size_t alike = 0, found = 0;
	unsigned char times[N];

	ksm_fill(a, N, 20);
	ksm_fill(b, N, 21);
	ksm_fill(other, N, 21);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_passes(&self->k, PASSES);
	ksm_pfns(0, a, N, pfns[0]);
	ksm_pfns(0, b, N, pfns[1]);

	/* a and b are exchanged: neither was written. */
	ASSERT_EQ(mremap(a, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_FIXED, place), place);
	ASSERT_EQ(mremap(b, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_FIXED, a), a);
	ASSERT_EQ(mremap(place, N * PGSZ, N * PGSZ, MREMAP_MAYMOVE | MREMAP_FIXED, b), b);
	trace_clear();
	ksm_passes(&self->k, 1);
	traced(a, N, times);
	for (int i = 0; i < N; i++) {
		uint64_t x = pfns[0][i], y = pfns[1][i];

		/* A frame of which the scan cannot tell that it is another one. */
		alike += !(((x ^ x >> 11) ^ (y ^ y >> 11)) & 0x7ff);
		found += !!times[i];
	}
	EXPECT_GE(found + alike, N);
	ASSERT_EQ(ksm_register(self->area, other, N), 0);
	ksm_passes(&self->k, alike ? ROUND + PASSES : PASSES);
	EXPECT_EQ(ksm_same_frames(0, a, 0, other, N), N);
	EXPECT_EQ(ksm_wrong(a, N, 21), 0);
	EXPECT_EQ(ksm_wrong(b, N, 20), 0);
}

/*
 * What is unmerged gets a copy without a write, so that its pte is clean; and of
 * thousands of new frames some look like the ones before. All are read all the same.
 */
TEST_F(watch, unmerged_pages_are_read)
{
	enum { PAGES = 4 * HUGE_PAGES, ROUNDS = 5 };
	char *a = ksm_mmap(PAGES), *b = ksm_mmap(PAGES);
	unsigned char times[PAGES];

	ksm_fill(a, PAGES, 25);
	ksm_fill(b, PAGES, 25);
	ASSERT_EQ(ksm_register(self->area, a, PAGES), 0);
	ASSERT_EQ(ksm_register(self->area, b, PAGES), 0);
	for (int round = 0; round < ROUNDS; round++) {
		size_t unread = 0;

		ksm_merge_all(&self->k);
		ASSERT_EQ(ksm_same_frames(0, a, 0, b, PAGES), PAGES);
		trace_clear();
		/*
		 * On request in even rounds; by the scan in odd ones, when it finds
		 * that nobody else maps them.
		 */
		if (round % 2)
			ksm_fill(b, PAGES, 26);
		else
			ASSERT_EQ(ksm_unmerge(self->area), 0);
		ksm_passes(&self->k, round % 2 ? 6 : 2);
		traced(a, PAGES, times);
		for (int i = 0; i < PAGES; i++)
			unread += !times[i];
		EXPECT_EQ(unread, 0) TH_LOG("round %d", round);
		if (round % 2) {
			EXPECT_STATS(0, 0, 2 * PAGES, 0, 0);
			ksm_fill(b, PAGES, 25);
		}
	}
	EXPECT_EQ(ksm_wrong(a, PAGES, 25), 0);
	EXPECT_EQ(ksm_wrong(b, PAGES, 25), 0);
}

/* A child's memory is registered by itself; both write after the fork. */
TEST_F(watch, parent_and_child_write)
{
	char *buf = ksm_mmap(N), *twin = ksm_mmap(N);
	struct ksm_child c;

	ksm_fill(buf, N, 30);
	ASSERT_EQ(ksm_register(self->area, buf, N), 0);
	ksm_passes(&self->k, PASSES);
	ksm_spawn(&c);
	ASSERT_GE(ksm_call(&c, ksm_fn_area_register, self->k.dev, buf, N), 0);
	ksm_fill(twin, N, 31);
	ASSERT_EQ(ksm_register(self->area, twin, N), 0);
	ksm_merge_all(&self->k);
	/* Whether they share through us or still through the fork: one frame each. */
	EXPECT_EQ(ksm_same_frames(0, buf, c.pid, buf, N), N);

	ksm_call(&c, ksm_fn_fill, buf, N / 2, 31);
	ksm_fill(ksm_page(buf, N / 2), N / 2, 32);
	ksm_call(&c, ksm_fn_fill, ksm_page(buf, N / 2), N / 2, 32);
	ksm_passes(&self->k, PASSES);
	EXPECT_EQ(ksm_same_frames(c.pid, buf, 0, twin, N / 2), N / 2);
	EXPECT_EQ(ksm_same_frames(c.pid, ksm_page(buf, N / 2), 0, ksm_page(buf, N / 2), N / 2),
		  N / 2);
	EXPECT_EQ(ksm_wrong(buf, N / 2, 30), 0);
	EXPECT_EQ(ksm_wrong(ksm_page(buf, N / 2), N / 2, 32), 0);
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, buf, N / 2, 31), 0);
	EXPECT_EQ(ksm_wrong(twin, N, 31), 0);
	ksm_end(&c);
}

TEST_HARNESS_MAIN
