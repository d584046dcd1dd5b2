/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_cgroup.h - memory cgroups (version 2), for tests of who pays, and for what
 */
#ifndef KSM_CGROUP_H
#define KSM_CGROUP_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ksm_util.h"

#define KSM_CGROUPS "/sys/fs/cgroup"

/* A number from a group's file; with a key, that behind it. */
static inline long ksm_cgroup_read(const char *group, const char *file, const char *key)
{
	char path[128], line[256];
	long value = -1;
	FILE *f;

	snprintf(path, sizeof(path), KSM_CGROUPS "/%s/%s", group, file);
	f = fopen(path, "re");
	if (!f)
		ksm_die("cannot open %s: %s; boot with the memory controller", path,
			strerror(errno));
	while (value < 0 && fgets(line, sizeof(line), f)) {
		size_t len = key ? strlen(key) : 0;

		if (!key)
			value = strtol(line, NULL, 10);
		else if (!strncmp(line, key, len) && line[len] == ' ')
			value = strtol(line + len + 1, NULL, 10);
	}
	fclose(f);
	if (value < 0)
		ksm_die("%s has no %s", path, key ? key : "number");
	return value;
}

static inline void ksm_cgroup_write_text(const char *group, const char *file, const char *text)
{
	char path[128];
	int err;

	snprintf(path, sizeof(path), KSM_CGROUPS "/%s/%s", group, file);
	err = ksm_write_file(path, text);
	if (err)
		ksm_die("cannot write %s to %s: %s", text, path, strerror(-err));
}

/* -1 is "max". */
static inline void ksm_cgroup_write(const char *group, const char *file, long value)
{
	char text[32] = "max";

	if (value >= 0)
		snprintf(text, sizeof(text), "%ld", value);
	ksm_cgroup_write_text(group, file, text);
}

/* Has this kernel a controller for the CPUs? */
static inline bool ksm_cgroup_has_cpu(const char *group)
{
	char path[128];

	snprintf(path, sizeof(path), KSM_CGROUPS "/%s/cpu.max", group);
	return !access(path, F_OK);
}

/* Whoever an earlier test has left in a group, which it may have throttled, is killed. */
static inline void ksm_cgroup_end(const char *group)
{
	double end = ksm_now() + KSM_PATIENCE;

	if (ksm_cgroup_has_cpu(group))
		ksm_cgroup_write_text(group, "cpu.max", "max");
	ksm_cgroup_write(group, "cgroup.kill", 1);
	while (ksm_cgroup_read(group, "cgroup.events", "populated") && ksm_now() < end)
		usleep(10000);
}

/* What is charged still keeps a group of an earlier test, out of sight. */
static inline void ksm_cgroup_make(const char *group)
{
	char path[128];

	ksm_write_file(KSM_CGROUPS "/cgroup.subtree_control", "+memory");
	ksm_write_file(KSM_CGROUPS "/cgroup.subtree_control", "+cpu");
	snprintf(path, sizeof(path), KSM_CGROUPS "/%s", group);
	if (rmdir(path) && errno == EBUSY) {
		ksm_cgroup_end(group);
		rmdir(path);
	}
	if (mkdir(path, 0755))
		ksm_die("cannot make %s: %s", path, strerror(errno));
}

static inline void ksm_cgroup_remove(const char *group)
{
	char path[128];

	snprintf(path, sizeof(path), KSM_CGROUPS "/%s", group);
	rmdir(path);
}

/* A process in a group, or in none, with memory that it has filled and registered. */
static inline void ksm_cgroup_tenant(const struct ksm *k, struct ksm_child *c, const char *group,
				     char *mem, size_t n, int seed)
{
	ksm_spawn(c);
	if (group)
		ksm_cgroup_write(group, "cgroup.procs", c->pid);
	ksm_call(c, ksm_fn_fill, mem, n, seed);
	if (ksm_call(c, ksm_fn_area_register, k->dev, mem, n) < 0)
		ksm_die("a tenant cannot register its memory");
}

/*
 * A process that does nothing in a group, and can be killed as any other is. Where those at work
 * there cannot be, it is the one that is, should anything have the OOM killer come.
 */
static inline void ksm_cgroup_bystander(struct ksm_child *c, const char *group)
{
	ksm_spawn(c);
	/* What it touches first is not for the group to pay, which may be full. */
	ksm_call(c, ksm_fn_wrong, 0, 0, 0);
	ksm_cgroup_write(group, "cgroup.procs", c->pid);
}

#endif /* KSM_CGROUP_H */
