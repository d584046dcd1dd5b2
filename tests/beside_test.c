// SPDX-License-Identifier: GPL-2.0-only
/*
 * beside_test.c - how long sharing takes beside a tenant in trouble
 *
 * A tenant is a memory cgroup. One is over a limit of its own, or its tasks do not get to run while
 * they hold whatever they hold; others share meanwhile, and kksmd is retuned and stopped. And a
 * process whose mmap lock is never free is shared nevertheless.
 *
 * Each time is told beside that of the control, which is the same without the trouble, in the same
 * run. None is judged: what must happen happens in the end, or does not. The lines with
 * "beside:" are what make check-neighbours prints in the end.
 */
#include <fcntl.h>
#include <sys/mman.h>

#include "ksm_busy.h"
#include "ksm_cgroup.h"
#include "ksm_harness.h"

#define MIB		(1UL << 20)
#define PAGES(mib)	((mib) * MIB / PGSZ)
#define N		PAGES(8)

#define TROUBLE		"ksm-trouble"
#define OTHER		"ksm-other"

/* With the control as often, and in turns; one is enough to see that all get what they want. */
#define ROUNDS		5

static double longest(double a, double b)
{
	return a > b ? a : b;
}

/* Where everything takes many times longer. */
#define LONG		(5 * KSM_PATIENCE)

/* Seconds until kksmd has all of it shared by the two; more than LONG if it does not. */
static double share(const struct ksm *k, struct ksm_child *c, const char *mem)
{
	double begin = ksm_now(), took;

	if (ksm_start(k->dev, 5000, 0, 20))
		ksm_die("kksmd does not start");
	do {
		usleep(10000);
		took = ksm_now() - begin;
	} while (ksm_same_frames(c[0].pid, mem, c[1].pid, mem, N) < N && took <= LONG);
	return took;
}

/* Threads that map and unmap for ever, so that the mmap lock is never free; others that burn CPU. */
static long fn_busy(long mapping, long burning, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	if (!ksm_busy_threads(mapping, ksm_busy_mapper) || !ksm_busy_threads(burning, ksm_busy_loop))
		ksm_die("a thread cannot be made");
	return 0;
}

/* ---- others share beside it ---- */

/* Far beyond it, and it goes on asking for more. */
static void over_high(struct ksm_child *c)
{
	ksm_cgroup_write(TROUBLE, "memory.high",
			 ksm_cgroup_read(TROUBLE, "memory.current", NULL) / 4);
	ksm_call(c, fn_busy, 1, 0, 0);
}

static void at_max(struct ksm_child *c)
{
	(void)c;
	ksm_cgroup_write(TROUBLE, "memory.max",
			 ksm_cgroup_read(TROUBLE, "memory.current", NULL));
}

static long fn_register_far(long addr, long npages, long unused, long unused2)
{
	int dev = open("/dev/ksm", O_RDWR | O_CLOEXEC);

	(void)unused;
	(void)unused2;
	return dev < 0 ? -errno : ksm_fn_area_register(dev, addr, npages, 0);
}

/* No page of it is there, which only who has the mmap lock can see. */
#define FAR_ADDR	(16UL << 40)
#define FAR_SIZE	(8UL << 40)

/*
 * Fifty are waiting for a thousandth of a CPU, some of them with a lock held; and there is much
 * that they have registered.
 */
static void throttled(struct ksm_child *c)
{
	if (ksm_call(c, fn_register_far, FAR_ADDR, FAR_SIZE / PGSZ, 0) < 0)
		ksm_die("what is not mapped cannot be registered");
	ksm_call(c, fn_busy, 4, 50, 0);
	usleep(100000);
	ksm_cgroup_write_text(TROUBLE, "cpu.max", "1000 1000000");
}

static void frozen(struct ksm_child *c)
{
	ksm_call(c, fn_busy, 4, 0, 0);
	usleep(100000);
	ksm_cgroup_write(TROUBLE, "cgroup.freeze", 1);
}

/* Whatever it was. */
static void no_trouble(void)
{
	ksm_cgroup_write(TROUBLE, "memory.high", -1);
	ksm_cgroup_write(TROUBLE, "memory.max", -1);
	ksm_cgroup_write(TROUBLE, "cgroup.freeze", 0);
	if (ksm_cgroup_has_cpu(TROUBLE))
		ksm_cgroup_write_text(TROUBLE, "cpu.max", "max");
}

FIXTURE(beside)
{
	struct ksm k;
	struct ksm_child trouble[2], other[2];
	char *mem;
};

FIXTURE_VARIANT(beside)
{
	const char *name;
	void (*begin)(struct ksm_child *c);
	bool cpu;
};

FIXTURE_VARIANT_ADD(beside, high) { .name = "over memory.high", .begin = over_high };
FIXTURE_VARIANT_ADD(beside, max) { .name = "at memory.max", .begin = at_max };
FIXTURE_VARIANT_ADD(beside, throttled) { .name = "throttled", .begin = throttled, .cpu = true };
FIXTURE_VARIANT_ADD(beside, frozen) { .name = "frozen", .begin = frozen };

FIXTURE_SETUP(beside)
{
	ksm_begin(&self->k);
	ASSERT_TRUE(ksm_wait_stat("kernel_pages", 0));
	ksm_cgroup_make(TROUBLE);
	ksm_cgroup_make(OTHER);
	ksm_cgroup_write(TROUBLE, "memory.swap.max", 0);
	self->mem = ksm_mmap(N);
	for (int i = 0; i < 2; i++)
		ksm_cgroup_tenant(&self->k, &self->other[i], OTHER, self->mem, N, 1);
}

FIXTURE_TEARDOWN(beside)
{
	ksm_stop(self->k.dev);
	for (int i = 0; i < 2; i++)
		ksm_kill(&self->other[i]);
	ksm_finish(&self->k);
	ksm_cgroup_remove(TROUBLE);
	ksm_cgroup_remove(OTHER);
}

/* What was measured in the rounds without the trouble, and in those with it, in seconds. */
struct times {
	double sharing, retune, stop;
};

/* All begin with memory that is not shared yet. */
static void one_round(struct ksm *k, struct ksm_child *trouble, struct ksm_child *other, char *mem,
		      int seed, void (*begin)(struct ksm_child *c), struct times *t)
{
	double now;

	for (int i = 0; i < 2; i++) {
		ksm_cgroup_tenant(k, &trouble[i], TROUBLE, mem, N, seed);
		ksm_call(&other[i], ksm_fn_fill, mem, N, seed + 1);
	}
	/* That is done once a second, and would be most of what is measured. */
	ksm_drain_batches();
	if (begin)
		begin(&trouble[0]);
	t->sharing += share(k, other, mem);
	now = ksm_now();
	if (ksm_set_pace(k->dev, 50, 2) || ksm_set_pace(k->dev, 0, 1))
		ksm_die("kksmd is not retuned");
	t->retune = longest(t->retune, ksm_now() - now);
	now = ksm_now();
	if (ksm_stop(k->dev))
		ksm_die("kksmd does not stop");
	t->stop = longest(t->stop, ksm_now() - now);
	no_trouble();
	for (int i = 0; i < 2; i++)
		ksm_kill(&trouble[i]);
}

TEST_F_TIMEOUT(beside, others_share, 1800)
{
	const char *seconds = getenv("KSM_HOSTILE_SECONDS");
	const int rounds = seconds && atoi(seconds) >= 100 ? ROUNDS : 1;
	struct times first, control = { 0 }, times = { 0 };

	if (variant->cpu && !ksm_cgroup_has_cpu(TROUBLE))
		SKIP(return, "no cpu controller in this kernel");
	/* What is shared for the first time takes another way: that one does not count. */
	for (int i = 0; i <= 2 * rounds; i++) {
		bool trouble = i && i % 2 == 0;

		one_round(&self->k, self->trouble, self->other, self->mem, 2 * i,
			  trouble ? variant->begin : NULL,
			  trouble ? &times : i ? &control : &first);
		EXPECT_EQ(N, ksm_same_frames(self->other[0].pid, self->mem, self->other[1].pid,
					     self->mem, N));
		ASSERT_TRUE(ksm_wait_stat("regions", 2));
	}
	printf("# beside: one %-17s sharing %5.2f s, the control %5.2f s, ratio %4.2f; kksmd retuned in %4.1f and %4.1f ms, stopped in %4.1f and %4.1f ms\n",
	       variant->name, times.sharing / rounds, control.sharing / rounds,
	       times.sharing / control.sharing, times.retune * 1e3, control.retune * 1e3,
	       times.stop * 1e3, control.stop * 1e3);
	fflush(stdout);
	EXPECT_EQ(0, ksm_cgroup_read(OTHER, "memory.events", "high"));
	EXPECT_EQ(0, ksm_cgroup_read(OTHER, "memory.events", "oom_kill"));
	EXPECT_EQ(0, ksm_cgroup_read(TROUBLE, "memory.events", "oom_kill"));
}

/* ---- its own time ---- */

FIXTURE(own)
{
	struct ksm k;
	struct ksm_child c[2];
	char *mem;
};

FIXTURE_SETUP(own)
{
	ksm_begin(&self->k);
	ASSERT_TRUE(ksm_wait_stat("kernel_pages", 0));
	ksm_cgroup_make(TROUBLE);
	self->mem = ksm_mmap(N);
	for (int i = 0; i < 2; i++)
		ksm_cgroup_tenant(&self->k, &self->c[i], TROUBLE, self->mem, N, 1);
}

FIXTURE_TEARDOWN(own)
{
	ksm_stop(self->k.dev);
	for (int i = 0; i < 2; i++)
		ksm_kill(&self->c[i]);
	ksm_finish(&self->k);
	ksm_cgroup_remove(TROUBLE);
}

/* Microseconds for so many new pages. */
static long fn_time_new(long npages, long unused, long unused2, long unused3)
{
	double begin = ksm_now();
	char *mem = mmap(NULL, npages * PGSZ, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0);

	(void)unused;
	(void)unused2;
	(void)unused3;
	if (mem == MAP_FAILED)
		return -errno;
	for (long i = 0; i < npages; i++)
		mem[i * PGSZ] = 1;
	begin = ksm_now() - begin;
	munmap(mem, npages * PGSZ);
	return begin * 1e6;
}

/* Memory that is nobody's business: beside it, what CPUs charge in advance is little. */
static long fn_ballast(long npages, long unused, long unused2, long unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	return mmap(NULL, npages * PGSZ, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0) == MAP_FAILED ? -errno : 0;
}

/* A group over its memory.high waits for that: how long, with kksmd and without. */
TEST_F(own, mapping_over_high)
{
	const long pages = 128;
	long without, with;

	/* Work for kksmd, and nothing to share: that would help. */
	ksm_call(&self->c[1], ksm_fn_fill, self->mem, N, 2);
	ASSERT_EQ(0, ksm_call(&self->c[1], fn_ballast, PAGES(128), 0, 0));
	ksm_cgroup_write(TROUBLE, "memory.swap.max", 0);
	ksm_cgroup_write(TROUBLE, "memory.high",
			 ksm_cgroup_read(TROUBLE, "memory.current", NULL) / 16 * 15);
	ksm_call(&self->c[0], fn_time_new, pages, 0, 0);
	without = ksm_call(&self->c[0], fn_time_new, pages, 0, 0);
	ASSERT_EQ(0, ksm_start(self->k.dev, 5000, 0, 20));
	with = ksm_call(&self->c[0], fn_time_new, pages, 0, 0);
	ASSERT_LT(0, without);
	ASSERT_LT(0, with);
	printf("# beside: own mmap() over memory.high %.2f s, with kksmd stopped %.2f s, ratio %.2f\n",
	       with / 1e6, without / 1e6, (double)with / without);
	fflush(stdout);
	EXPECT_EQ(0, ksm_cgroup_read(TROUBLE, "memory.events", "oom_kill"));
}

/* Threads that take the mmap lock in turns, so that it is never free, are waited for. */
TEST_F_TIMEOUT(own, one_maps_and_unmaps_all_the_time, 1200)
{
	double quiet = 0, busy;

	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 20, 1));
	/* As above, the first does not count. */
	for (int seed = 2; seed < 4; seed++) {
		quiet = share(&self->k, self->c, self->mem);
		EXPECT_EQ(N, ksm_same_frames(self->c[0].pid, self->mem, self->c[1].pid, self->mem,
					     N));
		ASSERT_EQ(0, ksm_stop(self->k.dev));
		for (int i = 0; i < 2; i++)
			ksm_call(&self->c[i], ksm_fn_fill, self->mem, N, seed);
	}
	ksm_call(&self->c[1], fn_busy, 4, 0, 0);
	busy = share(&self->k, self->c, self->mem);
	EXPECT_EQ(N, ksm_same_frames(self->c[0].pid, self->mem, self->c[1].pid, self->mem, N));
	printf("# beside: one maps and unmaps all the time, shared in %.2f s, quiet %.2f s, ratio %.2f\n",
	       busy, quiet, busy / quiet);
	fflush(stdout);
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 1));
}

/* Some pages in each of many tables. */
static long fn_fill_tables(long mem, long tables, long npages, long seed)
{
	for (long i = 0; i < tables; i++)
		ksm_fill((char *)mem + i * KSM_HUGE_SIZE, npages, seed + i);
	return 0;
}

/* And so is a large one, to its end: there is not time enough in a pass to wait for all of it. */
TEST_F_TIMEOUT(own, one_is_large_and_maps_all_the_time, 1200)
{
	enum { EACH = 4 };
	/* Where a wait ends in vain more often than not, each takes many. */
	const size_t tables = ksm_is_slow() ? 32 : 128, npages = tables * KSM_HUGE_PAGES;
	char *mem = mmap(NULL, npages * PGSZ, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	double begin, took, until;
	size_t same, before = 0;

	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, madvise(mem, npages * PGSZ, MADV_NOHUGEPAGE));
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 20, 1));
	for (int i = 0; i < 2; i++) {
		ksm_end(&self->c[i]);
		ksm_spawn(&self->c[i]);
		ksm_call4(&self->c[i], fn_fill_tables, (long)mem, tables, EACH, 1);
		ASSERT_LE(0, ksm_call(&self->c[i], ksm_fn_area_register, self->k.dev, mem,
				      npages));
	}
	ksm_call(&self->c[1], fn_busy, 4, 0, 0);
	begin = ksm_now();
	until = LONG;
	ASSERT_EQ(0, ksm_start(self->k.dev, 5000, 0, 20));
	/* As long as it goes on: on a debug kernel it takes minutes. */
	do {
		usleep(200000);
		took = ksm_now() - begin;
		same = 0;
		for (size_t i = 0; i < tables; i++) {
			char *at = mem + i * KSM_HUGE_SIZE;

			same += ksm_same_frames(self->c[0].pid, at, self->c[1].pid, at, EACH);
		}
		if (same > before)
			until = took + LONG;
		before = same;
	} while (same < tables * EACH && took <= until);
	EXPECT_EQ(tables * EACH, same);
	printf("# beside: one of %zu tables maps and unmaps all the time, shared in %.2f s\n",
	       tables, took);
	fflush(stdout);
	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 1));
}

TEST_HARNESS_MAIN
