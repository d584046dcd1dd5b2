// SPDX-License-Identifier: GPL-2.0-only
/*
 * share.c - what the driver says of one process; see share.h
 *
 * Its areas are open in a thread of the library's own, which has a table of files of its own.
 */
#include <dirent.h>
#include <stdio.h>
#include <string.h>

#include "share.h"

void share_add(struct share *sum, const struct share *s)
{
	sum->registered += s->registered;
	sum->shared += s->shared;
	sum->saved += s->saved;
}

/* What an open file says of itself; nothing unless it is an area. */
static struct share read_area(const char *path)
{
	struct share s = { 0 };
	char line[128], name[32];
	long long value;
	FILE *f = fopen(path, "re");

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%31[^:]: %lld", name, &value) != 2)
			continue;
		if (!strcmp(name, "pages_registered"))
			s.registered += value;
		else if (!strcmp(name, "pages_shared"))
			s.shared += value;
		else if (!strcmp(name, "pages_sharing") || !strcmp(name, "zero_pages"))
			s.saved += value;
	}
	if (f)
		fclose(f);
	return s;
}

static struct share read_thread(const char *dir)
{
	struct share sum = { 0 }, s;
	struct dirent *entry;
	char path[700];
	DIR *d = opendir(dir);

	while (d && (entry = readdir(d))) {
		snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
		s = read_area(path);
		share_add(&sum, &s);
	}
	if (d)
		closedir(d);
	return sum;
}

struct share share_of(pid_t pid)
{
	struct share s = { 0 };
	struct dirent *entry;
	char tasks[32], path[400];
	DIR *d;

	snprintf(tasks, sizeof(tasks), "/proc/%d/task", pid);
	d = opendir(tasks);
	/* One of them has all areas. */
	while (d && !s.registered && (entry = readdir(d))) {
		snprintf(path, sizeof(path), "%s/%s/fdinfo", tasks, entry->d_name);
		s = read_thread(path);
	}
	if (d)
		closedir(d);
	return s;
}
