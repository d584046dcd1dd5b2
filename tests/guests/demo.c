// SPDX-License-Identifier: GPL-2.0-only
/*
 * demo.c - what sharing gives back to a host of virtual machines, by ksmd and by /dev/ksm
 *
 * Runs in the VM that tests/guests/demo boots. The same is done with each of the two
 * scanners: with unmodified QEMU, which marks the guests' memory for the kernel's KSM, and
 * with libksm-preload, which hands it to /dev/ksm. What is saved is measured by the kernel
 * (Pss of the processes), for both alike; the scanners' own counts are shown beside it, and what
 * there was to be saved, which is never quite the same.
 *
 * Three scenes: guests that hold the same userland; how many idle ones the host can hold;
 * and the simulations of the announcement, which hold the same field map. Lines that begin with
 * "sample" or "result" are for tests/guests/report, all others for who watches.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "duplicates.h"
#include "ksm_util.h"
#include "qemu.h"
#include "share.h"
#include "watch.h"

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67	/* since 6.4 */
#endif

#define GUESTS		4
#define GUEST_MIB	512
#define GUEST_READS	"files=9999"	/* all that there are */

/* A guest that is not ready by then has no memory for it, or is lost. */
#define READY_S		300

#define IDLE_MAX	100
#define IDLE_MIB	256
#define IDLE_READS	"files=70"
/* What the next one may need until it is scanned, and how long to wait for that. */
#define IDLE_ROOM_MIB	(IDLE_MIB + 64)
#define IDLE_ROOM_S	30
/* The budget of kksmd, in per cent of one CPU. */
#define IDLE_CPU	30

/* 700 MB of 2.2 GB in each, scaled to a tenth. */
#define SIMULATIONS	8
#define MAP_MIB		70
#define OWN_MIB		150

static struct guest guests[IDLE_MAX];
static struct watch watch;

static void __attribute__((format(printf, 1, 2))) say(const char *fmt, ...)
{
	va_list ap;

	printf("%s, %s: ", watch.scene, watch_name(&watch));
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
}

/* For the table; @of is what there was to be saved at most, or 0 where nobody can know it. */
static void result(int count, int mib, double of, double saved, double freed,
		   const struct outcome *o)
{
	printf("result\t%s\t%s\t%d\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.2f\t%.1f\n", watch.scene,
	       watch_name(&watch), count, mib, of, saved, freed, o->saved, o->cpu, o->wall);
}

static double available(void)
{
	return PAGES_MIB(ksm_meminfo("MemAvailable"));
}

/* What is not shown in place is shown at most every five seconds, and at the end. */
static bool is_due(double seconds, bool end)
{
	static double last;

	if (!end && seconds > last && seconds < last + 5)
		return false;
	last = end ? 0 : seconds;
	return true;
}

/*
 * Guests
 */

static void start_guest(struct guest *g, int id, int mib, const char *reads)
{
	/* What one guest read must not be in the host's page cache for the next one. */
	static const char * const disk[] = {
		"-drive", "file=/dev/vda,format=raw,if=virtio,readonly=on,cache=none",
		/* One that panics is lost. */
		"-no-reboot", NULL
	};
	struct guest_options options = {
		.no_share = watch.who != &ksmdev,
		.more = disk,
		.append = reads,
	};

	guest_start(g, id, mib, &options);
}

/* Whether its QEMU lives. */
static bool lives(struct guest *g)
{
	int status;

	if (waitpid(g->pid, &status, WNOHANG) == 0)
		return true;
	g->pid = 0;
	say("guest %d %s", g->id, WIFSIGNALED(status) ? "was killed" : "died");
	return false;
}

/* Wait until a guest that was started says that it is ready; false if it does not get there. */
static bool await(struct guest *g)
{
	struct pollfd port = { .fd = fileno(g->port), .events = POLLIN };
	double begin = now();

	while (now() - begin < READY_S) {
		watch_memory(&watch, g->id - 1);
		if (!lives(g))
			return false;
		if (poll(&port, 1, 500) != 1)
			continue;
		if (!(port.revents & POLLHUP)) {
			guest_ready(g);
			return true;
		}
		/* It is about to be dead. */
		usleep(100000);
	}
	say("guest %d was not ready in %d s", g->id, READY_S);
	return false;
}

static void end_guests(int n)
{
	for (int i = 0; i < n; i++)
		guest_kill(&guests[i], SIGKILL);
	if (watch.who)
		watch.who->finish();
}

static double all_pss(void)
{
	double sum = 0;

	for (int i = 0; i < GUESTS; i++)
		sum += guest_pss(&guests[i]) / 1024.0;
	return sum;
}

/* Guest by guest where the driver can tell; in place on a terminal, or now and then. */
static void show_guests(double seconds, bool end)
{
	static bool again;
	struct share sum = { 0 }, s;
	const char *term = getenv("TERM");
	bool terminal = term && strcmp(term, "dumb");

	if (!terminal && !is_due(seconds, end))
		return;
	if (watch.who != &ksmdev) {
		printf("%5.0f s  saved %7.1f MiB   MemAvailable %7.1f MiB\n", seconds,
		       PAGES_MIB(watch.who->saved()), available());
		return;
	}
	if (again && terminal)
		printf("\033[%dA", GUESTS + 2);
	again = !end;
	printf("%5.0f s     registered    shared     saved  (MiB)\n", seconds);
	for (int i = 0; i < GUESTS; i++) {
		s = share_of(guests[i].pid);
		share_add(&sum, &s);
		printf("  guest %d  %12.1f %9.1f %9.1f\n", i + 1, PAGES_MIB(s.registered),
		       PAGES_MIB(s.shared), PAGES_MIB(s.saved));
	}
	printf("  all      %12.1f %9.1f %9.1f  MemAvailable %7.1f\n", PAGES_MIB(sum.registered),
	       PAGES_MIB(sum.shared), PAGES_MIB(sum.saved), available());
}

static void guests_by(const struct scanner *who)
{
	struct outcome o;
	double before, saved, free_before, freed, twice, left;
	int bad = 0;

	watch_begin(&watch, "guests", who);
	say("%d guests of %d MiB boot, and read their userland", GUESTS, GUEST_MIB);
	for (int i = 0; i < GUESTS; i++)
		start_guest(&guests[i], i + 1, GUEST_MIB, GUEST_READS);
	for (int i = 0; i < GUESTS; i++) {
		if (!await(&guests[i]))
			ksm_die("guest %d does not boot; is this machine very busy?", i + 1);
		say("guest %d is ready", i + 1);
	}
	twice = duplicates(guests, GUESTS);
	before = all_pss();
	free_before = available();
	say("they take %.0f MiB, %.1f MiB of it more than once; it starts to scan", before, twice);
	o = watch_settle(&watch, GUESTS, show_guests);
	saved = before - all_pss();
	freed = available() - free_before;
	left = duplicates(guests, GUESTS);
	say("of what they held more than once %.1f MiB are left", left);
	say("saved %.1f MiB (Pss), MemAvailable grew by %.1f MiB, CPU %.2f s", saved, freed, o.cpu);

	for (int i = 0; i < GUESTS; i++)
		guest_tell(&guests[i], "check");
	for (int i = 0; i < GUESTS; i++)
		bad += atoi(guest_answer(&guests[i]));
	if (bad)
		ksm_die("%d guests find their files changed: report it with the kernel log", bad);
	say("each guest checked files of its userland with dpkg --verify");
	/* An emulated machine in an emulated machine may have its own troubles. */
	if (!system(GUEST_TROUBLE " /tmp/guest-?"))
		say("this is in the kernel logs of guests");
	end_guests(GUESTS);
	result(GUESTS, GUEST_MIB, twice, saved, freed, &o);
}

/*
 * Idle guests: how many?
 */

/* The next guest needs memory before it shares any: let the scanner make room. */
static void make_room(int n)
{
	double begin = now();

	while (available() < IDLE_ROOM_MIB && now() - begin < IDLE_ROOM_S) {
		usleep(500000);
		watch_memory(&watch, n);
	}
}

/* Start guest N + 1; whether that succeeds, and costs no other one its life. */
static bool one_more(int n)
{
	bool up;

	if (watch.who)
		make_room(n);
	start_guest(&guests[n], n + 1, IDLE_MIB, IDLE_READS);
	up = await(&guests[n]);
	for (int i = 0; i < n; i++)
		up = lives(&guests[i]) && up;
	return up;
}

static void idle_by(const struct scanner *who)
{
	struct outcome o = { 0 };
	double cpu = 0;
	int device, n = 0;

	watch_begin(&watch, "idle", who);
	say("guests of %d MiB, one after the other, in %.0f MiB", IDLE_MIB,
	    PAGES_MIB(ksm_meminfo("MemTotal")));
	if (who) {
		cpu = scanner_cpu(who);
		device = ksm_open();
		/* At full speed it would look at a guest that boots all the time, and slow it down. */
		if (ksm_start(device, 1, 0, 0) || ksm_set_pace(device, IDLE_CPU, 1))
			ksm_die("kksmd does not start: %s", strerror(errno));
		close(device);
	}
	while (n < IDLE_MAX && one_more(n)) {
		n++;
		if (who)
			o.saved = PAGES_MIB(who->saved());
		say("%d guests run, MemAvailable %.0f MiB, saved %.0f MiB", n, available(), o.saved);
	}
	o.wall = now() - watch.begin;
	if (who) {
		o.cpu = scanner_cpu(who) - cpu;
		who->stop();
	}
	end_guests(n < IDLE_MAX ? n + 1 : n);
	say("%d guests ran", n);
	/* Pss before has no meaning here: without sharing they would not have started. */
	result(n, IDLE_MIB, 0, o.saved, o.saved, &o);
}

/*
 * Simulations
 */

static void show_total(double seconds, bool end)
{
	if (!is_due(seconds, end))
		return;
	printf("%5.0f s  saved %7.1f MiB of %d MiB   MemAvailable %7.1f MiB\n", seconds,
	       PAGES_MIB(watch.who->saved()), (SIMULATIONS - 1) * MAP_MIB, available());
}

/* It registers with /dev/ksm in any case, which has no effect unless kksmd runs. */
static pid_t start_fieldmap(FILE **says)
{
	int pipes[2];
	pid_t pid;

	if (pipe(pipes))
		ksm_die("pipe: %s", strerror(errno));
	fflush(stdout);
	pid = fork();
	if (pid < 0)
		ksm_die("fork: %s", strerror(errno));
	if (!pid) {
		char count[16], shared[16], own[16];

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* For all that this process and its children map, and survives exec. */
		if (watch.who == &ksmd && prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0))
			ksm_die("PR_SET_MEMORY_MERGE: %s", strerror(errno));
		dup2(pipes[1], 1);
		close(pipes[0]);
		close(pipes[1]);
		snprintf(count, sizeof(count), "%d", SIMULATIONS);
		snprintf(shared, sizeof(shared), "%d", MAP_MIB);
		snprintf(own, sizeof(own), "%d", OWN_MIB);
		execlp("fieldmap", "fieldmap", "-n", count, "-s", shared, "-p", own,
		       "-t", "1000000", NULL);
		ksm_die("fieldmap: %s", strerror(errno));
	}
	close(pipes[1]);
	*says = fdopen(pipes[0], "r");
	return pid;
}

static void cern_by(const struct scanner *who)
{
	double begin, free_before, freed, saved = -1;
	long long pages = SIMULATIONS * (MAP_MIB + OWN_MIB) * 256LL;
	struct outcome o;
	char line[256];
	pid_t pid;
	FILE *says;
	int status;

	if (who == &ksmd && prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0)) {
		puts("cern, ksmd: this kernel offers ksmd only to programs that ask for it");
		return;
	}
	watch_begin(&watch, "cern", who);
	say("%d simulations of %d MiB, of which %d MiB are the same in all", SIMULATIONS,
	    MAP_MIB + OWN_MIB, MAP_MIB);
	pid = start_fieldmap(&says);
	begin = now();
	while (ksm_stat("pages_registered") < pages) {
		if (waitpid(pid, NULL, WNOHANG) || now() - begin > 600)
			ksm_die("fieldmap does not get there; see above");
		watch_memory(&watch, 0);
		usleep(200000);
	}
	/* It would end when it sees that all is shared. */
	kill(pid, SIGSTOP);
	free_before = available();
	o = watch_settle(&watch, SIMULATIONS, show_total);
	freed = available() - free_before;
	/* Now it adds up its Pss and verifies every byte. */
	kill(pid, SIGINT);
	kill(pid, SIGCONT);
	while (fgets(line, sizeof(line), says))
		if (sscanf(line, "saved %lf MiB of ", &saved) == 1)
			printf("fieldmap: %s", line);
	fclose(says);
	if (waitpid(pid, &status, 0) != pid || status || saved < 0)
		ksm_die("fieldmap failed (status %#x); see above", status);
	who->finish();
	result(SIMULATIONS, MAP_MIB + OWN_MIB, (SIMULATIONS - 1) * MAP_MIB, saved, freed, &o);
}

int main(int argc, char **argv)
{
	const char *scene = argc > 1 ? argv[1] : "";

	/* Something to watch. */
	setvbuf(stdout, NULL, _IOLBF, 0);
	scanners_open();
	if (!strcmp(scene, "cern")) {
		cern_by(&ksmd);
		cern_by(&ksmdev);
		return 0;
	}
	close(ksm_open_kvm());
	if (!strcmp(scene, "guests")) {
		guests_by(&ksmd);
		guests_by(&ksmdev);
	} else if (!strcmp(scene, "idle")) {
		idle_by(NULL);
		idle_by(&ksmdev);
	} else {
		ksm_die("usage: demo guests|idle|cern");
	}
	return 0;
}
