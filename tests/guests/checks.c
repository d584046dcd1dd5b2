// SPDX-License-Identifier: GPL-2.0-only
/*
 * checks.c - what can be checked of guests, and how it is told; see checks.h
 *
 * That pages are shared is not taken from the driver: the frames that two QEMUs have for the
 * same contents must be the same. What guests hold they check themselves (guest.c).
 */
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checks.h"

static int checks, failures, guests;

void check(bool right, const char *fmt, ...)
{
	va_list ap;

	printf("%sok %d - ", right ? "" : "not ", ++checks);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
	failures += !right;
}

int checks_end(void)
{
	printf("1..%d\n", checks);
	return failures != 0;
}

void start_kksmd(const struct ksm *k)
{
	if (ksm_start(k->dev, 4000, 0, 0))
		ksm_die("kksmd does not start; run this as root");
}

void fill_guests(struct guest *g, int n, int pages)
{
	for (int i = 0; i < n; i++)
		guest_tell(&g[i], "fill %d", pages);
	for (int i = 0; i < n; i++)
		guest_answer(&g[i]);
}

void start_guests(struct guest *g, int n, int mib, const struct guest_options *options)
{
	for (int i = 0; i < n; i++)
		guest_start(&g[i], ++guests, mib, options);
	for (int i = 0; i < n; i++)
		guest_ready(&g[i]);
	fill_guests(g, n, PAGES);
}

void check_log(const struct guest *g)
{
	char command[128];

	snprintf(command, sizeof(command), "grep -q 'ksmdev-guest: ready' %s", g->log);
	check(!system(command), "guest %d has a kernel log", g->id);
	snprintf(command, sizeof(command), GUEST_TROUBLE " %s", g->log);
	check(WEXITSTATUS(system(command)) == 1, "the kernel log of guest %d is clean", g->id);
}

void end_guests(struct guest *g, int n)
{
	for (int i = 0; i < n; i++) {
		guest_kill(&g[i], SIGTERM);
		check_log(&g[i]);
	}
}

void begin_work(struct guest *g, int n)
{
	for (int i = 0; i < n; i++)
		guest_ask(&g[i], "work");
}

void wait_scans(int seconds, const char *when)
{
	long long scans = ksm_stat("full_scans");
	double begin = ksm_now(), told = begin;

	while (ksm_now() - begin < seconds ||
	       (ksm_stat("full_scans") < scans + 2 && ksm_now() - begin < LIMIT_S)) {
		usleep(100000);
		if (ksm_now() - told < 30)
			continue;
		told = ksm_now();
		printf("# %s: %.0f s, %lld scans\n", when, told - begin,
		       ksm_stat("full_scans") - scans);
		fflush(stdout);
	}
	scans = ksm_stat("full_scans") - scans;
	check(scans >= 2, "%s: kksmd went through all of it %lld times", when, scans);
}

long wrong_pages(struct guest *g, int n)
{
	long bad = 0;

	for (int i = 0; i < n; i++)
		guest_tell(&g[i], "verify");
	for (int i = 0; i < n; i++)
		bad += strtol(guest_answer(&g[i]), NULL, 10);
	return bad;
}

long end_work(struct guest *g, int n, const char *when)
{
	long moves = 0;

	for (int i = 0; i < n; i++) {
		long bad, rounds;
		char *at;

		guest_tell(&g[i], "rest");
		at = (char *)guest_answer(&g[i]);
		bad = strtol(at, &at, 10);
		rounds = strtol(at, &at, 10);
		moves += strtol(at, NULL, 10);
		check(!bad && rounds, "%s: guest %d rewrote and checked, %ld rounds, %ld wrong",
		      when, g[i].id, rounds, bad);
		bad = wrong_pages(&g[i], 1);
		check(!bad, "%s: every byte of guest %d is right, %ld pages wrong",
		      when, g[i].id, bad);
	}
	return moves;
}

void sample(struct guest *g, uint64_t *frames)
{
	char *at;

	guest_tell(g, "where 0 %d", SAMPLE);
	at = (char *)guest_answer(g);
	for (int i = 0; i < SAMPLE; i++)
		frames[i] = strtoull(at, &at, 16);
	if (!frames[SAMPLE - 1])
		ksm_die("guest %d does not tell where its pages are", g->id);
}

int same(const struct guest *a, const uint64_t *in_a,
	 const struct guest *b, const uint64_t *in_b, int first)
{
	int n = 0;

	for (int i = first; i < SAMPLE; i++)
		n += ksm_same_frames(a->pid, guest_page(a, in_a[i]),
				     b->pid, guest_page(b, in_b[i]), 1);
	return n;
}

int wait_same(const struct guest *a, const uint64_t *in_a,
	      const struct guest *b, const uint64_t *in_b, int first)
{
	double begin = ksm_now();
	int n;

	while ((n = same(a, in_a, b, in_b, first)) < SAMPLE - first &&
	       ksm_now() - begin < LIMIT_S)
		usleep(100000);
	return n;
}

void check_saved(int pages)
{
	/* Of 8 pages: 4 common; one alike, which 256 may share; one empty in each. */
	long long least = pages / 8 * (4 + 2 + 2) - 2 * pages / 8 / KSM_SHARE_LIMIT - 2, saved;
	double begin = ksm_now();

	do {
		usleep(100000);
		saved = ksm_stat("pages_sharing") + ksm_stat("zero_pages");
	} while (saved < least && ksm_now() - begin < LIMIT_S);
	check(saved >= least, "%lld pages are saved, at least %lld by the guests' programs",
	      saved, least);
}

void check_kill(struct guest *victim, struct guest *other)
{
	long long regions = ksm_stat("regions");
	double begin = ksm_now();
	long bad, free_then;

	guest_ask(other, "work");
	guest_ask(victim, "work");
	check(ksm_wait_more("pages_scanned", 1000, LIMIT_S), "a scan is on its way");
	/* What the other one copies meanwhile is not counted as the victim's. */
	free_then = ksm_memfree() + guest_pss(victim) * 1024 / (long)PGSZ - 2 * PAGES;
	guest_kill(victim, SIGKILL);
	while (ksm_stat("regions") > regions / 2 && ksm_now() - begin < LIMIT_S)
		usleep(100000);
	check(ksm_stat("regions") <= regions / 2, "kill -9 of guest %d: %lld of %lld regions are left",
	      victim->id, ksm_stat("regions"), regions);
	while (ksm_memfree() < free_then && ksm_now() - begin < LIMIT_S)
		usleep(100000);
	check(ksm_memfree() >= free_then, "its memory is free again: %ld pages free, at least %ld",
	      ksm_memfree(), free_then);
	check(ksm_wait_more("full_scans", 2, LIMIT_S), "kksmd goes on");
	bad = guest_ask(other, "rest");
	bad += guest_ask(other, "verify");
	check(!bad, "guest %d goes on, %ld pages wrong", other->id, bad);
}
