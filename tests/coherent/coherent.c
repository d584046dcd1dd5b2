// SPDX-License-Identifier: GPL-2.0-only
/*
 * coherent - a device whose memory the CPUs can use, too
 *
 * A process's private memory may lie in such a device (a GPU, say): the driver migrates a
 * page there to have it near. To the CPUs it is mapped as any page; but it has its owner,
 * no place on the LRU lists, and is wanted back for other pages of the device.
 *
 * The memory is a part of the machine's that the kernel was told to leave alone
 * (memmap=2M$0x10000000).
 *
 * /dev/ksmdev-coherent, write: 64-bit addresses of pages, each is migrated to the device.
 * EBUSY if somebody holds one, ENOSPC if the device is full. Returns how much was taken.
 *
 * For tests/coherent_test.c.
 */
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#define START	0x10000000UL
#define LENGTH	SZ_2M
#define PAGES	(LENGTH / PAGE_SIZE)

static struct page *free_pages_of_device[PAGES];
static unsigned int nr_free;
static DEFINE_SPINLOCK(lock);

static void coherent_page_free(struct page *page)
{
	unsigned long flags;

	spin_lock_irqsave(&lock, flags);
	free_pages_of_device[nr_free++] = page;
	spin_unlock_irqrestore(&lock, flags);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
static void coherent_folio_free(struct folio *folio)
{
	coherent_page_free(&folio->page);
}

static const struct dev_pagemap_ops coherent_ops = {
	.folio_free = coherent_folio_free,
};
#else
static const struct dev_pagemap_ops coherent_ops = {
	.page_free = coherent_page_free,
};
#endif

static struct dev_pagemap pagemap = {
	.type = MEMORY_DEVICE_COHERENT,
	.ops = &coherent_ops,
	.owner = &pagemap,
	.nr_range = 1,
	.range = { START, START + LENGTH - 1 },
};

/* A free page of the device, locked and with a reference. */
static struct page *get_page_of_device(void)
{
	struct page *page = NULL;

	spin_lock_irq(&lock);
	if (nr_free)
		page = free_pages_of_device[--nr_free];
	spin_unlock_irq(&lock);
	if (page) {
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
		zone_device_page_init(page, &pagemap, 0);
#else
		zone_device_page_init(page);
#endif
	}
	return page;
}

static int migrate(struct vm_area_struct *vma, unsigned long addr)
{
	unsigned long src = 0, dst = 0;
	struct migrate_vma how = {
		.vma = vma,
		.src = &src,
		.dst = &dst,
		.start = addr,
		.end = addr + PAGE_SIZE,
		.pgmap_owner = pagemap.owner,
		.flags = MIGRATE_VMA_SELECT_SYSTEM,
	};
	struct page *page, *from;
	int err = migrate_vma_setup(&how);

	if (err)
		return err;
	err = -EBUSY;
	from = migrate_pfn_to_page(src);
	if (src & MIGRATE_PFN_MIGRATE && from) {
		page = get_page_of_device();
		if (page) {
			copy_highpage(page, from);
			dst = migrate_pfn(page_to_pfn(page));
		} else {
			err = -ENOSPC;
		}
	}
	migrate_vma_pages(&how);
	if (dst && src & MIGRATE_PFN_MIGRATE)
		err = 0;
	migrate_vma_finalize(&how);
	return err;
}

static ssize_t coherent_write(struct file *file, const char __user *buf, size_t len,
			      loff_t *pos)
{
	struct vm_area_struct *vma;
	size_t done;
	u64 addr;
	int err;

	if (len % sizeof(addr))
		return -EINVAL;
	for (done = 0; done < len; done += sizeof(addr)) {
		if (copy_from_user(&addr, buf + done, sizeof(addr)))
			return done ?: -EFAULT;
		mmap_read_lock(current->mm);
		vma = vma_lookup(current->mm, addr);
		err = -EFAULT;
		if (vma && vma_is_anonymous(vma) && IS_ALIGNED(addr, PAGE_SIZE))
			err = migrate(vma, addr);
		mmap_read_unlock(current->mm);
		if (err)
			return done ?: err;
	}
	return done;
}

static const struct file_operations coherent_fops = {
	.owner = THIS_MODULE,
	.write = coherent_write,
};

static struct miscdevice coherent_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "ksmdev-coherent",
	.fops = &coherent_fops,
	.mode = 0600,
};

static int __init coherent_init(void)
{
	void *p = memremap_pages(&pagemap, 0);
	unsigned long i;
	int err;

	if (IS_ERR(p))
		return PTR_ERR(p);
	for (i = 0; i < PAGES; i++)
		free_pages_of_device[nr_free++] = pfn_to_page(PHYS_PFN(START) + i);
	err = misc_register(&coherent_misc);
	if (err)
		memunmap_pages(&pagemap);
	return err;
}

/* Waits until the last page was given back. */
static void __exit coherent_exit(void)
{
	misc_deregister(&coherent_misc);
	memunmap_pages(&pagemap);
}

module_init(coherent_init);
module_exit(coherent_exit);
MODULE_DESCRIPTION("A device whose memory the CPUs can use, for a test of ksmdev");
MODULE_LICENSE("GPL");
