// SPDX-License-Identifier: GPL-2.0-only
/*
 * splat - a module that gets its kernel into trouble, on demand
 *
 * tests/vm/selftest proves with it that tests/vm/run notices. It stands in for
 * the real module: its name, and a /dev/ksm that can be held open.
 *
 * Trouble is made when its name is written to the parameter "now"; when the
 * module is unloaded, if it is the value of the parameter "unload"; and "load"
 * is an error number to refuse loading with.
 */

#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/init.h>
#include <linux/ktime.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/version.h>

static char *unload = "";
module_param(unload, charp, 0444);
MODULE_PARM_DESC(unload, "trouble to make when the module is unloaded");

static int load;
module_param(load, int, 0444);
MODULE_PARM_DESC(load, "error number to refuse loading with");

static void splat_warn(void)
{
	WARN(1, "splat: as asked for\n");
}

static void splat_bug(void)
{
	BUG();
}

static void splat_oops(void)
{
	int *where = NULL;

	/* Else the compiler makes something else of it. */
	OPTIMIZER_HIDE_VAR(where);
	WRITE_ONCE(*where, 1);
}

/* A page is freed while it claims to be mapped. */
static void splat_badpage(void)
{
	struct page *page = alloc_page(GFP_KERNEL);

	if (!page)
		return;
	atomic_set(&page->_mapcount, 4);
	__free_page(page);
}

/* The count of anonymous pages is checked when the process exits. */
static void splat_badrss(void)
{
#if KERNEL_VERSION(6, 2, 0) <= LINUX_VERSION_CODE
	percpu_counter_add(&current->mm->rss_stat[MM_ANONPAGES], 1);
#else
	atomic_long_inc(&current->mm->rss_stat.count[MM_ANONPAGES]);
#endif
}

/*
 * A CPU that does not schedule: the caller has set kernel.watchdog_thresh to 1. By the
 * clock: mdelay() is as short as the machine was slow when the kernel calibrated it.
 */
static void splat_softlockup(void)
{
	u64 end = ktime_get_ns() + 30 * NSEC_PER_SEC;

	preempt_disable();
	while (ktime_get_ns() < end)
		cpu_relax();
	preempt_enable();
}

/* The caller has set kernel.hung_task_timeout_secs to 1. */
static void splat_hungtask(void)
{
	set_current_state(TASK_UNINTERRUPTIBLE);
	schedule_timeout(60 * HZ);
}

static void splat_hang(void)
{
	for (;;)
		schedule_timeout_idle(HZ);
}

/* The rest is noticed by debug kernels only. */

static void splat_leak(void)
{
	char *lost = kmalloc(1000, GFP_KERNEL);

	/* Else the compiler leaves the allocation out. */
	OPTIMIZER_HIDE_VAR(lost);
}

static void splat_overrun(void)
{
	char *p = kmalloc(100, GFP_KERNEL);

	if (!p)
		return;
	OPTIMIZER_HIDE_VAR(p);
	WRITE_ONCE(p[100], 1);
	kfree(p);
}

static void splat_atomic(void)
{
	static DEFINE_SPINLOCK(lock);

	spin_lock(&lock);
	might_sleep();
	spin_unlock(&lock);
}

static void splat_lockorder(void)
{
	static DEFINE_MUTEX(a);
	static DEFINE_MUTEX(b);

	mutex_lock(&a);
	mutex_lock(&b);
	mutex_unlock(&b);
	mutex_unlock(&a);
	mutex_lock(&b);
	mutex_lock(&a);
	mutex_unlock(&a);
	mutex_unlock(&b);
}

static void splat_rcu(void)
{
	static int __rcu *pointer;

	(void)rcu_dereference(pointer);
}

static const struct {
	const char *name;
	void (*make)(void);
} splats[] = {
	{ "warn",	splat_warn },
	{ "bug",	splat_bug },
	{ "oops",	splat_oops },
	{ "badpage",	splat_badpage },
	{ "badrss",	splat_badrss },
	{ "softlockup",	splat_softlockup },
	{ "hungtask",	splat_hungtask },
	{ "hang",	splat_hang },
	{ "leak",	splat_leak },
	{ "overrun",	splat_overrun },
	{ "atomic",	splat_atomic },
	{ "lockorder",	splat_lockorder },
	{ "rcu",	splat_rcu },
};

static int make_splat(const char *name)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(splats); i++) {
		if (sysfs_streq(name, splats[i].name)) {
			splats[i].make();
			return 0;
		}
	}
	return -EINVAL;
}

static int now_set(const char *value, const struct kernel_param *kp)
{
	return make_splat(value);
}

static const struct kernel_param_ops now_ops = {
	.set = now_set,
};
module_param_cb(now, &now_ops, NULL, 0200);
MODULE_PARM_DESC(now, "trouble to make at once");

static const struct file_operations splat_fops = {
	.owner = THIS_MODULE,
};

static struct miscdevice splat_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "ksm",
	.fops = &splat_fops,
	.mode = 0600,
};

static int __init splat_init(void)
{
	if (load)
		return -load;
	return misc_register(&splat_misc);
}

static void __exit splat_exit(void)
{
	misc_deregister(&splat_misc);
	if (*unload)
		make_splat(unload);
}

module_init(splat_init);
module_exit(splat_exit);
MODULE_DESCRIPTION("Gets its kernel into trouble, to test tests/vm/run");
MODULE_ALIAS("ksm");
MODULE_LICENSE("GPL");
