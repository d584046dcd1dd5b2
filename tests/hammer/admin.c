// SPDX-License-Identifier: GPL-2.0-only
/*
 * admin.c - the machine around the workers: kksmd, swap, and the driver's counters
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "hammer.h"

double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

long read_number(const char *dir, const char *name)
{
	char path[128], buf[32];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s%s", dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (n <= 0)
		return -1;
	buf[n] = '\0';
	return strtol(buf, NULL, 10);
}

int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = write(fd, text, strlen(text));
	close(fd);
	return n < 0 ? -1 : 0;
}

void print_stack(pid_t pid)
{
	char path[64], buf[4096];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stack", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (n > 0)
		fprintf(stderr, "hammer: process %d is at\n%.*s", pid, (int)n, buf);
}

/* Pages swapped out since boot. */
static unsigned long pages_swapped_out(void)
{
	unsigned long n = 0;
	char line[128];
	FILE *f = fopen("/proc/vmstat", "re");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "pswpout %lu", &n) == 1)
			break;
	if (f)
		fclose(f);
	return n;
}

static unsigned long swapped_before;

/*
 * Compressed swap in memory, so that MADV_PAGEOUT has somewhere to go: pages are
 * swapped out and in while they are looked at, merged and written.
 */
int swap_on(int mib)
{
	char command[256];

	snprintf(command, sizeof(command),
		 "modprobe zram num_devices=1 && echo %dM > /sys/block/zram0/disksize && "
		 "mkswap /dev/zram0 > /dev/null && swapon /dev/zram0", mib);
	swapped_before = pages_swapped_out();
	if (!system(command))
		return 0;
	fprintf(stderr, "hammer: no swap on zram; leave out -z, or add the zram module\n");
	return -1;
}

long swap_off(void)
{
	long n = pages_swapped_out() - swapped_before;

	if (!system("swapoff /dev/zram0 && echo 1 > /sys/block/zram0/reset"))
		return n;
	fprintf(stderr, "hammer: cannot swap in again what is on zram; see the kernel log\n");
	return -1;
}

int check_counters(int scan)
{
	static const char *const names[] = {
		"areas", "regions", "pages_registered", "pages_shared", "pages_sharing",
		"zero_pages", "pages_unshared", "pages_volatile", "kernel_pages",
	};
	struct ksm_user_scan s = { .pages_to_scan = 1024 };
	double end = now() + 60;
	unsigned int i, bad;

	do {
		/* The last reference to a page may go with a work item. */
		if (ioctl(scan, KSM_SCAN, &s) && errno != EINTR)
			perror("hammer: KSM_SCAN");
		write_text("/proc/sys/vm/drop_caches", "2");
		bad = 0;
		for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
			bad += read_number(SYSFS, names[i]) != 0;
		if (bad)
			usleep(100000);
	} while (bad && now() < end);
	if (!bad)
		return 0;
	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (read_number(SYSFS, names[i]))
			fprintf(stderr, "hammer: %s is %ld after all have left, must be 0\n",
				names[i], read_number(SYSFS, names[i]));
	return -1;
}

void set_kthread(int dev, struct thread *t)
{
	struct ksm_kthread_info k = { 0 };
	struct ksm_pace pace = { .size = sizeof(pace) };

	k.pages_to_scan = 1 + rnd(t, 4096);
	k.max_pages_to_merge = rnd(t, 3) ? 0 : 1 + rnd(t, 100);
	/* Mostly at full speed, at times lazily, now and then not at all. */
	k.sleep = rnd(t, 4) ? 0 : rnd(t, 20000);
	k.flags = rnd(t, 10) ? ksm_control_flags_run : 0;
	if (ioctl(dev, KSM_START_STOP_KTHREAD, &k)) {
		perror("hammer: KSM_START_STOP_KTHREAD");
		board->failed = 1;
	}
	/* Threads come and go at work; mostly without a budget, so that they work hard. */
	pace.threads = 1 + rnd(t, 4);
	pace.cpu_percent = rnd(t, 4) ? 0 : 1 + rnd(t, 100 * pace.threads);
	if (ioctl(dev, KSM_SET_PACE, &pace)) {
		perror("hammer: KSM_SET_PACE");
		board->failed = 1;
	}
}
