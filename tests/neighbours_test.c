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

/* Scan until all of it is shared by two, as somebody may hold a page for a while; how much is. */
static long share(const struct ksm *k, const struct ksm_child *a, const struct ksm_child *b,
		  const char *mem, long n)
{
	double end = ksm_now() + KSM_PATIENCE;
	long same;

	do {
		ksm_merge_all(k);
		same = ksm_same_frames(a->pid, mem, b->pid, mem, n);
	} while (same < n && ksm_now() < end);
	return same;
}

/*
 * Who pays and has less than a sixteenth of his limit free is relieved by others who map the same,
 * as far as it takes, once a mapping was lost anywhere. The control is the same without a limit.
 *
 * All is counted in pages: what a CPU charges in advance is 64 of them, whatever their size. A
 * group is never charged less than what is charged to it, so none of that is in the way of a
 * bound from below.
 */
TEST_F_TIMEOUT(tenants, payer_without_margin, 1200)
{
	const long n = 8192, kept = n - n / 8, bytes = n * PGSZ;
	char *mem = ksm_mmap(n);
	struct ksm_child *a = TENANT(GROUP, mem, n, 1), *b, *c;
	long limit, enough, before;

	ksm_passes(&self->k, 2);
	b = TENANT(OTHER, mem, n, 1);
	ASSERT_EQ(n, share(&self->k, a, b, mem, n));
	c = TENANT(GROUP, mem, n, 1);
	ASSERT_EQ(n, share(&self->k, a, c, mem, n));
	ASSERT_EQ(n, ksm_same_frames(a->pid, mem, b->pid, mem, n));
	ASSERT_LE(bytes - bytes / 16, ksm_cgroup_read(OTHER, "memory.current", NULL));
	ASSERT_GE(bytes / 4, ksm_cgroup_read(GROUP, "memory.current", NULL));
	ASSERT_EQ(0, ksm_start(self->k.dev, 5000, 0, 0));

	/*
	 * The control: what it leaves others pay for, by which one sees that all shared pages were
	 * looked at. The rest stays its own, though they look on.
	 */
	ksm_call(b, fn_touch, mem + kept * PGSZ, n - kept, 2);
	EXPECT_GE(bytes + bytes / 16, wait_for_charge(OTHER, bytes + bytes / 16));
	EXPECT_TRUE(ksm_wait_more("full_scans", 40, 5 * KSM_PATIENCE));
	EXPECT_LE(bytes - bytes / 16, ksm_cgroup_read(OTHER, "memory.current", NULL));
	before = ksm_cgroup_read(GROUP, "memory.current", NULL);
	EXPECT_GE(bytes / 4, before);

	/* Its limit is just above what it has. It is relieved until it has its sixteenth. */
	limit = ksm_cgroup_read(OTHER, "memory.current", NULL) / PGSZ + 64;
	enough = (limit - limit / 16) * PGSZ;
	ksm_cgroup_write(OTHER, "memory.max", limit * PGSZ);
	ksm_call(c, fn_touch, mem + (kept - 1) * PGSZ, 1, 3);
	EXPECT_GE(enough, wait_for_charge(OTHER, enough));
	EXPECT_LE(before + bytes / 64, ksm_cgroup_read(GROUP, "memory.current", NULL));

	/* Of a lower limit, which memory.high may be, that is all but what nobody else maps. */
	ksm_cgroup_write(OTHER, "memory.high", bytes / 4);
	ksm_call(c, fn_touch, mem + (kept - 2) * PGSZ, 1, 3);
	EXPECT_GE(bytes / 4, wait_for_charge(OTHER, bytes / 4));
	EXPECT_LE(bytes - bytes / 8, ksm_cgroup_read(GROUP, "memory.current", NULL));

	EXPECT_EQ(0, ksm_cgroup_read(GROUP, "memory.events", "oom_kill"));
	EXPECT_EQ(0, ksm_cgroup_read(OTHER, "memory.events", "oom_kill"));
	EXPECT_TRUE(alive(a) && alive(b) && alive(c));
	/* Some had the byte that was written. */
	EXPECT_LE(kept, ksm_same_frames(a->pid, mem, b->pid, mem, n));
	EXPECT_LE(n - 2, ksm_same_frames(a->pid, mem, c->pid, mem, n));
	EXPECT_EQ(0, ksm_call(a, ksm_fn_wrong, mem, n, 1));
	EXPECT_EQ(0, ksm_call(b, ksm_fn_wrong, mem, kept, 1));
	EXPECT_EQ(0, ksm_call(c, ksm_fn_wrong, mem, kept - 2, 1));
}

#define ONE_USER 1000

/* A user's process in a group, which has touched no memory yet. */
static struct ksm_child *user(struct ksm_child *c, int *nr, const char *group)
{
	long ret;

	c += (*nr)++;
	ksm_spawn(c);
	ksm_cgroup_write(group, "cgroup.procs", c->pid);
	ret = ksm_call(c, ksm_fn_become, ONE_USER, 0, 0);
	if (ret)
		ksm_die("cannot become user %d: %s", ONE_USER, strerror(-ret));
	return c;
}

/* Write, and be seen to have written: the next one who has the same finds it. */
static void write_and_be_seen(const struct ksm *k, struct ksm_child *c, char *mem, long n,
			      long seed)
{
	ksm_call(c, ksm_fn_fill, mem, n, seed);
	ksm_passes(k, 2);
}

static long open_area(const struct ksm *k, struct ksm_child *c, char *mem, long n)
{
	long area = ksm_call(c, ksm_fn_area_register, k->dev, mem, n);

	if (area < 0)
		ksm_die("a tenant cannot register its memory: %s", strerror(-area));
	return area;
}

/*
 * Guess what another one holds, have that confirmed, write to half of it, and leave the rest as it
 * is: shared, and not registered. Returns how many pages were merged.
 */
static long guess(const struct ksm *k, struct ksm_child *c, char *mem, long n, long seed)
{
	long area, merged;

	ksm_call(c, ksm_fn_fill, mem, n, seed);
	/* Its own call might wait a second for that, as it is not root's. */
	ksm_drain_batches();
	area = open_area(k, c, mem, n);
	merged = ksm_call(c, ksm_fn_merge_range, area, mem, n);
	if (merged < 0)
		ksm_die("KSM_MERGE_RANGE: %s", strerror(-merged));
	ksm_call(c, fn_touch, mem, n / 2, seed);
	ksm_call(c, ksm_fn_close, area, 0, 0);
	return merged;
}

/*
 * Guess what the victim is about to hold, so that it is the one that comes to what is there, and
 * pays; then it writes something else, and nobody is left who could pay for what it had. Returns
 * how many pages they had in common.
 */
static long guess_ahead(const struct ksm *k, struct ksm_child *victim, struct ksm_child *c,
			char *mem, long n, long seed)
{
	long area, same;

	ksm_call(c, ksm_fn_fill, mem, n, seed);
	area = open_area(k, c, mem, n);
	ksm_passes(k, 2);
	ksm_call(victim, ksm_fn_fill, mem, n, seed);
	same = share(k, victim, c, mem, n);
	ksm_call(c, ksm_fn_close, area, 0, 0);
	write_and_be_seen(k, victim, mem, n, seed + 1);
	return same;
}

/*
 * One user's processes in two groups, as guests of one host: what one guesses of the other's
 * memory is shared, and is the guesser's to pay. The control is the one that is guessed at, alone.
 *
 * Who scans is the test, between the steps, so it is always the same that happens; and how much
 * a group was charged at the most the kernel remembers, so no peak is missed.
 */
TEST_F_TIMEOUT(tenants, one_user_two_groups, 1800)
{
	enum { ROUNDS = 32, AHEAD = 8 };
	const long n = 4096, bytes = n * PGSZ;
	char *mem = ksm_mmap(n);
	struct ksm_child *v = user(self->c, &self->nr, GROUP);
	struct ksm_child *g = user(self->c, &self->nr, OTHER);
	long alone, most, charged, merged = 0, same = 0, seed = 0;

	/* Far from any limit. */
	ksm_cgroup_write(GROUP, "memory.max", 8 * bytes);
	ksm_cgroup_write(OTHER, "memory.max", 8 * bytes);
	open_area(&self->k, v, mem, n);
	for (int round = 0; round < ROUNDS; round++)
		write_and_be_seen(&self->k, v, mem, n, ++seed);
	charged = ksm_cgroup_read(GROUP, "memory.current", NULL);
	alone = ksm_cgroup_read(GROUP, "memory.peak", NULL);
	ASSERT_LE(bytes, charged);

	for (int round = 0; round < ROUNDS; round++) {
		write_and_be_seen(&self->k, v, mem, n, ++seed);
		merged += guess(&self->k, g, mem, n, seed);
	}
	most = ksm_cgroup_read(GROUP, "memory.peak", NULL);
	TH_LOG("charged alone %ld pages, at most %ld; with guesses, of which %ld were right, %ld",
	       charged / PGSZ, alone / PGSZ, merged, most / PGSZ);
	/* Or there was nothing to pay for. */
	EXPECT_LT(ROUNDS * n / 2, merged);
	EXPECT_GE(alone + alone / 4, most);
	EXPECT_EQ(0, ksm_call(v, ksm_fn_wrong, mem, n, seed));

	/*
	 * Here it does pay for what the other one still maps, until that one lets go: that is
	 * documented, and is never more than that one has memory.
	 */
	for (int round = 0; round < AHEAD; round++) {
		same += guess_ahead(&self->k, v, g, mem, n, ++seed);
		seed++;
	}
	most = ksm_cgroup_read(GROUP, "memory.peak", NULL);
	TH_LOG("with guesses ahead, of which %ld were right, %ld", same, most / PGSZ);
	EXPECT_LT(AHEAD * n / 2, same);
	EXPECT_GE(2 * alone + alone / 4, most);

	/* And all of it is over when the guesser is gone. */
	ksm_kill(g);
	ksm_passes(&self->k, 40);
	EXPECT_GE(charged + charged / 8, wait_for_charge(GROUP, charged + charged / 8));
	EXPECT_EQ(0, ksm_cgroup_read(GROUP, "memory.events", "oom_kill"));
	EXPECT_EQ(0, ksm_cgroup_read(OTHER, "memory.events", "oom_kill"));
	EXPECT_TRUE(alive(v));
	EXPECT_EQ(0, ksm_call(v, ksm_fn_wrong, mem, n, seed));
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
