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

FIXTURE(domains)
{
	struct ksm k;
	struct ksm_child c[4];
	int nr;
	char *mem;
};

/* From then on a process is a user's. */
static long fn_become(long uid, long unused, long unused2, long unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	return setresuid(uid, uid, uid) ? -errno : 0;
}

static long fn_create_scan(long dev, long unused, long unused2, long unused3)
{
	int fd = ioctl(dev, KSM_CREATE_SCAN);

	(void)unused;
	(void)unused2;
	(void)unused3;
	return fd < 0 ? -errno : fd;
}

static long fn_scan(long scan, long pages, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	return ksm_scan(scan, pages);
}

/* How many pages were merged, or -errno. */
static long fn_merge_range(long area, long addr, long npages, long unused)
{
	uint64_t merged;
	int err = ksm_merge_range(area, (void *)addr, npages, &merged);

	(void)unused;
	return err ?: (long)merged;
}

FIXTURE_SETUP(domains)
{
	ksm_begin(&self->k);
	ASSERT_TRUE(ksm_wait_stat("kernel_pages", 0));
	self->mem = ksm_mmap(N);
	self->nr = 0;
}

FIXTURE_TEARDOWN(domains)
{
	for (int i = 0; i < self->nr; i++)
		ksm_end(&self->c[i]);
	ksm_finish(&self->k);
}

/* A user's process whose memory is registered; in @area the area. */
static struct ksm_child *process(FIXTURE_DATA(domains) *self, long uid, long *area)
{
	struct ksm_child *c = &self->c[self->nr++];
	long ret;

	ksm_spawn(c);
	ret = ksm_call(c, fn_become, uid, 0, 0);
	if (ret)
		ksm_die("cannot become user %ld: %ld", uid, ret);
	ksm_call(c, ksm_fn_fill, self->mem, N, 1);
	*area = ksm_call(c, ksm_fn_area_register, self->k.dev, self->mem, N);
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
	long area;
	struct ksm_child *a = process(self, USER, &area), *b = process(self, USER, &area);
	struct ksm_child *c = process(self, OTHER, &area), *d = process(self, OTHER, &area);

	ksm_merge_all(&self->k);
	EXPECT_EQ(N, same(a, b, self->mem));
	EXPECT_EQ(N, same(c, d, self->mem));
	EXPECT_EQ(0, same(a, c, self->mem));
	EXPECT_EQ(2 * N, ksm_stat("pages_shared"));
	EXPECT_EQ(2 * N, ksm_stat("pages_sharing"));
}

/* How many pages a process is told were merged, one by one. */
static long merge_each(FIXTURE_DATA(domains) *self, struct ksm_child *c, long area)
{
	long sum = 0;

	for (int page = 0; page < N; page++) {
		long merged = ksm_call(c, fn_merge_range, area, self->mem + page * PGSZ, 1);

		if (merged < 0)
			ksm_die("KSM_MERGE_RANGE: %ld", merged);
		sum += merged;
	}
	return sum;
}

/*
 * Somebody has pages merged that equal candidates, or shared pages, of another user. He is told the
 * same as if they did not, where one of that user's own processes is told that they do.
 */
TEST_F(domains, a_guess_is_not_confirmed)
{
	struct ksm_child *a, *b, *guesser, *own;
	long area, guess;

	a = process(self, USER, &area);
	ksm_passes(&self->k, 2);
	guesser = process(self, OTHER, &guess);
	EXPECT_EQ(0, merge_each(self, guesser, guess));
	b = process(self, USER, &area);
	EXPECT_EQ(N, merge_each(self, b, area));
	EXPECT_EQ(N, same(a, b, self->mem));
	EXPECT_EQ(0, merge_each(self, guesser, guess));
	EXPECT_EQ(0, same(a, guesser, self->mem));
	own = process(self, USER, &area);
	EXPECT_EQ(N, merge_each(self, own, area));
	EXPECT_EQ(N, same(a, own, self->mem));
}

/* It is who registers that counts, whoever's the area is. */
TEST_F(domains, in_an_inherited_area)
{
	int area = ksm_area(&self->k);
	struct ksm_child *c[2];

	for (int i = 0; i < 2; i++) {
		c[i] = &self->c[self->nr++];
		ksm_spawn(c[i]);
		ASSERT_EQ(0, ksm_call(c[i], fn_become, USER + i, 0, 0));
		ksm_call(c[i], ksm_fn_fill, self->mem, N, 1);
		ASSERT_EQ(0, ksm_call(c[i], ksm_fn_register, area, self->mem, N));
	}
	ksm_merge_all(&self->k);
	EXPECT_EQ(0, same(c[0], c[1], self->mem));
	close(area);
}

/* A user's scan visits what is the user's, however long it goes on. */
TEST_F(domains, a_user_scans_his_own)
{
	long area;
	struct ksm_child *a = process(self, USER, &area), *b = process(self, USER, &area);
	struct ksm_child *c = process(self, OTHER, &area), *d = process(self, OTHER, &area);
	long scan = ksm_call(a, fn_create_scan, self->k.dev, 0, 0);
	long long before = ksm_stat("pages_scanned");

	ASSERT_LE(0, scan);
	for (int i = 0; i < 8; i++)
		ASSERT_EQ(0, ksm_call(a, fn_scan, scan, 2 * N, 0));
	EXPECT_EQ(N, same(a, b, self->mem));
	EXPECT_EQ(0, same(c, d, self->mem));
	EXPECT_EQ(8 * 2 * N, ksm_stat("pages_scanned") - before);
}

/* Pages of zeroes are the kernel's, and nobody's secret. */
TEST_F(domains, zero_pages_are_for_all)
{
	struct ksm_child *c[2];
	long area;

	for (int i = 0; i < 2; i++) {
		c[i] = process(self, USER + i, &area);
		ksm_call(c[i], ksm_fn_zero, self->mem, N, 0);
	}
	ksm_merge_all(&self->k);
	EXPECT_EQ(2 * N, ksm_stat("zero_pages"));
	EXPECT_EQ(N, same(c[0], c[1], self->mem));
}

/* The announcement knew no users; who wants that, loads the module so. */
TEST(one_domain)
{
	FIXTURE_DATA(domains) data, *self = &data;
	struct ksm_child *a, *b;
	long area;

	ASSERT_EQ(0, ksm_unload_soon());
	ksm_shell("modprobe ksmdev one_domain=1");
	ksm_begin(&self->k);
	self->mem = ksm_mmap(N);
	self->nr = 0;
	a = process(self, USER, &area);
	b = process(self, OTHER, &area);
	ksm_merge_all(&self->k);
	EXPECT_EQ(N, same(a, b, self->mem));
	for (int i = 0; i < self->nr; i++)
		ksm_end(&self->c[i]);
	ksm_finish(&self->k);
	EXPECT_EQ(0, ksm_unload_soon());
	ksm_load();
}

TEST_HARNESS_MAIN
