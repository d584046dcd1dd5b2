// SPDX-License-Identifier: GPL-2.0-only
/*
 * hold.c - how long locks that others wait for are held: measured and bounded
 *
 * Whoever scans holds two locks that the scanned process needs: its mmap lock, for mmap()
 * and its like, and a page table's lock, for each page fault. One hold is short. But little
 * memory is scanned tens of thousands of times a second, and a lock that is taken again as
 * soon as it is free is hardly ever free: where locks are not fair (spinlocks in virtual machines
 * without paravirtual ones) a page fault may wait for seconds.
 *
 * So each lock rests: a hold of time t puts off the time at which the lock may be
 * taken by a scan again by TABLE_PART or MM_PART times t, whoever scans. A burst is let pass,
 * so that a sleep is paid for many short holds and not for each of them. The times are kept in
 * hashed arrays; where two locks share an entry both rest for the other, too. Neighbouring
 * page tables never do.
 *
 * A scan waits before its visit of a page table, with nothing held. What it does to others'
 * page tables meanwhile (candidates) is noted and makes those rest later.
 *
 * The mmap lock is fair: a writer that waits is next, and scans try to get it, or queue. Holds
 * of several scans at a time count once, or many threads could not share one large process.
 */
#include <linux/hash.h>
#include <linux/hrtimer.h>
#include <linux/ktime.h>
#include <linux/mm_types.h>
#include <linux/sched/signal.h>

#include "../include/hold.h"
#include "../include/region.h"

/* One part of so many is what scans hold a page table's lock, or an mmap lock, at most. */
#define TABLE_PART	10
#define MM_PART		2

/* How far a lock's rest may reach ahead before anybody waits for it. */
#define TABLE_AHEAD_NS	(500 * NSEC_PER_USEC)
#define MM_AHEAD_NS	NSEC_PER_MSEC

/*
 * The longest rest. A hold takes a tenth of a millisecond; who held a lock for more than one was
 * scheduled out, or his virtual processor was, which is not his doing, and no reason to scan
 * a tenth as fast where everything is slow.
 */
#define REST_MAX_NS	(10 * NSEC_PER_MSEC)

/* For how long a visit keeps others out, unless it ends before. */
#define VISIT_NS	(5 * NSEC_PER_MSEC)

/* Sleeps: the longest, after which is asked whether to end, and how exact. */
#define SLEEP_MAX_NS	(10 * NSEC_PER_MSEC)
#define SLEEP_SLACK_NS	(50 * NSEC_PER_USEC)

#define TABLE_BITS	12
#define MM_BITS		10

/**
 * struct table_rest - for the page tables that share an entry
 * @rested: when all holds so far are made up for
 * @visited: until when somebody's visit is expected to last; 0: nobody is there
 */
struct table_rest {
	atomic64_t rested;
	atomic64_t visited;
};

/**
 * struct mm_rest - for the processes that share an entry
 * @rested: when all holds so far are made up for
 * @holders: how many scans hold the mmap lock now
 * @held: for how long it was held so far, in ns
 */
struct mm_rest {
	atomic64_t rested;
	atomic_t holders;
	atomic64_t held;
};

static struct table_rest table_rests[1 << TABLE_BITS];
static struct mm_rest mm_rests[1 << MM_BITS];

/* The longest time that an mmap lock was held. */
unsigned long ksmdev_longest_hold_us;

static struct table_rest *table_rest(struct mm_struct *mm, unsigned long addr)
{
	unsigned long nr = hash_ptr(mm, TABLE_BITS) + (addr >> CHUNK_SHIFT);

	return &table_rests[nr % ARRAY_SIZE(table_rests)];
}

static struct mm_rest *mm_rest(struct mm_struct *mm)
{
	return &mm_rests[hash_ptr(mm, MM_BITS)];
}

static void put_off(atomic64_t *rested, u64 since, u64 by)
{
	s64 old = atomic64_read(rested);
	u64 to;

	do {
		to = min(max_t(u64, old, since) + by, ktime_get_ns() + REST_MAX_NS);
	} while (!atomic64_try_cmpxchg(rested, &old, to));
}

/**
 * hold_begin() - an mmap lock was taken
 * @mm: whose
 *
 * Context: Any.
 * Return: the time, for hold_end().
 */
u64 hold_begin(struct mm_struct *mm)
{
	atomic_inc(&mm_rest(mm)->holders);
	return ktime_get_ns();
}

/**
 * hold_is_long() - is it time to let the lock go for a moment
 * @since: from hold_begin()
 *
 * Context: Any.
 * Return: true if it was held for HOLD_MAX_NS.
 */
bool hold_is_long(u64 since)
{
	return ktime_get_ns() - since >= HOLD_MAX_NS;
}

static u64 end_mm(struct mm_struct *mm, u64 since)
{
	struct mm_rest *rest = mm_rest(mm);
	u64 share, ns = ktime_get_ns() - since;
	unsigned long us = div_u64(ns, NSEC_PER_USEC);

	/* A time that is lost to another one at the same moment is no matter. */
	if (us > READ_ONCE(ksmdev_longest_hold_us))
		WRITE_ONCE(ksmdev_longest_hold_us, us);
	/* What several hold at a time is held once. */
	share = div_u64(ns, atomic_fetch_dec(&rest->holders));
	atomic64_add(share, &rest->held);
	put_off(&rest->rested, since, share * MM_PART);
	return ns;
}

/**
 * hold_total() - for how long scans have held mmap locks
 *
 * Context: Any.
 * Return: the sum over all processes, in ns; what several held at a time counts once.
 */
u64 hold_total(void)
{
	u64 total = 0;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(mm_rests); i++)
		total += atomic64_read(&mm_rests[i].held);
	return total;
}

/**
 * hold_end() - an mmap lock was released, under which no page table's lock was held for long
 * @mm: whose
 * @since: from hold_begin()
 *
 * Context: Any.
 */
void hold_end(struct mm_struct *mm, u64 since)
{
	end_mm(mm, since);
}

/**
 * hold_table() - note how long a page table's lock was held
 * @mm: whose
 * @addr: an address that it maps
 * @ns: how long; more is no harm
 *
 * Context: Any.
 */
void hold_table(struct mm_struct *mm, unsigned long addr, u64 ns)
{
	put_off(&table_rest(mm, addr)->rested, ktime_get_ns() - ns, ns * TABLE_PART);
}

/**
 * hold_end_in() - an mmap lock was released, under which most was done in a page table
 * @mm: whose
 * @addr: an address that the page table maps
 * @since: from hold_begin()
 *
 * Context: Any.
 */
void hold_end_in(struct mm_struct *mm, unsigned long addr, u64 since)
{
	put_off(&table_rest(mm, addr)->rested, since, end_mm(mm, since) * TABLE_PART);
}

/**
 * hold_claim() - begin a visit of a page table, if it may be visited now
 * @mm: whose
 * @addr: an address that it maps
 *
 * Context: Any.
 * Return: 0, and hold_leave() must follow; or when to ask again.
 */
u64 hold_claim(struct mm_struct *mm, unsigned long addr)
{
	struct table_rest *table = table_rest(mm, addr);
	u64 now = ktime_get_ns(), rested = atomic64_read(&mm_rest(mm)->rested);
	s64 visited = atomic64_read(&table->visited);

	if (rested > now + MM_AHEAD_NS)
		return rested;
	rested = atomic64_read(&table->rested);
	if (rested > now + TABLE_AHEAD_NS)
		return rested;
	if ((u64)visited > now)
		return min_t(u64, visited, now + TABLE_AHEAD_NS);
	if (!atomic64_try_cmpxchg(&table->visited, &visited, now + VISIT_NS))
		return now + TABLE_AHEAD_NS;
	return 0;
}

/**
 * hold_leave() - end a visit
 * @mm: as in hold_claim()
 * @addr: as in hold_claim()
 *
 * Context: Any.
 */
void hold_leave(struct mm_struct *mm, unsigned long addr)
{
	atomic64_set(&table_rest(mm, addr)->visited, 0);
}

/**
 * hold_wait() - wait until a lock has rested
 * @until: when that is
 * @interrupted: asked whether to end early, now and then and when a signal comes
 *
 * Context: Process, no lock held. Sleeps.
 * Return: false if @interrupted said so.
 */
bool hold_wait(u64 until, bool (*interrupted)(void))
{
	u64 now;

	while (!interrupted()) {
		ktime_t end;

		now = ktime_get_ns();
		if (now >= until)
			return true;
		end = ns_to_ktime(min_t(u64, until, now + SLEEP_MAX_NS));
		/* With a signal that does not interrupt us, the lighter sleep would be none. */
		set_current_state(signal_pending(current) ? TASK_KILLABLE : TASK_INTERRUPTIBLE);
		schedule_hrtimeout_range(&end, SLEEP_SLACK_NS, HRTIMER_MODE_ABS);
	}
	return false;
}

/**
 * hold_visit() - begin a visit of a page table as soon as it may be visited
 * @mm: whose
 * @addr: an address that it maps
 * @interrupted: as in hold_wait()
 *
 * Context: Process, no lock held. Sleeps.
 * Return: true, and hold_leave() must follow; false if @interrupted said so.
 */
bool hold_visit(struct mm_struct *mm, unsigned long addr, bool (*interrupted)(void))
{
	u64 until;

	while ((until = hold_claim(mm, addr)))
		if (!hold_wait(until, interrupted))
			return false;
	return true;
}
