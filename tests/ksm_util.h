/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_util.h - what the test programs share
 *
 * The oracle of these tests is what the kernel says about page frames (pagemap,
 * kpageflags, kpagecount, MemFree); the driver's own counters are compared with
 * that. Everything here is for root inside the test VM.
 *
 * Whatever the environment owes to a test (the device, /proc files, memory for
 * the test itself) is not reported but fatal: ksm_die() says what is missing and
 * exits, which the harness counts as a failure. A test can never be skipped
 * because /dev/ksm is absent.
 */
#ifndef KSM_UTIL_H
#define KSM_UTIL_H

#include "ksm_child.h"
#include "ksm_device.h"
#include "ksm_frames.h"
#include "ksm_memory.h"
#include "ksm_proc.h"
#include "ksm_program.h"
#include "ksm_stat.h"
#include "ksm_swap.h"
#include "ksm_vmm.h"

#endif /* KSM_UTIL_H */
