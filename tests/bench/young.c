// SPDX-License-Identifier: GPL-2.0-only
/*
 * young.c - what it costs to ask a secondary MMU which pages were accessed
 *
 * The other way to watch pages that a virtual machine maps: to clear the accessed bit
 * in KVM's page tables and take what was not accessed for what was not written. Loading
 * this asks once for each @step pages of a process's range, as a scan would do it, and
 * leaves in its parameters how long that took and how often the answer was yes.
 * bench.c compares that with the write bit, which mm/watch.c uses.
 */
#define pr_fmt(fmt) "ksmdev-young: " fmt

#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/ktime.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/static_call.h>

static int pid;
module_param(pid, int, 0400);
MODULE_PARM_DESC(pid, "the process");

static unsigned long start;
module_param(start, ulong, 0400);
MODULE_PARM_DESC(start, "first address");

static unsigned long npages;
module_param(npages, ulong, 0400);
MODULE_PARM_DESC(npages, "length in pages");

static unsigned long step = 1;
module_param(step, ulong, 0400);
MODULE_PARM_DESC(step, "pages to ask about at a time");

static bool flush;
module_param(flush, bool, 0400);
MODULE_PARM_DESC(flush, "have the TLB flushed where the answer is yes");

static unsigned long took_ns;
module_param(took_ns, ulong, 0400);
MODULE_PARM_DESC(took_ns, "result: time of it all");

static unsigned long nr_young;
module_param(nr_young, ulong, 0400);
MODULE_PARM_DESC(nr_young, "result: how often the answer was yes");

/* Neither is exported; a static call makes no indirect branch to it. */
DEFINE_STATIC_CALL_NULL(young_lookup, kallsyms_lookup_name);
DEFINE_STATIC_CALL_NULL(young_clear, __mmu_notifier_clear_young);

static int __init find_symbols(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	unsigned long address;
	int err;

	err = register_kprobe(&probe);
	if (err)
		return err;
	address = (unsigned long)probe.addr;
	unregister_kprobe(&probe);
	static_call_update(young_lookup, (typeof(kallsyms_lookup_name) *)address);
	/* The two are of one type. */
	address = static_call(young_lookup)(flush ? "__mmu_notifier_clear_flush_young" :
						    "__mmu_notifier_clear_young");
	if (!address)
		return -ENOENT;
	static_call_update(young_clear, (typeof(__mmu_notifier_clear_young) *)address);
	return 0;
}

static void __init measure(struct mm_struct *mm)
{
	unsigned long addr, end = start + npages * PAGE_SIZE;
	u64 since = ktime_get_ns();

	mmap_read_lock(mm);
	for (addr = start; addr < end; addr += step * PAGE_SIZE) {
		nr_young += !!static_call(young_clear)(mm, addr,
						       min(end, addr + step * PAGE_SIZE));
		cond_resched();
	}
	mmap_read_unlock(mm);
	took_ns = ktime_get_ns() - since;
}

static int __init young_init(void)
{
	struct task_struct *task;
	struct mm_struct *mm;
	int err;

	rcu_read_lock();
	task = get_pid_task(find_vpid(pid), PIDTYPE_PID);
	rcu_read_unlock();
	if (!task)
		return -ESRCH;
	mm = get_task_mm(task);
	put_task_struct(task);
	if (!mm)
		return -ESRCH;
	err = step ? find_symbols() : -EINVAL;
	if (!err && !mm_has_notifiers(mm))
		err = -ENXIO;
	if (!err)
		measure(mm);
	mmput(mm);
	return err;
}

static void __exit young_exit(void)
{
}

module_init(young_init);
module_exit(young_exit);

MODULE_DESCRIPTION("cost of clearing accessed bits for /dev/ksm");
MODULE_LICENSE("GPL");
