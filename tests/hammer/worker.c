// SPDX-License-Identifier: GPL-2.0-only
/*
 * worker.c - a worker process: threads that draw operations at random
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "hammer.h"

__thread struct thread *current_thread;

void op_pause(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "pause", page, n);
	/* Pages must rest for two scans before they are worth sharing. */
	usleep(rnd(t, 4) ? rnd(t, 3000) : rnd(t, 40000));
}

static void op_move(struct thread *t, unsigned int page, unsigned int n)
{
	note(t, "other eighth", page, n);
	if (!rnd(t, 4))
		t->hot = rnd(t, 8);
}

static const struct {
	unsigned int weight;
	unsigned int max;	/* pages */
	void (*run)(struct thread *t, unsigned int page, unsigned int n);
} table[] = {
	{ 120, 64, op_write },
	{ 80, 16, op_write_word },
	{ 40, 1, op_count },
	{ 30, 1, op_write_remote },
	{ 30, 1, op_read_into },
	{ 120, 64, op_verify },
	{ 10, 1, op_verify_all },
	{ 15, 128, op_munmap },
	{ 40, 256, op_mmap },
	{ 25, 128, op_mremap },
	{ 30, 64, op_mprotect },
	{ 25, 64, op_dontneed },
	{ 4, 1, op_munmap_tables },
	{ 4, 1, op_discard_tables },
	{ 6, 1, op_move_tables },
	{ 10, 16, op_free },
	{ 40, 128, op_advise },
	{ 20, 64, op_mlock },
	{ 10, 1, op_clear_refs },
	{ 25, PIN_PAGES, op_pin_start },
	{ 10, 1, op_register },
	{ 10, 1, op_unregister },
	{ 5, 1, op_unmerge },
	{ 20, 1, op_scan },
	{ 20, 256, op_merge_range },
	{ 5, 1, op_fdinfo },
	{ 10, 1, op_fork },
	{ 40, 1, op_pause },
	{ 10, 1, op_move },
};

void run_ops(struct thread *t, uint64_t ops)
{
	unsigned int i, page, n, pick, total = 0;

	for (i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		total += table[i].weight;
	while (ops-- && !board->stop && !board->failed) {
		if (t->hold != HOLD_NONE && !t->hold_ops--)
			op_pin_end(t);
		pick = rnd(t, total);
		for (i = 0; pick >= table[i].weight; i++)
			pick -= table[i].weight;
		draw_range(t, &page, &n, table[i].max);
		if (!n)
			continue;
		table[i].run(t, page, n);
		t->account->ops++;
	}
	if (t->hold != HOLD_NONE && !board->failed)
		op_pin_end(t);
}

static void *thread_main(void *arg)
{
	const size_t len = (size_t)THREAD_PAGES * PAGE_BYTES;
	struct thread *t = arg;
	int i;

	current_thread = t;
	t->area = -1;
	/* The shadow is shared memory: nothing that is merged can hold it. */
	t->shadow = mmap(NULL, THREAD_PAGES * sizeof(struct shadow),
			 PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	t->mem = mmap((void *)(MEM_BASE + t->nr * MEM_STEP), len, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
		      -1, 0);
	if (t->shadow == MAP_FAILED || t->mem == MAP_FAILED)
		bad_call(t, "mmap of a thread's memory");
	if (pipe2(t->pipe, O_CLOEXEC))
		bad_call(t, "pipe");
	ring_open(&t->ring);
	t->scan = ioctl(t->dev, KSM_CREATE_SCAN);
	if (t->scan < 0 && errno != ENOMEM)
		bad_call(t, "KSM_CREATE_SCAN");
	op_mmap(t, 0, THREAD_PAGES);
	op_write(t, 0, THREAD_PAGES);
	open_area(t);
	register_all(t);
	/* A process does not live long: exits with merged pages are a case. */
	run_ops(t, 200 + rnd(t, 20000));
	if (!board->failed)
		verify_all(t);
	for (i = 0; i < MAX_KIDS; i++)
		reap(t, i);
	return NULL;
}

_Noreturn void worker(int nr, unsigned int generation)
{
	static struct thread threads[THREADS];
	pthread_t id[THREADS];
	int i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	catch_faults();
	for (i = 0; i < THREADS; i++) {
		struct thread *t = &threads[i];

		t->rng = mix(mix(mix(seed) + nr) + generation * THREADS + i);
		t->worker = nr;
		t->nr = i;
		t->generation = generation;
		t->account = &board->thread[nr][i];
		t->dev = open("/dev/ksm", O_RDWR | O_CLOEXEC);
		current_thread = t;
		if (t->dev < 0)
			bad_call(t, "open /dev/ksm");
		if (pthread_create(&id[i], NULL, thread_main, t))
			bad_call(t, "pthread_create");
	}
	for (i = 0; i < THREADS; i++)
		pthread_join(id[i], NULL);
	_exit(board->failed ? EXIT_MISMATCH : 0);
}
