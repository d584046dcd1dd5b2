// SPDX-License-Identifier: GPL-2.0-only
/*
 * abi_errors_test.c - calls that are refused: bad pointers, unknown numbers, arguments, sizes
 *
 * The arguments of KSM_REGISTER_MEMORY_REGION are in abi_region_test.c, those of
 * KSM_START_STOP_KTHREAD in abi_kthread_test.c.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_abi.h"

/* ---- errors ---- */

TEST_F(abi, bad_pointers)
{
	static const struct {
		int fd;		/* 0: device, 1: area, 2: scan */
		unsigned long cmd;
		size_t size;
	} calls[] = {
		{ 0, KSM_START_STOP_KTHREAD, 16 },
		{ 0, KSM_START_STOP_KTHREAD_RHEL, 12 },
		{ 0, KSM_START_STOP_KTHREAD_2009, 24 },
		{ 0, KSM_GET_INFO_KTHREAD, 16 },
		{ 0, KSM_GET_INFO_KTHREAD_RHEL, 12 },
		{ 0, KSM_GET_INFO_KTHREAD_2009, 24 },
		{ 1, KSM_REGISTER_MEMORY_REGION, 16 },
		{ 1, KSM_REGISTER_MEMORY_REGION_2009, 24 },
		{ 2, KSM_SCAN, 8 },
	};
	const int fds[3] = { self->k.dev, self->area, self->k.scan };
	/* The page behind this memory is not accessible. */
	char *end = self->mem + NPAGES * PGSZ;

	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		const int fd = fds[calls[i].fd];
		const unsigned long cmd = calls[i].cmd;

		EXPECT_REFUSED(EFAULT, call(fd, cmd, NULL));
		EXPECT_REFUSED(EFAULT, call(fd, cmd, (void *)8));
		EXPECT_REFUSED(EFAULT, call(fd, cmd, end));
		EXPECT_REFUSED(EFAULT, call(fd, cmd, (void *)-4096L));
		/* The last four bytes are out of reach. */
		EXPECT_REFUSED(EFAULT, call(fd, cmd, end - calls[i].size + 4));
	}
	/* GET_INFO writes: read-only memory is a bad pointer for it. */
	ASSERT_EQ(0, mprotect(self->mem, PGSZ, PROT_READ));
	EXPECT_REFUSED(EFAULT, call(self->k.dev, KSM_GET_INFO_KTHREAD, self->mem));
	ASSERT_EQ(0, mprotect(self->mem, PGSZ, PROT_READ | PROT_WRITE));
	/* The last call wrote part of the last page. */
	ksm_fill(self->mem, NPAGES, 1);
}

TEST_F(abi, unknown_ioctls)
{
	static const unsigned long dev_only[] = {
		KSM_GET_API_VERSION, KSM_CREATE_SHARED_MEMORY_AREA, KSM_CREATE_SCAN,
		KSM_START_STOP_KTHREAD, KSM_GET_INFO_KTHREAD,
		KSM_START_STOP_KTHREAD_RHEL, KSM_GET_INFO_KTHREAD_RHEL,
		KSM_START_STOP_KTHREAD_2009, KSM_GET_INFO_KTHREAD_2009,
		KSM_SET_PACE, KSM_GET_PACE,
	};
	static const unsigned long area_only[] = {
		KSM_REGISTER_MEMORY_REGION, KSM_REMOVE_MEMORY_REGION, KSM_UNMERGE,
		KSM_REGISTER_MEMORY_REGION_2009, KSM_MERGE_RANGE,
	};
	static const unsigned long scan_only[] = { KSM_SCAN };
	static const unsigned long none[] = {
		0, ~0UL,
		_IO(KSMIO, 0x05), _IO(KSMIO, 0x23), _IO(KSMIO, 0x41), _IO(KSMIO, 0xff),
		/* The right number with another size, direction or magic. */
		_IO(KSMIO, 0x03), _IO(KSMIO, 0x04), _IO(KSMIO, 0x20), _IO(KSMIO, 0x40),
		_IOW(KSMIO, 0x03, uint64_t), _IOW(KSMIO, 0x20, uint32_t),
		_IOW(KSMIO, 0x40, uint32_t), _IOW(KSMIO, 0x40, uint64_t[2]),
		_IOR(KSMIO, 0x04, struct ksm_kthread_info),
		_IOWR(KSMIO, 0x20, struct ksm_memory_region),
		_IOR(KSMIO, 0x40, struct ksm_user_scan),
		_IOW(KSMIO, 0x05, uint32_t), _IOR(KSMIO, 0x06, struct ksm_pace),
		_IOW(KSMIO, 0x23, struct ksm_merge_range), _IO(KSMIO, 0x07), _IO(KSMIO, 0x24),
		_IO(0xAC, 0x00), _IO(0xAC, 0x01),
	};
	const int fds[3] = { self->k.dev, self->area, self->k.scan };
	const struct {
		const unsigned long *cmd;
		size_t n;
		int home;
	} all[] = {
		{ dev_only, sizeof(dev_only) / sizeof(dev_only[0]), 0 },
		{ area_only, sizeof(area_only) / sizeof(area_only[0]), 1 },
		{ scan_only, 1, 2 },
		{ none, sizeof(none) / sizeof(none[0]), -1 },
	};
	/* Would be a good argument for any of them. */
	uint64_t arg[4] = { 1, (uintptr_t)self->mem, 0, 0 };

	for (int f = 0; f < 3; f++) {
		for (size_t l = 0; l < sizeof(all) / sizeof(all[0]); l++) {
			for (size_t i = 0; all[l].home != f && i < all[l].n; i++) {
				EXPECT_EQ(-ENOTTY, call(fds[f], all[l].cmd[i], arg)) {
					TH_LOG("fd kind %d, ioctl %#lx", f, all[l].cmd[i]);
				}
				EXPECT_TRUE(same_state(&self->state));
			}
		}
	}
}

TEST_F(abi, scan_arguments)
{
	struct ksm_user_scan s = { .pages_to_scan = 0, .max_pages_to_merge = 0 };

	EXPECT_REFUSED(EINVAL, call(self->k.scan, KSM_SCAN, &s));
	s.max_pages_to_merge = 5;
	EXPECT_REFUSED(EINVAL, call(self->k.scan, KSM_SCAN, &s));
	/* Nothing registered: done at once, whatever was asked for. */
	s.pages_to_scan = UINT32_MAX;
	EXPECT_EQ(0, call(self->k.scan, KSM_SCAN, &s));
	s.max_pages_to_merge = UINT32_MAX;
	EXPECT_EQ(0, call(self->k.scan, KSM_SCAN, &s));
	EXPECT_TRUE(same_state(&self->state));
}

TEST_F(abi, ignored_arguments)
{
	/* On an area without regions they have nothing to do. */
	EXPECT_EQ(0, call(self->area, KSM_REMOVE_MEMORY_REGION, NULL));
	EXPECT_EQ(0, call(self->area, KSM_UNMERGE, NULL));
	ASSERT_EQ(0, register_raw(self->area, (uintptr_t)self->mem, NPAGES));
	EXPECT_EQ(0, call(self->area, KSM_UNMERGE, (void *)8));
	EXPECT_EQ(1, ksm_stat("regions"));
	EXPECT_EQ(0, call(self->area, KSM_REMOVE_MEMORY_REGION, (void *)8));
	EXPECT_TRUE(same_state(&self->state));
}

TEST_F(abi, no_read_write_mmap)
{
	const int fds[3] = { self->k.dev, self->area, self->k.scan };
	char buf[16] = "";

	for (int i = 0; i < 3; i++) {
		EXPECT_EQ(-1, read(fds[i], buf, sizeof(buf)));
		EXPECT_EQ(-1, write(fds[i], buf, sizeof(buf)));
		EXPECT_EQ(-1, pread(fds[i], buf, sizeof(buf), 0));
		EXPECT_EQ(MAP_FAILED, mmap(NULL, PGSZ, PROT_READ, MAP_SHARED, fds[i], 0));
		EXPECT_EQ(MAP_FAILED, mmap(NULL, PGSZ, PROT_READ | PROT_WRITE,
					   MAP_PRIVATE, fds[i], 0));
	}
	EXPECT_TRUE(same_state(&self->state));
}

/* ---- structures that begin with their size ---- */

TEST_F(abi, pace_arguments)
{
	static const struct ksm_pace bad[] = {
		{ .cpu_percent = 101 },
		{ .cpu_percent = UINT32_MAX },
		{ .cpu_percent = 201, .threads = 2 },
		{ .cpu_percent = 6401, .threads = 64 },
		{ .threads = 65 },
		{ .threads = UINT32_MAX },
		{ .threads = 0x80000000U, .cpu_percent = 1 },
		/* Times 100 it is 32 in 32 bits. */
		{ .threads = 42949673, .cpu_percent = 1 },
		{ .flags = 1 },
		{ .flags = 0x80000000U, .threads = 2 },
	};
	static const struct ksm_pace good[] = {
		{ .cpu_percent = 200, .threads = 2 },
		{ .cpu_percent = 6400, .threads = 64 },
		{ .cpu_percent = 1, .threads = 3 },
		{ .cpu_percent = 0, .threads = 1 },
	};
	struct ksm_pace pace, get;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		pace = bad[i];
		pace.size = sizeof(pace);
		EXPECT_REFUSED(EINVAL, call(self->k.dev, KSM_SET_PACE, &pace));
	}
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		pace = good[i];
		pace.size = sizeof(pace);
		EXPECT_EQ(0, call(self->k.dev, KSM_SET_PACE, &pace));
		EXPECT_EQ(pace.threads, ksm_stat("threads"));
		EXPECT_EQ(pace.cpu_percent, ksm_stat("cpu_percent"));
		memset(&get, 0xff, sizeof(get));
		get.size = sizeof(get);
		get.flags = 0;
		EXPECT_EQ(0, call(self->k.dev, KSM_GET_PACE, &get));
		EXPECT_EQ(0, memcmp(&pace, &get, sizeof(pace)));
	}
	/* The per cent are of the threads that there will be. */
	take_state(&self->state);
	pace.cpu_percent = 101;
	pace.threads = 0;
	EXPECT_REFUSED(EINVAL, call(self->k.dev, KSM_SET_PACE, &pace));
	pace.threads = 2;
	EXPECT_EQ(0, call(self->k.dev, KSM_SET_PACE, &pace));
	take_state(&self->state);
	pace.threads = 1;
	EXPECT_REFUSED(EINVAL, call(self->k.dev, KSM_SET_PACE, &pace));
	get.flags = 1;
	EXPECT_REFUSED(EINVAL, call(self->k.dev, KSM_GET_PACE, &get));
	/* Nothing else was touched by all that. */
	EXPECT_EQ(11, ksm_stat("pages_to_scan"));
	EXPECT_EQ(0, ksm_stat("run"));
}

TEST_F(abi, range_arguments)
{
	const uint64_t mem = (uintptr_t)self->mem;
	const struct ksm_merge_range bad[] = {
		{ .addr = mem + 1, .npages = 1 },
		{ .addr = mem + PGSZ / 2, .npages = 1 },
		{ .addr = mem + PGSZ - 1, .npages = 1 },
		{ .addr = mem, .npages = 0 },
		{ .addr = mem, .npages = 1, .flags = 1 },
		{ .addr = mem, .npages = 1, .flags = 0x80000000U },
	};
	const struct ksm_merge_range none[] = {
		{ .addr = mem - PGSZ, .npages = 1 },
		{ .addr = mem - PGSZ, .npages = 2 },
		{ .addr = mem, .npages = NPAGES + 1 },
		{ .addr = mem + NPAGES * PGSZ, .npages = 1 },
		{ .addr = 0, .npages = 1 },
		{ .addr = -(uint64_t)PGSZ, .npages = 1 },
		{ .addr = 1ULL << 63, .npages = 1 },
		/* Cut to 32 bits, these would be ours. */
		{ .addr = mem ^ 1ULL << 32, .npages = 1 },
		{ .addr = mem, .npages = 1ULL << 32 | 1 },
		{ .addr = mem, .npages = 1ULL << 52 | 1 },
		{ .addr = mem, .npages = UINT64_MAX },
	};
	struct ksm_merge_range range;

	ASSERT_EQ(0, register_raw(self->area, mem, NPAGES));
	take_state(&self->state);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		range = bad[i];
		range.size = sizeof(range);
		EXPECT_REFUSED(EINVAL, call(self->area, KSM_MERGE_RANGE, &range));
	}
	for (size_t i = 0; i < sizeof(none) / sizeof(none[0]); i++) {
		range = none[i];
		range.size = sizeof(range);
		EXPECT_REFUSED(ENOENT, call(self->area, KSM_MERGE_RANGE, &range));
	}
	/* What comes in with merged does not matter, and the rest is left alone. */
	range = (struct ksm_merge_range){
		.size = sizeof(range), .addr = mem, .npages = NPAGES, .merged = UINT64_MAX,
	};
	EXPECT_EQ(0, call(self->area, KSM_MERGE_RANGE, &range));
	EXPECT_EQ(0, range.merged);
	EXPECT_EQ(sizeof(range), range.size);
	EXPECT_EQ(0, range.flags);
	EXPECT_EQ(mem, range.addr);
	EXPECT_EQ(NPAGES, range.npages);
	EXPECT_TRUE(same_state(&self->state));
}

/* The same through either entry of the kernel. */
TEST_F(abi, range_merges)
{
	char *mem = ksm_mmap(2 * NPAGES);
	uint64_t merged = 0;

	ksm_fill_same(mem, NPAGES, 1);
	ksm_fn_zero((long)(mem + NPAGES * PGSZ), NPAGES, 0, 0);
	ASSERT_EQ(0, register_raw(self->area, (uintptr_t)mem, 2 * NPAGES));
	ASSERT_EQ(0, ksm_merge_range(self->area, mem, 2 * NPAGES, &merged));
	EXPECT_EQ(2 * NPAGES, merged);
	EXPECT_EQ(2, ksm_distinct(0, mem, 2 * NPAGES));
	EXPECT_EQ(NPAGES - 1, ksm_stat("pages_sharing"));
	EXPECT_EQ(NPAGES, ksm_stat("zero_pages"));
	EXPECT_EQ(0, ksm_wrong_same(mem, NPAGES, 1));
	EXPECT_EQ(0, ksm_wrong_zero(mem + NPAGES * PGSZ, NPAGES));
}

/* A caller of tomorrow has more fields; what it does not use is zero. */
TEST_F(abi, sizes)
{
	const struct {
		int fd;
		unsigned long cmd;
		uint32_t size;
	} calls[] = {
		{ self->k.dev, KSM_SET_PACE, sizeof(struct ksm_pace) },
		{ self->k.dev, KSM_GET_PACE, sizeof(struct ksm_pace) },
		{ self->area, KSM_MERGE_RANGE, sizeof(struct ksm_merge_range) },
	};
	char *two = ksm_mmap(2), *end = two + 2 * PGSZ;

	ASSERT_EQ(0, register_raw(self->area, (uintptr_t)self->mem, NPAGES));
	take_state(&self->state);
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		const int fd = calls[i].fd;
		const unsigned long cmd = calls[i].cmd;
		const uint32_t size = calls[i].size;
		/* The head is that of a good call. */
		union {
			uint32_t size;
			struct ksm_pace pace;
			struct ksm_merge_range range;
		} head = { .range = { .addr = (uintptr_t)self->mem, .npages = 1 } };
		const uint32_t shorter[] = { 0, 1, 4, 8, size - 1 };
		const uint32_t longer[] = { size, size + 1, size + 8, 256, PGSZ };

		if (cmd != KSM_MERGE_RANGE)
			memset(&head, 0, sizeof(head));
		for (size_t j = 0; j < sizeof(shorter) / sizeof(shorter[0]); j++) {
			head.size = shorter[j];
			memcpy(two, &head, size);
			EXPECT_REFUSED(EINVAL, call(fd, cmd, two));
		}
		for (size_t j = 0; j < sizeof(longer) / sizeof(longer[0]); j++) {
			memset(two, 0, 2 * PGSZ);
			head.size = longer[j];
			memcpy(two, &head, size);
			/* What lies behind it is no business of the call's. */
			two[longer[j]] = 1;
			EXPECT_EQ(0, call(fd, cmd, two));
			EXPECT_EQ(1, two[longer[j]]);
			EXPECT_EQ(longer[j], *(uint32_t *)two);
			EXPECT_TRUE(same_state(&self->state));
			if (longer[j] == size)
				continue;
			memcpy(two, &head, size);
			two[longer[j] - 1] = 1;
			EXPECT_REFUSED(E2BIG, call(fd, cmd, two));
			two[longer[j] - 1] = 0;
			two[size] = 1;
			EXPECT_REFUSED(E2BIG, call(fd, cmd, two));
		}
		/* More than a page is not looked at. */
		memset(two, 0, 2 * PGSZ);
		head.size = PGSZ + 1;
		memcpy(two, &head, size);
		EXPECT_REFUSED(E2BIG, call(fd, cmd, two));
		head.size = UINT32_MAX;
		memcpy(two, &head, size);
		EXPECT_REFUSED(E2BIG, call(fd, cmd, two));

		/* Bad pointers, also where only the last bytes are out of reach. */
		EXPECT_REFUSED(EFAULT, call(fd, cmd, NULL));
		EXPECT_REFUSED(EFAULT, call(fd, cmd, (void *)8));
		EXPECT_REFUSED(EFAULT, call(fd, cmd, end));
		EXPECT_REFUSED(EFAULT, call(fd, cmd, (void *)-4096L));
		head.size = size;
		memcpy(end - size + 4, &head, size - 4);
		EXPECT_REFUSED(EFAULT, call(fd, cmd, end - size + 4));
		head.size = size + 8;
		memcpy(end - size, &head, size);
		EXPECT_REFUSED(EFAULT, call(fd, cmd, end - size));
		/* Those that are written must be writable. */
		head.size = size;
		memcpy(two, &head, size);
		ASSERT_EQ(0, mprotect(two, PGSZ, PROT_READ));
		EXPECT_EQ(cmd == KSM_SET_PACE ? 0 : -EFAULT, call(fd, cmd, two));
		ASSERT_EQ(0, mprotect(two, PGSZ, PROT_READ | PROT_WRITE));
		EXPECT_TRUE(same_state(&self->state));
	}
}

TEST_HARNESS_MAIN
