// SPDX-License-Identifier: GPL-2.0-only
/*
 * domain_test.c - users do not share with each other, and scan nobody else's memory
 *
 * Whoever registers memory that equals another user's learns nothing of it: not from the count of
 * what was merged, not from the frames, and not from statistics. The control is the same
 * between two processes of one user.
 */
#include <errno.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_load.h"

#define N	64
#define USER	2000
#define OTHER	2001

/* Processes of several users, which have the same in the same place. */
struct users {
	struct ksm k;
	struct ksm_child c[4];
	int nr;
	char *mem;
};

FIXTURE(domains)
{
	struct users users;
};

static long fn_create_scan(long dev, long unused, long unused2, long unused3)
{
	int fd = ioctl(dev, KSM_CREATE_SCAN);

	(void)unused;
	(void)unused2;
	(void)unused3;
	return fd < 0 ? -errno : fd;
}

FIXTURE_SETUP(domains)
{
	ksm_begin(&self->users.k);
	ASSERT_TRUE(ksm_wait_stat("kernel_pages", 0));
	self->users.mem = ksm_mmap(N);
	self->users.nr = 0;
}

FIXTURE_TEARDOWN(domains)
{
	for (int i = 0; i < self->users.nr; i++)
		ksm_end(&self->users.c[i]);
	ksm_finish(&self->users.k);
}

/* A user's process whose memory is registered; in @area the area. */
static struct ksm_child *process(struct users *users, long uid, long *area)
{
	struct ksm_child *c = &users->c[users->nr++];
	long ret;

	ksm_spawn(c);
	ret = ksm_call(c, ksm_fn_become, uid, 0, 0);
	if (ret)
		ksm_die("cannot become user %ld: %ld", uid, ret);
	ksm_call(c, ksm_fn_fill, users->mem, N, 1);
	*area = ksm_call(c, ksm_fn_area_register, users->k.dev, users->mem, N);
	if (*area < 0)
		ksm_die("user %ld cannot register memory: %ld", uid, *area);
	return c;
}

static size_t same(const struct ksm_child *a, const struct ksm_child *b, const char *mem)
{
	return ksm_same_frames(a->pid, mem, b->pid, mem, N);
}

/* One who may scan everybody's memory has each user's shared, with that user's. */
TEST_F(domains, root_scans_for_all)
{
	struct users *users = &self->users;
	long area;
	struct ksm_child *a = process(users, USER, &area), *b = process(users, USER, &area);
	struct ksm_child *c = process(users, OTHER, &area), *d = process(users, OTHER, &area);

	ksm_merge_all(&users->k);
	EXPECT_EQ(N, same(a, b, users->mem));
	EXPECT_EQ(N, same(c, d, users->mem));
	EXPECT_EQ(0, same(a, c, users->mem));
	EXPECT_EQ(2 * N, ksm_stat("pages_shared"));
	EXPECT_EQ(2 * N, ksm_stat("pages_sharing"));
}

/* How many pages a process is told were merged, one by one. */
static long merge_each(struct users *users, struct ksm_child *c, long area)
{
	long sum = 0;

	for (int page = 0; page < N; page++) {
		long merged = ksm_call(c, ksm_fn_merge_range, area, users->mem + page * PGSZ, 1);

		if (merged < 0)
			ksm_die("KSM_MERGE_RANGE: %ld", merged);
		sum += merged;
	}
	return sum;
}

/* What anybody may read of the driver, and a user of himself. */
struct told {
	long long shared, sharing, zero_pages;
	long rss_anon, rss_file, pss;
};

static void tell(struct told *told, const struct ksm_child *c)
{
	memset(told, 0, sizeof(*told));
	told->shared = ksm_stat("pages_shared");
	told->sharing = ksm_stat("pages_sharing");
	told->zero_pages = ksm_stat("zero_pages");
	told->rss_anon = ksm_status(c->pid, "RssAnon");
	told->rss_file = ksm_status(c->pid, "RssFile");
	told->pss = ksm_status(c->pid, "Pss");
}

static long fn_fdinfo(long fd, long name, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	return ksm_fdinfo(fd, (const char *)name);
}

/*
 * Somebody has pages merged that equal candidates, or shared pages, of another user. He is told the
 * same as if they did not, where one of that user's own processes is told that they do.
 */
TEST_F(domains, a_guess_is_not_confirmed)
{
	struct users *users = &self->users;
	struct ksm_child *a, *b, *guesser, *own;
	struct told before, after;
	long area, guess;

	a = process(users, USER, &area);
	ksm_passes(&users->k, 2);
	guesser = process(users, OTHER, &guess);
	tell(&before, guesser);
	EXPECT_EQ(0, merge_each(users, guesser, guess));
	tell(&after, guesser);
	EXPECT_EQ(0, memcmp(&before, &after, sizeof(before)));
	EXPECT_EQ(0, ksm_call(guesser, fn_fdinfo, guess, "pages_sharing", 0));
	b = process(users, USER, &area);
	EXPECT_EQ(N, merge_each(users, b, area));
	EXPECT_EQ(N, same(a, b, users->mem));
	tell(&before, guesser);
	EXPECT_EQ(0, merge_each(users, guesser, guess));
	tell(&after, guesser);
	EXPECT_EQ(0, memcmp(&before, &after, sizeof(before)));
	EXPECT_EQ(0, ksm_call(guesser, fn_fdinfo, guess, "pages_sharing", 0));
	for (int page = 0; page < N; page++)
		EXPECT_TRUE(ksm_pagemap(guesser->pid, users->mem + page * PGSZ) & PM_EXCLUSIVE);
	EXPECT_EQ(0, same(a, guesser, users->mem));
	own = process(users, USER, &area);
	EXPECT_EQ(N, merge_each(users, own, area));
	EXPECT_EQ(N, same(a, own, users->mem));
}

/* It is who registers that counts, whoever's the area is. */
TEST_F(domains, in_an_inherited_area)
{
	struct users *users = &self->users;
	int area = ksm_area(&users->k);
	struct ksm_child *c[2];

	for (int i = 0; i < 2; i++) {
		c[i] = &users->c[users->nr++];
		ksm_spawn(c[i]);
		ASSERT_EQ(0, ksm_call(c[i], ksm_fn_become, USER + i, 0, 0));
		ksm_call(c[i], ksm_fn_fill, users->mem, N, 1);
		ASSERT_EQ(0, ksm_call(c[i], ksm_fn_register, area, users->mem, N));
	}
	ksm_merge_all(&users->k);
	EXPECT_EQ(0, same(c[0], c[1], users->mem));
	close(area);
}

/* A user's scan visits what is the user's, however long it goes on. */
TEST_F(domains, a_user_scans_his_own)
{
	struct users *users = &self->users;
	long area;
	struct ksm_child *a = process(users, USER, &area), *b = process(users, USER, &area);
	struct ksm_child *c = process(users, OTHER, &area), *d = process(users, OTHER, &area);
	long scan = ksm_call(a, fn_create_scan, users->k.dev, 0, 0);
	long long before = ksm_stat("pages_scanned");

	ASSERT_LE(0, scan);
	/* His own calls have that done once a second at most, and others' count. */
	ksm_drain_batches();
	for (int i = 0; i < 8; i++)
		ASSERT_EQ(0, ksm_call(a, ksm_fn_scan, scan, 2 * N, 0));
	EXPECT_EQ(N, same(a, b, users->mem));
	EXPECT_EQ(0, same(c, d, users->mem));
	EXPECT_EQ(8 * 2 * N, ksm_stat("pages_scanned") - before);
}

static long fn_use_cpu(long cpu, long unused, long unused2, long unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	ksm_use_cpu(cpu);
	return 0;
}

/*
 * What was shared and is written again is one's own again, and put back on the kernel's lists by
 * a scan, which is not to wait for that to be done on all CPUs: his own calls had that a moment ago.
 * The number of pages is none that a CPU's batch of them is full with.
 */
TEST_F(domains, shared_anew_without_a_drain)
{
	struct users *users = &self->users;
	long area;
	struct ksm_child *a = process(users, USER, &area), *b = process(users, USER, &area);
	long scan = ksm_call(a, fn_create_scan, users->k.dev, 0, 0);

	ASSERT_LE(0, scan);
	ksm_call(a, fn_use_cpu, 0, 0, 0);
	for (int round = 0; round < 3; round++) {
		ksm_call(a, ksm_fn_fill, users->mem, N, 10 + round);
		ksm_call(b, ksm_fn_fill, users->mem, N, 10 + round);
		ksm_drain_batches();
		for (int i = 0; i < 8; i++)
			ASSERT_EQ(0, ksm_call(a, ksm_fn_scan, scan, 2 * N, 0));
		EXPECT_EQ(N, same(a, b, users->mem));
	}
}

/* Pages of zeroes are the kernel's, and nobody's secret. */
TEST_F(domains, zero_pages_are_for_all)
{
	struct users *users = &self->users;
	struct ksm_child *c[2];
	long area;

	for (int i = 0; i < 2; i++) {
		c[i] = process(users, USER + i, &area);
		ksm_call(c[i], ksm_fn_zero, users->mem, N, 0);
	}
	ksm_merge_all(&users->k);
	EXPECT_EQ(2 * N, ksm_stat("zero_pages"));
	EXPECT_EQ(N, same(c[0], c[1], users->mem));
}

/* The announcement knew no users; who wants that, loads the module so. */
TEST(one_domain)
{
	struct users all, *users = &all;
	struct ksm_child *a, *b;
	long area;

	ASSERT_EQ(0, ksm_unload_soon());
	ksm_shell("modprobe ksmdev one_domain=1");
	ksm_begin(&users->k);
	users->mem = ksm_mmap(N);
	users->nr = 0;
	a = process(users, USER, &area);
	b = process(users, OTHER, &area);
	ksm_merge_all(&users->k);
	EXPECT_EQ(N, same(a, b, users->mem));
	for (int i = 0; i < users->nr; i++)
		ksm_end(&users->c[i]);
	ksm_finish(&users->k);
	EXPECT_EQ(0, ksm_unload_soon());
	ksm_load();
}

TEST_HARNESS_MAIN
