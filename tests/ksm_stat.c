// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksm_stat.c - what the driver counts and is set to, as its files in /sys say. See ksm_stat.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ksm_program.h"
#include "ksm_stat.h"

#define SYSFS_DIR "/sys/class/misc/ksm"

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
