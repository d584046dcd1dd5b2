/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * scanner.h - ksmd and /dev/ksm behind one interface, for bench.c
 */
#ifndef BENCH_SCANNER_H
#define BENCH_SCANNER_H

#include <stdbool.h>
#include <stddef.h>

/* What cannot be known here: the kernel or the module does not say. */
#define UNKNOWN (-1.0)

#define MAX_COUNTERS 8

/**
 * struct scanner - one who merges pages
 * @name: in the results
 * @thread: its threads are called so, or so with a slash and a number
 * @attach: in a worker: let it have a range (address, pages); 0, or dies
 * @detach: in a worker: take it back; the memory is gone; 0, or dies
 * @prepare: settings, before the workers attach; @zero if there are zero pages to find
 * @finish: after all have detached: forget everything
 * @start: run at full speed
 * @stop: returns when it does not run any more
 * @saved: pages saved as it says itself, now: may wait for that to be counted
 * @count: returns when its counters, and what is in @dir, are of now
 * @full_scans: passes over all memory so far
 * @metadata: bytes that it needs for what it knows
 * @dir: where its counters are
 * @counters: names of those to tell
 */
struct scanner {
	const char *name;
	const char *thread;
	long (*attach)(long addr, long npages, long unused, long unused2);
	long (*detach)(long addr, long npages, long unused, long unused2);
	void (*prepare)(bool zero);
	void (*finish)(void);
	void (*start)(void);
	void (*stop)(void);
	double (*saved)(void);
	void (*count)(void);
	double (*full_scans)(void);
	double (*metadata)(void);
	const char *dir;
	const char *counters[MAX_COUNTERS];
};

extern const struct scanner ksmd, ksmdev;

/* For KSM_SCAN by two at once; opened by scanners_open(). */
extern int scan_fd[2];

/*
 * On one CPU, where the scheduler's clock counts in ticks (User-Mode Linux), the
 * time that a thread got is too coarse. There the time that this whole system
 * got of its host is taken, if ask_host() says where to ask, or else the time that
 * passes: nobody else runs while the scanner does.
 */
extern bool clock_is_coarse;
void ask_host(const char *tty);

void scanners_open(void);

double now(void);
/* CPU time of the scanner's threads, in seconds; compare with an earlier value. */
double scanner_cpu(const struct scanner *scanner);
/* The same of all kworkers, whoever they work for; 0 where scanner_cpu() is that of all. */
double workers_cpu(void);
/* CPU time of the caller. */
double own_cpu(void);
#define ANY_CPU (-1)
void pin_to_cpu(int pid, int cpu);
int cpus(void);

/* A file with a number in it; UNKNOWN if there is none. */
double read_number(const char *path);
double ksmdev_stat(const char *name);
/* A setting; dies if it is refused. */
void ksmdev_set(const char *name, const char *value);
/* As they are now; may wait for them to be counted. */
void read_counters(const struct scanner *scanner, double values[MAX_COUNTERS]);
/* Forget the longest hold so far. */
void ksmdev_reset_hold(void);

#endif /* BENCH_SCANNER_H */
