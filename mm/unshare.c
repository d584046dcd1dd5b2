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
 * The fault that makes a private copy of what is there; 0 where it would have to be a
 * pretended write, which a userfaultfd would be told of.
 */
static unsigned int fault_for(struct vm_area_struct *vma, enum ksmdev_kind kind)
{
	/* Of some pages such a one would be told of any fault. */
	if (userfaultfd_rwp(vma))
		return 0;
	if (kind != KSMDEV_ZERO || COMPAT_UNSHARE_ZERO)
		return FAULT_FLAG_UNSHARE | FAULT_FLAG_REMOTE;
	return userfaultfd_wp(vma) ? 0 : FAULT_FLAG_WRITE | FAULT_FLAG_REMOTE;
}

/*
 * FAULT_FLAG_UNSHARE maps the copy clean, and nothing says that the page is dirty,
 * either. Once fork() has made a second process map it, MADV_FREE there would take
 * it for memory that nobody wrote to, and reclaim would drop the first process's
 * data, too. The mmap lock has kept fork() out since the fault.
 */
static void keep_contents(struct vm_area_struct *vma, unsigned long addr)
{
	struct ksmdev_table table;
	struct page *page;

	ksmdev_table_lock(vma, addr, &table);
	page = ksmdev_mapped_page(&table, addr);
	if (page && !PageAnon(page))
		page = NULL;
	if (page)
		get_page(page);
	ksmdev_table_unlock(&table);
	if (page) {
		set_page_dirty_lock(page);
		put_page(page);
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
	enum ksmdev_kind kind;

	while ((kind = ksmdev_look_at(vma, addr)) > KSMDEV_ANON) {
		unsigned int flags = fault_for(vma, kind);
		vm_fault_t fault;

		if (!flags)
			return 0;
		fault = handle_mm_fault(vma, addr, flags, NULL);
		if (fault & VM_FAULT_OOM)
			return -ENOMEM;
		if (fault & VM_FAULT_ERROR || !tries--)
			return -EFAULT;
		keep_contents(vma, addr);
	}
	return 0;
}
