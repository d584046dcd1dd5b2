/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_proc.h - what /proc says of memory, processes, fds and kernel threads. Part of ksm_util.h.
 */
#ifndef KSM_PROC_H
#define KSM_PROC_H

#include <stdbool.h>
#include <sys/types.h>

/* From the kernel's sched.h: the thread is not frozen for suspend. */
#define PF_NOFREEZE		0x00008000

/* The value of "NAME:" in /proc/PID/fdinfo/FD of this process. */
long long ksm_fdinfo(int fd, const char *name);

/* A value of /proc/meminfo in pages, per-CPU counts folded in. */
long ksm_meminfo(const char *name);
/* Free pages, those in the per-CPU free lists too. */
long ksm_memfree(void);
/* Wait until so many are free: memory comes back with RCU's help; false if not soon. */
bool ksm_wait_memfree(long pages);
/* A value of /proc/PID/status, or of smaps_rollup if it is not there, in pages. */
long ksm_status(pid_t pid, const char *name);
/* A value of the VMA that holds @addr, from /proc/PID/smaps, in pages; @pid 0: the caller's. */
long ksm_smaps_of(pid_t pid, const void *addr, const char *name);

static inline long ksm_smaps(const void *addr, const char *name)
{
	return ksm_smaps_of(0, addr, name);
}

long ksm_minflt(void);

/* ---- the threads ---- */

/**
 * struct ksm_thread - what /proc/PID/stat says of a kernel thread
 * @pid: its process id
 * @state: R, S, I, ...
 * @flags: PF_*
 * @nice: its nice value
 * @cpu: CPU time that it has used, in seconds
 */
struct ksm_thread {
	pid_t pid;
	char state;
	unsigned long flags;
	long nice;
	double cpu;
};

/* The only kernel thread of this name; false if there is none, or more than one. */
bool ksm_find_thread(const char *name, struct ksm_thread *t);
/* kksmd, kksmd/1, ...: how many kernel threads have such a name. */
unsigned int ksm_count_threads(void);
/* CPU time of all of them together, in seconds. */
double ksm_threads_cpu(void);

#endif /* KSM_PROC_H */
