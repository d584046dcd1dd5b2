/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * libksm.h - give the identical pages of your buffers back to the system
 *
 *	#include <libksm.h>
 *	if (ksm_share(map, size))
 *		fprintf(stderr, "ksm_share: %m: %s\n", ksm_hint(errno));
 *
 * After that the kernel may share the buffer's pages with equal pages of any
 * process that registered them too. The program notices nothing but the memory
 * that is free again: a write to a shared page gets a private copy first.
 * Somebody must scan: the kernel thread (ksmctl start) or a scan fd.
 *
 * Link with -lksm; pkg-config --cflags --libs libksm. See libksm(3).
 */
#ifndef LIBKSM_H
#define LIBKSM_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

int ksm_share(void *addr, size_t len);
int ksm_unshare(void *addr);
int ksm_unmerge(void *addr);
int ksm_merge(void *addr, unsigned long long *merged);
int ksm_set_pace(unsigned int cpu_percent, unsigned int threads);
int ksm_get_pace(unsigned int *cpu_percent, unsigned int *threads);
const char *ksm_hint(int err);

#ifdef __cplusplus
}
#endif

#endif /* LIBKSM_H */
