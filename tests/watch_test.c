// SPDX-License-Identifier: GPL-2.0-only
/*
 * watch_test.c - a scan reads the pages that changed, all of them, and no others
 *
 * What was read is taken from the driver's counters and, page by page, from the
 * tracepoint ksmdev_hash; that a change was found is proven by a merge that follows
 * from it, and that no write was lost by a shadow copy. Passes are counted, never
 * seconds.
 *
 * Needs the modules zram and loop in the VM, and a VM where the kernel may patch its text, as
 * enabling a tracepoint does: tests/suite.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ksm_harness.h"

#define N 64
#define HUGE_PAGES	KSM_HUGE_PAGES
#define HUGE_SIZE	KSM_HUGE_SIZE

/* One page of each chunk is read anew in each pass, so each one in so many. */
#define ROUND		KSM_HUGE_PAGES
/* Passes until a page that was written is merged with a known one. */
#define PASSES		3

#define TRACING		"/sys/kernel/tracing"
#define INSTANCE	TRACING "/instances/ksmdev-watch"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

/* ---- what was read ---- */

FIXTURE(watch)
{
	struct ksm k;
	int area;
	long long hashed, skipped, scanned;
};

static void trace_clear(void)
{
	int fd = open(INSTANCE "/trace", O_WRONLY | O_TRUNC);

	/* To truncate it is what empties the buffer. */
	if (fd < 0)
		ksm_die("cannot clear " INSTANCE "/trace: %s", strerror(errno));
	close(fd);
}

static void trace_begin(void)
{
	/* An instance of our own: what others trace is not our business. */
	rmdir(INSTANCE);
	if (mkdir(INSTANCE, 0700))
		ksm_die("%s: %s; is tracefs mounted?", INSTANCE, strerror(errno));
	if (ksm_write_file(INSTANCE "/events/ksmdev/ksmdev_hash/enable", "1"))
		ksm_die("cannot enable the event ksmdev_hash");
}

static void trace_end(void)
{
	if (ksm_write_file(INSTANCE "/events/ksmdev/ksmdev_hash/enable", "0") ||
	    rmdir(INSTANCE))
		ksm_die("cannot remove " INSTANCE);
}

/*
 * How often a page of the range was read since the last call, by the tracepoint;
 * with @times, how often each.
 */
static size_t traced(const char *addr, size_t npages, unsigned char *times)
{
	FILE *f = fopen(INSTANCE "/trace", "re");
	char line[512], *p;
	size_t n = 0;

	if (!f)
		ksm_die("cannot open " INSTANCE "/trace: %s", strerror(errno));
	if (times)
		memset(times, 0, npages);
	while (fgets(line, sizeof(line), f)) {
		size_t page;

		if (strstr(line, "LOST"))
			ksm_die("the trace buffer was too small: %s", line);
		p = strstr(line, "ksmdev_hash: ");
		if (line[0] == '#' || !p)
			continue;
		p = strstr(p, "addr=");
		if (!p)
			ksm_die("cannot read the event \"%s\"", line);
		page = (strtoul(p + strlen("addr="), NULL, 0) - (uintptr_t)addr) / PGSZ;
		if (page >= npages)
			continue;
		n++;
		if (times)
			times[page]++;
	}
	fclose(f);
	trace_clear();
	return n;
}

FIXTURE_SETUP(watch)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	trace_clear();
}

FIXTURE_TEARDOWN(watch)
{
	close(self->area);
	ksm_finish(&self->k);
}

/* From here on count anew. */
#define COUNT_ANEW() do { \
	self->hashed = ksm_stat("pages_hashed"); \
	self->skipped = ksm_stat("pages_skipped"); \
	self->scanned = ksm_stat("pages_scanned"); \
	trace_clear(); \
} while (0)

#define HASHED()	(ksm_stat("pages_hashed") - self->hashed)
#define SKIPPED()	(ksm_stat("pages_skipped") - self->skipped)
#define SCANNED()	(ksm_stat("pages_scanned") - self->scanned)

static size_t chunks_of(const char *addr, size_t npages)
{
	return ((uintptr_t)addr + (npages - 1) * PGSZ) / HUGE_SIZE -
	       (uintptr_t)addr / HUGE_SIZE + 1;
}

TEST_F(watch, clean_pages_are_not_read)
{
	enum { PAGES = 2 * HUGE_PAGES + 100 };
	char *buf = ksm_mmap(PAGES);
	unsigned char times[PAGES];
	const long long chunks = chunks_of(buf, PAGES);
	uint64_t before[PAGES];
	size_t other = 0;

	ksm_fill(buf, PAGES, 1);
	ksm_pfns(0, buf, PAGES, before);
	ASSERT_EQ(ksm_register(self->area, buf, PAGES), 0);

	/* New: each is read once. */
	COUNT_ANEW();
	ksm_passes(&self->k, 1);
	EXPECT_EQ(HASHED(), PAGES);
	EXPECT_EQ(SKIPPED(), 0);
	EXPECT_EQ(traced(buf, PAGES, times), PAGES);
	for (int i = 0; i < PAGES; i++)
		other += times[i] != 1;
	EXPECT_EQ(other, 0);
	EXPECT_STATS(0, 0, 0, PAGES, 0);

	/* The second look makes candidates of them without reading. */
	for (int pass = 1; pass < 8; pass++) {
		COUNT_ANEW();
		ksm_passes(&self->k, 1);
		EXPECT_LE(HASHED(), chunks);
		EXPECT_EQ(SKIPPED(), PAGES - HASHED());
		EXPECT_EQ(SCANNED(), PAGES);
		EXPECT_EQ((long long)traced(buf, PAGES, NULL), HASHED());
		EXPECT_STATS(0, 0, PAGES, 0, 0);
	}

	/* And so it goes on, with each page's turn once a round. */
	COUNT_ANEW();
	ksm_passes(&self->k, ROUND);
	EXPECT_EQ(HASHED(), PAGES);
	EXPECT_EQ(SKIPPED(), (ROUND - 1) * PAGES);
	EXPECT_EQ(traced(buf, PAGES, times), PAGES);
	for (int i = 0; i < PAGES; i++)
		other += times[i] != 1;
	EXPECT_EQ(other, 0) TH_LOG("%zu of %d pages were not read once in %d passes", other,
				   PAGES, ROUND);
	EXPECT_STATS(0, 0, PAGES, 0, 0);
	EXPECT_EQ(ksm_moved(0, buf, PAGES, before), 0);
	EXPECT_EQ(ksm_wrong(buf, PAGES, 1), 0);
}

/* What is merged is not read again at all, nor what the zero page is mapped for. */
TEST_F(watch, merged_pages_are_not_read)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N), *zero = ksm_mmap(N);

	ksm_fill(a, N, 2);
	ksm_fill(b, N, 2);
	ksm_fn_zero((long)zero, N, 0, 0);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ASSERT_EQ(ksm_register(self->area, zero, N), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	COUNT_ANEW();
	ksm_passes(&self->k, ROUND);
	EXPECT_EQ(HASHED(), 0);
	EXPECT_EQ(SKIPPED(), ROUND * 3 * N);
	EXPECT_STATS(N, N, 0, 0, N);
}

/* Only the pages that are written are read, whatever is written. */
TEST_F(watch, only_what_was_written)
{
	enum { PAGES = 300 };
	char *buf = ksm_mmap(PAGES);
	const long long chunks = chunks_of(buf, PAGES);
	unsigned char times[PAGES];
	size_t other = 0;
	char copy[PGSZ];

	ksm_fill(buf, PAGES, 3);
	ASSERT_EQ(ksm_register(self->area, buf, PAGES), 0);
	ksm_passes(&self->k, PASSES);

	/* One byte, which is at another place in each. */
	for (int i = 0; i < PAGES; i += 3)
		ksm_page(buf, i)[i * 13]++;
	COUNT_ANEW();
	ksm_passes(&self->k, 1);
	EXPECT_LE(HASHED(), PAGES / 3 + chunks);
	EXPECT_EQ(SKIPPED(), PAGES - HASHED());
	EXPECT_EQ((long long)traced(buf, PAGES, times), HASHED());
	for (int i = 0; i < PAGES; i += 3)
		other += times[i] != 1;
	EXPECT_EQ(other, 0);
	EXPECT_STATS(0, 0, PAGES - PAGES / 3, PAGES / 3, 0);
	ksm_passes(&self->k, 2);
	EXPECT_STATS(0, 0, PAGES, 0, 0);

	/* The same contents as before: read, and found to be what they were. */
	for (int i = 0; i < PAGES; i += 3) {
		memcpy(copy, ksm_page(buf, i), PGSZ);
		memcpy(ksm_page(buf, i), copy, PGSZ);
	}
	COUNT_ANEW();
	ksm_passes(&self->k, 1);
	EXPECT_LE(HASHED(), PAGES / 3 + chunks);
	traced(buf, PAGES, times);
	for (int i = 0; i < PAGES; i += 3)
		other += times[i] != 1;
	EXPECT_EQ(other, 0);
	EXPECT_STATS(0, 0, PAGES, 0, 0);
}

/* ---- every way to change a page between two scans ---- */

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
		ksm_passes(&self->k, 1);
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
	ksm_fill(second, N, 17);
	trace_clear();
	ksm_passes(&self->k, 1);
	traced(second, N, times);
	for (int i = 0; i < N; i++)
		unread += !times[i];
	EXPECT_EQ(unread, 0);
	/* Protected, or all this shows nothing. */
	faults = ksm_minflt();
	ksm_fill(second, N, 17);
	EXPECT_EQ(ksm_minflt() - faults, N);
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
	char *first = ksm_mmap(N), *second = ksm_mmap(N), *third = ksm_mmap(N);

	ksm_fill(first, N, 18);
	ksm_fill(second, N, 19);
	ASSERT_EQ(ksm_register(self->area, first, N), 0);
	ASSERT_EQ(ksm_register(self->area, second, N), 0);
	ksm_passes(&self->k, PASSES);
	ksm_fill(second, N, 18);
	ksm_passes(&self->k, 1);
	EXPECT_STATS(0, 0, N, N, 0);
	write_vm_writev(first, 20);
	write_vm_writev(second, 20);
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
		ksm_passes(&self->k, round % 2 ? 6 : 1);
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

/* ---- a processor that remembers that the pte is dirty ---- */

struct warm {
	volatile uint64_t *word;
	_Atomic int stop;
};

static void *warm_main(void *arg)
{
	struct warm *w = arg;

	ksm_use_cpu(1);
	/* Nothing but this page, so that its translation stays in the TLB. */
	while (!w->stop)
		++*w->word;
	return NULL;
}

/*
 * A thread on another processor writes to one page all the time, and to nothing
 * else. If the pte is cleaned behind its back it goes on writing through its
 * TLB, and no dirty bit tells.
 * Return: after how many of @rounds passes its page was not read.
 */
static size_t count_missed(const struct ksm *k, char *addr, int rounds)
{
	struct warm w = { .word = (uint64_t *)addr };
	unsigned char times[1];
	size_t missed = 0;
	pthread_t thread;

	ksm_use_cpu(0);
	if (pthread_create(&thread, NULL, warm_main, &w))
		ksm_die("cannot start a thread");
	for (int round = 0; round < rounds; round++) {
		uint64_t seen = *w.word;

		/* It has written since the last pass. */
		while (*w.word < seen + 10000)
			;
		trace_clear();
		ksm_passes(k, 1);
		missed += !traced(addr, 1, times);
	}
	w.stop = 1;
	pthread_join(thread, NULL);
	return missed;
}

TEST_F(watch, tlb_is_warm)
{
	char *buf = ksm_mmap(N), *huge = ksm_mmap_huge(1);

	ksm_fill(buf, N, 35);
	ksm_fill(huge, HUGE_PAGES, 36);
	ASSERT_EQ(ksm_register(self->area, buf, N), 0);
	ASSERT_EQ(ksm_register(self->area, huge, HUGE_PAGES), 0);
	*(uint64_t *)ksm_page(buf, N / 2) = 0;
	EXPECT_EQ(count_missed(&self->k, ksm_page(buf, N / 2), 40), 0);
	EXPECT_EQ(ksm_stat("pages_unshared"), N - 1 + HUGE_PAGES);
	*(uint64_t *)ksm_page(huge, 100) = 0;
	EXPECT_EQ(count_missed(&self->k, ksm_page(huge, 100), 40), 0);
	EXPECT_EQ(ksm_stat("pages_unshared"), N + HUGE_PAGES - 1);
	EXPECT_EQ(ksm_smaps(huge, "AnonHugePages"), HUGE_PAGES);
}

/* ---- reclaim ---- */

#define CGROUP "/sys/fs/cgroup"
#define GROUP CGROUP "/ksm_watch_test"

/* What the child of a swap test and its threads share with the test. */
struct shared {
	const struct ksm *k;
	char *mem;
	size_t npages;
	unsigned long writes;		/* to do */
	unsigned char *value;		/* shadow copy: what each page holds */
	_Atomic unsigned long done;
	_Atomic unsigned long lost;
	_Atomic int stop;
};

FIXTURE(swap)
{
	struct ksm k;
	int area;
	struct ksm_swap swap;
	struct shared *s;
};

FIXTURE_VARIANT(swap)
{
	bool loop;
};

FIXTURE_VARIANT_ADD(swap, zram) { .loop = false };
/* Where pages stay in the swap cache after they were read. */
FIXTURE_VARIANT_ADD(swap, loop) { .loop = true };

FIXTURE_SETUP(swap)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	ksm_swap_on(&self->swap, variant->loop, 8192);
	self->s = mmap(NULL, sizeof(*self->s), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(self->s, MAP_FAILED);
	self->s->k = &self->k;
}

FIXTURE_TEARDOWN(swap)
{
	ksm_swap_off(&self->swap);
	close(self->area);
	ksm_finish(&self->k);
}

static long vm_counter(const char *name)
{
	FILE *f = fopen("/proc/vmstat", "re");
	char line[128], key[64];
	long value, found = -1;

	if (!f)
		ksm_die("cannot open /proc/vmstat: %s", strerror(errno));
	while (found < 0 && fgets(line, sizeof(line), f))
		if (sscanf(line, "%63s %ld", key, &value) == 2 && !strcmp(key, name))
			found = value;
	fclose(f);
	if (found < 0)
		ksm_die("/proc/vmstat has no %s", name);
	return found;
}

#define VALUES 3

/* Pages come in groups of four that are equal where the values are. */
static bool holds(struct shared *s, size_t page)
{
	return ksm_page_is(ksm_page(s->mem, page), 40 + s->value[page], page / 4);
}

static void give(struct shared *s, size_t page, unsigned char value)
{
	s->value[page] = value;
	ksm_fill_page(ksm_page(s->mem, page), 40 + value, page / 4);
}

static void *writer_main(void *arg)
{
	unsigned int seed = 20261121;
	struct shared *s = arg;

	ksm_use_cpu(1);
	for (unsigned long i = 0; i < s->writes && !s->lost; i++) {
		size_t page = rand_r(&seed) % s->npages;

		/* Most writes go to a few pages, so that others grow old. */
		if (i % 4)
			page %= s->npages / 16;
		s->lost += !holds(s, page);
		give(s, page, rand_r(&seed) % VALUES);
		s->done++;
	}
	s->stop = 1;
	return NULL;
}

static long fn_under_pressure(long shared, long unused, long unused2, long unused3)
{
	struct shared *s = (struct shared *)shared;
	unsigned int seed = 12345;
	pthread_t thread;

	(void)unused;
	(void)unused2;
	(void)unused3;
	s->value = calloc(s->npages, 1);
	for (size_t i = 0; i < s->npages; i++)
		give(s, i, i % VALUES);
	if (pthread_create(&thread, NULL, writer_main, s))
		ksm_die("cannot start a thread");
	/* The group's limit does its part; this adds what is in use just now. */
	while (!s->stop) {
		size_t first = rand_r(&seed) % s->npages;
		size_t n = rand_r(&seed) % 256 + 1;

		if (n > s->npages - first)
			n = s->npages - first;
		madvise(ksm_page(s->mem, first), n * PGSZ, MADV_PAGEOUT);
	}
	pthread_join(thread, NULL);
	for (size_t i = 0; i < s->npages; i++)
		s->lost += !holds(s, i);
	return s->lost;
}

static long group_events(const char *name)
{
	FILE *f = fopen(GROUP "/memory.events", "re");
	char line[128], key[64];
	long value, found = -1;

	if (!f)
		ksm_die("cannot open " GROUP "/memory.events: %s", strerror(errno));
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%63s %ld", key, &value) == 2 && !strcmp(key, name))
			found = value;
	fclose(f);
	return found;
}

/* A process in a group that is too small for it writes, is reclaimed and scanned. */
TEST_F(swap, memory_pressure)
{
	enum { PAGES = 3072 };
	long swapped = vm_counter("pswpout"), most = 0;
	long long hashed = ksm_stat("pages_hashed");
	struct ksm_child c;
	char limit[32];

	ksm_write_file(CGROUP "/cgroup.subtree_control", "+memory");
	rmdir(GROUP);
	ASSERT_EQ(mkdir(GROUP, 0755), 0) TH_LOG("mount cgroup2 on " CGROUP);
	snprintf(limit, sizeof(limit), "%lu", PAGES * 3 / 4 * PGSZ);
	ASSERT_EQ(ksm_write_file(GROUP "/memory.max", limit), 0);
	self->s->mem = ksm_mmap(PAGES);
	self->s->npages = PAGES;
	self->s->writes = 12000;
	ksm_spawn(&c);
	snprintf(limit, sizeof(limit), "%d", c.pid);
	ASSERT_EQ(ksm_write_file(GROUP "/cgroup.procs", limit), 0);
	ASSERT_GE(ksm_call(&c, ksm_fn_area_register, self->k.dev, self->s->mem, PAGES), 0);
	ksm_call_start(&c, fn_under_pressure, (long)self->s, 0, 0, 0);
	ksm_use_cpu(0);
	while (!self->s->stop && !group_events("oom_kill")) {
		long now;

		ksm_passes(&self->k, 1);
		now = ksm_stat("pages_sharing");
		most = now > most ? now : most;
	}
	EXPECT_EQ(ksm_call_finish(&c), 0);
	swapped = vm_counter("pswpout") - swapped;
	TH_LOG("%lu writes, %ld pages swapped out, %lld read by the scan, at most %ld sharing",
	       (unsigned long)self->s->done, swapped, ksm_stat("pages_hashed") - hashed, most);
	EXPECT_EQ(self->s->done, self->s->writes);
	/* The test was one. */
	EXPECT_GT(swapped, 0);
	EXPECT_GT(most, 0);
	ksm_end(&c);
	EXPECT_EQ(rmdir(GROUP), 0);
}

struct hot {
	volatile uint64_t *word[8];
	unsigned long lost, writes;
	_Atomic int stop;
};

static void *hot_main(void *arg)
{
	struct hot *h = arg;
	uint64_t last[ARRAY_SIZE(h->word)] = { 0 };

	ksm_use_cpu(1);
	while (!h->stop) {
		for (size_t i = 0; i < ARRAY_SIZE(h->word); i++) {
			h->lost += *h->word[i] != last[i];
			*h->word[i] = ++last[i];
		}
		h->writes++;
	}
	return NULL;
}

static void *scan_main(void *arg)
{
	struct shared *s = arg;

	ksm_use_cpu(0);
	while (!s->stop)
		ksm_passes(s->k, 1);
	return NULL;
}

/*
 * A processor writes to a few pages without a pause, with the same translations all
 * the time, as they are cleaned and reclaimed. Reclaim may leave the flush of a
 * clean pte for later, so what still writes then writes to a page that is gone.
 */
TEST_F(swap, tlb_is_warm)
{
	enum { ROUNDS = 5000, OUT = 200 };
	char *buf = ksm_mmap(N);
	long begin = vm_counter("pswpout"), middle;
	pthread_t writer, scanner;
	struct hot h = { 0 };

	ksm_fn_fill((long)buf, N, 45, 0);
	for (size_t i = 0; i < ARRAY_SIZE(h.word); i++) {
		h.word[i] = (uint64_t *)ksm_page(buf, i);
		*h.word[i] = 0;
	}
	ASSERT_EQ(ksm_register(self->area, buf, N), 0);
	ASSERT_EQ(pthread_create(&writer, NULL, hot_main, &h), 0);
	/* By turns first, then side by side, until enough was swapped out. */
	for (int i = 0; i < ROUNDS && vm_counter("pswpout") < begin + OUT; i++) {
		ksm_passes(&self->k, 1);
		ASSERT_EQ(madvise(buf, N * PGSZ, MADV_PAGEOUT), 0);
	}
	middle = vm_counter("pswpout");
	ASSERT_EQ(pthread_create(&scanner, NULL, scan_main, self->s), 0);
	for (int i = 0; i < ROUNDS && vm_counter("pswpout") < middle + 5 * OUT; i++)
		ASSERT_EQ(madvise(buf, N * PGSZ, MADV_PAGEOUT), 0);
	self->s->stop = 1;
	pthread_join(scanner, NULL);
	h.stop = 1;
	pthread_join(writer, NULL);
	TH_LOG("%lu rounds of writes, %ld pages swapped out", h.writes,
	       vm_counter("pswpout") - begin);
	EXPECT_EQ(h.lost, 0);
	EXPECT_GE(middle, begin + OUT);
	EXPECT_GE(vm_counter("pswpout"), middle + 5 * OUT);
	for (size_t i = 0; i < ARRAY_SIZE(h.word); i++)
		EXPECT_EQ(*h.word[i], h.writes);
}

/*
 * Pages in the swap cache that were read, then written: what is in swap is old, and
 * only the dirtiness that the scan passes on says so.
 */
TEST_F(swap, cleaned_and_reclaimed)
{
	enum { PAGES = 256 };
	char *a = ksm_mmap(PAGES);

	ASSERT_EQ(ksm_register(self->area, a, PAGES), 0);
	for (int passes = 1; passes < 4; passes++) {
		ksm_fill(a, PAGES, 50);
		ASSERT_EQ(ksm_page_out(a, PAGES), PAGES);
		EXPECT_EQ(ksm_wrong(a, PAGES, 50), 0);
		ksm_fill(a, PAGES, 50 + passes);
		ksm_passes(&self->k, passes);
		ksm_page_out(a, PAGES);
		EXPECT_EQ(ksm_wrong(a, PAGES, 50 + passes), 0) TH_LOG("%d passes", passes);
	}
}

/* The same of a huge page: freed lazily, then written, it is not to be freed. */
TEST_F(swap, huge_lazyfree)
{
	for (int passes = 0; passes < 3; passes++) {
		char *p = ksm_mmap_huge(2);

		ASSERT_EQ(ksm_register(self->area, p, 2 * HUGE_PAGES), 0);
		ksm_fill(p, 2 * HUGE_PAGES, 55);
		ksm_passes(&self->k, passes);
		ASSERT_EQ(madvise(p, 2 * HUGE_SIZE, MADV_FREE), 0);
		for (int i = 0; i < 2 * HUGE_PAGES; i++)
			*(volatile char *)ksm_page(p, i) += 1 + passes;
		ksm_passes(&self->k, 1 + passes);
		madvise(p, 2 * HUGE_SIZE, MADV_PAGEOUT);
		for (int i = 0; i < 2 * HUGE_PAGES; i++)
			*(volatile char *)ksm_page(p, i) -= 1 + passes;
		EXPECT_EQ(ksm_wrong(p, 2 * HUGE_PAGES, 55), 0) TH_LOG("%d passes", passes);
	}
}

/* ---- what else the kernel does with pages ---- */

static size_t soft_dirty(const char *addr, size_t npages)
{
	size_t n = 0;

	for (size_t i = 0; i < npages; i++)
		n += !!(ksm_pagemap(0, ksm_page(addr, i)) & PM_SOFT_DIRTY);
	return n;
}

TEST_F(watch, soft_dirty_stays)
{
	char *buf = ksm_mmap(N), *huge = ksm_mmap_huge(1);

	if (!ksm_has_soft_dirty())
		SKIP(return, "this kernel has no soft-dirty bits");
	ksm_fill(buf, N, 60);
	ksm_fill(huge, HUGE_PAGES, 61);
	ASSERT_EQ(ksm_register(self->area, buf, N), 0);
	ASSERT_EQ(ksm_register(self->area, huge, HUGE_PAGES), 0);
	for (int passes = 1; passes < 5; passes++) {
		ASSERT_EQ(ksm_write_file("/proc/self/clear_refs", "4"), 0);
		ksm_passes(&self->k, passes);
		EXPECT_EQ(soft_dirty(buf, N), 0);
		EXPECT_EQ(soft_dirty(huge, HUGE_PAGES), 0);
		for (int i = 0; i < N; i += 2)
			ksm_page(buf, i)[passes]++;
		ksm_page(huge, 100)[passes]++;
		/* Cleaned, and still to be saved by whoever asks. */
		ksm_passes(&self->k, passes);
		EXPECT_EQ(soft_dirty(buf, N), N / 2);
		EXPECT_EQ(soft_dirty(huge, HUGE_PAGES), HUGE_PAGES);
	}
	EXPECT_EQ(ksm_smaps(huge, "AnonHugePages"), HUGE_PAGES);
}

TEST_F(watch, mlocked)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);
	const long long chunks = chunks_of(a, N) + chunks_of(b, N);

	ksm_fill(a, N, 62);
	ksm_fill(b, N, 63);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	ksm_passes(&self->k, 1);
	ASSERT_EQ(mlock(a, N * PGSZ), 0);
	ksm_passes(&self->k, 1);
	EXPECT_STATS(0, 0, 2 * N, 0, 0);
	for (int i = 0; i < 3; i++) {
		COUNT_ANEW();
		ksm_passes(&self->k, 1);
		EXPECT_LE(HASHED(), chunks);
		EXPECT_EQ(SKIPPED(), 2 * N - HASHED());
	}
	ksm_fill(a, N, 63);
	ksm_passes(&self->k, PASSES);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ksm_fill(b, N, 64);
	ksm_passes(&self->k, PASSES);
	EXPECT_EQ(ksm_wrong(a, N, 63), 0);
	EXPECT_EQ(ksm_wrong(b, N, 64), 0);
	/* Shared pages that nobody shares any more are private again. */
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), 0);
}

#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif

/* Move a page to another frame, once for all: its old one is not used any more. */
static void migrate(char *page)
{
	/* It may wait for a moment in a CPU's list. */
	for (int i = 0; i < 50; i++) {
		if (!madvise(page, PGSZ, MADV_SOFT_OFFLINE))
			return;
		usleep(20000);
	}
	ksm_die("MADV_SOFT_OFFLINE: %s; the kernel needs CONFIG_MEMORY_FAILURE", strerror(errno));
}

/*
 * Pages are moved to other frames. What was written before or after that is found
 * all the same, and what was not is still what it was.
 */
TEST_F(watch, migrated)
{
	char *a = ksm_mmap(N), *b = ksm_mmap(N);
	uint64_t before[N];

	ksm_fill(a, N, 71);
	ksm_fill(b, N, 72);
	ASSERT_EQ(ksm_register(self->area, a, N), 0);
	ASSERT_EQ(ksm_register(self->area, b, N), 0);
	for (int round = 0; round < 2; round++) {
		size_t same = 0, wrong = 0;

		ksm_passes(&self->k, PASSES);
		EXPECT_STATS(0, 0, 2 * N, 0, 0);
		/* Some before it, some after it, some never. */
		for (int i = 0; i < N; i += 4)
			ksm_fill_page(ksm_page(a, i), 72, i);
		ksm_pfns(0, a, N, before);
		for (int i = 0; i < N; i += 3)
			migrate(ksm_page(a, i));
		EXPECT_GE(ksm_moved(0, a, N, before), DIV_UP(N, 3));
		/* Those of the other buffer by the kernel's choice, if it likes. */
		ASSERT_EQ(ksm_write_file("/proc/sys/vm/compact_memory", "1"), 0);
		for (int i = 1; i < N; i += 4)
			ksm_fill_page(ksm_page(a, i), 72, i);
		ksm_merge_all(&self->k);
		for (int i = 0; i < N; i++) {
			if (i % 4 < 2)
				same += ksm_same_frames(0, ksm_page(a, i), 0, ksm_page(b, i), 1);
			wrong += !ksm_page_is(ksm_page(a, i), i % 4 < 2 ? 72 : 71, i);
		}
		EXPECT_EQ(same, N / 2) TH_LOG("round %d", round);
		EXPECT_EQ(wrong, 0) TH_LOG("round %d", round);
		EXPECT_EQ(ksm_wrong(b, N, 72), 0);
		EXPECT_STATS(N / 2, N / 2, N, 0, 0);
		/* Private pages of their own again. */
		ksm_fill(a, N, 71);
		ksm_fill(b, N, 72);
	}
}

/* ---- huge pages ---- */

#define SYSFS "/sys/class/misc/ksm/"

FIXTURE(huge)
{
	struct ksm k;
	int area;
	long long hashed, skipped, scanned, threshold;
};

FIXTURE_SETUP(huge)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	self->threshold = ksm_stat("thp_split_threshold");
}

static int set_threshold(long long pages)
{
	char text[32];

	snprintf(text, sizeof(text), "%lld", pages);
	return ksm_write_file(SYSFS "thp_split_threshold", text);
}

FIXTURE_TEARDOWN(huge)
{
	EXPECT_EQ(set_threshold(self->threshold), 0);
	close(self->area);
	ksm_finish(&self->k);
}

TEST_F(huge, threshold_is_checked)
{
	EXPECT_GE(self->threshold, 1);
	EXPECT_LE(self->threshold, HUGE_PAGES);
	EXPECT_EQ(set_threshold(0), -EINVAL);
	EXPECT_EQ(set_threshold(HUGE_PAGES + 1), -EINVAL);
	EXPECT_EQ(set_threshold(-1), -EINVAL);
	EXPECT_EQ(ksm_write_file(SYSFS "thp_split_threshold", "many"), -EINVAL);
	EXPECT_EQ(ksm_stat("thp_split_threshold"), self->threshold);
	EXPECT_EQ(set_threshold(1), 0);
	EXPECT_EQ(ksm_stat("thp_split_threshold"), 1);
	EXPECT_EQ(set_threshold(HUGE_PAGES), 0);
	EXPECT_EQ(ksm_stat("thp_split_threshold"), HUGE_PAGES);
}

/* Idle huge pages are not read; one byte makes that huge page, and no other, read. */
TEST_F(huge, one_write)
{
	enum { HUGE = 3 };
	char *p = ksm_mmap_huge(HUGE);

	ksm_fill(p, HUGE * HUGE_PAGES, 80);
	ASSERT_EQ(ksm_register(self->area, p, HUGE * HUGE_PAGES), 0);
	self->hashed = ksm_stat("pages_hashed");
	ksm_passes(&self->k, 1);
	EXPECT_EQ(HASHED(), HUGE * HUGE_PAGES);
	for (int i = 0; i < 4; i++) {
		self->hashed = ksm_stat("pages_hashed");
		self->skipped = ksm_stat("pages_skipped");
		ksm_passes(&self->k, 1);
		EXPECT_LE(HASHED(), HUGE);
		EXPECT_EQ(SKIPPED(), HUGE * HUGE_PAGES - HASHED());
		EXPECT_STATS(0, 0, HUGE * HUGE_PAGES, 0, 0);
	}
	for (int i = 0; i < 4; i++) {
		ksm_page(p, HUGE_PAGES + 37 * i)[i]++;
		self->hashed = ksm_stat("pages_hashed");
		ksm_passes(&self->k, 1);
		EXPECT_GE(HASHED(), HUGE_PAGES);
		EXPECT_LE(HASHED(), HUGE_PAGES + HUGE);
		EXPECT_STATS(0, 0, HUGE * HUGE_PAGES - 1, 1, 0);
		ksm_passes(&self->k, 1);
		EXPECT_STATS(0, 0, HUGE * HUGE_PAGES, 0, 0);
	}
	EXPECT_EQ(ksm_smaps(p, "AnonHugePages"), HUGE * HUGE_PAGES);
}

/* One subpage fewer than is worth a split, then as many. */
TEST_F(huge, split_at_the_threshold)
{
	const int thresholds[] = { self->threshold, 1, 200, HUGE_PAGES };

	for (size_t i = 0; i < ARRAY_SIZE(thresholds); i++) {
		const int n = thresholds[i];
		char *p = ksm_mmap_huge(1), *small = ksm_mmap(HUGE_PAGES);
		long long splits = ksm_stat("thp_splits");

		ASSERT_EQ(set_threshold(n), 0);
		ksm_fill(p, HUGE_PAGES, 81);
		ksm_fill(small, HUGE_PAGES, 82);
		/* Not in a row. */
		for (int j = 0; j < n - 1; j++)
			ksm_fill_page(ksm_page(small, j * 5 % HUGE_PAGES), 81,
				      j * 5 % HUGE_PAGES);
		ASSERT_EQ(ksm_register(self->area, p, HUGE_PAGES), 0);
		ASSERT_EQ(ksm_register(self->area, small, HUGE_PAGES), 0);
		ksm_passes(&self->k, 20);
		EXPECT_EQ(ksm_stat("thp_splits"), splits);
		EXPECT_EQ(ksm_smaps(p, "AnonHugePages"), HUGE_PAGES);
		EXPECT_STATS(0, 0, 2 * HUGE_PAGES, 0, 0);

		ksm_fill_page(ksm_page(small, (n - 1) * 5 % HUGE_PAGES), 81,
			      (n - 1) * 5 % HUGE_PAGES);
		ksm_passes(&self->k, 20);
		EXPECT_EQ(ksm_stat("thp_splits"), splits + 1) TH_LOG("threshold %d", n);
		EXPECT_EQ(ksm_smaps(p, "AnonHugePages"), 0);
		EXPECT_EQ((int)ksm_same_frames(0, p, 0, small, HUGE_PAGES), n);
		EXPECT_STATS(n, n, 2 * (HUGE_PAGES - n), 0, 0);
		EXPECT_EQ(ksm_wrong(p, HUGE_PAGES, 81), 0);
		ASSERT_EQ(ksm_remove(self->area), 0);
		munmap(p, HUGE_SIZE);
		munmap(small, HUGE_SIZE);
	}
}

/* Partners that are gone do not count; never are there enough at one time. */
TEST_F(huge, partners_come_and_go)
{
	enum { THRESHOLD = 64, PART = 40 };
	char *p = ksm_mmap_huge(1), *small = ksm_mmap(HUGE_PAGES);
	long long splits = ksm_stat("thp_splits");

	ASSERT_EQ(set_threshold(THRESHOLD), 0);
	ksm_fill(p, HUGE_PAGES, 83);
	ksm_fill(small, HUGE_PAGES, 84);
	ASSERT_EQ(ksm_register(self->area, p, HUGE_PAGES), 0);
	ASSERT_EQ(ksm_register(self->area, small, HUGE_PAGES), 0);
	for (int part = 0; part < 3; part++) {
		for (int i = 0; i < HUGE_PAGES; i++)
			ksm_fill_page(ksm_page(small, i), i / PART == part ? 83 : 85 + part, i);
		ksm_passes(&self->k, 20);
		EXPECT_EQ(ksm_stat("thp_splits"), splits) TH_LOG("part %d", part);
	}
	/* Nor those of contents that it does not hold any more. */
	for (int part = 0; part < 3; part++) {
		ksm_fill(p, HUGE_PAGES, 90 + part);
		for (int i = 0; i < HUGE_PAGES; i++)
			ksm_fill_page(ksm_page(small, i), i / PART == part ? 90 + part : 84, i);
		ksm_passes(&self->k, 20);
		EXPECT_EQ(ksm_stat("thp_splits"), splits) TH_LOG("part %d", part);
	}
	EXPECT_EQ(ksm_smaps(p, "AnonHugePages"), HUGE_PAGES);
}

TEST_F(huge, zero)
{
	enum { HUGE = 4 };
	char *p = ksm_mmap_huge(HUGE);
	long long splits = ksm_stat("thp_splits");
	long free;

	memset(p, 1, HUGE * HUGE_SIZE);
	memset(p, 0, HUGE * HUGE_SIZE);
	free = ksm_memfree();
	ASSERT_EQ(ksm_register(self->area, p, HUGE * HUGE_PAGES), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_stat("thp_splits"), splits + HUGE);
	EXPECT_EQ(ksm_distinct(0, p, HUGE * HUGE_PAGES), 1);
	EXPECT_EQ(ksm_pfn(0, p), ksm_zero_pfn());
	EXPECT_EQ(ksm_smaps(p, "Rss"), 0);
	EXPECT_TRUE(ksm_wait_memfree(free + HUGE * HUGE_PAGES - 128));
	EXPECT_EQ(ksm_stat("zero_pages"), HUGE * HUGE_PAGES);
	EXPECT_EQ(ksm_wrong_zero(p, HUGE * HUGE_PAGES), 0);
}

/* ---- several at once ---- */

static void *pass_main(void *arg)
{
	struct ksm *k = arg;

	/* Two of them: each does about half. */
	ksm_passes(k, 3);
	return NULL;
}

/* Pairs, groups, zero pages, and pages that equal none, over several chunks. */
static void fill_mixed(char *mem, size_t npages)
{
	for (size_t i = 0; i < npages; i++) {
		switch (i % 8) {
		case 0:
		case 1:
			ksm_fill_page(ksm_page(mem, i), 100, i / 8);
			break;
		case 2:
			ksm_fill_page(ksm_page(mem, i), 101, i / 8 % 37);
			break;
		case 3:
			memset(ksm_page(mem, i), 1, PGSZ);
			memset(ksm_page(mem, i), 0, PGSZ);
			break;
		default:
			ksm_fill_page(ksm_page(mem, i), 102, i % 8 > 5 ? i : i % (npages / 2));
		}
	}
}

static const char *const counters[] = {
	"pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "zero_pages",
};

TEST_F(device, two_threads_do_what_one_does)
{
	enum { PAGES = 4 * HUGE_PAGES };
	long long one[ARRAY_SIZE(counters)];
	char *mem;

	for (int both = 0; both < 3; both++) {
		mem = ksm_mmap(PAGES);
		fill_mixed(mem, PAGES);
		ASSERT_EQ(ksm_register(self->area, mem, PAGES), 0);
		if (both == 1) {
			struct ksm other = { .dev = self->k.dev, .scan = -1 };
			pthread_t threads[2];
			int scan;

			scan = ioctl(self->k.dev, KSM_CREATE_SCAN);
			ASSERT_GE(scan, 0);
			other.scan = scan;
			ASSERT_EQ(pthread_create(&threads[0], NULL, pass_main, &self->k), 0);
			ASSERT_EQ(pthread_create(&threads[1], NULL, pass_main, &other), 0);
			pthread_join(threads[0], NULL);
			pthread_join(threads[1], NULL);
			close(scan);
		} else if (both == 2) {
			long long passes = ksm_stat("full_scans");

			ASSERT_EQ(ksm_set_pace(self->k.dev, 0, 2), 0);
			ASSERT_EQ(ksm_start(self->k.dev, 1000, 0, 0), 0);
			while (ksm_stat("full_scans") < passes + 8)
				usleep(1000);
			ASSERT_EQ(ksm_stop(self->k.dev), 0);
			ASSERT_EQ(ksm_set_pace(self->k.dev, 0, 1), 0);
		} else {
			ksm_merge_all(&self->k);
		}
		/* What one kept from the other is done in the end. */
		ksm_merge_held(&self->k);
		for (size_t i = 0; i < ARRAY_SIZE(counters); i++) {
			if (!both)
				one[i] = ksm_stat(counters[i]);
			EXPECT_EQ(ksm_stat(counters[i]), one[i]) TH_LOG("%s", counters[i]);
		}
		ASSERT_EQ(ksm_remove(self->area), 0);
		munmap(mem, PAGES * PGSZ);
	}
	EXPECT_GT(one[0], PAGES / 8);
	EXPECT_GT(one[1], PAGES / 8);
	EXPECT_EQ(one[4], PAGES / 8);
}

/* ---- the rest ---- */

TEST_F(device, longest_hold)
{
	static const char path[] = SYSFS "longest_hold_us";
	char *a = ksm_mmap(4 * N), *b = ksm_mmap(4 * N);
	long long last;

	ksm_fill(a, 4 * N, 110);
	ksm_fill(b, 4 * N, 110);
	ASSERT_EQ(ksm_register(self->area, a, 4 * N), 0);
	ASSERT_EQ(ksm_register(self->area, b, 4 * N), 0);
	ASSERT_EQ(ksm_write_file(path, "0"), 0);
	EXPECT_EQ(ksm_stat("longest_hold_us"), 0);
	EXPECT_EQ(ksm_write_file(path, "1"), -EINVAL);
	EXPECT_EQ(ksm_write_file(path, "-1"), -EINVAL);
	EXPECT_EQ(ksm_write_file(path, "x"), -EINVAL);
	EXPECT_EQ(ksm_stat("longest_hold_us"), 0);
	ksm_merge_all(&self->k);
	last = ksm_stat("longest_hold_us");
	EXPECT_GT(last, 0);
	ksm_passes(&self->k, 2);
	EXPECT_GE(ksm_stat("longest_hold_us"), last);
	ASSERT_EQ(ksm_write_file(path, "0"), 0);
	EXPECT_EQ(ksm_stat("longest_hold_us"), 0);
}

FIXTURE(sparse)
{
	struct ksm k;
	int area;
};

FIXTURE_VARIANT(sparse)
{
	int prot;
};

/* Nothing is there but one page's mapping; or a mapping of which one page is there. */
FIXTURE_VARIANT_ADD(sparse, no_access) { .prot = PROT_NONE };
FIXTURE_VARIANT_ADD(sparse, untouched) { .prot = PROT_READ | PROT_WRITE };

FIXTURE_SETUP(sparse)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
}

FIXTURE_TEARDOWN(sparse)
{
	close(self->area);
	ksm_finish(&self->k);
}

/* Four passes, by calls that visit 1000 chunks at most; how many. */
static int four_passes(const struct ksm *k)
{
	long long passes = ksm_stat("full_scans");
	int calls = 0;

	while (ksm_stat("full_scans") < passes + 4 && calls < 100) {
		if (ksm_scan(k->scan, 1000 * HUGE_PAGES))
			ksm_die("KSM_SCAN failed; see the kernel log");
		calls++;
	}
	return calls;
}

TEST_F(sparse, one_page_in_32_tib)
{
	/* 32 TiB: their page tables alone, and 10 bytes a page, would be 144 GiB. */
	const size_t npages = (32UL << 40) / PGSZ, page = npages / 3;
	char *mem = mmap(NULL, npages * PGSZ, variant->prot,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	long long metadata = ksm_stat("metadata_bytes"), passes;
	char *twin = ksm_mmap(1);
	int calls;

	ASSERT_NE(mem, MAP_FAILED);
	madvise(mem, npages * PGSZ, MADV_NOHUGEPAGE);
	ASSERT_EQ(mprotect(ksm_page(mem, page), PGSZ, PROT_READ | PROT_WRITE), 0);
	ksm_fill_page(ksm_page(mem, page), 111, 0);
	ksm_fill_page(twin, 111, 0);
	/* A registration holds less than 2^32 pages. */
	for (int i = 0; i < 4; i++)
		ASSERT_EQ(ksm_register(self->area, ksm_page(mem, i * (npages / 4)), npages / 4), 0);
	ASSERT_EQ(ksm_register(self->area, twin, 1), 0);
	EXPECT_EQ(ksm_stat("pages_registered"), (long long)npages + 1);
	passes = ksm_stat("full_scans");
	/* Of 16 million chunks. */
	calls = four_passes(&self->k);
	TH_LOG("4 passes took %d calls; %lld bytes", calls,
	       ksm_stat("metadata_bytes") - metadata);
	EXPECT_GE(ksm_stat("full_scans"), passes + 4);
	EXPECT_EQ(ksm_pfn(0, ksm_page(mem, page)), ksm_pfn(0, twin));
	EXPECT_STATS(1, 1, 0, 0, 0);
	EXPECT_LT(ksm_stat("metadata_bytes") - metadata, 64 << 10);
}

/* What is skipped together ends where the next page is, at each level of page tables. */
TEST_F(sparse, pages_far_apart)
{
	/* 4 KiB, 2 MiB, 1 GiB and 512 GiB, more or less. */
	static const size_t far[] = {
		0, 1, 511, 512, 513, 1024, (1UL << 18) - 1, 1UL << 18, (1UL << 18) + 512,
		(1UL << 20) + 7, (1UL << 27) - 512, 1UL << 27, (1UL << 27) + (3UL << 18),
		3UL << 27, (5UL << 27) + (511UL << 18) + 511 * 512 + 511,
	};
	const size_t npages = 6UL << 27;
	char *mem = mmap(NULL, npages * PGSZ, variant->prot,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *twin = ksm_mmap(1);

	ASSERT_NE(mem, MAP_FAILED);
	madvise(mem, npages * PGSZ, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < ARRAY_SIZE(far); i++) {
		ASSERT_EQ(mprotect(ksm_page(mem, far[i]), PGSZ, PROT_READ | PROT_WRITE), 0);
		ksm_fill_page(ksm_page(mem, far[i]), 113, 0);
	}
	ksm_fill_page(twin, 113, 0);
	ASSERT_EQ(ksm_register(self->area, mem, npages), 0);
	ASSERT_EQ(ksm_register(self->area, twin, 1), 0);
	four_passes(&self->k);
	for (size_t i = 0; i < ARRAY_SIZE(far); i++) {
		EXPECT_EQ(ksm_pfn(0, ksm_page(mem, far[i])), ksm_pfn(0, twin)) {
			TH_LOG("page %zu", far[i]);
		}
	}
	EXPECT_STATS(1, ARRAY_SIZE(far), 0, 0, 0);
}

/*
 * Thousands of equal pages, none of which can be merged: a pass costs no reading,
 * however long that lasts.
 */
TEST_F(watch, equal_pages_without_room)
{
	enum { PAGES = 2 * HUGE_PAGES };
	long long limit = ksm_stat("max_kernel_pages");
	char *buf = ksm_mmap(PAGES), text[32];
	const long long chunks = chunks_of(buf, PAGES);

	snprintf(text, sizeof(text), "%lld", limit);
	ksm_fill_same(buf, PAGES, 112);
	ASSERT_EQ(ksm_write_file(SYSFS "max_kernel_pages", "0"), 0);
	ASSERT_EQ(ksm_register(self->area, buf, PAGES), 0);
	ksm_passes(&self->k, PASSES);
	for (int i = 0; i < 20; i++) {
		COUNT_ANEW();
		ksm_passes(&self->k, 1);
		EXPECT_LE(HASHED(), chunks);
		EXPECT_EQ(SCANNED(), PAGES);
	}
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	/* With room they are merged at once. */
	ASSERT_EQ(ksm_write_file(SYSFS "max_kernel_pages", text), 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_distinct(0, buf, PAGES), PAGES / KSM_SHARE_LIMIT);
	EXPECT_EQ(ksm_wrong_same(buf, PAGES, 112), 0);
}

TEST_F(watch, equal_pages_that_are_held)
{
	enum { PAGES = 2 * HUGE_PAGES, PIPES = PAGES / 16 };
	char *buf = ksm_mmap(PAGES);
	const long long chunks = chunks_of(buf, PAGES);
	int fds[PIPES][2];
	long long failed;

	ksm_fill_same(buf, PAGES, 113);
	for (int i = 0; i < PIPES; i++) {
		struct iovec iov = { ksm_page(buf, i * 16), 16 * PGSZ };

		ASSERT_EQ(pipe(fds[i]), 0);
		ASSERT_EQ(vmsplice(fds[i][1], &iov, 1, 0), (ssize_t)(16 * PGSZ));
	}
	ASSERT_EQ(ksm_register(self->area, buf, PAGES), 0);
	ASSERT_EQ(ksm_write_file(INSTANCE "/events/ksmdev/ksmdev_merge_failed/enable", "1"), 0);
	ksm_passes(&self->k, 6);
	for (int round = 0; round < 2; round++) {
		COUNT_ANEW();
		ksm_passes(&self->k, 16);
		EXPECT_LE(HASHED(), 16 * chunks);
		EXPECT_GE(SKIPPED(), 16 * (PAGES - chunks));
		failed = 0;
		{
			FILE *f = fopen(INSTANCE "/trace", "re");
			char line[512];

			ASSERT_NE(f, NULL);
			while (fgets(line, sizeof(line), f))
				failed += !!strstr(line, "ksmdev_merge_failed: ");
			fclose(f);
		}
		TH_LOG("%lld attempts in 16 passes", failed);
		/* Each page is tried in one pass of 16, with a few others. */
		EXPECT_LE(failed, 4 * PAGES);
		EXPECT_STATS(0, 0, ksm_stat("pages_unshared"), ksm_stat("pages_volatile"), 0);
	}
	ASSERT_EQ(ksm_write_file(INSTANCE "/events/ksmdev/ksmdev_merge_failed/enable", "0"), 0);
	for (int i = 0; i < PIPES; i++) {
		close(fds[i][0]);
		close(fds[i][1]);
	}
	ksm_merge_held(&self->k);
	ksm_merge_held(&self->k);
	EXPECT_EQ(ksm_distinct(0, buf, PAGES), PAGES / KSM_SHARE_LIMIT);
	EXPECT_EQ(ksm_wrong_same(buf, PAGES, 113), 0);
}

/* The event is enabled once, for all tests, as that patches text which every thread runs. */
#define main run_tests
TEST_HARNESS_MAIN
#undef main

int main(int argc, char **argv)
{
	int status;

	trace_begin();
	status = run_tests(argc, argv);
	trace_end();
	return status;
}
