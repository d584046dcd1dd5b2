/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * compat.h - what differs between the kernels this module supports
 *
 * The one place for version checks, with compat-mm.h, which is about memory management. Each
 * shim takes the name and the shape of the newest kernel and says when the older ones
 * changed, so that it can be deleted when the last kernel that needs it is no longer supported.
 */
#ifndef KSMDEV_COMPAT_H
#define KSMDEV_COMPAT_H

#include <linux/version.h>
#include <linux/workqueue.h>

#define SINCE(major, minor) (LINUX_VERSION_CODE >= KERNEL_VERSION(major, minor, 0))

#if !SINCE(6, 1)
#error "ksmdev knows Linux 6.1 to 7.3, and this one is older"
#elif SINCE(7, 4) && !defined(KSMDEV_ALLOW_UNKNOWN_KERNEL)
#error "ksmdev knows Linux 6.1 to 7.3: get a newer ksmdev, or try make ALLOW_UNKNOWN_KERNEL=1"
#endif

/* 6.17: new names of the workqueues; 7.2 complains of the old ones. */
#if !SINCE(6, 17)
#define system_percpu_wq	system_wq
#define system_dfl_wq		system_unbound_wq
#endif

#endif /* KSMDEV_COMPAT_H */
