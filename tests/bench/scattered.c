// SPDX-License-Identifier: GPL-2.0-only
/*
 * scattered.c - how far shared pages are in the way of who wants memory in one piece
 *
 * A shared page of /dev/ksm cannot be moved; of ksmd's, which is one of the pages that were there,
 * the kernel knows who maps it. The worst case: two processes with the same 400 MiB each, all of it
 * merged, and then every second page written by both, so that what is left of the shared pages lies
 * between free ones. Then memory is compacted, the kernel is asked for as many huge pages as it can
 * make of what is free, and to take one block of memory after the other offline.
 *
 * Once with nobody who scans, once with each of the two, ours last: it leaves parts of the
 * memory to the kernel's own pages, as such parts are called by whoever uses them first.
 *
 * Not part of bench.c: what memory looks like afterwards must be of nobody else's making. It runs in
 * a VM of its own, of 2 GiB; tests/bench/run -w scattered runs it alone.
 */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "pair.h"

#define PAGES		(400 * MIB_PAGES)
#define BLOCKS		"/sys/devices/system/memory"
#define HUGE_PAGES	"/proc/sys/vm/nr_hugepages"
#define MAX_BLOCKS	512
/* A block that the kernel tries to empty for so many seconds will not be. */
#define PATIENCE	20

static long write_half(long mem, long rank, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	for (long i = 0; i < PAGES; i += 2)
		ksm_fill_page(ksm_page((char *)mem, i), 100 + rank, i);
	return 0;
}

/* Something that is waited for was interrupted: that is all it is for. */
static void on_alarm(int signal)
{
	(void)signal;
}

static bool set_block(unsigned int block, const char *state)
{
	char path[64];
	bool done;

	snprintf(path, sizeof(path), BLOCKS "/memory%u/state", block);
	alarm(PATIENCE);
	done = !ksm_write_file(path, state);
	alarm(0);
	return done;
}

/* How many blocks there are, and how many of them may be without. */
static void take_offline(unsigned int *all, unsigned int *gone)
{
	static unsigned int blocks[MAX_BLOCKS];
	DIR *dir = opendir(BLOCKS);
	struct dirent *entry;
	unsigned int block;

	*all = 0;
	*gone = 0;
	while (dir && (entry = readdir(dir))) {
		if (sscanf(entry->d_name, "memory%u", &block) != 1)
			continue;
		++*all;
		if (*gone < MAX_BLOCKS && set_block(block, "offline"))
			blocks[(*gone)++] = block;
	}
	if (dir)
		closedir(dir);
	for (unsigned int i = 0; i < *gone; i++)
		if (!set_block(blocks[i], "online"))
			ksm_die("memory block %u does not come back", blocks[i]);
}

static long wait_free(void)
{
	long before, after = ksm_memfree();

	do {
		before = after;
		usleep(200000);
		after = ksm_memfree();
	} while (labs(after - before) > MIB_PAGES);
	return after;
}

static void sample(const struct scanner *scanner, const char *figure, double value)
{
	printf("sample\tscattered\t%s\tper cent\t%s\t%f\n", figure, scanner->name, value);
}

static void measure(const struct scanner *scanner)
{
	const char *name = scanner ? scanner->name : "nobody";
	unsigned int all, gone;
	long free, huge, same;
	struct pair pair;

	pair_begin(&pair, scanner, PAGES);
	pair_share(&pair);
	same = pair_shared(&pair);
	for (int i = 0; i < 2; i++)
		ksm_call(&pair.worker[i], write_half, pair.mem, i, 0);
	free = wait_free();
	ksm_write_file("/proc/sys/vm/compact_memory", "1");
	ksm_write_file(HUGE_PAGES, "100000");
	huge = read_number(HUGE_PAGES) * KSM_HUGE_PAGES;
	ksm_write_file(HUGE_PAGES, "0");
	take_offline(&all, &gone);
	printf("    scattered, %s: %ld of %ld MiB were shared; then %ld MiB free, of which %ld as huge pages; %u of %u blocks offline\n",
	       name, same / MIB_PAGES, PAGES / MIB_PAGES, free / MIB_PAGES, huge / MIB_PAGES, gone, all);
	if (scanner) {
		sample(scanner, "free memory as huge pages", 100.0 * huge / free);
		sample(scanner, "memory blocks offline", 100.0 * gone / all);
	}
	pair_end(&pair);
	wait_free();
}

int main(void)
{
	struct sigaction action = { .sa_handler = on_alarm };

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigaction(SIGALRM, &action, NULL);
	scanners_open();
	measure(NULL);
	measure(&ksmd);
	measure(&ksmdev);
	return 0;
}
