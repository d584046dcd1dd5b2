// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksm_device.c - the device and its ioctls, and passes over all that is registered. See
 * ksm_device.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "ksm_device.h"
#include "ksm_memory.h"
#include "ksm_program.h"
#include "ksm_stat.h"

int ksm_open(void)
{
	int fd = open("/dev/ksm", O_RDWR);

	if (fd < 0)
		ksm_die("cannot open /dev/ksm: %s; load ksmdev.ko and run the tests as root",
			strerror(errno));
	return fd;
}

bool ksm_is_slow(void)
{
	/* Only these have it. */
	return !access("/sys/module/ksmdev/parameters/race_delay_us", F_OK);
}

void ksm_begin(struct ksm *k)
{
	if (sysconf(_SC_PAGESIZE) != PGSZ)
		ksm_die("built for pages of %lu bytes: see PAGE_SIZE= in tests/Makefile", PGSZ);
	k->dev = ksm_open();
	k->scan = ioctl(k->dev, KSM_CREATE_SCAN);
	if (k->scan < 0)
		ksm_die("KSM_CREATE_SCAN: %s; see the kernel log", strerror(errno));
	if (ksm_stop(k->dev) || ksm_set_pace(k->dev, 0, 1))
		ksm_die("cannot stop kksmd; run the tests as root");
	/* Frames that change for reasons other than ours would confuse the tests. */
	ksm_write_file("/proc/sys/vm/compaction_proactiveness", "0");
	if (!ksm_wait_no_regions(k))
		ksm_die("%lld regions are registered; stop the programs that use /dev/ksm",
			ksm_stat("regions"));
	/* The last mapper's exit may still be on its way in another CPU. */
	if (!ksm_wait_stat("pages_shared", 0))
		ksm_die("%lld shared pages are mapped; stop the programs that use /dev/ksm",
			ksm_stat("pages_shared"));
}

void ksm_finish(struct ksm *k)
{
	if (ksm_stop(k->dev))
		ksm_die("cannot stop kksmd; run the tests as root");
	close(k->scan);
	close(k->dev);
}

int ksm_area(const struct ksm *k)
{
	int fd = ioctl(k->dev, KSM_CREATE_SHARED_MEMORY_AREA);

	if (fd < 0)
		ksm_die("KSM_CREATE_SHARED_MEMORY_AREA: %s; see the kernel log",
			strerror(errno));
	return fd;
}

int ksm_register(int area, const void *addr, size_t npages)
{
	struct ksm_memory_region region = {
		.npages = npages,
		.addr = (uintptr_t)addr,
	};

	return ioctl(area, KSM_REGISTER_MEMORY_REGION, &region) ? -errno : 0;
}

int ksm_remove(int area)
{
	return ioctl(area, KSM_REMOVE_MEMORY_REGION) ? -errno : 0;
}

int ksm_unmerge(int area)
{
	return ioctl(area, KSM_UNMERGE) ? -errno : 0;
}

int ksm_scan(int scan_fd, uint64_t pages)
{
	while (pages) {
		struct ksm_user_scan scan = {
			.pages_to_scan = pages > 1U << 30 ? 1U << 30 : pages,
		};
		int ret;

		do
			ret = ioctl(scan_fd, KSM_SCAN, &scan);
		while (ret && errno == EINTR);
		if (ret)
			return -errno;
		pages -= scan.pages_to_scan;
	}
	return 0;
}

int ksm_start(int dev, uint32_t pages, uint32_t max_merge, uint32_t sleep_us)
{
	struct ksm_kthread_info info = {
		.sleep = sleep_us,
		.pages_to_scan = pages,
		.max_pages_to_merge = max_merge,
		.flags = ksm_control_flags_run,
	};

	return ioctl(dev, KSM_START_STOP_KTHREAD, &info) ? -errno : 0;
}

int ksm_stop(int dev)
{
	struct ksm_kthread_info info = { .flags = 0 };

	return ioctl(dev, KSM_START_STOP_KTHREAD, &info) ? -errno : 0;
}

int ksm_set_pace(int dev, uint32_t cpu_percent, uint32_t threads)
{
	struct ksm_pace pace = {
		.size = sizeof(pace),
		.cpu_percent = cpu_percent,
		.threads = threads,
	};

	return ioctl(dev, KSM_SET_PACE, &pace) ? -errno : 0;
}

int ksm_merge_range(int area, const void *addr, uint64_t npages, uint64_t *merged)
{
	struct ksm_merge_range range = {
		.size = sizeof(range),
		.addr = (uintptr_t)addr,
		.npages = npages,
	};
	int ret = ioctl(area, KSM_MERGE_RANGE, &range) ? -errno : 0;

	if (merged)
		*merged = range.merged;
	return ret;
}

void ksm_passes(const struct ksm *k, unsigned int passes)
{
	int ret = ksm_scan(k->scan, passes * ksm_stat("pages_registered"));

	if (ret)
		ksm_die("KSM_SCAN: %s; see the kernel log", strerror(-ret));
}

void ksm_merge_all(const struct ksm *k)
{
	ksm_passes(k, 4);
}

void ksm_merge_held(const struct ksm *k)
{
	ksm_passes(k, 18);
}

bool ksm_wait_no_regions(const struct ksm *k)
{
	double end = ksm_now() + KSM_PATIENCE;

	do {
		if (!ksm_stat("regions"))
			return true;
		ksm_passes(k, 1);
		usleep(20000);
	} while (ksm_now() < end);
	return false;
}
