// SPDX-License-Identifier: GPL-2.0-only
/*
 * criu_test.c - merged memory is saved by a checkpoint, and comes back
 *
 * Debian's criu dumps a process, which ends, and restores it from the images. Every byte
 * of its memory must be what it was: while its memory is registered, when the area was
 * closed since, and in a child that never registered. An open /dev/ksm or area cannot be
 * dumped, so this process holds the area, and the one that is dumped closed its copy.
 *
 * They talk through files in one directory: a pipe to somebody outside cannot be dumped.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_told.h"

#define CRIU "/usr/sbin/criu"

/* What a process to be dumped has: pages of its memory, by what becomes of them. */
enum {
	EQUAL = 128,	/* merged with this process's */
	ZEROS = 32,	/* merged with the zero page */
	OWN = 32,	/* equal to nothing */
	WRITTEN = 16,	/* of the EQUAL ones, written after the merge */
	MAPPED = 64,	/* a private mapping of a file, half of it written and merged */
	N = EQUAL + ZEROS + OWN,
};

FIXTURE(checkpoint) {
	struct ksm k;
	int area;
	char dir[64], images[80], file[80];
	char *mem, *mapped, *twin, *mapped_twin;
	pid_t pid;
};

static const char *in(const char *dir, const char *name)
{
	static char path[4][160];
	static int i;

	i = (i + 1) % 4;
	snprintf(path[i], sizeof(path[i]), "%s/%s", dir, name);
	return path[i];
}

static void say(const char *dir, const char *name, long value)
{
	FILE *f = fopen(in(dir, "tmp"), "we");

	if (!f)
		ksm_die("cannot write to %s: %s", dir, strerror(errno));
	fprintf(f, "%ld\n", value);
	fclose(f);
	rename(in(dir, "tmp"), in(dir, name));
}

/* Wait for somebody to say it; -1 if nobody does. */
static long hear(const char *dir, const char *name)
{
	double end = ksm_now() + KSM_PATIENCE;
	long value = -1;
	FILE *f;

	while (access(in(dir, name), F_OK) && ksm_now() < end)
		usleep(10000);
	f = fopen(in(dir, name), "re");
	if (f) {
		if (fscanf(f, "%ld", &value) != 1)
			value = -1;
		fclose(f);
	}
	return value;
}

static void map_all(struct _test_data_checkpoint *self)
{
	int fd = open(self->file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	char *page = malloc(PGSZ);

	self->mem = ksm_mmap(N);
	self->twin = ksm_mmap(N);
	self->mapped = ksm_mmap(MAPPED);
	self->mapped_twin = ksm_mmap(MAPPED);
	for (int i = 0; i < MAPPED; i++) {
		ksm_fill_page(page, 5, i);
		if (pwrite(fd, page, PGSZ, i * PGSZ) != (ssize_t)PGSZ)
			ksm_die("cannot write %s: %s", self->file, strerror(errno));
	}
	free(page);
	if (mmap(self->mapped, MAPPED * PGSZ, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
		 fd, 0) == MAP_FAILED)
		ksm_die("cannot map %s: %s", self->file, strerror(errno));
	close(fd);
}

static void fill_all(char *mem, char *mapped)
{
	ksm_fill(mem, EQUAL, 1);
	ksm_fn_zero((long)ksm_page(mem, EQUAL), ZEROS, 0, 0);
	/* Something that nobody else has. */
	ksm_fill(ksm_page(mem, EQUAL + ZEROS), OWN, 0x10000 + (uintptr_t)mem);
	ksm_fill(mapped, MAPPED / 2, 3);
	memset(ksm_page(mapped, MAPPED / 4), 0, PGSZ);
}

/* How many pages of the process are not what they should be. */
static long wrong_all(const char *mem, const char *mapped)
{
	long wrong = ksm_wrong(mem, WRITTEN, 4);

	for (size_t i = WRITTEN; i < EQUAL; i++)
		wrong += !ksm_page_is(ksm_page(mem, i), 1, i);
	wrong += ksm_wrong_zero(ksm_page(mem, EQUAL), ZEROS);
	wrong += ksm_wrong(ksm_page(mem, EQUAL + ZEROS), OWN, 0x10000 + (uintptr_t)mem);
	for (size_t i = 0; i < MAPPED; i++)
		if (i == MAPPED / 4)
			wrong += !ksm_page_is_zero(ksm_page(mapped, i));
		else
			wrong += !ksm_page_is(ksm_page(mapped, i), i < MAPPED / 2 ? 3 : 5, i);
	return wrong;
}

/*
 * The process to be dumped: on its own, without anything open, and waiting. It registers
 * with @area unless that is -1.
 */
static void __attribute__((noreturn)) be_dumped(struct _test_data_checkpoint *self, int area)
{
	char dir[64];
	int null;

	strcpy(dir, self->dir);
	setsid();
	if (area >= 0) {
		fill_all(self->mem, self->mapped);
		if (ksm_register(area, self->mem, N) ||
		    ksm_register(area, self->mapped, MAPPED))
			_exit(1);
	}
	null = open("/dev/null", O_RDWR);
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
	for (int fd = 3; fd < 256; fd++)
		close(fd);
	say(dir, "ready", 0);
	if (hear(dir, "write"))
		_exit(1);
	ksm_fill(self->mem, WRITTEN, 4);
	say(dir, "written", 0);
	while (access(in(dir, "check"), F_OK))
		usleep(10000);
	say(dir, "wrong", wrong_all(self->mem, self->mapped));
	_exit(0);
}

FIXTURE_SETUP(checkpoint)
{
	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	snprintf(self->dir, sizeof(self->dir), "/tmp/criu_test.%d", getpid());
	snprintf(self->images, sizeof(self->images), "%s/images", self->dir);
	snprintf(self->file, sizeof(self->file), "%s/file", self->dir);
	if (mkdir(self->dir, 0700) || mkdir(self->images, 0700))
		ksm_die("cannot make %s: %s", self->dir, strerror(errno));
	map_all(self);
}

FIXTURE_TEARDOWN(checkpoint)
{
	if (self->pid > 0)
		kill(self->pid, SIGKILL);
	if (self->area >= 0)
		close(self->area);
	ksm_finish(&self->k);
}

/* Run criu in a process of its own; its log comes out if it fails. */
static int criu(struct _test_data_checkpoint *self, const char *what, ...)
{
	const char *argv[24] = { CRIU, what, "-D", self->images, "-o", "log", "-v4" };
	const char *arg;
	int n = 7, status;
	va_list ap;
	pid_t pid;

	va_start(ap, what);
	while ((arg = va_arg(ap, const char *)) && n < 23)
		argv[n++] = arg;
	va_end(ap);
	fflush(stdout);
	pid = fork();
	if (!pid) {
		dup2(1, 2);
		for (int fd = 3; fd < 256; fd++)
			close(fd);
		execv(CRIU, (char **)argv);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		ksm_die("cannot run %s: %s", CRIU, strerror(errno));
	if (status) {
		printf("# %s %s: status %#x\n", CRIU, what, status);
		fflush(stdout);
		ksm_shell("tail -n 60 %s/log | sed 's/^/# /'", self->images);
	}
	return status;
}

static pid_t start(struct _test_data_checkpoint *self, int area)
{
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid < 0)
		ksm_die("fork: %s", strerror(errno));
	if (!pid)
		be_dumped(self, area);
	if (hear(self->dir, "ready"))
		ksm_die("the process to be dumped did not start");
	return pid;
}

/*
 * Dump it, see that it is gone, restore it, and ask it. @before is where a dump is that it
 * was not stopped for: then only what was written since is dumped, or NULL.
 */
static long dump_and_restore(struct _test_data_checkpoint *self, const char *before)
{
	char pid[16];
	int status;

	snprintf(pid, sizeof(pid), "%d", self->pid);
	if (criu(self, "dump", "-t", pid, "--manage-cgroups=ignore",
		 before ? "--track-mem" : NULL, "--prev-images-dir", before, NULL))
		return -1;
	if (waitpid(self->pid, &status, 0) != self->pid || !WIFSIGNALED(status))
		return -2;
	if (criu(self, "restore", "-d", "--manage-cgroups=ignore", NULL))
		return -3;
	say(self->dir, "check", 0);
	return hear(self->dir, "wrong");
}

static void twins(struct _test_data_checkpoint *self)
{
	fill_all(self->twin, self->mapped_twin);
	if (ksm_register(self->area, self->twin, N) ||
	    ksm_register(self->area, self->mapped_twin, MAPPED))
		ksm_die("KSM_REGISTER_MEMORY_REGION of ordinary memory failed");
}

TEST_F(checkpoint, registered)
{
	if (access(CRIU, X_OK))
		SKIP(return, "there is no " CRIU);
	twins(self);
	self->pid = start(self, self->area);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(self->pid, self->mem, 0, self->twin, EQUAL), EQUAL);
	say(self->dir, "write", 0);
	ASSERT_EQ(hear(self->dir, "written"), 0);
	EXPECT_EQ(ksm_same_frames(self->pid, self->mem, 0, self->twin, EQUAL), EQUAL - WRITTEN);
	/* But for the page of zeros: a file's mapping may not have the zero page. */
	EXPECT_EQ(ksm_same_frames(self->pid, self->mapped, 0, self->mapped_twin, MAPPED),
		  MAPPED / 2 - 1);
	EXPECT_EQ(dump_and_restore(self, NULL), 0);
	EXPECT_EQ(ksm_wrong(self->twin, EQUAL, 1), 0);
}

TEST_F(checkpoint, area_closed)
{
	if (access(CRIU, X_OK))
		SKIP(return, "there is no " CRIU);
	twins(self);
	self->pid = start(self, self->area);
	ksm_merge_all(&self->k);
	close(self->area);
	self->area = -1;
	ASSERT_EQ(ksm_stat("regions"), 0);
	ASSERT_EQ(ksm_same_frames(self->pid, self->mem, 0, self->twin, EQUAL), EQUAL);
	say(self->dir, "write", 0);
	ASSERT_EQ(hear(self->dir, "written"), 0);
	EXPECT_EQ(dump_and_restore(self, NULL), 0);
	EXPECT_EQ(ksm_wrong(self->twin, EQUAL, 1), 0);
}

/* Its memory is this process's, which registered it. */
TEST_F(checkpoint, child_that_never_registered)
{
	if (access(CRIU, X_OK))
		SKIP(return, "there is no " CRIU);
	twins(self);
	fill_all(self->mem, self->mapped);
	ASSERT_EQ(ksm_register(self->area, self->mem, N), 0);
	ASSERT_EQ(ksm_register(self->area, self->mapped, MAPPED), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, self->mem, 0, self->twin, EQUAL), EQUAL);
	self->pid = start(self, -1);
	ASSERT_EQ(ksm_same_frames(self->pid, self->mem, 0, self->twin, EQUAL), EQUAL);
	say(self->dir, "write", 0);
	ASSERT_EQ(hear(self->dir, "written"), 0);
	EXPECT_EQ(dump_and_restore(self, NULL), 0);
	EXPECT_EQ(ksm_wrong(self->mem, EQUAL, 1), 0);
}

/* Save it as it runs: what it writes from now on is what dump_changes() saves. */
static int dump_running(struct _test_data_checkpoint *self)
{
	char pid[16];

	snprintf(pid, sizeof(pid), "%d", self->pid);
	return criu(self, "pre-dump", "-t", pid, "--track-mem", "--manage-cgroups=ignore", NULL);
}

static long dump_changes(struct _test_data_checkpoint *self)
{
	snprintf(self->images, sizeof(self->images), "%s/last", self->dir);
	if (mkdir(self->images, 0700))
		ksm_die("cannot make %s: %s", self->images, strerror(errno));
	return dump_and_restore(self, "../images");
}

/* Saved as it runs, merged afterwards, and what was written since is saved when it stops. */
TEST_F(checkpoint, incremental)
{
	if (access(CRIU, X_OK))
		SKIP(return, "there is no " CRIU);
	twins(self);
	self->pid = start(self, self->area);
	ASSERT_EQ(dump_running(self), 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(self->pid, self->mem, 0, self->twin, EQUAL), EQUAL);
	say(self->dir, "write", 0);
	ASSERT_EQ(hear(self->dir, "written"), 0);
	EXPECT_EQ(dump_changes(self), 0);
}

/* Merging what was written since does not hide that it was. */
TEST_F(checkpoint, incremental_written_and_merged)
{
	if (access(CRIU, X_OK))
		SKIP(return, "there is no " CRIU);
	twins(self);
	self->pid = start(self, self->area);
	ASSERT_EQ(dump_running(self), 0);
	say(self->dir, "write", 0);
	ASSERT_EQ(hear(self->dir, "written"), 0);
	ksm_fill(self->twin, WRITTEN, 4);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(self->pid, self->mem, 0, self->twin, EQUAL), EQUAL);
	EXPECT_EQ(dump_changes(self), 0);
}

/* What is read of it from outside is the same, whether or not there is a criu. */
TEST_F(checkpoint, read_from_outside)
{
	char path[64], *copy = ksm_mmap(N);
	int fd;

	twins(self);
	self->pid = start(self, self->area);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(self->pid, self->mem, 0, self->twin, EQUAL), EQUAL);
	if (told_dumpable(self->pid, self->mem, N) != -ENOTTY) {
		EXPECT_EQ(told_dumpable(self->pid, self->mem, N), N - ZEROS);
		EXPECT_EQ(told_dumpable(self->pid, self->mapped, MAPPED), MAPPED / 2);
	}
	snprintf(path, sizeof(path), "/proc/%d/mem", self->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ASSERT_EQ(pread(fd, copy, N * PGSZ, (off_t)self->mem), (ssize_t)(N * PGSZ));
	EXPECT_EQ(ksm_wrong(copy, EQUAL, 1), 0);
	EXPECT_EQ(ksm_wrong_zero(ksm_page(copy, EQUAL), ZEROS), 0);
	close(fd);
	ksm_fill(copy, N, 9);
	{
		struct iovec local = { copy, N * PGSZ }, remote = { self->mem, N * PGSZ };

		ASSERT_EQ(process_vm_readv(self->pid, &local, 1, &remote, 1, 0),
			  (ssize_t)(N * PGSZ));
	}
	EXPECT_EQ(ksm_wrong(copy, EQUAL, 1), 0);
	EXPECT_EQ(ksm_wrong_zero(ksm_page(copy, EQUAL), ZEROS), 0);
}

TEST_HARNESS_MAIN
