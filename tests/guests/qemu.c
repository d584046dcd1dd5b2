// SPDX-License-Identifier: GPL-2.0-only
/*
 * qemu.c - start guests and talk to them; see qemu.h
 *
 * Ports and monitors are socket pairs whose other ends QEMU inherits, so nothing that a
 * guest says can be lost, and the end of a QEMU is the end of a file.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm_util.h"
#include "qemu.h"

/* So long may an emulated guest be silent; a minute was never seen. */
#define PATIENCE_S 300

#define MAX_ARGS 64

static char line[65536];

static void __attribute__((noreturn)) lost(struct guest *g, const char *what)
{
	int error = errno;

	fflush(stdout);
	ksm_shell("tail -n 40 %s; cat %s.qemu", g->log, g->log);
	ksm_die("guest %d: %s: %s", g->id, what, strerror(error));
}

static FILE *end_of_pair(int *theirs)
{
	struct timeval patience = { .tv_sec = PATIENCE_S };
	int pair[2];
	FILE *f;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) ||
	    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
		ksm_die("socketpair: %s", strerror(errno));
	f = fdopen(pair[0], "r");
	if (!f)
		ksm_die("fdopen: %s", strerror(errno));
	*theirs = pair[1];
	return f;
}

/* In the child: become QEMU. */
static void run_qemu(const struct guest *g, const struct guest_options *options,
		     int port, int qmp)
{
	char memory[16], kernel[256], log[64], own_log[64], port_arg[64], qmp_arg[64];
	const char *args[MAX_ARGS] = {
		"qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
		/* Emulated twice, xsave has a size that Linux warns of. */
		"-machine", "pc,hpet=off", "-accel", "kvm", "-cpu", "host,-xsave",
		"-m", memory, "-kernel", GUEST_KERNEL, "-initrd", GUEST_INITRD,
		"-append", kernel,
		"-chardev", log, "-serial", "chardev:log",
		"-chardev", port_arg, "-serial", "chardev:port",
		"-chardev", qmp_arg, "-mon", "chardev=qmp,mode=control",
	};
	int n = 0, said;

	snprintf(memory, sizeof(memory), "%dM", g->mib);
	/* Warnings and worse, which is what its log is searched for. */
	snprintf(kernel, sizeof(kernel), "console=ttyS0 loglevel=5 panic=-1 id=%d %s", g->id,
		 options->append ? options->append : "");
	snprintf(log, sizeof(log), "file,id=log,append=on,path=%s", g->log);
	snprintf(port_arg, sizeof(port_arg), "socket,id=port,fd=%d", port);
	snprintf(qmp_arg, sizeof(qmp_arg), "socket,id=qmp,fd=%d", qmp);
	while (args[n])
		n++;
	for (int i = 0; options->more && options->more[i] && n < MAX_ARGS - 1; i++)
		args[n++] = options->more[i];

	dup2(open("/dev/null", O_RDONLY), 0);
	snprintf(own_log, sizeof(own_log), "%s.qemu", g->log);
	said = open(own_log, O_WRONLY | O_CREAT | O_APPEND, 0600);
	dup2(said, 1);
	dup2(said, 2);
	fcntl(port, F_SETFD, 0);
	fcntl(qmp, F_SETFD, 0);
	if (!options->no_share)
		setenv("LD_PRELOAD", GUEST_PRELOAD, 1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	execvp(args[0], (char **)args);
	perror(args[0]);
	_exit(127);
}

void guest_start(struct guest *g, int id, int mib, const struct guest_options *options)
{
	static const struct guest_options none;
	int port, qmp;

	*g = (struct guest){ .id = id, .mib = mib };
	snprintf(g->log, sizeof(g->log), "/tmp/guest-%d", id);
	g->port = end_of_pair(&port);
	g->qmp = end_of_pair(&qmp);
	fflush(stdout);
	g->pid = fork();
	if (g->pid < 0)
		ksm_die("fork: %s", strerror(errno));
	if (!g->pid)
		run_qemu(g, options ? options : &none, port, qmp);
	close(port);
	close(qmp);
}

/* The next line that a guest or its QEMU sends. */
static char *next_line(struct guest *g, FILE *from, const char *who)
{
	errno = 0;
	if (!fgets(line, sizeof(line), from))
		lost(g, who);
	line[strcspn(line, "\r\n")] = 0;
	return line;
}

void guest_connect(struct guest *g)
{
	const char *at;

	guest_qmp(g, "{\"execute\": \"qmp_capabilities\"}");
	/* Memory below 2 GiB is in one piece, so that one address tells all. */
	at = guest_qmp(g, "{\"execute\": \"human-monitor-command\", \"arguments\": "
			  "{\"command-line\": \"gpa2hva 0x100000\"}}");
	at = strstr(at, " is 0x");
	if (!at)
		lost(g, line);
	g->ram = (char *)strtoull(at + 4, NULL, 16) - 0x100000;
}

void guest_ready(struct guest *g)
{
	const char *said;

	do {
		said = next_line(g, g->port, "it does not boot");
		if (!strncmp(said, "failed", 6))
			lost(g, said);
	} while (strcmp(said, "ready"));
	if (!g->ram)
		guest_connect(g);
}

void guest_kill(struct guest *g, int sig)
{
	if (g->pid) {
		kill(g->pid, sig);
		waitpid(g->pid, NULL, 0);
	}
	g->pid = 0;
	fclose(g->port);
	fclose(g->qmp);
}

static void tell(struct guest *g, const char *fmt, va_list ap)
{
	char command[64];
	int n = vsnprintf(command, sizeof(command) - 1, fmt, ap);

	command[n++] = '\n';
	/* If it is gone, that shows when there is no answer. */
	send(fileno(g->port), command, n, MSG_NOSIGNAL);
}

void guest_tell(struct guest *g, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	tell(g, fmt, ap);
	va_end(ap);
}

const char *guest_answer(struct guest *g)
{
	char *answer = next_line(g, g->port, "no answer");

	if (strncmp(answer, "ok", 2))
		lost(g, answer);
	return answer + 2;
}

long guest_ask(struct guest *g, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	tell(g, fmt, ap);
	va_end(ap);
	return strtol(guest_answer(g), NULL, 10);
}

const char *guest_qmp(struct guest *g, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	if (vdprintf(fileno(g->qmp), fmt, ap) < 0)
		lost(g, "its monitor");
	va_end(ap);
	/* Before and between answers there are the greeting and events. */
	for (;;) {
		next_line(g, g->qmp, "its monitor");
		if (!strncmp(line, "{\"return\"", 9))
			return line;
		if (!strncmp(line, "{\"error\"", 8))
			lost(g, line);
	}
}

char *guest_page(const struct guest *g, uint64_t guest_frame)
{
	return g->ram + guest_frame * PGSZ;
}

size_t guest_pages(const struct guest *g)
{
	return (size_t)g->mib * 1024 * 1024 / PGSZ;
}

uint64_t *guest_frames(const struct guest *g)
{
	uint64_t *frames = calloc(guest_pages(g), sizeof(*frames));

	if (!frames)
		ksm_die("no memory: give the VM more");
	ksm_pfns(g->pid, g->ram, guest_pages(g), frames);
	return frames;
}

long guest_pss(const struct guest *g)
{
	char path[48], text[128];
	long kib = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", g->pid);
	f = fopen(path, "re");
	if (!f)
		ksm_die("%s: %s", path, strerror(errno));
	while (kib < 0 && fgets(text, sizeof(text), f))
		if (sscanf(text, "Pss: %ld kB", &kib) != 1)
			kib = -1;
	fclose(f);
	return kib;
}
