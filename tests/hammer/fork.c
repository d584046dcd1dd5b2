// SPDX-License-Identifier: GPL-2.0-only
/*
 * fork.c - children that share the memory, and what the parent knows of it
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hammer.h"

void reap(struct thread *t, int slot)
{
	int status;

	if (t->kid[slot] <= 0)
		return;
	if (waitpid(t->kid[slot], &status, 0) != t->kid[slot])
		bad_call(t, "waitpid");
	t->kid[slot] = 0;
	/* A child that failed has told why, and the board knows. */
	if (WIFSIGNALED(status) && !board->failed) {
		fprintf(stderr, "hammer: forked child killed by signal %d\n",
			WTERMSIG(status));
		die(t, EXIT_MISMATCH);
	}
	if (status)
		_exit(EXIT_MISMATCH);
}

static _Noreturn void child(struct thread *t, struct shadow *copy)
{
	char arg0[] = "hammer", arg1[] = "--exit";
	char *args[] = { arg0, arg1, NULL };
	unsigned int i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	t->depth++;
	t->shadow = copy;
	for (i = 0; i < MAX_KIDS; i++)
		t->kid[i] = 0;
	/* The parent's area is the parent's: REMOVE here would reach it. */
	if (t->area >= 0)
		close(t->area);
	t->area = -1;
	t->registered = false;
	t->stale = false;
	/* What the parent has in flight stays the parent's as well. */
	t->hold = HOLD_NONE;
	close(t->pipe[0]);
	close(t->pipe[1]);
	if (t->ring.fd >= 0)
		close(t->ring.fd);
	t->ring.fd = -1;
	if (pipe2(t->pipe, O_CLOEXEC))
		bad_call(t, "pipe");
	if (rnd(t, 2)) {
		open_area(t);
		if (t->area >= 0)
			register_all(t);
	}
	run_ops(t, rnd(t, 400));
	verify_all(t);
	for (i = 0; i < MAX_KIDS; i++)
		reap(t, i);
	if (!rnd(t, 4))
		execv("/proc/self/exe", args);
	_exit(0);
}

void op_fork(struct thread *t, unsigned int page, unsigned int n)
{
	unsigned int slot = rnd(t, MAX_KIDS);
	size_t len = THREAD_PAGES * sizeof(struct shadow);
	struct shadow *copy;
	pid_t pid;

	note(t, "fork", page, n);
	if (t->depth > 1 || rnd(t, 2))
		return;
	reap(t, slot);
	copy = mmap(NULL, len, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (copy == MAP_FAILED)
		bad_call(t, "mmap of a shadow");
	memcpy(copy, t->shadow, len);
	t->rng ^= 1;
	pid = fork();
	if (!pid) {
		t->rng = mix(t->rng + t->depth + 77);
		child(t, copy);
	}
	munmap(copy, len);
	if (pid < 0 && errno != EAGAIN && errno != ENOMEM)
		bad_call(t, "fork");
	if (pid < 0)
		return;
	t->kid[slot] = pid;
	t->account->forks++;
}
