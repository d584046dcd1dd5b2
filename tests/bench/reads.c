// SPDX-License-Identifier: GPL-2.0-only
/*
 * reads.c - what a read of the statistics takes, where much is shared
 *
 * Two processes with the same 32 MiB, and then with the same 512 MiB: so 8192 and 131072 shared pages.
 * All of it is shared; then the file that says how many pages share is read, many times.
 *
 * Runs in a VM of its own: tests/bench/run -w reads.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "pair.h"

#define READS	2000

static double took[READS];

static int compare(const void *a, const void *b)
{
	return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static void sample(const struct scanner *scanner, long mib, const char *figure, double seconds)
{
	printf("sample\treads, %ld MiB shared\tread of pages_sharing, %s\tus\t%s\t%f\n", mib, figure,
	       scanner->name, seconds * 1e6);
}

static void measure(const struct scanner *scanner, long mib)
{
	char path[128], text[64];
	struct pair pair;

	pair_begin(&pair, scanner, mib * MIB_PAGES);
	pair_share(&pair);
	snprintf(path, sizeof(path), "%s/pages_sharing", scanner->dir);
	for (int i = 0; i < READS; i++) {
		double begin = now();
		int fd = open(path, O_RDONLY);

		if (fd < 0 || read(fd, text, sizeof(text)) <= 0)
			ksm_die("%s cannot be read: %m", path);
		close(fd);
		took[i] = now() - begin;
	}
	qsort(took, READS, sizeof(took[0]), compare);
	printf("    reads, %s: %ld of %ld pages shared, %.1f us a read, %.1f at most\n", scanner->name,
	       pair_shared(&pair), pair.npages, took[READS / 2] * 1e6, took[READS - 1] * 1e6);
	sample(scanner, mib, "median", took[READS / 2]);
	sample(scanner, mib, "slowest of 100", took[READS - READS / 100]);
	pair_end(&pair);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	scanners_open();
	for (long mib = 32; mib <= 512; mib *= 16) {
		measure(&ksmd, mib);
		measure(&ksmdev, mib);
	}
	return 0;
}
