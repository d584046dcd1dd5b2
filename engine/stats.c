// SPDX-License-Identifier: GPL-2.0-only
/*
 * stats.c - statistics: one value a file in sysfs, one a line in an area's fdinfo
 *
 * Names that /sys/kernel/mm/ksm has mean what they mean there: pages_sharing is
 * what is saved. All is counted now and then, see sweep.c, and read from there: whatever
 * is registered or shared, that takes no time. What is shared is counted from the mapping
 * counts of the shared pages, so it is exact whatever processes did; what
 * is known of unmerged pages is as old as the last visit to each.
 */
#include <linux/device.h>
#include <linux/seq_file.h>
#include <linux/sched/mm.h>
#include <linux/sysfs.h>

#include "../include/area.h"
#include "../include/engine.h"
#include "../include/hold.h"
#include "../include/scan.h"
#include "../include/shared.h"
#include "../include/sweep.h"

static long profit(long saved_pages, long metadata)
{
	return saved_pages * (long)PAGE_SIZE - metadata;
}

static long saved_pages(const struct told *told)
{
	return told->sharing + told->regions.slots[SLOT_ZERO];
}

/*
 * Each file: its name, the structure it is read from, and the value in it.
 */
#define STAT(name, totals_type, read, format, value)					\
static ssize_t name##_show(struct device *dev, struct device_attribute *attr, char *buf)\
{											\
	struct totals_type t;								\
											\
	read(&t);									\
	return sysfs_emit(buf, format "\n", value);					\
}											\
static DEVICE_ATTR_RO(name)

STAT(pages_shared, told, sweep_tell, "%lu", t.shared);
STAT(pages_sharing, told, sweep_tell, "%lu", t.sharing);
STAT(kernel_pages, told, sweep_tell, "%lu", t.kernel_pages);
STAT(stats_age_ms, told, sweep_tell, "%lu", t.age_ms);
STAT(pages_unshared, told, sweep_tell, "%ld", t.regions.slots[SLOT_UNSHARED]);
STAT(pages_volatile, told, sweep_tell, "%ld", t.regions.slots[SLOT_VOLATILE]);
STAT(zero_pages, told, sweep_tell, "%ld", t.regions.slots[SLOT_ZERO]);
STAT(pages_scanned, told, sweep_tell, "%ld", t.regions.scanned);
STAT(pages_skipped, told, sweep_tell, "%ld", t.regions.skipped);
STAT(pages_hashed, told, sweep_tell, "%ld", t.regions.hashed);
STAT(areas, told, sweep_tell, "%lu", t.regions.areas);
STAT(regions, told, sweep_tell, "%lu", t.regions.regions);
STAT(pages_registered, told, sweep_tell, "%lu", t.regions.pages);
STAT(metadata_bytes, told, sweep_tell, "%ld", t.metadata);
STAT(profit_bytes, told, sweep_tell, "%ld", profit(saved_pages(&t), t.metadata));
STAT(run, ksm_kthread_info, ksmdev_kksmd_info, "%u", t.flags & ksm_control_flags_run);
STAT(pages_to_scan, ksm_kthread_info, ksmdev_kksmd_info, "%u", t.pages_to_scan);
STAT(max_pages_to_merge, ksm_kthread_info, ksmdev_kksmd_info, "%u", t.max_pages_to_merge);
STAT(sleep_us, ksm_kthread_info, ksmdev_kksmd_info, "%u", t.sleep);
STAT(threads, ksm_pace, ksmdev_kksmd_pace, "%u", t.threads);
STAT(cpu_percent, ksm_pace, ksmdev_kksmd_pace, "%u", t.cpu_percent);

static ssize_t full_scans_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lu\n", tour_passes(&tour_all));
}
static DEVICE_ATTR_RO(full_scans);

static ssize_t max_kernel_pages_show(struct device *dev, struct device_attribute *attr,
				     char *buf)
{
	return sysfs_emit(buf, "%lu\n", READ_ONCE(ksmdev_max_kernel_pages));
}

static ssize_t max_kernel_pages_store(struct device *dev, struct device_attribute *attr,
				      const char *buf, size_t count)
{
	unsigned long pages;
	int err = kstrtoul(buf, 10, &pages);

	if (err)
		return err;
	WRITE_ONCE(ksmdev_max_kernel_pages, pages);
	return count;
}
static DEVICE_ATTR_RW(max_kernel_pages);

static ssize_t thp_splits_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%ld\n", atomic_long_read(&ksmdev_thp_splits));
}
static DEVICE_ATTR_RO(thp_splits);

static ssize_t thp_split_threshold_show(struct device *dev, struct device_attribute *attr,
					char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(ksmdev_thp_split_threshold));
}

static ssize_t thp_split_threshold_store(struct device *dev, struct device_attribute *attr,
					 const char *buf, size_t count)
{
	unsigned int pages;
	int err = kstrtouint(buf, 10, &pages);

	if (err)
		return err;
	if (!pages || pages > CHUNK_SLOTS)
		return -EINVAL;
	WRITE_ONCE(ksmdev_thp_split_threshold, pages);
	return count;
}
static DEVICE_ATTR_RW(thp_split_threshold);

static ssize_t longest_hold_us_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lu\n", READ_ONCE(ksmdev_longest_hold_us));
}

static ssize_t longest_hold_us_store(struct device *dev, struct device_attribute *attr,
				     const char *buf, size_t count)
{
	unsigned long us;
	int err = kstrtoul(buf, 10, &us);

	if (err)
		return err;
	/* Only to begin anew. */
	if (us)
		return -EINVAL;
	WRITE_ONCE(ksmdev_longest_hold_us, 0);
	return count;
}
static DEVICE_ATTR_RW(longest_hold_us);

static ssize_t held_us_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", div_u64(hold_total(), NSEC_PER_USEC));
}
static DEVICE_ATTR_RO(held_us);

static struct attribute *stats_attributes[] = {
	&dev_attr_pages_shared.attr,
	&dev_attr_pages_sharing.attr,
	&dev_attr_pages_unshared.attr,
	&dev_attr_pages_volatile.attr,
	&dev_attr_zero_pages.attr,
	&dev_attr_pages_scanned.attr,
	&dev_attr_pages_skipped.attr,
	&dev_attr_pages_hashed.attr,
	&dev_attr_thp_splits.attr,
	&dev_attr_thp_split_threshold.attr,
	&dev_attr_longest_hold_us.attr,
	&dev_attr_held_us.attr,
	&dev_attr_full_scans.attr,
	&dev_attr_kernel_pages.attr,
	&dev_attr_stats_age_ms.attr,
	&dev_attr_max_kernel_pages.attr,
	&dev_attr_metadata_bytes.attr,
	&dev_attr_profit_bytes.attr,
	&dev_attr_areas.attr,
	&dev_attr_regions.attr,
	&dev_attr_pages_registered.attr,
	&dev_attr_run.attr,
	&dev_attr_pages_to_scan.attr,
	&dev_attr_max_pages_to_merge.attr,
	&dev_attr_sleep_us.attr,
	&dev_attr_threads.attr,
	&dev_attr_cpu_percent.attr,
	NULL
};

const struct attribute_group ksmdev_stats_group = {
	.attrs = stats_attributes,
};

/* Fractions of pages, in fixed point like the Pss of /proc/PID/smaps. */
#define FRACTION_SHIFT 24

#define FRACTION_HALF (1UL << (FRACTION_SHIFT - 1))

struct area_sharing {
	u64 shared;
	u64 sharing;
};

/* How many pages to look at before the mmap lock is let go for a moment. */
#define SHARING_BATCH 64

/* A page that m ptes map counts 1/m shared and (m-1)/m sharing at each. */
static void add_sharing(struct area_sharing *sum, const struct ksmdev_look *found)
{
	u32 part;

	if (!found->mapcount)
		return;
	part = (1U << FRACTION_SHIFT) / found->mapcount;
	sum->shared += part;
	sum->sharing += (1U << FRACTION_SHIFT) - part;
}

/* Look at some pages from @addr on. Return: false if a signal came; in @stop where to go on. */
static bool batch_sharing(struct region *region, unsigned long addr, unsigned long *stop,
			  struct area_sharing *sum)
{
	unsigned long end = min3(region->end, addr + SHARING_BATCH * PAGE_SIZE,
				 (addr & ~(CHUNK_SIZE - 1)) + CHUNK_SIZE);
	struct ksmdev_look found[SHARING_BATCH];
	struct mm_struct *mm = region->mm;
	struct vm_area_struct *vma = NULL;
	bool locked = false;
	unsigned int i;
	u64 since;

	*stop = region->end;
	if (!mmget_not_zero(mm))
		return true;
	if (!mmap_read_lock_killable(mm)) {
		locked = true;
		since = hold_begin(mm);
		vma = region_find_pages(region, addr, end, stop);
		if (vma)
			ksmdev_look(vma, addr, *stop, found);
		mmap_read_unlock(mm);
		hold_end_in(mm, addr, since);
	}
	mmput_async(mm);
	for (i = 0; vma && addr + i * PAGE_SIZE < *stop; i++)
		add_sharing(sum, &found[i]);
	return locked;
}

/* Return: false if it was interrupted. */
static bool region_sharing(struct region *region, struct area_sharing *sum,
			   bool (*interrupted)(void))
{
	unsigned long addr, stop;
	bool done = true;

	for (addr = region->start; addr < region->end && done; addr = stop) {
		if (interrupted() || !hold_visit(region->mm, addr, interrupted))
			return false;
		done = batch_sharing(region, addr, &stop, sum);
		hold_leave(region->mm, addr);
		cond_resched();
	}
	return done;
}

/**
 * ksmdev_area_show() - print an area's statistics
 * @m: where to
 * @area: the area
 * @interrupted: asked now and then whether to make do with what is known by then
 *
 * Context: Process. Walks the area's page tables.
 */
void ksmdev_area_show(struct seq_file *m, struct ksmdev_area *area, bool (*interrupted)(void))
{
	struct ksmdev_counters *c = &area->counters;
	struct area_sharing sum = { };
	struct region *region = NULL;
	unsigned int nr_regions = 0;
	bool complete = true;
	unsigned long pages = 0;
	long zero = atomic_long_read(&c->slots[SLOT_ZERO]);
	long metadata = atomic_long_read(&c->metadata);

	area_bury_dead(area);
	while ((region = area_next_region(area, region))) {
		nr_regions++;
		pages += (region->end - region->start) >> PAGE_SHIFT;
		complete = complete && region_sharing(region, &sum, interrupted);
	}
	sum.shared = (sum.shared + FRACTION_HALF) >> FRACTION_SHIFT;
	sum.sharing = (sum.sharing + FRACTION_HALF) >> FRACTION_SHIFT;
	seq_printf(m, "regions:\t%u\n", nr_regions);
	seq_printf(m, "pages_registered:\t%lu\n", pages);
	seq_printf(m, "pages_shared:\t%llu\n", sum.shared);
	seq_printf(m, "pages_sharing:\t%llu\n", sum.sharing);
	seq_printf(m, "pages_unshared:\t%ld\n", atomic_long_read(&c->slots[SLOT_UNSHARED]));
	seq_printf(m, "pages_volatile:\t%ld\n", atomic_long_read(&c->slots[SLOT_VOLATILE]));
	seq_printf(m, "zero_pages:\t%ld\n", zero);
	seq_printf(m, "pages_scanned:\t%ld\n", atomic_long_read(&c->scanned));
	seq_printf(m, "pages_skipped:\t%ld\n", atomic_long_read(&c->skipped));
	seq_printf(m, "pages_hashed:\t%ld\n", atomic_long_read(&c->hashed));
	seq_printf(m, "full_scans:\t%lu\n", tour_passes(&tour_all));
	seq_printf(m, "kernel_pages:\t%llu\n", sum.shared);
	seq_printf(m, "max_kernel_pages:\t%lu\n", READ_ONCE(ksmdev_max_kernel_pages));
	seq_printf(m, "metadata_bytes:\t%ld\n", metadata);
	seq_printf(m, "profit_bytes:\t%ld\n", profit(sum.sharing + zero, metadata));
	if (!complete)
		seq_puts(m, "incomplete:\t1\n");
}
