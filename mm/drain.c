// SPDX-License-Identifier: GPL-2.0-only
/*
 * drain.c - have the references dropped that per-CPU LRU batches hold
 *
 * A page that was just faulted in waits in such a batch with a reference too many to be
 * merged. The kernel's function for that waits for a work item on every CPU, uninterruptibly,
 * and a CPU that a real-time task owns does none. So a work item of ours calls it, and who
 * wants it done waits for that one: for a while, unless it is late already, and until a
 * signal comes. Without it some pages are merged a pass later, and that is all.
 *
 * It is work for every CPU that has such a batch, whosever that CPU is. So it is done once a
 * second at most, for all together, but for who may do anything to the machine anyway. What a
 * task wrote itself is mostly in the batch of its own CPU, which is not to be had from others.
 */
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "internal.h"

/* How long to wait. An idle machine takes a millisecond, an emulated one a few. */
#define DRAIN_TIME (HZ / 2)

/* From the beginning of one run to that of the next. */
#define DRAIN_INTERVAL HZ

/* How many runs have begun and ended; the last one had to be waited for too long. */
static DEFINE_SPINLOCK(drain_lock);
static unsigned int begun, ended;
static unsigned long begun_at;
static bool late;
static DECLARE_WAIT_QUEUE_HEAD(drain_wait);

static void drain(struct work_struct *work)
{
	spin_lock(&drain_lock);
	begun++;
	WRITE_ONCE(begun_at, jiffies);
	spin_unlock(&drain_lock);
	static_call(ksmdev_lru_add_drain_all)();
	WRITE_ONCE(late, false);
	WRITE_ONCE(ended, begun);
	wake_up_all(&drain_wait);
}

static DECLARE_DELAYED_WORK(drain_work, drain);

/**
 * ksmdev_drain_local() - put back the references that the batches of this CPU hold
 *
 * Context: Process.
 */
void ksmdev_drain_local(void)
{
	static_call(ksmdev_lru_add_drain)();
}

/* For how long not to begin. */
static unsigned long pause(void)
{
	unsigned long next = READ_ONCE(begun_at) + DRAIN_INTERVAL;

	return begun && time_before(jiffies, next) ? next - jiffies : 0;
}

/**
 * ksmdev_drain_due() - would ksmdev_drain_lru() begin at once
 *
 * Context: Any.
 * Return: false if somebody had it done less than a second ago.
 */
bool ksmdev_drain_due(void)
{
	return !pause();
}

static void start(unsigned long delay)
{
	if (delay)
		queue_delayed_work(system_dfl_wq, &drain_work, delay);
	else
		mod_delayed_work(system_dfl_wq, &drain_work, 0);
}

/**
 * ksmdev_drain_start() - have the references put back that per-CPU LRU batches hold, once it is due
 *
 * Context: Any. Waits for nobody.
 */
void ksmdev_drain_start(void)
{
	start(pause());
}

/**
 * ksmdev_drain_lru() - put back the references that per-CPU LRU batches hold
 * @often: no need to wait until it is due
 *
 * Context: May sleep until it is due, and for half a second more if some CPU is not to be had; not
 * again while that lasts. A signal ends it.
 */
void ksmdev_drain_lru(bool often)
{
	unsigned long delay = often ? 0 : pause();
	unsigned int wanted;

	/* A run that began before now may be through with our CPU. */
	spin_lock(&drain_lock);
	wanted = begun + 1;
	spin_unlock(&drain_lock);
	start(delay);
	if (READ_ONCE(late))
		return;
	if (!wait_event_interruptible_timeout(drain_wait, (int)(READ_ONCE(ended) - wanted) >= 0,
					      delay + DRAIN_TIME))
		WRITE_ONCE(late, true);
}

/**
 * ksmdev_drain_exit() - see to it that nothing is drained any more
 *
 * Context: Module exit.
 */
void ksmdev_drain_exit(void)
{
	cancel_delayed_work_sync(&drain_work);
}
