/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_traced.h - which pages a scan reads, by the tracepoint ksmdev_hash
 *
 * For a program all of whose tests run with the event enabled: main() is here, and
 * TEST_HARNESS_MAIN makes what it calls. Such a program needs a VM where the kernel may patch
 * its text: tests/suite.
 */
#ifndef KSM_TRACED_H
#define KSM_TRACED_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ksm_harness.h"

/* One page of each chunk is read anew in each pass, so each one in so many. */
#define ROUND		KSM_HUGE_PAGES
/* Passes until a page that was written is merged with a known one. */
#define PASSES		3

#define TRACING		"/sys/kernel/tracing"
#define INSTANCE	TRACING "/instances/ksmdev-watch"

FIXTURE(watch)
{
	struct ksm k;
	int area;
	long long hashed, skipped, scanned;
};

static inline void trace_clear(void)
{
	int fd = open(INSTANCE "/trace", O_WRONLY | O_TRUNC);

	/* To truncate it is what empties the buffer. */
	if (fd < 0)
		ksm_die("cannot clear " INSTANCE "/trace: %s", strerror(errno));
	close(fd);
}

static inline void trace_begin(void)
{
	/* An instance of our own: what others trace is not our business. */
	rmdir(INSTANCE);
	if (mkdir(INSTANCE, 0700))
		ksm_die("%s: %s; is tracefs mounted?", INSTANCE, strerror(errno));
	if (ksm_write_file(INSTANCE "/events/ksmdev/ksmdev_hash/enable", "1"))
		ksm_die("cannot enable the event ksmdev_hash");
}

static inline void trace_end(void)
{
	if (ksm_write_file(INSTANCE "/events/ksmdev/ksmdev_hash/enable", "0") ||
	    rmdir(INSTANCE))
		ksm_die("cannot remove " INSTANCE);
}

/*
 * How often a page of the range was read since the last call, by the tracepoint;
 * with @times, how often each.
 */
static inline size_t traced(const char *addr, size_t npages, unsigned char *times)
{
	FILE *f = fopen(INSTANCE "/trace", "re");
	char line[512], *p;
	size_t n = 0;

	if (!f)
		ksm_die("cannot open " INSTANCE "/trace: %s", strerror(errno));
	if (times)
		memset(times, 0, npages);
	while (fgets(line, sizeof(line), f)) {
		size_t page;

		if (strstr(line, "LOST"))
			ksm_die("the trace buffer was too small: %s", line);
		p = strstr(line, "ksmdev_hash: ");
		if (line[0] == '#' || !p)
			continue;
		p = strstr(p, "addr=");
		if (!p)
			ksm_die("cannot read the event \"%s\"", line);
		page = (strtoul(p + strlen("addr="), NULL, 0) - (uintptr_t)addr) / PGSZ;
		if (page >= npages)
			continue;
		n++;
		if (times)
			times[page]++;
	}
	fclose(f);
	trace_clear();
	return n;
}

FIXTURE_SETUP(watch)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	trace_clear();
}

FIXTURE_TEARDOWN(watch)
{
	close(self->area);
	ksm_finish(&self->k);
}

/* The event is enabled once, for all tests, as that patches text which every thread runs. */
int run_tests(int argc, char **argv);

int main(int argc, char **argv)
{
	int status;

	trace_begin();
	status = run_tests(argc, argv);
	trace_end();
	return status;
}

#define main run_tests

#endif /* KSM_TRACED_H */
