// SPDX-License-Identifier: GPL-2.0-only
/*
 * pair.c - two processes with the same memory, for a benchmark that has a VM of its own
 */
#include <unistd.h>

#include "pair.h"

/* More than either of the two scanners needs. */
#define PASSES	5

void pair_begin(struct pair *pair, const struct scanner *scanner, long npages)
{
	pair->scanner = scanner;
	pair->npages = npages;
	pair->mem = ksm_mmap(npages);
	if (scanner)
		scanner->prepare(false);
	for (int i = 0; i < 2; i++) {
		ksm_spawn(&pair->worker[i]);
		ksm_call(&pair->worker[i], ksm_fn_fill, pair->mem, npages, 1);
		if (scanner)
			ksm_call(&pair->worker[i], scanner->attach, pair->mem, npages, 0);
	}
}

long pair_shared(const struct pair *pair)
{
	return ksm_same_frames(pair->worker[0].pid, pair->mem, pair->worker[1].pid, pair->mem,
			       pair->npages);
}

void pair_share(struct pair *pair)
{
	double from;

	if (!pair->scanner)
		return;
	from = pair->scanner->full_scans();
	pair->scanner->start();
	while (pair->scanner->full_scans() < from + PASSES)
		usleep(10000);
	pair->scanner->stop();
}

void pair_end(struct pair *pair)
{
	for (int i = 0; i < 2; i++)
		ksm_kill(&pair->worker[i]);
	if (pair->scanner)
		pair->scanner->finish();
}
