/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * hostile_actors.h - each of the things that a hostile tenant's processes do
 *
 * An actor is a process that does one thing over and over, to memory of its own, with the
 * device and what else an ordinary user has. hostile_load.h starts all of them at once.
 *
 * The same tenant without the device is the control: its actors read memory of their own where
 * they would call the driver, and all else is the same. So what differs is what /dev/ksm adds.
 */
#ifndef HOSTILE_ACTORS_H
#define HOSTILE_ACTORS_H

#include <dirent.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm_busy.h"
#include "ksm_util.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* What each actor registers: little, as a budget of kksmd is for all. */
#define HOSTILE_PAGES	((1UL << 20) / PGSZ)

enum { HOSTILE_ACTORS = 16 };

/**
 * struct hostile - a tenant, seen by all of its processes and by the test
 * @dev: /dev/ksm, or -1: it does without
 * @seed: of what its neighbour holds, which it may guess
 * @turns: what each actor did
 * @deaths: how many actors were killed for a limit
 * @merged: pages that KSM_MERGE_RANGE has merged
 * @scans: how often KSM_SCAN has come to its end
 */
struct hostile {
	int dev;
	_Atomic unsigned long seed;
	_Atomic long turns[HOSTILE_ACTORS];
	_Atomic long deaths;
	_Atomic long merged;
	_Atomic long scans;
};

static struct hostile *hostile;

/* ---- what an actor does with the device, or instead of it ---- */

static void hostile_read(const char *mem, size_t npages)
{
	unsigned long sum = 0;

	for (size_t i = 0; i < npages * PGSZ / sizeof(sum); i++)
		sum += ((const volatile unsigned long *)mem)[i];
}

static int hostile_area(void)
{
	return hostile->dev < 0 ? -1 : ioctl(hostile->dev, KSM_CREATE_SHARED_MEMORY_AREA);
}

static void hostile_register(int area, const char *mem, size_t npages)
{
	if (area >= 0)
		ksm_register(area, mem, npages);
}

static void hostile_merge(int area, const char *mem, size_t npages)
{
	uint64_t merged;

	if (area < 0)
		hostile_read(mem, npages);
	else if (!ksm_merge_range(area, mem, npages, &merged))
		hostile->merged += merged;
}

static void hostile_unmerge(int area, const char *mem, size_t npages)
{
	if (area >= 0)
		ksm_unmerge(area);
	else
		hostile_read(mem, npages);
}

static void hostile_close(int area)
{
	if (area >= 0)
		close(area);
}

/* Memory in two equal halves. */
static void hostile_fill(char *mem, size_t npages, unsigned long seed)
{
	ksm_fill(mem, npages / 2, seed);
	ksm_fill(mem + npages / 2 * PGSZ, npages / 2, seed);
}

static void hostile_write(char *mem, size_t npages, char value)
{
	for (size_t i = 0; i < npages; i++)
		((volatile char *)mem)[i * PGSZ] = value;
}

static char *hostile_map(size_t npages)
{
	char *mem = mmap(NULL, npages * PGSZ, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (mem == MAP_FAILED)
		_exit(1);
	madvise(mem, npages * PGSZ, MADV_NOHUGEPAGE);
	return mem;
}

static void hostile_threads(int nr, void *(*main)(void *))
{
	if (!ksm_busy_threads(nr, main))
		_exit(1);
}

/* ---- the actors; each function is one turn, with memory and an area of its own ---- */

struct actor {
	char *mem;
	int area;
	int scan;
	unsigned long turn;
};

/* Equal memory is merged, and a wave of writes goes over it. */
static void turn_wave(struct actor *a)
{
	hostile_fill(a->mem, HOSTILE_PAGES, a->turn);
	hostile_merge(a->area, a->mem, HOSTILE_PAGES);
	hostile_write(a->mem, HOSTILE_PAGES, a->turn);
}

/* The same with an mmap lock that is never free. */
static void turn_mapper(struct actor *a)
{
	if (!a->turn)
		hostile_threads(3, ksm_busy_mapper);
	turn_wave(a);
}

/* Fifty busy siblings. */
static void turn_siblings(struct actor *a)
{
	if (!a->turn)
		hostile_threads(49, ksm_busy_loop);
	for (volatile unsigned long i = 0; i < 1000000; i++)
		;
}

/* Whatever the tenant has of the CPUs, and the others leave, is used up. */
static void turn_burn(struct actor *a)
{
	if (!a->turn)
		hostile_threads(1, ksm_busy_loop);
	for (volatile unsigned long i = 0; i < 1000000; i++)
		;
}

/* Never long out of the driver, so that it is there that one is frozen. */
static void turn_ioctls(struct actor *a)
{
	int area = hostile_area();

	hostile_register(area, a->mem, HOSTILE_PAGES);
	hostile_merge(area, a->mem, HOSTILE_PAGES);
	hostile_unmerge(area, a->mem, HOSTILE_PAGES);
	hostile_close(area);
	if (a->turn % 16 == 0)
		hostile_fill(a->mem, HOSTILE_PAGES, a->turn);
}

static void turn_scan(struct actor *a)
{
	if (hostile->dev >= 0 && a->scan < 0)
		a->scan = ioctl(hostile->dev, KSM_CREATE_SCAN);
	if (a->scan >= 0)
		hostile->scans += !ksm_scan(a->scan, 1 << 16);
	else
		hostile_read(a->mem, HOSTILE_PAGES);
}

/* What a directory's files say. */
static void read_all_files(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *entry;
	char path[300], text[512];
	int fd;

	while (d && (entry = readdir(d))) {
		snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		if (fd < 0)
			continue;
		while (read(fd, text, sizeof(text)) > 0)
			;
		close(fd);
	}
	if (d)
		closedir(d);
}

static void turn_read(struct actor *a)
{
	if (a->turn % 64 == 0)
		turn_wave(a);
	read_all_files(hostile->dev < 0 ? "/sys/class/misc/hpet" : "/sys/class/misc/ksm");
	read_all_files("/proc/self/fdinfo");
}

/* Many regions, and a large one with next to nothing in it. */
static void turn_open(struct actor *a)
{
	const size_t large = 1UL << (37 - 12);
	char *hole = hostile_map(large);
	int area = hostile_area();

	for (size_t i = 0; i < 64; i++)
		hostile_register(area, a->mem + 2 * i * PGSZ, 1);
	for (size_t i = 0; i < 8; i++)
		hole[i * (large / 8) * PGSZ] = i;
	hostile_register(area, hole, large);
	hostile_merge(area, a->mem, 1);
	if (a->turn % 2)
		munmap(hole, large * PGSZ);
	hostile_close(area);
	if (a->turn % 2 == 0)
		munmap(hole, large * PGSZ);
}

static void turn_fork(struct actor *a)
{
	pid_t pid;

	if (a->turn % 16 == 0)
		turn_wave(a);
	hostile_merge(a->area, a->mem, HOSTILE_PAGES);
	pid = fork();
	if (!pid) {
		hostile_write(a->mem, HOSTILE_PAGES / 2, a->turn);
		_exit(0);
	}
	if (pid > 0)
		waitpid(pid, NULL, 0);
}

/* Huge pages are split for a merge, and built again. */
static void turn_huge(struct actor *a)
{
	char *huge;

	if (!a->turn) {
		a->mem = hostile_map(3 * KSM_HUGE_PAGES);
		huge = (char *)(((uintptr_t)a->mem + KSM_HUGE_SIZE - 1) & ~(KSM_HUGE_SIZE - 1));
		a->mem = huge;
		madvise(huge, 2 * KSM_HUGE_SIZE, MADV_HUGEPAGE);
		hostile_register(a->area, huge, 2 * KSM_HUGE_PAGES);
	}
	hostile_fill(a->mem, 2 * KSM_HUGE_PAGES, a->turn / 4);
	hostile_merge(a->area, a->mem, 2 * KSM_HUGE_PAGES);
	hostile_write(a->mem, 2 * KSM_HUGE_PAGES, a->turn);
	madvise(a->mem, 2 * KSM_HUGE_SIZE, MADV_COLLAPSE);
}

/*
 * Who guesses what his neighbour holds, or is about to hold, pays for it first, writes over it,
 * and leaves.
 */
static void turn_guess(struct actor *a)
{
	ksm_fill(a->mem, HOSTILE_PAGES, hostile->seed + a->turn % 2);
	hostile_merge(a->area, a->mem, HOSTILE_PAGES);
	usleep(50000);
	if (a->turn % 4 == 3)
		hostile_write(a->mem, HOSTILE_PAGES, a->turn);
	if (a->turn % 8 == 7)
		_exit(0);
}

static const struct role {
	const char *name;
	const char *group;
	void (*turn)(struct actor *a);
} roles[] = {
	{ "limits",	"squeezed",	turn_wave },
	{ "limits2",	"squeezed",	turn_wave },
	{ "throttled",	"throttled",	turn_mapper },
	{ "throttled2",	"throttled",	turn_wave },
	{ "siblings",	"throttled",	turn_siblings },
	{ "frozen",	"frozen",	turn_ioctls },
	{ "frozen2",	"frozen",	turn_mapper },
	{ "mapper",	"free",		turn_mapper },
	{ "scan",	"free",		turn_scan },
	{ "reader",	"free",		turn_read },
	{ "opener",	"free",		turn_open },
	{ "forker",	"free",		turn_fork },
	{ "huge",	"free",		turn_huge },
	{ "waves",	"free",		turn_wave },
	{ "guesses",	"free",		turn_guess },
	{ "burner",	"burning",	turn_burn },
};

#define N_ROLES (sizeof(roles) / sizeof(roles[0]))
_Static_assert(N_ROLES <= HOSTILE_ACTORS, "HOSTILE_ACTORS");

#endif /* HOSTILE_ACTORS_H */
