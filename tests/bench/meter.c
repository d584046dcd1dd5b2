// SPDX-License-Identifier: GPL-2.0-only
/*
 * meter.c - how long passes take and what they come to, for bench.c
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../ksm_util.h"
#include "bench.h"
#include "meter.h"
#include "saved.h"
#include "workload.h"

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

struct point scan(unsigned long pages)
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

bool converge(const struct scanner *scanner, double goal, struct point *at)
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

void let_pass(const struct scanner *scanner, unsigned int n)
{
	double from = scanner->full_scans(), passes = from;

	while (passes < from + n)
		passes = next_pass(scanner, passes);
}

double idle(const struct scanner *scanner)
{
	double from = next_pass(scanner, scanner->full_scans()), passes = from;
	double start = now(), cpu = scanner_cpu(scanner), workers = workers_cpu();

	do {
		passes = next_pass(scanner, passes);
	} while (now() - start < 1 || passes < from + 3);
	cpu = scanner_cpu(scanner) - cpu;
	return (cpu + workers_cpu() - workers) / (passes - from);
}

struct point some_passes(const struct scanner *scanner, unsigned int n)
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

double tlb_interrupts(void)
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

double free_pages(void)
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
