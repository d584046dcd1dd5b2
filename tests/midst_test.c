// SPDX-License-Identifier: GPL-2.0-only
/*
 * midst_test.c - what comes in the midst of a merge: a write, a pin
 *
 * No write may be lost, and who has pinned a page must see what is written to it afterwards.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "ksm_access.h"

/* ---- writes in the midst of a merge ---- */

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
	uint64_t begin, merged;
	unsigned long toggled = 0;
	long long most = 0;
	pthread_t thread;
	char *a, *b;

	make_twins(self->area, &a, &b, PAGES, 25);
	for (size_t i = 0; i < ARRAY_SIZE(t.word); i++)
		t.word[i] = (uint64_t *)ksm_page(a, i + 1) - 1;
	ASSERT_EQ(pthread_create(&thread, NULL, toggle, &t), 0);
	begin = now_us();
	while (now_us() - begin < SECONDS * 1000000ULL) {
		long long sharing;

		ksm_merge_all(&self->k);
		/* A pass leaves alone what is written all the time. */
		for (int i = 0; i < 4; i++) {
			ASSERT_EQ(ksm_merge_range(self->area, a, PAGES, &merged), 0);
			toggled += merged;
		}
		sharing = ksm_stat("pages_sharing");
		most = sharing > most ? sharing : most;
		ASSERT_EQ(ksm_unmerge(self->area), 0);
	}
	t.stop = 1;
	pthread_join(thread, NULL);
	EXPECT_EQ(t.lost, 0);
	EXPECT_GT(t.done, 100);
	EXPECT_GE(most, PAGES - (long long)ARRAY_SIZE(t.word));
	TH_LOG("%lu pages were merged that are written all the time", toggled);
	EXPECT_GT(toggled, 0);
	EXPECT_EQ(ksm_wrong(a, PAGES, 25), 0);
	EXPECT_EQ(ksm_wrong(b, PAGES, 25), 0);
}

struct pinned_read {
	char *to, *from;
	size_t npages;
	uint64_t when_us;
	ssize_t result;
};

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

	make_twins(self->area, &a, &b, PAGES, 55);
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

TEST_HARNESS_MAIN
