/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * hostile_load.h - a tenant that does all of hostile_actors.h at once
 *
 * The tenant is a cgroup that was delegated to an ordinary user. His driver makes groups below it,
 * each with a trouble of its own, and starts the actors in them. It lowers and lifts the groups'
 * limits, throttles and freezes them, and starts anew who was killed or has left.
 */
#ifndef HOSTILE_LOAD_H
#define HOSTILE_LOAD_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "hostile_actors.h"
#include "ksm_cgroup.h"

#define HOSTILE		"ksm-hostile"
#define HOSTILE_UID	65534

static const char *const hostile_groups[] = {
	"squeezed", "throttled", "frozen", "free", "burning", "driver",
};

#define N_GROUPS (sizeof(hostile_groups) / sizeof(hostile_groups[0]))

/* A hostile one may be refused. */
static void hostile_set(const char *group, const char *file, const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), KSM_CGROUPS "/" HOSTILE "/%s/%s", group, file);
	ksm_write_file(path, text);
}

/* To a part of what it has, so far as it has more than that. */
static void hostile_lower(const char *group, const char *file, int percent)
{
	char path[64], text[32];

	snprintf(path, sizeof(path), HOSTILE "/%s", group);
	snprintf(text, sizeof(text), "%ld",
		 ksm_cgroup_read(path, "memory.current", NULL) / 100 * percent);
	hostile_set(group, file, text);
}

static pid_t hostile_start(size_t nr)
{
	struct actor a = { .scan = -1 };
	pid_t parent = getpid(), pid = fork();
	char text[16];

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	snprintf(text, sizeof(text), "%d", getpid());
	hostile_set(roles[nr].group, "cgroup.procs", text);
	a.mem = hostile_map(HOSTILE_PAGES);
	a.area = hostile_area();
	hostile_register(a.area, a.mem, HOSTILE_PAGES);
	for (;; a.turn++) {
		roles[nr].turn(&a);
		hostile->turns[nr]++;
	}
}

/* Become an ordinary user, for ever; dies if that cannot be. */
static void become(uid_t uid)
{
	if (ksm_become(uid) || prctl(PR_SET_DUMPABLE, 1))
		ksm_die("cannot become user %d: %s", uid, strerror(errno));
}

/* What the driver does at each step, a twentieth of a second after the last. */
static void hostile_step(unsigned long step)
{
	if (step % 2 == 0)
		hostile_set("frozen", "cgroup.freeze", step % 4 ? "0" : "1");
	/* To set it gives them another millisecond. */
	if (step % 64 == 0)
		hostile_set("throttled", "cpu.max", "1000 1000000");
	else if (step % 64 == 60)
		hostile_set("throttled", "cpu.max", "max 1000000");
	switch (step % 64) {
	case 0:
	case 16:
	case 32:
		hostile_lower("squeezed", "memory.high", 50);
		break;
	case 8:
	case 24:
	case 40:
		hostile_set("squeezed", "memory.high", "max");
		break;
	case 44:
		hostile_lower("squeezed", "memory.max", 100);
		break;
	case 48:
		hostile_lower("squeezed", "memory.max", 70);
		break;
	case 52:
		hostile_set("squeezed", "memory.max", "max");
		break;
	}
}

/* A function for ksm_call_start(): it does not return. The test has put us into the tenant's group. */
static long fn_hostile(long unused, long unused2, long unused3, long unused4)
{
	pid_t pids[N_ROLES];
	unsigned long step = 0;
	char path[128];
	bool begun = false;
	pid_t pid;

	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	become(HOSTILE_UID);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (size_t i = 0; i < N_GROUPS; i++) {
		snprintf(path, sizeof(path), KSM_CGROUPS "/" HOSTILE "/%s", hostile_groups[i]);
		if (mkdir(path, 0755))
			ksm_die("the tenant cannot make %s: %s", path, strerror(errno));
	}
	hostile_set("driver", "cgroup.procs", "0");
	hostile_set(".", "cgroup.subtree_control", "+memory");
	hostile_set(".", "cgroup.subtree_control", "+cpu");
	hostile_set("burning", "cpu.weight", "1");
	for (size_t i = 0; i < N_ROLES; i++)
		pids[i] = hostile_start(i);
	for (;;) {
		while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
			for (size_t i = 0; i < N_ROLES; i++)
				if (pid == pids[i]) {
					hostile->deaths++;
					pids[i] = hostile_start(i);
				}
		/* First of all, each had a turn. */
		for (size_t i = 0; !begun && i < N_ROLES && hostile->turns[i]; i++)
			begun = i == N_ROLES - 1;
		if (begun)
			hostile_step(step++);
		usleep(50000);
	}
	return 0;
}

/* ---- the test's side ---- */

/* A group for it, with no more than one CPU, delegated as cgroup-v2.rst has it. */
static void hostile_delegate(void)
{
	static const char *const files[] = {
		"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control",
	};
	char path[128];

	ksm_cgroup_make(HOSTILE);
	hostile_set(".", "cpu.max", "100000 100000");
	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		snprintf(path, sizeof(path), KSM_CGROUPS "/" HOSTILE "/%s", files[i]);
		if (chown(path, HOSTILE_UID, HOSTILE_UID))
			ksm_die("chown %s: %s", path, strerror(errno));
	}
}

/* With the device, or without; returns when all of it is at work. */
static void hostile_begin(struct ksm_child *driver, int dev)
{
	/* Each has a sixtieth of a processor until all are at work, and some have to fork. */
	double end = ksm_now() + 30 * KSM_PATIENCE;

	hostile->dev = dev;
	hostile->deaths = 0;
	hostile->merged = 0;
	hostile->scans = 0;
	for (size_t i = 0; i < N_ROLES; i++)
		hostile->turns[i] = 0;
	hostile_delegate();
	ksm_spawn(driver);
	/* So that what it leaves behind can be waited for. */
	setpgid(driver->pid, driver->pid);
	ksm_cgroup_write(HOSTILE, "cgroup.procs", driver->pid);
	ksm_call_start(driver, fn_hostile, 0, 0, 0, 0);
	for (size_t i = 0; i < N_ROLES; i++)
		while (!hostile->turns[i]) {
			if (waitpid(driver->pid, NULL, WNOHANG))
				ksm_die("the hostile tenant has died");
			if (ksm_now() > end)
				ksm_die("the hostile tenant's %s does not begin", roles[i].name);
			usleep(20000);
		}
}

/* What its actors did. */
static void hostile_tell(const char *name, int rounds, double seconds)
{
	printf("# %s, %d rounds in %.1f s:", name, rounds, seconds);
	for (size_t i = 0; i < N_ROLES; i++)
		printf(" %s %ld", roles[i].name, hostile->turns[i]);
	printf("; killed %ld times; %ld pages merged, %ld scans\n", hostile->deaths,
	       hostile->merged, hostile->scans);
	fflush(stdout);
}

/*
 * Kill all of it, as root can; returns how long that took. To die takes CPU time, which is
 * given to those who were throttled.
 */
static double hostile_end(struct ksm_child *driver)
{
	double begin = ksm_now(), end = begin + 10 * KSM_PATIENCE, took;
	char path[64];
	pid_t pid = driver->pid;

	ksm_cgroup_write(HOSTILE, "cgroup.kill", 1);
	hostile_set(".", "cpu.max", "max");
	hostile_set("throttled", "cpu.max", "max");
	while (ksm_cgroup_read(HOSTILE, "cgroup.events", "populated")) {
		if (ksm_now() > end)
			ksm_die("the hostile tenant does not die");
		usleep(5000);
	}
	took = ksm_now() - begin;
	ksm_kill(driver);
	while (waitpid(-pid, NULL, 0) > 0)
		;
	for (size_t i = 0; i < N_GROUPS; i++) {
		snprintf(path, sizeof(path), HOSTILE "/%s", hostile_groups[i]);
		ksm_cgroup_remove(path);
	}
	ksm_cgroup_remove(HOSTILE);
	return took;
}

#endif /* HOSTILE_LOAD_H */
