// SPDX-License-Identifier: GPL-2.0-only
/*
 * abi_test.c - the ABI as it was published: numbers, structs, versions, and the fds
 *
 * Old programs must find all of it as they know it. Who may open the device, and how long each
 * fd keeps what was made with it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "ksm_abi.h"

/*
 * The numbers as they were published, written out: a slip in ksm.h must not be
 * able to change the test together with the driver.
 */
#define CHECK_NUMBER(name, number) \
	_Static_assert((name) == (number), #name " has another number")

CHECK_NUMBER(KSM_GET_API_VERSION,		0x0000AB00);
CHECK_NUMBER(KSM_CREATE_SHARED_MEMORY_AREA,	0x0000AB01);
CHECK_NUMBER(KSM_CREATE_SCAN,			0x0000AB02);
CHECK_NUMBER(KSM_START_STOP_KTHREAD,		0x4010AB03);
CHECK_NUMBER(KSM_GET_INFO_KTHREAD,		0x4010AB04);
CHECK_NUMBER(KSM_REGISTER_MEMORY_REGION,	0x4010AB20);
CHECK_NUMBER(KSM_REMOVE_MEMORY_REGION,		0x0000AB21);
CHECK_NUMBER(KSM_UNMERGE,			0x0000AB22);
CHECK_NUMBER(KSM_SCAN,				0x4008AB40);
CHECK_NUMBER(KSM_SET_PACE,			0x4010AB05);
CHECK_NUMBER(KSM_GET_PACE,			0xC010AB06);
CHECK_NUMBER(KSM_MERGE_RANGE,			0xC020AB23);
CHECK_NUMBER(KSM_START_STOP_KTHREAD_RHEL,	0x400CAB03);
CHECK_NUMBER(KSM_GET_INFO_KTHREAD_RHEL,		0x400CAB04);
CHECK_NUMBER(KSM_START_STOP_KTHREAD_2009,	0x4018AB02);
CHECK_NUMBER(KSM_GET_INFO_KTHREAD_2009,		0x4018AB03);
CHECK_NUMBER(KSM_REGISTER_MEMORY_REGION_2009,	0x4018AB20);
CHECK_NUMBER(KSM_API_VERSION, 1);
CHECK_NUMBER(ksm_control_flags_run, 1);
CHECK_NUMBER(KSM_MAX_THREADS, 64);

#define CHECK_FIELD(type, field, offset, size) \
	_Static_assert(offsetof(struct type, field) == (offset) && \
		       sizeof(((struct type *)0)->field) == (size), \
		       #type "." #field " is not where it was published")

_Static_assert(sizeof(struct ksm_memory_region) == 16, "size");
CHECK_FIELD(ksm_memory_region, npages_low, 0, 4);
CHECK_FIELD(ksm_memory_region, pad, 4, 4);
CHECK_FIELD(ksm_memory_region, addr, 8, 8);
_Static_assert(sizeof(struct ksm_user_scan) == 8, "size");
CHECK_FIELD(ksm_user_scan, pages_to_scan, 0, 4);
CHECK_FIELD(ksm_user_scan, max_pages_to_merge, 4, 4);
_Static_assert(sizeof(struct ksm_kthread_info) == 16, "size");
CHECK_FIELD(ksm_kthread_info, sleep, 0, 4);
CHECK_FIELD(ksm_kthread_info, pages_to_scan, 4, 4);
CHECK_FIELD(ksm_kthread_info, max_pages_to_merge, 8, 4);
CHECK_FIELD(ksm_kthread_info, flags, 12, 4);
_Static_assert(sizeof(struct ksm_kthread_info_rhel) == 12, "size");
CHECK_FIELD(ksm_kthread_info_rhel, sleep, 0, 4);
CHECK_FIELD(ksm_kthread_info_rhel, pages_to_scan, 4, 4);
CHECK_FIELD(ksm_kthread_info_rhel, flags, 8, 4);
_Static_assert(sizeof(struct ksm_kthread_info_2009) == 24, "size");
CHECK_FIELD(ksm_kthread_info_2009, sleep, 0, 4);
CHECK_FIELD(ksm_kthread_info_2009, pages_to_scan, 4, 4);
CHECK_FIELD(ksm_kthread_info_2009, flags, 8, 4);
CHECK_FIELD(ksm_kthread_info_2009, pad, 12, 4);
CHECK_FIELD(ksm_kthread_info_2009, reserved_bits, 16, 8);
_Static_assert(sizeof(struct ksm_memory_region_2009) == 24, "size");
CHECK_FIELD(ksm_memory_region_2009, npages, 0, 4);
CHECK_FIELD(ksm_memory_region_2009, pad, 4, 4);
CHECK_FIELD(ksm_memory_region_2009, addr, 8, 8);
CHECK_FIELD(ksm_memory_region_2009, reserved_bits, 16, 8);
_Static_assert(sizeof(struct ksm_pace) == 16, "size");
CHECK_FIELD(ksm_pace, size, 0, 4);
CHECK_FIELD(ksm_pace, flags, 4, 4);
CHECK_FIELD(ksm_pace, cpu_percent, 8, 4);
CHECK_FIELD(ksm_pace, threads, 12, 4);
_Static_assert(sizeof(struct ksm_merge_range) == 32, "size");
CHECK_FIELD(ksm_merge_range, size, 0, 4);
CHECK_FIELD(ksm_merge_range, flags, 4, 4);
CHECK_FIELD(ksm_merge_range, addr, 8, 8);
CHECK_FIELD(ksm_merge_range, npages, 16, 8);
CHECK_FIELD(ksm_merge_range, merged, 24, 8);

/* ---- versions ---- */

TEST_F(abi, version)
{
	EXPECT_EQ(1, call(self->k.dev, KSM_GET_API_VERSION, NULL));
	/* An argument is not looked at: programs of 2008 passed rubbish. */
	EXPECT_EQ(1, call(self->k.dev, KSM_GET_API_VERSION, (void *)8));
	EXPECT_TRUE(same_state(&self->state));
}

TEST_F(abi, fds)
{
	char path[64], link[64];
	int fds[2], i;

	fds[0] = self->area;
	fds[1] = self->k.scan;
	for (i = 0; i < 2; i++) {
		ASSERT_LE(0, fds[i]);
		/* As in 2008: an exec keeps them. */
		EXPECT_EQ(0, fcntl(fds[i], F_GETFD) & FD_CLOEXEC);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fds[i]);
		memset(link, 0, sizeof(link));
		ASSERT_LT(0, readlink(path, link, sizeof(link) - 1));
		EXPECT_NE(NULL, strstr(link, i ? "ksm-scan" : "ksm-sma"));
	}
}

TEST_F(abi, register_version_1)
{
	struct ksm_memory_region r = {
		.npages = NPAGES, .addr = (uintptr_t)self->mem,
	};

	ASSERT_EQ(0, call(self->area, KSM_REGISTER_MEMORY_REGION, &r));
	EXPECT_EQ(1, ksm_stat("regions"));
	EXPECT_EQ(NPAGES, ksm_stat("pages_registered"));
	ASSERT_EQ(0, call(self->area, KSM_REMOVE_MEMORY_REGION, NULL));
	EXPECT_TRUE(same_state(&self->state));
}

TEST_F(abi, register_version_2009)
{
	struct ksm_memory_region_2009 r = {
		.npages = NPAGES, .addr = (uintptr_t)self->mem,
	};

	ASSERT_EQ(0, call(self->area, KSM_REGISTER_MEMORY_REGION_2009, &r));
	EXPECT_EQ(1, ksm_stat("regions"));
	EXPECT_EQ(NPAGES, ksm_stat("pages_registered"));
	/* Both versions name the same thing. */
	EXPECT_EQ(-EEXIST, register_raw(self->area, r.addr, 1));
	ASSERT_EQ(0, call(self->area, KSM_REMOVE_MEMORY_REGION, NULL));
	EXPECT_TRUE(same_state(&self->state));
}

/* ---- who may ---- */

static long fn_open_as_nobody(long unused, long unused2, long unused3, long unused4)
{
	long ret = drop_rights(1);
	int fd;

	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	if (ret)
		return ret;
	fd = open("/dev/ksm", O_RDWR);
	if (fd >= 0)
		return -EEXIST;
	ret = -errno;
	fd = open("/dev/ksm", O_RDONLY);
	return fd >= 0 ? -EEXIST : ret;
}

static long fn_register_as_nobody(long dev, long addr, long npages, long unused)
{
	long area, ret = drop_rights(1);

	(void)unused;
	if (ret)
		return ret;
	area = ioctl(dev, KSM_CREATE_SHARED_MEMORY_AREA);
	if (area < 0)
		return -errno;
	return register_raw(area, (unsigned long)addr, npages);
}

TEST_F(abi, device_rights)
{
	struct ksm_child c;
	struct stat st;

	ASSERT_EQ(0, stat("/dev/ksm", &st));
	EXPECT_TRUE(S_ISCHR(st.st_mode));
	EXPECT_EQ(0600, st.st_mode & 07777);
	EXPECT_EQ(0, st.st_uid);
	EXPECT_EQ(0, st.st_gid);
	EXPECT_EQ(10, major(st.st_rdev));

	ksm_spawn(&c);
	EXPECT_EQ(-EACCES, ksm_call(&c, fn_open_as_nobody, 0, 0, 0));
	ksm_end(&c);
	/* Who was given the fd may register memory with it. */
	ksm_spawn(&c);
	EXPECT_EQ(0, ksm_call(&c, fn_register_as_nobody, self->k.dev, self->mem, NPAGES));
	EXPECT_EQ(1, ksm_stat("regions"));
	ksm_end(&c);
	EXPECT_TRUE(ksm_wait_no_regions(&self->k));
	EXPECT_TRUE(same_state(&self->state));
}

/* ---- the life of the fds ---- */

TEST_F(abi, dup_keeps_the_area)
{
	int copy;

	ASSERT_EQ(0, register_raw(self->area, (uintptr_t)self->mem, NPAGES));
	copy = dup(self->area);
	ASSERT_LE(0, copy);
	ASSERT_EQ(0, close(self->area));
	EXPECT_EQ(1, ksm_stat("areas"));
	EXPECT_EQ(1, ksm_stat("regions"));
	/* The copy is the same area. */
	EXPECT_EQ(1, ksm_fdinfo(copy, "regions"));
	EXPECT_EQ(0, call(copy, KSM_REMOVE_MEMORY_REGION, NULL));
	EXPECT_EQ(0, ksm_stat("regions"));
	EXPECT_EQ(0, register_raw(copy, (uintptr_t)self->mem, 1));
	ASSERT_EQ(0, close(copy));
	EXPECT_EQ(0, ksm_stat("areas"));
	EXPECT_EQ(0, ksm_stat("regions"));
	EXPECT_EQ(0, ksm_stat("pages_registered"));
}

TEST_F(abi, fork_keeps_the_area)
{
	struct ksm_child c;

	ASSERT_EQ(0, register_raw(self->area, (uintptr_t)self->mem, NPAGES));
	ksm_spawn(&c);
	ASSERT_EQ(0, close(self->area));
	/* The child's copy of the fd holds it. */
	EXPECT_EQ(1, ksm_stat("areas"));
	EXPECT_EQ(1, ksm_stat("regions"));
	/* Our registration goes with the last fd, wherever that is. */
	EXPECT_EQ(0, ksm_call(&c, ksm_fn_close, self->area, 0, 0));
	EXPECT_EQ(0, ksm_stat("areas"));
	EXPECT_EQ(0, ksm_stat("regions"));
	EXPECT_EQ(0, ksm_end(&c));
	self->area = -1;
}

TEST_F(abi, sub_fds_outlive_the_device_fd)
{
	int dev = ksm_open(), area, scan;
	struct ksm_user_scan s = { .pages_to_scan = 4 };

	area = ioctl(dev, KSM_CREATE_SHARED_MEMORY_AREA);
	scan = ioctl(dev, KSM_CREATE_SCAN);
	ASSERT_LE(0, area);
	ASSERT_LE(0, scan);
	ASSERT_EQ(0, close(dev));
	EXPECT_EQ(0, register_raw(area, (uintptr_t)self->mem, NPAGES));
	EXPECT_EQ(1, ksm_stat("regions"));
	EXPECT_EQ(0, call(scan, KSM_SCAN, &s));
	close(scan);
	close(area);
	EXPECT_TRUE(same_state(&self->state));
}

static int send_fd(int sock, int fd)
{
	char byte = 0, control[CMSG_SPACE(sizeof(int))] = "";
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(int));
	return sendmsg(sock, &msg, 0) == 1 ? 0 : -errno;
}

/* Takes an fd out of the socket and registers our own memory with it. */
static long fn_receive_and_register(long sock, long addr, long npages, long unused)
{
	char byte, control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *c;
	int fd;

	(void)unused;
	if (recvmsg(sock, &msg, 0) != 1)
		return -errno;
	c = CMSG_FIRSTHDR(&msg);
	if (!c || c->cmsg_type != SCM_RIGHTS)
		return -EBADF;
	memcpy(&fd, CMSG_DATA(c), sizeof(int));
	return register_raw(fd, (unsigned long)addr, npages) ?: fd;
}

TEST_F(abi, area_sent_to_another_process)
{
	struct ksm_child c;
	int sock[2], area;
	long fd;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sock));
	ksm_spawn(&c);
	/* Made after the fork: the child has it from us alone. */
	area = ksm_area(&self->k);
	ASSERT_EQ(0, register_raw(area, (uintptr_t)self->mem, NPAGES));
	ASSERT_EQ(0, send_fd(sock[0], area));
	/* In flight it stays alive although we close it. */
	ASSERT_EQ(0, close(area));
	EXPECT_EQ(2, ksm_stat("areas"));
	EXPECT_EQ(1, ksm_stat("regions"));
	fd = ksm_call(&c, fn_receive_and_register, sock[1], self->mem, NPAGES);
	ASSERT_LE(0, fd);
	EXPECT_EQ(2, ksm_stat("regions"));
	EXPECT_EQ(0, ksm_call(&c, ksm_fn_close, fd, 0, 0));
	EXPECT_TRUE(same_state(&self->state));
	EXPECT_EQ(0, ksm_end(&c));
}

TEST_F(abi, many_areas)
{
	const size_t apart = 1UL << 20;
	int fds[200];
	char *room = mmap(NULL, 200 * apart, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			  -1, 0);

	/* Where nothing is mapped there may be no addresses: 32 bits end somewhere. */
	ASSERT_NE(MAP_FAILED, room);
	for (int i = 0; i < 200; i++) {
		fds[i] = ksm_area(&self->k);
		ASSERT_EQ(0, register_raw(fds[i], (uintptr_t)room + i * apart, 1));
	}
	EXPECT_EQ(201, ksm_stat("areas"));
	EXPECT_EQ(200, ksm_stat("regions"));
	EXPECT_EQ(0, ksm_scan(self->k.scan, 800));
	for (int i = 0; i < 200; i++)
		close(fds[(i * 7) % 200]);
	EXPECT_TRUE(same_state(&self->state));
	munmap(room, 200 * apart);
}

TEST_HARNESS_MAIN
