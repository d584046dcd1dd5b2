// SPDX-License-Identifier: GPL-2.0-only
/*
 * main.c - random memory operations against a shadow copy while pages merge
 *
 * Worker processes of two threads each write, remap, protect, advise, pin, fork
 * and exit at random in registered memory, while kksmd and two scan fds share
 * whatever they can as fast as they can. Each thread keeps a description of
 * what every page of its own must hold in shared memory, which is never
 * registered, and compares whole pages with it at random and at the end. So the
 * oracle is what the program wrote, not what the driver says about itself.
 *
 * The seed is printed; with -s the same operations are drawn again. What the
 * scheduler does in between is of course another matter.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hammer.h"

struct board *board;
long seed;


/* What the command line says. */
static int seconds = 60, n_workers = 3, zram_mib;
static bool ksmd;

static pid_t workers[MAX_WORKERS], scanners[SCANNERS];
static unsigned int generations[MAX_WORKERS];
static bool killed[MAX_WORKERS];

static void spawn_worker(int nr)
{
	pid_t pid;

	fflush(stdout);
	fflush(stderr);
	pid = fork();
	if (!pid)
		worker(nr, generations[nr]);
	if (pid < 0) {
		perror("hammer: fork");
		board->failed = 1;
		return;
	}
	workers[nr] = pid;
	killed[nr] = false;
	generations[nr]++;
}

/* What an administrator might do meanwhile. */
static void disturb(int dev, struct thread *t)
{
	char text[32];
	int nr;

	switch (rnd(t, 8)) {
	case 0:
		write_text("/proc/sys/vm/compact_memory", "1");
		break;
	case 1:
		write_text("/proc/sys/vm/drop_caches", rnd(t, 2) ? "2" : "3");
		break;
	case 2:
		snprintf(text, sizeof(text), "%u", rnd(t, 4) ? 100000 : rnd(t, 64));
		write_text(PARAM "max_kernel_pages", text);
		break;
	case 3:
	case 4:
		set_kthread(dev, t);
		break;
	case 5:
		nr = rnd(t, n_workers);
		if (workers[nr] > 0) {
			killed[nr] = true;
			kill(workers[nr], SIGKILL);
		}
		break;
	default:
		nr = rnd(t, SCANNERS);
		if (scanners[nr] > 0)
			kill(scanners[nr], SIGUSR1);
	}
}

static void reap_all(bool respawn)
{
	int status, nr;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (nr = 0; nr < SCANNERS; nr++) {
			if (scanners[nr] != pid)
				continue;
			scanners[nr] = 0;
			if (status) {
				fprintf(stderr, "hammer: scanner ended with status %#x\n", status);
				board->failed = 1;
			}
		}
		for (nr = 0; nr < n_workers; nr++) {
			if (workers[nr] != pid)
				continue;
			workers[nr] = 0;
			if (status && !(killed[nr] && WIFSIGNALED(status) &&
					WTERMSIG(status) == SIGKILL)) {
				fprintf(stderr, "hammer: worker %d ended with status %#x\n",
					nr, status);
				board->failed = 1;
			}
			if (respawn && !board->failed)
				spawn_worker(nr);
		}
	}
}

struct totals {
	uint64_t ops, verified, unmerges, forks, splices, pins, moves, merged, told;
};

static void add_up(struct totals *sum)
{
	int nr, i;

	memset(sum, 0, sizeof(*sum));
	for (nr = 0; nr < n_workers; nr++) {
		for (i = 0; i < THREADS; i++) {
			sum->ops += board->thread[nr][i].ops;
			sum->verified += board->thread[nr][i].verified;
			sum->unmerges += board->thread[nr][i].unmerges;
			sum->forks += board->thread[nr][i].forks;
			sum->splices += board->thread[nr][i].splices;
			sum->pins += board->thread[nr][i].pins;
			sum->moves += board->thread[nr][i].moves;
			sum->merged += board->thread[nr][i].merged;
			sum->told += board->thread[nr][i].told;
		}
	}
}

/* Is there an operation that is too rare to have been done yet? */
static bool lacks_some(const struct totals *sum)
{
	return !sum->splices || !sum->pins || !sum->moves || !sum->merged || !sum->told;
}

static void usage(FILE *to)
{
	fprintf(to,
		"usage: hammer [-t SECONDS] [-s SEED] [-p PROCESSES] [-z MIB] [-k]\n"
		"  -t  how long to run (60)\n"
		"  -s  seed of the random operations (drawn from the clock)\n"
		"  -p  number of processes, of %d threads each (3)\n"
		"  -z  swap to so many MiB of zram meanwhile\n"
		"  -k  run the kernel's own ksmd over the same memory as well\n", THREADS);
}

static void parse(int argc, char **argv)
{
	int opt;

	seed = time(NULL) ^ ((long)getpid() << 20);
	while ((opt = getopt(argc, argv, "t:s:p:z:kh")) != -1) {
		switch (opt) {
		case 't':
			seconds = atoi(optarg);
			break;
		case 's':
			seed = strtol(optarg, NULL, 0);
			break;
		case 'p':
			n_workers = atoi(optarg);
			break;
		case 'z':
			zram_mib = atoi(optarg);
			break;
		case 'k':
			ksmd = true;
			break;
		case 'h':
			usage(stdout);
			exit(0);
		default:
			usage(stderr);
			exit(2);
		}
	}
	if (seconds < 1 || zram_mib < 0 || n_workers < 1 || n_workers > MAX_WORKERS) {
		usage(stderr);
		exit(2);
	}
	if (sysconf(_SC_PAGESIZE) != PAGE_BYTES) {
		fprintf(stderr, "hammer: this program was built for pages of %lu bytes\n",
			PAGE_BYTES);
		exit(2);
	}
}

static void print_stacks(void)
{
	for (int i = 0; i < n_workers; i++)
		if (workers[i] > 0)
			print_stack(workers[i]);
	for (int i = 0; i < SCANNERS; i++)
		if (scanners[i] > 0)
			print_stack(scanners[i]);
}

/* The most that was merged at once. */
static long max_shared, max_zero;

static void keep_max(long *max, long n)
{
	if (n > *max)
		*max = n;
}

static void print_line(double time, const struct totals *sum)
{
	printf("hammer: %3.0f s: %llu ops, %llu pages verified, %llu forks, %llu splices, %llu pins, %llu tables moved, %llu unmerges, %llu merged at once; %ld shared, %ld sharing, %ld zero, %ld passes\n",
	       time, (unsigned long long)sum->ops, (unsigned long long)sum->verified,
	       (unsigned long long)sum->forks, (unsigned long long)sum->splices,
	       (unsigned long long)sum->pins, (unsigned long long)sum->moves,
	       (unsigned long long)sum->unmerges, (unsigned long long)sum->merged,
	       read_number(SYSFS, "pages_shared"), read_number(SYSFS, "pages_sharing"),
	       read_number(SYSFS, "zero_pages"), read_number(SYSFS, "full_scans"));
	fflush(stdout);
}

/* A minute more, where it is slow, for what has not been done at all. */
#define MORE_SECONDS 60

/* Until the time is up, or something has failed. */
static void watch(int dev)
{
	double start = now(), next_line = start + 5, last_progress = start;
	struct thread admin = { .rng = mix(seed + 1) };
	uint64_t last_ops = 0;
	struct totals sum = { };

	while (now() < start + seconds + (lacks_some(&sum) ? MORE_SECONDS : 0) && !board->failed) {
		usleep(50000);
		reap_all(true);
		if (!rnd(&admin, 6))
			disturb(dev, &admin);
		keep_max(&max_shared, read_number(SYSFS, "pages_sharing") +
				      read_number(SYSFS, "pages_shared"));
		keep_max(&max_zero, read_number(SYSFS, "zero_pages"));
		add_up(&sum);
		if (sum.ops != last_ops) {
			last_ops = sum.ops;
			last_progress = now();
		} else if (now() > last_progress + 90) {
			fprintf(stderr, "hammer: nothing has moved for 90 s\n");
			print_stacks();
			board->failed = 1;
		}
		if (now() < next_line)
			continue;
		next_line += 5;
		print_line(now() - start, &sum);
	}
}

/* Ask first; whoever does not come within a minute is stuck. */
static void end_all(void)
{
	double start = now();

	board->stop = 1;
	for (;;) {
		int left = 0;

		reap_all(false);
		for (int i = 0; i < n_workers; i++)
			left += workers[i] > 0;
		for (int i = 0; i < SCANNERS; i++)
			left += scanners[i] > 0;
		if (!left)
			break;
		if (now() > start + (board->failed ? 3 : 180)) {
			if (!board->failed) {
				print_stacks();
				fprintf(stderr, "hammer: processes did not end within 180 s\n");
			}
			for (int i = 0; i < n_workers; i++)
				if (workers[i] > 0)
					kill(workers[i], SIGKILL);
			for (int i = 0; i < SCANNERS; i++)
				if (scanners[i] > 0)
					kill(scanners[i], SIGKILL);
			board->failed = 1;
			break;
		}
		usleep(20000);
	}
	/* And the children of those that were killed. */
	while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
		;
}

static int report(void)
{
	struct totals sum;

	add_up(&sum);
	printf("hammer: %llu ops, %llu pages verified, %llu tables moved, %llu scans (%llu interrupted), at most %ld pages shared and %ld zero pages at once\n",
	       (unsigned long long)sum.ops, (unsigned long long)sum.verified,
	       (unsigned long long)sum.moves, (unsigned long long)board->scans,
	       (unsigned long long)board->scan_eintr, max_shared, max_zero);
	printf("hammer: %llu splices, %llu pins, %llu pages merged at once, fdinfo read %llu times\n",
	       (unsigned long long)sum.splices, (unsigned long long)sum.pins,
	       (unsigned long long)sum.merged, (unsigned long long)sum.told);
	/* A hammer that never hit a merged page has shown nothing. */
	if (!board->failed && (max_shared < 2 || !max_zero || !sum.verified)) {
		fprintf(stderr, "hammer: too little was merged for this to be a test\n");
		board->failed = 1;
	}
	/* Nor has one that never did what it is there for: where there is no io_uring, pin. */
	if (!board->failed && lacks_some(&sum)) {
		fprintf(stderr, "hammer: some of these were never done\n");
		board->failed = 1;
	}
	printf("hammer: %s, seed %ld\n", board->failed ? "FAILED" : "passed", seed);
	return board->failed ? 1 : 0;
}

int main(int argc, char **argv)
{
	struct ksm_kthread_info k = { .pages_to_scan = 2000, .flags = ksm_control_flags_run };
	struct ksm_user_scan probe = { .pages_to_scan = 1 };
	int dev, scan;
	char max_kernel_pages[32];

	/* Where a forked child ends that was told to exec. */
	if (argc == 2 && !strcmp(argv[1], "--exit"))
		return 0;
	parse(argc, argv);
	printf("hammer: seed %ld, %d processes of %d threads, %d s\n", seed,
	       n_workers, THREADS, seconds);
	fflush(stdout);

	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	dev = open("/dev/ksm", O_RDWR | O_CLOEXEC);
	if (board == MAP_FAILED || dev < 0) {
		perror("hammer: /dev/ksm (is the module loaded?)");
		return 1;
	}
	scan = ioctl(dev, KSM_CREATE_SCAN);
	if (scan < 0 || ioctl(scan, KSM_SCAN, &probe) ||
	    ioctl(dev, KSM_START_STOP_KTHREAD, &k)) {
		perror("hammer: cannot scan or start kksmd");
		return 1;
	}
	snprintf(max_kernel_pages, sizeof(max_kernel_pages), "%ld",
		 read_number(PARAM, "max_kernel_pages"));
	if (zram_mib && swap_on(zram_mib))
		return 1;
	if (ksmd) {
		write_text("/sys/kernel/mm/ksm/pages_to_scan", "1000");
		write_text("/sys/kernel/mm/ksm/run", "1");
	}

	/* Children of killed workers come to us, so that none is left behind. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	for (int i = 0; i < SCANNERS; i++) {
		scanners[i] = fork();
		if (!scanners[i])
			scanner();
	}
	for (int i = 0; i < n_workers; i++)
		spawn_worker(i);
	watch(dev);
	end_all();

	k.flags = 0;
	if (ioctl(dev, KSM_START_STOP_KTHREAD, &k)) {
		perror("hammer: stop");
		board->failed = 1;
	}
	if (ksmd) {
		write_text("/sys/kernel/mm/ksm/run", "2");
		write_text("/sys/kernel/mm/ksm/run", "0");
	}
	write_text(PARAM "max_kernel_pages", max_kernel_pages);
	if (!board->failed && check_counters(scan))
		board->failed = 1;
	if (zram_mib) {
		long swapped = swap_off();

		printf("hammer: %ld pages were swapped out\n", swapped);
		if (swapped < 0 || (!board->failed && !swapped))
			board->failed = 1;
	}
	close(scan);
	close(dev);
	return report();
}
