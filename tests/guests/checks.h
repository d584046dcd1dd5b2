/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * checks.h - what can be checked of guests, and how it is told
 *
 * For the programs in the VM that is the guests' host: host.c, the short test, and long.c.
 */
#ifndef KSMDEV_GUESTS_CHECKS_H
#define KSMDEV_GUESTS_CHECKS_H

#include <stdbool.h>
#include <stdint.h>

#include "ksm_util.h"
#include "qemu.h"

#define GUEST_MIB	128
#define PAGES		6144	/* that a guest keeps and checks: 24 MiB */
#define SAMPLE		128	/* of these, pages whose frames are compared */
/* Emulated, the slowest machine seen needs a tenth of it; no result depends on it. */
#define LIMIT_S		300

/* A line of TAP. */
void check(bool right, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The last one; what to exit with. */
int checks_end(void);

/* Let kksmd run at full speed. */
void start_kksmd(const struct ksm *k);

/* Start guests that no other has the number of, and let them fill their memory. */
void start_guests(struct guest *g, int n, int mib, const struct guest_options *options);
/* Let them fill so many pages anew. */
void fill_guests(struct guest *g, int n, int pages);
/* End them; that their kernels' logs are clean is checked. */
void end_guests(struct guest *g, int n);
/* That nothing in the kernel log of a guest tells of trouble. */
void check_log(const struct guest *g);

/* Let them rewrite and check what they hold. */
void begin_work(struct guest *g, int n);
/* For so long, and until all was scanned twice meanwhile. */
void wait_scans(int seconds, const char *when);
/*
 * They stop; that all they saw was right is checked, and every byte once more. How often pages
 * went through a disk or an echo.
 */
long end_work(struct guest *g, int n, const char *when);
/* How many pages of those that they hold are wrong. */
long wrong_pages(struct guest *g, int n);

/* Frame numbers in the guest of the first SAMPLE common pages. */
void sample(struct guest *g, uint64_t *frames);
/* How many pages of the samples from FIRST on are one and the same frame of the host. */
int same(const struct guest *a, const uint64_t *in_a,
	 const struct guest *b, const uint64_t *in_b, int first);
/* Wait until all are; how many are in the end. */
int wait_same(const struct guest *a, const uint64_t *in_a,
	      const struct guest *b, const uint64_t *in_b, int first);

/* The driver's own count, which must be in keeping with PAGES that two guests hold. */
void check_saved(int pages);
/* Kill one in the middle of a scan: its memory is free again, the other goes on. */
void check_kill(struct guest *victim, struct guest *other);

#endif /* KSMDEV_GUESTS_CHECKS_H */
