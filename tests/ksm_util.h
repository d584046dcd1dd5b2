/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_util.h - what the test programs share
 *
 * The oracle of these tests is what the kernel says about page frames (pagemap,
 * kpageflags, kpagecount, MemFree); the driver's own counters are compared with
 * that. Everything here is for root inside the test VM.
 *
 * Whatever the environment owes to a test (the device, /proc files, memory for
 * the test itself) is not reported but fatal: ksm_die() says what is missing and
 * exits, which the harness counts as a failure. A test can never be skipped
 * because /dev/ksm is absent.
 */
#ifndef KSM_UTIL_H
#define KSM_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "ksm.h"

/* A constant for each build, as most tests have arrays of pages: tests/Makefile, PAGE_SIZE=. */
#ifndef PGSZ
#define PGSZ			4096UL
#endif
#define KSM_SHARE_LIMIT		256	/* ptes that may map one shared page */
#define KSM_HUGE_PAGES		((int)(PGSZ / 8)) /* pages of a huge page, and of a chunk */
#define KSM_HUGE_SIZE		(KSM_HUGE_PAGES * PGSZ)

/* Bits of /proc/PID/pagemap and /proc/kpageflags. */
#define PM_PFN_MASK		((1ULL << 55) - 1)
#define PM_SOFT_DIRTY		(1ULL << 55)
#define PM_EXCLUSIVE		(1ULL << 56)
#define PM_UFFD_WP		(1ULL << 57)
#define PM_SWAPPED		(1ULL << 62)
#define PM_PRESENT		(1ULL << 63)
#define KPF_BIT_LRU		5
#define KPF_BIT_ANON		12
#define KPF_BIT_SWAPCACHE	13
#define KPF_BIT_HUGE		17
#define KPF_BIT_KSM		21
#define KPF_BIT_THP		22
#define KPF_BIT_ZERO_PAGE	24
#define KPF_BIT_MLOCKED		33

/* From the kernel's sched.h: the thread is not frozen for suspend. */
#define PF_NOFREEZE		0x00008000

/*
 * Seconds until what must happen is given up: a bound against hanging and nothing else, so it
 * is longer than anything takes on a machine that is emulated, and busy with other things.
 */
#define KSM_PATIENCE		60

#define DIV_UP(n, d)		(((n) + (d) - 1) / (d))

void ksm_die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

/* Become an ordinary user, for ever. Returns 0 or -errno. */
int ksm_become(uid_t uid);

/* ---- the device ---- */

/**
 * struct ksm - the device and a scan fd
 * @dev: /dev/ksm
 * @scan: from KSM_CREATE_SCAN
 */
struct ksm {
	int dev;
	int scan;
};

/*
 * Open the device, stop kksmd, give it one thread and the fixed pace, and make sure
 * that no other program has memory registered or merged: the tests count everything.
 * Dies if any of it fails.
 */
void ksm_begin(struct ksm *k);
void ksm_finish(struct ksm *k);

int ksm_open(void);
/* A new area fd; dies if there is none. */
int ksm_area(const struct ksm *k);
/* 0 or -errno. */
int ksm_register(int area, const void *addr, size_t npages);
int ksm_remove(int area);
int ksm_unmerge(int area);
/* 0 or -errno; goes on after EINTR. */
int ksm_scan(int scan_fd, uint64_t pages);
/* 0 or -errno. */
int ksm_start(int dev, uint32_t pages, uint32_t max_merge, uint32_t sleep_us);
int ksm_stop(int dev);
int ksm_set_pace(int dev, uint32_t cpu_percent, uint32_t threads);
/* 0 or -errno; @merged may be NULL. */
int ksm_merge_range(int area, const void *addr, uint64_t npages, uint64_t *merged);

/* Let the scan fd visit everything that is registered @passes times. */
void ksm_passes(const struct ksm *k, unsigned int passes);
/* As many passes as the driver promises to need for full sharing. */
void ksm_merge_all(const struct ksm *k);
/* The same for pages that could not be merged for a while: tried now and then. */
void ksm_merge_held(const struct ksm *k);
/* Wait until no region is left, scanning meanwhile; false after KSM_PATIENCE. */
bool ksm_wait_no_regions(const struct ksm *k);

/* The value of /sys/class/misc/ksm/NAME. */
long long ksm_stat(const char *name);
/* What the file says, which may have been counted a while ago. */
long long ksm_stat_told(const char *name);
/*
 * Wait until it is @value, for what happens in the background (shared pages that
 * nobody maps any more are freed a moment later); false after KSM_PATIENCE.
 */
bool ksm_wait_stat(const char *name, long long value);
/* Wait until the counter has grown by @more; false after @seconds. */
bool ksm_wait_more(const char *name, long long more, double seconds);
/* Wait until it is @value or more; false after KSM_PATIENCE. */
bool ksm_wait_least(const char *name, long long value);
/* Wait until it does not change for half a second; false after KSM_PATIENCE. */
bool ksm_wait_quiet(const char *name);
/* Seconds of a clock that is never set. */
double ksm_now(void);
/* Seconds of CPU time of this thread: waits, for locks to rest say, do not count. */
double ksm_cpu_now(void);
/* The value of "NAME:" in /proc/PID/fdinfo/FD of this process. */
long long ksm_fdinfo(int fd, const char *name);

/* ---- the threads ---- */

/**
 * struct ksm_thread - what /proc/PID/stat says of a kernel thread
 * @pid: its process id
 * @state: R, S, I, ...
 * @flags: PF_*
 * @nice: its nice value
 * @cpu: CPU time that it has used, in seconds
 */
struct ksm_thread {
	pid_t pid;
	char state;
	unsigned long flags;
	long nice;
	double cpu;
};

/* The only kernel thread of this name; false if there is none, or more than one. */
bool ksm_find_thread(const char *name, struct ksm_thread *t);
/* kksmd, kksmd/1, ...: how many kernel threads have such a name. */
unsigned int ksm_count_threads(void);
/* CPU time of all of them together, in seconds. */
double ksm_threads_cpu(void);

/* ---- memory ---- */

/* Private anonymous memory, not populated, never huge, with holes around it. */
void *ksm_mmap(size_t npages);
/* @n huge pages in a row, one byte of each written; dies if the kernel has none to give. */
char *ksm_mmap_huge(size_t n);
/* Page @index of the pattern @seed; never all zero. */
void ksm_fill_page(void *page, uint64_t seed, uint64_t index);
bool ksm_page_is(const void *page, uint64_t seed, uint64_t index);
bool ksm_page_is_zero(const void *page);
/* Pages with index 0, 1, 2, ..., and how many of them are wrong. */
void ksm_fill(void *addr, size_t npages, uint64_t seed);
size_t ksm_wrong(const void *addr, size_t npages, uint64_t seed);
/* The same for pages that are all equal. */
void ksm_fill_same(void *addr, size_t npages, uint64_t seed);
size_t ksm_wrong_same(const void *addr, size_t npages, uint64_t seed);
size_t ksm_wrong_zero(const void *addr, size_t npages);

static inline char *ksm_page(const void *addr, size_t index)
{
	return (char *)addr + index * PGSZ;
}

/* ---- swap ---- */

/**
 * struct ksm_loop - a block device whose contents are in memory that stays there
 * @fd: the device, for reading, or -1
 * @ctl: /dev/loop-control
 * @dir: where the file behind it is
 * @path: of the device
 */
struct ksm_loop {
	int fd;
	int ctl;
	char dir[48];
	char path[64];
};

/* Both die if it cannot be done. */
void ksm_loop_open(struct ksm_loop *loop, size_t npages);
void ksm_loop_close(struct ksm_loop *loop);

/**
 * struct ksm_swap - a swap device
 * @loop: if it is one
 * @zram: number of the zram device otherwise
 * @path: of the device
 */
struct ksm_swap {
	struct ksm_loop loop;
	int zram;
	char path[64];
};

/*
 * Swap to a loop device, or to zram. Both die if it cannot be done; to switch it off
 * brings back all that is swapped out, which must not fail or lose data.
 */
void ksm_swap_on(struct ksm_swap *swap, bool loop, size_t npages);
void ksm_swap_off(struct ksm_swap *swap);
/* How many pages of the range are swapped out. */
size_t ksm_swapped(const void *addr, size_t npages);
/* Swap the range out; how many pages are out in the end. */
size_t ksm_page_out(void *addr, size_t npages);

/* ---- page frames; pid 0 is the caller ---- */

uint64_t ksm_pagemap(pid_t pid, const void *addr);
/* Does this kernel keep soft-dirty bits? */
bool ksm_has_soft_dirty(void);
/*
 * Let the CPUs put what they hold in batches onto the kernel's lists. move_pages() has them do
 * it before it looks whether a page is where it shall go, and one of ours is: nothing moves.
 * (Compacting memory begins with it, too, and then fills the batches with pages that it moved.)
 */
void ksm_drain_batches(void);
/* The frame at @addr, or 0 if none is mapped there. */
uint64_t ksm_pfn(pid_t pid, const void *addr);
void ksm_pfns(pid_t pid, const void *addr, size_t npages, uint64_t *pfns);
/* How many pages of the two ranges are mapped and are the same frame. */
size_t ksm_same_frames(pid_t pid_a, const void *a, pid_t pid_b, const void *b,
		       size_t npages);
/* How many pages of the range are mapped to a frame other than pfns[i]. */
size_t ksm_moved(pid_t pid, const void *addr, size_t npages, const uint64_t *pfns);
/* How many different frames the range maps. */
size_t ksm_distinct(pid_t pid, const void *addr, size_t npages);
uint64_t ksm_kpageflags(uint64_t pfn);
bool ksm_pfn_is(uint64_t pfn, int kpf_bit);
uint64_t ksm_kpagecount(uint64_t pfn);
/* The frame of the kernel's zero page. */
uint64_t ksm_zero_pfn(void);

/* ---- /proc ---- */

/* A value of /proc/meminfo in pages, per-CPU counts folded in. */
long ksm_meminfo(const char *name);
/* Free pages, those in the per-CPU free lists too. */
long ksm_memfree(void);
/* Wait until so many are free: memory comes back with RCU's help; false if not soon. */
bool ksm_wait_memfree(long pages);
/* A value of /proc/PID/status, or of smaps_rollup if it is not there, in pages. */
long ksm_status(pid_t pid, const char *name);
/* A value of the VMA that holds @addr, from /proc/self/smaps, in pages. */
long ksm_smaps(const void *addr, const char *name);
long ksm_minflt(void);
/* 0 or -errno. */
int ksm_write_file(const char *path, const char *text);
/* What a file begins with; dies if that is no number. */
long long ksm_read_number(const char *path);
/* Keep to one CPU; dies if there is no such. */
void ksm_use_cpu(int cpu);
/* Can a byte be read, by a call that fails where a program would get a signal? */
bool ksm_can_read(const void *addr);
/* Run a shell command; dies with the command in the message if it fails. */
void ksm_shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---- virtual machines ---- */

/* Does the processor offer virtualization, inside this VM? */
bool ksm_has_virtualization(void);
/* A userfaultfd with UFFD_FEATUREs, non-blocking, and memory for it to watch. They die if refused. */
int ksm_uffd_open(uint64_t features);
void ksm_uffd_register(int fd, void *addr, size_t npages, uint64_t mode);
/* Write-protect what is there; dies if refused. */
void ksm_uffd_protect(int fd, void *addr, size_t npages);

/* Load the module and open /dev/kvm; dies if it cannot. */
int ksm_open_kvm(void);

/* ---- other processes ---- */

/**
 * struct ksm_child - a process that runs functions of this program on demand
 * @pid: its process id
 * @calls: our end of the socket by which it is told what to do
 * @answers: our end of the pipe by which it says what came of it
 *
 * It is a fork of the caller, so what the caller mapped before is at the same
 * address in it, and functions have the same addresses too. It dies with the
 * process that made it.
 */
struct ksm_child {
	pid_t pid;
	int calls;
	int answers;
};

typedef long (*ksm_fn)(long a, long b, long c, long d);

void ksm_spawn(struct ksm_child *c);
/* Run fn(a, b, c, d) in the child and return what it returned. */
long ksm_call4(struct ksm_child *c, ksm_fn fn, long a, long b, long d, long e);
#define KSM_ARG(x)		((long)(x))
#define ksm_call(c, fn, a, b, d) \
	ksm_call4(c, fn, KSM_ARG(a), KSM_ARG(b), KSM_ARG(d), 0)
/* The two halves of ksm_call(), for a child that works while we do. */
void ksm_call_start(struct ksm_child *c, ksm_fn fn, long a, long b, long d, long e);
long ksm_call_finish(struct ksm_child *c);
/* Let the child exit, or kill it; both wait for it. Return the wait status. */
int ksm_end(struct ksm_child *c);
int ksm_kill(struct ksm_child *c);

/* Functions for ksm_call(): (addr, npages, seed) or (area, addr, npages). */
long ksm_fn_fill(long addr, long npages, long seed, long unused);
long ksm_fn_fill_same(long addr, long npages, long seed, long unused);
long ksm_fn_wrong(long addr, long npages, long seed, long unused);
long ksm_fn_wrong_same(long addr, long npages, long seed, long unused);
long ksm_fn_zero(long addr, long npages, long unused, long unused2);
long ksm_fn_wrong_zero(long addr, long npages, long unused, long unused2);
long ksm_fn_register(long area, long addr, long npages, long unused);
/* (dev, addr, npages): makes an area of its own; returns its fd. */
long ksm_fn_area_register(long dev, long addr, long npages, long unused);
/* How many pages were merged, or -errno. */
long ksm_fn_merge_range(long area, long addr, long npages, long unused);
long ksm_fn_unmerge(long area, long unused, long unused2, long unused3);
long ksm_fn_close(long fd, long unused, long unused2, long unused3);
long ksm_fn_scan(long scan, long npages, long unused, long unused2);
long ksm_fn_become(long uid, long unused, long unused2, long unused3);

#endif /* KSM_UTIL_H */
