/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * charge.h - who pays for memory that a scan allocates
 *
 * A scan runs in kksmd or in some task, but what it allocates is for the process
 * whose pages it looks at, and is charged to that one's memory cgroup.
 */
#ifndef KSMDEV_CHARGE_H
#define KSMDEV_CHARGE_H

#include <linux/memcontrol.h>
#include <linux/sched/mm.h>

/*
 * What a process makes us allocate is accounted and may fail: at a cgroup's limit,
 * too, where without __GFP_NORETRY one of its processes would be killed.
 */
#define GFP_TENANT (GFP_KERNEL_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN)

/**
 * struct charge - a stretch of code whose allocations another process pays
 * @memcg: its cgroup
 * @old: the one that was set before
 */
struct charge {
	struct mem_cgroup *memcg;
	struct mem_cgroup *old;
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
}

/**
 * charge_end() - charge to whom it was before
 * @charge: from charge_begin()
 *
 * Context: Process.
 */
static inline void charge_end(struct charge *charge)
{
	set_active_memcg(charge->old);
	mem_cgroup_put(charge->memcg);
}

#endif /* KSMDEV_CHARGE_H */
