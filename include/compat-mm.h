/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * compat-mm.h - what differs in the memory management of the kernels; see compat.h
 */
#ifndef KSMDEV_COMPAT_MM_H
#define KSMDEV_COMPAT_MM_H

#include <linux/cgroup.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pgtable.h>
#include <linux/rmap.h>
#include <linux/userfaultfd_k.h>

#include "compat.h"

/* 6.8: the page's reverse mapping functions became the folio's. */
#define COMPAT_FOLIO_RMAP	SINCE(6, 8)
/* 6.9: a large folio can be split to any order. 6.19: that name is inline, and calls another. */
#define COMPAT_SPLIT_TO_ORDER	SINCE(6, 9)
#define COMPAT_SPLIT_INLINE	SINCE(6, 19)
/*
 * Until 6.6 to flush the TLB left those of devices alone (->invalidate_range() of their
 * notifiers): that was up to the caller, or to the end of the notifier window.
 */
#define COMPAT_FLUSH_SECONDARY_TLB (!SINCE(6, 6))
/* arm64 and User-Mode Linux have their own, inline; x86 keeps the one it has from modules. */
#define COMPAT_FLUSH_TLB_INLINE	(IS_ENABLED(CONFIG_ARM64) || IS_ENABLED(CONFIG_UML))
/* 6.6: that of arm64 tells devices itself. */
#define COMPAT_ARCH_FLUSH_SECONDARY_TLB (IS_ENABLED(CONFIG_ARM64) && SINCE(6, 6))
/* 6.6: several ptes at a time are set. */
#define COMPAT_SET_PTES		SINCE(6, 6)

/* 6.6 brought shadow stacks, 6.11 droppable memory: neither may be merged. */
#ifndef VM_SHADOW_STACK
#define VM_SHADOW_STACK VM_NONE
#endif
#ifndef VM_DROPPABLE
#define VM_DROPPABLE VM_NONE
#endif

/* By 6.17 it is the folio's mapping that says that a page is anonymous. */
#ifndef FOLIO_MAPPING_ANON
#define FOLIO_MAPPING_ANON PAGE_MAPPING_ANON
#endif

/* 7.3: the bit of a userfaultfd write-protects, or keeps from reading as well. */
#if !SINCE(7, 3)
#define pte_uffd pte_uffd_wp
#define pmd_uffd pmd_uffd_wp

static inline bool userfaultfd_rwp(struct vm_area_struct *vma)
{
	return false;
}
#endif

/* 7.3: anonymous pages of a mapping of a file have an index of their own, and not the file's. */
#if !SINCE(7, 3)
#define linear_anon_page_index linear_page_index
#endif

/* 6.17: nothing in a pte tells a device's page from another. */
static inline bool compat_pte_devmap(pte_t pte)
{
#if SINCE(6, 17)
	return false;
#else
	return pte_devmap(pte);
#endif
}

/* 6.2: rss_stat became per-CPU counters. */
static inline void compat_add_mm_counter(struct mm_struct *mm, int member, long value)
{
#if SINCE(6, 2)
	percpu_counter_add(&mm->rss_stat[member], value);
#else
	atomic_long_add(value, &mm->rss_stat.count[member]);
#endif
}

/*
 * 6.3: the range no longer names a vma. Without MMU notifiers, as on User-Mode
 * Linux, it has nothing but its addresses.
 */
static inline void compat_notifier_range_init(struct mmu_notifier_range *range,
					      struct vm_area_struct *vma,
					      unsigned long start, unsigned long end)
{
#if SINCE(6, 3)
	mmu_notifier_range_init(range, MMU_NOTIFY_CLEAR, 0, vma->vm_mm, start, end);
#else
	mmu_notifier_range_init(range, MMU_NOTIFY_CLEAR, 0, vma, vma->vm_mm, start, end);
#endif
}

/*
 * Before 6.3 a NUMA hinting pte remembered in another bit that it
 * was writable; that bit must go as well.
 */
static inline bool compat_pte_may_write(pte_t pte)
{
#if !SINCE(6, 3)
	if (pte_protnone(pte) && pte_savedwrite(pte))
		return true;
#endif
	return pte_write(pte);
}

static inline pte_t compat_pte_wrprotect(pte_t pte)
{
#if !SINCE(6, 3)
	if (pte_protnone(pte))
		return pte_clear_savedwrite(pte);
#endif
	return pte_wrprotect(pte);
}

static inline int compat_try_share_anon_rmap(struct page *page)
{
#if COMPAT_FOLIO_RMAP
	return folio_try_share_anon_rmap_pte(page_folio(page), page);
#else
	return page_try_share_anon_rmap(page);
#endif
}

/*
 * Before 6.3 a page was unmapped under a lock of the cgroup that it is charged to, where charges
 * move along with processes (memory.move_charge_at_immigrate of the first interface); and what
 * was taken was not let go if the page was charged to another one meanwhile.
 */
static inline bool compat_may_recharge(void)
{
#if defined(CONFIG_MEMCG) && !SINCE(6, 3)
	return cgroup_subsys_on_dfl(memory_cgrp_subsys);
#else
	return true;
#endif
}

/*
 * 6.2: FAULT_FLAG_UNSHARE gives a private copy of the zero page, too; before, only of
 * anonymous pages, and a pretended write does it.
 */
#define COMPAT_UNSHARE_ZERO	SINCE(6, 2)

#endif /* KSMDEV_COMPAT_MM_H */
