// SPDX-License-Identifier: GPL-2.0-only
/*
 * watch.c - let a scanner work until nothing more comes of it; see watch.h
 *
 * Both scanners are judged by one rule. Idle passes, which only find out that nothing more
 * comes, are not part of the account: they cost ksmd much more.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "ksm_util.h"
#include "watch.h"

/* It has settled when in so many seconds, and passes, not a thousandth was added. */
#define SETTLE_S	5
#define SETTLE_SCANS	3
/* Ten times what was seen under emulation. */
#define LIMIT_S		1800

#define STEP_US		200000
#define MAX_STEPS	(LIMIT_S * 5)

const char *watch_name(const struct watch *w)
{
	return w->who ? w->who->name : "nobody";
}

void watch_begin(struct watch *w, const char *scene, const struct scanner *who)
{
	*w = (struct watch){ .scene = scene, .who = who, .begin = now() };
	if (who)
		who->prepare(false);
}

void watch_memory(struct watch *w, int guests)
{
	if (now() < w->next_sample)
		return;
	w->next_sample = now() + 1;
	printf("sample\t%s\t%s\t%.1f\t%.0f\t%d\n", w->scene, watch_name(w), now() - w->begin,
	       PAGES_MIB(ksm_meminfo("MemTotal") - ksm_meminfo("MemAvailable")), guests);
}

struct outcome watch_settle(struct watch *w, int guests, void (*show)(double seconds, bool end))
{
	static struct outcome steps[MAX_STEPS];
	double start = now(), cpu = scanner_cpu(w->who), best = 0;
	double since = start, scans = w->who->full_scans(), shown = 0;
	int n = 0, i;

	w->who->start();
	do {
		usleep(STEP_US);
		steps[n].saved = PAGES_MIB(w->who->saved());
		steps[n].cpu = scanner_cpu(w->who) - cpu;
		steps[n].wall = now() - start;
		if (steps[n].saved > best * 1.001) {
			best = steps[n].saved;
			since = now();
			scans = w->who->full_scans();
		}
		watch_memory(w, guests);
		if (now() >= shown + 1) {
			shown = now();
			show(shown - start, false);
		}
		if (++n == MAX_STEPS)
			ksm_die("%s did not settle in %d s; is this machine very busy?", w->who->name, LIMIT_S);
	} while (now() - since < SETTLE_S || w->who->full_scans() < scans + SETTLE_SCANS);
	w->who->stop();
	show(now() - start, true);

	for (i = 0; steps[i].saved < 0.99 * steps[n - 1].saved; i++)
		;
	steps[i].saved = steps[n - 1].saved;
	return steps[i];
}
