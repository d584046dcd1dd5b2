// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksm_program.c - the test program itself: how it dies, whose it is, the time and the CPU that it
 * has, files that it reads and writes, commands that it runs. See ksm_program.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <libgen.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ksm_program.h"

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

void ksm_use_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		ksm_die("cannot run on CPU %d: %s; give the VM two (--cpus)", cpu,
			strerror(errno));
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

const char *ksm_beside(const char *name, const char *made)
{
	static char self[512], path[600];
	ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (len < 0)
		ksm_die("/proc/self/exe: %s", strerror(errno));
	self[len] = '\0';
	snprintf(path, sizeof(path), "%s/%s", dirname(self), name);
	if (access(path, R_OK))
		ksm_die("%s: %s; make %s builds it", path, strerror(errno), made);
	return path;
}
