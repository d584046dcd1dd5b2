// SPDX-License-Identifier: GPL-2.0-only
/*
 * unload_test.c - the module comes and goes, or is refused
 *
 * Busy, it stays. Else it goes with all its threads, and nothing with its name is left;
 * orphans_test.c has the merged pages.
 *
 * Each test leaves the module loaded, as it found it, for whatever runs next and
 * for the VM's own unload at the end.
 *
 * The last one needs a module that asks for a function that no kernel has, made
 * with EXTRA_SYMBOL=: ksmdev-missing.ko next to this program.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ksm_module.h"

TEST_F(module, busy_while_fds_are_open)
{
	struct ksm_user_scan s = { .pages_to_scan = 16 };
	char *mem = ksm_mmap(16);
	int dev, area, scan, sock[2];
	char byte = 0, control[CMSG_SPACE(sizeof(int))] = "";
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	ksm_fill_same(mem, 16, 1);
	/* The device alone. */
	dev = ksm_open();
	EXPECT_EQ(-EAGAIN, ksm_unload());
	/* An area alone, with a region; a scan fd alone. */
	area = ioctl(dev, KSM_CREATE_SHARED_MEMORY_AREA);
	scan = ioctl(dev, KSM_CREATE_SCAN);
	ASSERT_LE(0, area);
	ASSERT_LE(0, scan);
	close(dev);
	EXPECT_EQ(0, ksm_register(area, mem, 16));
	EXPECT_EQ(-EAGAIN, ksm_unload());
	close(scan);
	EXPECT_EQ(-EAGAIN, ksm_unload());
	/* Refusing has not hurt it. */
	dev = ksm_open();
	scan = ioctl(dev, KSM_CREATE_SCAN);
	ASSERT_LE(0, scan);
	close(dev);
	EXPECT_EQ(0, ioctl(scan, KSM_SCAN, &s));
	close(area);
	EXPECT_EQ(-EAGAIN, ksm_unload());
	/* Not even one that is on its way between two processes. */
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_DGRAM, 0, sock));
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &scan, sizeof(int));
	ASSERT_EQ(1, sendmsg(sock[0], &msg, 0));
	close(scan);
	EXPECT_EQ(-EAGAIN, ksm_unload());
	EXPECT_TRUE(ksm_loaded());
	close(sock[0]);
	close(sock[1]);
	/* An open sysfs file does not count, and does not crash. */
	dev = open("/sys/class/misc/ksm/pages_shared", O_RDONLY);
	ASSERT_LE(0, dev);
	EXPECT_EQ(0, ksm_unload_soon());
	EXPECT_TRUE(nothing_left());
	EXPECT_EQ(-1, read(dev, &byte, 1));
	EXPECT_EQ(ENODEV, errno);
	close(dev);
}

TEST_F(module, fresh_after_load)
{
	static const char *const zero[] = {
		"pages_shared", "pages_sharing", "pages_unshared", "pages_volatile",
		"zero_pages", "pages_scanned", "pages_skipped", "full_scans",
		"kernel_pages", "areas", "regions", "pages_registered", "run",
		"pages_to_scan", "max_pages_to_merge", "sleep_us", "cpu_percent",
	};
	struct ksm_kthread_info info;
	int dev;

	ASSERT_EQ(0, ksm_unload_soon());
	EXPECT_TRUE(nothing_left());
	ksm_load();
	for (size_t i = 0; i < sizeof(zero) / sizeof(zero[0]); i++) {
		EXPECT_EQ(0, ksm_stat(zero[i])) {
			TH_LOG("%s", zero[i]);
		}
	}
	EXPECT_EQ(1, ksm_stat("threads"));
	EXPECT_EQ(1, ksm_count_threads());
	memset(&info, 0xff, sizeof(info));
	dev = ksm_open();
	ASSERT_EQ(0, ioctl(dev, KSM_GET_INFO_KTHREAD, &info));
	EXPECT_EQ(0, info.sleep);
	EXPECT_EQ(0, info.pages_to_scan);
	EXPECT_EQ(0, info.max_pages_to_merge);
	EXPECT_EQ(0, info.flags);
	close(dev);
}

/* Running or sleeping for an hour, the thread goes when it is told to. */
TEST_F(module, unload_with_kksmd_running)
{
	static const unsigned int sleeps[] = { 0, 1000, 3600000000U };
	double began;
	int dev;

	for (int i = 0; i < 6; i++) {
		dev = ksm_open();
		ASSERT_EQ(0, ksm_start(dev, 1000, 0, sleeps[i % 3]));
		close(dev);
		usleep(100000 * (i / 3));
		began = ksm_now();
		ASSERT_EQ(0, ksm_unload_soon());
		EXPECT_GT(KSM_PATIENCE, ksm_now() - began);
		EXPECT_TRUE(nothing_left());
		ksm_load();
	}
}

/* So do all of many threads, at either pace, with memory to scan and without. */
TEST_F(module, unload_with_many_threads_running)
{
	static const uint32_t cpu_percent[] = { 0, 100, 1 };
	const size_t n = 2048;
	char *mem = ksm_mmap(n);
	double began;
	struct ksm k;
	int area;

	ksm_fill(mem, n, 1);
	for (int i = 0; i < 6; i++) {
		ksm_begin(&k);
		area = ksm_area(&k);
		if (i / 3)
			ASSERT_EQ(0, ksm_register(area, mem, n));
		ASSERT_EQ(0, ksm_set_pace(k.dev, cpu_percent[i % 3], i / 3 ? 8 : 64));
		ASSERT_EQ(0, ksm_start(k.dev, 1000, 0, 0));
		EXPECT_EQ(i / 3 ? 8 : 64, ksm_count_threads());
		usleep(200000);
		/* ksm_finish() would stop them. */
		close(area);
		close(k.scan);
		close(k.dev);
		began = ksm_now();
		ASSERT_EQ(0, ksm_unload_soon());
		EXPECT_GT(KSM_PATIENCE, ksm_now() - began);
		EXPECT_TRUE(nothing_left());
		ksm_load();
	}
	EXPECT_EQ(0, ksm_wrong(mem, n, 1));
}

TEST_F(module, many_times)
{
	const size_t n = 128;
	char *mem = ksm_mmap(2 * n);
	struct ksm k;
	int area;

	for (int round = 0; round < 10; round++) {
		ksm_load();
		ksm_begin(&k);
		area = ksm_area(&k);
		ksm_fill(mem, n, round);
		ksm_fill(mem + n * PGSZ, n, round);
		ASSERT_EQ(0, ksm_register(area, mem, 2 * n));
		ksm_merge_all(&k);
		ASSERT_EQ(n, ksm_same_frames(0, mem, 0, mem + n * PGSZ, n));
		/* The thread in the middle of it, and merged pages alive. */
		if (round % 2)
			ASSERT_EQ(0, ksm_start(k.dev, 1000, 0, 0));
		close(area);
		close(k.scan);
		close(k.dev);
		ASSERT_EQ(0, ksm_unload_soon());
		ASSERT_EQ(0, ksm_wrong(mem, n, round));
		ASSERT_EQ(0, ksm_wrong(mem + n * PGSZ, n, round));
	}
}

/* Does the kernel log, from where @log stands, have a line with all of these? */
static bool in_log(int log, const char *a, const char *b)
{
	char line[8192];
	bool found = false;
	ssize_t len;

	for (;;) {
		len = read(log, line, sizeof(line) - 1);
		if (len < 0 && errno == EPIPE)
			continue;
		if (len <= 0)
			return found;
		line[len] = '\0';
		found |= strstr(line, a) && strstr(line, b);
	}
}

TEST_F(module, second_load_is_refused)
{
	char path[256], release[128] = "";
	int fd = open("/proc/sys/kernel/osrelease", O_RDONLY);

	ASSERT_LT(0, read(fd, release, sizeof(release) - 1));
	close(fd);
	release[strcspn(release, "\n")] = '\0';
	snprintf(path, sizeof(path), "/lib/modules/%s/extra/ksmdev.ko", release);
	EXPECT_EQ(-EEXIST, ksm_insert(path));
	EXPECT_TRUE(ksm_loaded());
	EXPECT_EQ(1, ksm_count_threads());
}

TEST_F(module, missing_function_is_named)
{
	const char *path = ksm_beside("ksmdev-missing.ko", "missing-KERNEL");
	int log;

	log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	ASSERT_LE(0, log);
	ASSERT_LE(0, lseek(log, 0, SEEK_END));
	ASSERT_EQ(0, ksm_unload_soon());

	EXPECT_EQ(-ENOENT, ksm_insert(path));
	EXPECT_FALSE(ksm_loaded());
	EXPECT_TRUE(nothing_left());
	/* "ksmdev: this kernel lacks NAME(), ...": the name that no kernel has. */
	EXPECT_TRUE(in_log(log, "ksmdev: ", "ksmdev_no_such_function"));
	close(log);
	ksm_load();
}

TEST_HARNESS_MAIN
