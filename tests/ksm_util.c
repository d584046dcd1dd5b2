// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksm_util.c - what the test programs share: the device, patterns, page frames,
 * helper processes. See ksm_util.h.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/loop.h>
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ksm_util.h"

#define SYSFS_DIR "/sys/class/misc/ksm"

void ksm_die(const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fputs("# ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	/* Not exit(): the atexit handlers belong to the parent of this fork. */
	_exit(1);
}

int ksm_become(uid_t uid)
{
	if (setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid))
		return -errno;
	return 0;
}

/* ---- the device ---- */

int ksm_open(void)
{
	int fd = open("/dev/ksm", O_RDWR);

	if (fd < 0)
		ksm_die("cannot open /dev/ksm: %s; load ksmdev.ko and run the tests as root",
			strerror(errno));
	return fd;
}

void ksm_begin(struct ksm *k)
{
	if (sysconf(_SC_PAGESIZE) != PGSZ)
		ksm_die("built for pages of %lu bytes: see PAGE_SIZE= in tests/Makefile", PGSZ);
	k->dev = ksm_open();
	k->scan = ioctl(k->dev, KSM_CREATE_SCAN);
	if (k->scan < 0)
		ksm_die("KSM_CREATE_SCAN: %s; see the kernel log", strerror(errno));
	if (ksm_stop(k->dev) || ksm_set_pace(k->dev, 0, 1))
		ksm_die("cannot stop kksmd; run the tests as root");
	/* Frames that change for reasons other than ours would confuse the tests. */
	ksm_write_file("/proc/sys/vm/compaction_proactiveness", "0");
	if (!ksm_wait_no_regions(k))
		ksm_die("%lld regions are registered; stop the programs that use /dev/ksm",
			ksm_stat("regions"));
	/* The last mapper's exit may still be on its way in another CPU. */
	if (!ksm_wait_stat("pages_shared", 0))
		ksm_die("%lld shared pages are mapped; stop the programs that use /dev/ksm",
			ksm_stat("pages_shared"));
}

void ksm_finish(struct ksm *k)
{
	if (ksm_stop(k->dev))
		ksm_die("cannot stop kksmd; run the tests as root");
	close(k->scan);
	close(k->dev);
}

int ksm_area(const struct ksm *k)
{
	int fd = ioctl(k->dev, KSM_CREATE_SHARED_MEMORY_AREA);

	if (fd < 0)
		ksm_die("KSM_CREATE_SHARED_MEMORY_AREA: %s; see the kernel log",
			strerror(errno));
	return fd;
}

int ksm_register(int area, const void *addr, size_t npages)
{
	struct ksm_memory_region region = {
		.npages = npages,
		.addr = (uintptr_t)addr,
	};

	return ioctl(area, KSM_REGISTER_MEMORY_REGION, &region) ? -errno : 0;
}

int ksm_remove(int area)
{
	return ioctl(area, KSM_REMOVE_MEMORY_REGION) ? -errno : 0;
}

int ksm_unmerge(int area)
{
	return ioctl(area, KSM_UNMERGE) ? -errno : 0;
}

int ksm_scan(int scan_fd, uint64_t pages)
{
	while (pages) {
		struct ksm_user_scan scan = {
			.pages_to_scan = pages > 1U << 30 ? 1U << 30 : pages,
		};
		int ret;

		do
			ret = ioctl(scan_fd, KSM_SCAN, &scan);
		while (ret && errno == EINTR);
		if (ret)
			return -errno;
		pages -= scan.pages_to_scan;
	}
	return 0;
}

int ksm_start(int dev, uint32_t pages, uint32_t max_merge, uint32_t sleep_us)
{
	struct ksm_kthread_info info = {
		.sleep = sleep_us,
		.pages_to_scan = pages,
		.max_pages_to_merge = max_merge,
		.flags = ksm_control_flags_run,
	};

	return ioctl(dev, KSM_START_STOP_KTHREAD, &info) ? -errno : 0;
}

int ksm_stop(int dev)
{
	struct ksm_kthread_info info = { .flags = 0 };

	return ioctl(dev, KSM_START_STOP_KTHREAD, &info) ? -errno : 0;
}

int ksm_set_pace(int dev, uint32_t cpu_percent, uint32_t threads)
{
	struct ksm_pace pace = {
		.size = sizeof(pace),
		.cpu_percent = cpu_percent,
		.threads = threads,
	};

	return ioctl(dev, KSM_SET_PACE, &pace) ? -errno : 0;
}

int ksm_merge_range(int area, const void *addr, uint64_t npages, uint64_t *merged)
{
	struct ksm_merge_range range = {
		.size = sizeof(range),
		.addr = (uintptr_t)addr,
		.npages = npages,
	};
	int ret = ioctl(area, KSM_MERGE_RANGE, &range) ? -errno : 0;

	if (merged)
		*merged = range.merged;
	return ret;
}

void ksm_passes(const struct ksm *k, unsigned int passes)
{
	int ret = ksm_scan(k->scan, passes * ksm_stat("pages_registered"));

	if (ret)
		ksm_die("KSM_SCAN: %s; see the kernel log", strerror(-ret));
}

void ksm_merge_all(const struct ksm *k)
{
	ksm_passes(k, 4);
}

void ksm_merge_held(const struct ksm *k)
{
	ksm_passes(k, 18);
}

bool ksm_wait_no_regions(const struct ksm *k)
{
	double end = ksm_now() + KSM_PATIENCE;

	do {
		if (!ksm_stat("regions"))
			return true;
		ksm_passes(k, 1);
		usleep(20000);
	} while (ksm_now() < end);
	return false;
}

static int open_stat(const char *name)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), SYSFS_DIR "/%s", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		ksm_die("cannot open %s: %s; load ksmdev.ko", path, strerror(errno));
	return fd;
}

static long long read_stat(int fd, const char *name)
{
	char buf[64], *end;
	long long value;
	ssize_t len = pread(fd, buf, sizeof(buf) - 1, 0);

	if (len <= 0)
		ksm_die("cannot read %s: %s; see the kernel log", name, strerror(errno));
	buf[len] = '\0';
	value = strtoll(buf, &end, 10);
	if (end == buf || *end != '\n')
		ksm_die("%s holds \"%s\" and not one number; mend the driver", name, buf);
	return value;
}

/* Most is counted now and then, and how long ago that was can be asked; these are not. */
static bool is_told_at_once(const char *name)
{
	static const char *const names[] = {
		"run", "pages_to_scan", "max_pages_to_merge", "sleep_us", "threads", "cpu_percent",
		"full_scans", "max_kernel_pages", "thp_splits", "thp_split_threshold",
		"longest_hold_us", "held_us", "stats_age_ms",
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (!strcmp(name, names[i]))
			return true;
	return false;
}

/*
 * One file is asked again and again: each one that is opened takes a page, which KASAN keeps for
 * a long time, and tests that look at free memory miss it.
 */
static void wait_until_counted(const char *name)
{
	const double asked = ksm_now();
	int fd = open_stat("stats_age_ms");
	long long age;
	double now;

	for (;;) {
		now = ksm_now();
		age = read_stat(fd, "stats_age_ms");
		if ((now - asked) * 1000 > age + 1)
			break;
		if (now > asked + KSM_PATIENCE)
			ksm_die("%s was counted %lld ms ago and is not again", name, age);
		usleep(2000);
	}
	close(fd);
}

long long ksm_stat_told(const char *name)
{
	int fd = open_stat(name);
	long long value = read_stat(fd, name);

	close(fd);
	return value;
}

long long ksm_stat(const char *name)
{
	if (!is_told_at_once(name))
		wait_until_counted(name);
	return ksm_stat_told(name);
}

double ksm_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

double ksm_cpu_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

bool ksm_wait_more(const char *name, long long more, double seconds)
{
	long long start = ksm_stat(name);
	double end = ksm_now() + seconds;

	do {
		if (ksm_stat(name) >= start + more)
			return true;
		usleep(5000);
	} while (ksm_now() < end);
	return false;
}

bool ksm_wait_least(const char *name, long long value)
{
	double end = ksm_now() + KSM_PATIENCE;

	do {
		if (ksm_stat(name) >= value)
			return true;
		usleep(10000);
	} while (ksm_now() < end);
	fprintf(stderr, "# %s is %lld, not %lld or more\n", name, ksm_stat(name), value);
	return false;
}

bool ksm_wait_quiet(const char *name)
{
	double end = ksm_now() + KSM_PATIENCE;

	while (ksm_wait_more(name, 1, 0.5))
		if (ksm_now() > end)
			return false;
	return true;
}

bool ksm_wait_stat(const char *name, long long value)
{
	double end = ksm_now() + KSM_PATIENCE;

	do {
		if (ksm_stat(name) == value)
			return true;
		usleep(20000);
	} while (ksm_now() < end);
	fprintf(stderr, "# %s is %lld, not %lld\n", name, ksm_stat(name), value);
	return false;
}

/* The number after "NAME:" in a file of such lines; false if there is none. */
static bool find_value(const char *path, const char *name, long long *value)
{
	size_t len = strlen(name);
	char line[512];
	bool found = false;
	FILE *f = fopen(path, "re");

	if (!f)
		ksm_die("cannot open %s: %s; is /proc mounted?", path, strerror(errno));
	while (!found && fgets(line, sizeof(line), f)) {
		if (!strncmp(line, name, len) && line[len] == ':') {
			*value = strtoll(line + len + 1, NULL, 10);
			found = true;
		}
	}
	fclose(f);
	return found;
}

long long ksm_fdinfo(int fd, const char *name)
{
	char path[64];
	long long value;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	if (!find_value(path, name, &value))
		ksm_die("%s has no line \"%s:\"; mend the driver", path, name);
	return value;
}

/* ---- the threads ---- */

/* From the kernel's sched.h. */
#define PF_KTHREAD 0x00200000

/* False if there is no such task any more, or it is not a kernel thread. */
static bool read_thread(const char *pid, char name[64], struct ksm_thread *t)
{
	char path[300], line[1024], *open, *close;
	unsigned long utime, stime;
	FILE *f;
	char *p;

	snprintf(path, sizeof(path), "/proc/%s/stat", pid);
	f = fopen(path, "re");
	if (!f)
		return false;
	p = fgets(line, sizeof(line), f);
	fclose(f);
	open = p ? strchr(line, '(') : NULL;
	close = p ? strrchr(line, ')') : NULL;
	if (!open || !close ||
	    sscanf(close + 1,
		   " %c %*d %*d %*d %*d %*d %lu %*u %*u %*u %*u %lu %lu %*d %*d %*d %ld",
		   &t->state, &t->flags, &utime, &stime, &t->nice) != 5)
		return false;
	*close = '\0';
	snprintf(name, 64, "%s", open + 1);
	t->pid = atoi(pid);
	t->cpu = (utime + stime) / (double)sysconf(_SC_CLK_TCK);
	return t->flags & PF_KTHREAD && t->state != 'X' && t->state != 'Z';
}

/* The sums of what is looked for, over all tasks; @name NULL: all of ours. */
static unsigned int find_threads(const char *name, struct ksm_thread *found, double *cpu)
{
	DIR *d = opendir("/proc");
	unsigned int n = 0;
	struct dirent *e;

	while (d && (e = readdir(d))) {
		struct ksm_thread t;
		char comm[64];

		if (!isdigit((unsigned char)*e->d_name) || !read_thread(e->d_name, comm, &t))
			continue;
		if (name ? strcmp(comm, name) :
			   strncmp(comm, "kksmd", 5) || (comm[5] && comm[5] != '/'))
			continue;
		n++;
		if (found)
			*found = t;
		if (cpu)
			*cpu += t.cpu;
	}
	if (d)
		closedir(d);
	return n;
}

bool ksm_find_thread(const char *name, struct ksm_thread *t)
{
	return find_threads(name, t, NULL) == 1;
}

unsigned int ksm_count_threads(void)
{
	return find_threads(NULL, NULL, NULL);
}

double ksm_threads_cpu(void)
{
	double cpu = 0;

	find_threads(NULL, NULL, &cpu);
	return cpu;
}

/* ---- memory ---- */

void *ksm_mmap(size_t npages)
{
	/*
	 * A page without access on either side keeps the kernel from merging the
	 * VMA with a neighbour, whose flags it would then take over.
	 */
	char *p = mmap(NULL, (npages + 2) * PGSZ, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED || mprotect(p + PGSZ, npages * PGSZ, PROT_READ | PROT_WRITE))
		ksm_die("cannot map %zu pages: %s; give the VM more memory (--mem)",
			npages, strerror(errno));
	if (madvise(p + PGSZ, npages * PGSZ, MADV_NOHUGEPAGE) && errno != EINVAL)
		ksm_die("MADV_NOHUGEPAGE: %s", strerror(errno));
	return p + PGSZ;
}

char *ksm_mmap_huge(size_t n)
{
	char *p = ksm_mmap((n + 1) * KSM_HUGE_PAGES);
	bool all = true;

	if (ksm_write_file("/sys/kernel/mm/transparent_hugepage/enabled", "madvise"))
		ksm_die("the kernel needs transparent huge pages");
	p += -(uintptr_t)p % KSM_HUGE_SIZE;
	if (madvise(p, n * KSM_HUGE_SIZE, MADV_HUGEPAGE))
		ksm_die("MADV_HUGEPAGE: %s", strerror(errno));
	for (size_t i = 0; i < n; i++) {
		p[i * KSM_HUGE_SIZE] = 1;
		all &= ksm_pfn_is(ksm_pfn(0, p + i * KSM_HUGE_SIZE), KPF_BIT_THP);
	}
	if (!all)
		ksm_die("no memory for %zu huge pages; give the VM more (--mem)", n);
	return p;
}

/* The finalizer of splitmix64: neighbouring inputs give unrelated outputs. */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static uint64_t page_key(uint64_t seed, uint64_t index)
{
	return mix(mix(seed) ^ index);
}

#define WORD_STEP 0x9e3779b97f4a7c15ULL

void ksm_fill_page(void *page, uint64_t seed, uint64_t index)
{
	uint64_t *word = page, value = page_key(seed, index);

	for (size_t i = 0; i < PGSZ / sizeof(*word); i++, value += WORD_STEP)
		word[i] = value;
}

bool ksm_page_is(const void *page, uint64_t seed, uint64_t index)
{
	const uint64_t *word = page;
	uint64_t value = page_key(seed, index);

	for (size_t i = 0; i < PGSZ / sizeof(*word); i++, value += WORD_STEP)
		if (word[i] != value)
			return false;
	return true;
}

bool ksm_page_is_zero(const void *page)
{
	const uint64_t *word = page;

	for (size_t i = 0; i < PGSZ / sizeof(*word); i++)
		if (word[i])
			return false;
	return true;
}

void ksm_fill(void *addr, size_t npages, uint64_t seed)
{
	for (size_t i = 0; i < npages; i++)
		ksm_fill_page(ksm_page(addr, i), seed, i);
}

size_t ksm_wrong(const void *addr, size_t npages, uint64_t seed)
{
	size_t wrong = 0;

	for (size_t i = 0; i < npages; i++)
		wrong += !ksm_page_is(ksm_page(addr, i), seed, i);
	return wrong;
}

void ksm_fill_same(void *addr, size_t npages, uint64_t seed)
{
	for (size_t i = 0; i < npages; i++)
		ksm_fill_page(ksm_page(addr, i), seed, 0);
}

size_t ksm_wrong_same(const void *addr, size_t npages, uint64_t seed)
{
	size_t wrong = 0;

	for (size_t i = 0; i < npages; i++)
		wrong += !ksm_page_is(ksm_page(addr, i), seed, 0);
	return wrong;
}

size_t ksm_wrong_zero(const void *addr, size_t npages)
{
	size_t wrong = 0;

	for (size_t i = 0; i < npages; i++)
		wrong += !ksm_page_is_zero(ksm_page(addr, i));
	return wrong;
}

/* ---- swap ---- */

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

void ksm_loop_open(struct ksm_loop *loop, size_t npages)
{
	static const char zeros[PGSZ];
	char file[64];
	int backing;

	ksm_shell("modprobe loop");
	/* ramfs, because its pages cannot be swapped out themselves. */
	snprintf(loop->dir, sizeof(loop->dir), "/tmp/ksm_loop.%d", getpid());
	if (mkdir(loop->dir, 0700) || mount("none", loop->dir, "ramfs", 0, NULL))
		ksm_die("cannot mount a ramfs on %s: %s", loop->dir, strerror(errno));
	snprintf(file, sizeof(file), "%s/file", loop->dir);
	backing = open(file, O_RDWR | O_CREAT, 0600);
	/* All of it now: later it would be charged to the cgroup of whoever writes. */
	for (size_t i = 0; i < npages; i++)
		if (write(backing, zeros, PGSZ) != (ssize_t)PGSZ)
			ksm_die("cannot write %s: %s", file, strerror(errno));
	loop->ctl = open("/dev/loop-control", O_RDWR);
	if (loop->ctl < 0)
		ksm_die("cannot open /dev/loop-control: %s", strerror(errno));
	snprintf(loop->path, sizeof(loop->path), "/dev/loop%d",
		 ioctl(loop->ctl, LOOP_CTL_GET_FREE));
	loop->fd = open(loop->path, O_RDWR);
	if (loop->fd < 0 || ioctl(loop->fd, LOOP_SET_FD, backing))
		ksm_die("cannot set up %s: %s", loop->path, strerror(errno));
	close(backing);
	/* Some kernels mount nothing that somebody else might write to. */
	close(loop->fd);
	loop->fd = open(loop->path, O_RDONLY);
}

void ksm_loop_close(struct ksm_loop *loop)
{
	if (ioctl(loop->fd, LOOP_CLR_FD))
		ksm_die("LOOP_CLR_FD of %s: %s", loop->path, strerror(errno));
	close(loop->fd);
	close(loop->ctl);
	/* The loop device lets go of the file a little later. */
	for (int i = 0; umount(loop->dir) && i < 100; i++)
		usleep(20000);
	if (rmdir(loop->dir))
		ksm_die("cannot remove %s: %s", loop->dir, strerror(errno));
}

static int zram_open(size_t npages)
{
	char path[64], buf[24] = "";
	int fd, number;

	ksm_shell("modprobe zram num_devices=0");
	fd = open("/sys/class/zram-control/hot_add", O_RDONLY);
	if (fd < 0 || read(fd, buf, sizeof(buf) - 1) <= 0)
		ksm_die("cannot add a zram device: %s", strerror(errno));
	close(fd);
	number = atoi(buf);
	snprintf(path, sizeof(path), "/sys/block/zram%d/disksize", number);
	snprintf(buf, sizeof(buf), "%lu", npages * PGSZ);
	if (ksm_write_file(path, buf))
		ksm_die("cannot write %s to %s", buf, path);
	return number;
}

void ksm_swap_on(struct ksm_swap *swap, bool loop, size_t npages)
{
	static struct {
		char boot[1024];
		uint32_t version, last_page, nr_badpages;
		char pad[PGSZ - 1024 - 12 - 10];
		char magic[10];
	} __attribute__((packed)) header = { .version = 1, .magic = "SWAPSPACE2" };
	int fd;

	swap->loop.fd = -1;
	if (loop) {
		ksm_loop_open(&swap->loop, npages);
		snprintf(swap->path, sizeof(swap->path), "%s", swap->loop.path);
	} else {
		swap->zram = zram_open(npages);
		snprintf(swap->path, sizeof(swap->path), "/dev/zram%d", swap->zram);
	}
	header.last_page = npages - 1;
	fd = open(swap->path, O_RDWR);
	if (fd < 0 || write(fd, &header, sizeof(header)) != (ssize_t)sizeof(header) || fsync(fd))
		ksm_die("cannot write to %s: %s", swap->path, strerror(errno));
	close(fd);
	if (swapon(swap->path, 0))
		ksm_die("swapon %s: %s", swap->path, strerror(errno));
}

void ksm_swap_off(struct ksm_swap *swap)
{
	char number[16];

	if (swapoff(swap->path))
		ksm_die("swapoff %s: %s", swap->path, strerror(errno));
	if (swap->loop.fd >= 0) {
		ksm_loop_close(&swap->loop);
		return;
	}
	snprintf(number, sizeof(number), "%d", swap->zram);
	if (ksm_write_file("/sys/class/zram-control/hot_remove", number))
		ksm_die("cannot remove zram%s", number);
}

size_t ksm_swapped(const void *addr, size_t npages)
{
	size_t n = 0;

	for (size_t i = 0; i < npages; i++)
		n += !!(ksm_pagemap(0, ksm_page(addr, i)) & PM_SWAPPED);
	return n;
}

size_t ksm_page_out(void *addr, size_t npages)
{
	size_t out = 0;

	for (int i = 0; i < 20 && out < npages; i++) {
		/*
		 * Pages that another CPU has on their way to the LRU lists are
		 * passed over; compaction begins with putting all there.
		 */
		if (i) {
			ksm_write_file("/proc/sys/vm/compact_memory", "1");
			usleep(20000);
		}
		if (madvise(addr, npages * PGSZ, MADV_PAGEOUT))
			ksm_die("MADV_PAGEOUT: %s", strerror(errno));
		out = ksm_swapped(addr, npages);
	}
	return out;
}

/* ---- page frames ---- */

static void read_words(const char *path, uint64_t first, uint64_t *words, size_t n)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t done = 0;

	if (fd < 0)
		ksm_die("cannot open %s: %s; run the tests as root", path, strerror(errno));
	while (done < n * sizeof(*words)) {
		ssize_t len = pread(fd, (char *)words + done,
				    n * sizeof(*words) - done,
				    first * sizeof(*words) + done);

		if (len <= 0)
			ksm_die("cannot read %s: %s; run the tests as root", path,
				len ? strerror(errno) : "end of file");
		done += len;
	}
	close(fd);
}

static void read_pagemap(pid_t pid, const void *addr, size_t npages, uint64_t *entries)
{
	char path[64] = "/proc/self/pagemap";

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	read_words(path, (uintptr_t)addr / PGSZ, entries, npages);
}

uint64_t ksm_pagemap(pid_t pid, const void *addr)
{
	uint64_t entry;

	read_pagemap(pid, addr, 1, &entry);
	return entry;
}

bool ksm_has_soft_dirty(void)
{
	char *page = ksm_mmap(1);
	bool has;

	*page = 1;
	has = ksm_pagemap(0, page) & PM_SOFT_DIRTY;
	munmap(page, PGSZ);
	return has;
}

void ksm_drain_batches(void)
{
	int node = 0, status = -1;
	void *here = &node;

	if (syscall(SYS_move_pages, 0, 1L, &here, &node, &status, MPOL_MF_MOVE) || status)
		ksm_die("move_pages() does not move a page to where it is: %s, %d", strerror(errno), status);
}

void ksm_pfns(pid_t pid, const void *addr, size_t npages, uint64_t *pfns)
{
	read_pagemap(pid, addr, npages, pfns);
	for (size_t i = 0; i < npages; i++) {
		if (!(pfns[i] & PM_PRESENT)) {
			pfns[i] = 0;
			continue;
		}
		pfns[i] &= PM_PFN_MASK;
		if (!pfns[i])
			ksm_die("pagemap shows no frame numbers; run the tests as root");
	}
}

uint64_t ksm_pfn(pid_t pid, const void *addr)
{
	uint64_t pfn;

	ksm_pfns(pid, addr, 1, &pfn);
	return pfn;
}

static uint64_t *alloc_pfns(size_t npages)
{
	uint64_t *pfns = malloc(npages * sizeof(*pfns) + 1);

	if (!pfns)
		ksm_die("out of memory; give the VM more (--mem)");
	return pfns;
}

size_t ksm_same_frames(pid_t pid_a, const void *a, pid_t pid_b, const void *b,
		       size_t npages)
{
	uint64_t *pfns_a = alloc_pfns(npages), *pfns_b = alloc_pfns(npages);
	size_t same = 0;

	ksm_pfns(pid_a, a, npages, pfns_a);
	ksm_pfns(pid_b, b, npages, pfns_b);
	for (size_t i = 0; i < npages; i++)
		same += pfns_a[i] && pfns_a[i] == pfns_b[i];
	free(pfns_a);
	free(pfns_b);
	return same;
}

size_t ksm_moved(pid_t pid, const void *addr, size_t npages, const uint64_t *pfns)
{
	uint64_t *now = alloc_pfns(npages);
	size_t moved = 0;

	ksm_pfns(pid, addr, npages, now);
	for (size_t i = 0; i < npages; i++)
		moved += now[i] != pfns[i];
	free(now);
	return moved;
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

size_t ksm_distinct(pid_t pid, const void *addr, size_t npages)
{
	uint64_t *pfns = alloc_pfns(npages);
	size_t distinct = 0;

	ksm_pfns(pid, addr, npages, pfns);
	qsort(pfns, npages, sizeof(*pfns), compare_u64);
	for (size_t i = 0; i < npages; i++)
		distinct += pfns[i] && (!i || pfns[i] != pfns[i - 1]);
	free(pfns);
	return distinct;
}

uint64_t ksm_kpageflags(uint64_t pfn)
{
	uint64_t flags;

	read_words("/proc/kpageflags", pfn, &flags, 1);
	return flags;
}

bool ksm_pfn_is(uint64_t pfn, int kpf_bit)
{
	return pfn && ksm_kpageflags(pfn) >> kpf_bit & 1;
}

uint64_t ksm_kpagecount(uint64_t pfn)
{
	uint64_t count;

	read_words("/proc/kpagecount", pfn, &count, 1);
	return count;
}

uint64_t ksm_zero_pfn(void)
{
	volatile char *p = ksm_mmap(1);
	uint64_t pfn;

	/* A read fault on untouched anonymous memory maps the zero page. */
	(void)*p;
	pfn = ksm_pfn(0, (void *)p);
	munmap((char *)p - PGSZ, 3 * PGSZ);
	if (!ksm_pfn_is(pfn, KPF_BIT_ZERO_PAGE))
		ksm_die("a read fault did not map the zero page; frame %llx",
			(unsigned long long)pfn);
	return pfn;
}

/* ---- /proc ---- */

int ksm_write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), err = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		err = -errno;
	close(fd);
	return err;
}

long long ksm_read_number(const char *path)
{
	long long value = -1;
	FILE *f = fopen(path, "re");

	if (!f || fscanf(f, "%lld", &value) != 1)
		ksm_die("cannot read %s: %s", path, strerror(errno));
	fclose(f);
	return value;
}

long ksm_meminfo(const char *name)
{
	long long kib;

	ksm_write_file("/proc/sys/vm/stat_refresh", "1");
	if (!find_value("/proc/meminfo", name, &kib))
		ksm_die("/proc/meminfo has no line \"%s:\"", name);
	return kib / (PGSZ / 1024);
}

/* Free pages of all zones, and those in the per-CPU free lists, which are no part of these. */
static long free_pages(void)
{
	char line[256];
	long pages = 0, count;
	FILE *f;

	ksm_write_file("/proc/sys/vm/stat_refresh", "1");
	f = fopen("/proc/zoneinfo", "re");
	if (!f)
		ksm_die("cannot open /proc/zoneinfo: %s; is /proc mounted?", strerror(errno));
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, " pages free %ld", &count) == 1 ||
		    sscanf(line, " count: %ld", &count) == 1)
			pages += count;
	fclose(f);
	return pages;
}

/*
 * The kernel moves up to 2016 pages at a time between the one and the other (since 6.7), and what it
 * moves while we are between the two is counted twice, or not at all. So until it is told twice.
 */
long ksm_memfree(void)
{
	long pages = free_pages(), last;
	int tries = 100;

	do {
		last = pages;
		pages = free_pages();
	} while (labs(pages - last) > 64 && --tries);
	return pages;
}

bool ksm_wait_memfree(long pages)
{
	double end = ksm_now() + KSM_PATIENCE;
	long free;

	do {
		free = ksm_memfree();
		if (free >= pages)
			return true;
		usleep(20000);
	} while (ksm_now() < end);
	fprintf(stderr, "# %ld pages are free, %ld should be\n", free, pages);
	return false;
}

long ksm_status(pid_t pid, const char *name)
{
	char path[64];
	long long kib;

	snprintf(path, sizeof(path), "/proc/%d/status", pid ? pid : getpid());
	if (!find_value(path, name, &kib)) {
		snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid ? pid : getpid());
		if (!find_value(path, name, &kib))
			ksm_die("%s has no line \"%s:\"", path, name);
	}
	return kib / (long)(PGSZ / 1024);
}

long ksm_smaps(const void *addr, const char *name)
{
	size_t len = strlen(name);
	unsigned long start, end;
	bool inside = false;
	char line[512];
	long value = -1;
	FILE *f = fopen("/proc/self/smaps", "re");

	if (!f)
		ksm_die("cannot open /proc/self/smaps: %s", strerror(errno));
	while (value < 0 && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = (uintptr_t)addr >= start && (uintptr_t)addr < end;
		else if (inside && !strncmp(line, name, len) && line[len] == ':')
			value = strtol(line + len + 1, NULL, 10) / (long)(PGSZ / 1024);
	}
	fclose(f);
	if (value < 0)
		ksm_die("/proc/self/smaps has no \"%s:\" for %p", name, addr);
	return value;
}

long ksm_minflt(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
}

void ksm_use_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		ksm_die("cannot run on CPU %d: %s; give the VM two (--cpus)", cpu,
			strerror(errno));
}

bool ksm_can_read(const void *addr)
{
	int fds[2];
	bool ok;

	if (pipe(fds))
		ksm_die("pipe: %s", strerror(errno));
	ok = write(fds[1], addr, 1) == 1;
	close(fds[0]);
	close(fds[1]);
	return ok;
}

void ksm_shell(const char *fmt, ...)
{
	char command[512];
	va_list ap;
	int status;

	va_start(ap, fmt);
	vsnprintf(command, sizeof(command), fmt, ap);
	va_end(ap);
	status = system(command);
	if (status)
		ksm_die("\"%s\" failed with status %#x; the VM must provide it", command,
			status);
}

/* ---- virtual machines ---- */

bool ksm_has_virtualization(void)
{
	static char line[8192];
	bool found = false;
	FILE *f = fopen("/proc/cpuinfo", "re");

	if (!f)
		ksm_die("cannot open /proc/cpuinfo: %s", strerror(errno));
	while (!found && fgets(line, sizeof(line), f))
		found = !strncmp(line, "flags", 5) &&
			(strstr(line, " svm") || strstr(line, " vmx"));
	fclose(f);
	return found;
}

int ksm_uffd_open(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		ksm_die("userfaultfd: %s", strerror(errno));
	return fd;
}

void ksm_uffd_register(int fd, void *addr, size_t npages, uint64_t mode)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)addr, .len = npages * PGSZ },
		.mode = mode,
	};

	if (ioctl(fd, UFFDIO_REGISTER, &reg))
		ksm_die("UFFDIO_REGISTER: %s", strerror(errno));
}

void ksm_uffd_protect(int fd, void *addr, size_t npages)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = (uintptr_t)addr, .len = npages * PGSZ },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	if (ioctl(fd, UFFDIO_WRITEPROTECT, &wp))
		ksm_die("UFFDIO_WRITEPROTECT: %s", strerror(errno));
}

int ksm_open_kvm(void)
{
	int fd;

	if (access("/dev/kvm", F_OK))
		ksm_shell("modprobe kvm-amd 2>/dev/null || modprobe kvm-intel");
	fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		ksm_die("cannot open /dev/kvm: %s", strerror(errno));
	return fd;
}

/* ---- other processes ---- */

struct call {
	ksm_fn fn;
	long arg[4];
};

static bool read_all(int fd, void *buf, size_t size)
{
	size_t done = 0;

	while (done < size) {
		ssize_t len = read(fd, (char *)buf + done, size - done);

		if (len < 0 && errno == EINTR)
			continue;
		if (len <= 0)
			return false;
		done += len;
	}
	return true;
}

static void __attribute__((noreturn)) serve(int calls, int answers)
{
	struct call call;
	long result = 0;

	/*
	 * The first answer is to nothing. The pipe keeps the page that it takes, so those that
	 * follow need no memory, which a full cgroup has none of: who sends by a socket there is
	 * killed for it.
	 */
	while (write(answers, &result, sizeof(result)) == sizeof(result) &&
	       read_all(calls, &call, sizeof(call)))
		result = call.fn(call.arg[0], call.arg[1], call.arg[2], call.arg[3]);
	_exit(0);
}

void ksm_spawn(struct ksm_child *c)
{
	pid_t parent = getpid();
	int calls[2], answers[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, calls))
		ksm_die("socketpair: %s", strerror(errno));
	if (pipe2(answers, O_CLOEXEC))
		ksm_die("pipe: %s", strerror(errno));
	fflush(stdout);
	fflush(stderr);
	c->pid = fork();
	if (c->pid < 0)
		ksm_die("fork: %s", strerror(errno));
	if (!c->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		close(calls[0]);
		close(answers[0]);
		serve(calls[1], answers[1]);
	}
	close(calls[1]);
	close(answers[1]);
	c->calls = calls[0];
	c->answers = answers[0];
	ksm_call_finish(c);
}

void ksm_call_start(struct ksm_child *c, ksm_fn fn, long a, long b, long d, long e)
{
	struct call call = { .fn = fn, .arg = { a, b, d, e } };

	if (write(c->calls, &call, sizeof(call)) != sizeof(call))
		ksm_die("helper process %d is gone; see the kernel log", c->pid);
}

long ksm_call_finish(struct ksm_child *c)
{
	long result;

	if (!read_all(c->answers, &result, sizeof(result)))
		ksm_die("helper process %d died at work; see the kernel log", c->pid);
	return result;
}

long ksm_call4(struct ksm_child *c, ksm_fn fn, long a, long b, long d, long e)
{
	ksm_call_start(c, fn, a, b, d, e);
	return ksm_call_finish(c);
}

static int reap(struct ksm_child *c)
{
	int status = -1;

	while (waitpid(c->pid, &status, 0) < 0) {
		if (errno != EINTR)
			ksm_die("waitpid(%d): %s", c->pid, strerror(errno));
	}
	c->pid = -1;
	return status;
}

int ksm_end(struct ksm_child *c)
{
	/*
	 * Children made later hold a copy of this fd, so close() alone would not
	 * give the child its end of file.
	 */
	shutdown(c->calls, SHUT_RDWR);
	close(c->calls);
	close(c->answers);
	return reap(c);
}

int ksm_kill(struct ksm_child *c)
{
	kill(c->pid, SIGKILL);
	close(c->calls);
	close(c->answers);
	return reap(c);
}

long ksm_fn_fill(long addr, long npages, long seed, long unused)
{
	(void)unused;
	ksm_fill((void *)addr, npages, seed);
	return 0;
}

long ksm_fn_fill_same(long addr, long npages, long seed, long unused)
{
	(void)unused;
	ksm_fill_same((void *)addr, npages, seed);
	return 0;
}

long ksm_fn_wrong(long addr, long npages, long seed, long unused)
{
	(void)unused;
	return ksm_wrong((void *)addr, npages, seed);
}

long ksm_fn_wrong_same(long addr, long npages, long seed, long unused)
{
	(void)unused;
	return ksm_wrong_same((void *)addr, npages, seed);
}

long ksm_fn_zero(long addr, long npages, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	/* Not zero first, so that each page gets a frame of its own. */
	memset((void *)addr, 1, npages * PGSZ);
	memset((void *)addr, 0, npages * PGSZ);
	return 0;
}

long ksm_fn_wrong_zero(long addr, long npages, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	return ksm_wrong_zero((void *)addr, npages);
}

long ksm_fn_register(long area, long addr, long npages, long unused)
{
	(void)unused;
	return ksm_register(area, (void *)addr, npages);
}

long ksm_fn_merge_range(long area, long addr, long npages, long unused)
{
	uint64_t merged = 0;
	long ret = ksm_merge_range(area, (void *)addr, npages, &merged);

	(void)unused;
	return ret ? ret : (long)merged;
}

long ksm_fn_unmerge(long area, long unused, long unused2, long unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	return ksm_unmerge(area);
}

long ksm_fn_area_register(long dev, long addr, long npages, long unused)
{
	int area = ioctl(dev, KSM_CREATE_SHARED_MEMORY_AREA), ret;

	(void)unused;
	if (area < 0)
		return -errno;
	ret = ksm_register(area, (void *)addr, npages);
	if (ret) {
		close(area);
		return ret;
	}
	return area;
}

long ksm_fn_close(long fd, long unused, long unused2, long unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	return close(fd) ? -errno : 0;
}

long ksm_fn_scan(long scan, long npages, long unused, long unused2)
{
	(void)unused;
	(void)unused2;
	return ksm_scan(scan, npages);
}

long ksm_fn_become(long uid, long unused, long unused2, long unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	return ksm_become(uid);
}
