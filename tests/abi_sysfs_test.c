// SPDX-License-Identifier: GPL-2.0-only
/*
 * abi_sysfs_test.c - sysfs and fdinfo: which files and lines there are, their form and their rights
 *
 * And that what the areas' fdinfo says adds up to what sysfs says.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ksm_abi.h"

#define SYSFS		"/sys/class/misc/ksm/"

/* ---- sysfs and fdinfo ---- */

static const struct {
	const char *name;
	mode_t mode;
	bool in_fdinfo;
} stat_files[] = {
	{ "pages_shared", 0444, true },
	{ "pages_sharing", 0444, true },
	{ "pages_unshared", 0444, true },
	{ "pages_volatile", 0444, true },
	{ "zero_pages", 0444, true },
	{ "pages_scanned", 0444, true },
	{ "pages_skipped", 0444, true },
	{ "pages_hashed", 0444, true },
	{ "thp_splits", 0444, false },
	{ "thp_split_threshold", 0644, false },
	{ "longest_hold_us", 0644, false },
	{ "full_scans", 0444, true },
	{ "held_us", 0444, false },
	{ "kernel_pages", 0444, true },
	{ "stats_age_ms", 0444, false },
	{ "max_kernel_pages", 0644, true },
	{ "metadata_bytes", 0444, true },
	{ "profit_bytes", 0444, true },
	{ "areas", 0444, false },
	{ "regions", 0444, true },
	{ "pages_registered", 0444, true },
	{ "run", 0444, false },
	{ "pages_to_scan", 0444, false },
	{ "max_pages_to_merge", 0444, false },
	{ "sleep_us", 0444, false },
	{ "threads", 0444, false },
	{ "cpu_percent", 0444, false },
};

#define N_STAT_FILES (sizeof(stat_files) / sizeof(stat_files[0]))

/* One number and a newline, nothing else. */
static bool one_value(const char *text)
{
	const char *p = text;

	if (*p == '-')
		p++;
	if (!isdigit((unsigned char)*p))
		return false;
	while (isdigit((unsigned char)*p))
		p++;
	return *p == '\n' && !p[1];
}

static long fn_read_sysfs_as_nobody(long unused, long unused2, long unused3, long unused4)
{
	long ret = drop_rights(1);

	(void)unused;
	(void)unused2;
	(void)unused3;
	(void)unused4;
	if (ret)
		return ret;
	for (size_t i = 0; i < N_STAT_FILES; i++) {
		char path[128];

		ksm_stat(stat_files[i].name);
		snprintf(path, sizeof(path), SYSFS "%s", stat_files[i].name);
		if (ksm_write_file(path, "1") != -EACCES)
			return i;
	}
	return -EACCES;
}

/* Is there a line of the table for it? The kernel gives every device a few files itself. */
static bool is_listed(const char *name)
{
	static const char *const others[] = { ".", "..", "dev", "power", "subsystem", "uevent" };

	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		if (!strcmp(name, others[i]))
			return true;
	for (size_t i = 0; i < N_STAT_FILES; i++)
		if (!strcmp(name, stat_files[i].name))
			return true;
	return false;
}

TEST_F(abi, sysfs_has_no_other_files)
{
	DIR *dir = opendir(SYSFS);
	struct dirent *entry;

	ASSERT_NE(NULL, dir);
	while ((entry = readdir(dir))) {
		EXPECT_TRUE(is_listed(entry->d_name)) {
			TH_LOG("%s", entry->d_name);
		}
	}
	closedir(dir);
}

TEST_F(abi, sysfs_files)
{
	struct ksm_child c;
	char path[128], buf[128], old[32];
	struct stat st;
	ssize_t len;
	int fd;

	for (size_t i = 0; i < N_STAT_FILES; i++) {
		snprintf(path, sizeof(path), SYSFS "%s", stat_files[i].name);
		ASSERT_EQ(0, stat(path, &st)) {
			TH_LOG("%s: %s", path, strerror(errno));
		}
		EXPECT_EQ(stat_files[i].mode, st.st_mode & 07777) {
			TH_LOG("%s", path);
		}
		fd = open(path, O_RDONLY);
		ASSERT_LE(0, fd);
		len = read(fd, buf, sizeof(buf) - 1);
		ASSERT_LT(0, len);
		buf[len] = '\0';
		EXPECT_TRUE(one_value(buf)) {
			TH_LOG("%s holds \"%s\"", path, buf);
		}
		close(fd);
		if (stat_files[i].mode == 0444)
			EXPECT_GT(0, ksm_write_file(path, "1"));
	}
	EXPECT_TRUE(same_state(&self->state));

	/* Everybody may look, root alone may change what can be. */
	ksm_spawn(&c);
	EXPECT_EQ(-EACCES, ksm_call(&c, fn_read_sysfs_as_nobody, 0, 0, 0));
	ksm_end(&c);
	EXPECT_TRUE(same_state(&self->state));
	EXPECT_EQ(-EINVAL, ksm_write_file(SYSFS "max_kernel_pages", "much"));
	EXPECT_EQ(-EINVAL, ksm_write_file(SYSFS "max_kernel_pages", "-1"));
	EXPECT_EQ(-EINVAL, ksm_write_file(SYSFS "longest_hold_us", "much"));
	EXPECT_EQ(-EINVAL, ksm_write_file(SYSFS "longest_hold_us", "1"));
	EXPECT_EQ(0, ksm_write_file(SYSFS "longest_hold_us", "0"));
	EXPECT_EQ(-EINVAL, ksm_write_file(SYSFS "thp_split_threshold", "0"));
	EXPECT_TRUE(same_state(&self->state));

	/* sysfs and the module parameter are one value. */
	snprintf(old, sizeof(old), "%lld", ksm_stat("max_kernel_pages"));
	EXPECT_EQ(0, ksm_write_file(SYSFS "max_kernel_pages", "4321"));
	EXPECT_EQ(4321, ksm_stat("max_kernel_pages"));
	fd = open(PARAM "max_kernel_pages", O_RDONLY);
	ASSERT_LE(0, fd);
	len = read(fd, buf, sizeof(buf) - 1);
	ASSERT_LT(0, len);
	buf[len] = '\0';
	EXPECT_STREQ("4321\n", buf);
	close(fd);
	EXPECT_EQ(0, ksm_write_file(PARAM "max_kernel_pages", old));
	EXPECT_TRUE(same_state(&self->state));
}

/* Each "name:\tvalue" of our names once, and in no other form. */
TEST_F(abi, fdinfo_lines)
{
	char path[64], line[256];
	unsigned int seen[N_STAT_FILES] = { 0 };
	FILE *f;

	ASSERT_EQ(0, register_raw(self->area, (uintptr_t)self->mem, NPAGES));
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", self->area);
	f = fopen(path, "r");
	ASSERT_NE(NULL, f);
	while (fgets(line, sizeof(line), f)) {
		for (size_t i = 0; i < N_STAT_FILES; i++) {
			size_t len = strlen(stat_files[i].name);

			if (strncmp(line, stat_files[i].name, len) || line[len] != ':')
				continue;
			seen[i]++;
			EXPECT_EQ('\t', line[len + 1]);
			EXPECT_TRUE(one_value(line + len + 2)) {
				TH_LOG("%s", line);
			}
		}
	}
	fclose(f);
	for (size_t i = 0; i < N_STAT_FILES; i++) {
		EXPECT_EQ(stat_files[i].in_fdinfo ? 1 : 0, seen[i]) {
			TH_LOG("%s", stat_files[i].name);
		}
	}
	EXPECT_EQ(1, ksm_fdinfo(self->area, "regions"));
	EXPECT_EQ(NPAGES, ksm_fdinfo(self->area, "pages_registered"));
	EXPECT_EQ(0, ksm_fdinfo(self->area, "pages_sharing"));
}

TEST_F(abi, areas_add_up)
{
	static const char *const sums[] = {
		"regions", "pages_registered", "pages_shared", "pages_sharing",
		"pages_unshared", "pages_volatile", "zero_pages",
	};
	int other = ksm_area(&self->k);
	char *a = ksm_mmap(80), *b = ksm_mmap(80);
	const int fds[2] = { self->area, other };

	/* 64 pages in pairs, 8 in one area alone, 8 zero pages on each side. */
	ksm_fill(a, 72, 5);
	ksm_fill(b, 64, 5);
	ksm_fill_same(b + 64 * PGSZ, 8, 6);
	ksm_fn_zero((long)(a + 72 * PGSZ), 8, 0, 0);
	ksm_fn_zero((long)(b + 72 * PGSZ), 8, 0, 0);
	ASSERT_EQ(0, register_raw(self->area, (uintptr_t)a, 80));
	ASSERT_EQ(0, register_raw(other, (uintptr_t)b, 80));
	ksm_merge_all(&self->k);

	EXPECT_EQ(64 + 1, ksm_stat("pages_shared"));
	EXPECT_EQ(64 + 7, ksm_stat("pages_sharing"));
	EXPECT_EQ(16, ksm_stat("zero_pages"));
	EXPECT_EQ(8, ksm_stat("pages_unshared"));
	EXPECT_EQ(0, ksm_stat("pages_volatile"));
	for (size_t i = 0; i < sizeof(sums) / sizeof(sums[0]); i++) {
		EXPECT_EQ(ksm_stat(sums[i]), ksm_fdinfo(self->area, sums[i]) +
					     ksm_fdinfo(other, sums[i])) {
			TH_LOG("%s", sums[i]);
		}
	}
	/* A page that two areas map counts half for each. */
	EXPECT_EQ(32, ksm_fdinfo(self->area, "pages_shared"));
	EXPECT_EQ(32, ksm_fdinfo(self->area, "pages_sharing"));
	EXPECT_EQ(32 + 1, ksm_fdinfo(other, "pages_shared"));
	EXPECT_EQ(32 + 7, ksm_fdinfo(other, "pages_sharing"));
	EXPECT_EQ(8, ksm_fdinfo(self->area, "zero_pages"));
	EXPECT_EQ(8, ksm_fdinfo(self->area, "pages_unshared"));

	/* Profit is what is saved less what it costs to know. */
	EXPECT_EQ((long long)PGSZ * (64 + 7 + 16) - ksm_stat("metadata_bytes"),
		  ksm_stat("profit_bytes"));
	EXPECT_LT(0, ksm_stat("metadata_bytes"));
	for (int i = 0; i < 2; i++) {
		EXPECT_EQ((long long)PGSZ * (ksm_fdinfo(fds[i], "pages_sharing") +
					     ksm_fdinfo(fds[i], "zero_pages")) -
				  ksm_fdinfo(fds[i], "metadata_bytes"),
			  ksm_fdinfo(fds[i], "profit_bytes"));
	}
	EXPECT_EQ(0, ksm_wrong(a, 72, 5));
	EXPECT_EQ(0, ksm_wrong(b, 64, 5));
	close(other);
}

TEST_HARNESS_MAIN
