// SPDX-License-Identifier: GPL-2.0-only
/*
 * neighbours_test.c - what one tenant does hurts no other
 *
 * Tenants are memory cgroups, whose processes may be killed as any other's: what is merged, or
 * given back, must not be what has them killed, put to sleep, or left out.
 */
#include <sys/mman.h>
#include <sys/wait.h>

#include "ksm_cgroup.h"
#include "ksm_harness.h"

#define MIB	(1UL << 20)
#define PAGES(mib) ((mib) * MIB / PGSZ)

#define GROUP	"ksm-tenant"
#define OTHER	"ksm-other"

FIXTURE(tenants)
{
	struct ksm k;
	struct ksm_child c[4];
	int nr;
};

FIXTURE_SETUP(tenants)
{
	ksm_begin(&self->k);
	ASSERT_TRUE(ksm_wait_stat("kernel_pages", 0));
	ksm_cgroup_make(GROUP);
	ksm_cgroup_make(OTHER);
	self->nr = 0;
}

FIXTURE_TEARDOWN(tenants)
{
	ksm_stop(self->k.dev);
	for (int i = 0; i < self->nr; i++)
		if (self->c[i].pid > 0)
			ksm_kill(&self->c[i]);
	ksm_finish(&self->k);
	ksm_cgroup_remove(GROUP);
	ksm_cgroup_remove(OTHER);
}

/* A process in a group, or in none, that has filled and registered memory. */
static struct ksm_child *tenant(struct ksm *k, struct ksm_child *c, int *nr, const char *group,
				char *mem, size_t n, int seed)
{
	c += (*nr)++;
	ksm_cgroup_tenant(k, c, group, mem, n, seed);
	return c;
}

#define TENANT(group, mem, n, seed) \
	tenant(&self->k, self->c, &self->nr, group, mem, n, seed)

static bool alive(const struct ksm_child *c)
{
	siginfo_t info = { 0 };

	return !waitid(P_PID, c->pid, &info, WEXITED | WNOHANG | WNOWAIT) && !info.si_pid;
}

/* One byte of each page. */
static long fn_touch(long addr, long npages, long value, long unused)
{
	(void)unused;
	for (long i = 0; i < npages; i++)
		((volatile char *)addr)[i * PGSZ] = value;
	return 0;
}

/* New memory, which stays. */
static long fn_more(long npages, long unused, long unused2, long unused3)
{
	char *mem = mmap(NULL, npages * PGSZ, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)unused;
	(void)unused2;
	(void)unused3;
	if (mem == MAP_FAILED)
		return -errno;
	return fn_touch((long)mem, npages, 1, 0);
}

/*
 * Two processes fit into their group's limit together, before they are merged and after all of it
 * was written again, though nobody scans meanwhile.
 */
TEST_F(tenants, wave_of_writes)
{
	const size_t n = PAGES(24);
	char *mem = ksm_mmap(n);
	struct ksm_child *a = TENANT(GROUP, mem, n, 1), *b = TENANT(GROUP, mem, n, 1);

	ksm_merge_all(&self->k);
	ASSERT_EQ(n, ksm_same_frames(a->pid, mem, b->pid, mem, n));
	ksm_cgroup_write(GROUP, "memory.max", 60 * MIB);
	ksm_cgroup_write(GROUP, "memory.swap.max", 0);
	ksm_call_start(a, fn_touch, (long)mem, n, 1, 0);
	ksm_call_start(b, fn_touch, (long)mem, n, 2, 0);
	ksm_call_finish(a);
	ksm_call_finish(b);
	EXPECT_EQ(0, ksm_cgroup_read(GROUP, "memory.events", "oom_kill"));
	EXPECT_GE(60 * (long)MIB, ksm_cgroup_read(GROUP, "memory.current", NULL));
	EXPECT_TRUE(alive(a) && alive(b));
}

/* Wait until a group is charged for no more than that; how much it is. */
static long wait_for_charge(const char *group, long bytes)
{
	double end = ksm_now() + KSM_PATIENCE;
	long now;

	while ((now = ksm_cgroup_read(group, "memory.current", NULL)) > bytes && ksm_now() < end)
		usleep(50000);
	return now;
}

/* Who no longer maps what he paid for pays no longer; those do who map it. */
TEST_F(tenants, payer_leaves)
{
	const long n = PAGES(16), bytes = n * PGSZ;
	char *mem = ksm_mmap(n);
	struct ksm_child *a = TENANT(GROUP, mem, n, 1), *b, *c;

	ksm_passes(&self->k, 2);
	b = TENANT(OTHER, mem, n, 1);
	ksm_merge_all(&self->k);
	c = TENANT(GROUP, mem, n, 1);
	ksm_merge_all(&self->k);
	ASSERT_EQ(n, ksm_same_frames(a->pid, mem, b->pid, mem, n));
	ASSERT_EQ(n, ksm_same_frames(a->pid, mem, c->pid, mem, n));
	/* It is the one that came to what was there. */
	ASSERT_LE(bytes, ksm_cgroup_read(OTHER, "memory.current", NULL));
	ASSERT_GE(bytes / 2, ksm_cgroup_read(GROUP, "memory.current", NULL));
	ASSERT_EQ(0, ksm_start(self->k.dev, 5000, 0, 0));
	/* What it maps yet it pays for yet. */
	ksm_call(b, fn_touch, mem, n / 2, 2);
	EXPECT_GE(bytes + bytes / 8, wait_for_charge(OTHER, bytes + bytes / 8));
	EXPECT_LE(bytes - bytes / 8, ksm_cgroup_read(OTHER, "memory.current", NULL));
	EXPECT_GE(bytes / 2 + bytes / 8, ksm_cgroup_read(GROUP, "memory.current", NULL));
	ksm_call(b, fn_touch, mem, n, 2);
	EXPECT_GE(bytes + bytes / 4, wait_for_charge(OTHER, bytes + bytes / 4));
	EXPECT_LE(bytes - bytes / 4, ksm_cgroup_read(GROUP, "memory.current", NULL));
	EXPECT_EQ(n, ksm_same_frames(a->pid, mem, c->pid, mem, n));
	ksm_kill(b);
	EXPECT_GE(bytes / 4, wait_for_charge(OTHER, bytes / 4));
	EXPECT_EQ(0, ksm_call(a, ksm_fn_wrong, mem, n, 1));
	EXPECT_EQ(0, ksm_call(c, ksm_fn_wrong, mem, n, 1));
}

/*
 * What one process is the last to map becomes its own again only where its group has room for it:
 * nobody is killed for what another one has left.
 */
TEST_F(tenants, last_one_in_a_full_group)
{
	const size_t n = PAGES(16), few = PAGES(1);
	char *mem = ksm_mmap(n), *own = ksm_mmap(few);
	struct ksm_child *a = TENANT(GROUP, mem, n, 1), *b, *c;
	int area = ksm_area(&self->k);
	double end;

	ksm_passes(&self->k, 2);
	b = TENANT(NULL, mem, n, 1);
	/* The control: what shares with it is ours, and we have room. */
	c = TENANT(NULL, own, few, 2);
	ksm_fill(own, few, 2);
	ASSERT_EQ(0, ksm_register(area, own, few));
	ksm_merge_all(&self->k);
	ASSERT_EQ(n, ksm_same_frames(a->pid, mem, b->pid, mem, n));
	ASSERT_EQ(few, ksm_same_frames(0, own, c->pid, own, few));
	ASSERT_LT(0, ksm_fdinfo(area, "pages_shared"));
	/* Others pay for it, so there is room for more; then there is none. */
	EXPECT_GE((long)(n * PGSZ) / 2, ksm_cgroup_read(GROUP, "memory.current", NULL));
	ksm_cgroup_write(GROUP, "memory.max", 40 * MIB);
	ksm_cgroup_write(GROUP, "memory.swap.max", 0);
	ASSERT_EQ(0, ksm_call(a, fn_more, PAGES(32), 0, 0));
	ksm_kill(b);
	ksm_kill(c);
	ASSERT_EQ(0, ksm_start(self->k.dev, 5000, 0, 0));
	/* When ours is ordinary memory again, kksmd has looked at all that has one mapping left. */
	end = ksm_now() + KSM_PATIENCE;
	while (ksm_fdinfo(area, "pages_shared") && ksm_now() < end)
		usleep(50000);
	EXPECT_EQ(0, ksm_fdinfo(area, "pages_shared"));
	EXPECT_TRUE(ksm_wait_more("full_scans", 4, KSM_PATIENCE));
	EXPECT_TRUE(alive(a));
	EXPECT_EQ(0, ksm_cgroup_read(GROUP, "memory.events", "oom_kill"));
	EXPECT_GE(40 * (long)MIB, ksm_cgroup_read(GROUP, "memory.current", NULL));
	EXPECT_EQ(0, ksm_call(a, ksm_fn_wrong, mem, n, 1));
	/* With room again it is its own, and paid for. */
	ksm_cgroup_write(GROUP, "memory.max", -1);
	EXPECT_TRUE(ksm_wait_stat("pages_shared", 0));
	EXPECT_LE(44 * (long)MIB, ksm_cgroup_read(GROUP, "memory.current", NULL));
	EXPECT_EQ(0, ksm_call(a, ksm_fn_wrong, mem, n, 1));
	EXPECT_EQ(0, ksm_wrong(own, few, 2));
	close(area);
}

TEST_HARNESS_MAIN
