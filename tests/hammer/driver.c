// SPDX-License-Identifier: GPL-2.0-only
/*
 * driver.c - the calls of /dev/ksm
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "hammer.h"

void open_area(struct thread *t)
{
	t->area = ioctl(t->dev, KSM_CREATE_SHARED_MEMORY_AREA);
	if (t->area < 0) {
		if (errno != ENOMEM)
			bad_call(t, "KSM_CREATE_SHARED_MEMORY_AREA");
		return;
	}
	fcntl(t->area, F_SETFD, FD_CLOEXEC);
}

void register_all(struct thread *t)
{
	unsigned int page = 0, n;

	while (t->area >= 0 && page < THREAD_PAGES) {
		struct ksm_memory_region r = { 0 };

		n = rnd(t, 2) ? THREAD_PAGES : 1 + rnd(t, THREAD_PAGES / 2);
		if (n > THREAD_PAGES - page)
			n = THREAD_PAGES - page;
		r.npages = n;
		r.addr = (uintptr_t)page_addr(t, page);
		if (ioctl(t->area, KSM_REGISTER_MEMORY_REGION, &r)) {
			if (errno == ENOMEM || (errno == EEXIST && t->stale))
				return;
			bad_call(t, "KSM_REGISTER_MEMORY_REGION");
		}
		t->registered = true;
		page += n;
	}
}

void op_register(struct thread *t, unsigned int page, unsigned int n)
{
	struct ksm_memory_region r = { 0 };

	note(t, t->registered ? "register twice" : "register", page, n);
	if (t->area < 0)
		open_area(t);
	if (!t->registered) {
		register_all(t);
		return;
	}
	/* Part of this range may be free if an earlier try ran out of memory. */
	r.npages = THREAD_PAGES;
	r.addr = (uintptr_t)t->mem;
	if (!ioctl(t->area, KSM_REGISTER_MEMORY_REGION, &r)) {
		errno = 0;
		bad_call(t, "an overlapping region was accepted");
	}
	if (errno != EEXIST && errno != ENOMEM)
		bad_call(t, "KSM_REGISTER_MEMORY_REGION of an overlap");
}

void op_unregister(struct thread *t, unsigned int page, unsigned int n)
{
	bool keep_open = rnd(t, 4);

	note(t, keep_open ? "remove" : "close area", page, n);
	if (t->area < 0)
		return;
	if (keep_open) {
		if (ioctl(t->area, KSM_REMOVE_MEMORY_REGION))
			bad_call(t, "KSM_REMOVE_MEMORY_REGION");
	} else {
		if (close(t->area))
			bad_call(t, "close of an area");
		t->area = -1;
		if (t->registered)
			t->stale = true;
	}
	t->registered = false;
	/* Not for long: memory that is not registered tests nothing. */
	if (rnd(t, 10))
		op_register(t, page, n);
}

void op_unmerge(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "unmerge", page, n);
	if (t->area < 0)
		return;
	if (ioctl(t->area, KSM_UNMERGE) && errno != ENOMEM)
		bad_call(t, "KSM_UNMERGE");
	t->account->unmerges++;
}

void op_scan(struct thread *t, unsigned int page, unsigned int n)
{
	struct ksm_user_scan s = { 1 + rnd(t, 512), rnd(t, 3) ? 0 : 1 + rnd(t, 16) };

	note(t, "scan", page, n);
	if (t->scan >= 0 && ioctl(t->scan, KSM_SCAN, &s) && errno != EINTR)
		bad_call(t, "KSM_SCAN");
}

/* Pages that a pin holds, or that are not mapped, may be among them. */
void op_merge_range(struct thread *t, unsigned int page, unsigned int n)
{
	struct ksm_merge_range range = { .size = sizeof(range) };

	if (!rnd(t, 8)) {
		page = 0;
		n = THREAD_PAGES;
	}
	note(t, "merge range", page, n);
	if (t->area < 0)
		return;
	range.addr = (uintptr_t)page_addr(t, page);
	range.npages = n;
	if (!ioctl(t->area, KSM_MERGE_RANGE, &range)) {
		if (!t->registered) {
			errno = 0;
			bad_call(t, "KSM_MERGE_RANGE of what is not registered");
		}
		t->account->merged += range.merged;
		op_verify(t, page, n);
		return;
	}
	/* Part of it may not be registered if that ran out of memory. */
	if (errno != EINTR && errno != ENOMEM && errno != ENOENT)
		bad_call(t, "KSM_MERGE_RANGE");
}

/* The number in a line "NAME:\tNUMBER"; 0 if there is none. */
static unsigned long told(const char *text, const char *name)
{
	const char *at = strstr(text, name);

	return at ? strtoul(at + strlen(name), NULL, 10) : 0;
}

/* It walks the page tables of all that is registered; no page is told of twice. */
void op_fdinfo(struct thread *t, unsigned int page, unsigned int n)
{
	char path[64], text[4096];
	unsigned long merged;
	ssize_t size;
	int fd;

	note(t, "fdinfo", page, n);
	if (t->area < 0)
		return;
	snprintf(path, sizeof(path), "/proc/thread-self/fdinfo/%d", t->area);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		bad_call(t, "open of an area's fdinfo");
	size = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (size <= 0)
		bad_call(t, "read of an area's fdinfo");
	text[size] = '\0';
	merged = told(text, "\npages_shared:\t") + told(text, "\npages_sharing:\t");
	/* Both are rounded. */
	if (merged > told(text, "\npages_registered:\t") + 1) {
		fprintf(stderr, "hammer: fdinfo says\n%s", text);
		errno = 0;
		bad_call(t, "more pages are merged than registered");
	}
	t->account->told++;
}

static void on_signal(int sig)
{
	(void)sig;
}

_Noreturn void scanner(void)
{
	struct sigaction sa = { .sa_handler = on_signal };
	struct ksm_user_scan s = { .pages_to_scan = 1024 };
	int dev, fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigaction(SIGUSR1, &sa, NULL);
	dev = open("/dev/ksm", O_RDWR | O_CLOEXEC);
	fd = ioctl(dev, KSM_CREATE_SCAN);
	if (fd < 0) {
		perror("hammer: KSM_CREATE_SCAN");
		board->failed = 1;
		_exit(1);
	}
	while (!board->stop && !board->failed) {
		if (ioctl(fd, KSM_SCAN, &s)) {
			if (errno != EINTR) {
				perror("hammer: KSM_SCAN");
				board->failed = 1;
				_exit(1);
			}
			board->scan_eintr++;
		}
		board->scans++;
	}
	_exit(0);
}
