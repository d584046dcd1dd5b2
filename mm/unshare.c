// SPDX-License-Identifier: GPL-2.0-only
/*
 * unshare.c - give a merged page's mapping a private copy again
 *
 * By a page fault that the process never made: the kernel's own copy-on-write
 * code allocates, charges and maps the copy.
 */
#include <linux/mm.h>
#include <linux/userfaultfd_k.h>

#include "internal.h"

/*
 * FAULT_FLAG_UNSHARE maps the copy clean, and nothing says that the page is dirty,
 * either. Once fork() has made a second process map it, MADV_FREE there would take
 * it for memory that nobody wrote to, and reclaim would drop the first process's
 * data, too. The mmap lock has kept fork() out since the fault.
 */
static void keep_contents(struct vm_area_struct *vma, unsigned long addr)
{
	struct ksmdev_mapping map = { .addr = addr };

	if (ksmdev_get_pages(vma->vm_mm, &map, 1)) {
		set_page_dirty_lock(map.page);
		put_page(map.page);
	}
}

/**
 * ksmdev_unshare() - replace one mapping of a shared or zero page by a copy
 * @vma: the mapping
 * @addr: the page's address in it
 *
 * Context: mmap read lock held. May sleep, not for user memory: where the copy
 * would be announced to a userfaultfd, nothing is done.
 * Return: 0 if the page is private now, or the mapping is left alone because of a
 * userfaultfd; -ENOMEM; -EFAULT if the fault failed otherwise.
 */
int ksmdev_unshare(struct vm_area_struct *vma, unsigned long addr)
{
	/* The fault may find that others were faster and ask for another try. */
	int tries = 10;

	if (COMPAT_UNSHARE_IS_WRITE && userfaultfd_wp(vma))
		return 0;
	while (ksmdev_look_at(vma, addr) > KSMDEV_ANON) {
		vm_fault_t fault = handle_mm_fault(vma, addr, COMPAT_FAULT_UNSHARE, NULL);

		if (fault & VM_FAULT_OOM)
			return -ENOMEM;
		if (fault & VM_FAULT_ERROR || !tries--)
			return -EFAULT;
		keep_contents(vma, addr);
	}
	return 0;
}
