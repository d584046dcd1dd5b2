// SPDX-License-Identifier: GPL-2.0-only
/*
 * fieldmap - simulations that each hold the same field map
 *
 * Starts processes which each build the same pseudo-random field map and some
 * data of their own, and register both with libksm, as the programs of a
 * detector simulation would, one on each core. It then shows what the sharing
 * gives back, and has each process check every byte.
 *
 * What is saved is taken from Pss in smaps, which is how the kernel divides the
 * cost of a page among those who map it: the driver is not its own witness.
 */
#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <libksm.h>

#define SYSFS_DIR "/sys/class/misc/ksm/"
#define MIB 1048576.0

enum { EXIT_USAGE = 2, MAX_PROCESSES = 1024 };

static struct {
	size_t processes;
	size_t shared;		/* bytes of field map in each process */
	size_t private;		/* bytes of its own data */
	long seconds;
	long expect;		/* percent */
	long rewrite;		/* percent */
	uint64_t seed;
} conf = {
	.processes = 4,
	.shared = 64 << 20,
	.private = 32 << 20,
	.seconds = 60,
	.seed = 2008,
};

/* What the parent asks of its processes; each answers with one number. */
enum command {
	CMD_FILL,	/* build both: 0 */
	CMD_PSS,	/* what both cost this process: bytes */
	CMD_REGISTER,	/* register both: 0 */
	CMD_VERIFY,	/* check each byte: number of wrong pages */
	CMD_REWRITE,	/* write to a part of the field map: 0 */
};

#define FAILED (-1)

/**
 * struct sim - what a process knows of its memory
 * @rank: its number, from 0
 * @map: the field map
 * @own: the data that it has for itself, higher up
 * @rewritten: the percentage of the field map that it changed
 */
struct sim {
	size_t rank;
	char *map;
	char *own;
	long rewritten;
};

static size_t page_size;
static int to_process[MAX_PROCESSES];
static volatile sig_atomic_t stop_waiting;

static void __attribute__((noreturn)) fail(const char *what, const char *advice)
{
	fprintf(stderr, "%s: %s: %m: %s\n", program_invocation_short_name, what, advice);
	exit(EXIT_FAILURE);
}

/* Write what belongs in page @index of the data that @seed stands for. */
static void make_page(uint64_t *page, uint64_t seed, size_t index)
{
	uint64_t x = (seed + 1) * 0x9e3779b97f4a7c15 ^ (index + 1) * 0xd1342543de82ef95;
	size_t i;

	for (i = 0; i < page_size / sizeof(*page); i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		page[i] = x;
	}
}

/* The seed of the field map's page @index as it should be in @sim. */
static uint64_t map_seed(const struct sim *sim, size_t index)
{
	if ((long)(index % 100) < sim->rewritten)
		return conf.seed + 1 + conf.processes + sim->rank;
	return conf.seed;
}

static uint64_t private_seed(const struct sim *sim)
{
	return conf.seed + 1 + sim->rank;
}

/*
 * Build the field map and the private data, with pages without access before, between and
 * behind them: no other mapping becomes part of these, and of their Pss; and no huge page
 * holds the end of one and the start of the other. Of the field map that could be too little
 * to split it for.
 */
static int64_t fill(struct sim *sim)
{
	size_t total = conf.shared + conf.private, i;
	char *p;

	p = mmap(NULL, total + 3 * page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	sim->map = p + page_size;
	sim->own = sim->map + conf.shared + page_size;
	if (p == MAP_FAILED || mprotect(sim->map, conf.shared, PROT_READ | PROT_WRITE) ||
	    mprotect(sim->own, conf.private, PROT_READ | PROT_WRITE))
		fail("mmap", "ask for less with --shared, --private or --processes");

	for (i = 0; i < conf.shared / page_size; i++)
		make_page((void *)(sim->map + i * page_size), map_seed(sim, i), i);
	for (i = 0; i < conf.private / page_size; i++)
		make_page((void *)(sim->own + i * page_size), private_seed(sim), i);
	return 0;
}

static int64_t register_both(struct sim *sim)
{
	if (ksm_share(sim->map, conf.shared))
		fail("cannot register the field map", ksm_hint(errno));
	if (conf.private && ksm_share(sim->own, conf.private))
		fail("cannot register the private data", ksm_hint(errno));
	return 0;
}

/* Add up Pss of @sim's mappings; what lies in between has none. */
static int64_t pss(const struct sim *sim)
{
	unsigned long from = (unsigned long)sim->map;
	unsigned long to = (unsigned long)sim->own + conf.private;
	unsigned long start, end;
	int64_t total = 0;
	int inside = 0;
	char line[512];
	long kib;
	FILE *f;

	f = fopen("/proc/self/smaps", "re");
	if (!f)
		fail("/proc/self/smaps", "mount /proc");
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start >= from && end <= to;
		else if (inside && sscanf(line, "Pss: %ld kB", &kib) == 1)
			total += kib * 1024;
	}
	fclose(f);
	return total;
}

/* Return whether page @index at @page is what it should be; complain otherwise. */
static int page_is_right(const struct sim *sim, const char *what, const char *page,
			 uint64_t seed, size_t index)
{
	static uint64_t *expected;

	if (!expected)
		expected = malloc(page_size);
	if (!expected)
		fail("malloc", "ask for less with --shared, --private or --processes");
	make_page(expected, seed, index);
	if (!memcmp(expected, page, page_size))
		return 1;
	fprintf(stderr, "process %zu: page %zu of its %s is wrong: report it with the kernel log\n",
		sim->rank, index, what);
	return 0;
}

static int64_t verify(const struct sim *sim)
{
	int64_t wrong = 0;
	size_t i;

	for (i = 0; i < conf.shared / page_size; i++)
		wrong += !page_is_right(sim, "field map", sim->map + i * page_size,
					map_seed(sim, i), i);
	for (i = 0; i < conf.private / page_size; i++)
		wrong += !page_is_right(sim, "private data", sim->own + i * page_size,
					private_seed(sim), i);
	return wrong;
}

static int64_t rewrite(struct sim *sim)
{
	size_t i;

	sim->rewritten = conf.rewrite;
	for (i = 0; i < conf.shared / page_size; i++)
		if ((long)(i % 100) < sim->rewritten)
			make_page((void *)(sim->map + i * page_size), map_seed(sim, i), i);
	return 0;
}

/* A process: obey the parent until it is gone. */
static void simulate(size_t rank, int fd)
{
	struct sim sim = { .rank = rank };
	int64_t answer = FAILED;
	char cmd;

	/* Ctrl-C is for the parent, who wants the memory verified before it ends. */
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);

	while (read(fd, &cmd, 1) == 1) {
		switch ((enum command)cmd) {
		case CMD_FILL:
			answer = fill(&sim);
			break;
		case CMD_PSS:
			answer = pss(&sim);
			break;
		case CMD_REGISTER:
			answer = register_both(&sim);
			break;
		case CMD_VERIFY:
			answer = verify(&sim);
			break;
		case CMD_REWRITE:
			answer = rewrite(&sim);
			break;
		}
		if (write(fd, &answer, sizeof(answer)) != sizeof(answer))
			break;
	}
}

static void start_processes(void)
{
	int pair[2];
	size_t i, j;
	pid_t pid;

	for (i = 0; i < conf.processes; i++) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
			fail("socketpair", "ask for fewer --processes, or raise ulimit -n");
		pid = fork();
		if (pid < 0)
			fail("fork", "ask for fewer --processes, or raise ulimit -u");
		if (!pid) {
			/* Or a process would not notice that the parent is gone. */
			for (j = 0; j < i; j++)
				close(to_process[j]);
			close(pair[0]);
			simulate(i, pair[1]);
			exit(EXIT_SUCCESS);
		}
		close(pair[1]);
		to_process[i] = pair[0];
	}
}

/* Have all processes do @cmd at the same time, and return the answers' sum. */
static int64_t tell_all(enum command cmd)
{
	int64_t answer, sum = 0;
	char c = cmd;
	ssize_t n;
	size_t i;

	for (i = 0; i < conf.processes; i++)
		if (send(to_process[i], &c, 1, MSG_NOSIGNAL) != 1)
			goto err_gone;
	for (i = 0; i < conf.processes; i++) {
		do
			n = recv(to_process[i], &answer, sizeof(answer), MSG_WAITALL);
		while (n < 0 && errno == EINTR);
		if (n != sizeof(answer))
			goto err_gone;
		sum += answer;
	}
	return sum;

err_gone:
	fprintf(stderr, "%s: process %zu ended early: see above, or else the kernel log\n",
		program_invocation_short_name, i);
	exit(EXIT_FAILURE);
}

/* The number that follows @prefix in a file; -1 if there is none. */
static int64_t read_number(const char *path, const char *prefix)
{
	int64_t value = -1;
	char line[128];
	FILE *f;

	f = fopen(path, "re");
	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f)) {
		if (strncmp(line, prefix, strlen(prefix)))
			continue;
		if (sscanf(line + strlen(prefix), "%" SCNd64, &value) != 1)
			value = -1;
		break;
	}
	fclose(f);
	return value;
}

/*
 * Free memory in MiB. The pages that a CPU keeps at hand are free too, but not
 * part of MemFree: tens of MiB after much was freed.
 */
static double free_memory(void)
{
	int64_t kib = read_number("/proc/meminfo", "MemFree:");
	long count, pages = 0;
	char line[128];
	FILE *f;

	f = fopen("/proc/zoneinfo", "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, " count: %ld", &count) == 1)
			pages += count;
	if (f)
		fclose(f);
	return kib / 1024.0 + pages * page_size / MIB;
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void on_signal(int sig)
{
	(void)sig;
	stop_waiting = 1;
}

/*
 * Show each second what the driver counts, until the time is up, a signal
 * came, or enough is saved and it does not become more.
 */
static void watch(double possible)
{
	int64_t sharing, before = read_number(SYSFS_DIR "pages_sharing", "");
	double start = now(), saved, last = -1;
	double goal = possible * (conf.expect ? conf.expect : 100) / 100;

	if (!read_number(SYSFS_DIR "run", ""))
		puts("kksmd is stopped, so nobody scans; as root: ksmctl start 1000 0 1000");
	while (!stop_waiting) {
		sharing = read_number(SYSFS_DIR "pages_sharing", "");
		saved = (double)(sharing - before) * page_size;
		printf("%5.1f s  free %8.1f MiB  shared pages %7" PRId64
		       "  saved %8.1f MiB (%5.1f %%)\n",
		       now() - start, free_memory(),
		       read_number(SYSFS_DIR "pages_shared", ""), saved / MIB,
		       possible ? 100 * saved / possible : 0);
		if ((saved >= goal && saved <= last) || now() - start >= conf.seconds)
			break;
		last = saved;
		sleep(1);
	}
}

static long parse_number(struct argp_state *state, const char *name, const char *text,
			 long min, long max)
{
	char *end;
	long value;

	errno = 0;
	value = strtol(text, &end, 10);
	if (text[strspn(text, "0123456789")] || end == text || errno ||
	    value < min || value > max)
		argp_error(state, "--%s: \"%s\" is not a whole number from %ld to %ld",
			   name, text, min, max);
	return value;
}

/* The most MiB that a process can be asked to hold: 1 TiB. */
#define MAX_MIB (sizeof(size_t) > 4 ? 1L << 20 : 1024L)

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
	switch (key) {
	case 'n':
		conf.processes = parse_number(state, "processes", arg, 1, MAX_PROCESSES);
		break;
	case 's':
		conf.shared = (size_t)parse_number(state, "shared", arg, 1, MAX_MIB) << 20;
		break;
	case 'p':
		conf.private = (size_t)parse_number(state, "private", arg, 0, MAX_MIB) << 20;
		break;
	case 't':
		conf.seconds = parse_number(state, "seconds", arg, 0, 1000000000);
		break;
	case 'e':
		conf.expect = parse_number(state, "expect", arg, 1, 100);
		break;
	case 'r':
		conf.rewrite = parse_number(state, "rewrite", arg, 1, 100);
		break;
	case 'x':
		conf.seed = parse_number(state, "seed", arg, 0, 1000000000);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static const struct argp_option argp_options[] = {
	{ "processes", 'n', "N", 0, "number of processes (4)", 0 },
	{ "shared", 's', "MIB", 0, "size of the field map, which is the same in each (64)", 0 },
	{ "private", 'p', "MIB", 0, "size of the data that each has for itself (32)", 0 },
	{ "seconds", 't', "S", 0,
	  "wait so long at most for the sharing (60); Ctrl-C ends the wait", 0 },
	{ "expect", 'e', "PERCENT", 0,
	  "stop waiting once so much of the possible is saved; fail if it never is", 0 },
	{ "rewrite", 'r', "PERCENT", 0,
	  "then write to so much of the field map in each process, and verify again", 0 },
	{ "seed", 'x', "N", 0, "of the pseudo-random numbers (2008)", 0 },
	{ 0 }
};

static const struct argp argp = {
	.options = argp_options,
	.parser = parse_option,
	.doc = "Start processes that hold the same field map, register it with /dev/ksm, "
	       "show what sharing it saves, and verify every byte."
	       "\vExit status: 0 done, 1 failed, 2 wrong usage.",
};

const char *argp_program_version = "fieldmap " KSMDEV_VERSION;

int main(int argc, char **argv)
{
	const struct sigaction action = { .sa_handler = on_signal };
	int64_t before, saved, wrong;
	double possible, percent;

	argp_err_exit_status = EXIT_USAGE;
	argp_parse(&argp, argc, argv, 0, NULL, NULL);
	/* A line at a time, also into a pipe: this is something to watch. */
	setvbuf(stdout, NULL, _IOLBF, 0);
	page_size = sysconf(_SC_PAGESIZE);
	possible = (double)(conf.processes - 1) * conf.shared;

	printf("%zu processes, each with a field map of %.0f MiB and %.0f MiB of its own\n",
	       conf.processes, conf.shared / MIB, conf.private / MIB);
	start_processes();
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);

	tell_all(CMD_FILL);
	before = tell_all(CMD_PSS);
	tell_all(CMD_REGISTER);
	watch(possible);
	saved = before - tell_all(CMD_PSS);

	wrong = tell_all(CMD_VERIFY);
	if (!wrong && conf.rewrite) {
		tell_all(CMD_REWRITE);
		wrong = tell_all(CMD_VERIFY);
		printf("wrote to %ld %% of each field map and verified again\n", conf.rewrite);
	}

	percent = possible ? 100 * saved / possible : 100;
	printf("saved %.1f MiB of %.1f MiB possible (%.1f %%), ",
	       saved / MIB, possible / MIB, percent);
	if (wrong)
		printf("%" PRId64 " PAGES ARE WRONG\n", wrong);
	else
		printf("every byte verified\n");
	if (ferror(stdout) || fclose(stdout))
		fail("standard output", "look at where it is redirected to");

	if (percent < conf.expect)
		fprintf(stderr,
			"%s: less than the expected %ld %%: see ksmctl status, or wait longer (--seconds)\n",
			program_invocation_short_name, conf.expect);
	return wrong || percent < conf.expect ? EXIT_FAILURE : EXIT_SUCCESS;
}
