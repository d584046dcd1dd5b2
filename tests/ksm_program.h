/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_program.h - the test program itself: how it dies, whose it is, the time and the CPU that it
 * has, files that it reads and writes, commands that it runs. Part of ksm_util.h.
 */
#ifndef KSM_PROGRAM_H
#define KSM_PROGRAM_H

#include <sys/types.h>

/*
 * Seconds until what must happen is given up: a bound against hanging and nothing else, so it
 * is longer than anything takes on a machine that is emulated, and busy with other things.
 */
#define KSM_PATIENCE		60

#define DIV_UP(n, d)		(((n) + (d) - 1) / (d))

void ksm_die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

/* Become an ordinary user, for ever. Returns 0 or -errno. */
int ksm_become(uid_t uid);

/* Seconds of a clock that is never set. */
double ksm_now(void);
/* Seconds of CPU time of this thread: waits, for locks to rest say, do not count. */
double ksm_cpu_now(void);

/* 0 or -errno. */
int ksm_write_file(const char *path, const char *text);
/* What a file begins with; dies if that is no number. */
long long ksm_read_number(const char *path);
/* Keep to one CPU; dies if there is no such. */
void ksm_use_cpu(int cpu);

/*
 * A file that a test wants, next to its program; the same memory each time. Dies if there is none,
 * and says that "make @made" makes it.
 */
const char *ksm_beside(const char *name, const char *made);

/* Run a shell command; dies with the command in the message if it fails. */
void ksm_shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif /* KSM_PROGRAM_H */
