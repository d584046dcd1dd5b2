/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * compat.h - what differs between the kernels this module supports
 *
 * The one place for version checks. Each shim takes the name and the shape of
 * the newest kernel and says when the older ones changed, so that it can be
 * deleted when the last kernel that needs it is no longer supported.
 */
#ifndef KSMDEV_COMPAT_H
#define KSMDEV_COMPAT_H

#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pgtable.h>
#include <linux/rmap.h>
#include <linux/shrinker.h>
#include <linux/version.h>

#define SINCE(major, minor) (LINUX_VERSION_CODE >= KERNEL_VERSION(major, minor, 0))

#if !SINCE(6, 1) || SINCE(6, 13)
#error "ksmdev knows the memory management of Linux 6.1 to 6.12 only"
#endif

/* 6.8: the page's reverse mapping functions became the folio's. */
#define COMPAT_FOLIO_RMAP	SINCE(6, 8)
/* 6.9: a large folio can be split to any order. */
#define COMPAT_SPLIT_TO_ORDER	SINCE(6, 9)
/*
 * Until 6.6 to flush the TLB left those of devices alone (->invalidate_range() of their
 * notifiers): that was up to the caller, or to the end of the notifier window.
 */
#define COMPAT_FLUSH_SECONDARY_TLB (!SINCE(6, 6))
/* User-Mode Linux has its own, inline; x86 keeps the one it has from modules. */
#define COMPAT_FLUSH_TLB_INLINE	IS_ENABLED(CONFIG_UML)

/* 6.6 brought shadow stacks, 6.11 droppable memory: neither may be merged. */
#ifndef VM_SHADOW_STACK
#define VM_SHADOW_STACK VM_NONE
#endif
#ifndef VM_DROPPABLE
#define VM_DROPPABLE VM_NONE
#endif

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
 * 6.2: FAULT_FLAG_UNSHARE gives a private copy of the zero page, too; before, only of
 * anonymous pages, and a pretended write does it.
 */
#define COMPAT_UNSHARE_ZERO	SINCE(6, 2)

/* 6.7: shrinkers are allocated by the kernel. */
#if SINCE(6, 7)
static inline struct shrinker *compat_shrinker_alloc(const char *name)
{
	return shrinker_alloc(0, "%s", name);
}

static inline int compat_shrinker_register(struct shrinker *shrinker, const char *name)
{
	shrinker_register(shrinker);
	return 0;
}

static inline void compat_shrinker_unregister(struct shrinker *shrinker)
{
	shrinker_free(shrinker);
}
#else
static inline struct shrinker *compat_shrinker_alloc(const char *name)
{
	return kzalloc(sizeof(struct shrinker), GFP_KERNEL);
}

static inline int compat_shrinker_register(struct shrinker *shrinker, const char *name)
{
	int err = register_shrinker(shrinker, "%s", name);

	if (err)
		kfree(shrinker);
	return err;
}

static inline void compat_shrinker_unregister(struct shrinker *shrinker)
{
	unregister_shrinker(shrinker);
	kfree(shrinker);
}
#endif

#endif /* KSMDEV_COMPAT_H */
