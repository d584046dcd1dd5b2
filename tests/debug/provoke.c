// SPDX-License-Identifier: GPL-2.0-only
/*
 * provoke.c - make one mistake, for the debug kernel to notice
 *
 * Each mistake belongs to one of the checkers that `make check-debug` relies
 * on. tests/debug/build-kernel loads this with every value of "what" in a
 * virtual machine that is thrown away afterwards; never load it anywhere else.
 */
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/page_table_check.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/timer.h>

static char *what = "";
module_param(what, charp, 0444);
MODULE_PARM_DESC(what, "which mistake to make");

/* Kept out of reach of the optimizer, so that the mistakes stay in. */
static int volatile shift_by = 40;

static void provoke_kasan(void)
{
	char *p = kmalloc(64, GFP_KERNEL);

	if (!p)
		return;
	kfree(p);
	WRITE_ONCE(p[3], 1);
}

static void provoke_shift(void)
{
	pr_info("provoke: %d\n", 1 << shift_by);
}

static void provoke_list(void)
{
	LIST_HEAD(head);
	struct list_head a, stray;

	INIT_LIST_HEAD(&stray);
	list_add(&a, &head);
	a.next = &stray;
	list_del(&a);
}

static void provoke_atomic(void)
{
	preempt_disable();
	might_sleep();
	preempt_enable();
}

static void provoke_timer_fn(struct timer_list *timer)
{
}

static void provoke_object(void)
{
	struct timer_list *timer = kmalloc(sizeof(*timer), GFP_KERNEL);

	if (!timer)
		return;
	timer_setup(timer, provoke_timer_fn, 0);
	mod_timer(timer, jiffies + HZ * 3600);
	/* DEBUG_OBJECTS_FREE takes the timer out before the memory goes. */
	kfree(timer);
}

static void provoke_rcu(void)
{
	static int target;
	static int __rcu *pointer = RCU_INITIALIZER(&target);

	pr_info("provoke: %p\n", rcu_dereference(pointer));
}

static void provoke_pgflags(void)
{
	struct page *page = alloc_pages(GFP_KERNEL | __GFP_COMP, 1);

	if (!page)
		return;
	/* A flag that tail pages must not be asked for. */
	SetPageReserved(page + 1);
	__free_pages(page, 1);
}

/* Take a page out of a page table that it never was in. */
static void provoke_pagetable(void)
{
	struct page *page = alloc_page(GFP_KERNEL);

	if (page)
		__page_table_check_pte_clear(NULL, mk_pte(page, PAGE_READONLY));
}

static DEFINE_MUTEX(lock_a);
static DEFINE_MUTEX(lock_b);

static void provoke_lock(void)
{
	mutex_lock(&lock_a);
	mutex_lock(&lock_b);
	mutex_unlock(&lock_b);
	mutex_unlock(&lock_a);
	mutex_lock(&lock_b);
	mutex_lock(&lock_a);
	mutex_unlock(&lock_a);
	mutex_unlock(&lock_b);
}

static void provoke_leak(void)
{
	int i;

	/* Many, as a stale word on some stack may hide one of them. */
	for (i = 0; i < 10; i++)
		kmalloc(96, GFP_KERNEL);
}

static const struct {
	const char *name;
	void (*make)(void);
} mistakes[] = {
	{ "kasan", provoke_kasan },
	{ "shift", provoke_shift },
	{ "list", provoke_list },
	{ "atomic", provoke_atomic },
	{ "object", provoke_object },
	{ "rcu", provoke_rcu },
	{ "pgflags", provoke_pgflags },
	{ "pagetable", provoke_pagetable },
	{ "lock", provoke_lock },
	{ "leak", provoke_leak },
};

static int provoke_thread(void *make)
{
	((void (*)(void))make)();
	return 0;
}

/*
 * Some mistakes end the task that makes them: each is made by a thread, so that
 * the module can be removed afterwards and loaded for the next one.
 */
static int __init provoke_init(void)
{
	struct task_struct *thread;
	int i;

	for (i = 0; i < ARRAY_SIZE(mistakes); i++) {
		if (strcmp(what, mistakes[i].name))
			continue;
		thread = kthread_run(provoke_thread, mistakes[i].make, "provoke");
		if (IS_ERR(thread))
			return PTR_ERR(thread);
		ssleep(1);
		return 0;
	}
	pr_err("provoke: there is no mistake \"%s\"\n", what);
	return -EINVAL;
}

static void __exit provoke_exit(void)
{
}

module_init(provoke_init);
module_exit(provoke_exit);
MODULE_DESCRIPTION("Makes mistakes for a debug kernel to notice");
MODULE_LICENSE("GPL");
