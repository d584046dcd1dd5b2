// SPDX-License-Identifier: GPL-2.0-only
/*
 * cow_test.c - the kernel's own test of copy-on-write, over merged memory
 *
 * The cow selftest of the kernel's source (see cow/merged.h) runs twice: as it is, and with
 * each piece of memory merged before it is forked, pinned or spliced. What it says of
 * each case must be the same, on any kernel, whatever that kernel can do: read-only
 * long-term pins above all, which since 6.1 unshare a page that is not one process's own.
 *
 * It wants gup_test, which Debian's kernels are built without: cow/gup_test_module.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm_harness.h"

#define MAX_RESULTS 4096
/* How many of cow's cases begin with MADV_COLLAPSE. */
#define COLLAPSE_CASES 4

/**
 * struct run - what one run of the selftest said
 * @nr: how many results
 * @result: "ok 17 No leak from parent into child" and so on
 * @done: how many of them are of a test that was done
 * @pins: how many say that a long-term pin for reading keeps seeing what is written
 * @pieces: pieces of memory that were merged
 * @unmerged: pieces that were not
 * @pages: pages that were merged
 */
struct run {
	size_t nr, done, pins;
	char *result[MAX_RESULTS];
	unsigned long pieces, unmerged, pages;
};

/* The device that takes pins, unless the kernel has it built in. It cannot be unloaded. */
static void load_gup_test(void)
{
	if (access("/sys/kernel/debug/gup_test", F_OK))
		ksm_shell("insmod %s", ksm_beside("gup_test_module.ko", "gup-KERNEL"));
}

static void run_cow(struct run *run, bool merge)
{
	const char *path = ksm_beside("cow", "-C tests");
	char line[512];
	int fds[2];
	pid_t pid;
	FILE *f;

	memset(run, 0, sizeof(*run));
	if (pipe(fds))
		ksm_die("pipe: %s", strerror(errno));
	pid = fork();
	if (!pid) {
		dup2(fds[1], 1);
		close(fds[0]);
		close(fds[1]);
		if (merge)
			setenv("COW_MERGE", "1", 1);
		execl(path, path, NULL);
		_exit(127);
	}
	close(fds[1]);
	f = fdopen(fds[0], "r");
	while (f && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = '\0';
		if ((!strncmp(line, "ok ", 3) || !strncmp(line, "not ok ", 7)) &&
		    run->nr < MAX_RESULTS) {
			run->result[run->nr++] = strdup(line);
			run->done += !strstr(line, "# SKIP");
			run->pins += line[0] == 'o' && strstr(line, "Longterm R/O pin is reliable");
		}
		sscanf(line, "# merged %lu pages in %lu pieces, %lu", &run->pages, &run->pieces,
		       &run->unmerged);
	}
	fclose(f);
	/* Some fail on some kernels as they are. */
	waitpid(pid, NULL, 0);
}

TEST_F_TIMEOUT(device, same_as_unmerged, 600)
{
	static struct run plain, merged;
	size_t different = 0, collapse = 0;

	load_gup_test();
	run_cow(&plain, false);
	run_cow(&merged, true);
	TH_LOG("%zu results, %zu of tests that were done, %zu over merged memory", plain.nr,
	       plain.done, merged.done);
	TH_LOG("%lu pages in %lu pieces were merged", merged.pages, merged.pieces);
	ASSERT_GT(plain.done, 50);
	ASSERT_EQ(merged.nr, plain.nr);
	EXPECT_GT(merged.pieces, 50);
	EXPECT_EQ(merged.unmerged, 0);
	for (size_t i = 0; i < plain.nr; i++) {
		if (!strcmp(plain.result[i], merged.result[i]))
			continue;
		/* Pages that are shared are not made a huge page; ksmd's are not, either. */
		if (strstr(merged.result[i], "# SKIP MADV_COLLAPSE failed")) {
			collapse++;
			continue;
		}
		different++;
		TH_LOG("%s, and merged: %s", plain.result[i], merged.result[i]);
	}
	EXPECT_EQ(different, 0);
	TH_LOG("%zu pins for reading are reliable, merged %zu", plain.pins, merged.pins);
	EXPECT_LT(0, merged.pins);
	EXPECT_LE(collapse, COLLAPSE_CASES);
}

TEST_HARNESS_MAIN
