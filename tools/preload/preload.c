// SPDX-License-Identifier: GPL-2.0-only
/*
 * libksm-preload - let programs that know nothing of /dev/ksm share their memory
 *
 * Preloaded (LD_PRELOAD, or ksmctl run), it registers with /dev/ksm what the program hands
 * to madvise(MADV_MERGEABLE), and removes what it hands to MADV_UNMERGEABLE. With LIBKSM_AUTO
 * it also registers all large private anonymous memory. libksm-preload(7) is for users.
 *
 * All that is done with the driver is done by one thread of ours, the helper, which starts
 * when there is something to register. It has a table of file descriptors of its own: the
 * program cannot close ours by accident, does not find numbers taken that it expected to be
 * free, and neither exec() nor a child inherits one. Memory is the same for all threads, so
 * what the helper registers is the program's. It opens /dev/ksm when it needs it, with the
 * program's rights of that moment; with LIBKSM_AUTO before the program begins, which may take
 * itself the right to open anything (seccomp).
 *
 * What there is to share is in ranges[], of ranges.c. The driver knows no names for regions, only
 * areas that are emptied as a whole, so each range has an area of its own. madvise() hands its
 * advice to the helper and waits. Besides that the helper looks through /proc/self/maps at
 * intervals. It removes ranges whose memory is gone, so that what is mapped there next is not
 * taken for it. This is also how LIBKSM_AUTO finds memory: most of it comes from inside of the
 * C library (malloc(), brk(), thread stacks), which no function of ours would see.
 *
 * A child of fork() has a copy of the memory and of ranges[], but no helper. As the kernel's own
 * advice is inherited, it starts one, which registers the copies.
 *
 * Locks: @lock guards everything here, and fork() takes it. Who holds it has no signals. The
 * helper, which holds it most, allocates nothing.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "device.h"
#include "ksm.h"
#include "libksm.h"
#include "ranges.h"

#define EXPORT __attribute__((visibility("default")))

/* Milliseconds between two looks: the least, after a change, and the most. */
#define MIN_PAUSE 100
#define MAX_PAUSE 5000

/* Bytes, beside what the C library keeps in each thread's stack (TLS). */
#define HELPER_STACK (256 << 10)

/* Bytes from which on LIBKSM_AUTO takes memory; 0: it is off. */
static unsigned long auto_size;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static enum {
	HELPER_NONE,	/* and it can be started */
	HELPER_RUNS,
	HELPER_GONE,	/* there is no /dev/ksm for us, or nobody may wait for it any more */
} helper;
static pthread_t helper_thread;

/* It has opened what it opens at its start. */
static bool helper_ready;

/* What a thread asks of the helper, one at a time. */
static enum { FREE, ASKED, ANSWERED } request;
static struct {
	int advice;	/* 0: go away */
	unsigned long start, end;
	int err;
} asked;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static pthread_cond_t answered = PTHREAD_COND_INITIALIZER;

/* The helper's */
static int device = -1;
static int device_err;	/* why there is none */
static bool quiet;

/*
 * Say once what is wrong. Standard error is the program's, so it is borrowed for a moment:
 * kept open here it would keep a pipe's reader waiting that the program is done with.
 */
static void tell(int err)
{
	char text[256];
	int pidfd, fd, n;

	if (quiet)
		return;
	quiet = true;
	n = snprintf(text, sizeof(text),
		     "%.64s: libksm-preload: /dev/ksm: %s: %s (LIBKSM_QUIET=1 silences this)\n",
		     program_invocation_short_name, strerrordesc_np(err), ksm_hint(err));
	pidfd = pidfd_open(getpid(), 0);
	fd = pidfd_getfd(pidfd, STDERR_FILENO, 0);
	/* It cannot be told that it cannot be told. */
	if (write(fd, text, n) < 0)
		n = 0;
	close(fd);
	close(pidfd);
}

static void open_device(void)
{
	device = ksm_open_device();
	device_err = device < 0 ? errno : 0;
}

/* Return a new area with this range in it, or -1 and errno. */
int register_range(const struct range *range)
{
	struct ksm_memory_region region = {
		.npages = (range->end - range->start) / sysconf(_SC_PAGESIZE),
		.addr = range->start,
	};
	int area, err;

	if (helper == HELPER_GONE) {
		errno = ENODEV;
		return -1;
	}
	if (device < 0 && !device_err)
		open_device();
	if (device < 0) {
		helper = HELPER_GONE;
		errno = device_err;
		return -1;
	}
	area = ioctl(device, KSM_CREATE_SHARED_MEMORY_AREA);
	if (area < 0 || !ioctl(area, KSM_REGISTER_MEMORY_REGION, &region))
		return area;
	err = errno;
	close(area);
	errno = err;
	return -1;
}

static int do_advice(int advice, unsigned long start, unsigned long end)
{
	int err, pending_err;

	err = take_out(start, end, advice == MADV_MERGEABLE);
	if (advice == MADV_MERGEABLE && !err)
		err = add(start, end, PENDING, 1);
	if (advice == MADV_UNMERGEABLE && auto_size)
		add(start, end, PRIVATE, 1);
	pending_err = register_pending();
	if (advice == MADV_MERGEABLE)
		return err ? err : pending_err;
	/* What it was for is done. What lies beside it may be shared no more. */
	if (pending_err)
		tell(pending_err);
	return err;
}

/* A line of /proc/self/maps: "start-end rw-p offset device inode    name" */
static void look_at(const char *line, unsigned long *hole)
{
	unsigned long start, end, inode;
	char perms[5];

	if (sscanf(line, "%lx-%lx %4s %*x %*s %lu", &start, &end, perms, &inode) != 4)
		return;
	if (start > *hole) {
		take_out(*hole, start, false);
		take_out(*hole, start, true);
	}
	*hole = end;
	if (auto_size && !inode && perms[0] == 'r' && perms[3] == 'p')
		add(start, end, PENDING, auto_size);
}

/*
 * Go through /proc/self/maps, and register what is found, or was there before. Return whether
 * that has changed anything.
 */
static bool look(int maps)
{
	static char text[65536];
	unsigned int before = nr_ranges;
	unsigned long hole = 0;
	size_t have = 0;
	ssize_t n;
	int err;

	lseek(maps, 0, SEEK_SET);
	while ((n = read(maps, text + have, sizeof(text) - 1 - have)) > 0) {
		char *line = text, *end;

		have += n;
		text[have] = 0;
		while ((end = strchr(line, '\n'))) {
			*end = 0;
			look_at(line, &hole);
			line = end + 1;
		}
		have -= line - text;
		memmove(text, line, have);
	}
	err = register_pending();
	/* The program may have registered some of its memory itself. */
	if (err && err != EEXIST)
		tell(err);
	return nr_ranges != before;
}

static void answer(void)
{
	if (asked.advice)
		asked.err = do_advice(asked.advice, asked.start, asked.end);
	else
		helper = HELPER_GONE;
	if (asked.err)
		tell(asked.err);
	request = ANSWERED;
	pthread_cond_broadcast(&answered);
}

static void *help(void *unused)
{
	long pause = MIN_PAUSE;
	struct timespec until;
	int maps = -1;

	(void)unused;
	prctl(PR_SET_NAME, "ksm-preload");
	pthread_mutex_lock(&lock);
	if (close_range(0, ~0U, CLOSE_RANGE_UNSHARE)) {
		/* What we opened would be the program's. */
		helper = HELPER_GONE;
		tell(errno);
	} else {
		maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
		if (auto_size)
			open_device();
	}
	helper_ready = true;
	pthread_cond_broadcast(&answered);
	if (helper == HELPER_RUNS)
		look(maps);
	while (helper == HELPER_RUNS) {
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += pause % 1000 * 1000000;
		until.tv_sec += pause / 1000 + until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		while (request != ASKED &&
		       !pthread_cond_clockwait(&wake, &lock, CLOCK_MONOTONIC, &until))
			;
		if (request == ASKED) {
			answer();
			continue;
		}
		pause = look(maps) ? MIN_PAUSE : pause * 2;
		if (pause > MAX_PAUSE)
			pause = MAX_PAUSE;
	}
	/* Whoever asked meanwhile shall not wait. */
	if (request == ASKED)
		answer();
	pthread_mutex_unlock(&lock);
	return NULL;
}

static void hold(sigset_t *signals)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, signals);
	pthread_mutex_lock(&lock);
}

static void release(const sigset_t *signals)
{
	pthread_mutex_unlock(&lock);
	pthread_sigmask(SIG_SETMASK, signals, NULL);
}

/*
 * Only the C library knows how much of a stack is its own. Where it does not say so, all threads'
 * size is the helper's, too.
 */
static void set_stack(pthread_attr_t *attr)
{
	static size_t size;
	size_t (*least)(const pthread_attr_t *with);

	/* A child of fork() knows it from its parent. */
	if (!size) {
		least = dlsym(RTLD_DEFAULT, "__pthread_get_minstack");
		if (least)
			size = least(attr) + HELPER_STACK;
	}
	if (size)
		pthread_attr_setstacksize(attr, size);
}

/* With the lock held; so the helper will have no signals. */
static void start_helper(void)
{
	pthread_attr_t attr;
	int err;

	pthread_attr_init(&attr);
	set_stack(&attr);
	err = pthread_create(&helper_thread, &attr, help, NULL);
	pthread_attr_destroy(&attr);
	helper = err ? HELPER_GONE : HELPER_RUNS;
	if (err)
		tell(err);
}

/* Have the helper do something. Return 0, or an errno. */
static int ask(int advice, unsigned long start, unsigned long end)
{
	int err = advice == MADV_MERGEABLE ? ENODEV : 0, cancel;
	sigset_t signals;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	hold(&signals);
	while (request != FREE)
		pthread_cond_wait(&answered, &lock);
	if (helper == HELPER_NONE && advice == MADV_MERGEABLE)
		start_helper();
	if (helper == HELPER_RUNS) {
		asked.advice = advice;
		asked.start = start;
		asked.end = end;
		asked.err = 0;
		request = ASKED;
		pthread_cond_signal(&wake);
		while (request != ANSWERED)
			pthread_cond_wait(&answered, &lock);
		err = asked.err;
		request = FREE;
		pthread_cond_broadcast(&answered);
	}
	release(&signals);
	pthread_setcancelstate(cancel, NULL);
	return err;
}

/**
 * madvise() - in place of the C library's
 * @addr: see madvise(2)
 * @len: the same
 * @advice: MADV_MERGEABLE and MADV_UNMERGEABLE are for /dev/ksm, others for the kernel
 *
 * What /dev/ksm does not take goes to the kernel, too, which has a scanner of its own.
 *
 * Return: as madvise(2); so MADV_MERGEABLE has no errors of ours.
 */
EXPORT int madvise(void *addr, size_t len, int advice)
{
	unsigned long page = sysconf(_SC_PAGESIZE), start = (unsigned long)addr;
	int err, saved = errno;

	if (advice != MADV_MERGEABLE && advice != MADV_UNMERGEABLE)
		return syscall(SYS_madvise, addr, len, advice);

	/*
	 * Checks the arguments, whichever it is, and keeps the kernel's scanner away. A kernel that
	 * has none says EINVAL to everything; there msync() checks them.
	 */
	if (syscall(SYS_madvise, addr, len, MADV_UNMERGEABLE) &&
	    (errno != EINVAL || start + len < start || msync(addr, len, MS_ASYNC)))
		return -1;
	err = len ? ask(advice, start, (start + len + page - 1) & -page) : 0;
	if (err && advice == MADV_MERGEABLE)
		return syscall(SYS_madvise, addr, len, advice);
	errno = err ? err : saved;
	return err ? -1 : 0;
}

/**
 * pthread_exit() - in place of the C library's
 * @value: see pthread_exit(3)
 *
 * The main thread may leave the process to others. It ends with the last of them, which must
 * not be the helper: that one could not even write what is left in the buffers of stdout.
 */
EXPORT void pthread_exit(void *value)
{
	__attribute__((noreturn)) void (*real)(void *) = dlsym(RTLD_NEXT, "pthread_exit");

	if (gettid() == getpid() && helper == HELPER_RUNS) {
		ask(0, 0, 0);
		pthread_join(helper_thread, NULL);
	}
	real(value);
}

static sigset_t fork_signals;

static void fork_prepare(void)
{
	sigset_t signals;

	hold(&signals);
	fork_signals = signals;
}

static void fork_parent(void)
{
	sigset_t signals = fork_signals;

	release(&signals);
}

static void fork_child(void)
{
	unsigned int i;

	if (helper == HELPER_RUNS) {
		for (i = 0; i < nr_ranges; i++)
			if (ranges[i].area != PRIVATE)
				ranges[i].area = PENDING;
		device = -1;
		device_err = 0;
		request = FREE;
		/* Those who waited are the parent's. */
		pthread_cond_init(&wake, NULL);
		pthread_cond_init(&answered, NULL);
		start_helper();
	}
	fork_parent();
}

/* Is this program named in a list with colons? */
static bool is_in(const char *names)
{
	const char *name = program_invocation_short_name;
	size_t len;

	for (; names; names = names[len] ? names + len + 1 : NULL) {
		len = strcspn(names, ":");
		if (len == strlen(name) && !strncmp(names, name, len))
			return true;
	}
	return false;
}

static void __attribute__((constructor)) preload_init(void)
{
	const char *text = getenv("LIBKSM_AUTO");
	sigset_t signals;

	quiet = getenv("LIBKSM_QUIET");
	pthread_atfork(fork_prepare, fork_parent, fork_child);
	if (!text || is_in(getenv("LIBKSM_EXCLUDE")))
		return;
	/* What is not a number is none: ksmctl run has checked it. */
	auto_size = strtoul(text, NULL, 10) << 20;
	if (!auto_size)
		return;
	hold(&signals);
	start_helper();
	/* Before the program forbids it. */
	while (helper == HELPER_RUNS && !helper_ready)
		pthread_cond_wait(&answered, &lock);
	release(&signals);
}
