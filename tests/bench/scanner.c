// SPDX-License-Identifier: GPL-2.0-only
/*
 * scanner.c - ksmd and /dev/ksm behind one interface, for bench.c
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "../ksm_util.h"
#include "scanner.h"

#define KSMD_DIR	"/sys/kernel/mm/ksm/"
#define KSMDEV_DIR	"/sys/class/misc/ksm/"

int scan_fd[2];
bool clock_is_coarse;
static int dev_fd;
/* A worker's own. */
static int area_fd = -1;

double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/*
 * On User-Mode Linux: how long its process has run, as the host knows it. Whoever is at
 * the other end of this line answers each line with /proc/PID/schedstat. To ask takes
 * some time itself, which is taken off.
 */
static FILE *host;
static double asking_takes, asking_took;

static double host_cpu(void)
{
	char line[128];
	double ns;

	if (!host)
		return now();
	if (write(fileno(host), "\n", 1) != 1 || !fgets(line, sizeof(line), host) ||
	    sscanf(line, "%lf", &ns) != 1)
		ksm_die("the host does not say how long we ran");
	asking_took += asking_takes;
	return ns / 1e9 - asking_took;
}

void ask_host(const char *tty)
{
	enum { TIMES = 50 };
	int fd = open(tty, O_RDWR | O_NOCTTY | O_CLOEXEC), i;
	struct termios raw;
	double start;

	if (fd < 0 || tcgetattr(fd, &raw))
		ksm_die("%s: %m", tty);
	cfmakeraw(&raw);
	if (tcsetattr(fd, TCSANOW, &raw))
		ksm_die("%s: %m", tty);
	host = fdopen(fd, "r");
	start = host_cpu();
	for (i = 1; i < TIMES; i++)
		host_cpu();
	asking_takes = (host_cpu() - start) / TIMES;
}

double own_cpu(void)
{
	struct timespec ts;

	if (clock_is_coarse)
		return host_cpu();
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

int cpus(void)
{
	return sysconf(_SC_NPROCESSORS_ONLN);
}

void pin_to_cpu(int pid, int cpu)
{
	cpu_set_t set;

	if (cpus() < 2)
		return;
	CPU_ZERO(&set);
	CPU_SET(cpu == ANY_CPU ? 0 : cpu, &set);
	if (cpu == ANY_CPU)
		CPU_SET(1, &set);
	if (sched_setaffinity(pid, sizeof(set), &set))
		ksm_die("cannot pin process %d to CPU %d: %m", pid, cpu);
}

double read_number(const char *path)
{
	double value = UNKNOWN;
	FILE *f = fopen(path, "re");

	if (!f)
		return UNKNOWN;
	if (fscanf(f, "%lf", &value) != 1)
		value = UNKNOWN;
	fclose(f);
	return value;
}

static double stat_in(const char *dir, const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "%s%s", dir, name);
	return read_number(path);
}

static void set_in(const char *dir, const char *name, const char *value)
{
	char path[128];
	int err;

	snprintf(path, sizeof(path), "%s%s", dir, name);
	err = ksm_write_file(path, value);
	if (err)
		ksm_die("cannot write %s to %s: %s", value, path, strerror(-err));
}

double ksmdev_stat(const char *name)
{
	return ksm_stat(name);
}

void read_counters(const struct scanner *scanner, double values[MAX_COUNTERS])
{
	unsigned int i;

	scanner->count();
	for (i = 0; i < MAX_COUNTERS; i++)
		values[i] = scanner->counters[i] ?
			    stat_in(scanner->dir, scanner->counters[i]) : UNKNOWN;
}

void ksmdev_set(const char *name, const char *value)
{
	set_in(KSMDEV_DIR, name, value);
}

void ksmdev_reset_hold(void)
{
	ksmdev_set("longest_hold_us", "0");
}

/*
 * The threads
 */

#define MAX_THREADS 65

static int threads[MAX_THREADS];
static unsigned int nr_threads;

static bool is_thread_of(const char *pid, const char *name)
{
	char path[300], comm[32] = "";
	size_t length = strlen(name);
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%s/comm", pid);
	f = fopen(path, "re");
	if (!f)
		return false;
	if (!fgets(comm, sizeof(comm), f))
		comm[0] = 0;
	fclose(f);
	return !strncmp(comm, name, length) && (comm[length] == '\n' || comm[length] == '/');
}

static void find_threads(const char *name)
{
	struct dirent *entry;
	DIR *dir = opendir("/proc");

	nr_threads = 0;
	while (dir && (entry = readdir(dir)))
		if (isdigit(entry->d_name[0]) && is_thread_of(entry->d_name, name) &&
		    nr_threads < MAX_THREADS)
			threads[nr_threads++] = atoi(entry->d_name);
	if (dir)
		closedir(dir);
	if (!nr_threads)
		ksm_die("there is no thread called %s", name);
}

/* In seconds; UNKNOWN if it is gone. */
static double thread_cpu(int pid)
{
	char path[64];
	double ns;

	snprintf(path, sizeof(path), "/proc/%d/schedstat", pid);
	ns = read_number(path);
	return ns == UNKNOWN ? UNKNOWN : ns / 1e9;
}

double scanner_cpu(const struct scanner *scanner)
{
	double sum = 0;
	unsigned int i;

	if (clock_is_coarse)
		return host_cpu();
	if (!nr_threads)
		find_threads(scanner->thread);
	for (i = 0; i < nr_threads; i++) {
		double cpu = thread_cpu(threads[i]);

		if (cpu == UNKNOWN)
			ksm_die("/proc/%d/schedstat cannot be read: the kernel must have CONFIG_SCHED_INFO",
				threads[i]);
		sum += cpu;
	}
	return sum;
}

/* A worker that has nothing to do lives on for minutes, so what it did is not lost. */
double workers_cpu(void)
{
	struct dirent *entry;
	double sum = 0, cpu;
	DIR *dir;

	if (clock_is_coarse)
		return 0;
	dir = opendir("/proc");
	while (dir && (entry = readdir(dir))) {
		if (!isdigit(entry->d_name[0]) || !is_thread_of(entry->d_name, "kworker"))
			continue;
		cpu = thread_cpu(atoi(entry->d_name));
		if (cpu != UNKNOWN)
			sum += cpu;
	}
	if (dir)
		closedir(dir);
	return sum;
}

static void take_threads(const char *name)
{
	unsigned int i;

	find_threads(name);
	/* The other one is for who works meanwhile. */
	for (i = 0; i < nr_threads; i++)
		pin_to_cpu(threads[i], 0);
}

/*
 * ksmd
 */

static void ksmd_set(const char *name, const char *value)
{
	set_in(KSMD_DIR, name, value);
}

static long ksmd_attach(long addr, long npages, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	if (madvise((void *)addr, npages * PGSZ, MADV_MERGEABLE))
		ksm_die("MADV_MERGEABLE: %m: the kernel must have CONFIG_KSM");
	return 0;
}

/* That the memory is gone is enough. */
static long ksmd_detach(long unused, long unused2, long unused3, long unused4)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	return 0;
}

static void ksmd_prepare(bool zero)
{
	ksmd_set("run", "0");
	/*
	 * As fast as it can: no sleep. run=0 waits for a batch to end, so that is
	 * not larger than it must be for the time between batches not to count.
	 */
	ksmd_set("pages_to_scan", "1000");
	ksmd_set("sleep_millisecs", "0");
	ksmd_set("use_zero_pages", zero ? "1" : "0");
	take_threads("ksmd");
}

static void ksmd_finish(void)
{
	ksmd_set("run", "2");
	ksmd_set("run", "0");
}

static void ksmd_start(void)
{
	ksmd_set("run", "1");
}

static void ksmd_stop(void)
{
	ksmd_set("run", "0");
}

static double ksmd_saved(void)
{
	double zero = stat_in(KSMD_DIR, "ksm_zero_pages");

	return stat_in(KSMD_DIR, "pages_sharing") + (zero > 0 ? zero : 0);
}

/* It counts as it goes. */
static void ksmd_count(void)
{
}

static double ksmd_full_scans(void)
{
	return stat_in(KSMD_DIR, "full_scans");
}

/* general_profit is what is saved less the rmap_items; stable_nodes are not in it. */
static double ksmd_metadata(void)
{
	return ksmd_saved() * PGSZ - stat_in(KSMD_DIR, "general_profit");
}

const struct scanner ksmd = {
	.name = "ksmd",
	.thread = "ksmd",
	.attach = ksmd_attach,
	.detach = ksmd_detach,
	.prepare = ksmd_prepare,
	.finish = ksmd_finish,
	.start = ksmd_start,
	.stop = ksmd_stop,
	.saved = ksmd_saved,
	.count = ksmd_count,
	.full_scans = ksmd_full_scans,
	.metadata = ksmd_metadata,
	.dir = KSMD_DIR,
	.counters = { "full_scans", "pages_scanned", "pages_skipped", "pages_shared",
		      "pages_sharing", "ksm_zero_pages", "pages_volatile" },
};

/*
 * /dev/ksm
 */

#define REGION_PAGES (1L << 31)

static long ksmdev_attach(long addr, long npages, long unused, long unused2)
{
	int err;

	(void)unused;
	(void)unused2;
	area_fd = ioctl(dev_fd, KSM_CREATE_SHARED_MEMORY_AREA);
	if (area_fd < 0)
		ksm_die("KSM_CREATE_SHARED_MEMORY_AREA: %m");
	/* A region may have 2^32 - 1 pages at most. */
	while (npages) {
		long n = npages < REGION_PAGES ? npages : REGION_PAGES;

		err = ksm_register(area_fd, (void *)addr, n);
		if (err)
			ksm_die("KSM_REGISTER_MEMORY_REGION: %s", strerror(-err));
		addr += n * PGSZ;
		npages -= n;
	}
	return 0;
}

static long ksmdev_detach(long unused, long unused2, long unused3, long unused4)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	close(area_fd);
	area_fd = -1;
	return 0;
}

static void ksmdev_prepare(bool zero)
{
	(void)zero;
	take_threads("kksmd");
}

static void ksmdev_finish(void)
{
	struct ksm k = { .dev = dev_fd, .scan = scan_fd[0] };

	if (!ksm_wait_no_regions(&k))
		ksm_die("regions of /dev/ksm do not go away: is somebody else using it?");
}

static void ksmdev_start(void)
{
	/* It returns from a scan of any length when it is told to stop. */
	int err = ksm_start(dev_fd, UINT32_MAX, 0, 0);

	if (err)
		ksm_die("KSM_START_STOP_KTHREAD: %s", strerror(-err));
}

static void ksmdev_stop(void)
{
	if (ksm_stop(dev_fd))
		ksm_die("KSM_START_STOP_KTHREAD: cannot stop the thread");
}

static double ksmdev_saved(void)
{
	return ksmdev_stat("pages_sharing") + ksmdev_stat("zero_pages");
}

/* What is told was counted a while ago; ksm_stat() waits until it is anew, all of it. */
static void ksmdev_count(void)
{
	ksmdev_stat("pages_sharing");
}

static double ksmdev_full_scans(void)
{
	return ksmdev_stat("full_scans");
}

static double ksmdev_metadata(void)
{
	return ksmdev_stat("metadata_bytes");
}

const struct scanner ksmdev = {
	.name = "ksmdev",
	.thread = "kksmd",
	.attach = ksmdev_attach,
	.detach = ksmdev_detach,
	.prepare = ksmdev_prepare,
	.finish = ksmdev_finish,
	.start = ksmdev_start,
	.stop = ksmdev_stop,
	.saved = ksmdev_saved,
	.count = ksmdev_count,
	.full_scans = ksmdev_full_scans,
	.metadata = ksmdev_metadata,
	.dir = KSMDEV_DIR,
	.counters = { "full_scans", "pages_scanned", "pages_skipped", "pages_hashed",
		      "pages_shared", "pages_sharing", "zero_pages", "thp_splits" },
};

/* In what steps does the scheduler count? */
static bool find_if_coarse(void)
{
	double start = now(), first, next;
	struct timespec ts;

	do {
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
		first = ts.tv_nsec;
		do {
			clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
			next = ts.tv_nsec;
		} while (next == first);
		if (next > first && next - first < 1e6)
			return false;
	} while (now() - start < 0.1);
	return true;
}

void scanners_open(void)
{
	struct ksm k;

	ksm_begin(&k);
	dev_fd = k.dev;
	scan_fd[0] = k.scan;
	scan_fd[1] = ioctl(dev_fd, KSM_CREATE_SCAN);
	if (scan_fd[1] < 0)
		ksm_die("KSM_CREATE_SCAN: %m");
	clock_is_coarse = find_if_coarse();
	if (clock_is_coarse && cpus() > 1)
		ksm_die("the scheduler's clock is too coarse, and there is more than one CPU");
}
