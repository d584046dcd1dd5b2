// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmlock.c - how a scan gets the mmap lock of the process that it is about to look at
 *
 * A scan only tries: a process that holds its lock for long, or hangs while it does, delays the
 * sharing of its own pages and of nobody else's. But where threads take it in turns there
 * is always one that waits for it, and then a try fails every time. So kksmd, where the try
 * failed, waits in the queue as everybody does, for a short time, and in sum for a part of all
 * time: who lets it wait, in vain or not, once or for each page, delays others by that part.
 *
 * A kernel thread cannot wait for a lock with a time limit. It can wait until it gets a fatal
 * signal, which is what its alarm sends; from users it takes none.
 */
#include <linux/delay.h>
#include <linux/kernel.h>
#include <linux/random.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>

#include "../include/region.h"
#include "../include/scan.h"

/* How long to wait at most, and no more than one part in so many of all time. */
#define WAIT_MS		50
#define WAIT_NS		(WAIT_MS * NSEC_PER_MSEC)
#define WAIT_PART	3

static void ring(struct timer_list *timer)
{
	struct ksmdev_scan *scan = container_of(timer, struct ksmdev_scan, alarm);

	send_sig(SIGKILL, scan->waiter, 1);
}

/**
 * mmlock_wait() - from here on, the calling thread waits for mmap locks
 * @scan: the scanning context, which is the thread's alone
 * @interrupted: asked before each wait whether the thread has something else to attend to
 *
 * Context: Kernel thread.
 */
void mmlock_wait(struct ksmdev_scan *scan, bool (*interrupted)(void))
{
	allow_kernel_signal(SIGKILL);
	timer_setup(&scan->alarm, ring, 0);
	scan->waiter = current;
	scan->interrupted = interrupted;
}

/*
 * May a scan wait now? A piece that was waited for is waited for more often, but not for long: to
 * gather takes the lock, and to merge does. Who wants the thread to stop waits for the end of one
 * wait at most.
 */
static bool may_wait(struct ksmdev_scan *scan)
{
	if (scan->waiter != current || scan->interrupted())
		return false;
	if (scan->waited)
		return scan->waited <= WAIT_NS;
	if (!scan->wants)
		scan->wanted++;
	scan->wants = true;
	if (scan->wanted <= scan->wait_behind)
		return false;
	if (ktime_get_ns() >= scan->wait_from)
		return true;
	scan->refused = true;
	return false;
}

/* It has waited since @begin. A little is saved up: not so much that two long waits follow. */
static void note_wait(struct ksmdev_scan *scan, u64 begin)
{
	u64 took = min_t(u64, ktime_get_ns() - begin, 2 * WAIT_NS);

	scan->wait_from = max(scan->wait_from, begin - min(begin, WAIT_NS)) + WAIT_PART * took;
	scan->waited += took;
}

static bool wait_for(struct ksmdev_scan *scan, struct mm_struct *mm)
{
	u64 begin = ktime_get_ns();
	bool locked;

	if (!may_wait(scan))
		return false;
	mod_timer(&scan->alarm, jiffies + msecs_to_jiffies(WAIT_MS));
	locked = !mmap_read_lock_killable(mm);
	timer_delete_sync(&scan->alarm);
	flush_signals(current);
	note_wait(scan, begin);
	return locked;
}

/**
 * mmlock_piece() - a piece of the tour is about to be scanned
 * @scan: the scanning context
 * @mm: whose
 *
 * Where there was not time enough in a pass to wait for all who let it wait, the next one begins to
 * at any of these: it is not always the same that have to do without.
 *
 * Context: Process.
 */
void mmlock_piece(struct ksmdev_scan *scan, struct mm_struct *mm)
{
	unsigned long pass = tour_passes(scan->tour);

	if (pass != scan->pass) {
		scan->wait_behind = 0;
		if (scan->refused)
			scan->wait_behind = reciprocal_scale(get_random_u32(), scan->wanted);
		scan->refused = false;
		scan->wanted = 0;
	}
	if (pass != scan->pass || mm != scan->missed_mm)
		scan->missed = 0;
	scan->pass = pass;
	scan->missed_mm = mm;
	scan->wants = false;
	scan->waited = 0;
}

/**
 * mmlock_nap() - wait a moment for another lock than an mmap lock
 * @scan: the scanning context
 * @us: for how long, in microseconds; at most twice that
 *
 * In kksmd that is a wait like those for mmap locks.
 *
 * Context: Process. Sleeps.
 * Return: false if it may not wait now.
 */
bool mmlock_nap(struct ksmdev_scan *scan, unsigned int us)
{
	u64 begin = ktime_get_ns();

	if (scan->waiter && !may_wait(scan))
		return false;
	usleep_range(us, 2 * us);
	if (scan->waiter)
		note_wait(scan, begin);
	return true;
}

/**
 * mmlock_get() - take the mmap lock of a process for reading, if that is possible soon
 * @scan: the scanning context
 * @mm: the process; its users are held
 * @since: where the time is noted, for hold_is_long() and mmlock_put()
 *
 * Context: Process, no mmap lock held. In kksmd, sleeps for some ten milliseconds at most.
 * Return: true if it was taken.
 */
bool mmlock_get(struct ksmdev_scan *scan, struct mm_struct *mm, u64 *since)
{
	if (!mmap_read_trylock(mm) && !wait_for(scan, mm)) {
		if (scan->tour)
			WRITE_ONCE(scan->tour->incomplete, true);
		return false;
	}
	*since = hold_begin(mm);
	return true;
}

/**
 * mmlock_put() - release what mmlock_get() took
 * @mm: the process
 * @addr: an address in the page table in which most was done
 * @since: from mmlock_get()
 *
 * Context: Any.
 */
void mmlock_put(struct mm_struct *mm, unsigned long addr, u64 since)
{
	mmap_read_unlock(mm);
	hold_end_in(mm, addr, since);
}
