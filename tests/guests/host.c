// SPDX-License-Identifier: GPL-2.0-only
/*
 * host.c - real guests, checked from inside and from outside, while kksmd scans
 *
 * Runs in the VM that tests/guests/run boots and starts two guests there, whose program
 * (guest.c) knows what each page of its memory must hold. kksmd runs at full speed all the
 * time. The frames that the two QEMUs have for the same contents must be the same, before
 * and after the guests read through them. Prints TAP. A minute and a half, emulated: it is
 * part of the gate. long.c goes on from here.
 */
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "checks.h"

/*
 * The pages that both hold are the same frames, and both read right through these; a write
 * of one gives it pages of its own, which the other one does not see.
 */
static void check_sharing(struct guest *g)
{
	uint64_t in_a[SAMPLE], in_b[SAMPLE];
	struct guest *a = &g[0], *b = &g[1];
	long bad;
	int n;

	sample(a, in_a);
	sample(b, in_b);
	n = wait_same(a, in_a, b, in_b, 0);
	check(n == SAMPLE, "%d of %d common pages are the same frames in both", n, SAMPLE);
	bad = wrong_pages(g, 2);
	check(!bad, "the guests read all that was merged, %ld pages wrong", bad);
	n = same(a, in_a, b, in_b, 0);
	check(n == SAMPLE, "and read it through these frames: %d are the same still", n);

	guest_ask(a, "own 0 %d", SAMPLE / 2);
	n = same(a, in_a, b, in_b, 0) - same(a, in_a, b, in_b, SAMPLE / 2);
	check(!n, "a guest wrote to %d: %d of these are the same still", SAMPLE / 2, n);
	n = wait_same(a, in_a, b, in_b, SAMPLE / 2);
	check(n == SAMPLE - SAMPLE / 2, "of the others %d are", n);
	bad = wrong_pages(g, 2);
	check(!bad, "both see what they should, %ld pages wrong", bad);

	guest_ask(a, "common 0 %d", SAMPLE / 2);
	n = wait_same(a, in_a, b, in_b, 0);
	check(n == SAMPLE, "it wrote the old contents: %d are the same again", n);
}

int main(void)
{
	struct guest g[2];
	struct ksm k;

	ksm_begin(&k);
	close(ksm_open_kvm());
	start_guests(g, 2, GUEST_MIB, NULL);
	start_kksmd(&k);
	check_saved(PAGES);
	check_sharing(g);
	begin_work(g, 2);
	wait_scans(5, "under scan");
	end_work(g, 2, "under scan");
	check_kill(&g[1], &g[0]);
	check_log(&g[1]);
	end_guests(g, 1);
	check(ksm_wait_no_regions(&k), "nothing is registered any more");
	ksm_finish(&k);
	return checks_end();
}
