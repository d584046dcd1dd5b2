// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksm_proc.c - what /proc says of memory, processes, fds and kernel threads. See ksm_proc.h.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "ksm_memory.h"
#include "ksm_proc.h"
#include "ksm_program.h"

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

long ksm_smaps_of(pid_t pid, const void *addr, const char *name)
{
	size_t len = strlen(name);
	unsigned long start, end;
	bool inside = false;
	char line[512];
	long value = -1;
	char path[64] = "/proc/self/smaps";
	FILE *f;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	f = fopen(path, "re");
	if (!f)
		ksm_die("cannot open %s: %s", path, strerror(errno));
	while (value < 0 && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = (uintptr_t)addr >= start && (uintptr_t)addr < end;
		else if (inside && !strncmp(line, name, len) && line[len] == ':')
			value = strtol(line + len + 1, NULL, 10) / (long)(PGSZ / 1024);
	}
	fclose(f);
	if (value < 0)
		ksm_die("%s has no \"%s:\" for %p", path, name, addr);
	return value;
}

long ksm_minflt(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
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
