// SPDX-License-Identifier: GPL-2.0-only
/*
 * window_test.c - what is kept of a process's pages is in proportion to them
 *
 * Of a page table the driver keeps what it knows of a window only, which grows to where pages
 * are. So memory of which little is there costs little, wherever that lies; and as a window
 * grows, nothing that was known of its pages is lost: neither that they are merged, nor that they
 * are candidates, nor a byte of them.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_cgroup.h"
#include "ksm_harness.h"
#include "ksm_scanner.h"

#define GROUP	"ksm-window"

/* Of Linux 6.1; the C library may be older. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* Address space for so many page tables, with nothing in it. */
static char *reserve(size_t tables)
{
	size_t size = (tables + 1) * KSM_HUGE_SIZE;
	char *mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (mem == MAP_FAILED || madvise(mem, size, MADV_NOHUGEPAGE))
		ksm_die("no address space: %s", strerror(errno));
	return mem + -(uintptr_t)mem % KSM_HUGE_SIZE;
}

/* ---- one page in each page table ---- */

#define TABLES		4096
#define EXTRA		2048

FIXTURE(tenant)
{
	struct ksm k;
	struct ksm_child c;
	int area;
	char *mem;	/* as all memory here, the child's */
	char *extra;
	size_t nr_extra;
};

FIXTURE_SETUP(tenant)
{
	ksm_begin(&self->k);
	ASSERT_TRUE(ksm_wait_stat("kernel_pages", 0));
	ksm_cgroup_make(GROUP);
	self->area = ksm_area(&self->k);
	self->mem = reserve(TABLES);
	self->extra = ksm_mmap(2 * EXTRA);
	self->nr_extra = 0;
	ksm_spawn(&self->c);
	ksm_cgroup_write(GROUP, "cgroup.procs", self->c.pid);
}

FIXTURE_TEARDOWN(tenant)
{
	ksm_end(&self->c);
	close(self->area);
	ksm_finish(&self->k);
	ksm_cgroup_remove(GROUP);
}

/* The only page in a page table: somewhere. */
static char *only_page(char *mem, size_t table)
{
	return mem + table * KSM_HUGE_SIZE + table * 37 % KSM_HUGE_PAGES * PGSZ;
}

/* In groups of @alike equal ones. */
static long fn_fill_each(long mem, long alike, long seed, long unused)
{
	(void)unused;
	for (size_t i = 0; i < TABLES; i++)
		ksm_fill_page(only_page((char *)mem, i), seed, i / alike);
	return 0;
}

static long fn_wrong_each(long mem, long alike, long seed, long unused)
{
	long wrong = 0;

	(void)unused;
	for (size_t i = 0; i < TABLES; i++)
		wrong += !ksm_page_is(only_page((char *)mem, i), seed, i / alike);
	return wrong;
}

static size_t merged_pairs(pid_t pid, char *mem)
{
	size_t n = 0;

	for (size_t i = 0; i < TABLES; i += 2)
		n += ksm_same_frames(pid, only_page(mem, i), pid, only_page(mem, i + 1), 1);
	return n;
}

/*
 * What the kernel has charged to the group for itself, but for page tables. The file is brought
 * up to date now and then: it is when it tells of pages that were touched just before.
 */
static long charged(struct ksm_child *c, char *extra, size_t *nr_extra)
{
	double end = ksm_now() + KSM_PATIENCE;

	ksm_call(c, ksm_fn_fill, extra + *nr_extra * PGSZ, EXTRA, 1);
	*nr_extra += EXTRA;
	while (ksm_cgroup_read(GROUP, "memory.stat", "anon") <
	       (long)((TABLES + *nr_extra) * PGSZ)) {
		if (ksm_now() > end)
			ksm_die("memory.stat does not tell of what was touched");
		usleep(100000);
	}
	return ksm_cgroup_read(GROUP, "memory.stat", "kernel") -
	       ksm_cgroup_read(GROUP, "memory.stat", "pagetables");
}

TEST_F(tenant, one_page_in_each_table)
{
	/* Where each lock and each allocation is watched they are larger. */
	const long most = access("/proc/lockdep", F_OK) ? 256 : 2048;
	const pid_t pid = self->c.pid;
	long before, after, metadata, empty = ksm_fdinfo(self->area, "metadata_bytes");

	ksm_call(&self->c, fn_fill_each, self->mem, 1, 1);
	before = charged(&self->c, self->extra, &self->nr_extra);
	ASSERT_EQ(0, ksm_call(&self->c, ksm_fn_register, self->area, self->mem,
			      TABLES * KSM_HUGE_PAGES));
	ksm_passes(&self->k, 3);
	EXPECT_STATS(0, 0, TABLES, 0, 0);
	after = charged(&self->c, self->extra, &self->nr_extra);
	metadata = ksm_fdinfo(self->area, "metadata_bytes");
	TH_LOG("of %d pages: %ld bytes each, %ld charged", TABLES, metadata / TABLES,
	       (after - before) / TABLES);
	EXPECT_GE(most * TABLES, metadata);
	EXPECT_GE(most * TABLES, after - before);
	/* Or that was no measure. */
	EXPECT_LE(64 * TABLES, after - before);

	/* And they are pages as all others are. */
	ksm_call(&self->c, fn_fill_each, self->mem, 2, 2);
	ksm_merge_all(&self->k);
	EXPECT_EQ(TABLES / 2, merged_pairs(pid, self->mem));
	EXPECT_STATS(TABLES / 2, TABLES / 2, 0, 0, 0);
	EXPECT_EQ(0, ksm_call(&self->c, fn_wrong_each, self->mem, 2, 2));
	EXPECT_EQ(metadata, ksm_fdinfo(self->area, "metadata_bytes"));
	ASSERT_EQ(0, ksm_unmerge(self->area));
	EXPECT_EQ(0, merged_pairs(pid, self->mem));
	EXPECT_EQ(0, ksm_call(&self->c, fn_wrong_each, self->mem, 2, 2));
	ASSERT_EQ(0, ksm_remove(self->area));
	/* What was removed is freed a while later, where there is much of it. */
	for (double end = ksm_now() + KSM_PATIENCE;
	     ksm_fdinfo(self->area, "metadata_bytes") > empty && ksm_now() < end;)
		usleep(20000);
	EXPECT_EQ(empty, ksm_fdinfo(self->area, "metadata_bytes"));
}

/* No room for larger windows in the group's limit: what is in them is scanned, and the rest later. */
TEST_F(tenant, no_memory_to_grow)
{
	enum { CHUNKS = 16, HALF = CHUNKS / 2 * KSM_HUGE_PAGES };
	char *mem = self->mem, *half = mem + HALF * PGSZ, path[64];
	const pid_t pid = self->c.pid;
	struct ksm_child bystander;
	long metadata;

	for (size_t i = 0; i < CHUNKS; i++)
		ksm_call(&self->c, ksm_fn_fill, only_page(mem, i), 1, i);
	ASSERT_EQ(0, ksm_call(&self->c, ksm_fn_register, self->area, mem, 2 * HALF));
	ksm_passes(&self->k, 3);
	metadata = ksm_fdinfo(self->area, "metadata_bytes");
	ksm_call(&self->c, ksm_fn_fill, mem, HALF, 1);
	ksm_call(&self->c, ksm_fn_fill, half, HALF, 1);
	snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", pid);
	ASSERT_EQ(0, ksm_write_file(path, "-1000"));
	/* More than each CPU keeps charged in advance, 64 pages. */
	ksm_cgroup_write(GROUP, "memory.max",
			 ksm_cgroup_read(GROUP, "memory.current", NULL) - 256 * PGSZ);
	/* To lower it may kill, but to scan may not. */
	ksm_cgroup_bystander(&bystander, GROUP);
	ksm_merge_all(&self->k);
	EXPECT_EQ(metadata, ksm_fdinfo(self->area, "metadata_bytes"));
	EXPECT_LE(CHUNKS, ksm_stat("pages_unshared"));
	EXPECT_GE(CHUNKS * 8, ksm_stat("pages_unshared"));
	EXPECT_EQ(0, ksm_cgroup_read(GROUP, "memory.events", "oom_kill"));
	/* To answer takes memory. */
	ksm_cgroup_write(GROUP, "memory.max", -1);
	EXPECT_EQ(0, ksm_end(&bystander));
	EXPECT_EQ(0, ksm_call(&self->c, ksm_fn_wrong, mem, HALF, 1));
	EXPECT_EQ(0, ksm_call(&self->c, ksm_fn_wrong, half, HALF, 1));

	ksm_merge_all(&self->k);
	EXPECT_EQ(HALF, ksm_same_frames(pid, mem, pid, half, HALF));
	EXPECT_LT(metadata + CHUNKS * 8 * KSM_HUGE_PAGES,
		  ksm_fdinfo(self->area, "metadata_bytes"));
	EXPECT_EQ(0, ksm_call(&self->c, ksm_fn_wrong, mem, HALF, 1));
	EXPECT_EQ(0, ksm_call(&self->c, ksm_fn_wrong, half, HALF, 1));
}

/* ---- more and more pages ---- */

/* In which order the pages of a page table come. */
enum order { UP, DOWN, AROUND, ENDS, ORDERS };

/* The page that comes after @n others. */
static size_t page_in(enum order by, size_t n)
{
	size_t far = n % 2 ? n / 2 : KSM_HUGE_PAGES - 1 - n / 2;

	switch (by) {
	case UP:
		return n;
	case DOWN:
		return KSM_HUGE_PAGES - 1 - n;
	case AROUND:
		/* From the page before a third on, downwards and upwards. */
		return (KSM_HUGE_PAGES / 3 + KSM_HUGE_PAGES + far) % KSM_HUGE_PAGES;
	default:
		return far;
	}
}

static char *nth_page(char *mem, enum order by, size_t n)
{
	return mem + (by * KSM_HUGE_PAGES + page_in(by, n)) * PGSZ;
}

/* Pages @from to @to of each page table. */
static void fill_more(char *mem, size_t from, size_t to)
{
	for (int order = 0; order < ORDERS; order++)
		for (size_t n = from; n < to; n++)
			ksm_fill_page(nth_page(mem, order, n), order, n);
}

static size_t wrong_so_far(char *mem, size_t to)
{
	size_t wrong = 0;

	for (int order = 0; order < ORDERS; order++)
		for (size_t n = 0; n < to; n++)
			wrong += !ksm_page_is(nth_page(mem, order, n), order, n);
	return wrong;
}

static size_t same_so_far(char *a, char *b, size_t to)
{
	size_t same = 0;

	for (int order = 0; order < ORDERS; order++)
		for (size_t n = 0; n < to; n++)
			same += ksm_same_frames(0, nth_page(a, order, n), 0,
						nth_page(b, order, n), 1);
	return same;
}

/*
 * What equals a page comes when the window of that has grown since: candidates are found and
 * shared pages known, wherever they lie by then.
 */
TEST_F(device, nothing_known_is_lost)
{
	const size_t npages = ORDERS * KSM_HUGE_PAGES;
	char *a = reserve(ORDERS), *b = reserve(ORDERS);
	size_t late = 0;
	uint64_t merged;

	ASSERT_EQ(0, ksm_register(self->area, a, npages));
	ASSERT_EQ(0, ksm_register(self->area, b, npages));
	for (size_t n = 1; n <= KSM_HUGE_PAGES; n *= 2) {
		const size_t seen = n / 2;

		fill_more(a, seen, n);
		ksm_passes(&self->k, 3);
		EXPECT_STATS(ORDERS * late, ORDERS * late, ORDERS * (n - late), 0, 0);
		if (n == 1)
			EXPECT_GT(ORDERS * 1024, ksm_fdinfo(self->area, "metadata_bytes"));
		fill_more(b, late, seen);
		if (n % 3 == 1) {
			/* All at once. */
			ASSERT_EQ(0, ksm_merge_range(self->area, b, npages, &merged));
			EXPECT_EQ(ORDERS * (seen - late), merged);
		} else {
			ksm_merge_all(&self->k);
		}
		late = seen;
		EXPECT_EQ(ORDERS * late, same_so_far(a, b, late));
		EXPECT_STATS(ORDERS * late, ORDERS * late, ORDERS * (n - late), 0, 0);
		EXPECT_EQ(0, wrong_so_far(a, n));
		EXPECT_EQ(0, wrong_so_far(b, late));
	}
	ASSERT_EQ(0, ksm_unmerge(self->area));
	EXPECT_EQ(0, same_so_far(a, b, late));
	EXPECT_EQ(0, wrong_so_far(a, KSM_HUGE_PAGES));
	EXPECT_EQ(0, wrong_so_far(b, late));
}

#define SECONDS	8
#define FACES	3

/*
 * struct shadow - what the pages of some page tables hold: one of few contents, so that they meet
 * @mem: where they are
 * @touched: how many pages of each there are
 * @face: what each holds
 * @rng: random numbers
 */
struct shadow {
	char *mem;
	size_t touched[ORDERS];
	unsigned char face[ORDERS][KSM_HUGE_PAGES];
	uint64_t rng;
};

static size_t below(struct shadow *s, size_t n)
{
	s->rng = s->rng * 6364136223846793005ULL + 1442695040888963407ULL;
	return (s->rng >> 33) % n;
}

static void write_page(struct shadow *s, enum order by, size_t n)
{
	s->face[by][n] = below(s, FACES);
	ksm_fill_page(nth_page(s->mem, by, n), s->face[by][n], n);
}

static bool page_is_right(struct shadow *s, enum order by, size_t n)
{
	return ksm_page_is(nth_page(s->mem, by, n), s->face[by][n], n);
}

/* A page more, and several others are written anew. Return: how many of those were wrong. */
static size_t write_some(struct shadow *s)
{
	enum order by = below(s, ORDERS);
	size_t wrong = 0;

	if (s->touched[by] < KSM_HUGE_PAGES)
		write_page(s, by, s->touched[by]++);
	for (int i = 0; i < 4; i++) {
		size_t n = below(s, s->touched[by]);

		wrong += !page_is_right(s, by, n);
		write_page(s, by, n);
	}
	return wrong;
}

/* Equal pages are those of one number and one face. */
static size_t different(const struct shadow *s)
{
	size_t sum = 0;

	for (size_t n = 0; n < KSM_HUGE_PAGES; n++)
		for (int face = 0; face < FACES; face++) {
			bool is = false;

			for (int order = 0; order < ORDERS; order++)
				is |= s->face[order][n] == face;
			sum += is;
		}
	return sum;
}

TEST_F(device, while_all_scan)
{
	const size_t npages = ORDERS * KSM_HUGE_PAGES;
	struct ksm_scanner scanner;
	struct shadow s = { .mem = reserve(ORDERS), .rng = 1 };
	double end = ksm_now() + SECONDS;
	size_t wrong = 0, rounds = 0;
	long long merged = 0;

	ASSERT_EQ(0, ksm_set_pace(self->k.dev, 0, 2));
	ASSERT_EQ(0, ksm_start(self->k.dev, 1000, 0, 0));
	ksm_scanner_start(&scanner, self->k.dev, 512);
	do {
		bool all = false;

		/* From the beginning: no window is left. */
		ASSERT_EQ(0, ksm_remove(self->area));
		ASSERT_EQ(0, madvise(s.mem, npages * PGSZ, MADV_DONTNEED));
		memset(s.touched, 0, sizeof(s.touched));
		ASSERT_EQ(0, ksm_register(self->area, s.mem, npages));
		while (!all) {
			wrong += write_some(&s);
			all = true;
			for (int order = 0; order < ORDERS; order++)
				all &= s.touched[order] == KSM_HUGE_PAGES;
		}
		for (int order = 0; order < ORDERS; order++)
			for (size_t n = 0; n < KSM_HUGE_PAGES; n++)
				wrong += !page_is_right(&s, order, n);
		merged += npages - ksm_distinct(0, s.mem, npages);
		rounds++;
	} while (ksm_now() < end && !wrong);
	ksm_scanner_stop(&scanner);
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	TH_LOG("%zu rounds, %lld pages merged meanwhile, %zu wrong", rounds, merged, wrong);
	EXPECT_EQ(0, wrong);

	/* Once all is quiet what is equal is one page; written once more, so that all are asked. */
	for (int order = 0; order < ORDERS; order++)
		for (size_t n = 0; n < KSM_HUGE_PAGES; n++)
			ksm_fill_page(nth_page(s.mem, order, n), s.face[order][n], n);
	ksm_merge_held(&self->k);
	EXPECT_EQ(different(&s), ksm_distinct(0, s.mem, npages));
	for (int order = 0; order < ORDERS; order++)
		for (size_t n = 0; n < KSM_HUGE_PAGES; n++)
			wrong += !page_is_right(&s, order, n);
	EXPECT_EQ(0, wrong);
}

/* ---- huge pages ---- */

/* A page table with one page becomes a huge page. */
static bool make_huge(char *mem)
{
	double end = ksm_now() + KSM_PATIENCE;

	if (madvise(mem, KSM_HUGE_SIZE, MADV_HUGEPAGE))
		ksm_die("the kernel needs transparent huge pages");
	do {
		if (!madvise(mem, KSM_HUGE_SIZE, MADV_COLLAPSE))
			return ksm_pfn_is(ksm_pfn(0, mem), KPF_BIT_THP);
	} while (errno == EAGAIN && ksm_now() < end);
	return false;
}

TEST_F(device, becomes_huge)
{
	char *a = reserve(2), *b = a + KSM_HUGE_SIZE;
	const size_t page = KSM_HUGE_PAGES / 3;

	ksm_fill_page(ksm_page(a, page), 1, page);
	ksm_fill_page(ksm_page(b, page), 2, page);
	ASSERT_EQ(0, ksm_register(self->area, a, 2 * KSM_HUGE_PAGES));
	ksm_passes(&self->k, 2);
	EXPECT_GT(2 * 1024, ksm_fdinfo(self->area, "metadata_bytes"));
	ASSERT_TRUE(make_huge(a));
	ASSERT_TRUE(make_huge(b));
	ASSERT_TRUE(ksm_page_is(ksm_page(a, page), 1, page));
	ksm_fill(a, KSM_HUGE_PAGES, 1);
	ksm_fill(b, KSM_HUGE_PAGES, 1);
	ksm_merge_all(&self->k);
	EXPECT_EQ(KSM_HUGE_PAGES, ksm_same_frames(0, a, 0, b, KSM_HUGE_PAGES));
	EXPECT_EQ(0, ksm_wrong(a, KSM_HUGE_PAGES, 1));
	EXPECT_EQ(0, ksm_wrong(b, KSM_HUGE_PAGES, 1));
	ASSERT_EQ(0, ksm_unmerge(self->area));
	EXPECT_EQ(0, ksm_same_frames(0, a, 0, b, KSM_HUGE_PAGES));
	EXPECT_EQ(0, ksm_wrong(a, KSM_HUGE_PAGES, 1));
	EXPECT_EQ(0, ksm_wrong(b, KSM_HUGE_PAGES, 1));
}

TEST_HARNESS_MAIN
