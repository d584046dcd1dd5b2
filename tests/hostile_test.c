// SPDX-License-Identifier: GPL-2.0-only
/*
 * hostile_test.c - a tenant that does its worst, and what its neighbour notices of it
 *
 * The victim, a user of its own in a group of its own, shares 128 MiB between two processes, which
 * write, map and unmap meanwhile. How long it takes until that is shared, how long page
 * faults and mmap() take, and what is charged to its group are measured in phases: in
 * every second one the neighbour is hostile (hostile_load.h), in the others it does the same
 * without the device. Both have one of the CPUs at the most.
 *
 * What is asserted are medians over all phases, as ratios to the control; of times only where it
 * goes on for a minute at least, as in make check-neighbours, and told in any case. Of page faults
 * and mmap(), which are many, it is also that 99 of 100 take no longer than the slowest of the
 * control. A bound that is closer would not hold: what makes the slow ones slow is a CPU that is in
 * other hands for a moment, and how many those are differs ten times from run to run. How long
 * sharing takes is measured by how long a piece of work takes at that time, in a thread that
 * nothing else in this machine keeps from running: so it does not matter what an emulated
 * machine's host does besides. The environment has KSM_HOSTILE_SECONDS, how long it is hostile in
 * all.
 */
#include <sched.h>
#include <sys/prctl.h>

#include "hostile_load.h"
#include "ksm_harness.h"

#define VICTIM		"ksm-victim"
#define VICTIM_UID	1000

#define MIB		(1UL << 20)
/* Of each of the victim's processes: what is written all the time. */
#define HOT_PAGES	64UL
/* Of the shared ones, how many are written when they are. */
#define WRITTEN_PAGES	2048UL

/* Of kksmd, in per cent of a CPU. */
#define BUDGET		20

/* The victim may take so much longer for a hostile neighbour, and be charged so much more. */
#define WORSE		1.25
/* So many phases more where it seems so. */
#define MORE		3
/* For how many seconds it must be hostile to be judged by times. */
#define JUDGED		60

/* Of each of the victim's processes: what is shared. */
static size_t shared_pages;

enum kind { CONTROL, HOSTILITY, KINDS };
enum figure { SHARING, TOUCH, FIRST_WRITE, MAPPING, CHARGED, SECONDS, STOP, RETUNE, FIGURES };

static const struct {
	const char *name;
	const char *unit;
	double scale;
} figures[FIGURES] = {
	[SHARING]	= { "time to share, by work",	"",	1e-3 },
	[TOUCH]		= { "first touch",		"us",	1e6 },
	[FIRST_WRITE]	= { "write to shared page",	"us",	1e6 },
	[MAPPING]	= { "mmap and munmap",		"us",	1e6 },
	[CHARGED]	= { "charged",			"MiB",	1.0 / MIB },
	[SECONDS]	= { "time to share",		"s",	1 },
	[STOP]		= { "kksmd stops",		"ms",	1e3 },
	[RETUNE]	= { "kksmd is retuned",		"ms",	1e3 },
};

enum { MOST = 1 << 17 };

/* What was measured; when it is full, what comes last counts. */
struct samples {
	_Atomic size_t n;
	float value[MOST];
};

/**
 * struct shared - what the processes share
 * @samples: what was measured
 * @kind: of the phase
 * @over: the victim's processes shall return
 */
struct shared {
	struct samples samples[KINDS][FIGURES];
	enum kind kind;
	_Atomic bool over;
};

static struct shared *shared;

static void note(enum figure figure, double value)
{
	struct samples *s = &shared->samples[shared->kind][figure];

	s->value[s->n++ % MOST] = value;
}

static void *map_shared(size_t size)
{
	/* Populated: who touches it first would be charged. */
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (p == MAP_FAILED)
		ksm_die("no memory: %s", strerror(errno));
	return p;
}

/* ---- how fast the machine is ---- */

/**
 * struct yardstick - a piece of work, done now and then
 * @thread: who does it, before all others
 * @seconds: how long it took, in all
 * @times: how often it was done
 * @stop: it shall not be done any more
 */
static struct yardstick {
	pthread_t thread;
	_Atomic double seconds;
	_Atomic long times;
	_Atomic bool stop;
} yardstick;

static void *yardstick_main(void *arg)
{
	while (!yardstick.stop) {
		double begin = ksm_now();

		for (volatile int i = 0; i < 100000; i++)
			;
		yardstick.seconds = yardstick.seconds + ksm_now() - begin;
		yardstick.times++;
		usleep(10000);
	}
	return arg;
}

static void yardstick_begin(void)
{
	struct sched_param first = { .sched_priority = 1 };

	yardstick.stop = false;
	if (pthread_create(&yardstick.thread, NULL, yardstick_main, NULL) ||
	    pthread_setschedparam(yardstick.thread, SCHED_FIFO, &first))
		ksm_die("no thread that goes before all others: run the tests as root");
}

static void yardstick_end(void)
{
	yardstick.stop = true;
	pthread_join(yardstick.thread, NULL);
}

/* How long it takes, from now on. */
static void yardstick_reset(void)
{
	yardstick.seconds = 0;
	yardstick.times = 0;
}

static double yardstick_read(void)
{
	while (!yardstick.times)
		usleep(1000);
	return yardstick.seconds / yardstick.times;
}

/* ---- the victim ---- */

/**
 * struct victim - the victim
 * @process: its processes
 * @area: theirs, or -1
 * @mem: their memory, at the same address in both
 */
struct victim {
	struct ksm_child process[2];
	long area[2];
	char *mem;
};

static long fn_become_victim(long unused, long unused2, long unused3, long unused4)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	become(VICTIM_UID);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	return 0;
}

/* Map, touch and unmap new memory; write to the hot pages what is looked at the next time. */
static void live_once(char *hot, unsigned long turn)
{
	double begin = ksm_now(), mapped, before, now;
	char *p = mmap(NULL, HOT_PAGES * PGSZ, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);

	if (p == MAP_FAILED)
		ksm_die("the victim gets no memory: %s", strerror(errno));
	mapped = now = ksm_now();
	for (size_t i = 0; i < HOT_PAGES; i++) {
		before = now;
		((volatile char *)p)[i * PGSZ] = 1;
		now = ksm_now();
		note(TOUCH, now - before);
	}
	before = ksm_now();
	munmap(p, HOT_PAGES * PGSZ);
	note(MAPPING, ksm_now() - before + mapped - begin);
	ksm_fill(hot, HOT_PAGES, turn);
}

/* Until it is over; returns how many of the hot pages were not what had been written to them. */
static long fn_live(long hot, long unused, long unused2, long unused3)
{
	long wrong = 0;

	(void)unused;
	(void)unused2;
	(void)unused3;
	for (unsigned long turn = 1; !shared->over; turn++) {
		live_once((char *)hot, turn);
		usleep(5000);
		wrong += ksm_wrong((char *)hot, HOT_PAGES, turn);
	}
	return wrong;
}

/* The first pages are shared, and are written to. */
static long fn_write_first(long mem, long npages, long unused, long unused2)
{
	double before, now = ksm_now();

	(void)unused;
	(void)unused2;
	for (long i = 0; i < npages; i++) {
		before = now;
		((volatile char *)mem)[i * PGSZ] ^= 1;
		now = ksm_now();
		note(FIRST_WRITE, now - before);
	}
	return 0;
}

/* How many pages are wrong, of which the first ones had a bit changed. */
static long fn_wrong_written(long mem, long npages, long seed, long written)
{
	for (long i = 0; i < written; i++)
		((volatile char *)mem)[i * PGSZ] ^= 1;
	return ksm_wrong((char *)mem, npages, seed);
}

/* ---- the test ---- */

FIXTURE(hostile)
{
	struct ksm k;
	struct victim victim;
	struct ksm_child driver;
	bool cpu;
	int log;
	int seconds;
};

FIXTURE_SETUP(hostile)
{
	const char *seconds = getenv("KSM_HOSTILE_SECONDS");

	/* On a debug kernel it takes a quarter of an hour for as much. */
	shared_pages = (ksm_is_slow() ? 16 : 64) * MIB / PGSZ;
	ksm_begin(&self->k);
	ASSERT_TRUE(ksm_wait_stat("kernel_pages", 0));
	self->seconds = seconds ? atoi(seconds) : 20;
	ASSERT_LT(0, self->seconds);
	self->driver.pid = -1;
	shared = map_shared(sizeof(*shared));
	hostile = map_shared(sizeof(*hostile));
	self->victim.mem = ksm_mmap(shared_pages + HOT_PAGES);
	self->log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	ASSERT_LE(0, self->log);
	ASSERT_LE(0, lseek(self->log, 0, SEEK_END));
	/* What is left of a tenant that was killed comes to us. */
	ASSERT_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1));
	/* Tenants are killed for their limits all the time: not a list of all tasks each time. */
	ksm_write_file("/proc/sys/vm/oom_dump_tasks", "0");
	ksm_cgroup_make(VICTIM);
	self->cpu = ksm_cgroup_has_cpu(VICTIM);
	for (int i = 0; i < 2; i++) {
		struct ksm_child *c = &self->victim.process[i];

		ksm_spawn(c);
		ksm_cgroup_write(VICTIM, "cgroup.procs", c->pid);
		ksm_call(c, fn_become_victim, 0, 0, 0);
		self->victim.area[i] = -1;
	}
	yardstick_begin();
}

FIXTURE_TEARDOWN(hostile)
{
	if (self->driver.pid > 0)
		hostile_end(&self->driver);
	for (int i = 0; i < 2; i++)
		ksm_kill(&self->victim.process[i]);
	yardstick_end();
	ksm_finish(&self->k);
	ksm_cgroup_remove(VICTIM);
}

/* Does the kernel log have a line with this, since the test began? */
static bool logged(int log, const char *what)
{
	char line[2048];
	ssize_t len;

	/* EPIPE: lines were lost. */
	while ((len = read(log, line, sizeof(line) - 1)) > 0 || (len < 0 && errno == EPIPE)) {
		line[len > 0 ? len : 0] = '\0';
		if (strstr(line, what))
			return true;
	}
	return false;
}

/* kksmd is told, and that is when it has done so. */
static void control(struct ksm *k)
{
	double begin = ksm_now();

	if (ksm_set_pace(k->dev, BUDGET, 2) || ksm_set_pace(k->dev, BUDGET, 1))
		ksm_die("kksmd is not retuned");
	note(RETUNE, ksm_now() - begin);
	begin = ksm_now();
	if (ksm_stop(k->dev))
		ksm_die("kksmd does not stop");
	note(STOP, ksm_now() - begin);
}

static size_t how_many_shared(const struct victim *v)
{
	return ksm_same_frames(v->process[0].pid, v->mem, v->process[1].pid, v->mem, shared_pages);
}

/* Something new in the victim's memory, which is registered anew. */
static void rewrite(const struct ksm *k, struct victim *v, unsigned long seed)
{
	for (int i = 0; i < 2; i++)
		ksm_call_start(&v->process[i], ksm_fn_fill, (long)v->mem, shared_pages, seed, 0);
	for (int i = 0; i < 2; i++)
		ksm_call_finish(&v->process[i]);
	for (int i = 0; i < 2; i++) {
		if (v->area[i] >= 0)
			ksm_call(&v->process[i], ksm_fn_close, v->area[i], 0, 0);
		v->area[i] = ksm_call(&v->process[i], ksm_fn_area_register, k->dev, v->mem,
				      shared_pages + HOT_PAGES);
		if (v->area[i] < 0)
			ksm_die("the victim cannot register: %s", strerror(-v->area[i]));
	}
}

/*
 * The victim's memory is written, shared, looked at and written to again. Returns how many
 * pages were wrong, or -1 if they were not shared and it did not go on.
 */
static long one_round(struct ksm *k, struct victim *v, unsigned long seed)
{
	size_t pages, most = 0;
	double begin, end;
	long wrong = 0;

	control(k);
	hostile->seed = seed;
	rewrite(k, v, seed);
	shared->over = false;
	yardstick_reset();
	begin = ksm_now();
	end = begin + 10 * KSM_PATIENCE;
	if (ksm_start(k->dev, 5000, 0, 20))
		ksm_die("kksmd does not start");
	for (int i = 0; i < 2; i++)
		ksm_call_start(&v->process[i], fn_live, (long)(v->mem + shared_pages * PGSZ), 0,
			       0, 0);
	while ((pages = how_many_shared(v)) < shared_pages - shared_pages / 100) {
		if (pages > most) {
			most = pages;
			end = ksm_now() + 10 * KSM_PATIENCE;
		}
		if (ksm_now() > end) {
			fprintf(stderr, "# stuck at %zu of %lu pages, at most %zu, %s\n", pages,
				shared_pages, most,
				shared->kind == HOSTILITY ? "hostile" : "control");
			return -1;
		}
		usleep(50000);
	}
	begin = ksm_now() - begin;
	note(SECONDS, begin);
	note(SHARING, begin / yardstick_read());
	note(CHARGED, ksm_cgroup_read(VICTIM, "memory.current", NULL));
	shared->over = true;
	for (int i = 0; i < 2; i++)
		wrong += ksm_call_finish(&v->process[i]);
	ksm_call(&v->process[0], fn_write_first, v->mem, WRITTEN_PAGES, 0);
	wrong += ksm_call(&v->process[1], ksm_fn_wrong, v->mem, shared_pages, seed);
	return wrong + ksm_call4(&v->process[0], fn_wrong_written, (long)v->mem, shared_pages, seed,
				 WRITTEN_PAGES);
}

static int compare(const void *a, const void *b)
{
	return (*(const float *)a > *(const float *)b) - (*(const float *)a < *(const float *)b);
}

/* The value that so many parts of 1000 do not exceed. */
static double quantile(struct samples *s, size_t part)
{
	static float sorted[MOST];
	size_t n = s->n < MOST ? s->n : MOST;

	if (!n)
		ksm_die("nothing was measured");
	memcpy(sorted, s->value, n * sizeof(sorted[0]));
	qsort(sorted, n, sizeof(sorted[0]), compare);
	return sorted[(n - 1) * part / 1000];
}

static double ratio(enum figure f)
{
	return quantile(&shared->samples[HOSTILITY][f], 500) /
	       quantile(&shared->samples[CONTROL][f], 500);
}

/* Is the slowest part of what was measured often longer than it ever was in the control? */
static bool has_tail(enum figure f)
{
	return f >= TOUCH && f <= MAPPING &&
	       quantile(&shared->samples[HOSTILITY][f], 990) >
	       quantile(&shared->samples[CONTROL][f], 1000);
}

/* Is there anything that is not within the bound, or not yet? */
static bool is_worse(void)
{
	for (enum figure f = SHARING; f <= CHARGED; f++)
		if (ratio(f) > WORSE || has_tail(f))
			return true;
	return false;
}

/* The lines with "hostile:" are what make check-neighbours prints in the end. */
static void tell(enum figure f)
{
	struct samples *control = &shared->samples[CONTROL][f];
	struct samples *hostility = &shared->samples[HOSTILITY][f];
	double scale = figures[f].scale;

	printf("# hostile: %-22s %4s %8.1f %8.1f %9.1f %8.1f %8.1f %9.1f %6.2f\n", figures[f].name,
	       figures[f].unit, quantile(control, 500) * scale, quantile(control, 990) * scale,
	       quantile(control, 1000) * scale, quantile(hostility, 500) * scale,
	       quantile(hostility, 990) * scale, quantile(hostility, 1000) * scale, ratio(f));
}

TEST_F_TIMEOUT(hostile, neighbour, 7200)
{
	const int phases = self->seconds < 40 ? 1 : self->seconds / 20;
	/* Ratios of times, without a controller for the CPUs or of few samples, say too little. */
	const bool judged = self->cpu && self->seconds >= JUDGED;
	unsigned long seed = 0;

	if (!self->cpu)
		printf("# hostile: no cpu controller in this kernel: times are not judged\n");
	/* What is done for the first time takes longer, and counts for nobody. */
	ASSERT_EQ(0, one_round(&self->k, &self->victim, seed += 2));
	memset(shared->samples, 0, sizeof(shared->samples));

	/* A few more, if medians of so few are not within the bound: all of them count. */
	for (int phase = 0; phase <= 2 * phases ||
			    (judged && phase <= 2 * (phases + MORE) &&
			     (phase % 2 == 0 || is_worse())); phase++) {
		double begin, length = (double)self->seconds / phases;
		int rounds = 0;

		shared->kind = phase % 2 ? HOSTILITY : CONTROL;
		/* There are few CPUs for so many who have to begin. */
		ASSERT_EQ(0, ksm_stop(self->k.dev));
		hostile_begin(&self->driver, shared->kind == HOSTILITY ? self->k.dev : -1);
		ASSERT_EQ(0, ksm_start(self->k.dev, 5000, 0, 20));
		/* The victim's two, and what an actor has that nobody kills. */
		if (shared->kind == HOSTILITY)
			EXPECT_LT(2, ksm_stat("regions"));
		begin = ksm_now();
		if (shared->kind == CONTROL)
			length /= 2;
		do {
			ASSERT_EQ(0, one_round(&self->k, &self->victim, seed += 2));
			rounds++;
		} while (ksm_now() < begin + length);
		hostile_tell(shared->kind == HOSTILITY ? "hostile" : "control", rounds,
			     ksm_now() - begin);
		/* Or both kinds of phases were the same. */
		if (shared->kind == HOSTILITY) {
			EXPECT_LT(0, hostile->merged);
			EXPECT_LT(0, hostile->scans);
		}
		/* It is gone when it is killed, and its memory is nobody's. */
		TH_LOG("killed within %.3f s", hostile_end(&self->driver));
		EXPECT_TRUE(ksm_wait_stat("regions", 2));
	}

	printf("# hostile: %-22s %4s %8s %8s %9s %8s %8s %9s %6s\n", "", "", "control", "p99", "worst",
	       "hostile", "p99", "worst", "ratio");
	for (enum figure f = 0; f < FIGURES; f++)
		tell(f);
	fflush(stdout);
	EXPECT_EQ(0, ksm_cgroup_read(VICTIM, "memory.events", "oom"));
	EXPECT_EQ(0, ksm_cgroup_read(VICTIM, "memory.events", "oom_kill"));
	EXPECT_FALSE(logged(self->log, "kksmd invoked oom-killer"));
	/* It comes back, whoever is in the way. */
	EXPECT_GT(KSM_PATIENCE, quantile(&shared->samples[HOSTILITY][STOP], 1000));
	EXPECT_GT(KSM_PATIENCE, quantile(&shared->samples[HOSTILITY][RETUNE], 1000));
	EXPECT_GE(WORSE, ratio(CHARGED));
	for (enum figure f = SHARING; f < CHARGED && judged; f++) {
		EXPECT_GE(WORSE, ratio(f)) {
			TH_LOG("%s", figures[f].name);
		}
		EXPECT_FALSE(has_tail(f)) {
			TH_LOG("%s", figures[f].name);
		}
	}
}

TEST_HARNESS_MAIN
