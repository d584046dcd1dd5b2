/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * ksm.h - what programs include to talk to /dev/ksm
 *
 * The interface is that of the KSM announcement of November 2008: open the
 * device, create a shared memory area, register ranges of your own memory with
 * it, and let the kernel thread (or a scan fd) find and share equal pages.
 * Programs written against the other published versions of 2008 and 2009 work
 * too; their numbers are at the end of this file.
 *
 * Every ioctl is described in Documentation/userspace-api.rst.
 */
#ifndef KSMDEV_KSM_H
#define KSMDEV_KSM_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define KSM_API_VERSION 1

#define KSMIO 0xAB

/**
 * struct ksm_memory_region - a range of the caller's memory to share
 * @npages: length in pages; at most 2^32 - 1
 * @npages_low: the lower half of @npages
 * @pad: the upper half of @npages, must be zero
 * @addr: start address, page aligned
 *
 * Version 1 had a 32-bit @npages followed by padding, which the program printed
 * in the announcement never writes. As the lower half of a 64-bit field the
 * count is in the same place, and storing it clears the padding.
 */
struct ksm_memory_region {
	union {
		__u64 npages;
		struct {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
			__u32 pad;
			__u32 npages_low;
#else
			__u32 npages_low;
			__u32 pad;
#endif
		};
	};
	__u64 addr;
};

/**
 * struct ksm_user_scan - how much one KSM_SCAN may do
 * @pages_to_scan: how many pages to visit
 * @max_pages_to_merge: return early once so many were merged; 0: no limit
 */
struct ksm_user_scan {
	__u32 pages_to_scan;
	__u32 max_pages_to_merge;
};

/**
 * struct ksm_kthread_info - the kernel thread's settings
 * @sleep: microseconds to sleep between two rounds
 * @pages_to_scan: how many pages to visit in a round
 * @max_pages_to_merge: end the round early once so many were merged; 0: no
 *	limit
 * @flags: ksm_control_flags_run, or 0
 */
struct ksm_kthread_info {
	__u32 sleep;
	__u32 pages_to_scan;
	__u32 max_pages_to_merge;
	__u32 flags;
};

/* For ksm_kthread_info.flags: the thread runs. */
#define ksm_control_flags_run 1

/* How many threads ksm_pace can ask for. */
#define KSM_MAX_THREADS 64

/**
 * struct ksm_pace - how fast the kernel threads go, and how many they are
 * @size: sizeof(struct ksm_pace)
 * @flags: must be zero
 * @cpu_percent: CPU time that all threads together may take, in per cent of one
 *	CPU, at most 100 for each thread; 0: as struct ksm_kthread_info says
 * @threads: how many threads, at most KSM_MAX_THREADS; 0: as many as there are
 */
struct ksm_pace {
	__u32 size;
	__u32 flags;
	__u32 cpu_percent;
	__u32 threads;
};

/**
 * struct ksm_merge_range - a range to be merged at once
 * @size: sizeof(struct ksm_merge_range)
 * @flags: must be zero
 * @addr: start address, page aligned
 * @npages: length in pages
 * @merged: written: how many pages of the range were merged
 */
struct ksm_merge_range {
	__u32 size;
	__u32 flags;
	__u64 addr;
	__u64 npages;
	__u64 merged;
};

/* On /dev/ksm. KSM_GET_INFO_KTHREAD writes although its number says _IOW. */
#define KSM_GET_API_VERSION		_IO(KSMIO, 0x00)
#define KSM_CREATE_SHARED_MEMORY_AREA	_IO(KSMIO, 0x01)
#define KSM_CREATE_SCAN			_IO(KSMIO, 0x02)
#define KSM_START_STOP_KTHREAD		_IOW(KSMIO, 0x03, struct ksm_kthread_info)
#define KSM_GET_INFO_KTHREAD		_IOW(KSMIO, 0x04, struct ksm_kthread_info)
/* Not in any version of 2008. */
#define KSM_SET_PACE			_IOW(KSMIO, 0x05, struct ksm_pace)
#define KSM_GET_PACE			_IOWR(KSMIO, 0x06, struct ksm_pace)

/* On a shared memory area. */
#define KSM_REGISTER_MEMORY_REGION	_IOW(KSMIO, 0x20, struct ksm_memory_region)
#define KSM_REMOVE_MEMORY_REGION	_IO(KSMIO, 0x21)
/* Not in any version of 2008: give the area's merged pages back their own copies now. */
#define KSM_UNMERGE			_IO(KSMIO, 0x22)
/* Nor is this: merge a range of the caller's memory now. */
#define KSM_MERGE_RANGE			_IOWR(KSMIO, 0x23, struct ksm_merge_range)

/* On a scan fd. */
#define KSM_SCAN			_IOW(KSMIO, 0x40, struct ksm_user_scan)

/*
 * The other published versions. The size of the structure is part of an
 * ioctl's number, so no two of these are alike.
 */

/**
 * struct ksm_kthread_info_rhel - kthread settings of RHEL 5 and oVirt
 * @sleep: microseconds to sleep between two rounds
 * @pages_to_scan: how many pages to visit in a round
 * @flags: ksm_control_flags_run, or 0
 */
struct ksm_kthread_info_rhel {
	__u32 sleep;
	__u32 pages_to_scan;
	__u32 flags;
};

/**
 * struct ksm_kthread_info_2009 - kthread settings of 31 March 2009
 * @sleep: microseconds to sleep between two rounds
 * @pages_to_scan: how many pages to visit in a round
 * @flags: ksm_control_flags_run, or 0
 * @pad: must be zero
 * @reserved_bits: must be zero
 */
struct ksm_kthread_info_2009 {
	__u32 sleep;
	__u32 pages_to_scan;
	__u32 flags;
	__u32 pad;
	__u64 reserved_bits;
};

/**
 * struct ksm_memory_region_2009 - region of March and April 2009
 * @npages: length in pages
 * @pad: must be zero
 * @addr: start address, page aligned
 * @reserved_bits: must be zero
 */
struct ksm_memory_region_2009 {
	__u32 npages;
	__u32 pad;
	__u64 addr;
	__u64 reserved_bits;
};

#define KSM_START_STOP_KTHREAD_RHEL	_IOW(KSMIO, 0x03, struct ksm_kthread_info_rhel)
#define KSM_GET_INFO_KTHREAD_RHEL	_IOW(KSMIO, 0x04, struct ksm_kthread_info_rhel)
#define KSM_START_STOP_KTHREAD_2009	_IOW(KSMIO, 0x02, struct ksm_kthread_info_2009)
#define KSM_GET_INFO_KTHREAD_2009	_IOW(KSMIO, 0x03, struct ksm_kthread_info_2009)
#define KSM_REGISTER_MEMORY_REGION_2009	_IOW(KSMIO, 0x20, struct ksm_memory_region_2009)

#endif /* KSMDEV_KSM_H */
