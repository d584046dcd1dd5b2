/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_load.h - the module comes and goes, for tests of what outlives it
 *
 * A test that unloads the module loads it again before it ends.
 */
#ifndef KSM_LOAD_H
#define KSM_LOAD_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ksm_util.h"

#define MODULE "/sys/module/ksmdev"

static inline bool ksm_loaded(void)
{
	return !access(MODULE, F_OK);
}

/* 0 or -errno, without any waiting: busy is busy. */
static inline int ksm_unload(void)
{
	return syscall(SYS_delete_module, "ksmdev", O_NONBLOCK) ? -errno : 0;
}

/* For when a process that just died may still be letting go of its fds. */
static inline int ksm_unload_soon(void)
{
	double end = ksm_now() + KSM_PATIENCE;
	int ret;

	do {
		ret = ksm_unload();
		if (ret != -EAGAIN && ret != -EBUSY)
			return ret;
		usleep(50000);
	} while (ksm_now() < end);
	return ret;
}

/* A module by its file. 0 or -errno. */
static inline int ksm_insert(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), ret;

	if (fd < 0)
		ksm_die("cannot open %s: %s", path, strerror(errno));
	ret = syscall(SYS_finit_module, fd, "", 0) ? -errno : 0;
	close(fd);
	return ret;
}

/* As the VM's init does it, with its dependencies and parameters. */
static inline void ksm_load(void)
{
	if (!ksm_loaded())
		ksm_shell("modprobe ksmdev");
	if (!ksm_loaded() || access("/dev/ksm", F_OK))
		ksm_die("modprobe ksmdev gave no /dev/ksm; see the kernel log");
}

#endif /* KSM_LOAD_H */
