// SPDX-License-Identifier: GPL-2.0-only
/*
 * measure.c - what is measured of ksmd and of /dev/ksm, one at a time, for bench.c
 */
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "../ksm_util.h"
#include "bench.h"
#include "measure.h"
#include "meter.h"
#include "saved.h"
#include "worker.h"
#include "workload.h"

#define CHURN_PASSES 4

static void churn(const struct scanner *scanner)
{
	unsigned int round;
	double cpu = 0;

	for (round = 0; round < CHURN_PASSES; round++) {
		tell_all(rewrite, round);
		cpu += some_passes(scanner, 1).cpu;
	}
	sample("churn", "churn pass, CPU", "ns/page", scanner,
	       cpu / CHURN_PASSES / all_pages() * 1e9);
}

/* By how much each counter has grown. */
static void say_counters(const struct scanner *scanner, const double before[MAX_COUNTERS])
{
	double after[MAX_COUNTERS];
	char line[512] = "";
	size_t length = 0;
	unsigned int i;

	read_counters(scanner, after);
	for (i = 0; i < MAX_COUNTERS; i++)
		if (after[i] != UNKNOWN && length < sizeof(line))
			length += snprintf(line + length, sizeof(line) - length, " %s %+.0f",
					   scanner->counters[i], after[i] - before[i]);
	say("%s, %s:%s", load->name, scanner->name, line);
}

void measure(const struct scanner *scanner)
{
	double pss_before, pss_after, free_before, cost;
	double splits = ksmdev_stat("thp_splits");
	double counters[MAX_COUNTERS], flushes = UNKNOWN;
	const char *name = load->name;
	struct point p = { };
	bool done = true;

	tell_all(fill, 0);
	if (load->what & HELD)
		tell_all(hold, 0);
	if (load->huge)
		say("thp: %.1f %% of the memory is on huge pages",
		    100.0 * tell_all(huge, 0) / all_pages());
	pss_before = tell_all(pss, 0);
	free_before = free_pages();
	if (load->what & TLB) {
		atomic_store(&common->stop, false);
		atomic_store(&common->ready, 0);
		tell_all(spin_start, 0);
		while (!atomic_load(&common->ready))
			usleep(1000);
	}
	attach_all(scanner);
	ksmdev_reset_hold();
	read_counters(scanner, counters);
	flushes = tlb_interrupts();

	if (load->what & CONVERGE) {
		saved_open(worker, load->workers, base, load_pages, load->page);
		done = converge(scanner, 0.99, &p);
		saved_close();
	} else {
		p = some_passes(scanner, 2);
		scanner->start();
	}
	if (load->what & TLB)
		flushes = tlb_interrupts() - flushes;
	if (!done)
		say("%s, %s: only %.1f %% of what is possible after %d passes", name,
		    scanner->name, 100 * p.saved, MOST_PASSES);
	/* What is left to merge, and then what the scanner calls old. */
	let_pass(scanner, 3);
	if (load->what & IDLE) {
		cost = idle(scanner) / all_pages() * 1e9;
		sample(name, "idle pass, CPU", "ns/page", scanner, cost);
		say("%s, %s: idle pass %.1f ns a page", name, scanner->name, cost);
	}
	scanner->stop();
	say_counters(scanner, counters);

	pss_after = tell_all(pss, 0);
	if (load->what & CONVERGE) {
		if (done && load->what & COST) {
			sample(name, "CPU to 99 %", "us/page", scanner,
			       p.cpu / all_pages() * 1e6);
		} else if (done && !(load->what & TLB)) {
			sample(name, "CPU to 99 %", "s", scanner, p.cpu);
			sample(name, "wall to 99 %", "s", scanner, p.wall);
		}
		say("%s, %s: 99 %% after %.3f s CPU, %.3f s", name, scanner->name, p.cpu, p.wall);
		sample(name, "memory saved (Pss)", "MiB", scanner,
		       (pss_before - pss_after) / MIB_PAGES);
		sample(name, "memory freed, net", "MiB", scanner,
		       (free_pages() - free_before) / MIB_PAGES);
	} else {
		if (load->what & COST)
			sample(name, "first two passes, CPU", "us/page", scanner,
			       p.cpu / all_pages() * 1e6);
		else
			sample(name, "first two passes, CPU", "s", scanner, p.cpu);
		say("%s, %s: first two passes %.3f s CPU", name, scanner->name, p.cpu);
	}
	if (load->what & TLB && flushes >= 0 && done)
		sample(name, "TLB flush interrupts", "/merged page", scanner,
		       flushes / (p.saved * possible()));
	if (!(load->what & TLB))
		sample(name, "metadata", "bytes/page", scanner,
		       scanner->metadata() / all_pages());
	if (scanner == &ksmdev) {
		if (!clock_is_coarse)
			sample(name, "longest lock hold", "us", scanner,
			       ksmdev_stat("longest_hold_us"));
		if (splits != UNKNOWN && load->huge)
			sample(name, "huge pages split", "pages", scanner,
			       ksmdev_stat("thp_splits") - splits);
	}
	if (load->what & FIRST_WRITE) {
		long ns = ksm_call(&worker[0], first_write, load_pages / 10 * 6, 0, 0);

		sample(name, "first write to a merged page", "us", scanner, ns / 1000.0);
	}
	if (load->what & CHURN)
		churn(scanner);
	atomic_store(&common->stop, true);
	detach_all(scanner);
}

void latency(const struct scanner *scanner)
{
	struct ksm_child *other = &worker[0];
	long alone, with;

	tell_all(fill, 0);
	attach_all(scanner);
	alone = ksm_call(other, random_writes, 2000, 0, 0);
	scanner->start();
	ksm_call_start(other, random_writes, 4000, 0, 0, 0);
	with = ksm_call_finish(other);
	scanner->stop();
	detach_all(scanner);
	say("%s, %s: 64 random writes, 99 %%: alone %.2f us, while scanning %.2f us",
	    load->name, scanner->name, alone / 1000.0, with / 1000.0);
	sample(load->name, "p99 of 64 random writes, alone", "us", scanner, alone / 1000.0);
	sample(load->name, "p99 of 64 random writes, scanned", "us", scanner, with / 1000.0);
	sample(load->name, "p99, scanned against alone", "times", scanner, (double)with / alone);
}

void sparse(const struct scanner *scanner)
{
	double pass;

	tell_all(fill, 0);
	attach_all(scanner);
	scanner->start();
	let_pass(scanner, 4);
	pass = idle(scanner);
	scanner->stop();
	say("%s, %s: a pass takes %.1f us CPU; saved %.0f of %d pages", load->name, scanner->name,
	    pass * 1e6, scanner->saved(), SPARSE_PAGES - 1);
	sample(load->name, "idle pass, CPU", "us", scanner, pass * 1e6);
	sample(load->name, "metadata", "bytes", scanner, scanner->metadata());
	sample(load->name, "memory saved (own count)", "pages", scanner, scanner->saved());
	detach_all(scanner);
}
