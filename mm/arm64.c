// SPDX-License-Identifier: GPL-2.0-only
/*
 * arm64.c - functions that inline functions of arm64's headers call, and no module gets
 *
 * To set a pte calls mte_sync_tags(), where memory has tags; to flush the TLB may tell
 * devices, and wait for what a processor with an erratum leaves undone. The module's own
 * functions of these names are what the linker finds. They call the kernel's.
 */
#include "internal.h"

#ifdef CONFIG_ARM64_MTE
#if COMPAT_SET_PTES
void mte_sync_tags(pte_t pte, unsigned int nr_pages)
{
	static_call(ksmdev_mte_sync_tags)(pte, nr_pages);
}
#else
void mte_sync_tags(pte_t old_pte, pte_t pte)
{
	static_call(ksmdev_mte_sync_tags)(old_pte, pte);
}
#endif
#endif

#if COMPAT_ARCH_FLUSH_SECONDARY_TLB && defined(CONFIG_MMU_NOTIFIER)
void __mmu_notifier_arch_invalidate_secondary_tlbs(struct mm_struct *mm, unsigned long start,
						   unsigned long end)
{
	static_call(ksmdev___mmu_notifier_arch_invalidate_secondary_tlbs)(mm, start, end);
}
#endif

#ifdef CONFIG_ARM64_ERRATUM_4193714
void sme_do_dvmsync(const struct cpumask *mask)
{
	static_call(ksmdev_sme_do_dvmsync)(mask);
}
#endif
