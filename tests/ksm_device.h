/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_device.h - the device and its ioctls, and passes over all that is registered. Part of
 * ksm_util.h.
 */
#ifndef KSM_DEVICE_H
#define KSM_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ksm.h"

#define KSM_SHARE_LIMIT		256	/* ptes that may map one shared page */

/**
 * struct ksm - the device and a scan fd
 * @dev: /dev/ksm
 * @scan: from KSM_CREATE_SCAN
 */
struct ksm {
	int dev;
	int scan;
};

/*
 * Open the device, stop kksmd, give it one thread and the fixed pace, and make sure
 * that no other program has memory registered or merged: the tests count everything.
 * Dies if any of it fails.
 */
void ksm_begin(struct ksm *k);
void ksm_finish(struct ksm *k);

int ksm_open(void);
/* Is the module one for a debug kernel, where everything takes many times longer? */
bool ksm_is_slow(void);
/* A new area fd; dies if there is none. */
int ksm_area(const struct ksm *k);
/* 0 or -errno. */
int ksm_register(int area, const void *addr, size_t npages);
int ksm_remove(int area);
int ksm_unmerge(int area);
/* 0 or -errno; goes on after EINTR. */
int ksm_scan(int scan_fd, uint64_t pages);
/* 0 or -errno. */
int ksm_start(int dev, uint32_t pages, uint32_t max_merge, uint32_t sleep_us);
int ksm_stop(int dev);
int ksm_set_pace(int dev, uint32_t cpu_percent, uint32_t threads);
/* 0 or -errno; @merged may be NULL. */
int ksm_merge_range(int area, const void *addr, uint64_t npages, uint64_t *merged);

/* Let the scan fd visit everything that is registered @passes times. */
void ksm_passes(const struct ksm *k, unsigned int passes);
/* As many passes as the driver promises to need for full sharing. */
void ksm_merge_all(const struct ksm *k);
/* The same for pages that could not be merged for a while: tried now and then. */
void ksm_merge_held(const struct ksm *k);
/* Wait until no region is left, scanning meanwhile; false after KSM_PATIENCE. */
bool ksm_wait_no_regions(const struct ksm *k);

#endif /* KSM_DEVICE_H */
