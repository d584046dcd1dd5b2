/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * internal.h - the kernel functions that are not exported, inside mm/ only
 *
 * Each is called as static_call(ksmdev_NAME)(...): a direct call instruction
 * that is patched in at load, so that no indirect branch ever reaches a function
 * without an ENDBR (a BUG() on processors with IBT) and no retpoline is paid.
 * scripts/check-branches proves that from the object files.
 */
#ifndef KSMDEV_MM_INTERNAL_H
#define KSMDEV_MM_INTERNAL_H

#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/rmap.h>
#include <linux/static_call.h>
#include <linux/swap.h>
#include <asm/tlbflush.h>

#include "../include/compat-mm.h"
#include "../include/mm.h"

#if COMPAT_FOLIO_RMAP
#define KSMDEV_RMAP_SYMBOLS(X) X(folio_remove_rmap_ptes)
#else
#define KSMDEV_RMAP_SYMBOLS(X) X(page_remove_rmap)
#endif

#ifndef CONFIG_TRANSPARENT_HUGEPAGE
#define KSMDEV_SPLIT_SYMBOLS(X)
#elif COMPAT_SPLIT_INLINE
#define KSMDEV_SPLIT_SYMBOLS(X) X(__split_huge_page_to_list_to_order)
#elif COMPAT_SPLIT_TO_ORDER
#define KSMDEV_SPLIT_SYMBOLS(X) X(split_huge_page_to_list_to_order)
#else
#define KSMDEV_SPLIT_SYMBOLS(X) X(split_huge_page_to_list)
#endif

#ifndef CONFIG_MMU_NOTIFIER
#define KSMDEV_NOTIFIER_SYMBOLS(X)
#elif COMPAT_FLUSH_SECONDARY_TLB
#define KSMDEV_NOTIFIER_SYMBOLS(X)			\
	X(__mmu_notifier_invalidate_range_start)	\
	X(__mmu_notifier_invalidate_range)		\
	X(__mmu_notifier_invalidate_range_end)
#else
#define KSMDEV_NOTIFIER_SYMBOLS(X)			\
	X(__mmu_notifier_invalidate_range_start)	\
	X(__mmu_notifier_invalidate_range_end)
#endif

#if COMPAT_FLUSH_TLB_INLINE
#define KSMDEV_TLB_SYMBOLS(X)
#else
#define KSMDEV_TLB_SYMBOLS(X) X(flush_tlb_mm_range)
#endif

/* What inline functions of arm64's headers call: mm/arm64.c. */
#ifdef CONFIG_ARM64_MTE
#define KSMDEV_MTE_SYMBOLS(X) X(mte_sync_tags)
#else
#define KSMDEV_MTE_SYMBOLS(X)
#endif

#if COMPAT_ARCH_FLUSH_SECONDARY_TLB && defined(CONFIG_MMU_NOTIFIER)
#define KSMDEV_ARCH_NOTIFIER_SYMBOLS(X) X(__mmu_notifier_arch_invalidate_secondary_tlbs)
#else
#define KSMDEV_ARCH_NOTIFIER_SYMBOLS(X)
#endif

#ifdef CONFIG_ARM64_ERRATUM_4193714
#define KSMDEV_ERRATUM_SYMBOLS(X) X(sme_do_dvmsync)
#else
#define KSMDEV_ERRATUM_SYMBOLS(X)
#endif

#ifdef CONFIG_MEMCG
#define KSMDEV_MEMCG_SYMBOLS(X)			\
	X(__mem_cgroup_charge)			\
	X(__mem_cgroup_uncharge)
#else
#define KSMDEV_MEMCG_SYMBOLS(X)
#endif

#define KSMDEV_SYMBOLS(X)			\
	X(folio_free_swap)			\
	X(lru_add_drain)			\
	X(lru_add_drain_all)			\
	X(mlock_folio)				\
	KSMDEV_MEMCG_SYMBOLS(X)			\
	KSMDEV_NOTIFIER_SYMBOLS(X)		\
	KSMDEV_MTE_SYMBOLS(X)			\
	KSMDEV_ARCH_NOTIFIER_SYMBOLS(X)		\
	KSMDEV_ERRATUM_SYMBOLS(X)		\
	KSMDEV_TLB_SYMBOLS(X)			\
	KSMDEV_RMAP_SYMBOLS(X)			\
	KSMDEV_SPLIT_SYMBOLS(X)

#if !COMPAT_FLUSH_TLB_INLINE
/* asm/tlbflush.h keeps this from modules since 6.3. */
extern void flush_tlb_mm_range(struct mm_struct *mm, unsigned long start, unsigned long end,
			       unsigned int stride_shift, bool freed_tables);
#endif
/* mm/internal.h, which is not for modules. */
extern void mlock_folio(struct folio *folio);
/* There since 7.2 or 7.3. */
extern void lru_add_drain(void);

#define KSMDEV_DECLARE_SYMBOL(name) DECLARE_STATIC_CALL(ksmdev_##name, name);
KSMDEV_SYMBOLS(KSMDEV_DECLARE_SYMBOL)

/*
 * What ksmdev_table_lock() found: a page table, or the pmd of a huge page, or neither,
 * and the lock that it took.
 */
struct ksmdev_table {
	pte_t *pte;
	pmd_t *huge;
	spinlock_t *ptl;
};

void ksmdev_table_lock(struct vm_area_struct *vma, unsigned long addr,
		       struct ksmdev_table *table) __acquires(table->ptl);
void ksmdev_page_look(struct page *page, struct ksmdev_look *look);

/* mm/charge.c */
int ksmdev_charge(struct folio *folio, gfp_t gfp);
bool ksmdev_has_margin(struct mem_cgroup *memcg);
int ksmdev_recharge(struct folio *folio, struct mem_cgroup *to, struct mem_cgroup **from);

/* mm/kpage.c */
void ksmdev_kpage_payer_seen(struct page *page);
unsigned long ksmdev_kpage_payer_unseen(struct page *page);

/* mm/payer.c */
bool ksmdev_payer_seen(struct page *page, struct mem_cgroup *memcg);

/*
 * Memory tags of arm64 are contents, too, which a comparison of bytes does not see. Only a
 * page that some VMA or virtual machine asked to have them for has any.
 */
static inline bool ksmdev_page_tagged(struct page *page)
{
#ifdef CONFIG_ARM64_MTE
	return page_mte_tagged(page);
#else
	return false;
#endif
}

static inline bool ksmdev_is_zero_page(struct page *page)
{
	return is_zero_pfn(page_to_pfn(page));
}

static inline void ksmdev_table_unlock(struct ksmdev_table *table) __releases(table->ptl)
{
	spin_unlock(table->ptl);
}

/* The pte of @addr in a locked table. */
static inline pte_t *ksmdev_pte(struct ksmdev_table *table, unsigned long addr)
{
	return table->pte + pte_index(addr);
}

/* The page that @addr maps in a locked table; NULL if it maps none, or one that nobody counts. */
static inline struct page *ksmdev_mapped_page(struct ksmdev_table *table, unsigned long addr)
{
	pte_t pte;

	if (!table->pte)
		return NULL;
	pte = ptep_get(ksmdev_pte(table, addr));
	if (!pte_present(pte) || pte_special(pte) || compat_pte_devmap(pte))
		return NULL;
	return pte_page(pte);
}

/*
 * Flush the TLBs of all processors, and those of devices that use the process's page
 * tables (an IOMMU's, with shared virtual addresses): who compares pages after this, or
 * frees them, must not be overtaken by a device that still writes through an old entry.
 */
static inline void ksmdev_flush_tlb(struct vm_area_struct *vma,
				    unsigned long start, unsigned long end)
{
#if COMPAT_FLUSH_TLB_INLINE
	flush_tlb_range(vma, start, end);
#else
	static_call(ksmdev_flush_tlb_mm_range)(vma->vm_mm, start, end, PAGE_SHIFT, false);
#endif
#if defined(CONFIG_MMU_NOTIFIER) && COMPAT_FLUSH_SECONDARY_TLB
	if (mm_has_notifiers(vma->vm_mm))
		static_call(ksmdev___mmu_notifier_invalidate_range)(vma->vm_mm, start, end);
#endif
}

#endif /* KSMDEV_MM_INTERNAL_H */
