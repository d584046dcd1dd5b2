// SPDX-License-Identifier: GPL-2.0-only
/*
 * busy.c - how long it takes to share the memory of a process whose mmap lock is never free
 *
 * Two processes with the same memory. At first both are quiet; then one has threads that map
 * memory, touch it and unmap it, for ever, so that its mmap lock always has somebody who waits for it.
 * Time is from when the scanner is started, at full speed, until 99 % of the pages are shared.
 *
 * Runs in a VM of its own: tests/bench/run -w busy.
 */
#include <stdio.h>
#include <unistd.h>

#include "../ksm_busy.h"
#include "pair.h"

#define ROUNDS		3
#define PAGES		(64 * MIB_PAGES)
#define THREADS		4
/* Then it is not going to happen. */
#define PATIENCE	120

static long fn_map(long threads, long unused, long unused2, long unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	return ksm_busy_threads(threads, ksm_busy_mapper) ? 0 : -1;
}

static double measure(const struct scanner *scanner, bool busy)
{
	double begin, took;
	struct pair pair;
	long shared;

	pair_begin(&pair, scanner, PAGES);
	if (busy && ksm_call(&pair.worker[1], fn_map, THREADS, 0, 0))
		ksm_die("a thread cannot be made");
	begin = now();
	scanner->start();
	do {
		usleep(20000);
		shared = pair_shared(&pair);
		took = now() - begin;
	} while (shared < PAGES * 99 / 100 && took < PATIENCE);
	scanner->stop();
	printf("    busy, %s: %ld of %ld pages shared after %.2f s, %s\n", scanner->name, shared, PAGES,
	       took, busy ? "one maps and unmaps all the time" : "both quiet");
	pair_end(&pair);
	if (took >= PATIENCE)
		return UNKNOWN;
	printf("sample\tbusy\ttime to share, %s\ts\t%s\t%f\n", busy ? "one busy" : "quiet",
	       scanner->name, took);
	return took;
}

int main(void)
{
	const struct scanner *const scanners[] = { &ksmd, &ksmdev };

	setvbuf(stdout, NULL, _IOLBF, 0);
	scanners_open();
	for (int round = 0; round < ROUNDS; round++)
		for (int i = 0; i < 2; i++) {
			const struct scanner *scanner = scanners[(round + i) % 2];
			double quiet = measure(scanner, false), busy = measure(scanner, true);

			if (quiet != UNKNOWN && busy != UNKNOWN)
				printf("sample\tbusy\tone busy against quiet\ttimes\t%s\t%f\n",
				       scanner->name, busy / quiet);
		}
	return 0;
}
