// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksmctl-status.c - what the driver says of itself in sysfs
 *
 * One table of rows is read from sysfs and printed as text or as JSON, so that
 * the two cannot drift apart.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <json-c/json.h>

#include "ksmctl.h"
#include "libksm.h"

#define SYSFS_DIR "/sys/class/misc/ksm"

/* How long to wait for the driver to count, and how often to ask. */
#define COUNT_WAIT_MS	300
#define COUNT_POLL_US	2000

enum unit {
	UNIT_RUNNING,		/* 0 or 1 */
	UNIT_COUNT,
	UNIT_PAGES,
	UNIT_PAGES_OR_NO_LIMIT,	/* 0: no limit */
	UNIT_PAGES_VISITED,	/* visits or such, not memory */
	UNIT_BYTES,
	UNIT_US,
	UNIT_PERCENT_OR_FIXED,	/* 0: the pace is fixed */
};

/**
 * struct row - one line of the status
 * @key: the file in sysfs, and the key in JSON
 * @label: the same for people
 * @unit: what the number counts
 * @derived: computed here; there is no such file
 */
struct row {
	const char *key;
	const char *label;
	enum unit unit;
	int derived;
};

static const struct row rows[NR_ROWS] = {
	[ROW_RUN] = { "run", "kksmd", UNIT_RUNNING },
	[ROW_PAGES_TO_SCAN] = { "pages_to_scan", "scans a round", UNIT_PAGES_VISITED },
	[ROW_MAX_PAGES_TO_MERGE] = { "max_pages_to_merge", "merges a round",
				     UNIT_PAGES_OR_NO_LIMIT },
	[ROW_SLEEP_US] = { "sleep_us", "sleeps between rounds", UNIT_US },
	[ROW_THREADS] = { "threads", "threads", UNIT_COUNT },
	[ROW_CPU_PERCENT] = { "cpu_percent", "CPU budget", UNIT_PERCENT_OR_FIXED },
	[ROW_AREAS] = { "areas", "areas", UNIT_COUNT },
	[ROW_REGIONS] = { "regions", "regions", UNIT_COUNT },
	[ROW_PAGES_REGISTERED] = { "pages_registered", "registered", UNIT_PAGES },
	[ROW_PAGES_SHARED] = { "pages_shared", "shared", UNIT_PAGES },
	[ROW_PAGES_SHARING] = { "pages_sharing", "sharing them", UNIT_PAGES },
	[ROW_ZERO_PAGES] = { "zero_pages", "zero pages", UNIT_PAGES },
	[ROW_PAGES_UNSHARED] = { "pages_unshared", "without a twin", UNIT_PAGES },
	[ROW_PAGES_VOLATILE] = { "pages_volatile", "changing", UNIT_PAGES },
	[ROW_SAVED_BYTES] = { "saved_bytes", "saved", UNIT_BYTES, .derived = 1 },
	[ROW_METADATA_BYTES] = { "metadata_bytes", "metadata", UNIT_BYTES },
	[ROW_PROFIT_BYTES] = { "profit_bytes", "profit", UNIT_BYTES },
	[ROW_KERNEL_PAGES] = { "kernel_pages", "kernel pages", UNIT_PAGES },
	[ROW_MAX_KERNEL_PAGES] = { "max_kernel_pages", "kernel pages at most", UNIT_PAGES },
	[ROW_PAGES_SCANNED] = { "pages_scanned", "visited", UNIT_PAGES_VISITED },
	[ROW_PAGES_SKIPPED] = { "pages_skipped", "visited, not read", UNIT_PAGES_VISITED },
	[ROW_PAGES_HASHED] = { "pages_hashed", "visited and read", UNIT_PAGES_VISITED },
	[ROW_FULL_SCANS] = { "full_scans", "full scans", UNIT_COUNT },
	[ROW_THP_SPLIT_THRESHOLD] = { "thp_split_threshold", "splits huge pages at",
				      UNIT_PAGES_VISITED },
	[ROW_THP_SPLITS] = { "thp_splits", "huge pages split", UNIT_COUNT },
	[ROW_LONGEST_HOLD_US] = { "longest_hold_us", "longest hold of a lock", UNIT_US },
	[ROW_HELD_US] = { "held_us", "all holds of locks", UNIT_US },
};

/* Parse what a sysfs file holds: one decimal number and the end of the line. */
static int parse_value(const char *text, int64_t *value)
{
	char *end;

	if (!strchr("-0123456789", *text))
		return -1;
	errno = 0;
	*value = strtoll(text, &end, 10);
	if (errno || end == text || strcmp(end, "\n"))
		return -1;
	return 0;
}

static int64_t read_value(const char *dir, const char *name)
{
	char *path, text[32];
	int64_t value;
	FILE *f;

	if (asprintf(&path, "%s/%s", dir, name) < 0)
		die(NO_MEMORY);
	f = fopen(path, "re");
	if (!f && errno == ENOENT)
		die("%s: no such file: %s", path, ksm_hint(EPROTONOSUPPORT));
	if (!f)
		die("cannot open %s: %m; look at its mode and at the mount of /sys", path);
	/* A second line would not fit the format either: it stays unread in text. */
	text[fread(text, 1, sizeof(text) - 1, f)] = '\0';
	if (ferror(f))
		die("cannot read %s: %m; look for ksmdev in the kernel log (dmesg)", path);
	fclose(f);

	if (parse_value(text, &value))
		die("%s: not one number: %s", path, ksm_hint(EPROTONOSUPPORT));
	free(path);
	return value;
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/*
 * The driver counts now and then, and soon after somebody asked: have it count. With very
 * much memory that takes longer than anybody wants to wait, and what it knows will do.
 */
static void wait_until_counted(const char *dir)
{
	const int64_t asked = now_ms();
	int64_t passed = 0;
	char *path;
	bool live;

	/* A recorded tree needs no waiting for. */
	if (asprintf(&path, "%s/stats_age_ms", dir) < 0)
		die(NO_MEMORY);
	live = !access(path, R_OK);
	free(path);
	while (live && passed < COUNT_WAIT_MS && read_value(dir, "stats_age_ms") >= passed) {
		usleep(COUNT_POLL_US);
		passed = now_ms() - asked;
	}
}

/* Fill @values from sysfs below @root, "" for this system's. */
void read_rows(const char *root, int64_t values[NR_ROWS])
{
	char *dir;
	int i;

	if (asprintf(&dir, "%s" SYSFS_DIR, root) < 0)
		die(NO_MEMORY);
	if (access(dir, X_OK) && errno == ENOENT)
		die("%s: %m: %s", dir, ksm_hint(ENOENT));

	wait_until_counted(dir);
	for (i = 0; i < NR_ROWS; i++)
		if (!rows[i].derived)
			values[i] = read_value(dir, rows[i].key);
	values[ROW_SAVED_BYTES] = (values[ROW_PAGES_SHARING] + values[ROW_ZERO_PAGES]) *
				  sysconf(_SC_PAGESIZE);
	free(dir);
}

static void print_number(int64_t value, const char *unit)
{
	printf("%20" PRId64 " %s", value, unit);
}

static void print_mib(int64_t bytes)
{
	printf("%12.1f MiB", bytes / 1048576.0);
}

/* Print the rows for people: the exact number first, then what it amounts to. */
void print_rows(const int64_t values[NR_ROWS])
{
	int64_t value;
	int i;

	for (i = 0; i < NR_ROWS; i++) {
		value = values[i];
		printf("%-22s", rows[i].label);
		switch (rows[i].unit) {
		case UNIT_RUNNING:
			printf("%20s", value ? "running" : "stopped");
			break;
		case UNIT_COUNT:
			printf("%20" PRId64, value);
			break;
		case UNIT_PAGES:
			print_number(value, "pages");
			print_mib(value * sysconf(_SC_PAGESIZE));
			break;
		case UNIT_PAGES_OR_NO_LIMIT:
			print_number(value, value ? "pages" : "(no limit)");
			break;
		case UNIT_PAGES_VISITED:
			print_number(value, "pages");
			break;
		case UNIT_BYTES:
			print_number(value, "bytes");
			print_mib(value);
			break;
		case UNIT_US:
			print_number(value, "us");
			break;
		case UNIT_PERCENT_OR_FIXED:
			print_number(value, value ? "% of a CPU" : "(fixed pace)");
			break;
		}
		putchar('\n');
	}
}

void print_rows_json(const int64_t values[NR_ROWS])
{
	struct json_object *object, *value;
	const char *text;
	int i;

	object = json_object_new_object();
	for (i = 0; object && i < NR_ROWS; i++) {
		if (rows[i].unit == UNIT_RUNNING)
			value = json_object_new_boolean(!!values[i]);
		else
			value = json_object_new_int64(values[i]);
		if (!value || json_object_object_add(object, rows[i].key, value))
			goto err_memory;
	}
	text = object ? json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY) : NULL;
	if (!text)
		goto err_memory;
	puts(text);
	json_object_put(object);
	return;

err_memory:
	die(NO_MEMORY);
}
