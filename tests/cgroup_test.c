// SPDX-License-Identifier: GPL-2.0-only
/*
 * cgroup_test.c - what a memory cgroup pays for: shared pages, regions
 *
 * A group without room is no error and loses nothing: pages stay unmerged or a
 * registration is refused, nobody is killed, and all of it comes back when the users are
 * gone.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_cgroup.h"
#include "ksm_limit.h"

#define CGROUP	"ksm-limits"

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

TEST_HARNESS_MAIN
