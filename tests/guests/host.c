// SPDX-License-Identifier: GPL-2.0-only
/*
 * host.c - real guests, checked from inside and from outside, while kksmd scans
 *
 * Runs in the VM that tests/guests/run boots and starts guests there, whose program
 * (guest.c) knows what each page of its memory must hold. kksmd runs at full speed all the
 * time. That pages are shared is not taken from the driver: the frames that the two QEMUs
 * have for the same contents must be the same, before and after the guests read through
 * them. Prints TAP. A minute and a half, emulated: it is part of the gate.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm_util.h"
#include "qemu.h"

#define GUEST_MIB	128
#define PAGES		6144	/* that a guest keeps and checks: 24 MiB */
#define SAMPLE		128	/* of these, pages whose frames are compared */
/* Emulated, the slowest machine seen needs a tenth of it; no result depends on it. */
#define LIMIT_S		300

static struct ksm k;
static int checks, failures;

static void __attribute__((format(printf, 2, 3))) check(bool right, const char *fmt, ...)
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

/* Frame numbers in the guest of the first SAMPLE common pages. */
static void sample(struct guest *g, uint64_t *frames)
{
	char *at;

	guest_tell(g, "where 0 %d", SAMPLE);
	at = (char *)guest_answer(g);
	for (int i = 0; i < SAMPLE; i++)
		frames[i] = strtoull(at, &at, 16);
	if (!frames[SAMPLE - 1])
		ksm_die("guest %d does not tell where its pages are", g->id);
}

/* How many pages of the samples from FIRST on are one and the same frame of the host. */
static int same(const struct guest *a, const uint64_t *in_a,
		const struct guest *b, const uint64_t *in_b, int first)
{
	int n = 0;

	for (int i = first; i < SAMPLE; i++)
		n += ksm_same_frames(a->pid, guest_page(a, in_a[i]),
				     b->pid, guest_page(b, in_b[i]), 1);
	return n;
}

/* Wait until all are; how many are in the end. */
static int wait_same(const struct guest *a, const uint64_t *in_a,
		     const struct guest *b, const uint64_t *in_b, int first)
{
	double begin = ksm_now();
	int n;

	while ((n = same(a, in_a, b, in_b, first)) < SAMPLE - first &&
	       ksm_now() - begin < LIMIT_S)
		usleep(100000);
	return n;
}

/* Let both rewrite and check for so long, and check everything then. */
static void work(struct guest *a, struct guest *b, int seconds, const char *when)
{
	struct guest *guests[] = { a, b };
	long long scans = ksm_stat("full_scans");
	double begin = ksm_now();

	for (int i = 0; i < 2; i++)
		guest_ask(guests[i], "work");
	/* As long as told, and until all was scanned twice meanwhile. */
	while (ksm_now() - begin < seconds ||
	       (ksm_stat("full_scans") < scans + 2 && ksm_now() - begin < LIMIT_S))
		usleep(100000);
	scans = ksm_stat("full_scans") - scans;
	check(scans >= 2, "%s: kksmd went through all of it %lld times", when, scans);
	for (int i = 0; i < 2; i++) {
		long bad, rounds;
		char *at;

		guest_tell(guests[i], "rest");
		at = (char *)guest_answer(guests[i]);
		bad = strtol(at, &at, 10);
		rounds = strtol(at, NULL, 10);
		check(!bad && rounds, "%s: guest %d rewrote and checked, %ld rounds, %ld wrong",
		      when, guests[i]->id, rounds, bad);
		bad = guest_ask(guests[i], "verify");
		check(!bad, "%s: every byte of guest %d is right, %ld pages wrong",
		      when, guests[i]->id, bad);
	}
}

/* That nothing in the kernel log of a guest tells of trouble. */
static void check_log(const struct guest *g)
{
	char command[128];

	snprintf(command, sizeof(command), "grep -q 'ksmdev-guest: ready' %s", g->log);
	check(!system(command), "guest %d has a kernel log", g->id);
	snprintf(command, sizeof(command), GUEST_TROUBLE " %s", g->log);
	check(WEXITSTATUS(system(command)) == 1, "the kernel log of guest %d is clean", g->id);
}

/*
 * The pages that both hold are the same frames, and both read right through these; a write
 * of one gives it pages of its own, which the other one does not see.
 */
static void check_sharing(struct guest *a, struct guest *b)
{
	uint64_t in_a[SAMPLE], in_b[SAMPLE];
	long bad;
	int n;

	sample(a, in_a);
	sample(b, in_b);
	n = wait_same(a, in_a, b, in_b, 0);
	check(n == SAMPLE, "%d of %d common pages are the same frames in both", n, SAMPLE);
	bad = guest_ask(a, "verify") + guest_ask(b, "verify");
	check(!bad, "the guests read all that was merged, %ld pages wrong", bad);
	n = same(a, in_a, b, in_b, 0);
	check(n == SAMPLE, "and read it through these frames: %d are the same still", n);

	guest_ask(a, "own 0 %d", SAMPLE / 2);
	n = same(a, in_a, b, in_b, 0) - same(a, in_a, b, in_b, SAMPLE / 2);
	check(!n, "a guest wrote to %d: %d of these are the same still", SAMPLE / 2, n);
	n = wait_same(a, in_a, b, in_b, SAMPLE / 2);
	check(n == SAMPLE - SAMPLE / 2, "of the others %d are", n);
	bad = guest_ask(a, "verify") + guest_ask(b, "verify");
	check(!bad, "both see what they should, %ld pages wrong", bad);

	guest_ask(a, "common 0 %d", SAMPLE / 2);
	n = wait_same(a, in_a, b, in_b, 0);
	check(n == SAMPLE, "it wrote the old contents: %d are the same again", n);
}

/* The driver's own count, which must be in keeping with what the guests hold. */
static void check_saved(void)
{
	/* Of 8 pages: 4 common; one alike, which 256 may share; one empty in each. */
	long long least = PAGES / 8 * (4 + 2 + 2) - 2 * PAGES / 8 / KSM_SHARE_LIMIT - 2, saved;
	double begin = ksm_now();

	do {
		usleep(100000);
		saved = ksm_stat("pages_sharing") + ksm_stat("zero_pages");
	} while (saved < least && ksm_now() - begin < LIMIT_S);
	check(saved >= least, "%lld pages are saved, at least %lld by the guests' programs",
	      saved, least);
}

/* Kill one in the middle of a scan: its memory is free again, the other goes on. */
static void check_kill(struct guest *victim, struct guest *other)
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

static void start_kksmd(void)
{
	if (ksm_start(k.dev, 4000, 0, 0))
		ksm_die("kksmd does not start; run this as root");
}

static void start_two(struct guest *g, const struct guest_options *options)
{
	for (int i = 0; i < 2; i++)
		guest_start(&g[i], i + 1, GUEST_MIB, options);
	for (int i = 0; i < 2; i++)
		guest_ready(&g[i]);
	for (int i = 0; i < 2; i++)
		guest_tell(&g[i], "fill %d", PAGES);
	for (int i = 0; i < 2; i++)
		guest_answer(&g[i]);
}

static void two_guests(void)
{
	struct guest g[2];

	start_two(g, NULL);
	start_kksmd();
	check_saved();
	check_sharing(&g[0], &g[1]);
	work(&g[0], &g[1], 5, "under scan");
	check_kill(&g[1], &g[0]);
	guest_kill(&g[0], SIGTERM);
	for (int i = 0; i < 2; i++)
		check_log(&g[i]);
}

int main(void)
{
	ksm_begin(&k);
	guest_load_kvm();
	two_guests();
	check(ksm_wait_no_regions(&k), "nothing is registered any more");
	ksm_finish(&k);
	printf("1..%d\n", checks);
	return failures != 0;
}
