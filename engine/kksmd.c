// SPDX-License-Identifier: GPL-2.0-only
/*
 * kksmd.c - the kernel thread and its settings
 *
 * The thread exists from load to unload and sleeps unless the run flag is set and
 * something is registered. New settings take effect at once: they wake it from its
 * sleep and make it return from a scan that it is in.
 */
#define pr_fmt(fmt) "ksmdev: " fmt

#include <linux/freezer.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/wait.h>

#include "../include/engine.h"
#include "../include/region.h"
#include "../include/scan.h"

/* As ksmd: behind whatever the machine is for. */
#define KKSMD_NICE 5

static struct task_struct *kksmd;
static struct ksmdev_scan *kksmd_scan;
static DECLARE_WAIT_QUEUE_HEAD(kksmd_wait);

/* Guarded by kksmd_wait.lock; @changes counts how often they were set. */
static struct ksm_kthread_info settings;
static unsigned int changes;
/* The thread's own: the number of changes that it has seen. */
static unsigned int seen;

static bool settings_changed(void)
{
	return READ_ONCE(changes) != seen;
}

/* Anything that the thread must attend to before it scans or sleeps on. */
static bool kksmd_interrupted(void)
{
	return settings_changed() || kthread_should_stop() || freezing(current);
}

static struct ksm_kthread_info read_settings(void)
{
	struct ksm_kthread_info info;

	spin_lock(&kksmd_wait.lock);
	info = settings;
	seen = changes;
	spin_unlock(&kksmd_wait.lock);
	return info;
}

static int kksmd_run(void *unused)
{
	set_freezable();
	set_user_nice(current, KKSMD_NICE);

	while (!kthread_should_stop()) {
		struct ksm_kthread_info info = read_settings();
		bool run = info.flags & ksm_control_flags_run;
		ktime_t sleep;

		try_to_freeze();
		if (!run || regions_empty()) {
			/* Nobody sets a time limit to doing nothing. */
			wait_event_interruptible(kksmd_wait, kksmd_interrupted() ||
						 (run && !regions_empty()));
			continue;
		}
		ksmdev_scan_run(kksmd_scan, info.pages_to_scan, info.max_pages_to_merge,
				kksmd_interrupted);
		sleep = ns_to_ktime((u64)info.sleep * NSEC_PER_USEC);
		if (sleep)
			wait_event_interruptible_hrtimeout(kksmd_wait, kksmd_interrupted(),
							   sleep);
		cond_resched();
	}
	return 0;
}

static void change_settings(const struct ksm_kthread_info *info)
{
	spin_lock(&kksmd_wait.lock);
	if (info)
		settings = *info;
	else
		settings.flags &= ~ksm_control_flags_run;
	WRITE_ONCE(changes, changes + 1);
	spin_unlock(&kksmd_wait.lock);
	wake_up(&kksmd_wait);
}

/**
 * ksmdev_kksmd_start() - set the thread's settings and let it run
 * @info: the settings; checked by the caller
 *
 * Context: Process.
 */
void ksmdev_kksmd_start(const struct ksm_kthread_info *info)
{
	change_settings(info);
}

/**
 * ksmdev_kksmd_stop() - let the thread stop; its other settings stay
 *
 * Context: Process. Waits until the thread has stopped.
 */
void ksmdev_kksmd_stop(void)
{
	change_settings(NULL);
	/* If it has not begun yet, it will see the change before it does anything. */
	ksmdev_scan_wait(kksmd_scan);
}

/**
 * ksmdev_kksmd_info() - read the thread's settings
 * @info: filled in
 *
 * Context: Process.
 */
void ksmdev_kksmd_info(struct ksm_kthread_info *info)
{
	spin_lock(&kksmd_wait.lock);
	*info = settings;
	spin_unlock(&kksmd_wait.lock);
}

/**
 * ksmdev_kksmd_wake() - tell the thread that something was registered
 *
 * Context: Any.
 */
void ksmdev_kksmd_wake(void)
{
	wake_up(&kksmd_wait);
}

/**
 * ksmdev_kksmd_init() - create the thread, stopped
 *
 * Context: Module init.
 * Return: 0 or -ENOMEM or what kthread_run() says.
 */
int ksmdev_kksmd_init(void)
{
	kksmd_scan = ksmdev_scan_create();
	if (!kksmd_scan)
		return -ENOMEM;
	kksmd = kthread_run(kksmd_run, NULL, "kksmd");
	if (IS_ERR(kksmd)) {
		ksmdev_scan_destroy(kksmd_scan);
		return PTR_ERR(kksmd);
	}
	return 0;
}

/**
 * ksmdev_kksmd_exit() - end the thread
 *
 * Context: Module exit. Waits for the thread.
 */
void ksmdev_kksmd_exit(void)
{
	kthread_stop(kksmd);
	ksmdev_scan_destroy(kksmd_scan);
}
