// SPDX-License-Identifier: GPL-2.0-only
/*
 * abi_test.c - the ioctls of every published version, their errors, who may
 * call them, the life of the fds, sysfs and fdinfo
 *
 * Built twice: abi_test for 64 bits and abi32_test for 32, which goes
 * through the kernel's compat entry. Each refused call is followed by a look at
 * all counters and settings, because an error that changed something is none.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "ksm_util.h"
#include "kselftest_harness.h"

/* Without KVM the VM is slow, and a debug kernel in it slower still. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 600

#define SYSFS		"/sys/class/misc/ksm/"
#define PARAM		"/sys/module/ksmdev/parameters/"
#define NOBODY		65534
#define NPAGES		16

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

/* Everything that a refused call must leave as it is. */
static const char *const state_names[] = {
	"areas", "regions", "pages_registered", "run", "pages_to_scan",
	"max_pages_to_merge", "sleep_us", "max_kernel_pages", "threads", "cpu_percent",
};

#define N_STATE (sizeof(state_names) / sizeof(state_names[0]))

struct state {
	long long value[N_STATE];
};

static void take_state(struct state *s)
{
	for (size_t i = 0; i < N_STATE; i++)
		s->value[i] = ksm_stat(state_names[i]);
}

static bool same_state(const struct state *old)
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
static long call(int fd, unsigned long cmd, const void *arg)
{
	int ret = ioctl(fd, cmd, arg);

	return ret < 0 ? -errno : ret;
}

static long register_raw(int area, uint64_t addr, uint64_t npages)
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

/* The three forms of the settings, as one. */
struct info {
	uint32_t sleep, pages_to_scan, max_pages_to_merge, flags;
	uint32_t pad;
	uint64_t reserved_bits;
};

enum form { FORM_2008, FORM_RHEL, FORM_MARCH_2009 };

/*
 * Calls START_STOP (@set) or GET_INFO in one form. What lies behind the struct
 * must not be written; -EOVERFLOW if it was.
 */
static long call_info(int fd, enum form form, bool set, struct info *i)
{
	union {
		struct ksm_kthread_info v1;
		struct ksm_kthread_info_rhel rhel;
		struct ksm_kthread_info_2009 y2009;
		unsigned char bytes[64];
	} u;
	static const unsigned long cmd[3][2] = {
		[FORM_2008] = { KSM_GET_INFO_KTHREAD, KSM_START_STOP_KTHREAD },
		[FORM_RHEL] = { KSM_GET_INFO_KTHREAD_RHEL, KSM_START_STOP_KTHREAD_RHEL },
		[FORM_MARCH_2009] = { KSM_GET_INFO_KTHREAD_2009, KSM_START_STOP_KTHREAD_2009 },
	};
	static const size_t size[3] = { 16, 12, 24 };
	long ret;

	memset(&u, 0x5a, sizeof(u));
	if (set && form == FORM_2008) {
		u.v1 = (struct ksm_kthread_info){ i->sleep, i->pages_to_scan,
						  i->max_pages_to_merge, i->flags };
	} else if (set && form == FORM_RHEL) {
		u.rhel = (struct ksm_kthread_info_rhel){ i->sleep, i->pages_to_scan,
							 i->flags };
	} else if (set) {
		u.y2009 = (struct ksm_kthread_info_2009){ i->sleep, i->pages_to_scan,
							  i->flags, i->pad,
							  i->reserved_bits };
	}
	ret = call(fd, cmd[form][set], &u);
	for (size_t b = size[form]; b < sizeof(u); b++)
		if (u.bytes[b] != 0x5a)
			return -EOVERFLOW;
	if (set || ret)
		return ret;
	memset(i, 0, sizeof(*i));
	switch (form) {
	case FORM_2008:
		i->sleep = u.v1.sleep;
		i->pages_to_scan = u.v1.pages_to_scan;
		i->max_pages_to_merge = u.v1.max_pages_to_merge;
		i->flags = u.v1.flags;
		break;
	case FORM_RHEL:
		i->sleep = u.rhel.sleep;
		i->pages_to_scan = u.rhel.pages_to_scan;
		i->flags = u.rhel.flags;
		break;
	default:
		i->sleep = u.y2009.sleep;
		i->pages_to_scan = u.y2009.pages_to_scan;
		i->flags = u.y2009.flags;
		i->pad = u.y2009.pad;
		i->reserved_bits = u.y2009.reserved_bits;
	}
	return ret;
}

FIXTURE(kthread) {
	struct ksm k;
	struct state state;
};

FIXTURE_VARIANT(kthread) {
	enum form form;
};

FIXTURE_VARIANT_ADD(kthread, november_2008) { .form = FORM_2008 };
FIXTURE_VARIANT_ADD(kthread, rhel) { .form = FORM_RHEL };
FIXTURE_VARIANT_ADD(kthread, march_2009) { .form = FORM_MARCH_2009 };

FIXTURE_SETUP(kthread)
{
	ksm_begin(&self->k);
	ASSERT_EQ(0, ksm_start(self->k.dev, 11, 22, 33000000));
	ASSERT_EQ(0, ksm_stop(self->k.dev));
	take_state(&self->state);
}

FIXTURE_TEARDOWN(kthread)
{
	ksm_finish(&self->k);
}

TEST_F(kthread, set_and_get)
{
	/* Only the first form knows max_pages_to_merge; the others start without. */
	const uint32_t merge = variant->form == FORM_2008 ? 77 : 0;
	struct info set = { 4000000000U, 123, 77, ksm_control_flags_run, 0, 0 };
	struct info get;
	enum form form;

	ASSERT_EQ(0, call_info(self->k.dev, variant->form, true, &set));
	EXPECT_EQ(1, ksm_stat("run"));
	EXPECT_EQ(123, ksm_stat("pages_to_scan"));
	EXPECT_EQ(merge, ksm_stat("max_pages_to_merge"));
	/* Microseconds, and all 32 bits of them. */
	EXPECT_EQ(4000000000LL, ksm_stat("sleep_us"));
	for (form = FORM_2008; form <= FORM_MARCH_2009; form++) {
		ASSERT_EQ(0, call_info(self->k.dev, form, false, &get));
		EXPECT_EQ(4000000000U, get.sleep);
		EXPECT_EQ(123, get.pages_to_scan);
		EXPECT_EQ(form == FORM_2008 ? merge : 0, get.max_pages_to_merge);
		EXPECT_EQ(ksm_control_flags_run, get.flags);
		EXPECT_EQ(0, get.pad);
		EXPECT_EQ(0, get.reserved_bits);
	}

	/* To stop keeps the settings, whatever comes along with it. */
	set = (struct info){ 1, 2, 3, 0, 0, 0 };
	ASSERT_EQ(0, call_info(self->k.dev, variant->form, true, &set));
	EXPECT_EQ(0, ksm_stat("run"));
	ASSERT_EQ(0, call_info(self->k.dev, variant->form, false, &get));
	EXPECT_EQ(4000000000U, get.sleep);
	EXPECT_EQ(123, get.pages_to_scan);
	EXPECT_EQ(0, get.flags);
	EXPECT_EQ(merge, ksm_stat("max_pages_to_merge"));
	/* A second stop, and one that says nothing at all, are fine. */
	memset(&set, 0, sizeof(set));
	EXPECT_EQ(0, call_info(self->k.dev, variant->form, true, &set));
	EXPECT_EQ(123, ksm_stat("pages_to_scan"));

	/* All that a field can hold. */
	set = (struct info){ 0, UINT32_MAX, UINT32_MAX, ksm_control_flags_run, 0, 0 };
	ASSERT_EQ(0, call_info(self->k.dev, variant->form, true, &set));
	EXPECT_EQ(UINT32_MAX, ksm_stat("pages_to_scan"));
	EXPECT_EQ(0, ksm_stat("sleep_us"));
}

TEST_F(kthread, refused)
{
	struct info ok = { 5, 6, 7, ksm_control_flags_run, 0, 0 }, bad;
	const unsigned int flags[] = {
		2, 2 | ksm_control_flags_run, 0x80000000U, ~0U, 4,
	};

	bad = ok;
	bad.pages_to_scan = 0;
	EXPECT_REFUSED(EINVAL, call_info(self->k.dev, variant->form, true, &bad));
	for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		bad = ok;
		bad.flags = flags[i];
		EXPECT_REFUSED(EINVAL, call_info(self->k.dev, variant->form, true, &bad));
	}
	if (variant->form == FORM_MARCH_2009) {
		bad = ok;
		bad.pad = 1;
		EXPECT_REFUSED(EINVAL, call_info(self->k.dev, variant->form, true, &bad));
		bad = ok;
		bad.reserved_bits = 1ULL << 63;
		EXPECT_REFUSED(EINVAL, call_info(self->k.dev, variant->form, true, &bad));
	}
	/* And while it runs: the old settings stay in force. */
	ASSERT_EQ(0, call_info(self->k.dev, variant->form, true, &ok));
	take_state(&self->state);
	bad = ok;
	bad.pages_to_scan = 0;
	EXPECT_REFUSED(EINVAL, call_info(self->k.dev, variant->form, true, &bad));
	EXPECT_EQ(1, ksm_stat("run"));
}

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

static bool is_programs(uint64_t addr)
{
	void *p = mmap((void *)(uintptr_t)addr, PGSZ, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (p == MAP_FAILED)
		return errno == EEXIST;
	munmap(p, PGSZ);
	return true;
}

/* The first address that is not a program's: the kernel refuses to map anything there. */
static uint64_t task_size(void)
{
	uint64_t in = (uintptr_t)&in & -PGSZ, out = UINTPTR_MAX & -PGSZ;

	while (out - in > PGSZ) {
		uint64_t middle = (in + (out - in) / 2) & -PGSZ;

		if (is_programs(middle))
			in = middle;
		else
			out = middle;
	}
	return out;
}

TEST_F(abi, region_arguments)
{
	const uint64_t mem = (uintptr_t)self->mem, top = task_size();
	struct ksm_memory_region r;

	/* Unaligned. */
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem + 1, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem + PGSZ / 2, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem + PGSZ - 1, 1));
	/* Empty. */
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem, 0));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, 0, 0));
	/* Wrapping. */
	EXPECT_REFUSED(EINVAL, register_raw(self->area, -PGSZ, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, -(uint64_t)PGSZ, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, -(uint64_t)PGSZ, 2));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, -2 * (uint64_t)PGSZ, UINT32_MAX));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, (uint64_t)-(1LL << 44), UINT32_MAX));
	/* Beyond the address space, altogether or at its end. */
	EXPECT_REFUSED(EINVAL, register_raw(self->area, top, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, top - PGSZ, 2));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, 1ULL << 56, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, 1ULL << 63, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, 0xffff888000000000ULL, 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, top - 16 * PGSZ, UINT32_MAX));
	/* Padding: a count of more than 32 bits is the same thing. */
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem, 1ULL << 32));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem, 1ULL << 32 | 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem, 1ULL << 63 | 1));
	EXPECT_REFUSED(EINVAL, register_raw(self->area, mem, UINT64_MAX));
	memset(&r, 0, sizeof(r));
	r.npages_low = 1;
	r.pad = 1;
	r.addr = mem;
	EXPECT_REFUSED(EINVAL, call(self->area, KSM_REGISTER_MEMORY_REGION, &r));

	/* The very last page of the address space is one like any other. */
	EXPECT_EQ(0, register_raw(self->area, top - PGSZ, 1));
	EXPECT_EQ(1, ksm_stat("regions"));
	/* And so is the first. */
	EXPECT_EQ(0, register_raw(self->area, 0, 1));
	EXPECT_EQ(2, ksm_stat("regions"));
	/* Nothing is mapped there; to scan it does no harm. */
	EXPECT_EQ(0, ksm_scan(self->k.scan, 16));
}

TEST_F(abi, region_arguments_2009)
{
	const uint64_t mem = (uintptr_t)self->mem, top = task_size();
	const struct ksm_memory_region_2009 bad[] = {
		{ .npages = 1, .addr = mem + 8 },
		{ .npages = 0, .addr = mem },
		{ .npages = 1, .addr = -(uint64_t)PGSZ },
		{ .npages = 2, .addr = top - PGSZ },
		{ .npages = 1, .addr = top },
		{ .npages = 1, .addr = mem, .pad = 1 },
		{ .npages = 1, .addr = mem, .reserved_bits = 1 },
		{ .npages = 1, .addr = mem, .reserved_bits = 1ULL << 63 },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		EXPECT_REFUSED(EINVAL, call(self->area, KSM_REGISTER_MEMORY_REGION_2009,
					    &bad[i]));
}

TEST_F(abi, overlap)
{
	const uint64_t mem = (uintptr_t)self->mem;
	int other = ksm_area(&self->k);

	/* Pages 4 to 7 are taken. */
	ASSERT_EQ(0, register_raw(self->area, mem + 4 * PGSZ, 4));
	take_state(&self->state);
	for (int i = 0; i < 2; i++) {
		int area = i ? other : self->area;

		EXPECT_REFUSED(EEXIST, register_raw(area, mem + 4 * PGSZ, 4));
		EXPECT_REFUSED(EEXIST, register_raw(area, mem + 5 * PGSZ, 1));
		EXPECT_REFUSED(EEXIST, register_raw(area, mem, 16));
		EXPECT_REFUSED(EEXIST, register_raw(area, mem + 2 * PGSZ, 3));
		EXPECT_REFUSED(EEXIST, register_raw(area, mem + 7 * PGSZ, 3));
		EXPECT_REFUSED(EEXIST, register_raw(area, mem + 4 * PGSZ, 1));
		EXPECT_REFUSED(EEXIST, register_raw(area, mem + 4 * PGSZ, 12));
	}
	/* Neighbours are not overlaps. */
	EXPECT_EQ(0, register_raw(self->area, mem + 8 * PGSZ, 8));
	EXPECT_EQ(0, register_raw(other, mem, 4));
	EXPECT_EQ(3, ksm_stat("regions"));
	EXPECT_EQ(NPAGES, ksm_stat("pages_registered"));
	EXPECT_EQ(2, ksm_fdinfo(self->area, "regions"));
	EXPECT_EQ(12, ksm_fdinfo(self->area, "pages_registered"));
	EXPECT_EQ(1, ksm_fdinfo(other, "regions"));

	/* REMOVE frees the range of this area, for any area, and no other's. */
	EXPECT_EQ(0, call(self->area, KSM_REMOVE_MEMORY_REGION, NULL));
	EXPECT_EQ(1, ksm_stat("regions"));
	EXPECT_EQ(4, ksm_stat("pages_registered"));
	EXPECT_EQ(-EEXIST, register_raw(self->area, mem + 3 * PGSZ, 2));
	EXPECT_EQ(0, register_raw(other, mem + 4 * PGSZ, 12));
	/* So does the close of the other area, at once. */
	ASSERT_EQ(0, close(other));
	EXPECT_EQ(0, ksm_stat("regions"));
	EXPECT_EQ(1, ksm_stat("areas"));
	EXPECT_EQ(0, register_raw(self->area, mem, NPAGES));
}

static long fn_register_again(long area, long addr, long npages, long unused)
{
	long ret = register_raw(area, (unsigned long)addr, npages);

	(void)unused;
	if (ret)
		return ret;
	return register_raw(area, (unsigned long)addr, npages);
}

TEST_F(abi, same_range_in_another_process)
{
	struct ksm_child c;

	ASSERT_EQ(0, register_raw(self->area, (uintptr_t)self->mem, NPAGES));
	ksm_spawn(&c);
	/* A fork registers nothing by itself. */
	EXPECT_EQ(1, ksm_stat("regions"));
	/* The inherited fd takes the child's memory: another mm, no overlap. */
	EXPECT_EQ(-EEXIST, ksm_call(&c, fn_register_again, self->area, self->mem, NPAGES));
	EXPECT_EQ(2, ksm_stat("regions"));
	EXPECT_EQ(2 * NPAGES, ksm_stat("pages_registered"));
	EXPECT_EQ(2, ksm_fdinfo(self->area, "regions"));
	/* And our own range is still taken. */
	EXPECT_EQ(-EEXIST, register_raw(self->area, (uintptr_t)self->mem, 1));
	EXPECT_EQ(0, ksm_end(&c));
	EXPECT_EQ(0, call(self->area, KSM_REMOVE_MEMORY_REGION, NULL));
	EXPECT_TRUE(same_state(&self->state));
}

TEST_F(abi, too_many_regions)
{
	const uint64_t mem = (uintptr_t)self->mem;
	int fd, other = ksm_area(&self->k);
	char old[32] = "";

	fd = open(PARAM "regions_per_area", O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_LT(0, read(fd, old, sizeof(old) - 1));
	close(fd);
	ASSERT_EQ(0, ksm_write_file(PARAM "regions_per_area", "4"));
	for (int i = 0; i < 4; i++)
		EXPECT_EQ(0, register_raw(self->area, mem + 2 * i * PGSZ, 1));
	take_state(&self->state);
	EXPECT_REFUSED(ENOSPC, register_raw(self->area, mem + 10 * PGSZ, 1));
	EXPECT_REFUSED(ENOSPC, register_raw(self->area, mem + 11 * PGSZ, 1));
	/* The limit is an area's own. */
	EXPECT_EQ(0, register_raw(other, mem + 10 * PGSZ, 1));
	/* There is room again after REMOVE, and when the limit is raised. */
	EXPECT_EQ(0, call(self->area, KSM_REMOVE_MEMORY_REGION, NULL));
	for (int i = 0; i < 4; i++)
		EXPECT_EQ(0, register_raw(self->area, mem + 2 * i * PGSZ, 1));
	EXPECT_EQ(-ENOSPC, register_raw(self->area, mem + 12 * PGSZ, 1));
	EXPECT_EQ(0, ksm_write_file(PARAM "regions_per_area", "5"));
	EXPECT_EQ(0, register_raw(self->area, mem + 12 * PGSZ, 1));
	EXPECT_EQ(0, ksm_write_file(PARAM "regions_per_area", old));
	close(other);
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

/*
 * What is merged is a matter of the memory, not of who registered it when: the
 * area that is told to unmerge need not have seen any scan.
 */
TEST_F(abi, unmerge_goes_by_range)
{
	char *mem = ksm_mmap(2 * NPAGES);

	ksm_fill_same(mem, NPAGES, 1);
	ksm_fn_zero((long)(mem + NPAGES * PGSZ), NPAGES, 0, 0);
	ASSERT_EQ(0, register_raw(self->area, (uintptr_t)mem, 2 * NPAGES));
	ksm_merge_all(&self->k);
	EXPECT_EQ(2, ksm_distinct(0, mem, 2 * NPAGES));
	ASSERT_EQ(0, call(self->area, KSM_REMOVE_MEMORY_REGION, NULL));
	EXPECT_EQ(2, ksm_distinct(0, mem, 2 * NPAGES));
	ASSERT_EQ(0, register_raw(self->area, (uintptr_t)mem, 2 * NPAGES));
	ASSERT_EQ(0, call(self->area, KSM_UNMERGE, NULL));
	/* Zero pages are also what a read fault maps; those may stay. */
	EXPECT_EQ(NPAGES, ksm_distinct(0, mem, NPAGES));
	EXPECT_EQ(0, ksm_stat("pages_shared"));
	EXPECT_EQ(0, ksm_wrong_same(mem, NPAGES, 1));
	EXPECT_EQ(0, ksm_wrong_zero(mem + NPAGES * PGSZ, NPAGES));
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

/* ---- who may ---- */

/* The three ways to lose the right to control everybody's thread. */
static long drop_rights(long how)
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

static long fn_control(long dev, long how, long scan, long unused)
{
	struct info start = { 5, 6, 7, ksm_control_flags_run, 0, 0 };
	struct ksm_pace pace = { .size = sizeof(pace), .threads = 2 };
	struct info stop = { 0 };
	struct info get;
	enum form form;
	long ret;

	(void)unused;
	ret = drop_rights(how);
	if (ret)
		return ret;
	for (form = FORM_2008; form <= FORM_MARCH_2009; form++) {
		ret = call_info(dev, form, true, &start);
		if (ret != -EPERM)
			return 1000 + ret;
		ret = call_info(dev, form, true, &stop);
		if (ret != -EPERM)
			return 2000 + ret;
		/* To look is free, and so is one's own scan. */
		ret = call_info(dev, form, false, &get);
		if (ret)
			return 3000 + ret;
		if (get.pages_to_scan != 9)
			return 4000;
	}
	ret = call(dev, KSM_SET_PACE, &pace);
	if (ret != -EPERM)
		return 5000 + ret;
	ret = call(dev, KSM_GET_PACE, &pace);
	if (ret)
		return 6000 + ret;
	return ksm_scan(scan, 1);
}

TEST_F(abi, start_stop_needs_the_right)
{
	struct ksm_child c;
	struct state running;

	for (int how = 0; how < 3; how++) {
		ASSERT_EQ(0, ksm_start(self->k.dev, 9, 0, 1000000));
		take_state(&running);
		ksm_spawn(&c);
		EXPECT_EQ(0, ksm_call(&c, fn_control, self->k.dev, how, self->k.scan)) {
			TH_LOG("rights dropped in way %d", how);
		}
		EXPECT_EQ(0, ksm_end(&c));
		/* It runs on: nobody else's sharing was touched. */
		EXPECT_TRUE(same_state(&running));
	}
}

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

/* ---- sysfs and fdinfo ---- */

static const struct {
	const char *name;
	mode_t mode;
	bool in_fdinfo;
} stat_files[] = {
	{ "pages_shared", 0444, true },
	{ "pages_sharing", 0444, true },
	{ "pages_unshared", 0444, true },
	{ "pages_volatile", 0444, true },
	{ "zero_pages", 0444, true },
	{ "pages_scanned", 0444, true },
	{ "pages_skipped", 0444, true },
	{ "pages_hashed", 0444, true },
	{ "thp_splits", 0444, false },
	{ "thp_split_threshold", 0644, false },
	{ "longest_hold_us", 0644, false },
	{ "full_scans", 0444, true },
	{ "held_us", 0444, false },
	{ "kernel_pages", 0444, true },
	{ "stats_age_ms", 0444, false },
	{ "max_kernel_pages", 0644, true },
	{ "metadata_bytes", 0444, true },
	{ "profit_bytes", 0444, true },
	{ "areas", 0444, false },
	{ "regions", 0444, true },
	{ "pages_registered", 0444, true },
	{ "run", 0444, false },
	{ "pages_to_scan", 0444, false },
	{ "max_pages_to_merge", 0444, false },
	{ "sleep_us", 0444, false },
	{ "threads", 0444, false },
	{ "cpu_percent", 0444, false },
};

#define N_STAT_FILES (sizeof(stat_files) / sizeof(stat_files[0]))

/* One number and a newline, nothing else. */
static bool one_value(const char *text)
{
	const char *p = text;

	if (*p == '-')
		p++;
	if (!isdigit((unsigned char)*p))
		return false;
	while (isdigit((unsigned char)*p))
		p++;
	return *p == '\n' && !p[1];
}

static long fn_read_sysfs_as_nobody(long unused, long unused2, long unused3, long unused4)
{
	long ret = drop_rights(1);

	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	if (ret)
		return ret;
	for (size_t i = 0; i < N_STAT_FILES; i++) {
		char path[128];

		ksm_stat(stat_files[i].name);
		snprintf(path, sizeof(path), SYSFS "%s", stat_files[i].name);
		if (ksm_write_file(path, "1") != -EACCES)
			return i;
	}
	return -EACCES;
}

/* Is there a line of the table for it? The kernel gives every device a few files itself. */
static bool is_listed(const char *name)
{
	static const char *const others[] = { ".", "..", "dev", "power", "subsystem", "uevent" };

	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		if (!strcmp(name, others[i]))
			return true;
	for (size_t i = 0; i < N_STAT_FILES; i++)
		if (!strcmp(name, stat_files[i].name))
			return true;
	return false;
}

TEST_F(abi, sysfs_has_no_other_files)
{
	DIR *dir = opendir(SYSFS);
	struct dirent *entry;

	ASSERT_NE(NULL, dir);
	while ((entry = readdir(dir))) {
		EXPECT_TRUE(is_listed(entry->d_name)) {
			TH_LOG("%s", entry->d_name);
		}
	}
	closedir(dir);
}

TEST_F(abi, sysfs_files)
{
	struct ksm_child c;
	char path[128], buf[128], old[32];
	struct stat st;
	ssize_t len;
	int fd;

	for (size_t i = 0; i < N_STAT_FILES; i++) {
		snprintf(path, sizeof(path), SYSFS "%s", stat_files[i].name);
		ASSERT_EQ(0, stat(path, &st)) {
			TH_LOG("%s: %s", path, strerror(errno));
		}
		EXPECT_EQ(stat_files[i].mode, st.st_mode & 07777) {
			TH_LOG("%s", path);
		}
		fd = open(path, O_RDONLY);
		ASSERT_LE(0, fd);
		len = read(fd, buf, sizeof(buf) - 1);
		ASSERT_LT(0, len);
		buf[len] = '\0';
		EXPECT_TRUE(one_value(buf)) {
			TH_LOG("%s holds \"%s\"", path, buf);
		}
		close(fd);
		if (stat_files[i].mode == 0444)
			EXPECT_GT(0, ksm_write_file(path, "1"));
	}
	EXPECT_TRUE(same_state(&self->state));

	/* Everybody may look, root alone may change what can be. */
	ksm_spawn(&c);
	EXPECT_EQ(-EACCES, ksm_call(&c, fn_read_sysfs_as_nobody, 0, 0, 0));
	ksm_end(&c);
	EXPECT_TRUE(same_state(&self->state));
	EXPECT_EQ(-EINVAL, ksm_write_file(SYSFS "max_kernel_pages", "much"));
	EXPECT_EQ(-EINVAL, ksm_write_file(SYSFS "max_kernel_pages", "-1"));
	EXPECT_EQ(-EINVAL, ksm_write_file(SYSFS "longest_hold_us", "much"));
	EXPECT_EQ(-EINVAL, ksm_write_file(SYSFS "longest_hold_us", "1"));
	EXPECT_EQ(0, ksm_write_file(SYSFS "longest_hold_us", "0"));
	EXPECT_EQ(-EINVAL, ksm_write_file(SYSFS "thp_split_threshold", "0"));
	EXPECT_TRUE(same_state(&self->state));

	/* sysfs and the module parameter are one value. */
	snprintf(old, sizeof(old), "%lld", ksm_stat("max_kernel_pages"));
	EXPECT_EQ(0, ksm_write_file(SYSFS "max_kernel_pages", "4321"));
	EXPECT_EQ(4321, ksm_stat("max_kernel_pages"));
	fd = open(PARAM "max_kernel_pages", O_RDONLY);
	ASSERT_LE(0, fd);
	len = read(fd, buf, sizeof(buf) - 1);
	ASSERT_LT(0, len);
	buf[len] = '\0';
	EXPECT_STREQ("4321\n", buf);
	close(fd);
	EXPECT_EQ(0, ksm_write_file(PARAM "max_kernel_pages", old));
	EXPECT_TRUE(same_state(&self->state));
}

/* Each "name:\tvalue" of our names once, and in no other form. */
TEST_F(abi, fdinfo_lines)
{
	char path[64], line[256];
	unsigned int seen[N_STAT_FILES] = { 0 };
	FILE *f;

	ASSERT_EQ(0, register_raw(self->area, (uintptr_t)self->mem, NPAGES));
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", self->area);
	f = fopen(path, "r");
	ASSERT_NE(NULL, f);
	while (fgets(line, sizeof(line), f)) {
		for (size_t i = 0; i < N_STAT_FILES; i++) {
			size_t len = strlen(stat_files[i].name);

			if (strncmp(line, stat_files[i].name, len) || line[len] != ':')
				continue;
			seen[i]++;
			EXPECT_EQ('\t', line[len + 1]);
			EXPECT_TRUE(one_value(line + len + 2)) {
				TH_LOG("%s", line);
			}
		}
	}
	fclose(f);
	for (size_t i = 0; i < N_STAT_FILES; i++) {
		EXPECT_EQ(stat_files[i].in_fdinfo ? 1 : 0, seen[i]) {
			TH_LOG("%s", stat_files[i].name);
		}
	}
	EXPECT_EQ(1, ksm_fdinfo(self->area, "regions"));
	EXPECT_EQ(NPAGES, ksm_fdinfo(self->area, "pages_registered"));
	EXPECT_EQ(0, ksm_fdinfo(self->area, "pages_sharing"));
}

TEST_F(abi, areas_add_up)
{
	static const char *const sums[] = {
		"regions", "pages_registered", "pages_shared", "pages_sharing",
		"pages_unshared", "pages_volatile", "zero_pages",
	};
	int other = ksm_area(&self->k);
	char *a = ksm_mmap(80), *b = ksm_mmap(80);
	const int fds[2] = { self->area, other };

	/* 64 pages in pairs, 8 in one area alone, 8 zero pages on each side. */
	ksm_fill(a, 72, 5);
	ksm_fill(b, 64, 5);
	ksm_fill_same(b + 64 * PGSZ, 8, 6);
	ksm_fn_zero((long)(a + 72 * PGSZ), 8, 0, 0);
	ksm_fn_zero((long)(b + 72 * PGSZ), 8, 0, 0);
	ASSERT_EQ(0, register_raw(self->area, (uintptr_t)a, 80));
	ASSERT_EQ(0, register_raw(other, (uintptr_t)b, 80));
	ksm_merge_all(&self->k);

	EXPECT_EQ(64 + 1, ksm_stat("pages_shared"));
	EXPECT_EQ(64 + 7, ksm_stat("pages_sharing"));
	EXPECT_EQ(16, ksm_stat("zero_pages"));
	EXPECT_EQ(8, ksm_stat("pages_unshared"));
	EXPECT_EQ(0, ksm_stat("pages_volatile"));
	for (size_t i = 0; i < sizeof(sums) / sizeof(sums[0]); i++) {
		EXPECT_EQ(ksm_stat(sums[i]), ksm_fdinfo(self->area, sums[i]) +
					     ksm_fdinfo(other, sums[i])) {
			TH_LOG("%s", sums[i]);
		}
	}
	/* A page that two areas map counts half for each. */
	EXPECT_EQ(32, ksm_fdinfo(self->area, "pages_shared"));
	EXPECT_EQ(32, ksm_fdinfo(self->area, "pages_sharing"));
	EXPECT_EQ(32 + 1, ksm_fdinfo(other, "pages_shared"));
	EXPECT_EQ(32 + 7, ksm_fdinfo(other, "pages_sharing"));
	EXPECT_EQ(8, ksm_fdinfo(self->area, "zero_pages"));
	EXPECT_EQ(8, ksm_fdinfo(self->area, "pages_unshared"));

	/* Profit is what is saved less what it costs to know. */
	EXPECT_EQ((long long)PGSZ * (64 + 7 + 16) - ksm_stat("metadata_bytes"),
		  ksm_stat("profit_bytes"));
	EXPECT_LT(0, ksm_stat("metadata_bytes"));
	for (int i = 0; i < 2; i++) {
		EXPECT_EQ((long long)PGSZ * (ksm_fdinfo(fds[i], "pages_sharing") +
					     ksm_fdinfo(fds[i], "zero_pages")) -
				  ksm_fdinfo(fds[i], "metadata_bytes"),
			  ksm_fdinfo(fds[i], "profit_bytes"));
	}
	EXPECT_EQ(0, ksm_wrong(a, 72, 5));
	EXPECT_EQ(0, ksm_wrong(b, 64, 5));
	close(other);
}

TEST_HARNESS_MAIN
