// SPDX-License-Identifier: GPL-2.0-only
/*
 * faults.c - how often guests fault for what kksmd does
 *
 * Whatever is merged or made read-only is told to KVM in a window of addresses, and KVM forgets
 * what the guest had mapped there. For each page of it that the guest uses after that, also for
 * those that were not meant, it faults. KVM counts: pf_taken are all faults, pf_fixed those
 * that mapped a page (not those that had to be tried again, as a window was open).
 *
 * Of two guests one is idle; the other one writes to one page in 64 all the time, and reads all
 * that lie between. Half of the pages are the same in both, and shared. How often they fault
 * is told for kksmd stopped, at the pace that guests.rst recommends, and at full speed. No
 * figure is judged, for they depend on the machine.
 *
 * What is judged follows from the design: pages that nobody writes are not in any window once
 * all is merged, whatever happens to their neighbours. So the guest finds them where they
 * were, however many passes there were: to read them causes no faults. The scan is by hand for
 * that, and the guest stands still.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cases.h"
#include "checks.h"

#define KVM_DIR		"/sys/kernel/debug/kvm"
/* For so long the guests' faults are counted, at each pace. */
#define MEASURE_S	20
/* guests.rst: ksmctl start --cpu=20. There is no pace that kksmd has by itself. */
#define CPU_PERCENT	20
/*
 * So many faults there may be as a guest reads its PAGES. None need; but its own kernel does
 * something now and then. A window over a whole chunk would make twice as many, in each chunk.
 */
#define FEW		(KSM_HUGE_PAGES / 2)
/* So often pages that are written must have been made read-only before this is judged. */
#define FOUND_RDONLY	4

struct faults {
	long long taken;
	long long fixed;
};

/* ---- counting ---- */

/* Where KVM has the counters of this guest: a directory for each VM, called PID-FD. */
static void find_counters(const struct guest *g, char *path, size_t size)
{
	struct dirent *entry;
	DIR *dir = opendir(KVM_DIR);

	if (!dir)
		ksm_die("there is no " KVM_DIR ": faults cannot be counted without debugfs, and KVM in it");
	*path = 0;
	while ((entry = readdir(dir)))
		if (atoi(entry->d_name) == g->pid && strchr(entry->d_name, '-'))
			snprintf(path, size, KVM_DIR "/%s", entry->d_name);
	closedir(dir);
	if (!*path)
		ksm_die("there is no " KVM_DIR "/%d-*: this KVM does not count by VM", g->pid);
}

static long long read_counter(const char *dir, const char *name)
{
	long long value;
	char path[400];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "re");
	if (!f || fscanf(f, "%lld", &value) != 1)
		ksm_die("cannot read %s: this KVM does not count faults", path);
	fclose(f);
	return value;
}

static struct faults faults_of(const struct guest *g)
{
	char dir[300];

	find_counters(g, dir, sizeof(dir));
	return (struct faults){ read_counter(dir, "pf_taken"), read_counter(dir, "pf_fixed") };
}

/* How many pages are mapped anew while the guest does this. */
static long faults_in(struct guest *g, const char *command)
{
	long long before = faults_of(g).fixed;

	guest_ask(g, "%s", command);
	return faults_of(g).fixed - before;
}

/* ---- what is judged ---- */

/*
 * The guest does as little as it can: what its kernel needs for any command, and kksmd made
 * read-only, is there again after that.
 */
static void wake(struct guest *g)
{
	guest_ask(g, "where 0 0");
}

/* It reads what it never writes. */
static long faults_in_look(struct guest *g)
{
	wake(g);
	return faults_in(g, "look");
}

/* Until all is merged, and made read-only that can be. */
static void settle(const struct ksm *k, struct guest *g, int n)
{
	double begin = ksm_now();
	bool quiet;

	do {
		ksm_passes(k, 4);
		quiet = true;
		for (int i = 0; i < n; i++)
			quiet &= faults_in_look(&g[i]) <= FEW;
	} while (!quiet && ksm_now() - begin < LIMIT_S);
}

/* Nobody writes to anything. */
static void check_idle(const struct ksm *k, struct guest *g)
{
	static const int passes[] = { 0, 2, 8, 32 };
	long pages = guest_ask(g, "look"), faults;

	for (size_t i = 0; i < sizeof(passes) / sizeof(*passes); i++) {
		if (passes[i])
			ksm_passes(k, passes[i]);
		faults = faults_in_look(g);
		check(faults <= FEW,
		      "idle: after %d passes %ld pages that nobody writes were read: %ld faults, at most %d",
		      passes[i], pages, faults, FEW);
	}
}

/*
 * Pages that lie scattered among all the others are written, found unchanged by two passes and
 * made read-only, and written again, which faults.
 */
static void check_written(const struct ksm *k, struct guest *g)
{
	long stirred = guest_ask(g, "stir"), pages = guest_ask(g, "look");
	long written = 0, most = 0, read;
	double begin = ksm_now();
	int rounds;

	/* Chunks need not have their turns in the same round: see WATCH_INTERVAL_NS. */
	for (rounds = 0; written < FOUND_RDONLY * stirred && ksm_now() - begin < LIMIT_S; rounds++) {
		ksm_passes(k, 3);
		wake(g);
		written += faults_in(g, "stir");
		read = faults_in(g, "look");
		if (most < read)
			most = read;
	}
	check(written >= FOUND_RDONLY * stirred,
	      "written: %ld pages were written %d times, and made read-only between: %ld faults",
	      stirred, rounds, written);
	check(most <= FEW,
	      "written: the %ld pages between them were read each time: %ld faults or fewer, at most %d",
	      pages, most, FEW);
}

/* ---- what is told ---- */

/* The guests, by what they do. */
enum { IDLE, BUSY, GUESTS };

/* STOPPED is the control; AGAIN shows if the machine itself became slower or faster meanwhile. */
enum { STOPPED, FIFTH, FULL, AGAIN, PACES };

/**
 * struct period - what happened while kksmd had one pace
 * @pace: in words
 * @seconds: how long that was
 * @passes: how often kksmd went through all memory
 * @faults: of each guest
 * @rounds: how often, in a second, the busy guest wrote and read its pages
 */
struct period {
	const char *pace;
	double seconds;
	long long passes;
	struct faults faults[GUESTS];
	double rounds;
};

static void measure(struct guest *g, struct period *p)
{
	double begin, busy;
	long long passes;

	/* What was made read-only before is not this pace's doing. */
	for (int i = 0; i < GUESTS; i++)
		guest_ask(&g[i], "look");
	guest_ask(&g[BUSY], "stir");
	guest_ask(&g[BUSY], "busy");
	busy = ksm_now();
	/* Begin when kksmd, if it runs, has seen the guest being busy. */
	if (p->passes && !ksm_wait_more("full_scans", p->passes, LIMIT_S))
		ksm_die("%s does not get through the memory of two guests", p->pace);
	passes = ksm_stat("full_scans");
	for (int i = 0; i < GUESTS; i++)
		p->faults[i] = faults_of(&g[i]);
	begin = ksm_now();
	while (ksm_now() - begin < MEASURE_S)
		usleep(100000);
	for (int i = 0; i < GUESTS; i++) {
		struct faults now = faults_of(&g[i]);

		p->faults[i].taken = now.taken - p->faults[i].taken;
		p->faults[i].fixed = now.fixed - p->faults[i].fixed;
	}
	p->seconds = ksm_now() - begin;
	p->passes = ksm_stat("full_scans") - passes;
	p->rounds = guest_ask(&g[BUSY], "rest") / (ksm_now() - busy);
}

static void say_ratio(double rate, double control)
{
	if (control)
		printf(" (%.2f times the control)", rate / control);
	else
		printf(" (the control: none)");
}

static void say(const struct period *p, const struct period *control, int guest)
{
	static const char *const names[GUESTS] = { "idle", "busy" };
	long long taken = p->faults[guest].taken;
	double rate = taken / p->seconds;

	printf("# %s guest, %s: %.1f faults a second", names[guest], p->pace, rate);
	if (control)
		say_ratio(rate, control->faults[guest].taken / control->seconds);
	printf(", %.1f of them mapped a page", p->faults[guest].fixed / p->seconds);
	if (p->passes)
		printf("; %lld passes, %.1f faults in each", p->passes,
		       (double)taken / p->passes);
	if (guest == BUSY) {
		printf("; it wrote and read its pages %.1f times a second", p->rounds);
		if (control)
			say_ratio(p->rounds, control->rounds);
	}
	putchar('\n');
}

static void say_all(const struct period *p)
{
	struct period control = p[STOPPED];

	control.rounds = (control.rounds + p[AGAIN].rounds) / 2;
	for (int i = 0; i < GUESTS; i++)
		for (int pace = 0; pace < PACES; pace++)
			say(&p[pace], pace == STOPPED || pace == AGAIN ? NULL : &control, i);
	fflush(stdout);
}

/* ---- all of it ---- */

static void set_pace(const struct ksm *k, int cpu_percent)
{
	ksm_stop(k->dev);
	if (ksm_set_pace(k->dev, cpu_percent, 1))
		ksm_die("kksmd gets no other pace; run this as root");
	/* With a budget its pages and its sleep do not count. */
	start_kksmd(k);
}

void guest_faults(const struct ksm *k)
{
	/* So many passes of kksmd come first. */
	struct period periods[PACES] = {
		[STOPPED] = { .pace = "kksmd stopped" },
		[FIFTH] = { .pace = "kksmd with a fifth of a CPU", .passes = 3 },
		[FULL] = { .pace = "kksmd at full speed", .passes = 3 },
		[AGAIN] = { .pace = "kksmd stopped again" },
	};
	struct guest g[GUESTS];
	long bad;

	ksm_stop(k->dev);
	start_guests(g, GUESTS, GUEST_MIB, NULL);
	for (int i = 0; i < GUESTS; i++)
		guest_ask(&g[i], "look");
	measure(g, &periods[STOPPED]);

	start_kksmd(k);
	check_saved(PAGES);
	ksm_stop(k->dev);
	settle(k, g, GUESTS);
	check_idle(k, &g[IDLE]);
	check_written(k, &g[BUSY]);

	set_pace(k, CPU_PERCENT);
	measure(g, &periods[FIFTH]);
	set_pace(k, 0);
	measure(g, &periods[FULL]);
	ksm_stop(k->dev);
	measure(g, &periods[AGAIN]);
	say_all(periods);

	bad = wrong_pages(g, GUESTS);
	check(!bad, "every byte is right, %ld pages wrong", bad);
	start_kksmd(k);
	end_guests(g, GUESTS);
}
