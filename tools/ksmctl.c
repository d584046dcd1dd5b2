// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksmctl - control and show the sharing of memory by /dev/ksm
 *
 * start, stop and info take the arguments and print the lines of the program
 * in the announcement of November 2008; start also takes the three words of
 * RHEL 5's, or a budget of CPU time, and info has one line more. What that program
 * did not look at is looked at here: numbers, results and rights. run is for programs that
 * know nothing of /dev/ksm: ksmctl-run.c.
 */
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "ksm.h"
#include "ksmctl.h"
#include "libksm.h"

#define STR(x) #x
#define XSTR(x) STR(x)

const char *argp_program_version =
	"ksmctl " KSMDEV_VERSION " (interface version " XSTR(KSM_API_VERSION) ")";

#define MAX_VERB_ARGS 3

struct options {
	const char *root;
	int json;
	const char *cpu;
	const char *threads;
	struct run_options run;
	const struct verb *verb;
	char *args[MAX_VERB_ARGS];
	int nr_args;
};

struct verb {
	const char *name;
	const char *args;
	const char *help;
	int min_args;
	int max_args;
	void (*run)(const struct options *opts);
};

static void do_start(const struct options *opts);
static void do_stop(const struct options *opts);
static void do_info(const struct options *opts);
static void do_status(const struct options *opts);
static void do_scan(const struct options *opts);
static void do_run(const struct options *opts);

/* The announcement's verbs come first: see find_verb(). */
#define NR_2008_VERBS 3

static const struct verb verbs[] = {
	{ "start", "{PAGES_TO_SCAN [MAX_PAGES_TO_MERGE] SLEEP | --cpu=PERCENT} [--threads=N]",
	  "let the kernel threads visit PAGES_TO_SCAN pages a round, merge at most "
	  "MAX_PAGES_TO_MERGE of them (0 or left out: no limit), and sleep SLEEP "
	  "microseconds between rounds; or use PERCENT of one CPU's time, all together, "
	  "and little when nothing changes; root only",
	  0, 3, do_start },
	{ "stop", "", "stop the kernel threads; what is shared stays shared; root only",
	  0, 0, do_stop },
	{ "info", "", "show the kernel threads' settings", 0, 0, do_info },
	{ "status", "",
	  "show what is registered, shared, saved, and whether the kernel threads run",
	  0, 0, do_status },
	{ "scan", "PAGES_TO_SCAN [MAX_PAGES_TO_MERGE]",
	  "visit that many pages now, by this program instead of a kernel thread", 1, 2, do_scan },
	{ "run", "[--auto[=MIB]] [--exclude=NAMES] [--quiet] [--] COMMAND [ARGUMENT...]",
	  "run COMMAND, and share what it and its children mark with MADV_MERGEABLE", 0, 0, do_run },
};

#define NR_VERBS ((int)(sizeof(verbs) / sizeof(verbs[0])))

void die_with(int status, const char *fmt, ...)
{
	int err = errno;
	va_list ap;

	fflush(stdout);
	fprintf(stderr, "%s: ", program_invocation_short_name);
	va_start(ap, fmt);
	errno = err;	/* for %m */
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(status);
}

/* A full disk behind a redirection shows when the last of it is written. */
static void close_stdout(void)
{
	int failed = ferror(stdout);

	if (!fclose(stdout) && !failed)
		return;
	fprintf(stderr, "%s: cannot write to standard output: %m; look where it goes to\n",
		program_invocation_short_name);
	_exit(EXIT_FAILURE);
}

/*
 * Find the verb that @word is or abbreviates. A word that the announcement's
 * program understood keeps its meaning: the verbs that came later are looked
 * at only where it had none ("sta" is start, "stat" is status).
 */
static const struct verb *find_verb(const char *word)
{
	const struct verb *found = NULL;
	size_t len = strlen(word);
	char candidates[64] = "";
	int i, matches = 0;

	for (i = 0; i < NR_VERBS; i++) {
		if (strncmp(word, verbs[i].name, len))
			continue;
		if (i >= NR_2008_VERBS && matches == 1 && found < verbs + NR_2008_VERBS)
			break;
		found = &verbs[i];
		matches++;
		strcat(strcat(candidates, " "), verbs[i].name);
	}
	if (matches == 1)
		return found;
	if (!matches)
		die_usage("unknown command %s; see %s --help", word, program_invocation_short_name);
	die_usage("\"%s\" is ambiguous; say which one:%s", word, candidates);
}

static unsigned int parse_number_to(const char *name, const char *text, unsigned int min,
				    unsigned int max)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (text[strspn(text, "0123456789")] || end == text || errno ||
	    value < min || value > max)
		die_usage("%s: \"%s\" is not a whole number from %u to %u", name, text, min, max);
	return value;
}

static unsigned int parse_number(const char *name, const char *text, unsigned int min)
{
	return parse_number_to(name, text, min, UINT32_MAX);
}

static int open_device(const struct options *opts)
{
	int fd, version;
	char *path;

	if (asprintf(&path, "%s/dev/ksm", opts->root) < 0)
		die(NO_MEMORY);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die("cannot open %s: %m: %s", path, ksm_hint(errno));
	version = ioctl(fd, KSM_GET_API_VERSION);
	if (version < 0)
		die("%s does not answer as the ksm device does: %m: %s", path, ksm_hint(errno));
	if (version != KSM_API_VERSION)
		die("%s speaks version %d of the interface, this program version %d: %s",
		    path, version, KSM_API_VERSION, ksm_hint(EPROTONOSUPPORT));
	free(path);
	return fd;
}

static void __attribute__((noreturn)) die_refused(const struct options *opts)
{
	if (errno == EPERM)
		die("%s: %m: it takes CAP_SYS_ADMIN; run this as root", opts->verb->name);
	if (errno == EINVAL)
		die("%s: %m: the module refuses these numbers; see ksmctl(8)", opts->verb->name);
	die("%s: %m: %s", opts->verb->name, ksm_hint(errno));
}

static void start_stop(const struct options *opts, int fd, struct ksm_kthread_info *info)
{
	if (ioctl(fd, KSM_START_STOP_KTHREAD, info) < 0)
		die_refused(opts);
}

static void set_pace(const struct options *opts, int fd, struct ksm_pace *pace)
{
	pace->size = sizeof(*pace);
	if (ioctl(fd, KSM_SET_PACE, pace) < 0)
		die_refused(opts);
}

static void get_info(int fd, struct ksm_kthread_info *info)
{
	if (ioctl(fd, KSM_GET_INFO_KTHREAD, info) < 0)
		die("cannot read the settings: %m: %s", ksm_hint(errno));
}

static void start_fixed(const struct options *opts, struct ksm_pace *pace)
{
	int three = opts->nr_args == 3;
	struct ksm_kthread_info info = {
		.pages_to_scan = parse_number("pages_to_scan", opts->args[0], 1),
		.max_pages_to_merge =
			three ? parse_number("max_pages_to_merge", opts->args[1], 0) : 0,
		.sleep = parse_number("sleep", opts->args[opts->nr_args - 1], 0),
		.flags = ksm_control_flags_run,
	};
	int fd = open_device(opts);

	/* In this order: to end a budget while it runs takes pages to scan. */
	start_stop(opts, fd, &info);
	set_pace(opts, fd, pace);
	close(fd);
}

static void start_budget(const struct options *opts, struct ksm_pace *pace)
{
	struct ksm_kthread_info info = { 0 };
	int fd;

	pace->cpu_percent = parse_number_to("cpu", opts->cpu, 1, 100 * KSM_MAX_THREADS);
	if (pace->threads && pace->cpu_percent > 100 * pace->threads)
		die_usage("cpu: %u threads can use %u per cent at most; give a smaller number, or more threads",
			  pace->threads, 100 * pace->threads);
	fd = open_device(opts);
	set_pace(opts, fd, pace);
	/* The numbers of the fixed pace stay what they were. */
	get_info(fd, &info);
	info.flags = ksm_control_flags_run;
	start_stop(opts, fd, &info);
	close(fd);
}

static void do_start(const struct options *opts)
{
	struct ksm_pace pace = {
		.threads = opts->threads ?
			parse_number_to("threads", opts->threads, 1, KSM_MAX_THREADS) : 0,
	};

	if (opts->cpu)
		start_budget(opts, &pace);
	else
		start_fixed(opts, &pace);
	printf("created scanner\n");
}

static void do_stop(const struct options *opts)
{
	struct ksm_kthread_info info = { .flags = 0 };
	int fd = open_device(opts);

	start_stop(opts, fd, &info);
	close(fd);
	printf("stopped scanner\n");
}

static void do_info(const struct options *opts)
{
	struct ksm_pace pace = { .size = sizeof(pace) };
	struct ksm_kthread_info info = { 0 };
	int fd = open_device(opts);

	get_info(fd, &info);
	if (ioctl(fd, KSM_GET_PACE, &pace) < 0)
		die("cannot read the settings: %m: %s", ksm_hint(errno));
	close(fd);
	printf("flags %u, pages_to_scan %u npages_merge %u, sleep_time %u\n",
	       info.flags, info.pages_to_scan, info.max_pages_to_merge, info.sleep);
	printf("threads %u, cpu_percent %u\n", pace.threads, pace.cpu_percent);
}

static void do_status(const struct options *opts)
{
	int64_t values[NR_ROWS];

	read_rows(opts->root, values);
	if (opts->json)
		print_rows_json(values);
	else
		print_rows(values);
}

static void do_scan(const struct options *opts)
{
	int two = opts->nr_args == 2;
	struct ksm_user_scan scan = {
		.pages_to_scan = parse_number("pages_to_scan", opts->args[0], 1),
		.max_pages_to_merge =
			two ? parse_number("max_pages_to_merge", opts->args[1], 0) : 0,
	};
	int64_t values[NR_ROWS];
	int fd, scan_fd, ret;

	fd = open_device(opts);
	scan_fd = ioctl(fd, KSM_CREATE_SCAN);
	if (scan_fd < 0)
		die("cannot create a scan: %m: %s", ksm_hint(errno));
	/* Stopped and continued (Ctrl-Z, fg), the scan goes on from its place. */
	do
		ret = ioctl(scan_fd, KSM_SCAN, &scan);
	while (ret < 0 && errno == EINTR);
	if (ret < 0)
		die("scan: %m: %s", ksm_hint(errno));
	close(scan_fd);
	close(fd);

	read_rows(opts->root, values);
	printf("scan done, pages_shared %lld, pages_sharing %lld, zero_pages %lld\n",
	       (long long)values[ROW_PAGES_SHARED], (long long)values[ROW_PAGES_SHARING],
	       (long long)values[ROW_ZERO_PAGES]);
}

static void do_run(const struct options *opts)
{
	if (opts->run.min_mib)
		parse_number_to("auto", opts->run.min_mib, 1, 1 << 20);
	run_command(&opts->run);
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
	struct options *opts = state->input;

	switch (key) {
	case 'r':
		opts->root = arg;
		break;
	case 'j':
		opts->json = 1;
		break;
	case 'c':
		opts->cpu = arg;
		break;
	case 't':
		opts->threads = arg;
		break;
	case 'a':
		opts->run.min_mib = arg ? arg : RUN_MIN_MIB;
		break;
	case 'x':
		opts->run.exclude = arg;
		break;
	case 'q':
		opts->run.quiet = 1;
		break;
	case ARGP_KEY_ARG:
		if (!opts->verb) {
			opts->verb = find_verb(arg);
			if (opts->verb->run == do_run)
				argp_err_exit_status = EXIT_RUN;
		} else if (opts->verb->run == do_run) {
			/* All that follows is the command's. */
			opts->run.command = &state->argv[state->next - 1];
			state->next = state->argc;
		} else if (opts->nr_args < MAX_VERB_ARGS)
			opts->args[opts->nr_args++] = arg;
		else
			argp_error(state, "too many arguments");
		break;
	case ARGP_KEY_NO_ARGS:
		argp_error(state, "what shall it do?");
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

/* Put the table of verbs behind the options. */
static char *help_filter(int key, const char *text, void *input)
{
	char *help;
	size_t size;
	FILE *f;
	int i;

	(void)input;
	if (key != ARGP_KEY_HELP_POST_DOC)
		return (char *)text;
	f = open_memstream(&help, &size);
	if (!f)
		return (char *)text;
	fputs("Verbs:\n", f);
	for (i = 0; i < NR_VERBS; i++)
		fprintf(f, "\n%s%s%s\n%s\n", verbs[i].name, *verbs[i].args ? " " : "",
			verbs[i].args, verbs[i].help);
	fprintf(f, "\n%s", text);
	fclose(f);
	return help;
}

static const struct argp_option argp_options[] = {
	{ "auto", 'a', "MIB", OPTION_ARG_OPTIONAL,
	  "run: share all private memory, in pieces of at least so much (" RUN_MIN_MIB ")", 0 },
	{ "cpu", 'c', "PERCENT", 0,
	  "start: let all threads together use this much CPU time, in per cent of one CPU", 0 },
	{ "exclude", 'x', "NAMES", 0, "run: --auto is not for these programs (a:b:c)", 0 },
	{ "json", 'j', NULL, 0, "status: print JSON", 0 },
	{ "quiet", 'q', NULL, 0, "run: say nothing when there is no sharing", 0 },
	{ "root", 'r', "DIR", 0, "use the device and sysfs below DIR: DIR/dev/ksm, DIR/sys", 0 },
	{ "threads", 't', "N", 0, "start: scan with N kernel threads", 0 },
	{ 0 }
};

static const struct argp argp = {
	.options = argp_options,
	.parser = parse_option,
	.args_doc = "VERB [ARGUMENT...]",
	.doc = "Control and show the sharing of identical memory pages by /dev/ksm."
	       "\vA verb may be abbreviated. Exit status: 0 done, 1 failed, 2 wrong usage; of run: "
	       "COMMAND's, 125 failed, 126 COMMAND cannot be run, 127 there is no COMMAND.",
	.help_filter = help_filter,
};

static int usage_is_right(const struct options *opts)
{
	const struct verb *verb = opts->verb;
	int for_run = opts->run.min_mib || opts->run.exclude || opts->run.quiet;

	if (opts->json && verb->run != do_status)
		return 0;
	if (verb->run == do_run)
		return opts->run.command && !*opts->root && !opts->cpu && !opts->threads;
	if (for_run)
		return 0;
	if (verb->run == do_start)
		return opts->cpu ? !opts->nr_args : opts->nr_args >= 2;
	return !opts->cpu && !opts->threads &&
	       opts->nr_args >= verb->min_args && opts->nr_args <= verb->max_args;
}

int main(int argc, char **argv)
{
	struct options opts = { .root = "" };
	const struct verb *verb;

	atexit(close_stdout);
	argp_err_exit_status = EXIT_USAGE;
	argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &opts);

	verb = opts.verb;
	if (!usage_is_right(&opts)) {
		fprintf(stderr, "usage: %s %s%s%s\n", program_invocation_short_name, verb->name,
			verb->run == do_status ? " [--json]" : *verb->args ? " " : "", verb->args);
		return argp_err_exit_status;
	}
	verb->run(&opts);
	return EXIT_SUCCESS;
}
