/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksmctl.h - what the parts of ksmctl share
 */
#ifndef KSMCTL_H
#define KSMCTL_H

#include <argp.h>
#include <stdint.h>

/* The rows of ksmctl status, in the order in which they are printed. */
enum row_id {
	ROW_RUN,
	ROW_PAGES_TO_SCAN,
	ROW_MAX_PAGES_TO_MERGE,
	ROW_SLEEP_US,
	ROW_THREADS,
	ROW_CPU_PERCENT,
	ROW_AREAS,
	ROW_REGIONS,
	ROW_PAGES_REGISTERED,
	ROW_PAGES_SHARED,
	ROW_PAGES_SHARING,
	ROW_ZERO_PAGES,
	ROW_PAGES_UNSHARED,
	ROW_PAGES_VOLATILE,
	ROW_SAVED_BYTES,
	ROW_METADATA_BYTES,
	ROW_PROFIT_BYTES,
	ROW_KERNEL_PAGES,
	ROW_MAX_KERNEL_PAGES,
	ROW_PAGES_SCANNED,
	ROW_PAGES_SKIPPED,
	ROW_PAGES_HASHED,
	ROW_FULL_SCANS,
	ROW_THP_SPLIT_THRESHOLD,
	ROW_THP_SPLITS,
	ROW_LONGEST_HOLD_US,
	ROW_HELD_US,
	NR_ROWS
};

#define NO_MEMORY "out of memory; end something else and try again"

/* EXIT_RUN is run's for all that goes wrong before the command has a say, as with env(1). */
enum { EXIT_USAGE = 2, EXIT_RUN = 125, EXIT_CANNOT_RUN = 126, EXIT_NO_COMMAND = 127 };

/* Print a message to standard error and exit. */
void die_with(int status, const char *fmt, ...) __attribute__((noreturn, format(printf, 2, 3)));
#define die(...) die_with(EXIT_FAILURE, __VA_ARGS__)
#define die_usage(...) die_with(argp_err_exit_status, __VA_ARGS__)

/* MiB; more than the stack of a thread. */
#define RUN_MIN_MIB "16"

/* What ksmctl run is told; what was not said is NULL. */
struct run_options {
	const char *min_mib;
	const char *exclude;
	int quiet;
	char **command;
};

void run_command(const struct run_options *opts) __attribute__((noreturn));

void read_rows(const char *root, int64_t values[NR_ROWS]);
void print_rows(const int64_t values[NR_ROWS]);
void print_rows_json(const int64_t values[NR_ROWS]);

#endif /* KSMCTL_H */
