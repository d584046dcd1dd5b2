// SPDX-License-Identifier: GPL-2.0-only
/*
 * fail.c - how a worker fails: say all that is known, then stop everything
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "hammer.h"

static uint64_t pagemap_entry(const void *addr)
{
	uint64_t e = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return 0;
	if (pread(fd, &e, 8, (uintptr_t)addr / PAGE_BYTES * 8) != 8)
		e = 0;
	close(fd);
	return e;
}

void note(struct thread *t, const char *what, unsigned int page, unsigned int n)
{
	t->history[t->n_ops % HISTORY] = what;
	t->history_page[t->n_ops % HISTORY] = page;
	t->history_n[t->n_ops % HISTORY] = n;
	t->n_ops++;
}

static void print_history(struct thread *t)
{
	unsigned int i, n = t->n_ops < HISTORY ? t->n_ops : HISTORY;

	for (i = t->n_ops - n; i != t->n_ops; i++)
		fprintf(stderr, "hammer:   op %u: %s page %u count %u\n", i,
			t->history[i % HISTORY], t->history_page[i % HISTORY],
			t->history_n[i % HISTORY]);
}

_Noreturn void die(struct thread *t, int status)
{
	print_history(t);
	fprintf(stderr,
		"hammer: seed %ld worker %d thread %d generation %u depth %d; run again with -s %ld\n",
		seed, t->worker, t->nr, t->generation, t->depth, seed);
	fflush(stderr);
	board->failed = 1;
	_exit(status);
}

_Noreturn void mismatch(struct thread *t, unsigned int page, unsigned int word)
{
	const volatile uint64_t *p = (void *)(t->mem + (size_t)page * PAGE_BYTES);
	const struct shadow *s = &t->shadow[page];
	uint64_t seen = p[word], entry = pagemap_entry((void *)p);
	unsigned int i, bad = 0;

	for (i = 0; i < WORDS; i++)
		bad += p[i] != want_word(s, i);
	fprintf(stderr,
		"hammer: MISMATCH at %p (page %u, word %u, %u words wrong now): expected %016llx, seen %016llx\n",
		(void *)(p + word), page, word, bad,
		(unsigned long long)want_word(s, word),
		(unsigned long long)seen);
	fprintf(stderr,
		"hammer: page should be fill %u, word %u xor %llx, prot %d; pagemap %016llx, pfn %llx\n",
		s->fill, s->pos, (unsigned long long)s->delta, s->prot,
		(unsigned long long)entry,
		(unsigned long long)(entry & ((1ULL << 55) - 1)));
	die(t, EXIT_MISMATCH);
}

_Noreturn void bad_call(struct thread *t, const char *what)
{
	fprintf(stderr, "hammer: %s: %s, which must not happen here\n", what,
		strerror(errno));
	die(t, EXIT_SYSCALL);
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
	struct thread *t = current_thread;
	unsigned int page;

	(void)context;
	fprintf(stderr, "hammer: signal %d at address %p, code %d\n", sig,
		info->si_addr, info->si_code);
	if (!t)
		_exit(EXIT_MISMATCH);
	page = ((char *)info->si_addr - t->mem) / PAGE_BYTES;
	if ((char *)info->si_addr >= t->mem && page < THREAD_PAGES)
		fprintf(stderr,
			"hammer: page %u should be mapped %d prot %d fill %u\n",
			page, t->shadow[page].mapped, t->shadow[page].prot,
			t->shadow[page].fill);
	die(t, EXIT_MISMATCH);
}

void catch_faults(void)
{
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
}
