// SPDX-License-Identifier: GPL-2.0-only
/*
 * placement_test.c - where shared pages lie: on whose node, and in which zone
 *
 * A shared page is a new page, so it has to be put somewhere: on the node that its sharers chose
 * for their memory, whoever scans, and from what CPU. And as it cannot be moved, it comes
 * from the zones that the kernel has for itself, where the sharers' pages may have come from the
 * movable zone, which is much larger: so as many are shared as leave the kernel what it needs, and
 * no more. (ksmd's shared page is one of the pages that were there. It moves nothing, and
 * shares all of it.)
 *
 * That takes a machine with two nodes of which most is movable: the suite boots one with
 * kernelcore=256M and numa=fake=2. It has one CPU, for the first cpuset has the kernel patch its
 * allocator.
 */
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "ksm_cgroup.h"
#include "ksm_harness.h"
#include "ksm_told.h"

#define MIB	(1UL << 20)
#define PAGES(mib) ((mib) * MIB / PGSZ)
#define NODES	2

/* A zone of /proc/zoneinfo, in pages. */
struct zone {
	int node;
	char name[16];
	long free, high, spanned, managed, start;
};

#define MAX_ZONES 16

static void read_value(const char *line, const char *format, long *value)
{
	long found;

	if (sscanf(line, format, &found) == 1)
		*value = found;
}

static int read_zones(struct zone zones[MAX_ZONES])
{
	struct zone *z = NULL, new = { 0 };
	char line[256];
	int n = 0;
	FILE *f;

	/* What CPUs have counted for themselves. */
	ksm_write_file("/proc/sys/vm/stat_refresh", "1");
	f = fopen("/proc/zoneinfo", "re");
	if (!f)
		ksm_die("cannot open /proc/zoneinfo: %s", strerror(errno));
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "Node %d, zone %15s", &new.node, new.name) == 2) {
			if (n == MAX_ZONES)
				ksm_die("more than %d zones", MAX_ZONES);
			z = &zones[n++];
			*z = new;
		}
		if (!z)
			continue;
		read_value(line, " pages free %ld", &z->free);
		read_value(line, " high %ld", &z->high);
		read_value(line, " spanned %ld", &z->spanned);
		read_value(line, " managed %ld", &z->managed);
		read_value(line, " start_pfn: %ld", &z->start);
	}
	fclose(f);
	return n;
}

static bool is_movable(const struct zone *z)
{
	return !strcmp(z->name, "Movable");
}

/* The largest zone of a node that is movable, or that is not; NULL if there is none. */
static struct zone *largest(struct zone *zones, int n, int node, bool movable)
{
	struct zone *found = NULL;

	for (struct zone *z = zones; z < zones + n; z++)
		if (z->node == node && is_movable(z) == movable && z->managed &&
		    (!found || z->managed > found->managed))
			found = z;
	return found;
}

/* How many of the pages at @mem that both have in common lie in the zone. */
static size_t shared_in(const struct zone *z, pid_t a, pid_t b, const char *mem, size_t n)
{
	uint64_t *pfns = calloc(2 * n, sizeof(*pfns));
	size_t count = 0;

	if (!pfns)
		ksm_die("out of memory; give the VM more (--mem)");
	ksm_pfns(a, mem, n, pfns);
	ksm_pfns(b, mem, n, pfns + n);
	for (size_t i = 0; i < n; i++)
		count += pfns[i] && pfns[i] == pfns[n + i] && (long)pfns[i] >= z->start &&
			 (long)pfns[i] < z->start + z->spanned;
	free(pfns);
	return count;
}

/* Memory that will be of a node, in this process and those that it makes. */
static char *map_on(int node, size_t npages)
{
	unsigned long mask = 1UL << node;
	char *mem = ksm_mmap(npages);

	if (syscall(SYS_mbind, mem, npages * PGSZ, MPOL_BIND, &mask, 8 * sizeof(mask), 0))
		ksm_die("mbind to node %d: %s", node, strerror(errno));
	return mem;
}

static size_t pages_on(const struct ksm_child *c, const char *mem, int node)
{
	char name[16];

	snprintf(name, sizeof(name), "N%d", node);
	return told_numa(c->pid, mem, name);
}

static bool has_nodes(void)
{
	struct zone zones[MAX_ZONES];
	int n = read_zones(zones);

	return largest(zones, n, 0, false) && largest(zones, n, 1, false);
}

static bool alive(const struct ksm_child *c)
{
	siginfo_t info = { 0 };

	return !waitid(P_PID, c->pid, &info, WEXITED | WNOHANG | WNOWAIT) && !info.si_pid;
}

/* Kernel memory: so many page tables, with nothing in them but the zero page. */
static long fn_take_tables(long ntables, long unused, long unused2, long unused3)
{
	char *mem = mmap(NULL, ntables * KSM_HUGE_SIZE, PROT_READ,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	(void)unused;
	(void)unused2;
	(void)unused3;
	if (mem == MAP_FAILED || madvise(mem, ntables * KSM_HUGE_SIZE, MADV_NOHUGEPAGE))
		return -errno;
	for (long i = 0; i < ntables; i++)
		(void)*(volatile char *)(mem + i * KSM_HUGE_SIZE);
	return 0;
}

/*
 * Twice as much memory as the kernel has for itself on each node, half of it spare, and all of
 * it in the movable zones: nobody is killed for what is shared, the kernel keeps a margin in
 * each zone, has memory when it wants some, and down to that margin all is shared that can be.
 */
TEST_F(device, kernel_keeps_a_margin)
{
	struct zone before[MAX_ZONES], after[MAX_ZONES];
	struct ksm_child c[2];
	char *mem[NODES];
	size_t n[NODES];
	long oom, tables = 0;
	int nr;

	nr = read_zones(before);
	for (int node = 0; node < NODES; node++) {
		struct zone *own = largest(before, nr, node, false);
		struct zone *movable = largest(before, nr, node, true);

		if (!own || !movable)
			SKIP(return, "the VM lacks two nodes with a movable zone each: numa=fake=2 kernelcore=256M");
		n[node] = own->managed;
		ASSERT_GT(movable->free, 2 * (long)n[node]);
		mem[node] = map_on(node, n[node]);
		tables += own->managed / 64;
	}
	for (int i = 0; i < 2; i++) {
		ksm_spawn(&c[i]);
		for (int node = 0; node < NODES; node++) {
			ksm_call(&c[i], ksm_fn_fill, mem[node], n[node], 1 + node);
			ASSERT_LE(0, ksm_call(&c[i], ksm_fn_area_register, self->k.dev, mem[node],
					      n[node]));
		}
	}
	ASSERT_EQ(nr, read_zones(before));
	oom = told_vmstat("oom_kill");
	ksm_merge_all(&self->k);
	ASSERT_EQ(oom, told_vmstat("oom_kill"));
	ASSERT_EQ(nr, read_zones(after));

	for (int node = 0; node < NODES; node++) {
		struct zone *was = largest(before, nr, node, false);
		struct zone *is = largest(after, nr, node, false);
		size_t all = ksm_same_frames(c[0].pid, mem[node], c[1].pid, mem[node], n[node]);
		size_t here = shared_in(is, c[0].pid, c[1].pid, mem[node], n[node]);
		long room = was->free - was->high - was->managed / 16;

		TH_LOG("node %d: %zu of %zu pages shared, %zu of them in %s, of which %ld of %ld were free, and %ld are",
		       node, all, n[node], here, is->name, was->free, was->managed, is->free);
		/* What the index takes comes from there, too; what the kernel takes meanwhile is little. */
		EXPECT_GT((long)all, room / 2);
		EXPECT_EQ(all, here);
		EXPECT_GT(is->free, is->high + is->managed / 32);
	}
	/* The kernel wants some. */
	EXPECT_EQ(0, ksm_call(&c[0], fn_take_tables, tables, 0, 0));
	EXPECT_EQ(oom, told_vmstat("oom_kill"));
	for (int i = 0; i < 2; i++) {
		EXPECT_TRUE(alive(&c[i]));
		for (int node = 0; node < NODES; node++)
			EXPECT_EQ(0, ksm_call(&c[i], ksm_fn_wrong, mem[node], n[node], 1 + node));
		ksm_end(&c[i]);
	}
}

/* Who scans, somewhere else than where the sharers have their memory. */
enum way { KKSMD, SCAN, MERGE_RANGE, CPUSET };

FIXTURE(elsewhere)
{
	struct ksm k;
	struct ksm_child c[3];
};

FIXTURE_VARIANT(elsewhere)
{
	enum way way;
};

FIXTURE_VARIANT_ADD(elsewhere, kksmd) { .way = KKSMD };
FIXTURE_VARIANT_ADD(elsewhere, scan) { .way = SCAN };
FIXTURE_VARIANT_ADD(elsewhere, merge_range) { .way = MERGE_RANGE };
FIXTURE_VARIANT_ADD(elsewhere, cpuset) { .way = CPUSET };

FIXTURE_SETUP(elsewhere)
{
	ksm_begin(&self->k);
}

FIXTURE_TEARDOWN(elsewhere)
{
	ksm_finish(&self->k);
}

static long fn_prefer(long node, long unused, long unused2, long unused3)
{
	unsigned long mask = 1UL << node;

	(void)unused;
	(void)unused2;
	(void)unused3;
	return syscall(SYS_set_mempolicy, MPOL_BIND, &mask, 8 * sizeof(mask)) ? -errno : 0;
}

static long fn_merge_range(long area, long addr, long npages, long unused)
{
	(void)unused;
	return ksm_merge_range(area, (void *)addr, npages, NULL);
}

static void put_into(const struct ksm_child *c, const char *group, int node)
{
	ksm_write_file(KSM_CGROUPS "/cgroup.subtree_control", "+cpuset");
	ksm_cgroup_make(group);
	ksm_cgroup_write(group, "cpuset.mems", node);
	ksm_cgroup_write(group, "cgroup.procs", c->pid);
}

static bool wait_until_same(const struct ksm_child *c, const char *mem, size_t n)
{
	double end = ksm_now() + KSM_PATIENCE;

	do {
		if (ksm_same_frames(c[0].pid, mem, c[1].pid, mem, n) == n)
			return true;
		usleep(20000);
	} while (ksm_now() < end);
	return false;
}

/*
 * Two processes share memory of a node. The third, if one scans, is bound to the other node;
 * KSM_MERGE_RANGE is called by a sharer that is bound there itself, but for this memory.
 * Of kksmd, one of two nodes is not that of its CPU.
 */
TEST_F(elsewhere, stays_on_its_node)
{
	const size_t n = PAGES(16);
	struct ksm_child *c = self->c;
	long area[2];

	if (!has_nodes())
		SKIP(return, "the VM lacks two nodes: numa=fake=2");
	for (int node = 0; node < NODES; node++) {
		char *mem = map_on(node, n);
		int other = !node;

		for (int i = 0; i < 3; i++) {
			ksm_spawn(&c[i]);
			if (variant->way == CPUSET)
				put_into(&c[i], i == 2 ? "ksm-other" : i ? "ksm-b" : "ksm-a",
					 i == 2 ? other : node);
			else if (i == 2 || variant->way == MERGE_RANGE)
				ASSERT_EQ(0, ksm_call(&c[i], fn_prefer, other, 0, 0));
			if (i == 2)
				break;
			ksm_call(&c[i], ksm_fn_fill, mem, n, 1);
			ASSERT_EQ(n, pages_on(&c[i], mem, node));
			area[i] = ksm_call(&c[i], ksm_fn_area_register, self->k.dev, mem, n);
			ASSERT_LE(0, area[i]);
		}
		switch (variant->way) {
		case KKSMD:
			ASSERT_EQ(0, ksm_start(self->k.dev, 50000, 0, 0));
			break;
		case SCAN:
		case CPUSET:
			ASSERT_EQ(0, ksm_call(&c[2], ksm_fn_scan, self->k.scan, 8 * n, 0));
			break;
		case MERGE_RANGE:
			for (int i = 0; i < 2; i++)
				ASSERT_EQ(0, ksm_call(&c[i], fn_merge_range, area[i], mem, n));
			break;
		}
		EXPECT_TRUE(wait_until_same(c, mem, n));
		ASSERT_EQ(0, ksm_stop(self->k.dev));
		for (int i = 0; i < 2; i++)
			EXPECT_EQ(n, pages_on(&c[i], mem, node));
		for (int i = 0; i < 3; i++)
			ksm_end(&c[i]);
		if (variant->way == CPUSET) {
			ksm_cgroup_remove("ksm-a");
			ksm_cgroup_remove("ksm-b");
			ksm_cgroup_remove("ksm-other");
		}
	}
}

TEST_HARNESS_MAIN
