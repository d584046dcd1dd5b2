/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_abi.h - what the abi_*_test programs share
 *
 * Each refused call is followed by a look at all counters and settings, because an
 * error that changed something is none.
 *
 * These programs are built twice: NAME_test for 64 bits and NAME32_test for 32, which goes
 * through the kernel's compat entry.
 */
#ifndef KSM_ABI_H
#define KSM_ABI_H

#include <errno.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ksm_util.h"
#include "kselftest_harness.h"

/* Without KVM the VM is slow, and a debug kernel in it slower still. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 600

#define PARAM		"/sys/module/ksmdev/parameters/"
#define NOBODY		65534
#define NPAGES		16

/* Everything that a refused call must leave as it is. */
static const char *const state_names[] = {
	"areas", "regions", "pages_registered", "run", "pages_to_scan",
	"max_pages_to_merge", "sleep_us", "max_kernel_pages", "threads", "cpu_percent",
};

#define N_STATE (sizeof(state_names) / sizeof(state_names[0]))

struct state {
	long long value[N_STATE];
};

static inline void take_state(struct state *s)
{
	for (size_t i = 0; i < N_STATE; i++)
		s->value[i] = ksm_stat(state_names[i]);
}

static inline bool same_state(const struct state *old)
{
	struct state s;
	bool same = true;

	take_state(&s);
	for (size_t i = 0; i < N_STATE; i++) {
		if (s.value[i] == old->value[i])
			continue;
		printf("# %s was %lld, is %lld\n", state_names[i], old->value[i],
		       s.value[i]);
		same = false;
	}
	return same;
}

/* ioctl() as 0 or more, or -errno: one value to compare. */
static inline long call(int fd, unsigned long cmd, const void *arg)
{
	int ret = ioctl(fd, cmd, arg);

	return ret < 0 ? -errno : ret;
}

static inline long register_raw(int area, uint64_t addr, uint64_t npages)
{
	struct ksm_memory_region r = { .npages = npages, .addr = addr };

	return call(area, KSM_REGISTER_MEMORY_REGION, &r);
}

FIXTURE(abi) {
	struct ksm k;
	int area;
	char *mem;
	struct state state;
};

FIXTURE_SETUP(abi)
{
	ksm_begin(&self->k);
	/* A known start: these settings are easy to tell from any other. */
	ASSERT_EQ(0, ksm_start(self->k.dev, 11, 22, 33000000));
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	self->area = ksm_area(&self->k);
	self->mem = ksm_mmap(NPAGES);
	ksm_fill(self->mem, NPAGES, 1);
	take_state(&self->state);
	ASSERT_EQ(11, ksm_stat("pages_to_scan"));
}

FIXTURE_TEARDOWN(abi)
{
	/* Whatever happened to it, the memory must hold what was written. */
	EXPECT_EQ(0, ksm_wrong(self->mem, NPAGES, 1));
	close(self->area);
	ksm_finish(&self->k);
}

/* The call fails with this error and changes nothing. */
#define EXPECT_REFUSED(error, expression) do { \
	EXPECT_EQ(-(error), (expression)); \
	EXPECT_TRUE(same_state(&self->state)); \
} while (0)

/* The three ways to lose the right to control everybody's thread. */
static inline long drop_rights(long how)
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct data[2];

	switch (how) {
	case 0:
		/* All capabilities but this one are not enough. */
		if (syscall(SYS_capget, &header, data))
			return -errno;
		data[0].effective &= ~(1U << CAP_SYS_ADMIN);
		return syscall(SYS_capset, &header, data) ? -errno : 0;
	case 1:
		return ksm_become(NOBODY);
	default:
		/* Root of a user namespace is not root of the machine. */
		return unshare(CLONE_NEWUSER) ? -errno : 0;
	}
}

#endif /* KSM_ABI_H */
