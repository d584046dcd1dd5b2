// SPDX-License-Identifier: GPL-2.0-only
/*
 * notifier - a device with a TLB of its own, that writes as late as it may
 *
 * What an IOMMU does with shared virtual addressing: the device has the translation of an
 * address in its TLB, as writable, and no count of any page tells. It may write there
 * until the kernel tells it to flush that address; from then on never again. This one
 * writes at the last moment, in the flush itself. So whoever makes a page read-only,
 * looks at its contents and flushes only then, loses the write.
 *
 * /dev/ksmdev-notifier: an open file watches the address space that opened it.
 *
 *	write	64-bit addresses of bytes: the device translates each, and will add one to
 *		the byte when that address is flushed. EAGAIN if it was flushed meanwhile,
 *		ENOSPC if too many are awaited. Returns how much was taken.
 *	read	a struct ksmdev_notifier_state
 *
 * For tests/notifier_test.c. Root only: it trusts that pages are freed after the flush.
 */
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#define MAX_ENTRIES 512

/* What read() gives; tests/notifier_test.c has the same. */
struct ksmdev_notifier_state {
	__u64 waiting;		/* translations in the TLB */
	__u64 written;		/* bytes written so far */
	__u64 flushes;		/* calls so far */
};

struct entry {
	unsigned long addr;
	struct page *page;
};

struct iommu_tlb {
	struct mmu_notifier notifier;
	struct mm_struct *mm;
	/* Inside page table locks. */
	spinlock_t lock;
	struct ksmdev_notifier_state state;
	struct entry entry[MAX_ENTRIES];
};

static void last_write(const struct entry *entry)
{
	u8 *byte = kmap_local_page(entry->page);

	byte += offset_in_page(entry->addr);
	WRITE_ONCE(*byte, *byte + 1);
	kunmap_local(byte);
}

static void flush(struct mmu_notifier *notifier, struct mm_struct *mm,
		  unsigned long start, unsigned long end)
{
	struct iommu_tlb *tlb = container_of(notifier, struct iommu_tlb, notifier);
	unsigned int i;

	spin_lock(&tlb->lock);
	tlb->state.flushes++;
	for (i = 0; i < tlb->state.waiting;) {
		if (tlb->entry[i].addr < start || tlb->entry[i].addr >= end) {
			i++;
			continue;
		}
		last_write(&tlb->entry[i]);
		tlb->state.written++;
		tlb->entry[i] = tlb->entry[--tlb->state.waiting];
	}
	spin_unlock(&tlb->lock);
}

static const struct mmu_notifier_ops ops = {
	/* 6.6: the same under another name, and called by the flush of the CPUs' TLBs. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
	.arch_invalidate_secondary_tlbs = flush,
#else
	.invalidate_range = flush,
#endif
};

/* The device meets an address for the first time: a write fault, then an entry. */
static int translate(struct iommu_tlb *tlb, unsigned long addr)
{
	struct page *page;
	u64 flushes;
	int err = 0;

	spin_lock(&tlb->lock);
	flushes = tlb->state.flushes;
	spin_unlock(&tlb->lock);
	if (get_user_pages_fast(addr & PAGE_MASK, 1, FOLL_WRITE, &page) != 1)
		return -EFAULT;
	spin_lock(&tlb->lock);
	if (tlb->state.flushes != flushes)
		err = -EAGAIN;
	else if (tlb->state.waiting == MAX_ENTRIES)
		err = -ENOSPC;
	else
		tlb->entry[tlb->state.waiting++] = (struct entry) { addr, page };
	spin_unlock(&tlb->lock);
	/* Only the TLB knows of the page now. */
	put_page(page);
	return err;
}

static ssize_t notifier_write(struct file *file, const char __user *buf, size_t len,
			      loff_t *pos)
{
	struct iommu_tlb *tlb = file->private_data;
	size_t done;
	u64 addr;
	int err;

	if (len % sizeof(addr) || current->mm != tlb->mm)
		return -EINVAL;
	for (done = 0; done < len; done += sizeof(addr)) {
		err = -EFAULT;
		if (!copy_from_user(&addr, buf + done, sizeof(addr)))
			err = translate(tlb, addr);
		if (err)
			return done ?: err;
	}
	return done;
}

static ssize_t notifier_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
	struct iommu_tlb *tlb = file->private_data;
	struct ksmdev_notifier_state state;

	if (len != sizeof(state))
		return -EINVAL;
	spin_lock(&tlb->lock);
	state = tlb->state;
	spin_unlock(&tlb->lock);
	return copy_to_user(buf, &state, sizeof(state)) ? -EFAULT : sizeof(state);
}

static int notifier_open(struct inode *inode, struct file *file)
{
	struct iommu_tlb *tlb = kzalloc(sizeof(*tlb), GFP_KERNEL);
	int err;

	if (!tlb)
		return -ENOMEM;
	spin_lock_init(&tlb->lock);
	tlb->notifier.ops = &ops;
	tlb->mm = current->mm;
	err = mmu_notifier_register(&tlb->notifier, tlb->mm);
	if (err) {
		kfree(tlb);
		return err;
	}
	file->private_data = tlb;
	return 0;
}

static int notifier_release(struct inode *inode, struct file *file)
{
	struct iommu_tlb *tlb = file->private_data;

	mmu_notifier_unregister(&tlb->notifier, tlb->mm);
	kfree(tlb);
	return 0;
}

static const struct file_operations notifier_fops = {
	.owner = THIS_MODULE,
	.open = notifier_open,
	.release = notifier_release,
	.read = notifier_read,
	.write = notifier_write,
};

static struct miscdevice notifier_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "ksmdev-notifier",
	.fops = &notifier_fops,
	.mode = 0600,
};

module_misc_device(notifier_misc);
MODULE_DESCRIPTION("A device that writes until its TLB is flushed, for a test of ksmdev");
MODULE_LICENSE("GPL");
