// SPDX-License-Identifier: GPL-2.0-only
/*
 * sweep.c - going over the shared pages: how many are there, and what is no more
 *
 * Nobody tells when a page that is shared loses a mapping, or the last one: fork, exit and
 * copy-on-write are the kernel's. So all entries are gone over now and then, by a work item
 * that does a little at a time; those whose page is gone are dropped, and what the others say is
 * added up. The sums of the last round, and what is registered, are what statistics tell: to
 * read them costs nothing, and makes nobody wait.
 *
 * A round is begun when another one has been asked for and the last one is as long ago as twenty of
 * it take; and without being asked when a second, and a hundred times as long, are over. What
 * it takes is processor time, and to drop an entry is not counted: that is done once.
 */
#include <linux/ktime.h>
#include <linux/mutex.h>
#include <linux/workqueue.h>

#include "../include/compat.h"
#include "../include/engine.h"
#include "../include/entry.h"
#include "../include/hash.h"
#include "../include/index.h"
#include "../include/mm.h"
#include "../include/shared.h"
#include "../include/sweep.h"

/* What one run of the work item, and a caller who cannot wait for it, goes over. */
#define RUN_BLOCKS	64
#define NOW_BLOCKS	4

/* Parts of the time that rounds take: when they were asked for, and when not. */
#define ASKED_PART	20
#define IDLE_PART	100
#define ASKED_MIN_NS	(2 * NSEC_PER_MSEC)
#define IDLE_MIN_NS	NSEC_PER_SEC

/**
 * struct sums - what a round has found
 * @shared: pages that are mapped
 * @sharing: mappings of them beyond the first of each
 * @singles: pages with one mapping
 * @kept: entries
 * @dropped: entries that were dropped
 */
struct sums {
	unsigned long shared, sharing, singles, kept, dropped;
};

/* The round that goes on, guarded by sweep_mutex; @begun: 0 between two rounds. */
static DEFINE_MUTEX(sweep_mutex);
static struct sums now;
static unsigned long next_block;
static ktime_t begun;
static u64 worked;

/* The last one, and what is told of all since the last that the work item did. */
static DEFINE_SPINLOCK(last_lock);
static struct sums last;
static ktime_t last_begun;
static u64 last_worked, told_worked;
static bool asked;
static struct told told;
static ktime_t told_begun, told_at;

static void sweep_work(struct work_struct *work);
static DECLARE_DELAYED_WORK(sweep_later, sweep_work);

static void add_one(struct shared_entry *entry, void *data)
{
	struct sums *sums = data;
	unsigned int mapcount;

	if (shared_drop_stale(entry)) {
		sums->dropped++;
		return;
	}
	sums->kept++;
	mapcount = ksmdev_kpage_mapcount(READ_ONCE(entry->page));
	if (!mapcount)
		return;
	sums->shared++;
	sums->sharing += mapcount - 1;
	sums->singles += mapcount == 1;
}

/**
 * struct work_time - since when something is worked at
 * @clock: by the clock
 * @cpu: by what the thread has run so far, which may be behind by a tick
 */
struct work_time {
	ktime_t clock;
	u64 cpu;
};

static struct work_time work_begin(void)
{
	return (struct work_time) { ktime_get(), current->se.sum_exec_runtime };
}

/* What of the time since then was worked and not waited. */
static u64 work_end(struct work_time begin)
{
	return min_t(u64, ktime_sub(ktime_get(), begin.clock),
		     current->se.sum_exec_runtime - begin.cpu + TICK_NSEC);
}

static void publish(void)
{
	spin_lock(&last_lock);
	last = now;
	last_begun = begun;
	last_worked = div64_u64(worked * (now.kept + 1), now.kept + now.dropped + 1);
	spin_unlock(&last_lock);
	begun = 0;
}

/* Go over some blocks. Return: true if the round has ended. */
static bool sweep(unsigned int nr)
{
	struct work_time start = work_begin();
	bool more = true;

	lockdep_assert_held(&sweep_mutex);
	if (!begun) {
		memset(&now, 0, sizeof(now));
		next_block = 0;
		worked = 0;
		begun = start.clock;
		/* Whoever asks from now on asks for the next one. */
		WRITE_ONCE(asked, false);
	}
	while (nr-- && more)
		more = pool_visit(&next_block, add_one, &now);
	worked += work_end(start);
	if (!more)
		publish();
	return !more;
}

/* When the next round may begin. */
static ktime_t due(void)
{
	u64 pause;
	ktime_t at;

	spin_lock(&last_lock);
	pause = last_worked + told_worked;
	pause = asked ? max_t(u64, ASKED_MIN_NS, pause * ASKED_PART) :
			max_t(u64, IDLE_MIN_NS, pause * IDLE_PART);
	/* Not since a scan ended a round by itself: who reads is told by the work item alone. */
	at = ktime_add_ns(told_at, pause);
	spin_unlock(&last_lock);
	return at;
}

static void sweep_at(ktime_t at)
{
	s64 ns = ktime_to_ns(ktime_sub(at, ktime_get()));

	mod_delayed_work(system_dfl_wq, &sweep_later, ns > 0 ? nsecs_to_jiffies(ns) + 1 : 0);
}

/* A round has ended: tell of it, and of what is registered. */
static void tell(void)
{
	struct told new = { };
	struct work_time start = work_begin();

	regions_bury_dead();
	regions_settle();
	regions_totals(&new.regions);
	new.kernel_pages = shared_count();
	new.metadata = new.regions.metadata + index_bytes() + shared_table_bytes() +
		       pool_blocks() * PAGE_SIZE + samples_bytes();
	spin_lock(&last_lock);
	new.shared = last.shared;
	new.sharing = last.sharing;
	told = new;
	told_begun = last_begun;
	told_at = ktime_get();
	/* Where much is registered, this is what takes long. */
	told_worked = work_end(start);
	spin_unlock(&last_lock);
}

static void sweep_work(struct work_struct *work)
{
	bool ended = false;

	/* A scan may have it, of a task that does not get to run. */
	if (mutex_trylock(&sweep_mutex)) {
		ended = sweep(RUN_BLOCKS);
		mutex_unlock(&sweep_mutex);
	}
	if (!ended) {
		sweep_at(ktime_add_ms(ktime_get(), 1));
		return;
	}
	tell();
	if (pool_used() || !regions_empty() || READ_ONCE(asked))
		sweep_at(due());
}

/* Have a round begin soon, for somebody who reads statistics. */
static void sweep_ask(void)
{
	spin_lock(&last_lock);
	asked = true;
	spin_unlock(&last_lock);
	/* One that goes on is due: who has begun it may not have been the work item. */
	sweep_at(due());
}

/* Drop some entries whose page is gone. Takes a tenth of a millisecond or so; waits for nobody. */
static void sweep_some(void)
{
	if (!mutex_trylock(&sweep_mutex))
		return;
	/* The end of a round may be in the first of these blocks. */
	if (sweep(NOW_BLOCKS))
		sweep(NOW_BLOCKS);
	mutex_unlock(&sweep_mutex);
}

/**
 * sweep_room() - may there be more shared pages
 *
 * Where a piece of work may come to the bound it is time to find out about some of the pages that
 * are gone.
 *
 * Context: Process; for a hint, once a piece of work.
 * Return: false if the bound is reached.
 */
bool sweep_room(void)
{
	if (shared_count() + CHUNK_SLOTS <= READ_ONCE(ksmdev_max_kernel_pages))
		return true;
	sweep_some();
	return shared_count() < READ_ONCE(ksmdev_max_kernel_pages);
}

/* When mappings were last looked for that nobody tells of. */
static unsigned long lost_looked = INITIAL_JIFFIES;

/* Nobody tells when a process forks, exits or writes outside what is registered. */
#define LOST_INTERVAL	(10 * HZ)

/**
 * sweep_has_singles() - did the last round find shared pages that have one mapping
 *
 * Context: Any.
 * Return: true if there were some.
 */
bool sweep_has_singles(void)
{
	return READ_ONCE(last.singles);
}

/*
 * Is it time to look for shared pages that have one mapping? Where there are few shared pages
 * they are gone over at once; where there are many, what the last round has found is the answer.
 */
static bool finds_singles(bool lost)
{
	/* When mappings were lost that no round has told of yet. */
	static ktime_t lost_at;
	bool singles;

	if (lost || time_after(jiffies, READ_ONCE(lost_looked) + LOST_INTERVAL)) {
		WRITE_ONCE(lost_looked, jiffies);
		spin_lock(&last_lock);
		lost_at = ktime_get();
		spin_unlock(&last_lock);
	}
	if (!READ_ONCE(lost_at))
		return false;
	if (pool_blocks() <= NOW_BLOCKS && mutex_trylock(&sweep_mutex)) {
		begun = 0;
		sweep(NOW_BLOCKS + 1);
		mutex_unlock(&sweep_mutex);
	} else {
		sweep_ask();
	}
	spin_lock(&last_lock);
	singles = last.singles;
	if (last_begun >= lost_at)
		lost_at = 0;
	spin_unlock(&last_lock);
	return singles;
}

/*
 * To find out who pays for pages without mapping them, so many passes in a row look at all shared
 * pages; after that, so many do not, and for a time: it takes longer than a pass
 * over what has not changed.
 */
#define PAYER_PASSES	3
#define PAYER_PAUSE	16
#define PAYER_INTERVAL	(10 * HZ)

/* Is it time to look for pages whose payer has left? */
static bool finds_payers(bool lost)
{
	static unsigned int looks, passes;
	static unsigned long looked = INITIAL_JIFFIES;
	static bool left;
	bool look;

	spin_lock(&last_lock);
	left |= lost;
	passes++;
	if (looks)
		looks--;
	else if (left && passes > PAYER_PAUSE && time_after(jiffies, looked + PAYER_INTERVAL))
		looks = PAYER_PASSES;
	look = looks;
	if (look) {
		left = lost;
		passes = 0;
		looked = jiffies;
	}
	spin_unlock(&last_lock);
	return look;
}

/**
 * sweep_wants_looks() - should the next pass over all that is registered look at all shared pages
 *
 * Context: Process, at the end of a pass. Waits for nobody.
 * Return: true if some may have one mapping, or a payer that does not map them, since mappings were
 * lost or it is long ago.
 */
bool sweep_wants_looks(void)
{
	bool lost = shared_lost_mappers(), look = finds_singles(lost);

	return finds_payers(lost) || look;
}

/**
 * sweep_tell() - what is known of all that is registered and shared
 * @copy: filled in
 *
 * Context: Any. Takes no time, and has the next round begin soon.
 */
void sweep_tell(struct told *copy)
{
	spin_lock(&last_lock);
	*copy = told;
	copy->age_ms = ktime_ms_delta(ktime_get(), told_begun);
	spin_unlock(&last_lock);
	sweep_ask();
}

/**
 * ksmdev_sweep_exit() - no more rounds
 *
 * A round also drops what was registered by processes that are gone, so this comes before the
 * end of what that hands work to.
 *
 * Context: Module exit; nobody scans or asks any more. May sleep.
 */
void ksmdev_sweep_exit(void)
{
	cancel_delayed_work_sync(&sweep_later);
}
