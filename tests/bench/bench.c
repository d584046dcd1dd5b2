// SPDX-License-Identifier: GPL-2.0-only
/*
 * bench.c - ksmd and /dev/ksm side by side: same kernel, same processes, same bytes
 *
 * For each workload, processes are made which fill their memory, have one of the
 * two scan it while that is measured, empty and fill it again with the same bytes,
 * and have the other one scan it; then the whole is repeated in the other order.
 *
 * Each value that was measured is printed as a line "sample", tab, workload, figure,
 * unit, who, value; tests/bench/report makes the table of them. Other lines tell how
 * it goes on. No figure is judged here.
 *
 * A pass is over when full_scans says so, or when KSM_SCAN has visited as many pages
 * as are registered. How much is shared is told by page tables while time is measured, see
 * saved.c, and by the scanner afterwards, which has it counted then.
 *
 * CPU time is that of the scanner's threads, or of the caller of KSM_SCAN, and of the kernel's
 * workers, all from the scheduler: /dev/ksm has shared pages counted by a work item. Nothing tells
 * whose work a worker did, so what they did for anybody else meanwhile is in the figures of both
 * sides.
 *
 * Here is the list of the workloads, and who goes through it. What they are filled with is in
 * workload.c, the processes are in worker.c; passes are watched in meter.c. What is measured is in
 * measure.c, so far as it is of both, and in alone.c, so far as it is of /dev/ksm only.
 */
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../ksm_util.h"
#include "alone.h"
#include "bench.h"
#include "measure.h"
#include "meter.h"
#include "scanner.h"
#include "worker.h"
#include "workload.h"

static double begin;

#define FIELDMAP(name, mib, what) \
	{ name, 4, mib, fieldmap_page, 3 * 700, what, false, false }
#define GROWTH(name, mib, what) FIELDMAP("growth " name, (mib) / 4, CONVERGE | COST | (what))
#define ALIKE(name, mib, what) \
	{ "alike, " name, 1, mib, same_page, 0, TWO_PASSES | IDLE | COST | (what), false, false }

static const struct workload workloads[] = {
	FIELDMAP("fieldmap", 128, CONVERGE | IDLE | CHURN | FIRST_WRITE | LATENCY | SPEED_UP),
	{ "fieldmap in one process", 1, 32, quarters_page, 3 * 700 / 4, CONVERGE | TLB,
	  false, false },
	{ "zero", 4, 128, zero_page, 4 * 600, CONVERGE | IDLE | FIRST_WRITE, false, true },
	{ "unique", 4, 128, own_page, 0, TWO_PASSES | IDLE, false, false },
	{ "tail", 4, 128, tail_page, 0, TWO_PASSES | IDLE, false, false },
	{ "thp", 4, 128, fieldmap_page, 3 * 700, CONVERGE | IDLE, true, false },
	GROWTH("64 MiB", 64, 0),
	GROWTH("512 MiB", 512, 0),
	GROWTH("2 GiB", 2048, SLOW),
	GROWTH("8 GiB", 8192, SLOW),
	ALIKE("held 8 MiB", 8, HELD),
	ALIKE("held 128 MiB", 128, HELD),
	ALIKE("no room 8 MiB", 8, NO_ROOM),
	ALIKE("no room 128 MiB", 128, NO_ROOM),
	{ "thp split", 2, 64, NULL, 0, SPLITS, true, false },
	{ "kvm", 1, 64, own_page, 0, GUEST, false, false },
	{ "sparse, 4 GiB", 1, 4UL << 10, same_page, 0, SPARSE, false, false },
	{ "sparse, 32 TiB", 1, 32UL << 20, same_page, 0, SPARSE, false, false },
};

/*
 * Output
 */

void say(const char *format, ...)
{
	va_list args;

	printf("%6.1f s  ", now() - begin);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
}

void sample(const char *workload, const char *figure, const char *unit,
		   const struct scanner *scanner, double value)
{
	if (value == UNKNOWN)
		return;
	printf("sample\t%s\t%s\t%s\t%s\t%.9g\n", workload, figure, unit, scanner->name, value);
}

static void with(const struct scanner *scanner, void (*what)(const struct scanner *), bool slow)
{
	long long room = ksm_stat("max_kernel_pages");
	char text[32];

	if (scanner == &ksmd && (load->what & NO_ROOM || (load->what & SLOW && !slow)))
		return;
	if (load->what & NO_ROOM)
		ksmdev_set("max_kernel_pages", "0");
	what(scanner);
	if (load->what & NO_ROOM) {
		snprintf(text, sizeof(text), "%lld", room);
		ksmdev_set("max_kernel_pages", text);
	}
}

static void both(unsigned int round, void (*what)(const struct scanner *), bool slow)
{
	with(round % 2 ? &ksmdev : &ksmd, what, slow);
	with(round % 2 ? &ksmd : &ksmdev, what, slow);
}

/* Processes of their own for each workload and round, the same ones for both sides. */
static void run(const struct workload *workload, unsigned int round, bool quick, bool slow)
{
	unsigned int i;

	load = workload;
	load_pages = load->mib * MIB_PAGES;
	if (!map_memory()) {
		say("%s: this kernel has no room for such a mapping", load->name);
		return;
	}
	if (load->what & TLB && tlb_interrupts() == UNKNOWN) {
		say("%s: this kernel has no interrupts for TLB flushes", load->name);
		return;
	}
	if (load->huge && access("/sys/kernel/mm/transparent_hugepage", F_OK)) {
		say("%s: this kernel has no huge pages", load->name);
		return;
	}
	if (!(load->what & SPARSE) && all_pages() > 0.95 * ksm_memfree()) {
		say("%s: left out, for only %ld MiB of memory are free", load->name,
		    ksm_memfree() / MIB_PAGES);
		return;
	}
	if (load->what & GUEST && (!young_module || !ksm_has_virtualization())) {
		say("%s: there is no virtualization here", load->name);
		return;
	}
	if (load->huge)
		ksm_write_file("/proc/sys/vm/compact_memory", "1");
	for (i = 0; i < load->workers; i++)
		ksm_spawn(&worker[i]);
	tell_all(renew, 0);
	if (load->what & SPARSE)
		both(round, sparse, slow);
	else if (load->what & SPLITS)
		split_cost();
	else if (load->what & GUEST)
		guest();
	else
		both(round, measure, slow);
	if (!quick && load->what & LATENCY && cpus() > 1)
		both(round, latency, slow);
	if (!quick && load->what & SPEED_UP)
		speed_up();
	for (i = 0; i < load->workers; i++)
		ksm_end(&worker[i]);
	munmap(place, place_size);
}

/*
 * A machine's memory is there; that of a virtual one is made by its host at the first
 * touch, and the time for that would be counted against whoever needs a new page.
 */
static void touch_all_memory(void)
{
	static char some[MIB];
	long left = ksm_memfree() / MIB_PAGES * 9 / 10;
	int fd = memfd_create("bench", MFD_CLOEXEC);

	if (fd < 0)
		ksm_die("memfd_create: %m");
	memset(some, 1, sizeof(some));
	for (; left > 0; left--)
		if (write(fd, some, sizeof(some)) < 0)
			ksm_die("write to a file in memory: %m");
	close(fd);
}

static void __attribute__((noreturn)) usage(int status)
{
	fprintf(status ? stderr : stdout,
		"Usage: bench [-q] [-s] [-r ROUNDS] [-c TTY] [-y FILE] [-w NAME]...\n"
		"Measure ksmd and /dev/ksm. As root, with nobody else using either.\n"
		"  -q  only fieldmap: convergence, idle and churn passes\n"
		"  -s  let ksmd do also what takes it long\n"
		"  -r  how often (3); the order of the two changes each time\n"
		"  -c  where to ask the host of User-Mode Linux for CPU time\n"
		"  -y  young.ko, to measure what a guest's accessed bits would tell\n"
		"  -w  only workloads whose names begin so\n");
	exit(status);
}

static bool wanted(const char *name, char *const *names, unsigned int n)
{
	unsigned int i;

	for (i = 0; i < n; i++)
		if (!strncmp(name, names[i], strlen(names[i])))
			return true;
	return !n;
}

int main(int argc, char **argv)
{
	unsigned int rounds = 3, nr_names = 0, round, i;
	bool quick = false, slow = false;
	char *names[16];
	int option;

	while ((option = getopt(argc, argv, "qsr:c:y:w:h")) != -1) {
		switch (option) {
		case 'q':
			quick = true;
			break;
		case 's':
			slow = true;
			break;
		case 'r':
			rounds = atoi(optarg);
			break;
		case 'c':
			ask_host(optarg);
			break;
		case 'y':
			young_module = optarg;
			break;
		case 'w':
			if (nr_names < 16)
				names[nr_names++] = optarg;
			break;
		case 'h':
			usage(0);
		default:
			usage(2);
		}
	}
	if (optind < argc || !rounds)
		usage(2);

	setvbuf(stdout, NULL, _IOLBF, 0);
	begin = now();
	common = mmap(NULL, sizeof(*common), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (common == MAP_FAILED)
		ksm_die("mmap: %m");
	scanners_open();
	say("%d CPU(s)%s", cpus(), clock_is_coarse ?
	    "; the scheduler counts in ticks, so CPU time is that of the whole system" : "");
	touch_all_memory();
	/* The one that the scanner is not on. */
	pin_to_cpu(0, 1);
	for (i = 0; i < sizeof(workloads) / sizeof(*workloads); i++) {
		if (!wanted(workloads[i].name, names, nr_names) || (quick && i))
			continue;
		for (round = 0; round < rounds; round++) {
			say("%s, round %u of %u", workloads[i].name, round + 1, rounds);
			run(&workloads[i], round, quick, slow);
		}
	}
	say("done");
	return EXIT_SUCCESS;
}
