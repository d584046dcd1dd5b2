// SPDX-License-Identifier: GPL-2.0-only
/*
 * notifier_test.c - what a device writes until its TLB is flushed is not lost
 *
 * An IOMMU that shares a process's address space has a TLB of its own, which the kernel
 * flushes through MMU notifiers. The module in tests/notifier/ plays one that uses an
 * entry to the last: it adds one to a byte in the very flush that takes the entry away.
 * So a page that is compared before that flush, found equal and replaced has lost the
 * write; and the process would go on with what it read before.
 *
 * The module is ksmdev-notifier.ko next to this program.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_harness.h"

#define PAGES	64
#define ROUNDS	20

/* As in tests/notifier/notifier.c. */
struct notifier_state {
	uint64_t waiting;
	uint64_t written;
	uint64_t flushes;
};

static void load_module(void)
{
	if (access("/sys/module/ksmdev_notifier", F_OK))
		ksm_shell("insmod %s", ksm_beside("ksmdev-notifier.ko", "notifier-KERNEL"));
}

/* The byte of a page that the device writes to. */
static size_t byte_of(size_t page)
{
	return page * 67 % PGSZ;
}

enum contents { PATTERN, ZERO };

FIXTURE(notifier) {
	struct ksm k;
	struct ksm_child other;
	int area;
	int device;
	char *mem;
};

FIXTURE_VARIANT(notifier) {
	enum contents contents;
	bool at_once;
};

FIXTURE_VARIANT_ADD(notifier, scan) { PATTERN, false };
FIXTURE_VARIANT_ADD(notifier, scan_zero) { ZERO, false };
FIXTURE_VARIANT_ADD(notifier, range) { PATTERN, true };
FIXTURE_VARIANT_ADD(notifier, range_zero) { ZERO, true };

FIXTURE_SETUP(notifier)
{
	load_module();
	ksm_begin(&self->k);
	self->mem = ksm_mmap(PAGES);
	ksm_spawn(&self->other);
	self->area = ksm_area(&self->k);
	ASSERT_EQ(0, ksm_register(self->area, self->mem, PAGES));
	ASSERT_LE(0, ksm_call(&self->other, ksm_fn_area_register, self->k.dev, self->mem, PAGES));
	self->device = open("/dev/ksmdev-notifier", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->device);
}

FIXTURE_TEARDOWN(notifier)
{
	close(self->device);
	close(self->area);
	ksm_end(&self->other);
	ksm_finish(&self->k);
	ksm_shell("rmmod ksmdev-notifier");
}

static struct notifier_state device_state(int device)
{
	struct notifier_state state;

	if (read(device, &state, sizeof(state)) != sizeof(state))
		ksm_die("read from /dev/ksmdev-notifier: %s", strerror(errno));
	return state;
}

/* The device takes hold of all pages, as each may be written to. */
static void arm(int device, char *mem)
{
	for (size_t i = 0; i < PAGES; i++) {
		uint64_t addr = (uintptr_t)ksm_page(mem, i) + byte_of(i);

		/* Somebody else's flush came between; the device asks once more. */
		while (write(device, &addr, sizeof(addr)) != sizeof(addr))
			if (errno != EAGAIN)
				ksm_die("write to /dev/ksmdev-notifier: %s", strerror(errno));
	}
}

static bool page_is(const void *page, enum contents contents, uint64_t seed, size_t i)
{
	return contents == ZERO ? ksm_page_is_zero(page) : ksm_page_is(page, seed, i);
}

/* How many pages do not hold the write; @wrong: and how many hold anything else. */
static size_t lost_writes(const char *mem, enum contents contents, uint64_t seed, size_t *wrong)
{
	static char copy[PGSZ] __attribute__((aligned(8)));
	size_t lost = 0;

	for (size_t i = 0; i < PAGES; i++) {
		memcpy(copy, ksm_page(mem, i), PGSZ);
		if (page_is(copy, contents, seed, i)) {
			lost++;
			continue;
		}
		copy[byte_of(i)]--;
		*wrong += !page_is(copy, contents, seed, i);
	}
	return lost;
}

static void fill(char *mem, enum contents contents, uint64_t seed)
{
	if (contents == ZERO)
		memset(mem, 0, PAGES * PGSZ);
	else
		ksm_fill(mem, PAGES, seed);
}

TEST_F(notifier, last_write_is_kept)
{
	size_t lost = 0, wrong = 0, merging = 0;
	struct notifier_state before, after;

	for (uint64_t round = 1; round <= ROUNDS; round++) {
		/* The other process's pages are known, and wait for equals. */
		ksm_call(&self->other, ksm_fn_fill, self->mem, PAGES, round);
		ksm_passes(&self->k, 3);

		before = device_state(self->device);
		ASSERT_EQ(0, before.waiting);
		fill(self->mem, variant->contents, round);
		if (!variant->at_once)
			ksm_passes(&self->k, 1);
		arm(self->device, self->mem);
		if (variant->at_once) {
			ASSERT_EQ(0, ksm_merge_range(self->area, self->mem, PAGES, NULL));
		} else {
			ksm_passes(&self->k, 1);
		}
		merging += device_state(self->device).written - before.written;

		/* What no merge has flushed is flushed now. */
		ASSERT_EQ(0, mprotect(self->mem, PAGES * PGSZ, PROT_READ));
		ASSERT_EQ(0, mprotect(self->mem, PAGES * PGSZ, PROT_READ | PROT_WRITE));
		after = device_state(self->device);
		EXPECT_EQ(0, after.waiting);
		EXPECT_EQ(PAGES, after.written - before.written);
		lost += lost_writes(self->mem, variant->contents, round, &wrong);
		EXPECT_EQ(0, ksm_call(&self->other, ksm_fn_wrong, self->mem, PAGES, round));
	}
	TH_LOG("%zu of %d last writes came while a page was about to be merged, %zu were lost",
	       merging, ROUNDS * PAGES, lost);
	EXPECT_EQ(0, lost);
	EXPECT_EQ(0, wrong);
	/* And it was merging that flushed. */
	EXPECT_LE(ROUNDS * PAGES / 2, merging);
}

TEST_HARNESS_MAIN
