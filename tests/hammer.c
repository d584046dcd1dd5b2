// SPDX-License-Identifier: GPL-2.0-only
/*
 * hammer.c - random memory operations against a shadow copy while pages merge
 *
 * Worker processes of two threads each write, remap, protect, advise, pin, fork
 * and exit at random in registered memory, while kksmd and two scan fds share
 * whatever they can as fast as they can. Each thread keeps a description of
 * what every page of its own must hold in shared memory, which is never
 * registered, and compares whole pages with it at random and at the end. So the
 * oracle is what the program wrote, not what the driver says about itself.
 *
 * The seed is printed; with -s the same operations are drawn again. What the
 * scheduler does in between is of course another matter.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../ksm.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define SYSFS		"/sys/class/misc/ksm/"
#define PARAM		"/sys/module/ksmdev/parameters/"
#define WORDS		(4096 / 8)
#define WINDOWS		2	/* of each thread, each one page table long */
#define WINDOW_PAGES	512
#define THREAD_PAGES	(WINDOWS * WINDOW_PAGES)
#define THREADS		2
#define MAX_WORKERS	32
#define SCANNERS	2
#define MAX_KIDS	2	/* forked children alive at once, each thread */
#define HISTORY		24
#define PIN_PAGES	8
#define SHARED_FILLS	12	/* fills that every worker draws from */

/*
 * Where the threads' memory is: far below where the kernel puts mappings that
 * name no place. In the holes that op_munmap() makes nothing else may settle.
 */
#define MEM_BASE	0x100000000000UL
#define MEM_STEP	0x10000000UL

/* Exit statuses of workers; anything else is a worker that died. */
#define EXIT_MISMATCH	3
#define EXIT_SYSCALL	4

/* What one page must hold. */
struct shadow {
	uint32_t fill;		/* word i is a function of this; 0: zeroes */
	uint16_t pos;		/* the word that differs from the fill */
	uint8_t mapped;
	uint8_t prot;
	uint64_t delta;		/* by this much; 0: no word differs */
};

/* One thread's account, in memory that all processes of the hammer share. */
struct account {
	_Atomic uint64_t ops;
	_Atomic uint64_t verified;
	_Atomic uint64_t unmerges;
	_Atomic uint64_t forks;
	_Atomic uint64_t pins;
};

struct board {
	struct account thread[MAX_WORKERS][THREADS];
	_Atomic uint64_t scans;
	_Atomic uint64_t scan_eintr;
	_Atomic int failed;
	_Atomic int stop;
};

/* A pin that is held over other operations, see op_pin_start(). */
enum hold { HOLD_NONE, HOLD_SPLICE, HOLD_URING };

struct ring {
	int fd;
	void *sq;
	size_t sq_len;
	struct io_uring_sqe *sqes;
	size_t sqes_len;
	struct io_uring_params p;
};

struct thread {
	uint64_t rng;
	int worker, nr, depth;
	unsigned int generation;
	char *mem;
	struct shadow *shadow;	/* MAP_SHARED, one for each page */
	struct account *account;
	int dev, area, scan;
	bool registered;
	/* A forked child may keep a closed area alive for a while. */
	bool stale;
	unsigned int hot;	/* most operations go to one eighth for a while */
	pid_t kid[MAX_KIDS];
	enum hold hold;
	unsigned int hold_page, hold_pages, hold_ops;
	int pipe[2];
	struct ring ring;
	const char *history[HISTORY];
	unsigned int history_page[HISTORY], history_n[HISTORY];
	unsigned int n_ops;
};

static struct board *board;
static long seed;
static long page_size = 4096;

static __thread struct thread *current_thread;

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static uint64_t rnd64(struct thread *t)
{
	t->rng += 0x9e3779b97f4a7c15ULL;
	return mix(t->rng);
}

static unsigned int rnd(struct thread *t, unsigned int below)
{
	return (rnd64(t) >> 32) % below;
}

static uint64_t fill_word(uint32_t fill, unsigned int i)
{
	uint64_t v;

	if (!fill)
		return 0;
	v = ((uint64_t)fill << 20 | i) * 0x9e3779b97f4a7c15ULL;
	return v ^ (v >> 29);
}

static uint64_t want_word(const struct shadow *s, unsigned int i)
{
	return fill_word(s->fill, i) ^ (i == s->pos ? s->delta : 0);
}

static long read_number(const char *dir, const char *name)
{
	char path[128], buf[32];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s%s", dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (n <= 0)
		return -1;
	buf[n] = '\0';
	return strtol(buf, NULL, 10);
}

static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = write(fd, text, strlen(text));
	close(fd);
	return n < 0 ? -1 : 0;
}

static uint64_t pagemap_entry(const void *addr)
{
	uint64_t e = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return 0;
	if (pread(fd, &e, 8, (uintptr_t)addr / page_size * 8) != 8)
		e = 0;
	close(fd);
	return e;
}

/* ---- How a worker fails: say all that is known, then stop everything. ---- */

static void print_history(struct thread *t)
{
	unsigned int i, n = t->n_ops < HISTORY ? t->n_ops : HISTORY;

	for (i = t->n_ops - n; i != t->n_ops; i++)
		fprintf(stderr, "hammer:   op %u: %s page %u count %u\n", i,
			t->history[i % HISTORY], t->history_page[i % HISTORY],
			t->history_n[i % HISTORY]);
}

static _Noreturn void die(struct thread *t, int status)
{
	print_history(t);
	fprintf(stderr,
		"hammer: seed %ld worker %d thread %d generation %u depth %d; run again with -s %ld\n",
		seed, t->worker, t->nr, t->generation, t->depth, seed);
	fflush(stderr);
	board->failed = 1;
	_exit(status);
}

static _Noreturn void mismatch(struct thread *t, unsigned int page, unsigned int word)
{
	const volatile uint64_t *p = (void *)(t->mem + (size_t)page * page_size);
	const struct shadow *s = &t->shadow[page];
	uint64_t seen = p[word], entry = pagemap_entry((void *)p);
	unsigned int i, bad = 0;

	for (i = 0; i < WORDS; i++)
		bad += p[i] != want_word(s, i);
	fprintf(stderr,
		"hammer: MISMATCH at %p (page %u, word %u, %u words wrong now): expected %016llx, seen %016llx\n",
		(void *)(p + word), page, word, bad,
		(unsigned long long)want_word(s, word),
		(unsigned long long)seen);
	fprintf(stderr,
		"hammer: page should be fill %u, word %u xor %llx, prot %d; pagemap %016llx, pfn %llx\n",
		s->fill, s->pos, (unsigned long long)s->delta, s->prot,
		(unsigned long long)entry,
		(unsigned long long)(entry & ((1ULL << 55) - 1)));
	die(t, EXIT_MISMATCH);
}

static _Noreturn void bad_call(struct thread *t, const char *what)
{
	fprintf(stderr, "hammer: %s: %s, which must not happen here\n", what,
		strerror(errno));
	die(t, EXIT_SYSCALL);
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
	struct thread *t = current_thread;
	unsigned int page;

	(void)context;
	fprintf(stderr, "hammer: signal %d at address %p, code %d\n", sig,
		info->si_addr, info->si_code);
	if (!t)
		_exit(EXIT_MISMATCH);
	page = ((char *)info->si_addr - t->mem) / page_size;
	if ((char *)info->si_addr >= t->mem && page < THREAD_PAGES)
		fprintf(stderr,
			"hammer: page %u should be mapped %d prot %d fill %u\n",
			page, t->shadow[page].mapped, t->shadow[page].prot,
			t->shadow[page].fill);
	die(t, EXIT_MISMATCH);
}

/* ---- The memory and its shadow. ---- */

static char *page_addr(struct thread *t, unsigned int page)
{
	return t->mem + (size_t)page * page_size;
}

static bool readable(const struct shadow *s)
{
	return s->mapped && (s->prot & PROT_READ);
}

static bool writable(const struct shadow *s)
{
	return s->mapped && (s->prot & PROT_WRITE);
}

static void verify_page(struct thread *t, unsigned int page)
{
	const volatile uint64_t *p = (void *)page_addr(t, page);
	const struct shadow *s = &t->shadow[page];
	unsigned int i;

	for (i = 0; i < WORDS; i++)
		if (p[i] != want_word(s, i))
			mismatch(t, page, i);
	t->account->verified++;
}

static void verify_all(struct thread *t)
{
	unsigned int page;
	bool was_none;

	for (page = 0; page < THREAD_PAGES; page++) {
		struct shadow *s = &t->shadow[page];

		if (!s->mapped)
			continue;
		was_none = !readable(s);
		/* What a PROT_NONE page holds is of interest too. */
		if (was_none && mprotect(page_addr(t, page), page_size, PROT_READ))
			bad_call(t, "mprotect to verify");
		verify_page(t, page);
		if (was_none && mprotect(page_addr(t, page), page_size, PROT_NONE))
			bad_call(t, "mprotect back");
	}
}

static void set_zero(struct thread *t, unsigned int page, unsigned int n)
{
	for (; n; n--, page++) {
		t->shadow[page].fill = 0;
		t->shadow[page].delta = 0;
	}
}

static bool all_mapped(struct thread *t, unsigned int page, unsigned int n)
{
	for (; n; n--, page++)
		if (!t->shadow[page].mapped)
			return false;
	return true;
}

static bool all_writable(struct thread *t, unsigned int page, unsigned int n)
{
	for (; n; n--, page++)
		if (!writable(&t->shadow[page]))
			return false;
	return true;
}

static uint32_t draw_fill(struct thread *t)
{
	unsigned int r = rnd(t, 100);

	if (r < 20)
		return 0;
	if (r < 88)
		return 1 + rnd(t, SHARED_FILLS);
	/* A fill of one's own: no twin, must stay what it is. */
	return 1000 + (rnd64(t) >> 32) % 100000000;
}

/* Few places and few values, so that near twins find twins of their own. */
static uint16_t draw_pos(struct thread *t)
{
	static const uint16_t pos[] = { 0, 1, 7, 8, 63, 255, 256, 510, 511 };

	if (!rnd(t, 8))
		return rnd(t, WORDS);
	return pos[rnd(t, sizeof(pos) / sizeof(pos[0]))];
}

static uint64_t draw_delta(struct thread *t)
{
	static const uint64_t delta[] = { 0, 1, 0x80, 1ULL << 63, 0x100000000ULL };

	return delta[rnd(t, sizeof(delta) / sizeof(delta[0]))];
}

static void make_page(uint64_t *to, const struct shadow *s)
{
	unsigned int i;

	for (i = 0; i < WORDS; i++)
		to[i] = want_word(s, i);
}

static void draw_page(struct thread *t, struct shadow *s)
{
	s->fill = draw_fill(t);
	s->pos = draw_pos(t);
	s->delta = rnd(t, 4) ? 0 : draw_delta(t);
}

static void draw_range(struct thread *t, unsigned int *page, unsigned int *n,
		       unsigned int max)
{
	const unsigned int eighth = THREAD_PAGES / 8;

	*n = 1 + rnd(t, rnd(t, 3) ? 4 : max);
	if (rnd(t, 5))
		*page = t->hot * eighth + rnd(t, eighth);
	else
		*page = rnd(t, THREAD_PAGES);
	if (*page + *n > THREAD_PAGES)
		*n = THREAD_PAGES - *page;
	/* Pages that a pin holds are left alone until it is over. */
	if (t->hold != HOLD_NONE && *page < t->hold_page + t->hold_pages &&
	    t->hold_page < *page + *n)
		*n = 0;
}

static void note(struct thread *t, const char *what, unsigned int page, unsigned int n)
{
	t->history[t->n_ops % HISTORY] = what;
	t->history_page[t->n_ops % HISTORY] = page;
	t->history_n[t->n_ops % HISTORY] = n;
	t->n_ops++;
}

/* ---- Writers. ---- */

static void op_write(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "write", page, n);
	for (; n; n--, page++) {
		if (!writable(&t->shadow[page]))
			continue;
		draw_page(t, &t->shadow[page]);
		make_page((void *)page_addr(t, page), &t->shadow[page]);
	}
}

/* The two places are written one after the other: the scan may see both. */
static void op_write_word(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "write word", page, n);
	for (; n; n--, page++) {
		struct shadow *s = &t->shadow[page];
		volatile uint64_t *p = (void *)page_addr(t, page);

		if (!writable(s))
			continue;
		p[s->pos] = fill_word(s->fill, s->pos);
		s->pos = draw_pos(t);
		s->delta = draw_delta(t);
		p[s->pos] = want_word(s, s->pos);
	}
}

/* Counts up in one word: a write lost to a late TLB flush shows at once. */
static void op_count(struct thread *t, unsigned int page, unsigned int n)
{
	struct shadow *s = &t->shadow[page];
	volatile uint64_t *p = (void *)page_addr(t, page);
	unsigned int i, loops = 1 + rnd(t, 300);
	uint64_t base;

	(void)n;
	note(t, "count", page, loops);
	if (!writable(s))
		return;
	base = fill_word(s->fill, s->pos);
	for (i = 0; i < loops; i++) {
		if (p[s->pos] != (base ^ s->delta))
			mismatch(t, page, s->pos);
		s->delta++;
		p[s->pos] = base ^ s->delta;
	}
	s->delta = 0;
	p[s->pos] = base;
}

/* Writes as a debugger does: past the protection, and from outside. */
static void op_write_remote(struct thread *t, unsigned int page, unsigned int n)
{
	uint64_t buf[WORDS];
	struct shadow s;
	ssize_t done;
	int fd;

	(void)n;
	note(t, "remote write", page, 1);
	s = t->shadow[page];
	if (!s.mapped)
		return;
	draw_page(t, &s);
	make_page(buf, &s);
	if (rnd(t, 2)) {
		struct iovec local = { buf, page_size };
		struct iovec remote = { page_addr(t, page), page_size };

		done = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
		if (done < 0 && errno == EFAULT && !writable(&s))
			return;
	} else {
		fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
		if (fd < 0)
			bad_call(t, "open /proc/self/mem");
		done = pwrite(fd, buf, page_size, (uintptr_t)page_addr(t, page));
		close(fd);
		/* Some kernels do not let a debugger past the protection. */
		if (done < 0 && errno == EIO && !writable(&s))
			return;
	}
	if (done < 0 && errno == ENOMEM)
		return;
	if (done != page_size)
		bad_call(t, "remote write");
	t->shadow[page] = s;
}

/* The kernel itself writes, through a pipe. */
static void op_read_into(struct thread *t, unsigned int page, unsigned int n)
{
	uint64_t buf[WORDS];

	(void)n;
	note(t, "read() into", page, 1);
	if (!writable(&t->shadow[page]) || t->hold == HOLD_SPLICE)
		return;
	draw_page(t, &t->shadow[page]);
	make_page(buf, &t->shadow[page]);
	if (write(t->pipe[1], buf, page_size) != page_size ||
	    read(t->pipe[0], page_addr(t, page), page_size) != page_size)
		bad_call(t, "read through a pipe");
}

/* ---- Readers. ---- */

static void op_verify(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "verify", page, n);
	for (; n; n--, page++)
		if (readable(&t->shadow[page]))
			verify_page(t, page);
}

static void op_verify_all(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "verify all", page, n);
	if (!rnd(t, 8))
		verify_all(t);
}

/* ---- The address space. ---- */

static void op_munmap(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "munmap", page, n);
	if (munmap(page_addr(t, page), n * page_size))
		bad_call(t, "munmap");
	for (; n; n--, page++) {
		t->shadow[page].mapped = 0;
		t->shadow[page].prot = 0;
	}
}

static void op_mmap(struct thread *t, unsigned int page, unsigned int n)
{
	unsigned int i;

	note(t, "mmap", page, n);
	if (mmap(page_addr(t, page), n * page_size, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
		 -1, 0) == MAP_FAILED)
		bad_call(t, "mmap");
	set_zero(t, page, n);
	for (i = 0; i < n; i++) {
		t->shadow[page + i].mapped = 1;
		t->shadow[page + i].prot = PROT_READ | PROT_WRITE;
	}
}

static void op_mremap(struct thread *t, unsigned int page, unsigned int n)
{
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
	unsigned int i, to = rnd(t, THREAD_PAGES);
	bool keep = !rnd(t, 3);

	note(t, keep ? "mremap, source stays" : "mremap", page, n);
	if (!all_mapped(t, page, n) || to + n > THREAD_PAGES ||
	    (to < page + n && page < to + n))
		return;
	if (t->hold != HOLD_NONE && to < t->hold_page + t->hold_pages &&
	    t->hold_page < to + n)
		return;
	note(t, "  ... to", to, n);
	if (keep)
		flags |= MREMAP_DONTUNMAP;
	if (mremap(page_addr(t, page), n * page_size, n * page_size, flags,
		   page_addr(t, to)) == MAP_FAILED) {
		/*
		 * The source may span several mappings or be locked, and what
		 * was at the destination may be gone already.
		 */
		if (errno != EFAULT && errno != EINVAL && errno != EAGAIN &&
		    errno != ENOMEM)
			bad_call(t, "mremap");
		if (mmap(page_addr(t, to), n * page_size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
			 -1, 0) == MAP_FAILED)
			bad_call(t, "mmap after mremap");
		set_zero(t, to, n);
		for (i = 0; i < n; i++) {
			t->shadow[to + i].mapped = 1;
			t->shadow[to + i].prot = PROT_READ | PROT_WRITE;
		}
		return;
	}
	for (i = 0; i < n; i++)
		t->shadow[to + i] = t->shadow[page + i];
	if (keep) {
		set_zero(t, page, n);
		return;
	}
	for (i = 0; i < n; i++) {
		t->shadow[page + i].mapped = 0;
		t->shadow[page + i].prot = 0;
	}
}

static void op_mprotect(struct thread *t, unsigned int page, unsigned int n)
{
	static const int prots[] = {
		PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE,
	};
	int prot = prots[rnd(t, 4)];
	unsigned int i;

	note(t, "mprotect", page, n);
	if (!all_mapped(t, page, n))
		return;
	if (mprotect(page_addr(t, page), n * page_size, prot)) {
		if (errno != ENOMEM)
			bad_call(t, "mprotect");
		/* Split into too many mappings, perhaps half done: start anew. */
		op_mmap(t, page, n);
		return;
	}
	for (i = 0; i < n; i++)
		t->shadow[page + i].prot = prot;
}

static void op_dontneed(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "madvise dontneed", page, n);
	if (!all_mapped(t, page, n))
		return;
	/* Locked memory refuses it. */
	if (munlock(page_addr(t, page), n * page_size) && errno != ENOMEM)
		bad_call(t, "munlock");
	if (madvise(page_addr(t, page), n * page_size, MADV_DONTNEED))
		bad_call(t, "madvise dontneed");
	set_zero(t, page, n);
}

/* MADV_FREE may take the contents any time until the next write: so write. */
static void op_free(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "madvise free", page, n);
	if (!all_writable(t, page, n))
		return;
	if (munlock(page_addr(t, page), n * page_size) && errno != ENOMEM)
		bad_call(t, "munlock");
	if (madvise(page_addr(t, page), n * page_size, MADV_FREE))
		bad_call(t, "madvise free");
	if (rnd(t, 2))
		usleep(rnd(t, 3000));
	op_write(t, page, n);
}

/* None of these changes what a page holds, whatever it returns. */
static void op_advise(struct thread *t, unsigned int page, unsigned int n)
{
	static const struct {
		int advice;
		const char *name;
	} all[] = {
		{ MADV_PAGEOUT, "madvise pageout" },
		{ MADV_PAGEOUT, "madvise pageout" },
		{ MADV_COLD, "madvise cold" },
		{ MADV_WILLNEED, "madvise willneed" },
		{ MADV_HUGEPAGE, "madvise hugepage" },
		{ MADV_NOHUGEPAGE, "madvise nohugepage" },
		{ MADV_COLLAPSE, "madvise collapse" },
		{ MADV_POPULATE_WRITE, "madvise populate write" },
		{ MADV_MERGEABLE, "madvise mergeable" },
		{ MADV_UNMERGEABLE, "madvise unmergeable" },
	};
	unsigned int i = rnd(t, sizeof(all) / sizeof(all[0]));

	note(t, all[i].name, page, n);
	if (all[i].advice == MADV_COLLAPSE || all[i].advice == MADV_HUGEPAGE) {
		if (rnd(t, 4))
			return;
		page -= page % WINDOW_PAGES;
		n = WINDOW_PAGES;
	}
	/* The lists of vmsplice and io_uring tell what populating would add. */
	madvise(page_addr(t, page), n * page_size, all[i].advice);
}

static void op_mlock(struct thread *t, unsigned int page, unsigned int n)
{
	bool lock = rnd(t, 2);

	note(t, lock ? "mlock" : "munlock", page, n);
	if (lock)
		mlock2(page_addr(t, page), n * page_size,
		       rnd(t, 2) ? MLOCK_ONFAULT : 0);
	else
		munlock(page_addr(t, page), n * page_size);
}

static void op_clear_refs(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "clear soft-dirty", page, n);
	if (!rnd(t, 4))
		write_text("/proc/self/clear_refs", "4");
}

/* ---- Pins. ---- */

static void ring_open(struct ring *r)
{
	memset(r, 0, sizeof(*r));
	r->fd = syscall(__NR_io_uring_setup, 4, &r->p);
	if (r->fd < 0)
		return;
	fcntl(r->fd, F_SETFD, FD_CLOEXEC);
	r->sq_len = r->p.sq_off.array + r->p.sq_entries * sizeof(uint32_t);
	if (r->sq_len < r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe))
		r->sq_len = r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe);
	r->sqes_len = r->p.sq_entries * sizeof(struct io_uring_sqe);
	r->sq = mmap(NULL, r->sq_len, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd,
		     IORING_OFF_SQ_RING);
	r->sqes = mmap(NULL, r->sqes_len, PROT_READ | PROT_WRITE, MAP_SHARED,
		       r->fd, IORING_OFF_SQES);
	if (r->sq == MAP_FAILED || r->sqes == MAP_FAILED ||
	    !(r->p.features & IORING_FEAT_SINGLE_MMAP)) {
		close(r->fd);
		r->fd = -1;
	}
}

/* Reads from @fd into the registered buffer; returns the kernel's result. */
static int ring_read_fixed(struct ring *r, int fd, void *to, unsigned int len)
{
	_Atomic uint32_t *sq_tail = (void *)((char *)r->sq + r->p.sq_off.tail);
	uint32_t sq_mask = *(uint32_t *)((char *)r->sq + r->p.sq_off.ring_mask);
	uint32_t *array = (void *)((char *)r->sq + r->p.sq_off.array);
	_Atomic uint32_t *cq_head = (void *)((char *)r->sq + r->p.cq_off.head);
	uint32_t cq_mask = *(uint32_t *)((char *)r->sq + r->p.cq_off.ring_mask);
	struct io_uring_cqe *cqes = (void *)((char *)r->sq + r->p.cq_off.cqes);
	uint32_t tail = *sq_tail, slot = tail & sq_mask;
	struct io_uring_sqe *sqe = &r->sqes[slot];
	int res;

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_READ_FIXED;
	sqe->fd = fd;
	sqe->off = -1;
	sqe->addr = (uintptr_t)to;
	sqe->len = len;
	array[slot] = slot;
	*sq_tail = tail + 1;
	do {
		res = syscall(__NR_io_uring_enter, r->fd, 1, 1,
			      IORING_ENTER_GETEVENTS, NULL, 0);
	} while (res < 0 && errno == EINTR);
	if (res < 0)
		return -errno;
	res = cqes[*cq_head & cq_mask].res;
	(*cq_head)++;
	return res;
}

/*
 * Hands pages to the kernel and leaves them there over some other operations.
 * vmsplice holds a plain reference to read from; a registered io_uring buffer
 * is a long-term pin that will be written through. A page that was merged in
 * between either way shows in op_pin_end().
 */
static void op_pin_start(struct thread *t, unsigned int page, unsigned int n)
{
	struct iovec iov;
	bool splice = rnd(t, 2);

	if (n > PIN_PAGES)
		n = PIN_PAGES;
	note(t, splice ? "vmsplice" : "io_uring pin", page, n);
	if (t->hold != HOLD_NONE || !all_writable(t, page, n))
		return;
	iov.iov_base = page_addr(t, page);
	iov.iov_len = n * page_size;
	if (splice) {
		if (vmsplice(t->pipe[1], &iov, 1, 0) != (ssize_t)iov.iov_len)
			bad_call(t, "vmsplice");
		t->hold = HOLD_SPLICE;
	} else {
		if (t->ring.fd < 0 || t->depth)
			return;
		if (syscall(__NR_io_uring_register, t->ring.fd,
			    IORING_REGISTER_BUFFERS, &iov, 1)) {
			if (errno == ENOMEM || errno == EAGAIN || errno == EINTR)
				return;
			bad_call(t, "io_uring register buffers");
		}
		t->hold = HOLD_URING;
	}
	t->hold_page = page;
	t->hold_pages = n;
	t->hold_ops = rnd(t, 60);
	t->account->pins++;
}

static void op_pin_end(struct thread *t)
{
	static __thread uint64_t buf[PIN_PAGES * WORDS];
	unsigned int i, w, page = t->hold_page, n = t->hold_pages;
	size_t len = (size_t)n * page_size, got = 0;
	ssize_t r;
	int res;

	if (t->hold == HOLD_SPLICE) {
		note(t, "read the splice", page, n);
		while (got < len) {
			r = read(t->pipe[0], (char *)buf + got, len - got);
			if (r <= 0)
				bad_call(t, "read spliced pages");
			got += r;
		}
		for (i = 0; i < n; i++)
			for (w = 0; w < WORDS; w++)
				if (buf[i * WORDS + w] != want_word(&t->shadow[page + i], w)) {
					fprintf(stderr,
						"hammer: spliced page %u holds %016llx\n", page + i,
						(unsigned long long)buf[i * WORDS + w]);
					mismatch(t, page + i, w);
				}
	} else {
		note(t, "read through the pin", page, n);
		for (i = 0; i < n; i++)
			draw_page(t, &t->shadow[page + i]);
		for (i = 0; i < n; i++) {
			make_page(buf, &t->shadow[page + i]);
			if (write(t->pipe[1], buf, page_size) != page_size)
				bad_call(t, "write to the pipe");
			res = ring_read_fixed(&t->ring, t->pipe[0],
					      page_addr(t, page + i), page_size);
			if (res != page_size) {
				errno = res < 0 ? -res : 0;
				bad_call(t, "read into a registered buffer");
			}
		}
		if (syscall(__NR_io_uring_register, t->ring.fd,
			    IORING_UNREGISTER_BUFFERS, NULL, 0))
			bad_call(t, "io_uring unregister buffers");
	}
	t->hold = HOLD_NONE;
	for (i = 0; i < n; i++)
		verify_page(t, page + i);
}

/* ---- The driver. ---- */

static void open_area(struct thread *t)
{
	t->area = ioctl(t->dev, KSM_CREATE_SHARED_MEMORY_AREA);
	if (t->area < 0) {
		if (errno != ENOMEM)
			bad_call(t, "KSM_CREATE_SHARED_MEMORY_AREA");
		return;
	}
	fcntl(t->area, F_SETFD, FD_CLOEXEC);
}

static void register_all(struct thread *t)
{
	unsigned int page = 0, n;

	while (t->area >= 0 && page < THREAD_PAGES) {
		struct ksm_memory_region r = { 0 };

		n = rnd(t, 2) ? THREAD_PAGES : 1 + rnd(t, THREAD_PAGES / 2);
		if (n > THREAD_PAGES - page)
			n = THREAD_PAGES - page;
		r.npages = n;
		r.addr = (uintptr_t)page_addr(t, page);
		if (ioctl(t->area, KSM_REGISTER_MEMORY_REGION, &r)) {
			if (errno == ENOMEM || (errno == EEXIST && t->stale))
				return;
			bad_call(t, "KSM_REGISTER_MEMORY_REGION");
		}
		t->registered = true;
		page += n;
	}
}

static void op_register(struct thread *t, unsigned int page, unsigned int n)
{
	struct ksm_memory_region r = { 0 };

	note(t, t->registered ? "register twice" : "register", page, n);
	if (t->area < 0)
		open_area(t);
	if (!t->registered) {
		register_all(t);
		return;
	}
	/* Part of this range may be free if an earlier try ran out of memory. */
	r.npages = THREAD_PAGES;
	r.addr = (uintptr_t)t->mem;
	if (!ioctl(t->area, KSM_REGISTER_MEMORY_REGION, &r)) {
		errno = 0;
		bad_call(t, "an overlapping region was accepted");
	}
	if (errno != EEXIST && errno != ENOMEM)
		bad_call(t, "KSM_REGISTER_MEMORY_REGION of an overlap");
}

static void op_unregister(struct thread *t, unsigned int page, unsigned int n)
{
	bool keep_open = rnd(t, 4);

	note(t, keep_open ? "remove" : "close area", page, n);
	if (t->area < 0)
		return;
	if (keep_open) {
		if (ioctl(t->area, KSM_REMOVE_MEMORY_REGION))
			bad_call(t, "KSM_REMOVE_MEMORY_REGION");
	} else {
		if (close(t->area))
			bad_call(t, "close of an area");
		t->area = -1;
		if (t->registered)
			t->stale = true;
	}
	t->registered = false;
	/* Not for long: memory that is not registered tests nothing. */
	if (rnd(t, 10))
		op_register(t, page, n);
}

static void op_unmerge(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "unmerge", page, n);
	if (t->area < 0)
		return;
	if (ioctl(t->area, KSM_UNMERGE) && errno != ENOMEM)
		bad_call(t, "KSM_UNMERGE");
	t->account->unmerges++;
}

static void op_scan(struct thread *t, unsigned int page, unsigned int n)
{
	struct ksm_user_scan s = { 1 + rnd(t, 512), rnd(t, 3) ? 0 : 1 + rnd(t, 16) };

	note(t, "scan", page, n);
	if (t->scan >= 0 && ioctl(t->scan, KSM_SCAN, &s) && errno != EINTR)
		bad_call(t, "KSM_SCAN");
}

/* ---- Processes. ---- */

static void run_ops(struct thread *t, uint64_t ops);

static void reap(struct thread *t, int slot)
{
	int status;

	if (t->kid[slot] <= 0)
		return;
	if (waitpid(t->kid[slot], &status, 0) != t->kid[slot])
		bad_call(t, "waitpid");
	t->kid[slot] = 0;
	/* A child that failed has told why, and the board knows. */
	if (WIFSIGNALED(status) && !board->failed) {
		fprintf(stderr, "hammer: forked child killed by signal %d\n",
			WTERMSIG(status));
		die(t, EXIT_MISMATCH);
	}
	if (status)
		_exit(EXIT_MISMATCH);
}

static _Noreturn void child(struct thread *t, struct shadow *copy)
{
	char arg0[] = "hammer", arg1[] = "--exit";
	char *args[] = { arg0, arg1, NULL };
	unsigned int i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	t->depth++;
	t->shadow = copy;
	for (i = 0; i < MAX_KIDS; i++)
		t->kid[i] = 0;
	/* The parent's area is the parent's: REMOVE here would reach it. */
	if (t->area >= 0)
		close(t->area);
	t->area = -1;
	t->registered = false;
	t->stale = false;
	/* What the parent has in flight stays the parent's as well. */
	t->hold = HOLD_NONE;
	close(t->pipe[0]);
	close(t->pipe[1]);
	if (t->ring.fd >= 0)
		close(t->ring.fd);
	t->ring.fd = -1;
	if (pipe2(t->pipe, O_CLOEXEC))
		bad_call(t, "pipe");
	if (rnd(t, 2)) {
		open_area(t);
		if (t->area >= 0)
			register_all(t);
	}
	run_ops(t, rnd(t, 400));
	verify_all(t);
	for (i = 0; i < MAX_KIDS; i++)
		reap(t, i);
	if (!rnd(t, 4))
		execv("/proc/self/exe", args);
	_exit(0);
}

static void op_fork(struct thread *t, unsigned int page, unsigned int n)
{
	unsigned int slot = rnd(t, MAX_KIDS);
	size_t len = THREAD_PAGES * sizeof(struct shadow);
	struct shadow *copy;
	pid_t pid;

	note(t, "fork", page, n);
	if (t->depth > 1 || rnd(t, 2))
		return;
	reap(t, slot);
	copy = mmap(NULL, len, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (copy == MAP_FAILED)
		bad_call(t, "mmap of a shadow");
	memcpy(copy, t->shadow, len);
	t->rng ^= 1;
	pid = fork();
	if (!pid) {
		t->rng = mix(t->rng + t->depth + 77);
		child(t, copy);
	}
	munmap(copy, len);
	if (pid < 0 && errno != EAGAIN && errno != ENOMEM)
		bad_call(t, "fork");
	if (pid < 0)
		return;
	t->kid[slot] = pid;
	t->account->forks++;
}

static void op_pause(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "pause", page, n);
	/* Pages must rest for two scans before they are worth sharing. */
	usleep(rnd(t, 4) ? rnd(t, 3000) : rnd(t, 40000));
}

static void op_move(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "other eighth", page, n);
	if (!rnd(t, 4))
		t->hot = rnd(t, 8);
}

static const struct {
	unsigned int weight;
	unsigned int max;	/* pages */
	void (*run)(struct thread *t, unsigned int page, unsigned int n);
} table[] = {
	{ 120, 64, op_write },
	{ 80, 16, op_write_word },
	{ 40, 1, op_count },
	{ 30, 1, op_write_remote },
	{ 30, 1, op_read_into },
	{ 120, 64, op_verify },
	{ 10, 1, op_verify_all },
	{ 15, 128, op_munmap },
	{ 40, 256, op_mmap },
	{ 25, 128, op_mremap },
	{ 30, 64, op_mprotect },
	{ 25, 64, op_dontneed },
	{ 10, 16, op_free },
	{ 40, 128, op_advise },
	{ 20, 64, op_mlock },
	{ 10, 1, op_clear_refs },
	{ 25, PIN_PAGES, op_pin_start },
	{ 10, 1, op_register },
	{ 10, 1, op_unregister },
	{ 5, 1, op_unmerge },
	{ 20, 1, op_scan },
	{ 10, 1, op_fork },
	{ 40, 1, op_pause },
	{ 10, 1, op_move },
};

static void run_ops(struct thread *t, uint64_t ops)
{
	unsigned int i, page, n, pick, total = 0;

	for (i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		total += table[i].weight;
	while (ops-- && !board->stop && !board->failed) {
		if (t->hold != HOLD_NONE && !t->hold_ops--)
			op_pin_end(t);
		pick = rnd(t, total);
		for (i = 0; pick >= table[i].weight; i++)
			pick -= table[i].weight;
		draw_range(t, &page, &n, table[i].max);
		if (!n)
			continue;
		table[i].run(t, page, n);
		t->account->ops++;
	}
	if (t->hold != HOLD_NONE && !board->failed)
		op_pin_end(t);
}

static void *thread_main(void *arg)
{
	const size_t len = (size_t)THREAD_PAGES * page_size;
	struct thread *t = arg;
	int i;

	current_thread = t;
	t->area = -1;
	/* The shadow is shared memory: nothing that is merged can hold it. */
	t->shadow = mmap(NULL, THREAD_PAGES * sizeof(struct shadow),
			 PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	t->mem = mmap((void *)(MEM_BASE + t->nr * MEM_STEP), len, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
		      -1, 0);
	if (t->shadow == MAP_FAILED || t->mem == MAP_FAILED)
		bad_call(t, "mmap of a thread's memory");
	if (pipe2(t->pipe, O_CLOEXEC))
		bad_call(t, "pipe");
	ring_open(&t->ring);
	t->scan = ioctl(t->dev, KSM_CREATE_SCAN);
	if (t->scan < 0 && errno != ENOMEM)
		bad_call(t, "KSM_CREATE_SCAN");
	op_mmap(t, 0, THREAD_PAGES);
	op_write(t, 0, THREAD_PAGES);
	open_area(t);
	register_all(t);
	/* A process does not live long: exits with merged pages are a case. */
	run_ops(t, 200 + rnd(t, 20000));
	if (!board->failed)
		verify_all(t);
	for (i = 0; i < MAX_KIDS; i++)
		reap(t, i);
	return NULL;
}

static _Noreturn void worker(int nr, unsigned int generation)
{
	static struct thread threads[THREADS];
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };
	pthread_t id[THREADS];
	int i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
	for (i = 0; i < THREADS; i++) {
		struct thread *t = &threads[i];

		t->rng = mix(mix(mix(seed) + nr) + generation * THREADS + i);
		t->worker = nr;
		t->nr = i;
		t->generation = generation;
		t->account = &board->thread[nr][i];
		t->dev = open("/dev/ksm", O_RDWR | O_CLOEXEC);
		current_thread = t;
		if (t->dev < 0)
			bad_call(t, "open /dev/ksm");
		if (pthread_create(&id[i], NULL, thread_main, t))
			bad_call(t, "pthread_create");
	}
	for (i = 0; i < THREADS; i++)
		pthread_join(id[i], NULL);
	_exit(board->failed ? EXIT_MISMATCH : 0);
}

static void on_signal(int sig)
{
	(void)sig;
}

static _Noreturn void scanner(void)
{
	struct sigaction sa = { .sa_handler = on_signal };
	struct ksm_user_scan s = { .pages_to_scan = 1024 };
	int dev, fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigaction(SIGUSR1, &sa, NULL);
	dev = open("/dev/ksm", O_RDWR | O_CLOEXEC);
	fd = ioctl(dev, KSM_CREATE_SCAN);
	if (fd < 0) {
		perror("hammer: KSM_CREATE_SCAN");
		board->failed = 1;
		_exit(1);
	}
	while (!board->stop && !board->failed) {
		if (ioctl(fd, KSM_SCAN, &s)) {
			if (errno != EINTR) {
				perror("hammer: KSM_SCAN");
				board->failed = 1;
				_exit(1);
			}
			board->scan_eintr++;
		}
		board->scans++;
	}
	_exit(0);
}

/* ---- The parent. ---- */

static pid_t workers[MAX_WORKERS], scanners[SCANNERS];
static unsigned int generations[MAX_WORKERS];
static bool killed[MAX_WORKERS];

static void spawn_worker(int nr)
{
	pid_t pid;

	fflush(stdout);
	fflush(stderr);
	pid = fork();
	if (!pid)
		worker(nr, generations[nr]);
	if (pid < 0) {
		perror("hammer: fork");
		board->failed = 1;
		return;
	}
	workers[nr] = pid;
	killed[nr] = false;
	generations[nr]++;
}

static void set_kthread(int dev, struct thread *t)
{
	struct ksm_kthread_info k = { 0 };
	struct ksm_pace pace = { .size = sizeof(pace) };

	k.pages_to_scan = 1 + rnd(t, 4096);
	k.max_pages_to_merge = rnd(t, 3) ? 0 : 1 + rnd(t, 100);
	/* Mostly at full speed, at times lazily, now and then not at all. */
	k.sleep = rnd(t, 4) ? 0 : rnd(t, 20000);
	k.flags = rnd(t, 10) ? ksm_control_flags_run : 0;
	if (ioctl(dev, KSM_START_STOP_KTHREAD, &k)) {
		perror("hammer: KSM_START_STOP_KTHREAD");
		board->failed = 1;
	}
	/* Threads come and go at work; mostly without a budget, so that they work hard. */
	pace.threads = 1 + rnd(t, 4);
	pace.cpu_percent = rnd(t, 4) ? 0 : 1 + rnd(t, 100 * pace.threads);
	if (ioctl(dev, KSM_SET_PACE, &pace)) {
		perror("hammer: KSM_SET_PACE");
		board->failed = 1;
	}
}

/* What an administrator might do meanwhile. */
static void disturb(int dev, struct thread *t, int n_workers)
{
	char text[32];
	int nr;

	switch (rnd(t, 8)) {
	case 0:
		write_text("/proc/sys/vm/compact_memory", "1");
		break;
	case 1:
		write_text("/proc/sys/vm/drop_caches", rnd(t, 2) ? "2" : "3");
		break;
	case 2:
		snprintf(text, sizeof(text), "%u", rnd(t, 4) ? 100000 : rnd(t, 64));
		write_text(PARAM "max_kernel_pages", text);
		break;
	case 3:
	case 4:
		set_kthread(dev, t);
		break;
	case 5:
		nr = rnd(t, n_workers);
		if (workers[nr] > 0) {
			killed[nr] = true;
			kill(workers[nr], SIGKILL);
		}
		break;
	default:
		nr = rnd(t, SCANNERS);
		if (scanners[nr] > 0)
			kill(scanners[nr], SIGUSR1);
	}
}

static void reap_all(int n_workers, bool respawn)
{
	int status, nr;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (nr = 0; nr < SCANNERS; nr++) {
			if (scanners[nr] != pid)
				continue;
			scanners[nr] = 0;
			if (status) {
				fprintf(stderr, "hammer: scanner ended with status %#x\n", status);
				board->failed = 1;
			}
		}
		for (nr = 0; nr < n_workers; nr++) {
			if (workers[nr] != pid)
				continue;
			workers[nr] = 0;
			if (status && !(killed[nr] && WIFSIGNALED(status) &&
					WTERMSIG(status) == SIGKILL)) {
				fprintf(stderr, "hammer: worker %d ended with status %#x\n",
					nr, status);
				board->failed = 1;
			}
			if (respawn && !board->failed)
				spawn_worker(nr);
		}
	}
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

struct totals {
	uint64_t ops, verified, unmerges, forks, pins;
};

static void add_up(struct totals *sum, int n_workers)
{
	int nr, i;

	memset(sum, 0, sizeof(*sum));
	for (nr = 0; nr < n_workers; nr++) {
		for (i = 0; i < THREADS; i++) {
			sum->ops += board->thread[nr][i].ops;
			sum->verified += board->thread[nr][i].verified;
			sum->unmerges += board->thread[nr][i].unmerges;
			sum->forks += board->thread[nr][i].forks;
			sum->pins += board->thread[nr][i].pins;
		}
	}
}

/* Where a process hangs in the kernel, for the log. */
static void print_stack(pid_t pid)
{
	char path[64], buf[4096];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stack", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (n > 0)
		fprintf(stderr, "hammer: process %d is at\n%.*s", pid, (int)n, buf);
}

/*
 * Compressed swap in memory, so that MADV_PAGEOUT has somewhere to go: pages are
 * swapped out and in while they are looked at, merged and written.
 */
static int swap_on(int mib)
{
	char command[256];

	snprintf(command, sizeof(command),
		 "modprobe zram num_devices=1 && echo %dM > /sys/block/zram0/disksize && "
		 "mkswap /dev/zram0 > /dev/null && swapon /dev/zram0", mib);
	if (!system(command))
		return 0;
	fprintf(stderr, "hammer: no swap on zram; leave out -z, or add the zram module\n");
	return -1;
}

static int swap_off(void)
{
	if (!system("swapoff /dev/zram0 && echo 1 > /sys/block/zram0/reset"))
		return 0;
	fprintf(stderr, "hammer: cannot swap in again what is on zram; see the kernel log\n");
	return -1;
}

/* Pages swapped out since boot. */
static unsigned long pages_swapped_out(void)
{
	unsigned long n = 0;
	char line[128];
	FILE *f = fopen("/proc/vmstat", "re");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "pswpout %lu", &n) == 1)
			break;
	if (f)
		fclose(f);
	return n;
}

/* All counters of what is merged must be back at zero, and the pages freed. */
static int check_counters(int scan)
{
	static const char *const names[] = {
		"areas", "regions", "pages_registered", "pages_shared", "pages_sharing",
		"zero_pages", "pages_unshared", "pages_volatile", "kernel_pages",
	};
	struct ksm_user_scan s = { .pages_to_scan = 1024 };
	double end = now() + 20;
	unsigned int i, bad;

	do {
		/* The last reference to a page may go with a work item. */
		if (ioctl(scan, KSM_SCAN, &s) && errno != EINTR)
			perror("hammer: KSM_SCAN");
		write_text("/proc/sys/vm/drop_caches", "2");
		bad = 0;
		for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
			bad += read_number(SYSFS, names[i]) != 0;
		if (bad)
			usleep(100000);
	} while (bad && now() < end);
	if (!bad)
		return 0;
	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (read_number(SYSFS, names[i]))
			fprintf(stderr, "hammer: %s is %ld after all have left, must be 0\n",
				names[i], read_number(SYSFS, names[i]));
	return -1;
}

static void usage(FILE *to)
{
	fprintf(to,
		"usage: hammer [-t SECONDS] [-s SEED] [-p PROCESSES] [-z MIB] [-k]\n"
		"  -t  how long to run (60)\n"
		"  -s  seed of the random operations (drawn from the clock)\n"
		"  -p  number of processes, of %d threads each (3)\n"
		"  -z  swap to so many MiB of zram meanwhile\n"
		"  -k  run the kernel's own ksmd over the same memory as well\n", THREADS);
}

int main(int argc, char **argv)
{
	static struct thread admin;
	struct ksm_kthread_info k = { .pages_to_scan = 2000, .flags = ksm_control_flags_run };
	struct ksm_user_scan probe = { .pages_to_scan = 1 };
	int opt, dev, scan, i, n_workers = 3, seconds = 60, ksmd = 0, zram = 0;
	double start, next_line, last_progress;
	uint64_t last_ops = 0, max_shared = 0, max_zero = 0;
	struct totals sum;
	unsigned long swapped;
	char text[32];
	long max_kernel_pages;

	/* Where a forked child ends that was told to exec. */
	if (argc == 2 && !strcmp(argv[1], "--exit"))
		return 0;
	seed = time(NULL) ^ ((long)getpid() << 20);
	while ((opt = getopt(argc, argv, "t:s:p:z:kh")) != -1) {
		switch (opt) {
		case 't':
			seconds = atoi(optarg);
			break;
		case 's':
			seed = strtol(optarg, NULL, 0);
			break;
		case 'p':
			n_workers = atoi(optarg);
			break;
		case 'z':
			zram = atoi(optarg);
			break;
		case 'k':
			ksmd = 1;
			break;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	}
	if (seconds < 1 || zram < 0 || n_workers < 1 || n_workers > MAX_WORKERS) {
		usage(stderr);
		return 2;
	}
	if (sysconf(_SC_PAGESIZE) != page_size) {
		fprintf(stderr, "hammer: this program knows pages of 4096 bytes only\n");
		return 2;
	}
	printf("hammer: seed %ld, %d processes of %d threads, %d s\n", seed,
	       n_workers, THREADS, seconds);
	fflush(stdout);

	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	dev = open("/dev/ksm", O_RDWR | O_CLOEXEC);
	if (board == MAP_FAILED || dev < 0) {
		perror("hammer: /dev/ksm (is the module loaded?)");
		return 1;
	}
	scan = ioctl(dev, KSM_CREATE_SCAN);
	if (scan < 0 || ioctl(scan, KSM_SCAN, &probe) ||
	    ioctl(dev, KSM_START_STOP_KTHREAD, &k)) {
		perror("hammer: cannot scan or start kksmd");
		return 1;
	}
	max_kernel_pages = read_number(PARAM, "max_kernel_pages");
	if (zram && swap_on(zram))
		return 1;
	swapped = pages_swapped_out();
	if (ksmd) {
		write_text("/sys/kernel/mm/ksm/pages_to_scan", "1000");
		write_text("/sys/kernel/mm/ksm/run", "1");
	}

	/* Children of killed workers come to us, so that none is left behind. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	admin.rng = mix(seed + 1);
	for (i = 0; i < SCANNERS; i++) {
		scanners[i] = fork();
		if (!scanners[i])
			scanner();
	}
	for (i = 0; i < n_workers; i++)
		spawn_worker(i);

	start = last_progress = now();
	next_line = start + 5;
	while (now() < start + seconds && !board->failed) {
		uint64_t n;

		usleep(50000);
		reap_all(n_workers, true);
		if (!rnd(&admin, 6))
			disturb(dev, &admin, n_workers);
		n = read_number(SYSFS, "pages_sharing") + read_number(SYSFS, "pages_shared");
		if (n > max_shared)
			max_shared = n;
		n = read_number(SYSFS, "zero_pages");
		if (n > max_zero)
			max_zero = n;
		add_up(&sum, n_workers);
		if (sum.ops != last_ops) {
			last_ops = sum.ops;
			last_progress = now();
		} else if (now() > last_progress + 30) {
			fprintf(stderr, "hammer: nothing has moved for 30 s\n");
			for (i = 0; i < n_workers; i++)
				print_stack(workers[i]);
			for (i = 0; i < SCANNERS; i++)
				print_stack(scanners[i]);
			board->failed = 1;
		}
		if (now() < next_line)
			continue;
		next_line += 5;
		printf("hammer: %3.0f s: %llu ops, %llu pages verified, %llu forks, %llu pins, %llu unmerges; %ld shared, %ld sharing, %ld zero, %ld passes\n",
		       now() - start, (unsigned long long)sum.ops,
		       (unsigned long long)sum.verified,
		       (unsigned long long)sum.forks,
		       (unsigned long long)sum.pins,
		       (unsigned long long)sum.unmerges,
		       read_number(SYSFS, "pages_shared"),
		       read_number(SYSFS, "pages_sharing"),
		       read_number(SYSFS, "zero_pages"),
		       read_number(SYSFS, "full_scans"));
		fflush(stdout);
	}

	/* Ask first; whoever does not come within a minute is stuck. */
	board->stop = 1;
	last_progress = now();
	for (;;) {
		int left = 0;

		reap_all(n_workers, false);
		for (i = 0; i < n_workers; i++)
			left += workers[i] > 0;
		for (i = 0; i < SCANNERS; i++)
			left += scanners[i] > 0;
		if (!left)
			break;
		if (now() > last_progress + (board->failed ? 3 : 60)) {
			for (i = 0; i < n_workers; i++) {
				if (workers[i] <= 0)
					continue;
				if (!board->failed)
					print_stack(workers[i]);
				kill(workers[i], SIGKILL);
			}
			for (i = 0; i < SCANNERS; i++) {
				if (scanners[i] <= 0)
					continue;
				if (!board->failed)
					print_stack(scanners[i]);
				kill(scanners[i], SIGKILL);
			}
			if (!board->failed)
				fprintf(stderr, "hammer: processes did not end within 60 s\n");
			board->failed = 1;
			break;
		}
		usleep(20000);
	}
	/* And the children of those that were killed. */
	while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
		;

	k.flags = 0;
	if (ioctl(dev, KSM_START_STOP_KTHREAD, &k)) {
		perror("hammer: stop");
		board->failed = 1;
	}
	if (ksmd) {
		write_text("/sys/kernel/mm/ksm/run", "2");
		write_text("/sys/kernel/mm/ksm/run", "0");
	}
	snprintf(text, sizeof(text), "%ld", max_kernel_pages);
	write_text(PARAM "max_kernel_pages", text);
	if (!board->failed && check_counters(scan))
		board->failed = 1;
	if (zram) {
		swapped = pages_swapped_out() - swapped;
		printf("hammer: %lu pages were swapped out\n", swapped);
		if (swap_off() || (!board->failed && !swapped))
			board->failed = 1;
	}
	close(scan);
	close(dev);

	add_up(&sum, n_workers);
	printf("hammer: %llu ops, %llu pages verified, %llu scans (%llu interrupted), at most %llu pages shared and %llu zero pages at once\n",
	       (unsigned long long)sum.ops, (unsigned long long)sum.verified,
	       (unsigned long long)board->scans,
	       (unsigned long long)board->scan_eintr,
	       (unsigned long long)max_shared, (unsigned long long)max_zero);
	/* A hammer that never hit a merged page has shown nothing. */
	if (!board->failed && (max_shared < 2 || !max_zero || !sum.verified)) {
		fprintf(stderr, "hammer: too little was merged for this to be a test\n");
		board->failed = 1;
	}
	printf("hammer: %s, seed %ld\n", board->failed ? "FAILED" : "passed", seed);
	return board->failed ? 1 : 0;
}
