// SPDX-License-Identifier: GPL-2.0-only
/*
 * abi_kthread_test.c - the settings of kksmd in their three forms, and who may set them
 */
#include <errno.h>
#include <string.h>

#include "ksm_abi.h"

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

TEST_HARNESS_MAIN
