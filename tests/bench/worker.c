// SPDX-License-Identifier: GPL-2.0-only
/*
 * worker.c - the processes whose memory is scanned, for bench.c: inside, and from outside
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "worker.h"
#include "workload.h"

#define HUGE_SIZE	(2 * MIB)

struct common *common;
char *base;
char *place;
size_t place_size;
struct ksm_child worker[MAX_WORKERS];

/*
 * In the workers
 */

long renew(long unused, long unused2, long unused3, long unused4)
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

long fill(long rank, long unused, long unused2, long unused3)
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

long rewrite(long rank, long round, long unused, long unused2)
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

long hold(long unused, long unused2, long unused3, long unused4)
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

long fill_part(long rank, long part, long unused, long unused2)
{
	size_t i;

	(void)unused;
	(void)unused2;
	for (i = 0; i < load_pages; i++)
		part_page((uint64_t *)ksm_page(base, i), rank, i, part);
	return 0;
}

long pss(long unused, long unused2, long unused3, long unused4)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	return ksm_smaps(base, "Pss");
}

long huge(long unused, long unused2, long unused3, long unused4)
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

long first_write(long npages, long unused, long unused2, long unused3)
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

long spin_start(long unused, long unused2, long unused3, long unused4)
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

long random_writes(long ms, long unused, long unused2, long unused3)
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

long scan_share(long caller, long unused, long unused2, long unused3)
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

long tell_all(ksm_fn fn, long a)
{
	unsigned int i;
	long sum = 0;

	for (i = 0; i < load->workers; i++)
		ksm_call_start(&worker[i], fn, i, a, 0, 0);
	for (i = 0; i < load->workers; i++)
		sum += ksm_call_finish(&worker[i]);
	return sum;
}

void attach_all(const struct scanner *scanner)
{
	unsigned int i;

	scanner->prepare(load->zero);
	for (i = 0; i < load->workers; i++)
		ksm_call(&worker[i], scanner->attach, base, load_pages, 0);
}

void detach_all(const struct scanner *scanner)
{
	unsigned int i;

	tell_all(let_go, 0);
	tell_all(renew, 0);
	for (i = 0; i < load->workers; i++)
		ksm_call(&worker[i], scanner->detach, 0, 0, 0);
	scanner->finish();
}

bool map_memory(void)
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
