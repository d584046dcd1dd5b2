// SPDX-License-Identifier: GPL-2.0-only
/*
 * limits_test.c - what bounds the driver: max_kernel_pages, memory cgroups, memory that
 * is short, ranges that are huge
 *
 * Reaching a limit is no error and loses nothing: pages stay unmerged or a
 * registration is refused, and all of it comes back when the users are gone.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ksm_cgroup.h"
#include "ksm_harness.h"
#include "ksm_scanner.h"

#define LIMIT	"/sys/module/ksmdev/parameters/max_kernel_pages"
#define CGROUP	"ksm-limits"

static void set_limit(long long pages)
{
	char text[32];
	int err;

	snprintf(text, sizeof(text), "%lld", pages);
	err = ksm_write_file(LIMIT, text);
	if (err)
		ksm_die("cannot write %s: %s", LIMIT, strerror(-err));
}

/* Wait until no shared page is allocated; with a scan now and then, or without. */
static bool wait_no_kernel_pages(const struct ksm *k)
{
	double end = ksm_now() + KSM_PATIENCE;

	while (ksm_stat("kernel_pages")) {
		if (ksm_now() > end)
			return false;
		if (k && ksm_scan(k->scan, 64))
			return false;
		usleep(20000);
	}
	return true;
}

/* ---- max_kernel_pages ---- */

FIXTURE(limit) {
	struct ksm k;
	int area;
	long long old;
};

FIXTURE_SETUP(limit)
{
	ksm_begin(&self->k);
	ASSERT_TRUE(wait_no_kernel_pages(&self->k));
	self->area = ksm_area(&self->k);
	self->old = ksm_stat("max_kernel_pages");
	/* A quarter of the memory unless somebody said otherwise. */
	ASSERT_LT(1000, self->old);
}

FIXTURE_TEARDOWN(limit)
{
	set_limit(self->old);
	close(self->area);
	ksm_finish(&self->k);
}

TEST_F(limit, default_is_a_quarter_of_memory)
{
	/* MemTotal lacks what the kernel took while booting, that is all. */
	EXPECT_LE(ksm_meminfo("MemTotal") / 5, self->old);
	EXPECT_GE(ksm_meminfo("MemTotal") / 3, self->old);
}

TEST_F(limit, reached_and_raised)
{
	const size_t n = 100;
	char *a = ksm_mmap(n), *b = ksm_mmap(n), *z = ksm_mmap(8);

	ksm_fill(a, n, 1);
	ksm_fill(b, n, 1);
	ksm_fn_zero((long)z, 8, 0, 0);
	ASSERT_EQ(0, ksm_register(self->area, a, n));
	ASSERT_EQ(0, ksm_register(self->area, b, n));
	ASSERT_EQ(0, ksm_register(self->area, z, 8));

	/* None: nothing but zero pages, which cost no page. */
	set_limit(0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(0, ksm_stat("kernel_pages"));
	EXPECT_EQ(0, ksm_stat("pages_shared"));
	EXPECT_EQ(8, ksm_stat("zero_pages"));
	EXPECT_EQ(0, ksm_same_frames(0, a, 0, b, n));

	/* Ten: exactly ten pairs, although 100 wait. */
	set_limit(10);
	ksm_merge_all(&self->k);
	EXPECT_EQ(10, ksm_stat("kernel_pages"));
	EXPECT_EQ(10, ksm_stat("pages_shared"));
	EXPECT_EQ(10, ksm_same_frames(0, a, 0, b, n));
	ksm_merge_all(&self->k);
	EXPECT_EQ(10, ksm_same_frames(0, a, 0, b, n));

	/* Lowered beneath what is there: it stays, nothing comes. */
	set_limit(5);
	ksm_merge_all(&self->k);
	EXPECT_EQ(10, ksm_stat("kernel_pages"));
	EXPECT_EQ(10, ksm_same_frames(0, a, 0, b, n));

	/* Raised: the rest, without any further ado. */
	set_limit(1000);
	ksm_merge_all(&self->k);
	EXPECT_EQ(n, ksm_stat("kernel_pages"));
	EXPECT_EQ(n, ksm_same_frames(0, a, 0, b, n));
	EXPECT_EQ(0, ksm_wrong(a, n, 1));
	EXPECT_EQ(0, ksm_wrong(b, n, 1));
}

/* A further copy of what is shared already needs no new page. */
TEST_F(limit, joins_at_the_limit)
{
	char *a = ksm_mmap(16), *b = ksm_mmap(16);

	ksm_fill_same(a, 16, 1);
	ASSERT_EQ(0, ksm_register(self->area, a, 16));
	set_limit(1);
	ksm_merge_all(&self->k);
	EXPECT_EQ(1, ksm_distinct(0, a, 16));
	ksm_fill_same(b, 16, 1);
	ASSERT_EQ(0, ksm_register(self->area, b, 16));
	ksm_merge_all(&self->k);
	EXPECT_EQ(16, ksm_same_frames(0, a, 0, b, 16));
	EXPECT_EQ(1, ksm_stat("kernel_pages"));
}

/* Not beyond it whenever it is counted, though three look for room at once. */
TEST_F(limit, never_beyond_it)
{
	const size_t n = 4096;
	char *a = ksm_mmap(n), *b = ksm_mmap(n);
	struct ksm_scanner scanner[2];
	long long most = 0;
	double end;

	ksm_fill(a, n, 1);
	ksm_fill(b, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, a, n));
	ASSERT_EQ(0, ksm_register(self->area, b, n));
	set_limit(700);
	for (int i = 0; i < 2; i++)
		ksm_scanner_start(&scanner[i], self->k.dev, 256);
	ASSERT_EQ(0, ksm_start(self->k.dev, 256, 0, 0));
	end = ksm_now() + KSM_PATIENCE;
	while (most < 700 && ksm_now() < end) {
		long long v = ksm_stat("kernel_pages");

		if (v > most)
			most = v;
	}
	end = ksm_now() + 1;
	while (ksm_now() < end) {
		long long v = ksm_stat("kernel_pages");

		if (v > most)
			most = v;
	}
	for (int i = 0; i < 2; i++)
		ksm_scanner_stop(&scanner[i]);
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	EXPECT_GE(700, most);
	/*
	 * They may have left a pair half done: one page has the shared page already, and the
	 * other was just held by another scan, or its merge is to be tried again some passes
	 * later. Now that nobody is in the way the limit is used up.
	 */
	ksm_merge_held(&self->k);
	EXPECT_EQ(700, ksm_stat("kernel_pages"));
	EXPECT_EQ(700, ksm_same_frames(0, a, 0, b, n));
	EXPECT_EQ(0, ksm_wrong(a, n, 1));
	EXPECT_EQ(0, ksm_wrong(b, n, 1));
}

/* ---- what comes back ---- */

TEST_F(limit, all_comes_back)
{
	const size_t n = 4096;
	char *mem = ksm_mmap(n);
	struct ksm_child c[2];
	long before, shared, after;
	double end;

	for (int i = 0; i < 2; i++)
		ksm_spawn(&c[i]);
	before = ksm_memfree();
	for (int i = 0; i < 2; i++) {
		ksm_call(&c[i], ksm_fn_fill, mem, n, 1);
		ASSERT_EQ(0, ksm_call(&c[i], ksm_fn_register, self->area, mem, n));
	}
	ksm_merge_all(&self->k);
	EXPECT_EQ(n, ksm_stat("kernel_pages"));
	shared = ksm_memfree();
	/* Two times n less n is n, give or take what tables and slabs take. */
	EXPECT_GE(before - (long)n + 512, shared);
	EXPECT_LE(before - (long)n - 512, shared);

	/* One leaves: every page has one user left and so no longer a reason. */
	EXPECT_EQ(0, ksm_end(&c[0]));
	EXPECT_EQ(0, ksm_call(&c[1], ksm_fn_wrong, mem, n, 1));
	end = ksm_now() + KSM_PATIENCE;
	do {
		ksm_merge_all(&self->k);
	} while (ksm_stat("pages_shared") && ksm_now() < end);
	EXPECT_EQ(0, ksm_call(&c[1], ksm_fn_wrong, mem, n, 1));
	EXPECT_EQ(0, ksm_stat("pages_sharing"));
	EXPECT_EQ(0, ksm_stat("pages_shared"));
	EXPECT_TRUE(wait_no_kernel_pages(&self->k));

	EXPECT_EQ(0, ksm_kill(&c[1]) >> 8);
	EXPECT_TRUE(ksm_wait_no_regions(&self->k));
	end = ksm_now() + KSM_PATIENCE;
	do {
		after = ksm_memfree();
	} while (after < before - 256 && ksm_now() < end);
	EXPECT_LE(before - 256, after);
}

/*
 * Pages that nobody maps any more are free at once, whoever unmapped them, though nobody
 * scans, asks or is short of memory. What is looked at is the machine's free memory.
 */
TEST_F(limit, free_at_once)
{
	const size_t n = 8192, slack = 1024;
	char *mem = ksm_mmap(2 * n);
	long shared;

	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	for (int round = 0; round < 4; round++) {
		ksm_fill(mem, n, 10 * round);
		ksm_fill(mem + n * PGSZ, n, 10 * round);
		ksm_merge_all(&self->k);
		ASSERT_EQ(n, ksm_same_frames(0, mem, 0, mem + n * PGSZ, n));
		shared = ksm_memfree();
		switch (round) {
		case 0:
			/* Each page has its own again: that takes no more than the second half. */
			ksm_fill(mem, 2 * n, 10 * round + 1);
			EXPECT_LE(shared - (long)n - (long)slack, ksm_memfree());
			break;
		case 1:
			ASSERT_EQ(0, madvise(mem, 2 * n * PGSZ, MADV_DONTNEED));
			EXPECT_LE(shared + (long)n - (long)slack, ksm_memfree());
			break;
		case 2:
			/* Nobody knows of it any more. */
			close(self->area);
			ASSERT_EQ(0, madvise(mem, 2 * n * PGSZ, MADV_DONTNEED));
			EXPECT_LE(shared + (long)n - (long)slack, ksm_memfree());
			self->area = ksm_area(&self->k);
			ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
			break;
		default:
			ASSERT_EQ(0, munmap(mem, 2 * n * PGSZ));
			EXPECT_LE(shared + (long)n - (long)slack, ksm_memfree());
		}
	}
	EXPECT_TRUE(wait_no_kernel_pages(&self->k));
}

/* And those of a process that is killed. */
TEST_F(limit, free_when_killed)
{
	const size_t n = 8192, slack = 1024;
	char *mem = ksm_mmap(2 * n);
	struct ksm_child c;
	long shared;

	ksm_spawn(&c);
	ksm_call(&c, ksm_fn_fill, mem, n, 1);
	ksm_call(&c, ksm_fn_fill, mem + n * PGSZ, n, 1);
	ASSERT_EQ(0, ksm_call(&c, ksm_fn_register, self->area, mem, 2 * n));
	ksm_merge_all(&self->k);
	ASSERT_EQ(n, ksm_same_frames(c.pid, mem, c.pid, mem + n * PGSZ, n));
	shared = ksm_memfree();
	ksm_kill(&c);
	EXPECT_TRUE(ksm_wait_memfree(shared + (long)n - (long)slack));
	EXPECT_TRUE(wait_no_kernel_pages(&self->k));
}

/* A job after the other, each with contents of its own: what they leave is in nobody's way. */
TEST_F(limit, jobs)
{
	enum { JOBS = 48 };
	const long n = 128;
	char *mem = ksm_mmap(2 * n);
	int at_once = 0;
	struct ksm_child c;
	long area;

	/* Half of them reach the bound. */
	set_limit(n * JOBS / 2);
	for (int job = 0; job < JOBS; job++) {
		const double end = ksm_now() + KSM_PATIENCE;
		long merged, all;

		ksm_spawn(&c);
		ksm_call(&c, ksm_fn_fill, mem, n, job);
		ksm_call(&c, ksm_fn_fill, mem + n * PGSZ, n, job);
		area = ksm_call(&c, ksm_fn_area_register, self->k.dev, mem, 2 * n);
		ASSERT_LE(0, area);
		merged = ksm_call(&c, ksm_fn_merge_range, area, mem, 2 * n);
		ASSERT_LE(0, merged);
		at_once += merged == 2 * n;
		/* The work item that counts may be just in the way. */
		for (all = merged; all < 2 * n && merged >= 0 && ksm_now() < end; all += merged) {
			usleep(20000);
			merged = ksm_call(&c, ksm_fn_merge_range, area, mem, 2 * n);
		}
		EXPECT_EQ(2 * n, all);
		ksm_end(&c);
	}
	TH_LOG("%d of %d jobs shared all of it in one call", at_once, JOBS);
	EXPECT_LT(JOBS - JOBS / 8, at_once);
}

/*
 * At the bound, entries of pages that are gone make room, though nobody has counted: that is
 * done each second, and now and then it is just in the way.
 */
TEST_F(limit, room_is_found)
{
	enum { ROUNDS = 20 };
	const size_t n = 256;
	int at_once = 0;
	char *mem = ksm_mmap(2 * n);
	uint64_t merged;

	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	set_limit(n);
	for (int round = 0; round < ROUNDS; round++) {
		double end = ksm_now() + KSM_PATIENCE;
		int tries = 0;

		ksm_fill(mem, n, round);
		ksm_fill(mem + n * PGSZ, n, round);
		while (ksm_same_frames(0, mem, 0, mem + n * PGSZ, n) < n) {
			ASSERT_GT(end, ksm_now());
			ASSERT_EQ(0, ksm_merge_range(self->area, mem, 2 * n, &merged));
			tries++;
		}
		at_once += tries <= 2;
	}
	TH_LOG("at once in %d of %d rounds", at_once, ROUNDS);
	EXPECT_LT(ROUNDS / 2, at_once);
}

/* ---- memory cgroups ---- */

static long cgroup_read(const char *file, const char *key)
{
	return ksm_cgroup_read(CGROUP, file, key);
}

static void cgroup_write(const char *file, long value)
{
	ksm_cgroup_write(CGROUP, file, value);
}

#define TENANT_PAGES 4096

FIXTURE(cgroup) {
	struct ksm k;
	struct ksm_child c;
	char *mem;	/* mapped in the child, and filled by it alone */
};

FIXTURE_SETUP(cgroup)
{
	ksm_begin(&self->k);
	ASSERT_TRUE(wait_no_kernel_pages(&self->k));
	ksm_cgroup_make(CGROUP);
	self->mem = ksm_mmap(TENANT_PAGES);
	ksm_spawn(&self->c);
	cgroup_write("cgroup.procs", self->c.pid);
}

FIXTURE_TEARDOWN(cgroup)
{
	if (self->c.pid > 0)
		ksm_end(&self->c);
	ksm_finish(&self->k);
	ksm_cgroup_remove(CGROUP);
}

/* The tenant pays for its shared pages, whoever scans. */
TEST_F(cgroup, shared_pages_are_charged)
{
	const size_t n = TENANT_PAGES / 2;
	char *mem = self->mem;
	long filled, merged, area;

	for (int kksmd = 0; kksmd < 2; kksmd++) {
		ksm_call(&self->c, ksm_fn_fill, mem, n, 1 + kksmd);
		ksm_call(&self->c, ksm_fn_fill, mem + n * PGSZ, n, 1 + kksmd);
		area = ksm_call(&self->c, ksm_fn_area_register, self->k.dev, mem, 2 * n);
		ASSERT_LE(0, area);
		filled = cgroup_read("memory.current", NULL) / PGSZ;
		EXPECT_LE(2 * n, filled);
		if (kksmd) {
			double end = ksm_now() + KSM_PATIENCE;

			ASSERT_EQ(0, ksm_start(self->k.dev, 1000, 0, 0));
			while (ksm_stat("pages_sharing") < (long long)n && ksm_now() < end)
				usleep(10000);
			ASSERT_EQ(0, ksm_stop(self->k.dev));
		} else {
			ksm_merge_all(&self->k);
		}
		EXPECT_EQ(n, ksm_stat("pages_sharing"));
		merged = cgroup_read("memory.current", NULL) / PGSZ;
		TH_LOG("%ld pages charged before, %ld after", filled, merged);
		/* n pages of 2n are free again, and the other n are still paid for. */
		EXPECT_GE(filled - (long)n + 256, merged);
		EXPECT_LE((long)n, merged);
		EXPECT_EQ(0, ksm_call(&self->c, ksm_fn_close, area, 0, 0));
	}
	EXPECT_EQ(0, ksm_end(&self->c));
	EXPECT_TRUE(wait_no_kernel_pages(&self->k));
	/* And nobody pays for what is gone. */
	for (int i = 0; i < 600 && cgroup_read("memory.current", NULL) / PGSZ > 256; i++)
		usleep(100000);
	EXPECT_GE(256, cgroup_read("memory.current", NULL) / PGSZ);
}

/* No room for a shared page in the tenant's limit: not merged, nobody killed. */
TEST_F(cgroup, full_cgroup_is_not_merged)
{
	const size_t n = 512;
	char *mem = self->mem, path[64];
	struct ksm_child bystander;

	ksm_call(&self->c, ksm_fn_fill, mem, n, 1);
	ksm_call(&self->c, ksm_fn_fill, mem + n * PGSZ, n, 1);
	ASSERT_LE(0, ksm_call(&self->c, ksm_fn_area_register, self->k.dev, mem, 2 * n));
	/* Slots are there; what lacks is room for shared pages. */
	ksm_passes(&self->k, 1);
	snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", self->c.pid);
	ASSERT_EQ(0, ksm_write_file(path, "-1000"));
	/* More than each CPU keeps charged in advance, 64 pages. */
	cgroup_write("memory.max", cgroup_read("memory.current", NULL) - 256 * PGSZ);
	/* To lower it may kill, but to merge may not. */
	ksm_cgroup_bystander(&bystander, CGROUP);
	ksm_merge_all(&self->k);
	EXPECT_EQ(0, ksm_stat("pages_sharing"));
	EXPECT_EQ(0, ksm_stat("kernel_pages"));
	EXPECT_EQ(0, ksm_same_frames(self->c.pid, mem, self->c.pid, mem + n * PGSZ, n));
	EXPECT_EQ(0, cgroup_read("memory.events", "oom_kill"));
	cgroup_write("memory.max", -1);
	EXPECT_EQ(0, ksm_end(&bystander));
	EXPECT_EQ(0, ksm_call(&self->c, ksm_fn_wrong, mem, n, 1));
	EXPECT_EQ(0, ksm_call(&self->c, ksm_fn_wrong, mem + n * PGSZ, n, 1));
	ksm_merge_all(&self->k);
	EXPECT_EQ(n, ksm_stat("pages_sharing"));
	EXPECT_EQ(n, ksm_same_frames(self->c.pid, mem, self->c.pid, mem + n * PGSZ, n));
}

/*
 * Registers single pages until it is refused; returns how many were accepted, or
 * -errno if the refusal was another one than -ENOMEM.
 */
static long fn_register_many(long dev, long most, long unused, long unused2)
{
	struct ksm_memory_region r = { .npages = 1 };
	const size_t spare = 64 * PGSZ;
	/* To be given back at the limit: the answer takes memory as well. */
	char *room = mmap(NULL, spare, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	int area = -1, err = 0;
	long n;

	(void)unused;
	(void)unused2;
	if (room == MAP_FAILED)
		return -errno;
	for (n = 0; n < most; n++) {
		if (n % 1000 == 0) {
			area = ioctl(dev, KSM_CREATE_SHARED_MEMORY_AREA);
			if (area < 0) {
				err = -errno;
				break;
			}
		}
		r.addr = 0x10000000UL + n * 2 * PGSZ;
		if (ioctl(area, KSM_REGISTER_MEMORY_REGION, &r)) {
			err = -errno;
			break;
		}
	}
	munmap(room, spare);
	return !err || err == -ENOMEM ? n : err;
}

TEST_F(cgroup, regions_are_charged)
{
	long left, before, kernel, charged, n;
	struct ksm_child bystander;
	char path[64];
	double end;

	before = cgroup_read("memory.current", NULL);
	kernel = cgroup_read("memory.stat", "kernel");
	n = ksm_call(&self->c, fn_register_many, self->k.dev, 4000, 0);
	ASSERT_EQ(4000, n);
	EXPECT_EQ(4000, ksm_stat("regions"));
	charged = cgroup_read("memory.current", NULL) - before;
	TH_LOG("%ld regions: %ld bytes charged, metadata_bytes %lld", n, charged,
	       ksm_stat("metadata_bytes"));
	/* No region fits into less than its address, length and list. */
	EXPECT_LE(n * 64, charged);
	/* memory.stat is brought up to date every two seconds. */
	end = ksm_now() + KSM_PATIENCE;
	while (cgroup_read("memory.stat", "kernel") < kernel + n * 64 && ksm_now() < end)
		usleep(100000);
	EXPECT_LE(kernel + n * 64, cgroup_read("memory.stat", "kernel"));

	/* Exit takes all of it back, with the fds still open here or not. */
	EXPECT_EQ(0, ksm_end(&self->c));
	EXPECT_EQ(0, ksm_stat("regions"));
	EXPECT_EQ(0, ksm_stat("areas"));

	/* And now with a limit: refused, not killed, not beyond. */
	ksm_spawn(&self->c);
	cgroup_write("cgroup.procs", self->c.pid);
	snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", self->c.pid);
	ASSERT_EQ(0, ksm_write_file(path, "-1000"));
	ksm_cgroup_bystander(&bystander, CGROUP);
	cgroup_write("memory.max", cgroup_read("memory.current", NULL) + (1 << 20));
	n = ksm_call(&self->c, fn_register_many, self->k.dev, 60000, 0);
	TH_LOG("%ld regions within a limit of 1 MiB more", n);
	EXPECT_LT(100, n);
	EXPECT_GT(60000, n);
	/* The one that was refused left nothing behind. */
	EXPECT_EQ(n, ksm_stat("regions"));
	EXPECT_EQ(n, ksm_stat("pages_registered"));
	EXPECT_GE(cgroup_read("memory.max", NULL), cgroup_read("memory.current", NULL));
	EXPECT_EQ(0, cgroup_read("memory.events", "oom_kill"));
	EXPECT_EQ(0, ksm_end(&bystander));
	EXPECT_EQ(0, ksm_scan(self->k.scan, 2 * n));
	EXPECT_EQ(0, ksm_end(&self->c));
	EXPECT_EQ(0, ksm_stat("regions"));
	EXPECT_EQ(0, ksm_stat("areas"));
	/* Each CPU may keep a stock of 64 charged pages (MEMCG_CHARGE_BATCH). */
	left = (256 << 10) + sysconf(_SC_NPROCESSORS_ONLN) * 64 * PGSZ;
	for (int i = 0; i < 600 && cgroup_read("memory.current", NULL) > left; i++)
		usleep(100000);
	EXPECT_GE(left, cgroup_read("memory.current", NULL));
}

/* ---- large and sparse ---- */

TEST_F(limit, huge_empty_range)
{
	/* A tebibyte of which two pages exist. */
	const uint64_t npages = 1ULL << 28;
	char *mem = mmap(NULL, npages * PGSZ, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	long long metadata = ksm_stat("metadata_bytes"), passes;
	double began = ksm_now(), took;
	int calls = 0;

	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, madvise(mem, npages * PGSZ, MADV_NOHUGEPAGE));
	ksm_fill_page(mem, 1, 0);
	ksm_fill_page(mem + (npages - 1) * PGSZ, 1, 0);
	ASSERT_EQ(0, ksm_register(self->area, mem, npages));
	EXPECT_EQ(npages, ksm_stat("pages_registered"));
	EXPECT_GT(KSM_PATIENCE, ksm_now() - began);
	EXPECT_GT(metadata + (1 << 20), ksm_stat("metadata_bytes"));

	/* Holes are walked in steps as large as they are. */
	began = ksm_now();
	passes = ksm_stat("full_scans");
	while (ksm_stat("full_scans") < passes + 4) {
		ASSERT_EQ(0, ksm_scan(self->k.scan, 1 << 20));
		ASSERT_GT(2000, ++calls);
		ASSERT_GT(4 * KSM_PATIENCE, ksm_now() - began);
	}
	took = ksm_now() - began;
	TH_LOG("4 passes over 1 TiB of holes took %.2f s, %d calls", took, calls);
	EXPECT_EQ(ksm_pfn(0, mem), ksm_pfn(0, mem + (npages - 1) * PGSZ));
	EXPECT_GT(metadata + (4 << 20), ksm_stat("metadata_bytes"));
	began = ksm_now();
	ASSERT_EQ(0, ksm_remove(self->area));
	EXPECT_GT(KSM_PATIENCE, ksm_now() - began);
	/* The index itself may keep its first size. */
	EXPECT_GT(metadata + (1 << 20), ksm_stat("metadata_bytes"));
}

TEST_F(limit, metadata_of_a_page)
{
	const size_t n = 16384;
	char *mem = ksm_mmap(n);
	long long before = ksm_stat("metadata_bytes"), used;
	double end;

	ksm_fill(mem, n, 1);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	ksm_passes(&self->k, 3);
	EXPECT_EQ(n, ksm_stat("pages_unshared"));
	used = ksm_stat("metadata_bytes") - before;
	TH_LOG("%.2f bytes a page", (double)used / n);
	/* mm/ksm.c takes 64. */
	EXPECT_GE(17 * (long long)n, used);
	EXPECT_LE(4 * (long long)n, used);
	ASSERT_EQ(0, ksm_remove(self->area));
	/* What was removed is freed a while later, where there is much of it. */
	end = ksm_now() + KSM_PATIENCE;
	while (ksm_stat("metadata_bytes") > before + 65536 && ksm_now() < end)
		usleep(50000);
	EXPECT_GE(before + 65536, ksm_stat("metadata_bytes"));
}

static double time_of_pass(const struct ksm *k)
{
	double began = ksm_now();

	ksm_passes(k, 1);
	return ksm_now() - began;
}

/* Pages that are all alike and may not be merged: each would match all others. */
TEST_F(limit, many_alike)
{
	const size_t n = 8192;
	double fresh = 1e9, alike = 1e9;
	char *mem = ksm_mmap(n);

	set_limit(0);
	ASSERT_EQ(0, ksm_register(self->area, mem, n));
	for (int i = 1; i <= 3; i++) {
		double t;

		ksm_fill_same(mem, n, i);
		t = time_of_pass(&self->k);
		fresh = t < fresh ? t : fresh;
		ksm_passes(&self->k, 1);
		t = time_of_pass(&self->k);
		alike = t < alike ? t : alike;
		EXPECT_EQ(0, ksm_wrong_same(mem, n, i));
	}
	TH_LOG("a pass over fresh pages took %.3f s, over pages all alike %.3f s", fresh,
	       alike);
	/* To read each of them is little more than to look at a few others for each. */
	EXPECT_GT(16 * fresh, alike);
	EXPECT_EQ(0, ksm_stat("pages_shared"));
}

/*
 * Zeros in huge pages, too few for a split: all alike, each has a partner in the zero page, and none
 * is of use to others as a candidate.
 */
TEST_F(limit, zeros_of_huge_pages)
{
	const size_t n = 8, zeros = KSM_HUGE_PAGES / 16;
	char *mem = ksm_mmap_huge(n);

	ksm_fill(mem, n * KSM_HUGE_PAGES, 1);
	for (size_t i = 0; i < n; i++)
		memset(mem + i * KSM_HUGE_SIZE, 0, zeros * PGSZ);
	ASSERT_EQ(0, ksm_register(self->area, mem, n * KSM_HUGE_PAGES));
	ksm_merge_all(&self->k);
	EXPECT_EQ(0, ksm_stat("zero_pages"));
	EXPECT_EQ((long)(n * (KSM_HUGE_PAGES - zeros)), ksm_stat("pages_unshared"));
}

#define OTHERS_SHARING "/sys/kernel/mm/ksm/pages_sharing"

/* Microseconds of our CPU time that it takes to read a number; the best of five times. */
static double time_of_read(long long (*read_it)(const char *name), const char *name)
{
	enum { READS = 500 };
	double best = 1e9;

	for (int i = 0; i < 5; i++) {
		double t = ksm_cpu_now();

		for (int nr = 0; nr < READS; nr++)
			read_it(name);
		t = (ksm_cpu_now() - t) * 1e6;
		best = t < best ? t : best;
	}
	return best / READS;
}

/* The same of the kernel's own KSM, if it has that. */
static double time_of_others_read(void)
{
	return access(OTHERS_SHARING, R_OK) ? 0 : time_of_read(ksm_read_number, OTHERS_SHARING);
}

/* Have n pairs of registered pages shared; how many shared pages there are. */
static size_t share_pairs(const struct ksm *k, char *mem, size_t n, uint64_t seed)
{
	double end = ksm_now() + KSM_PATIENCE;
	size_t shared;

	ksm_fill(mem, n, seed);
	ksm_fill(mem + n * PGSZ, n, seed);
	do {
		ksm_merge_all(k);
		shared = ksm_stat("pages_shared");
	} while (shared < n && ksm_now() < end);
	return shared;
}

/* What statistics tell was counted before: to read one takes no longer where much is shared. */
TEST_F(limit, statistics_cost_the_same)
{
	const size_t n = (128UL << 20) / PGSZ, little = 512;
	char *mem = ksm_mmap(2 * n);
	double few, many, others_few, others_many;

	ASSERT_LE((long long)n, self->old);
	ASSERT_EQ(0, ksm_register(self->area, mem, 2 * n));
	ASSERT_EQ(little, share_pairs(&self->k, mem, little, 1));
	few = time_of_read(ksm_stat_told, "pages_sharing");
	others_few = time_of_others_read();
	/* Somebody may hold a few of so many. */
	ASSERT_LE(n - n / 64, share_pairs(&self->k, mem, n, 2));
	many = time_of_read(ksm_stat_told, "pages_sharing");
	others_many = time_of_others_read();
	TH_LOG("a read took %.2f us with %zu shared pages, %.2f us with %zu", few, little, many, n);
	TH_LOG("one of mm/ksm.c's took %.2f us and %.2f us", others_few, others_many);
	EXPECT_GT(4 * few, many);
}

/* No fd left for the new object: nothing of it may stay. */
TEST_F(limit, no_fd_left)
{
	struct rlimit old, none = { 3, 3 };
	long long areas = ksm_stat("areas"), metadata = ksm_stat("metadata_bytes");

	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &old));
	none.rlim_max = old.rlim_max;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &none));
	for (int i = 0; i < 100; i++) {
		EXPECT_EQ(-1, ioctl(self->k.dev, KSM_CREATE_SHARED_MEMORY_AREA));
		EXPECT_EQ(EMFILE, errno);
		EXPECT_EQ(-1, ioctl(self->k.dev, KSM_CREATE_SCAN));
		EXPECT_EQ(EMFILE, errno);
	}
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &old));
	EXPECT_EQ(areas, ksm_stat("areas"));
	/* What was freed a moment ago may not have been counted at first. */
	EXPECT_GE(metadata, ksm_stat("metadata_bytes"));
}

/* ---- allocations that fail, where the kernel can make them ---- */

#define DEBUGFS "/sys/kernel/debug/"

/* /proc/thread-self/fail-nth, held open: to open it would take an allocation. */
static int fail_nth_fd = -1;

/* The n-th allocation of this thread from now on fails; 0: none. */
static void fail_nth(unsigned int n)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%u", n);

	if (pwrite(fail_nth_fd, text, len, 0) != len)
		ksm_die("cannot write fail-nth: %s", strerror(errno));
}

/* Did the failure that was asked for happen? Switches it off in any case. */
static bool failed_nth(void)
{
	char buf[16] = "";

	if (pread(fail_nth_fd, buf, sizeof(buf) - 1, 0) <= 0)
		ksm_die("cannot read fail-nth: %s", strerror(errno));
	fail_nth(0);
	return atoi(buf) == 0;
}

static long try_area(struct ksm *k, int area, char *mem)
{
	int fd = ioctl(k->dev, KSM_CREATE_SHARED_MEMORY_AREA);
	int err = errno;

	(void)area;
	(void)mem;
	if (fd < 0)
		return -err;
	close(fd);
	return 0;
}

static long try_scan_fd(struct ksm *k, int area, char *mem)
{
	int fd = ioctl(k->dev, KSM_CREATE_SCAN);
	int err = errno;

	(void)area;
	(void)mem;
	if (fd < 0)
		return -err;
	close(fd);
	return 0;
}

static long try_register(struct ksm *k, int area, char *mem)
{
	(void)k;
	return ksm_register(area, mem, 64);
}

static long try_scan(struct ksm *k, int area, char *mem)
{
	struct ksm_user_scan s = { .pages_to_scan = 4 * 64 };

	(void)area;
	(void)mem;
	return ioctl(k->scan, KSM_SCAN, &s) ? -errno : 0;
}

static long try_unmerge(struct ksm *k, int area, char *mem)
{
	(void)k;
	(void)mem;
	return ksm_unmerge(area);
}

static long try_merge_range(struct ksm *k, int area, char *mem)
{
	(void)k;
	return ksm_merge_range(area, mem, 64, NULL);
}

TEST_F(limit, failing_allocations)
{
	static long (*const calls[])(struct ksm *k, int area, char *mem) = {
		try_area, try_scan_fd, try_register, try_scan, try_unmerge, try_merge_range,
	};
	static const char *const setup[][2] = {
		{ DEBUGFS "failslab/ignore-gfp-wait", "N" },
		{ DEBUGFS "failslab/verbose", "0" },
		{ DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N" },
		{ DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N" },
		{ DEBUGFS "fail_page_alloc/min-order", "0" },
		{ DEBUGFS "fail_page_alloc/verbose", "0" },
	};
	char *mem = ksm_mmap(64);
	unsigned int injected = 0;

	if (access(DEBUGFS "failslab", F_OK))
		SKIP(return, "this kernel has no fault injection; the debug kernel has");
	for (size_t i = 0; i < sizeof(setup) / sizeof(setup[0]); i++)
		ksm_write_file(setup[i][0], setup[i][1]);
	ksm_fill_same(mem, 64, 1);
	fail_nth_fd = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, fail_nth_fd);

	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		const long long areas = ksm_stat("areas");
		unsigned int n;
		bool hit = true;
		long ret;

		for (n = 1; hit && n < 300; n++) {
			/* Each call finds what it needs: regions, merged pages. */
			ksm_remove(self->area);
			if (calls[i] != try_register)
				ASSERT_EQ(0, ksm_register(self->area, mem, 64));
			if (calls[i] == try_unmerge)
				ksm_merge_all(&self->k);
			/* What the last try has merged would want nothing. */
			if (calls[i] == try_scan || calls[i] == try_merge_range) {
				ASSERT_EQ(0, ksm_unmerge(self->area));
				/* And a window that has to grow. */
				ASSERT_EQ(0, madvise(ksm_page(mem, 8), 56 * PGSZ, MADV_DONTNEED));
				ASSERT_EQ(0, ksm_merge_range(self->area, mem, 8, NULL));
				ksm_fill_same(ksm_page(mem, 8), 56, 1);
			}
			fail_nth(n);
			ret = calls[i](&self->k, self->area, mem);
			hit = failed_nth();
			injected += hit;
			/* Scans do without; for the others it is an error of theirs. */
			EXPECT_TRUE(ret == 0 || (ret == -ENOMEM && hit)) {
				TH_LOG("call %zu, allocation %u: %s", i, n, strerror(-ret));
			}
			EXPECT_EQ(areas, ksm_stat("areas"));
			if (calls[i] == try_register && ret)
				EXPECT_EQ(0, ksm_stat("regions"));
			EXPECT_EQ(0, ksm_wrong_same(mem, 64, 1));
		}
		/* In the end one call went through without being hit. */
		EXPECT_FALSE(hit);
	}
	close(fail_nth_fd);
	TH_LOG("%u failures were injected", injected);
	EXPECT_LT(10, injected);
	ksm_merge_all(&self->k);
	EXPECT_EQ(1, ksm_distinct(0, mem, 64));
}

TEST_HARNESS_MAIN
