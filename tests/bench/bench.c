// SPDX-License-Identifier: GPL-2.0-only
/*
 * bench.c - ksmd and /dev/ksm side by side: same kernel, same processes, same bytes
 *
 * For each workload, processes are made which fill their memory, have one of the
 * two scan it while that is measured, empty and fill it again with the same bytes,
 * and have the other one scan it; then the whole is repeated in the other order.
 *
 * Each value that was measured is printed as a line "sample", tab, workload, figure,
 * unit, who, value; tests/bench/report makes the table of them. Other lines tell how
 * it goes on. No figure is judged here.
 *
 * A pass is over when full_scans says so, or when KSM_SCAN has visited as many pages
 * as are registered. How much is shared is told by page tables while time is measured, see
 * saved.c, and by the scanner afterwards, which has it counted then.
 *
 * CPU time is that of the scanner's threads, or of the caller of KSM_SCAN, and of the kernel's
 * workers, all from the scheduler: /dev/ksm has shared pages counted by a work item. Nothing tells
 * whose work a worker did, so what they did for anybody else meanwhile is in the figures of both
 * sides.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "../ksm_util.h"
#include "guest.h"
#include "saved.h"
#include "scanner.h"

#define MIB		(1UL << 20)
#define HUGE_SIZE	(2 * MIB)
#define MIB_PAGES	(MIB / PGSZ)
#define MAX_WORKERS	4

/* What to measure of a workload. */
enum {
	CONVERGE	= 1 << 0,	/* from attaching to 99 % of what can be saved */
	TWO_PASSES	= 1 << 1,	/* the first two passes, where nothing can be saved */
	IDLE		= 1 << 2,	/* passes over memory that nobody writes */
	CHURN		= 1 << 3,	/* passes with a tenth of it rewritten before each */
	FIRST_WRITE	= 1 << 4,	/* how long a write to a merged page takes */
	LATENCY		= 1 << 5,	/* random writes of another process meanwhile */
	SPEED_UP	= 1 << 6,	/* two threads against one */
	TLB		= 1 << 7,	/* interrupts for flushes while merging */
	COST		= 1 << 8,	/* CPU a page instead of in all */
	SPARSE		= 1 << 9,	/* a few pages in a large range */
	SLOW		= 1 << 10,	/* takes ksmd long: left out under emulation */
	HELD		= 1 << 11,	/* somebody else holds references to all pages */
	SPLITS		= 1 << 12,	/* huge pages of which a part can be shared */
	GUEST		= 1 << 13,	/* a virtual machine maps the memory */
	NO_ROOM		= 1 << 14,	/* max_kernel_pages allows no shared page; not for ksmd */
};

/**
 * struct workload - what memory is filled with
 * @name: in the results
 * @workers: number of processes
 * @mib: memory of each
 * @page: write page @index of worker @rank
 * @saved: of 1000 pages that all workers have, how many can be saved
 * @what: what to measure
 * @huge: on huge pages
 * @zero: there are zero pages among them
 */
struct workload {
	const char *name;
	unsigned int workers;
	size_t mib;
	void (*page)(uint64_t *page, size_t rank, size_t index);
	unsigned int saved;
	unsigned int what;
	bool huge;
	bool zero;
};

/* Shared between all processes. */
static struct {
	atomic_bool stop;
	atomic_long left;	/* pages that callers of KSM_SCAN still have to visit */
	atomic_int ready;
} *common;

static const struct workload *load;
static size_t load_pages;	/* of one worker */
static char *base;		/* where they all have them */
static char *place;		/* that, with space around it */
static size_t place_size;
static struct ksm_child worker[MAX_WORKERS];
static double begin;
static const char *young_module;

/*
 * Contents
 */

static void unique_page(uint64_t *page, uint64_t seed, size_t index)
{
	uint64_t x = (seed + 1) * 0x9e3779b97f4a7c15 ^ (index + 1) * 0xd1342543de82ef95;
	size_t i;

	for (i = 0; i < PGSZ / sizeof(*page); i++) {
		x = x * 0x5851f42d4c957f2d + 0x14057b7ef767814f;
		page[i] = x;
	}
}

/* Whose pages nobody else has. */
#define PRIVATE(rank) (1000 + (rank))
#define COMMON 2008

/* A field map that all have, seven tenths of the memory, and data of one's own. */
static void fieldmap_page(uint64_t *page, size_t rank, size_t index)
{
	unique_page(page, index < load_pages / 10 * 7 ? COMMON : PRIVATE(rank), index);
}

/* The same in one process: four quarters that are like four processes. */
static void quarters_page(uint64_t *page, size_t rank, size_t index)
{
	size_t quarter = load_pages / 4;

	(void)rank;
	index %= quarter * 4;
	unique_page(page, index % quarter < quarter / 10 * 7 ? COMMON : PRIVATE(index / quarter),
		    index % quarter);
}

static void zero_page(uint64_t *page, size_t rank, size_t index)
{
	if (index % 10 < 6)
		memset(page, 0, PGSZ);
	else
		unique_page(page, PRIVATE(rank), index);
}

static void own_page(uint64_t *page, size_t rank, size_t index)
{
	unique_page(page, PRIVATE(rank), index);
}

/* Equal but for the last eight bytes. */
static void tail_page(uint64_t *page, size_t rank, size_t index)
{
	unique_page(page, COMMON, 0);
	page[PGSZ / sizeof(*page) - 1] = rank << 32 | index;
}

/* All the same. */
static void same_page(uint64_t *page, size_t rank, size_t index)
{
	(void)rank;
	(void)index;
	unique_page(page, COMMON, 0);
}

/* Of each huge page the first ones; the same in all workers. */
static void part_page(uint64_t *page, size_t rank, size_t index, size_t part)
{
	unique_page(page, index % KSM_HUGE_PAGES < part ? COMMON : PRIVATE(rank), index);
}

#define SPARSE_PAGES 64

#define FIELDMAP(name, mib, what) \
	{ name, 4, mib, fieldmap_page, 3 * 700, what, false, false }
#define GROWTH(name, mib, what) FIELDMAP("growth " name, (mib) / 4, CONVERGE | COST | (what))
#define ALIKE(name, mib, what) \
	{ "alike, " name, 1, mib, same_page, 0, TWO_PASSES | IDLE | COST | (what), false, false }

static const struct workload workloads[] = {
	FIELDMAP("fieldmap", 128, CONVERGE | IDLE | CHURN | FIRST_WRITE | LATENCY | SPEED_UP),
	{ "fieldmap in one process", 1, 32, quarters_page, 3 * 700 / 4, CONVERGE | TLB,
	  false, false },
	{ "zero", 4, 128, zero_page, 4 * 600, CONVERGE | IDLE | FIRST_WRITE, false, true },
	{ "unique", 4, 128, own_page, 0, TWO_PASSES | IDLE, false, false },
	{ "tail", 4, 128, tail_page, 0, TWO_PASSES | IDLE, false, false },
	{ "thp", 4, 128, fieldmap_page, 3 * 700, CONVERGE | IDLE, true, false },
	GROWTH("64 MiB", 64, 0),
	GROWTH("512 MiB", 512, 0),
	GROWTH("2 GiB", 2048, SLOW),
	GROWTH("8 GiB", 8192, SLOW),
	ALIKE("held 8 MiB", 8, HELD),
	ALIKE("held 128 MiB", 128, HELD),
	ALIKE("no room 8 MiB", 8, NO_ROOM),
	ALIKE("no room 128 MiB", 128, NO_ROOM),
	{ "thp split", 2, 64, NULL, 0, SPLITS, true, false },
	{ "kvm", 1, 64, own_page, 0, GUEST, false, false },
	{ "sparse, 4 GiB", 1, 4UL << 10, same_page, 0, SPARSE, false, false },
	{ "sparse, 32 TiB", 1, 32UL << 20, same_page, 0, SPARSE, false, false },
};

/*
 * Output
 */

static void __attribute__((format(printf, 1, 2))) say(const char *format, ...)
{
	va_list args;

	printf("%6.1f s  ", now() - begin);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
}

static void sample(const char *workload, const char *figure, const char *unit,
		   const struct scanner *scanner, double value)
{
	if (value == UNKNOWN)
		return;
	printf("sample\t%s\t%s\t%s\t%s\t%.9g\n", workload, figure, unit, scanner->name, value);
}

/*
 * In the workers
 */

/* Memory that nobody touched, nor its page tables. */
static long renew(long unused, long unused2, long unused3, long unused4)
{
	size_t size = load_pages * PGSZ;

	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	if (mmap(base, size, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		ksm_die("mmap of %zu MiB: %m", size / MIB);
	/* A kernel without huge pages knows neither. */
	if (madvise(base, size, load->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) && load->huge)
		ksm_die("MADV_HUGEPAGE: %m");
	return 0;
}

static long fill(long rank, long unused, long unused2, long unused3)
{
	size_t step = load->what & SPARSE ? load_pages / SPARSE_PAGES : 1, i;

	(void)unused;
	(void)unused2;
	(void)unused3;
	pin_to_cpu(0, ANY_CPU);
	/* All at once: page faults are slow, on User-Mode Linux above all. */
	if (step == 1 && madvise(base, load_pages * PGSZ, MADV_POPULATE_WRITE))
		ksm_die("MADV_POPULATE_WRITE: %m");
	for (i = 0; i < load_pages; i += step)
		load->page((uint64_t *)ksm_page(base, i), rank, i);
	return 0;
}

/* Contents that no page had before, in a tenth of the pages: each @round in another. */
static long rewrite(long rank, long round, long unused, long unused2)
{
	size_t i;

	(void)unused;
	(void)unused2;
	for (i = round % 10; i < load_pages; i += 10)
		unique_page((uint64_t *)ksm_page(base, i), 10000 + 100 * round + rank, i);
	return 0;
}

/*
 * Keep a reference to each page in pipes, as a device would that was told to read from
 * them: none of them can be merged.
 */
enum { PIPE_PAGES = 1024, MAX_PIPES = 32 };
static int pipes[MAX_PIPES][2];
static unsigned int nr_pipes;

static long hold(long unused, long unused2, long unused3, long unused4)
{
	size_t i, length = PIPE_PAGES * PGSZ;

	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	for (i = 0; i < load_pages; i += PIPE_PAGES) {
		struct iovec iov = { ksm_page(base, i), length };

		if (nr_pipes == MAX_PIPES || pipe2(pipes[nr_pipes], O_CLOEXEC) ||
		    fcntl(pipes[nr_pipes][1], F_SETPIPE_SZ, length) < 0 ||
		    vmsplice(pipes[nr_pipes][1], &iov, 1, 0) != (ssize_t)length)
			ksm_die("cannot put %zu pages into a pipe: %m", length / PGSZ);
		nr_pipes++;
	}
	return 0;
}

static long let_go(long unused, long unused2, long unused3, long unused4)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	for (; nr_pipes; nr_pipes--) {
		close(pipes[nr_pipes - 1][0]);
		close(pipes[nr_pipes - 1][1]);
	}
	return 0;
}

static long fill_part(long rank, long part, long unused, long unused2)
{
	size_t i;

	(void)unused;
	(void)unused2;
	for (i = 0; i < load_pages; i++)
		part_page((uint64_t *)ksm_page(base, i), rank, i, part);
	return 0;
}

/* In pages. */
static long pss(long unused, long unused2, long unused3, long unused4)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	return ksm_smaps(base, "Pss");
}

static long huge(long unused, long unused2, long unused3, long unused4)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	return ksm_smaps(base, "AnonHugePages");
}

static inline uint64_t ticks(void)
{
	return __builtin_ia32_rdtsc();
}

/* Nanoseconds a tick. */
static double tick_length(void)
{
	double start = now();
	uint64_t from = ticks();

	while (now() - start < 0.05)
		;
	return (now() - start) * 1e9 / (ticks() - from);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/*
 * The median time of a first write, in ns, over pages that are spread over @npages: each
 * the first of ten, which is merged in all workloads that have such pages.
 */
static long first_write(long npages, long unused, long unused2, long unused3)
{
	enum { COUNT = 1000 };
	static uint64_t took[COUNT];
	size_t i;

	(void)unused;
	(void)unused2;
	(void)unused3;
	for (i = 0; i < COUNT; i++) {
		volatile uint64_t *p = (uint64_t *)ksm_page(base, npages * i / COUNT / 10 * 10);
		uint64_t from = ticks();

		*p = *p + 1;
		took[i] = ticks() - from;
	}
	qsort(took, COUNT, sizeof(*took), compare);
	return took[COUNT / 2] * tick_length();
}

/* Let the other CPU have this process's page tables all the time. */
static void *spin(void *unused)
{
	volatile char *p = base;
	size_t i = 0;

	(void)unused;
	pin_to_cpu(0, 1);
	atomic_fetch_add(&common->ready, 1);
	while (!atomic_load(&common->stop)) {
		(void)p[i % load_pages * PGSZ];
		i += 97;
	}
	return NULL;
}

static long spin_start(long unused, long unused2, long unused3, long unused4)
{
	pthread_t thread;

	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	errno = pthread_create(&thread, NULL, spin, NULL);
	if (errno)
		ksm_die("pthread_create: %m");
	pthread_detach(thread);
	return 0;
}

/*
 * A loop of random writes for so many milliseconds: the 99th percentile of how long
 * 64 of them take, in ns.
 */
static long random_writes(long ms, long unused, long unused2, long unused3)
{
	enum { WRITES = 64, MOST = 1 << 21 };
	static uint64_t took[MOST];
	double end = now() + ms / 1000.0;
	uint64_t x = 88172645463325252;
	size_t n = 0, i;

	(void)unused;
	(void)unused2;
	(void)unused3;
	pin_to_cpu(0, 1);
	while (n < MOST) {
		uint64_t from = ticks();

		for (i = 0; i < WRITES; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			/* What was there: pages stay different from each other. */
			((volatile uint64_t *)ksm_page(base, x % load_pages))[x >> 55] = x;
		}
		took[n++] = ticks() - from;
		if (n % 64 == 0 && now() >= end)
			break;
	}
	pin_to_cpu(0, ANY_CPU);
	qsort(took, n, sizeof(*took), compare);
	return took[n * 99 / 100] * tick_length();
}

/* Call KSM_SCAN on a CPU of its own until all is visited. */
static long scan_share(long caller, long unused, long unused2, long unused3)
{
	enum { BITE = 4096 };
	struct ksm_user_scan scan = { .pages_to_scan = BITE };

	(void)unused;
	(void)unused2;
	(void)unused3;
	pin_to_cpu(0, caller);
	while (atomic_fetch_sub(&common->left, BITE) > 0)
		if (ioctl(scan_fd[caller], KSM_SCAN, &scan))
			ksm_die("KSM_SCAN: %m");
	pin_to_cpu(0, ANY_CPU);
	return 0;
}

/*
 * The workers, from outside
 */

/* Have all workers run fn(rank, a) at the same time; the sum of what it returns. */
static long tell_all(ksm_fn fn, long a)
{
	unsigned int i;
	long sum = 0;

	for (i = 0; i < load->workers; i++)
		ksm_call_start(&worker[i], fn, i, a, 0, 0);
	for (i = 0; i < load->workers; i++)
		sum += ksm_call_finish(&worker[i]);
	return sum;
}

static void attach_all(const struct scanner *scanner)
{
	unsigned int i;

	scanner->prepare(load->zero);
	for (i = 0; i < load->workers; i++)
		ksm_call(&worker[i], scanner->attach, base, load_pages, 0);
}

static void detach_all(const struct scanner *scanner)
{
	unsigned int i;

	tell_all(let_go, 0);
	tell_all(renew, 0);
	for (i = 0; i < load->workers; i++)
		ksm_call(&worker[i], scanner->detach, 0, 0, 0);
	scanner->finish();
}

/* A place for the workers' memory, the same in all; nothing else is next to it. */
static bool map_memory(void)
{
	size_t size = load_pages * PGSZ + 2 * HUGE_SIZE;
	char *p = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return false;
	base = (char *)(((uintptr_t)p + HUGE_SIZE) & ~(HUGE_SIZE - 1));
	if (base == p)
		base += HUGE_SIZE;
	place = p;
	place_size = size;
	return true;
}

/*
 * Measuring
 */

/* A point of the curve of what was saved, as a part of what can be. */
struct point {
	double wall;
	double cpu;
	double saved;
};

static unsigned long all_pages(void)
{
	return load->workers * load_pages;
}

static double possible(void)
{
	return (double)load_pages * load->saved / 1000;
}

static void wait_ms(double ms)
{
	usleep(ms * 1000);
}

/* Where between two points the curve crossed @goal. */
static struct point crossing(struct point a, struct point b, double goal)
{
	double f = b.saved > a.saved ? (goal - a.saved) / (b.saved - a.saved) : 1;

	return (struct point) {
		.wall = a.wall + f * (b.wall - a.wall),
		.cpu = a.cpu + f * (b.cpu - a.cpu),
		.saved = goal,
	};
}

/* @looking: CPU time that looks took so far, where that of the scanner cannot be told from it. */
static struct point look(const struct scanner *scanner, struct point start, double *looking)
{
	double cpu = scanner_cpu(scanner);
	struct point p = { .cpu = cpu - start.cpu - *looking, .wall = now() - start.wall };

	/* Of a moment later: that takes time. */
	p.saved = saved_part();
	if (clock_is_coarse)
		*looking += scanner_cpu(scanner) - cpu;
	return p;
}

/* Let /dev/ksm visit so many pages; the wall and CPU time of that. */
static struct point scan(unsigned long pages)
{
	struct ksm_user_scan scan;
	struct point p = { };

	p.cpu = own_cpu();
	p.wall = now();
	while (pages) {
		scan.pages_to_scan = pages < 1U << 30 ? pages : 1U << 30;
		scan.max_pages_to_merge = 0;
		pages -= scan.pages_to_scan;
		if (ioctl(scan_fd[0], KSM_SCAN, &scan))
			ksm_die("KSM_SCAN: %m");
	}
	p.wall = now() - p.wall;
	p.cpu = own_cpu() - p.cpu;
	return p;
}

#define MOST_PASSES 20
/* Of a pass. */
#define BITES 32

/*
 * With one CPU, to watch the thread would cost more of its time than what it does:
 * so it is not the thread that scans but we, bit by bit, and look in between.
 */
static bool converge_in_bites(double goal, struct point *at)
{
	unsigned long bite = all_pages() / BITES;
	struct point last = { }, next, took;
	unsigned int i;

	for (i = 0; i < MOST_PASSES * BITES; i++) {
		took = scan(bite);
		next.wall = last.wall + took.wall;
		next.cpu = last.cpu + took.cpu;
		next.saved = saved_part();
		if (next.saved >= goal) {
			*at = crossing(last, next, goal);
			return true;
		}
		last = next;
	}
	*at = last;
	return false;
}

/* Start the scanner and wait for @goal. It runs when this returns, if it is a thread. */
static bool converge(const struct scanner *scanner, double goal, struct point *at)
{
	struct point start = { }, last = { }, next = { };
	double passes, workers, looking = 0;

	if (scanner == &ksmdev && clock_is_coarse) {
		bool done = converge_in_bites(goal, at);

		scanner->start();
		return done;
	}
	passes = scanner->full_scans();
	workers = workers_cpu();
	start.cpu = scanner_cpu(scanner);
	start.wall = now();
	scanner->start();
	for (;;) {
		/* Often enough for the curve, seldom enough not to cost anything. */
		wait_ms(5 + 1000 * next.wall / 40);
		next = look(scanner, start, &looking);
		if (next.saved >= goal || scanner->full_scans() > passes + MOST_PASSES)
			break;
		last = next;
	}
	*at = next.saved >= goal ? crossing(last, next, goal) : next;
	workers = workers_cpu() - workers;
	at->cpu += workers;
	if (!clock_is_coarse)
		say("%s, %s: the kernel's workers took %.4f s of CPU meanwhile", load->name,
		    scanner->name, workers);
	return next.saved >= goal;
}

/* Wait for the end of a pass. */
static double next_pass(const struct scanner *scanner, double passes)
{
	double n;

	do {
		wait_ms(clock_is_coarse ? 5 : 2);
		n = scanner->full_scans();
	} while (n <= passes);
	return n;
}

/* The scanner runs; let it finish @n passes. */
static void let_pass(const struct scanner *scanner, unsigned int n)
{
	double from = scanner->full_scans(), passes = from;

	while (passes < from + n)
		passes = next_pass(scanner, passes);
}

/* CPU of a pass over memory that nobody writes; the scanner runs. */
static double idle(const struct scanner *scanner)
{
	double from = next_pass(scanner, scanner->full_scans()), passes = from;
	double start = now(), cpu = scanner_cpu(scanner), workers = workers_cpu();

	do {
		passes = next_pass(scanner, passes);
	} while (now() - start < 1 || passes < from + 3);
	cpu = scanner_cpu(scanner) - cpu;
	return (cpu + workers_cpu() - workers) / (passes - from);
}

/* So many whole passes from a standing start; it stands again afterwards. */
static struct point some_passes(const struct scanner *scanner, unsigned int n)
{
	double from, passes, workers = workers_cpu();
	struct point p = { };

	if (scanner == &ksmdev) {
		p = scan(n * all_pages());
		p.cpu += workers_cpu() - workers;
		return p;
	}
	from = passes = scanner->full_scans();
	p.wall = now();
	p.cpu = scanner_cpu(scanner);
	scanner->start();
	while (passes < from + n)
		passes = next_pass(scanner, passes);
	p.cpu = scanner_cpu(scanner) - p.cpu;
	p.wall = now() - p.wall;
	p.cpu += workers_cpu() - workers;
	scanner->stop();
	return p;
}

#define CHURN_PASSES 4

static void churn(const struct scanner *scanner)
{
	unsigned int round;
	double cpu = 0;

	for (round = 0; round < CHURN_PASSES; round++) {
		tell_all(rewrite, round);
		cpu += some_passes(scanner, 1).cpu;
	}
	sample("churn", "churn pass, CPU", "ns/page", scanner,
	       cpu / CHURN_PASSES / all_pages() * 1e9);
}

/* The sum of the line of flushes, over all CPUs. */
static double tlb_interrupts(void)
{
	FILE *f = fopen("/proc/interrupts", "re");
	double sum = UNKNOWN;
	char line[4096], *p;

	while (f && fgets(line, sizeof(line), f)) {
		p = strstr(line, "TLB:");
		if (!p)
			continue;
		sum = 0;
		for (p += 4;;) {
			char *end;
			unsigned long n = strtoul(p, &end, 10);

			if (end == p)
				break;
			sum += n;
			p = end;
		}
	}
	if (f)
		fclose(f);
	return sum;
}

/* Wait until what was freed with RCU's help is free. */
static double free_pages(void)
{
	long before, after = ksm_memfree();
	int i;

	for (i = 0; i < 20; i++) {
		before = after;
		usleep(50000);
		after = ksm_memfree();
		if (labs(after - before) < 32)
			break;
	}
	return after;
}

/* By how much each counter has grown. */
static void say_counters(const struct scanner *scanner, const double before[MAX_COUNTERS])
{
	double after[MAX_COUNTERS];
	char line[512] = "";
	size_t length = 0;
	unsigned int i;

	read_counters(scanner, after);
	for (i = 0; i < MAX_COUNTERS; i++)
		if (after[i] != UNKNOWN && length < sizeof(line))
			length += snprintf(line + length, sizeof(line) - length, " %s %+.0f",
					   scanner->counters[i], after[i] - before[i]);
	say("%s, %s:%s", load->name, scanner->name, line);
}

/* One side: fill the memory, and have it scanned. */
static void measure(const struct scanner *scanner)
{
	double pss_before, pss_after, free_before, cost;
	double splits = ksmdev_stat("thp_splits");
	double counters[MAX_COUNTERS], flushes = UNKNOWN;
	const char *name = load->name;
	struct point p = { };
	bool done = true;

	tell_all(fill, 0);
	if (load->what & HELD)
		tell_all(hold, 0);
	if (load->huge)
		say("thp: %.1f %% of the memory is on huge pages",
		    100.0 * tell_all(huge, 0) / all_pages());
	pss_before = tell_all(pss, 0);
	free_before = free_pages();
	if (load->what & TLB) {
		atomic_store(&common->stop, false);
		atomic_store(&common->ready, 0);
		tell_all(spin_start, 0);
		while (!atomic_load(&common->ready))
			usleep(1000);
	}
	attach_all(scanner);
	ksmdev_reset_hold();
	read_counters(scanner, counters);
	flushes = tlb_interrupts();

	if (load->what & CONVERGE) {
		saved_open(worker, load->workers, base, load_pages, load->page);
		done = converge(scanner, 0.99, &p);
		saved_close();
	} else {
		p = some_passes(scanner, 2);
		scanner->start();
	}
	if (load->what & TLB)
		flushes = tlb_interrupts() - flushes;
	if (!done)
		say("%s, %s: only %.1f %% of what is possible after %d passes", name,
		    scanner->name, 100 * p.saved, MOST_PASSES);
	/* What is left to merge, and then what the scanner calls old. */
	let_pass(scanner, 3);
	if (load->what & IDLE) {
		cost = idle(scanner) / all_pages() * 1e9;
		sample(name, "idle pass, CPU", "ns/page", scanner, cost);
		say("%s, %s: idle pass %.1f ns a page", name, scanner->name, cost);
	}
	scanner->stop();
	say_counters(scanner, counters);

	pss_after = tell_all(pss, 0);
	if (load->what & CONVERGE) {
		if (done && load->what & COST) {
			sample(name, "CPU to 99 %", "us/page", scanner,
			       p.cpu / all_pages() * 1e6);
		} else if (done && !(load->what & TLB)) {
			sample(name, "CPU to 99 %", "s", scanner, p.cpu);
			sample(name, "wall to 99 %", "s", scanner, p.wall);
		}
		say("%s, %s: 99 %% after %.3f s CPU, %.3f s", name, scanner->name, p.cpu, p.wall);
		sample(name, "memory saved (Pss)", "MiB", scanner,
		       (pss_before - pss_after) / MIB_PAGES);
		sample(name, "memory freed, net", "MiB", scanner,
		       (free_pages() - free_before) / MIB_PAGES);
	} else {
		if (load->what & COST)
			sample(name, "first two passes, CPU", "us/page", scanner,
			       p.cpu / all_pages() * 1e6);
		else
			sample(name, "first two passes, CPU", "s", scanner, p.cpu);
		say("%s, %s: first two passes %.3f s CPU", name, scanner->name, p.cpu);
	}
	if (load->what & TLB && flushes >= 0 && done)
		sample(name, "TLB flush interrupts", "/merged page", scanner,
		       flushes / (p.saved * possible()));
	if (!(load->what & TLB))
		sample(name, "metadata", "bytes/page", scanner,
		       scanner->metadata() / all_pages());
	if (scanner == &ksmdev) {
		if (!clock_is_coarse)
			sample(name, "longest lock hold", "us", scanner,
			       ksmdev_stat("longest_hold_us"));
		if (splits != UNKNOWN && load->huge)
			sample(name, "huge pages split", "pages", scanner,
			       ksmdev_stat("thp_splits") - splits);
	}
	if (load->what & FIRST_WRITE) {
		long ns = ksm_call(&worker[0], first_write, load_pages / 10 * 6, 0, 0);

		sample(name, "first write to a merged page", "us", scanner, ns / 1000.0);
	}
	if (load->what & CHURN)
		churn(scanner);
	atomic_store(&common->stop, true);
	detach_all(scanner);
}

/*
 * A process next to the others, whose memory is scanned too: how long do its writes
 * take? Once with nobody scanning, then with each of the two.
 */
static void latency(const struct scanner *scanner)
{
	struct ksm_child *other = &worker[0];
	long alone, with;

	tell_all(fill, 0);
	attach_all(scanner);
	alone = ksm_call(other, random_writes, 2000, 0, 0);
	scanner->start();
	ksm_call_start(other, random_writes, 4000, 0, 0, 0);
	with = ksm_call_finish(other);
	scanner->stop();
	detach_all(scanner);
	say("%s, %s: 64 random writes, 99 %%: alone %.2f us, while scanning %.2f us",
	    load->name, scanner->name, alone / 1000.0, with / 1000.0);
	sample(load->name, "p99 of 64 random writes, alone", "us", scanner, alone / 1000.0);
	sample(load->name, "p99 of 64 random writes, scanned", "us", scanner, with / 1000.0);
	sample(load->name, "p99, scanned against alone", "times", scanner, (double)with / alone);
}

#define SPEED_UP_PASSES 3

/* The same work, done by callers of KSM_SCAN on so many CPUs; how long it takes. */
static double share_work(unsigned int callers)
{
	double start, took;
	unsigned int i;

	tell_all(fill, 0);
	attach_all(&ksmdev);
	atomic_store(&common->left, SPEED_UP_PASSES * all_pages());
	start = now();
	for (i = 0; i < callers; i++)
		ksm_call_start(&worker[i], scan_share, i, 0, 0, 0);
	for (i = 0; i < callers; i++)
		ksm_call_finish(&worker[i]);
	took = now() - start;
	if (ksmdev.saved() < 0.99 * possible())
		say("%s: %u callers of KSM_SCAN: only %.1f %% of what is possible after %d passes",
		    load->name, callers, 100 * ksmdev.saved() / possible(), SPEED_UP_PASSES);
	detach_all(&ksmdev);
	return took;
}

static void speed_up(void)
{
	double one, two;

	if (cpus() < 2)
		return;
	one = share_work(1);
	two = share_work(2);
	say("%s: KSM_SCAN, %d passes: one caller %.3f s, two %.3f s", load->name,
	    SPEED_UP_PASSES, one, two);
	sample(load->name, "speed-up of 2 threads", "times", &ksmdev, one / two);
}

/* A range that is nearly all holes: what a pass costs, and what there is to know of it. */
static void sparse(const struct scanner *scanner)
{
	double pass;

	tell_all(fill, 0);
	attach_all(scanner);
	scanner->start();
	let_pass(scanner, 4);
	pass = idle(scanner);
	scanner->stop();
	say("%s, %s: a pass takes %.1f us CPU; saved %.0f of %d pages", load->name, scanner->name,
	    pass * 1e6, scanner->saved(), SPARSE_PAGES - 1);
	sample(load->name, "idle pass, CPU", "us", scanner, pass * 1e6);
	sample(load->name, "metadata", "bytes", scanner, scanner->metadata());
	sample(load->name, "memory saved (own count)", "pages", scanner, scanner->saved());
	detach_all(scanner);
}

#define SPLIT_PASSES 6

/*
 * Huge pages of which so many pages are the same in both workers; all that have any are
 * split. CPU a huge page until all is merged.
 */
static double split_part(unsigned int part)
{
	double splits = ksmdev_stat("thp_splits"), before, freed;
	unsigned long nr_huge;
	char figure[64];
	struct point p;

	tell_all(fill_part, part);
	nr_huge = tell_all(huge, 0) / KSM_HUGE_PAGES;
	before = free_pages();
	attach_all(&ksmdev);
	p = scan(SPLIT_PASSES * all_pages());
	splits = ksmdev_stat("thp_splits") - splits;
	freed = free_pages() - before;
	if (!nr_huge || (part && (splits < nr_huge || ksmdev.saved() < nr_huge / 2 * part)))
		say("%s, %u of 512: %.0f of %lu huge pages were split, and %.0f pages merged",
		    load->name, part, splits, nr_huge, ksmdev.saved());
	say("%s, %u of 512: %.3f s CPU, %.0f pages freed", load->name, part, p.cpu, freed);
	if (part) {
		snprintf(figure, sizeof(figure), "%3u of 512 equal: freed, net", part);
		sample(load->name, figure, "pages/huge page", &ksmdev, freed / nr_huge);
	}
	detach_all(&ksmdev);
	return nr_huge ? p.cpu / nr_huge : 0;
}

/*
 * What does it take to split a huge page, and what to merge a page of it? With more and
 * more pages to merge in each, the CPU time is on a straight line.
 */
static void split_cost(void)
{
	static const unsigned int parts[] = { 8, 32, 64, 128, 256 };
	const unsigned int n = sizeof(parts) / sizeof(*parts);
	double x = 0, y = 0, xx = 0, xy = 0, none, merge, split;
	long long threshold = ksm_stat("thp_split_threshold");
	char text[32], figure[64];
	unsigned int i;

	ksmdev_set("thp_split_threshold", "1");
	none = split_part(0);
	for (i = 0; i < n; i++) {
		double cost = split_part(parts[i]) - none;

		snprintf(figure, sizeof(figure), "%3u of 512 equal: split and merge, CPU", parts[i]);
		sample(load->name, figure, "us/merged page", &ksmdev, cost / parts[i] * 1e6);
		x += parts[i];
		y += cost;
		xx += (double)parts[i] * parts[i];
		xy += parts[i] * cost;
	}
	merge = (n * xy - x * y) / (n * xx - x * x);
	split = (y - merge * x) / n;
	sample(load->name, "split of a huge page, CPU", "us", &ksmdev, split * 1e6);
	sample(load->name, "merge of one of its pages, CPU", "us", &ksmdev, merge * 1e6);
	say("%s: a split takes %.1f us, a merge %.1f us", load->name, split * 1e6, merge * 1e6);
	snprintf(text, sizeof(text), "%lld", threshold);
	ksmdev_set("thp_split_threshold", text);
}

static double pass_ns(unsigned int n)
{
	return scan(n * all_pages()).cpu / n / all_pages() * 1e9;
}

/* The share of its pages, or of their 2 MiB, in %, that a guest's page tables call accessed. */
static double ask_young(unsigned long step, bool flush, double *ns)
{
	double young;

	ksm_shell("insmod %s pid=%d start=%lu npages=%zu step=%lu flush=%d", young_module,
		  worker[0].pid, (unsigned long)base, load_pages, step, flush);
	*ns = read_number("/sys/module/young/parameters/took_ns") / load_pages;
	young = read_number("/sys/module/young/parameters/nr_young") * step / load_pages;
	ksm_shell("rmmod young");
	return 100 * young;
}

/*
 * A virtual machine's memory. The write bit: what passes cost, and the guest. The accessed
 * bit: what it costs to ask for it, and for how many pages it says nothing.
 */
static void guest(void)
{
	enum { TIMES = 4 };
	struct ksm_child *vm = &worker[0];
	const char *name = load->name;
	double hashed, ns, young;
	long watched, free;
	int i;

	tell_all(fill, 0);
	ksm_call(vm, guest_start, base, load_pages, 0);
	ksm_call(vm, guest_write, 0, 1, 1);
	attach_all(&ksmdev);
	sample(name, "pass that reads every page, CPU", "ns/page", &ksmdev, pass_ns(1));
	scan(3 * all_pages());
	sample(name, "write bit: pass while the guest rests, CPU", "ns/page", &ksmdev, pass_ns(10));

	hashed = ksmdev_stat("pages_hashed");
	for (i = 0, ns = 0; i < TIMES; i++) {
		ksm_call(vm, guest_read, 1, 0, 0);
		ns += pass_ns(1) / TIMES;
	}
	hashed = 100 * (ksmdev_stat("pages_hashed") - hashed) / TIMES / load_pages;
	sample(name, "write bit: pass after the guest read all, CPU", "ns/page", &ksmdev, ns);
	sample(name, "write bit: to be read anew then", "% of pages", &ksmdev, hashed);
	say("%s, write bit: the guest read all, the next pass %.1f %% of it", name, hashed);

	for (i = 0, ns = 0; i < TIMES; i++) {
		ksm_call(vm, guest_write, i, 10, 2);
		ns += pass_ns(1) / TIMES;
		scan(all_pages());
	}
	sample(name, "write bit: pass after the guest wrote a tenth, CPU", "ns/page", &ksmdev, ns);

	watched = ksm_call(vm, guest_write, 0, 1, 3);
	free = ksm_call(vm, guest_write, 0, 1, 4);
	sample(name, "guest's first write to a watched page", "us", &ksmdev,
	       watched / 1e3 / load_pages);
	sample(name, "guest's write to another page", "us", &ksmdev, free / 1e3 / load_pages);
	say("%s: a write to a watched page takes %.2f us, to another %.2f us", name,
	    watched / 1e3 / load_pages, free / 1e3 / load_pages);

	ask_young(1, false, &ns);
	young = ask_young(1, false, &ns);
	sample(name, "accessed bit: asked for each page while the guest rests", "ns/page", &ksmdev, ns);
	if (young)
		say("%s: %.1f %% were accessed by nobody", name, young);
	ksm_call(vm, guest_read, 1, 0, 0);
	young = ask_young(1, false, &ns);
	sample(name, "accessed bit: asked for each page after the guest read all", "ns/page",
	       &ksmdev, ns);
	sample(name, "accessed bit: to be read anew then", "% of pages", &ksmdev, young);
	say("%s, accessed bit: the guest read all, a pass would read %.1f %% of it", name, young);
	ksm_call(vm, guest_read, 1, 0, 0);
	ask_young(1, true, &ns);
	sample(name, "accessed bit: the same, with flushes", "ns/page", &ksmdev, ns);
	ksm_call(vm, guest_read, 100, 0, 0);
	young = ask_young(KSM_HUGE_PAGES, false, &ns);
	sample(name, "accessed bit: asked for 2 MiB at once", "ns/page", &ksmdev, ns);
	sample(name, "accessed bit: to be read anew if the guest read a hundredth", "% of pages",
	       &ksmdev, young);
	detach_all(&ksmdev);
}

static void with(const struct scanner *scanner, void (*what)(const struct scanner *), bool slow)
{
	long long room = ksm_stat("max_kernel_pages");
	char text[32];

	if (scanner == &ksmd && (load->what & NO_ROOM || (load->what & SLOW && !slow)))
		return;
	if (load->what & NO_ROOM)
		ksmdev_set("max_kernel_pages", "0");
	what(scanner);
	if (load->what & NO_ROOM) {
		snprintf(text, sizeof(text), "%lld", room);
		ksmdev_set("max_kernel_pages", text);
	}
}

static void both(unsigned int round, void (*what)(const struct scanner *), bool slow)
{
	with(round % 2 ? &ksmdev : &ksmd, what, slow);
	with(round % 2 ? &ksmd : &ksmdev, what, slow);
}

/* Processes of their own for each workload and round, the same ones for both sides. */
static void run(const struct workload *workload, unsigned int round, bool quick, bool slow)
{
	unsigned int i;

	load = workload;
	load_pages = load->mib * MIB_PAGES;
	if (!map_memory()) {
		say("%s: this kernel has no room for such a mapping", load->name);
		return;
	}
	if (load->what & TLB && tlb_interrupts() == UNKNOWN) {
		say("%s: this kernel has no interrupts for TLB flushes", load->name);
		return;
	}
	if (load->huge && access("/sys/kernel/mm/transparent_hugepage", F_OK)) {
		say("%s: this kernel has no huge pages", load->name);
		return;
	}
	if (!(load->what & SPARSE) && all_pages() > 0.95 * ksm_memfree()) {
		say("%s: left out, for only %ld MiB of memory are free", load->name,
		    ksm_memfree() / MIB_PAGES);
		return;
	}
	if (load->what & GUEST && (!young_module || !ksm_has_virtualization())) {
		say("%s: there is no virtualization here", load->name);
		return;
	}
	if (load->huge)
		ksm_write_file("/proc/sys/vm/compact_memory", "1");
	for (i = 0; i < load->workers; i++)
		ksm_spawn(&worker[i]);
	tell_all(renew, 0);
	if (load->what & SPARSE)
		both(round, sparse, slow);
	else if (load->what & SPLITS)
		split_cost();
	else if (load->what & GUEST)
		guest();
	else
		both(round, measure, slow);
	if (!quick && load->what & LATENCY && cpus() > 1)
		both(round, latency, slow);
	if (!quick && load->what & SPEED_UP)
		speed_up();
	for (i = 0; i < load->workers; i++)
		ksm_end(&worker[i]);
	munmap(place, place_size);
}

/*
 * A machine's memory is there; that of a virtual one is made by its host at the first
 * touch, and the time for that would be counted against whoever needs a new page.
 */
static void touch_all_memory(void)
{
	static char some[MIB];
	long left = ksm_memfree() / MIB_PAGES * 9 / 10;
	int fd = memfd_create("bench", MFD_CLOEXEC);

	if (fd < 0)
		ksm_die("memfd_create: %m");
	memset(some, 1, sizeof(some));
	for (; left > 0; left--)
		if (write(fd, some, sizeof(some)) < 0)
			ksm_die("write to a file in memory: %m");
	close(fd);
}

static void __attribute__((noreturn)) usage(int status)
{
	fprintf(status ? stderr : stdout,
		"Usage: bench [-q] [-s] [-r ROUNDS] [-c TTY] [-y FILE] [-w NAME]...\n"
		"Measure ksmd and /dev/ksm. As root, with nobody else using either.\n"
		"  -q  only fieldmap: convergence, idle and churn passes\n"
		"  -s  let ksmd do also what takes it long\n"
		"  -r  how often (3); the order of the two changes each time\n"
		"  -c  where to ask the host of User-Mode Linux for CPU time\n"
		"  -y  young.ko, to measure what a guest's accessed bits would tell\n"
		"  -w  only workloads whose names begin so\n");
	exit(status);
}

static bool wanted(const char *name, char *const *names, unsigned int n)
{
	unsigned int i;

	for (i = 0; i < n; i++)
		if (!strncmp(name, names[i], strlen(names[i])))
			return true;
	return !n;
}

int main(int argc, char **argv)
{
	unsigned int rounds = 3, nr_names = 0, round, i;
	bool quick = false, slow = false;
	char *names[16];
	int option;

	while ((option = getopt(argc, argv, "qsr:c:y:w:h")) != -1) {
		switch (option) {
		case 'q':
			quick = true;
			break;
		case 's':
			slow = true;
			break;
		case 'r':
			rounds = atoi(optarg);
			break;
		case 'c':
			ask_host(optarg);
			break;
		case 'y':
			young_module = optarg;
			break;
		case 'w':
			if (nr_names < 16)
				names[nr_names++] = optarg;
			break;
		case 'h':
			usage(0);
		default:
			usage(2);
		}
	}
	if (optind < argc || !rounds)
		usage(2);

	setvbuf(stdout, NULL, _IOLBF, 0);
	begin = now();
	common = mmap(NULL, sizeof(*common), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (common == MAP_FAILED)
		ksm_die("mmap: %m");
	scanners_open();
	say("%d CPU(s)%s", cpus(), clock_is_coarse ?
	    "; the scheduler counts in ticks, so CPU time is that of the whole system" : "");
	touch_all_memory();
	/* The one that the scanner is not on. */
	pin_to_cpu(0, 1);
	for (i = 0; i < sizeof(workloads) / sizeof(*workloads); i++) {
		if (!wanted(workloads[i].name, names, nr_names) || (quick && i))
			continue;
		for (round = 0; round < rounds; round++) {
			say("%s, round %u of %u", workloads[i].name, round + 1, rounds);
			run(&workloads[i], round, quick, slow);
		}
	}
	say("done");
	return EXIT_SUCCESS;
}
