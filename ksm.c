// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksm.c - /dev/ksm: the device, its fds and ioctls
 *
 * DOC: Overview
 *
 * Programs register ranges of their anonymous memory; a kernel thread, or any task
 * in KSM_SCAN, finds pages of equal contents there, write-protects them and maps one
 * read-only page in their place. A later write faults and gets a private copy from
 * the kernel's ordinary copy-on-write code.
 *
 *	/dev/ksm	creates the other two, and controls the kernel threads
 *	[ksm-sma]	a shared memory area: closing it drops its registrations
 *	[ksm-scan]	a scanning context
 *
 * This file only checks and dispatches. engine/ decides what to look at and what to
 * merge; mm/ changes page tables and is the only part that knows what this kernel
 * does not export. Calls go one way: ksm.c, engine/, mm/.
 *
 * The interface is that of the announcement of November 2008 (see ksm.h). Each fd
 * pins the module, so that it can only be unloaded when nobody has one open.
 */
#define pr_fmt(fmt) "ksmdev: " fmt

#include <linux/anon_inodes.h>
#include <linux/capability.h>
#include <linux/compat.h>
#include <linux/freezer.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/sched/jobctl.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/uaccess.h>

#include "ksm.h"
#include "include/engine.h"
#include "include/mm.h"

static_assert(sizeof(struct ksm_memory_region) == 16);
static_assert(offsetof(struct ksm_memory_region, npages) == 0);
static_assert(offsetof(struct ksm_memory_region, addr) == 8);
static_assert(sizeof(struct ksm_user_scan) == 8);
static_assert(sizeof(struct ksm_kthread_info) == 16);
static_assert(offsetof(struct ksm_kthread_info, flags) == 12);
static_assert(sizeof(struct ksm_kthread_info_rhel) == 12);
static_assert(sizeof(struct ksm_kthread_info_2009) == 24);
static_assert(offsetof(struct ksm_kthread_info_2009, reserved_bits) == 16);
static_assert(sizeof(struct ksm_memory_region_2009) == 24);
static_assert(offsetof(struct ksm_memory_region_2009, reserved_bits) == 16);

static_assert(sizeof(struct ksm_pace) == 16);
static_assert(offsetof(struct ksm_pace, size) == 0);
static_assert(offsetof(struct ksm_pace, flags) == 4);
static_assert(offsetof(struct ksm_pace, cpu_percent) == 8);
static_assert(offsetof(struct ksm_pace, threads) == 12);
static_assert(sizeof(struct ksm_merge_range) == 32);
static_assert(offsetof(struct ksm_merge_range, size) == 0);
static_assert(offsetof(struct ksm_merge_range, flags) == 4);
static_assert(offsetof(struct ksm_merge_range, addr) == 8);
static_assert(offsetof(struct ksm_merge_range, npages) == 16);
static_assert(offsetof(struct ksm_merge_range, merged) == 24);

/*
 * Copy a structure that begins with its size as the caller knows it. A caller that
 * knows more fields than we do must have left them zero.
 */
static int copy_sized(void *to, size_t size, const void __user *from)
{
	u32 user_size;

	if (get_user(user_size, (const u32 __user *)from))
		return -EFAULT;
	/* There is no older version that would be shorter. */
	if (user_size < size)
		return -EINVAL;
	if (user_size > PAGE_SIZE)
		return -E2BIG;
	return copy_struct_from_user(to, size, from, user_size);
}

/*
 * Who sleeps in a call of ours returns for these: signals, and what the freezer makes look
 * like one. Not for the task work that signal_pending() is true for, too: of
 * io_uring, for one, which is no reason to tell a program that a signal came.
 */
static bool signalled(void)
{
	return task_sigpending(current);
}

/* Does a pending signal end, stop or trace the task, rather than call a function of its own? */
static bool default_signalled(void)
{
	/* Our own, which stays. */
	struct sighand_struct *sighand = rcu_dereference_protected(current->sighand, true);
	sigset_t pending;
	bool found = false;
	int nr;

	spin_lock_irq(&sighand->siglock);
	sigorsets(&pending, &current->pending.signal, &current->signal->shared_pending.signal);
	sigandnsets(&pending, &pending, &current->blocked);
	for (nr = 1; nr <= _NSIG && !found; nr++)
		found = sigismember(&pending, nr) &&
			sighand->action[nr - 1].sa.sa_handler == SIG_DFL;
	spin_unlock_irq(&sighand->siglock);
	return found;
}

/*
 * Who is to be killed, stopped or frozen does not finish a long call; if he lives he begins
 * it anew and passes over what was done. A timer's handler can wait: or he
 * would begin anew for ever.
 */
static bool must_leave(void)
{
	if (!signal_pending(current))
		return false;
	return freezing(current) || fatal_signal_pending(current) ||
	       READ_ONCE(current->jobctl) & (JOBCTL_PENDING_MASK | JOBCTL_TRAP_FREEZE) ||
	       default_signalled();
}

/* May the caller do things for, and to, everybody? Who may not is not refused, so not reported. */
static bool privileged(void)
{
	return ns_capable_noaudit(&init_user_ns, CAP_SYS_ADMIN);
}

/* The shared memory area */

static int register_range(struct ksmdev_area *area, u64 addr, u64 npages)
{
	int err = ksmdev_area_register(area, addr, npages);

	if (!err)
		ksmdev_kksmd_wake();
	return err;
}

static int register_region(struct ksmdev_area *area, void __user *arg)
{
	struct ksm_memory_region region;

	if (copy_from_user(&region, arg, sizeof(region)))
		return -EFAULT;
	if (region.pad)
		return -EINVAL;
	return register_range(area, region.addr, region.npages);
}

static int register_region_2009(struct ksmdev_area *area, void __user *arg)
{
	struct ksm_memory_region_2009 region;

	if (copy_from_user(&region, arg, sizeof(region)))
		return -EFAULT;
	if (region.pad || region.reserved_bits)
		return -EINVAL;
	return register_range(area, region.addr, region.npages);
}

static int merge_range(struct ksmdev_area *area, struct ksm_merge_range __user *arg)
{
	struct ksm_merge_range range;
	u64 merged = 0;
	int err;

	err = copy_sized(&range, sizeof(range), arg);
	if (err)
		return err;
	if (range.flags || !PAGE_ALIGNED(range.addr) || !range.npages)
		return -EINVAL;
	/* No region lies where addresses end. */
	if (range.npages > (U64_MAX - range.addr) >> PAGE_SHIFT)
		return -ENOENT;
	err = ksmdev_merge_range(area, range.addr, range.npages, &merged, privileged(), signalled);
	/* What was merged before an error stays merged. */
	if (put_user(merged, &arg->merged))
		return -EFAULT;
	return err;
}

static int unmerge(struct ksmdev_area *area)
{
	int err = ksmdev_area_unmerge(area, must_leave);

	return err == -EINTR ? -ERESTARTNOINTR : err;
}

static long sma_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct ksmdev_area *area = file->private_data;
	void __user *uarg = (void __user *)arg;

	switch (cmd) {
	case KSM_REGISTER_MEMORY_REGION:
		return register_region(area, uarg);
	case KSM_REGISTER_MEMORY_REGION_2009:
		return register_region_2009(area, uarg);
	case KSM_REMOVE_MEMORY_REGION:
		ksmdev_area_remove_all(area);
		return 0;
	case KSM_UNMERGE:
		return unmerge(area);
	case KSM_MERGE_RANGE:
		return merge_range(area, uarg);
	default:
		return -ENOTTY;
	}
}

static int sma_release(struct inode *inode, struct file *file)
{
	ksmdev_area_release(file->private_data);
	return 0;
}

static void sma_show_fdinfo(struct seq_file *m, struct file *file)
{
	ksmdev_area_show(m, file->private_data, must_leave);
}

static const struct file_operations sma_fops = {
	.owner = THIS_MODULE,
	.release = sma_release,
	.unlocked_ioctl = sma_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.show_fdinfo = sma_show_fdinfo,
	.llseek = noop_llseek,
};

static int create_area(void)
{
	struct ksmdev_area *area = ksmdev_area_create();
	int fd;

	if (!area)
		return -ENOMEM;
	fd = anon_inode_getfd("ksm-sma", &sma_fops, area, O_RDWR);
	if (fd < 0)
		ksmdev_area_release(area);
	return fd;
}

/* The scan fd */

static int scan(struct ksmdev_scan *scan, void __user *arg)
{
	struct ksm_user_scan how;
	int err;

	if (copy_from_user(&how, arg, sizeof(how)))
		return -EFAULT;
	if (!how.pages_to_scan)
		return -EINVAL;
	err = ksmdev_scan_run(scan, how.pages_to_scan, how.max_pages_to_merge, signalled);
	/* The wait for another call was ended by task work, before anything was scanned. */
	return err == -EINTR && !signalled() ? -ERESTARTNOINTR : err;
}

static long scan_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	if (cmd != KSM_SCAN)
		return -ENOTTY;
	return scan(file->private_data, (void __user *)arg);
}

static int scan_release(struct inode *inode, struct file *file)
{
	ksmdev_scan_destroy(file->private_data);
	return 0;
}

static const struct file_operations scan_fops = {
	.owner = THIS_MODULE,
	.release = scan_release,
	.unlocked_ioctl = scan_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static int create_scan(void)
{
	struct ksmdev_scan *scan = ksmdev_scan_create(privileged());
	int fd;

	if (!scan)
		return -ENOMEM;
	fd = anon_inode_getfd("ksm-scan", &scan_fops, scan, O_RDWR);
	if (fd < 0)
		ksmdev_scan_destroy(scan);
	return fd;
}

/* The device */

static int start_stop(const struct ksm_kthread_info *info)
{
	/* Who shares the machine with others must not stop their sharing. */
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (info->flags & ~ksm_control_flags_run)
		return -EINVAL;
	if (!(info->flags & ksm_control_flags_run)) {
		ksmdev_kksmd_stop();
		return 0;
	}
	return ksmdev_kksmd_start(info);
}

static int start_stop_2008(void __user *arg)
{
	struct ksm_kthread_info info;

	if (copy_from_user(&info, arg, sizeof(info)))
		return -EFAULT;
	return start_stop(&info);
}

static int start_stop_rhel(void __user *arg)
{
	struct ksm_kthread_info_rhel old;
	struct ksm_kthread_info info = { };

	if (copy_from_user(&old, arg, sizeof(old)))
		return -EFAULT;
	info.sleep = old.sleep;
	info.pages_to_scan = old.pages_to_scan;
	info.flags = old.flags;
	return start_stop(&info);
}

static int start_stop_2009(void __user *arg)
{
	struct ksm_kthread_info_2009 old;
	struct ksm_kthread_info info = { };

	if (copy_from_user(&old, arg, sizeof(old)))
		return -EFAULT;
	if (old.pad || old.reserved_bits)
		return -EINVAL;
	info.sleep = old.sleep;
	info.pages_to_scan = old.pages_to_scan;
	info.flags = old.flags;
	return start_stop(&info);
}

static int get_info_2008(void __user *arg)
{
	struct ksm_kthread_info info;

	ksmdev_kksmd_info(&info);
	return copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : 0;
}

static int get_info_rhel(void __user *arg)
{
	struct ksm_kthread_info info;
	struct ksm_kthread_info_rhel old = { };

	ksmdev_kksmd_info(&info);
	old.sleep = info.sleep;
	old.pages_to_scan = info.pages_to_scan;
	old.flags = info.flags;
	return copy_to_user(arg, &old, sizeof(old)) ? -EFAULT : 0;
}

static int get_info_2009(void __user *arg)
{
	struct ksm_kthread_info info;
	struct ksm_kthread_info_2009 old = { };

	ksmdev_kksmd_info(&info);
	old.sleep = info.sleep;
	old.pages_to_scan = info.pages_to_scan;
	old.flags = info.flags;
	return copy_to_user(arg, &old, sizeof(old)) ? -EFAULT : 0;
}

static int set_pace(void __user *arg)
{
	struct ksm_pace pace;
	int err;

	err = copy_sized(&pace, sizeof(pace), arg);
	if (err)
		return err;
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (pace.flags)
		return -EINVAL;
	return ksmdev_kksmd_set_pace(&pace);
}

static int get_pace(void __user *arg)
{
	struct ksm_pace pace;
	int err;

	err = copy_sized(&pace, sizeof(pace), arg);
	if (err)
		return err;
	if (pace.flags)
		return -EINVAL;
	ksmdev_kksmd_pace(&pace);
	return copy_to_user(arg, &pace, sizeof(pace)) ? -EFAULT : 0;
}

static long ksm_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *uarg = (void __user *)arg;

	switch (cmd) {
	case KSM_GET_API_VERSION:
		return KSM_API_VERSION;
	case KSM_CREATE_SHARED_MEMORY_AREA:
		return create_area();
	case KSM_CREATE_SCAN:
		return create_scan();
	case KSM_START_STOP_KTHREAD:
		return start_stop_2008(uarg);
	case KSM_START_STOP_KTHREAD_RHEL:
		return start_stop_rhel(uarg);
	case KSM_START_STOP_KTHREAD_2009:
		return start_stop_2009(uarg);
	case KSM_GET_INFO_KTHREAD:
		return get_info_2008(uarg);
	case KSM_GET_INFO_KTHREAD_RHEL:
		return get_info_rhel(uarg);
	case KSM_GET_INFO_KTHREAD_2009:
		return get_info_2009(uarg);
	case KSM_SET_PACE:
		return set_pace(uarg);
	case KSM_GET_PACE:
		return get_pace(uarg);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations ksm_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = ksm_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static const struct attribute_group *ksm_groups[] = {
	&ksmdev_stats_group,
	NULL
};

static struct miscdevice ksm_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "ksm",
	.fops = &ksm_fops,
	.mode = 0600,
	.groups = ksm_groups,
};

static int __init ksmdev_init(void)
{
	int err;

	err = ksmdev_mm_init();
	if (err)
		return err;
	err = ksmdev_kpage_init();
	if (err)
		return err;
	ksmdev_hash_init();
	err = ksmdev_index_init();
	if (err)
		goto err_index;
	err = ksmdev_shared_init();
	if (err)
		goto err_shared;
	err = ksmdev_kksmd_init();
	if (err)
		goto err_kksmd;
	/* The last step: from here on users can open the device. */
	err = misc_register(&ksm_misc);
	if (err)
		goto err_misc;
	return 0;

err_misc:
	ksmdev_kksmd_exit();
	ksmdev_sweep_exit();
err_kksmd:
	ksmdev_shared_exit();
err_shared:
	ksmdev_index_exit();
err_index:
	ksmdev_kpage_exit();
	return err;
}

static void __exit ksmdev_exit(void)
{
	misc_deregister(&ksm_misc);
	ksmdev_kksmd_exit();
	/* In this order: rounds bury regions, and what buries them has the index resized. */
	ksmdev_sweep_exit();
	ksmdev_areas_exit();
	ksmdev_drain_exit();
	ksmdev_shared_exit();
	ksmdev_index_exit();
	ksmdev_kpage_exit();
}

module_init(ksmdev_init);
module_exit(ksmdev_exit);

MODULE_DESCRIPTION("Share equal anonymous pages between processes: /dev/ksm");
MODULE_LICENSE("GPL");
MODULE_ALIAS("ksm");
