/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * charge.h - who pays for memory that a scan allocates
 *
 * A scan runs in kksmd or in some task, but what it allocates is for the process
 * whose pages it looks at, and is charged to that one's memory cgroup. It scans for others,
 * too, so it never waits for what that cgroup may have.
 */
#ifndef KSMDEV_CHARGE_H
#define KSMDEV_CHARGE_H

#include <linux/memcontrol.h>
#include <linux/sched/mm.h>

#include "mm.h"

/*
 * What a process makes us allocate is accounted and may fail: at a cgroup's limit,
 * too, where without __GFP_NORETRY one of its processes would be killed.
 */
#define GFP_TENANT (GFP_KERNEL_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN)

/* What a scan allocates for a process: nothing is reclaimed, so nobody is waited for. */
#define GFP_SCAN (GFP_NOWAIT | __GFP_ACCOUNT | __GFP_NOWARN)

/**
 * struct charge - a stretch of code whose allocations another process pays
 * @memcg: its cgroup
 * @old: the one that was set before
 * @over: what the caller owes for his own cgroup's memory.high
 */
struct charge {
	struct mem_cgroup *memcg;
	struct mem_cgroup *old;
#ifdef CONFIG_MEMCG
	unsigned int over;
#endif
};

/**
 * charge_begin() - from here on, charge accounted memory to a process
 * @charge: for charge_end()
 * @mm: the process; its users are held
 *
 * Context: Process.
 */
static inline void charge_begin(struct charge *charge, struct mm_struct *mm)
{
	charge->memcg = get_mem_cgroup_from_mm(mm);
	charge->old = set_active_memcg(charge->memcg);
#ifdef CONFIG_MEMCG
	charge->over = current->memcg_nr_pages_over_high;
#endif
}

/**
 * charge_end() - charge to whom it was before
 * @charge: from charge_begin()
 *
 * Context: Process.
 */
static inline void charge_end(struct charge *charge)
{
#ifdef CONFIG_MEMCG
	/* Or a process would be made to sleep because another cgroup is over its memory.high. */
	current->memcg_nr_pages_over_high = charge->over;
#endif
	set_active_memcg(charge->old);
	mem_cgroup_put(charge->memcg);
}

/**
 * charge_adopt() - give a page that only one pte maps to its process, which pays from then on
 * @charge: begun for the mapping's process
 * @vma: the mapping
 * @addr: the page's address in it
 * @held: a page that the caller holds a reference to, or NULL
 *
 * Context: mmap read lock held.
 * Return: as ksmdev_adopt().
 */
static inline int charge_adopt(struct charge *charge, struct vm_area_struct *vma,
			       unsigned long addr, struct page *held)
{
	struct mem_cgroup *payer;
	int err = ksmdev_adopt(vma, addr, held, charge->memcg, &payer);

	if (payer)
		mem_cgroup_put(payer);
	return err;
}

/**
 * charge_take_over() - have a process pay for a shared page that others map, too
 * @charge: begun for the mapping's process
 * @vma: the mapping
 * @addr: the page's address in it
 *
 * Context: mmap read lock held.
 * Return: as ksmdev_payer_change().
 */
static inline int charge_take_over(struct charge *charge, struct vm_area_struct *vma,
				   unsigned long addr)
{
	struct mem_cgroup *payer;
	int err = ksmdev_payer_change(vma, addr, charge->memcg, &payer);

	if (payer)
		mem_cgroup_put(payer);
	return err;
}

#endif /* KSMDEV_CHARGE_H */
