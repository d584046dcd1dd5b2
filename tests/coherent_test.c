// SPDX-License-Identifier: GPL-2.0-only
/*
 * coherent_test.c - pages that lie in a device's memory are left alone
 *
 * The CPUs map them as they map any anonymous page. But the driver has put them there to
 * have them near, and counts on it. The module in tests/coherent/ plays such a device; it
 * is ksmdev-coherent.ko next to this program.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_harness.h"

#define PAGES	32
/* Where the device's memory is; as in tests/coherent/coherent.c. */
#define START	(0x10000000UL / PGSZ)
#define LENGTH	(0x200000UL / PGSZ)

/* The debug kernel does without memory of devices. */
static bool has_zone_device(void)
{
	char line[256];
	bool found = false;
	FILE *f = fopen("/proc/kallsyms", "re");

	while (f && !found && fgets(line, sizeof(line), f))
		found = strstr(line, " memremap_pages\n");
	if (f)
		fclose(f);
	return found;
}

static void load_module(void)
{
	if (access("/sys/module/ksmdev_coherent", F_OK))
		ksm_shell("insmod %s", ksm_beside("ksmdev-coherent.ko", "coherent-KERNEL"));
}

static size_t in_device(const char *mem)
{
	size_t n = 0;

	for (size_t i = 0; i < PAGES; i++) {
		uint64_t pfn = ksm_pfn(0, ksm_page(mem, i));

		n += pfn >= START && pfn < START + LENGTH;
	}
	return n;
}

/* What was just written may be held for a moment by a CPU's list of new pages. */
static void to_device(int device, char *mem)
{
	for (size_t i = 0; i < PAGES; i++) {
		uint64_t addr = (uintptr_t)ksm_page(mem, i);
		double end = ksm_now() + 30;

		while (write(device, &addr, sizeof(addr)) != sizeof(addr)) {
			if (errno != EBUSY || ksm_now() > end)
				ksm_die("write to /dev/ksmdev-coherent: %s", strerror(errno));
			usleep(1000);
		}
	}
}

FIXTURE_VARIANT(device) {
	bool zero;
	bool at_once;
};

FIXTURE_VARIANT_ADD(device, scan) { false, false };
FIXTURE_VARIANT_ADD(device, scan_zero) { true, false };
FIXTURE_VARIANT_ADD(device, range) { false, true };
FIXTURE_VARIANT_ADD(device, range_zero) { true, true };

TEST_F(device, coherent_pages_stay)
{
	char *mem, *twin;
	int device;

	if (!has_zone_device())
		SKIP(return, "this kernel has no CONFIG_ZONE_DEVICE");
	load_module();
	device = open("/dev/ksmdev-coherent", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, device);
	mem = ksm_mmap(PAGES);
	twin = ksm_mmap(PAGES);
	ASSERT_EQ(0, ksm_register(self->area, mem, PAGES));
	ASSERT_EQ(0, ksm_register(self->area, twin, PAGES));
	/* The second round is with a shared page to go to, and memory that was merged. */
	for (uint64_t round = 1; round <= 2; round++) {
		if (variant->zero) {
			memset(mem, 0, PAGES * PGSZ);
			memset(twin, 0, PAGES * PGSZ);
		} else {
			ksm_fill_same(mem, PAGES, round);
			ksm_fill_same(twin, PAGES, round);
		}
		to_device(device, mem);
		ASSERT_EQ(PAGES, in_device(mem));
		if (variant->at_once) {
			ASSERT_EQ(0, ksm_merge_range(self->area, mem, PAGES, NULL));
			ASSERT_EQ(0, ksm_merge_range(self->area, twin, PAGES, NULL));
			ASSERT_EQ(0, ksm_merge_range(self->area, mem, PAGES, NULL));
		} else {
			ksm_merge_held(&self->k);
		}
		EXPECT_EQ(PAGES, in_device(mem));
		/* What lies elsewhere is merged as ever. */
		EXPECT_EQ(1, ksm_distinct(0, twin, PAGES));
		if (variant->zero) {
			EXPECT_EQ(0, ksm_wrong_zero(mem, PAGES));
			EXPECT_EQ(0, ksm_wrong_zero(twin, PAGES));
		} else {
			EXPECT_EQ(0, ksm_wrong_same(mem, PAGES, round));
			EXPECT_EQ(0, ksm_wrong_same(twin, PAGES, round));
		}
		EXPECT_EQ(0, ksm_unmerge(self->area));
		EXPECT_EQ(PAGES, in_device(mem));
		/* Then there is other memory. */
		ASSERT_EQ(0, madvise(mem, PAGES * PGSZ, MADV_DONTNEED));
	}
	close(device);
	ksm_shell("rmmod ksmdev-coherent");
}

TEST_HARNESS_MAIN
