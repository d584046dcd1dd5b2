// SPDX-License-Identifier: GPL-2.0-only
/*
 * alone.c - what is measured of /dev/ksm alone, for bench.c: several threads, huge pages that are
 * split, a virtual machine's memory
 */
#include <stdatomic.h>
#include <stdio.h>

#include "../ksm_util.h"
#include "alone.h"
#include "bench.h"
#include "guest.h"
#include "meter.h"
#include "scanner.h"
#include "worker.h"
#include "workload.h"

const char *young_module;

#define SPEED_UP_PASSES 3

/* The same work, done by callers of KSM_SCAN on so many CPUs; how long it takes. */
static double share_work(unsigned int callers)
{
	double start, took;
	unsigned int i;

	tell_all(fill, 0);
	attach_all(&ksmdev);
	atomic_store(&common->left, SPEED_UP_PASSES * all_pages());
	start = now();
	for (i = 0; i < callers; i++)
		ksm_call_start(&worker[i], scan_share, i, 0, 0, 0);
	for (i = 0; i < callers; i++)
		ksm_call_finish(&worker[i]);
	took = now() - start;
	if (ksmdev.saved() < 0.99 * possible())
		say("%s: %u callers of KSM_SCAN: only %.1f %% of what is possible after %d passes",
		    load->name, callers, 100 * ksmdev.saved() / possible(), SPEED_UP_PASSES);
	detach_all(&ksmdev);
	return took;
}

void speed_up(void)
{
	double one, two;

	if (cpus() < 2)
		return;
	one = share_work(1);
	two = share_work(2);
	say("%s: KSM_SCAN, %d passes: one caller %.3f s, two %.3f s", load->name,
	    SPEED_UP_PASSES, one, two);
	sample(load->name, "speed-up of 2 threads", "times", &ksmdev, one / two);
}

#define SPLIT_PASSES 6

/*
 * Huge pages of which so many pages are the same in both workers; all that have any are
 * split. CPU a huge page until all is merged.
 */
static double split_part(unsigned int part)
{
	double splits = ksmdev_stat("thp_splits"), before, freed;
	unsigned long nr_huge;
	char figure[64];
	struct point p;

	tell_all(fill_part, part);
	nr_huge = tell_all(huge, 0) / KSM_HUGE_PAGES;
	before = free_pages();
	attach_all(&ksmdev);
	p = scan(SPLIT_PASSES * all_pages());
	splits = ksmdev_stat("thp_splits") - splits;
	freed = free_pages() - before;
	if (!nr_huge || (part && (splits < nr_huge || ksmdev.saved() < nr_huge / 2 * part)))
		say("%s, %u of 512: %.0f of %lu huge pages were split, and %.0f pages merged",
		    load->name, part, splits, nr_huge, ksmdev.saved());
	say("%s, %u of 512: %.3f s CPU, %.0f pages freed", load->name, part, p.cpu, freed);
	if (part) {
		snprintf(figure, sizeof(figure), "%3u of 512 equal: freed, net", part);
		sample(load->name, figure, "pages/huge page", &ksmdev, freed / nr_huge);
	}
	detach_all(&ksmdev);
	return nr_huge ? p.cpu / nr_huge : 0;
}

void split_cost(void)
{
	static const unsigned int parts[] = { 8, 32, 64, 128, 256 };
	const unsigned int n = sizeof(parts) / sizeof(*parts);
	double x = 0, y = 0, xx = 0, xy = 0, none, merge, split;
	long long threshold = ksm_stat("thp_split_threshold");
	char text[32], figure[64];
	unsigned int i;

	ksmdev_set("thp_split_threshold", "1");
	none = split_part(0);
	for (i = 0; i < n; i++) {
		double cost = split_part(parts[i]) - none;

		snprintf(figure, sizeof(figure), "%3u of 512 equal: split and merge, CPU", parts[i]);
		sample(load->name, figure, "us/merged page", &ksmdev, cost / parts[i] * 1e6);
		x += parts[i];
		y += cost;
		xx += (double)parts[i] * parts[i];
		xy += parts[i] * cost;
	}
	merge = (n * xy - x * y) / (n * xx - x * x);
	split = (y - merge * x) / n;
	sample(load->name, "split of a huge page, CPU", "us", &ksmdev, split * 1e6);
	sample(load->name, "merge of one of its pages, CPU", "us", &ksmdev, merge * 1e6);
	say("%s: a split takes %.1f us, a merge %.1f us", load->name, split * 1e6, merge * 1e6);
	snprintf(text, sizeof(text), "%lld", threshold);
	ksmdev_set("thp_split_threshold", text);
}

static double pass_ns(unsigned int n)
{
	return scan(n * all_pages()).cpu / n / all_pages() * 1e9;
}

/* The share of its pages, or of their 2 MiB, in %, that a guest's page tables call accessed. */
static double ask_young(unsigned long step, bool flush, double *ns)
{
	double young;

	ksm_shell("insmod %s pid=%d start=%lu npages=%zu step=%lu flush=%d", young_module,
		  worker[0].pid, (unsigned long)base, load_pages, step, flush);
	*ns = read_number("/sys/module/young/parameters/took_ns") / load_pages;
	young = read_number("/sys/module/young/parameters/nr_young") * step / load_pages;
	ksm_shell("rmmod young");
	return 100 * young;
}

void guest(void)
{
	enum { TIMES = 4 };
	struct ksm_child *vm = &worker[0];
	const char *name = load->name;
	double hashed, ns, young;
	long watched, free;
	int i;

	tell_all(fill, 0);
	ksm_call(vm, guest_start, base, load_pages, 0);
	ksm_call(vm, guest_write, 0, 1, 1);
	attach_all(&ksmdev);
	sample(name, "pass that reads every page, CPU", "ns/page", &ksmdev, pass_ns(1));
	scan(3 * all_pages());
	sample(name, "write bit: pass while the guest rests, CPU", "ns/page", &ksmdev, pass_ns(10));

	hashed = ksmdev_stat("pages_hashed");
	for (i = 0, ns = 0; i < TIMES; i++) {
		ksm_call(vm, guest_read, 1, 0, 0);
		ns += pass_ns(1) / TIMES;
	}
	hashed = 100 * (ksmdev_stat("pages_hashed") - hashed) / TIMES / load_pages;
	sample(name, "write bit: pass after the guest read all, CPU", "ns/page", &ksmdev, ns);
	sample(name, "write bit: to be read anew then", "% of pages", &ksmdev, hashed);
	say("%s, write bit: the guest read all, the next pass %.1f %% of it", name, hashed);

	for (i = 0, ns = 0; i < TIMES; i++) {
		ksm_call(vm, guest_write, i, 10, 2);
		ns += pass_ns(1) / TIMES;
		scan(all_pages());
	}
	sample(name, "write bit: pass after the guest wrote a tenth, CPU", "ns/page", &ksmdev, ns);

	watched = ksm_call(vm, guest_write, 0, 1, 3);
	free = ksm_call(vm, guest_write, 0, 1, 4);
	sample(name, "guest's first write to a watched page", "us", &ksmdev,
	       watched / 1e3 / load_pages);
	sample(name, "guest's write to another page", "us", &ksmdev, free / 1e3 / load_pages);
	say("%s: a write to a watched page takes %.2f us, to another %.2f us", name,
	    watched / 1e3 / load_pages, free / 1e3 / load_pages);

	ask_young(1, false, &ns);
	young = ask_young(1, false, &ns);
	sample(name, "accessed bit: asked for each page while the guest rests", "ns/page", &ksmdev, ns);
	if (young)
		say("%s: %.1f %% were accessed by nobody", name, young);
	ksm_call(vm, guest_read, 1, 0, 0);
	young = ask_young(1, false, &ns);
	sample(name, "accessed bit: asked for each page after the guest read all", "ns/page",
	       &ksmdev, ns);
	sample(name, "accessed bit: to be read anew then", "% of pages", &ksmdev, young);
	say("%s, accessed bit: the guest read all, a pass would read %.1f %% of it", name, young);
	ksm_call(vm, guest_read, 1, 0, 0);
	ask_young(1, true, &ns);
	sample(name, "accessed bit: the same, with flushes", "ns/page", &ksmdev, ns);
	ksm_call(vm, guest_read, 100, 0, 0);
	young = ask_young(KSM_HUGE_PAGES, false, &ns);
	sample(name, "accessed bit: asked for 2 MiB at once", "ns/page", &ksmdev, ns);
	sample(name, "accessed bit: to be read anew if the guest read a hundredth", "% of pages",
	       &ksmdev, young);
	detach_all(&ksmdev);
}
