// SPDX-License-Identifier: GPL-2.0-only
/*
 * boot.c - guests boot while kksmd has no pause at all
 *
 * A guest that boots writes to page after page that it did not write to for a while, and on one
 * CPU kksmd passes over its memory several times between two turns of the guest. Were each page
 * that two passes found unchanged made read-only at once, the guest would do nothing but fault:
 * see WATCH_INTERVAL_NS in engine/merge.c. How long it takes is told and not judged; that it comes
 * to an end is.
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>

#include "cases.h"
#include "checks.h"

/* No other guests of long.c have these numbers: those count from 1. */
enum { FIRST_ID = 1000, NR_GUESTS = 3 };

/* For hangs: a guest that does nothing but fault does not get there in any time. */
#define BOOT_LIMIT_S	600

/*
 * Start a guest and wait until it has booted; how many seconds that takes, or 0 if it does not
 * within @limit.
 */
static double boot_one(struct guest *g, int id, double limit)
{
	double begin = ksm_now();
	struct pollfd port;

	guest_start(g, id, GUEST_MIB, NULL);
	/* "ready" is the first that it says. */
	port = (struct pollfd){ .fd = fileno(g->port), .events = POLLIN };
	if (poll(&port, 1, limit * 1000) != 1)
		return 0;
	guest_ready(g);
	return ksm_now() - begin;
}

void boot_guests(const struct ksm *k)
{
	struct guest g[NR_GUESTS];
	double took, control;
	long long scanned;
	int n = 0;

	ksm_stop(k->dev);
	control = boot_one(&g[n], FIRST_ID, BOOT_LIMIT_S);
	check(control, "a guest boots while kksmd is stopped, in %.1f s", control);
	if (!control)
		ksm_die("nothing can be said about how guests boot here");
	if (ksm_start(k->dev, UINT32_MAX, 0, 0))
		ksm_die("kksmd does not start; run this as root");
	/* The first has only an idle neighbour; the second also one that has just booted. */
	while (++n < NR_GUESTS) {
		scanned = ksm_stat("pages_scanned");
		took = boot_one(&g[n], FIRST_ID + n, BOOT_LIMIT_S + 20 * control);
		scanned = ksm_stat("pages_scanned") - scanned;
		check(took, "guest %d boots to the end at full speed of kksmd, in %.1f s: %.2f times the control",
		      g[n].id, took, took / control);
		check(scanned / (n + 1) >= (long long)guest_pages(&g[n]),
		      "meanwhile kksmd went over a guest's memory %.0f times",
		      (double)scanned / (n + 1) / guest_pages(&g[n]));
		if (!took)
			break;
	}
	start_kksmd(k);
	if (n < NR_GUESTS)
		guest_kill(&g[n], SIGKILL);
	end_guests(g, n);
}
