// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksmctl-run.c - run a program with libksm-preload, which shares its memory
 *
 * The library is found from where ksmctl itself lies: next to it, as after make, or in ../lib,
 * as after make install. Whoever installs it elsewhere has the dynamic linker know the place.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ksmctl.h"

#define PRELOAD "libksm-preload.so"

static void set(const char *name, const char *value)
{
	if (setenv(name, value, 1))
		die_with(EXIT_RUN, "run: " NO_MEMORY);
}

/* Return how LD_PRELOAD is to name the library. */
static const char *find_preload(void)
{
	static const char * const places[] = { "/" PRELOAD, "/../lib/" PRELOAD };
	static char path[PATH_MAX + sizeof("/../lib/" PRELOAD)];
	ssize_t len = readlink("/proc/self/exe", path, PATH_MAX);
	char *slash;
	size_t i;

	path[len < 0 ? 0 : len] = 0;
	slash = strrchr(path, '/');
	for (i = 0; slash && i < 2; i++) {
		strcpy(slash, places[i]);
		if (access(path, R_OK))
			continue;
		if (strpbrk(path, " :"))
			die_with(EXIT_RUN, "run: LD_PRELOAD cannot name %s; move it to a path without spaces and colons",
				 path);
		return path;
	}
	return PRELOAD;
}

/* Become the command. */
void run_command(const struct run_options *opts)
{
	const char *others = getenv("LD_PRELOAD"), *preload = find_preload();
	char *all;

	/* Some, like a sanitizer's, want to be the first. */
	if (asprintf(&all, "%s%s%s", others ? others : "", others && *others ? ":" : "", preload) < 0)
		die_with(EXIT_RUN, "run: " NO_MEMORY);
	set("LD_PRELOAD", all);
	if (opts->min_mib)
		set("LIBKSM_AUTO", opts->min_mib);
	if (opts->exclude)
		set("LIBKSM_EXCLUDE", opts->exclude);
	if (opts->quiet)
		set("LIBKSM_QUIET", "1");
	execvp(*opts->command, opts->command);
	die_with(errno == ENOENT ? EXIT_NO_COMMAND : EXIT_CANNOT_RUN,
		 "run: %s: %m; give a program that can be executed", *opts->command);
}
