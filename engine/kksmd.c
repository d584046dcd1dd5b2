// SPDX-License-Identifier: GPL-2.0-only
/*
 * kksmd.c - the kernel threads, their settings, and how fast they go
 *
 * There are as many threads as the settings say, from load to unload, each with a
 * scanning context of its own. They sleep unless the run flag is set and something
 * is registered. New settings take effect at once: they wake the threads from their
 * sleep and make them return from a scan that they are in.
 *
 * The pace is one of two. Fixed: a thread visits its part of pages_to_scan, sleeps,
 * and so on. With a budget of CPU time, a thread works for a slice of time, then
 * sleeps until what that took is no more than its part of the budget. After a pass
 * that found little changed all of them pause, for twice as long each time, but not
 * for long if it left something that it could not get a lock for; a registration ends
 * the pause, and a pass that found changes makes the next one short.
 */
#define pr_fmt(fmt) "ksmdev: " fmt

#include <linux/freezer.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/mutex.h>
#include <linux/wait.h>

#include "../include/engine.h"
#include "../include/region.h"
#include "../include/scan.h"

/* As ksmd: behind whatever the machine is for. */
#define KKSMD_NICE 5

/* How long a thread with a budget works at a time. */
#define SLICE_NS (3 * NSEC_PER_MSEC)

/* The pause between two passes, with a budget. */
#define MIN_PAUSE_NS (20 * NSEC_PER_MSEC)
#define MAX_PAUSE_NS (20ULL * NSEC_PER_SEC)
/*
 * The longest, if what there was to be done could not be done at once: this, or so many times what
 * the pass took, of CPU time.
 */
#define LEFT_PAUSE_NS (50 * NSEC_PER_MSEC)
#define LEFT_PART 8

/* A pass that had to read no more than one page in so many found little changed. */
#define LITTLE 64

/**
 * struct settings - all that users can set
 * @info: KSM_START_STOP_KTHREAD
 * @cpu_percent: the budget of all threads together; 0: fixed pace, as in @info
 * @threads: how many threads work
 */
struct settings {
	struct ksm_kthread_info info;
	u32 cpu_percent;
	u32 threads;
};

/**
 * struct worker - one of the threads; all of it is the thread's own
 * @task: the thread
 * @scan: its scanning context
 * @nr: its number; 0 is there always
 * @seen: the number of changes to the settings that it has seen
 * @cpu_used: CPU time that it had used when it last looked
 * @due: when that will be within its part of the budget
 * @slice_end: when to stop working for now
 * @pass: the pass that it works in
 */
struct worker {
	struct task_struct *task;
	struct ksmdev_scan *scan;
	unsigned int nr;
	unsigned int seen;
	u64 cpu_used;
	ktime_t due;
	ktime_t slice_end;
	unsigned long pass;
};

/* Guards which of the workers exist, and serializes changes of the settings. */
static DEFINE_MUTEX(control_lock);
static struct worker workers[KSM_MAX_THREADS];

static DECLARE_WAIT_QUEUE_HEAD(kksmd_wait);

/* Guarded by kksmd_wait.lock; @changes counts how often they were set. */
static struct settings settings;
static unsigned int changes;

/*
 * What is known of passes, with a budget. Guarded by kksmd_wait.lock.
 * @news: registrations, and changes of the settings, so far
 * @last_news: as it was at the end of the last pass
 * @passes, @scanned, @skipped: the same
 * @worked: CPU time that was used since then, in ns
 * @pause: how long the last pause was to be
 * @resume: when it ends
 */
static struct {
	unsigned int news, last_news;
	unsigned long passes;
	long scanned, skipped;
	u64 worked;
	u64 pause;
	ktime_t resume;
} pacing;

/* Anything that a thread must attend to before it scans or sleeps on. */
static bool kksmd_interrupted(void)
{
	struct worker *worker = kthread_data(current);

	return READ_ONCE(changes) != worker->seen || kthread_should_stop() ||
	       freezing(current);
}

static bool slice_over(void)
{
	struct worker *worker = kthread_data(current);

	return kksmd_interrupted() || tour_passes(&tour_all) != worker->pass ||
	       ktime_after(ktime_get(), worker->slice_end);
}

static struct settings read_settings(struct worker *worker)
{
	struct settings set;
	bool changed;

	spin_lock(&kksmd_wait.lock);
	set = settings;
	changed = worker->seen != changes;
	worker->seen = changes;
	spin_unlock(&kksmd_wait.lock);
	if (changed) {
		/* Nothing is owed to another budget. */
		worker->due = 0;
		worker->cpu_used = current->se.sum_exec_runtime;
	}
	return set;
}

/* A thread's part of a number that is meant for all. */
static u32 part(const struct worker *worker, const struct settings *set, u32 number)
{
	return number / set->threads + (worker->nr < number % set->threads);
}

static bool may_work(const struct worker *worker, const struct settings *set)
{
	const struct ksm_kthread_info *info = &set->info;

	if (!(info->flags & ksm_control_flags_run) || worker->nr >= set->threads)
		return false;
	if (set->cpu_percent)
		return true;
	/* More threads than pages: some get none. */
	return part(worker, set, info->pages_to_scan) &&
	       (!info->max_pages_to_merge || part(worker, set, info->max_pages_to_merge));
}

static void fixed_round(struct worker *worker, const struct settings *set)
{
	ktime_t sleep = ns_to_ktime((u64)set->info.sleep * NSEC_PER_USEC);

	ksmdev_scan_run(worker->scan, part(worker, set, set->info.pages_to_scan),
			part(worker, set, set->info.max_pages_to_merge), kksmd_interrupted);
	if (sleep)
		wait_event_interruptible_hrtimeout(kksmd_wait, kksmd_interrupted(), sleep);
}

/*
 * Sleep until *@until, which others may bring forward and then wake us; or put off, by a pass
 * that they have ended meanwhile.
 */
static void sleep_until(const ktime_t *until)
{
	while (!kksmd_interrupted()) {
		ktime_t now = ktime_get(), end = READ_ONCE(*until);

		if (!ktime_before(now, end))
			break;
		wait_event_interruptible_hrtimeout(kksmd_wait, kksmd_interrupted() ||
						   !ktime_before(ktime_get(), READ_ONCE(*until)),
						   ktime_sub(end, now));
	}
}

/*
 * After a slice that began at @begin: until when must the thread sleep so that it
 * used no more than its part of the budget? What it did not use before is lost.
 */
static void settle(struct worker *worker, const struct settings *set, ktime_t begin)
{
	/* Behind by a tick at most, which the next slice makes up for. */
	u64 used = current->se.sum_exec_runtime - worker->cpu_used;
	u64 takes = div_u64(used * 100 * set->threads, set->cpu_percent);

	spin_lock(&kksmd_wait.lock);
	pacing.worked += used;
	spin_unlock(&kksmd_wait.lock);
	worker->cpu_used += used;
	worker->due = ktime_add_ns(max(worker->due, begin), takes);
}

/* A pass is over: how long to pause? The first thread that comes here says it. */
static void pass_ended(void)
{
	unsigned long passes;
	long all_scanned, all_skipped, scanned, skipped;
	u64 longest = MAX_PAUSE_NS;

	spin_lock(&kksmd_wait.lock);
	passes = tour_passes(&tour_all);
	if (pacing.passes == passes)
		goto out;
	/* Not what users have scanned of their own: that says nothing of what others changed. */
	all_scanned = atomic_long_read(&tour_all.scanned);
	all_skipped = atomic_long_read(&tour_all.skipped);
	scanned = all_scanned - pacing.scanned;
	skipped = all_skipped - pacing.skipped;
	if (xchg(&tour_all.incomplete, false))
		longest = clamp_t(u64, pacing.worked * LEFT_PART, LEFT_PAUSE_NS, MAX_PAUSE_NS);
	pacing.worked = 0;
	/* What was registered meanwhile may not have been visited yet. */
	if (pacing.news != pacing.last_news || scanned - skipped > scanned / LITTLE)
		pacing.pause = MIN_PAUSE_NS;
	else
		pacing.pause = min(pacing.pause * 2, longest);
	WRITE_ONCE(pacing.resume, ktime_add_ns(ktime_get(), pacing.pause));
	pacing.last_news = pacing.news;
	pacing.passes = passes;
	pacing.scanned = all_scanned;
	pacing.skipped = all_skipped;
out:
	spin_unlock(&kksmd_wait.lock);
}

static void budget_round(struct worker *worker, const struct settings *set)
{
	ktime_t begin;

	/* In this order: the other threads may end the pass while this one sleeps. */
	sleep_until(&worker->due);
	sleep_until(&pacing.resume);
	if (kksmd_interrupted())
		return;
	begin = ktime_get();
	worker->slice_end = ktime_add_ns(begin, SLICE_NS);
	worker->pass = tour_passes(&tour_all);
	ksmdev_scan_run(worker->scan, ULONG_MAX, 0, slice_over);
	settle(worker, set, begin);
	if (tour_passes(&tour_all) != worker->pass)
		pass_ended();
}

static int kksmd_run(void *data)
{
	struct worker *worker = data;

	set_freezable();
	set_user_nice(current, KKSMD_NICE);
	mmlock_wait(worker->scan, kksmd_interrupted);

	while (!kthread_should_stop()) {
		struct settings set = read_settings(worker);
		bool work = may_work(worker, &set);

		try_to_freeze();
		if (!work || regions_empty()) {
			/* Nobody sets a time limit to doing nothing. */
			wait_event_interruptible(kksmd_wait, kksmd_interrupted() ||
						 (work && !regions_empty()));
			continue;
		}
		if (set.cpu_percent)
			budget_round(worker, &set);
		else
			fixed_round(worker, &set);
		cond_resched();
	}
	return 0;
}

static int worker_start(unsigned int nr)
{
	struct worker *worker = &workers[nr];

	*worker = (struct worker) { .nr = nr };
	worker->scan = ksmdev_scan_create(true);
	if (!worker->scan)
		return -ENOMEM;
	if (nr)
		worker->task = kthread_run(kksmd_run, worker, "kksmd/%u", nr);
	else
		worker->task = kthread_run(kksmd_run, worker, "kksmd");
	if (IS_ERR(worker->task)) {
		ksmdev_scan_destroy(worker->scan);
		return PTR_ERR(worker->task);
	}
	return 0;
}

/* End the workers from number @from on, of @nr that there are. */
static void workers_end(unsigned int from, unsigned int nr)
{
	while (nr-- > from) {
		kthread_stop(workers[nr].task);
		ksmdev_scan_destroy(workers[nr].scan);
	}
}

/* Add workers to the @nr that there are until there are @to; all of them or none. */
static int workers_start(unsigned int nr, unsigned int to)
{
	unsigned int i;
	int err;

	for (i = nr; i < to; i++) {
		err = worker_start(i);
		if (err) {
			workers_end(nr, i);
			return err;
		}
	}
	return 0;
}

static void change_settings(const struct settings *set)
{
	lockdep_assert_held(&control_lock);
	spin_lock(&kksmd_wait.lock);
	settings = *set;
	WRITE_ONCE(changes, changes + 1);
	pacing.news++;
	WRITE_ONCE(pacing.resume, 0);
	spin_unlock(&kksmd_wait.lock);
	wake_up(&kksmd_wait);
}

/* Would threads that run know how much to do? */
static bool settings_valid(const struct settings *set)
{
	if (set->cpu_percent > 100 * set->threads)
		return false;
	return set->cpu_percent || set->info.pages_to_scan ||
	       !(set->info.flags & ksm_control_flags_run);
}

/**
 * ksmdev_kksmd_start() - let the threads run, with these settings
 * @info: the settings; the flags were checked by the caller
 *
 * Context: Process.
 * Return: 0; -EINVAL if the pace is fixed and there are no pages to scan.
 */
int ksmdev_kksmd_start(const struct ksm_kthread_info *info)
{
	struct settings set;
	int err = -EINVAL;

	mutex_lock(&control_lock);
	set = settings;
	set.info = *info;
	if (settings_valid(&set)) {
		change_settings(&set);
		err = 0;
	}
	mutex_unlock(&control_lock);
	return err;
}

/**
 * ksmdev_kksmd_stop() - let the threads stop; the other settings stay
 *
 * Context: Process. Waits until all of them have stopped.
 */
void ksmdev_kksmd_stop(void)
{
	struct settings set;
	unsigned int i;

	mutex_lock(&control_lock);
	set = settings;
	set.info.flags &= ~ksm_control_flags_run;
	change_settings(&set);
	/* One that has not begun yet will see the change before it does anything. */
	for (i = 0; i < set.threads; i++)
		ksmdev_scan_wait(workers[i].scan);
	mutex_unlock(&control_lock);
}

/**
 * ksmdev_kksmd_info() - read the settings of the fixed pace, and whether it runs
 * @info: filled in
 *
 * Context: Process.
 */
void ksmdev_kksmd_info(struct ksm_kthread_info *info)
{
	spin_lock(&kksmd_wait.lock);
	*info = settings.info;
	spin_unlock(&kksmd_wait.lock);
}

/**
 * ksmdev_kksmd_set_pace() - set the budget and the number of threads
 * @pace: both; size and flags were checked by the caller
 *
 * Context: Process. Waits for threads that are no longer wanted.
 * Return: 0; -EINVAL if there are too many threads, or more per cent than they can
 * use, or if they run and a fixed pace would have no pages to scan; -ENOMEM, or
 * -EINTR on a fatal signal, if a thread could not be created, and nothing changed.
 */
int ksmdev_kksmd_set_pace(const struct ksm_pace *pace)
{
	unsigned int threads;
	struct settings set;
	int err = -EINVAL;

	mutex_lock(&control_lock);
	set = settings;
	threads = set.threads;
	if (pace->threads)
		set.threads = pace->threads;
	set.cpu_percent = pace->cpu_percent;
	if (set.threads > KSM_MAX_THREADS || !settings_valid(&set))
		goto out;
	err = workers_start(threads, set.threads);
	if (err)
		goto out;
	change_settings(&set);
	workers_end(set.threads, threads);
out:
	mutex_unlock(&control_lock);
	return err;
}

/**
 * ksmdev_kksmd_pace() - read the budget and the number of threads
 * @pace: both are set in it
 *
 * Context: Process.
 */
void ksmdev_kksmd_pace(struct ksm_pace *pace)
{
	spin_lock(&kksmd_wait.lock);
	pace->cpu_percent = settings.cpu_percent;
	pace->threads = settings.threads;
	spin_unlock(&kksmd_wait.lock);
}

/**
 * ksmdev_kksmd_wake() - tell the threads that something was registered
 *
 * Context: Process.
 */
void ksmdev_kksmd_wake(void)
{
	spin_lock(&kksmd_wait.lock);
	pacing.news++;
	WRITE_ONCE(pacing.resume, 0);
	spin_unlock(&kksmd_wait.lock);
	wake_up(&kksmd_wait);
}

/**
 * ksmdev_kksmd_init() - create the first thread, stopped
 *
 * Context: Module init.
 * Return: 0 or -ENOMEM or what kthread_run() says.
 */
int ksmdev_kksmd_init(void)
{
	settings.threads = 1;
	return workers_start(0, settings.threads);
}

/**
 * ksmdev_kksmd_exit() - end the threads
 *
 * Context: Module exit. Waits for them.
 */
void ksmdev_kksmd_exit(void)
{
	workers_end(0, settings.threads);
}
