/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * hammer.h - what the files of the hammer share
 *
 * main.c starts everything and watches it, worker.c is what a worker process and its
 * threads do, and each kind of operation that a thread draws has a file of its own. All
 * of them keep to the account of what each page must hold: shadow.c.
 */
#ifndef HAMMER_H
#define HAMMER_H

#include <linux/io_uring.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "ksm.h"

#define SYSFS		"/sys/class/misc/ksm/"
#define PARAM		"/sys/module/ksmdev/parameters/"
/* A constant for each build: tests/Makefile, PAGE_SIZE=. */
#ifdef PGSZ
#define PAGE_BYTES	PGSZ
#else
#define PAGE_BYTES	4096UL
#endif
#define WORDS		(PAGE_BYTES / 8)
#define WINDOWS		2	/* of each thread, each one page table long */
#define WINDOW_PAGES	((int)(PAGE_BYTES / 8))
#define THREAD_PAGES	(WINDOWS * WINDOW_PAGES)
#define THREADS		2
#define MAX_WORKERS	32
#define SCANNERS	2
#define MAX_KIDS	2	/* forked children alive at once, each thread */
#define HISTORY		24
#define PIN_PAGES	8
#define SHARED_FILLS	12	/* fills that every worker draws from */

/*
 * Where the threads' memory is: far below where the kernel puts mappings that name no
 * place. In the holes that op_munmap() makes nothing else may settle. Each thread's is
 * alone in its gigabyte, so that the tables above its page tables come and go, too; and
 * so is the place where op_move_tables() takes some for a while.
 */
#define MEM_BASE	0x100000000000UL
#define MEM_AWAY	0x200000000000UL
#define MEM_STEP	0x40000000UL

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

/**
 * struct account - one thread's account, in memory that all processes of the hammer share
 * @ops: operations
 * @verified: pages that were compared with their shadow
 * @unmerges: KSM_UNMERGE
 * @forks: children
 * @splices: times that pages were held by vmsplice()
 * @pins: times that pages were pinned by io_uring
 * @moves: page tables that went away and came back
 * @merged: pages that KSM_MERGE_RANGE says it merged
 * @told: times that fdinfo was read
 */
struct account {
	_Atomic uint64_t ops;
	_Atomic uint64_t verified;
	_Atomic uint64_t unmerges;
	_Atomic uint64_t forks;
	_Atomic uint64_t splices;
	_Atomic uint64_t pins;
	_Atomic uint64_t moves;
	_Atomic uint64_t merged;
	_Atomic uint64_t told;
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

extern struct board *board;
extern long seed;
extern __thread struct thread *current_thread;

/* ---- shadow.c: what each page must hold ---- */

uint64_t mix(uint64_t x);
uint64_t rnd64(struct thread *t);
unsigned int rnd(struct thread *t, unsigned int below);
uint64_t fill_word(uint32_t fill, unsigned int i);
uint64_t want_word(const struct shadow *s, unsigned int i);
char *page_addr(struct thread *t, unsigned int page);
bool readable(const struct shadow *s);
bool writable(const struct shadow *s);
bool all_mapped(struct thread *t, unsigned int page, unsigned int n);
bool all_writable(struct thread *t, unsigned int page, unsigned int n);
/* Does a pin hold any of them? Then they are left alone until it is over. */
bool is_held(struct thread *t, unsigned int page, unsigned int n);
/* The account after pages were mapped anew, unmapped, or emptied. */
void set_mapped(struct thread *t, unsigned int page, unsigned int n);
void set_unmapped(struct thread *t, unsigned int page, unsigned int n);
void set_zero(struct thread *t, unsigned int page, unsigned int n);
/* Compare with the account, and end everything if a word is wrong. */
void verify_page(struct thread *t, unsigned int page);
void verify_all(struct thread *t);
/* Other contents, other places. */
uint16_t draw_pos(struct thread *t);
uint64_t draw_delta(struct thread *t);
void draw_page(struct thread *t, struct shadow *s);
void make_page(uint64_t *to, const struct shadow *s);
void draw_range(struct thread *t, unsigned int *page, unsigned int *n, unsigned int max);

/* ---- fail.c: say all that is known, then stop everything ---- */

/* Remember what is being done. */
void note(struct thread *t, const char *what, unsigned int page, unsigned int n);
_Noreturn void die(struct thread *t, int status);
_Noreturn void mismatch(struct thread *t, unsigned int page, unsigned int word);
_Noreturn void bad_call(struct thread *t, const char *what);
/* Make SIGSEGV and SIGBUS a failure. */
void catch_faults(void);

/* ---- the operations; each on @n pages from @page on ---- */

#define HAMMER_OP(name) void name(struct thread *t, unsigned int page, unsigned int n)

/* write.c */
HAMMER_OP(op_write);
HAMMER_OP(op_write_word);
HAMMER_OP(op_count);
HAMMER_OP(op_write_remote);
HAMMER_OP(op_read_into);
HAMMER_OP(op_verify);
HAMMER_OP(op_verify_all);

/* space.c */
HAMMER_OP(op_munmap);
HAMMER_OP(op_mmap);
HAMMER_OP(op_mremap);
HAMMER_OP(op_mprotect);
HAMMER_OP(op_dontneed);
HAMMER_OP(op_free);
HAMMER_OP(op_advise);
HAMMER_OP(op_mlock);
HAMMER_OP(op_clear_refs);

/* tables.c */
HAMMER_OP(op_munmap_tables);
HAMMER_OP(op_discard_tables);
HAMMER_OP(op_move_tables);

/* pins.c */
void ring_open(struct ring *r);
HAMMER_OP(op_pin_start);
void op_pin_end(struct thread *t);

/* driver.c */
void open_area(struct thread *t);
void register_all(struct thread *t);
HAMMER_OP(op_register);
HAMMER_OP(op_unregister);
HAMMER_OP(op_unmerge);
HAMMER_OP(op_scan);
HAMMER_OP(op_merge_range);
HAMMER_OP(op_fdinfo);
/* A process that does nothing but KSM_SCAN. */
_Noreturn void scanner(void);

/* fork.c */
void reap(struct thread *t, int slot);
HAMMER_OP(op_fork);

/* ---- worker.c ---- */

HAMMER_OP(op_pause);
/* Draw and run so many operations. */
void run_ops(struct thread *t, uint64_t ops);
_Noreturn void worker(int nr, unsigned int generation);

/* ---- admin.c: the machine around them ---- */

double now(void);
long read_number(const char *dir, const char *name);
int write_text(const char *path, const char *text);
/* Where a process hangs in the kernel, for the log. */
void print_stack(pid_t pid);
/* Draw other settings of kksmd. */
void set_kthread(int dev, struct thread *t);
/* To zram, so many MiB; swap_off() returns how many pages went out, or -1. */
int swap_on(int mib);
long swap_off(void);
/* All counters of what is merged must be back at zero, and the pages freed. */
int check_counters(int scan);

#endif /* HAMMER_H */
