// SPDX-License-Identifier: GPL-2.0-only
/*
 * drain.c - have the references dropped that per-CPU LRU batches hold
 *
 * A page that was just faulted in waits in such a batch with a reference too many to be
 * merged. The kernel's function for that waits for a work item on every CPU, uninterruptibly,
 * and a CPU that a real-time task owns does none. So a work item of ours calls it, and who
 * wants it done waits for that one: for a while, unless it is late already, and until a
 * signal comes. Without it some pages are merged a pass later, and that is all.
 */
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "internal.h"

/* How long to wait. An idle machine takes a millisecond, an emulated one a few. */
#define DRAIN_TIME (HZ / 2)

/* How many runs have begun and ended; the last one had to be waited for too long. */
static DEFINE_SPINLOCK(drain_lock);
static unsigned int begun, ended;
static bool late;
static DECLARE_WAIT_QUEUE_HEAD(drain_wait);

static void drain(struct work_struct *work)
{
	spin_lock(&drain_lock);
	begun++;
	spin_unlock(&drain_lock);
	static_call(ksmdev_lru_add_drain_all)();
	WRITE_ONCE(late, false);
	WRITE_ONCE(ended, begun);
	wake_up_all(&drain_wait);
}

static DECLARE_WORK(drain_work, drain);

/**
 * ksmdev_drain_lru() - put back the references that per-CPU LRU batches hold
 *
 * Context: May sleep, for half a second if some CPU is not to be had; not again while that
 * lasts. A signal ends it.
 */
void ksmdev_drain_lru(void)
{
	unsigned int wanted;

	/* A run that began before now may be through with our CPU. */
	spin_lock(&drain_lock);
	wanted = begun + 1;
	spin_unlock(&drain_lock);
	queue_work(system_dfl_wq, &drain_work);
	if (READ_ONCE(late))
		return;
	if (!wait_event_interruptible_timeout(drain_wait, (int)(READ_ONCE(ended) - wanted) >= 0,
					      DRAIN_TIME))
		WRITE_ONCE(late, true);
}

/**
 * ksmdev_drain_exit() - wait until nothing is drained any more
 *
 * Context: Module exit.
 */
void ksmdev_drain_exit(void)
{
	flush_work(&drain_work);
}
