// SPDX-License-Identifier: GPL-2.0-only
/*
 * long.c - what happens to guests in their lives, while kksmd scans: the long tests
 *
 * Like host.c, in the same VM. The guests rewrite and check their memory all the time (guest.c),
 * and kksmd runs at full speed. Each case ends with every byte verified and the guests' kernel
 * logs searched. The host's is searched by tests/vm/run. Prints TAP.
 *
 *	patterns	rewriting and checking for minutes
 *	thp		guest memory in huge pages, which are split to be shared
 *	balloon		virtio-balloon takes memory away and gives it back
 *	reboot		by the monitor and by the guest: all that was shared goes, and is shared anew
 *	migration	to another QEMU, live; merged on the way
 *	snapshot	stopped and continued; written to a file and restored from it
 *	pins		disks, by O_DIRECT in the guest and (loop, brd; io_uring, AIO; slow) in QEMU
 *			or by its threads; vhost, by vsock
 *	kill		kill -9 in the middle of a scan, again and again
 *	unwanted	a guest with mem-merge=off is left alone
 *	boot		guests boot while kksmd has no pause at all (boot.c)
 *	faults		how often guests fault for what kksmd does (faults.c)
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "cases.h"
#include "checks.h"

#define MIB		(1L << 20)
#define DISK_PAGES	2048
#define ECHO_PORT	1000

static struct ksm k;
static int seconds = 120;

/* For guests that need drivers, by their kernel's arguments. */
static char with_modules[512];

/* They go into the guests' initramfs; the guests are told in which order to load them. */
static void bring_modules(void)
{
	size_t n;
	FILE *f;

	ksm_shell("/guest/modules virtio_pci virtio_blk virtio_balloon vmw_vsock_virtio_transport "
		  ">/tmp/modules");
	ksm_shell("mkdir /tmp/top && cp $(cat /tmp/modules) /tmp/top && cd /tmp/top && "
		  "ls | cpio -o -H newc >>" GUEST_INITRD " 2>/dev/null");
	f = popen("sed 's,.*/,,; s,[.]ko$,,' /tmp/modules | tr '\\n' ,", "re");
	if (!f)
		ksm_die("popen: %s", strerror(errno));
	n = snprintf(with_modules, sizeof(with_modules), "modules=");
	n += fread(with_modules + n, 1, sizeof(with_modules) - n - 1, f);
	with_modules[n] = 0;
	pclose(f);
}

/* Common pages are, or become, the same frames in both, who read what they should. */
static void check_shared(struct guest *g, const char *when)
{
	uint64_t in_a[SAMPLE], in_b[SAMPLE];
	long bad;
	int n;

	for (int i = 0; i < 2; i++)
		guest_ask(&g[i], "common 0 %d", SAMPLE);
	sample(&g[0], in_a);
	sample(&g[1], in_b);
	n = wait_same(&g[0], in_a, &g[1], in_b, 0);
	check(n == SAMPLE, "%s: %d of %d common pages are the same frames in both",
	      when, n, SAMPLE);
	bad = wrong_pages(g, 2);
	check(!bad, "%s: every byte is right, %ld pages wrong", when, bad);
}

/* Wait until the answer to a query holds this; false if that will not be. */
static bool wait_qmp(struct guest *g, const char *query, const char *wanted)
{
	double begin = ksm_now();

	for (;;) {
		const char *state = guest_qmp(g, "{\"execute\": \"%s\"}", query);

		if (strstr(state, wanted))
			return true;
		if (strstr(state, "\"failed\"") || ksm_now() - begin > LIMIT_S) {
			printf("# %s: %s\n", query, state);
			return false;
		}
		usleep(100000);
	}
}

/* Wait until it is at most so many; what it is then. */
static long long wait_at_most(const char *name, long long value)
{
	double begin = ksm_now();

	while (ksm_stat(name) > value && ksm_now() - begin < LIMIT_S)
		usleep(100000);
	return ksm_stat(name);
}

/* How many shared pages there are when no more come, while the guests do nothing. */
static long long settled(void)
{
	long long pages;

	do {
		pages = ksm_stat("kernel_pages");
		ksm_wait_more("full_scans", 2, LIMIT_S);
	} while (ksm_stat("kernel_pages") > pages);
	return pages;
}

/* ---- patterns ---- */

static void patterns(void)
{
	struct guest g[2];

	start_guests(g, 2, GUEST_MIB, NULL);
	begin_work(g, 2);
	wait_scans(seconds, "rewriting");
	end_work(g, 2, "rewriting");
	check_shared(g, "afterwards");
	end_guests(g, 2);
}

/* ---- huge pages ---- */

static long huge_pages(const struct guest *g)
{
	return ksm_status(g->pid, "AnonHugePages") / KSM_HUGE_PAGES;
}

static void thp(void)
{
	long long splits = ksm_stat("thp_splits");
	struct guest g[2];
	long before[2];

	/* Shared memory is not huge any more, so look before it is. */
	ksm_stop(k.dev);
	start_guests(g, 2, GUEST_MIB, NULL);
	for (int i = 0; i < 2; i++) {
		before[i] = huge_pages(&g[i]);
		check(before[i] >= PAGES / KSM_HUGE_PAGES, "guest %d has %ld huge pages",
		      g[i].id, before[i]);
	}
	begin_work(g, 2);
	start_kksmd(&k);
	wait_scans(10, "huge pages");
	splits = ksm_stat("thp_splits") - splits;
	check(splits > 0, "%lld huge pages were split to be shared", splits);
	for (int i = 0; i < 2; i++)
		check(huge_pages(&g[i]) < before[i], "guest %d has %ld left", g[i].id,
		      huge_pages(&g[i]));
	end_work(g, 2, "huge pages");
	check_shared(g, "split");
	end_guests(g, 2);
}

/* ---- balloon ---- */

/* So much of 256 MiB the guests have filled before the balloon comes. */
#define BALLOON_MIB	256
#define BALLOON_PAGES	32768
#define SMALL_MIB	112

/* How many pages of its memory are there. */
static long resident(const struct guest *g)
{
	uint64_t *frames = guest_frames(g);
	long present = 0;

	for (size_t i = 0; i < guest_pages(g); i++)
		present += frames[i] != 0;
	free(frames);
	return present;
}

static void inflate(struct guest *g, long mib)
{
	char actual[48];

	guest_qmp(g, "{\"execute\": \"balloon\", \"arguments\": {\"value\": %ld}}", mib * MIB);
	snprintf(actual, sizeof(actual), "\"actual\": %ld}", mib * MIB);
	check(wait_qmp(g, "query-balloon", actual), "the balloon leaves guest %d %ld MiB",
	      g->id, mib);
}

static void balloon(void)
{
	static const char *const device[] = { "-device", "virtio-balloon-pci", NULL };
	const struct guest_options options = { .more = device, .append = with_modules };
	struct guest g[2];
	long long kernel_pages;
	long bad, pages, left;

	start_guests(g, 2, BALLOON_MIB, &options);
	fill_guests(g, 2, BALLOON_PAGES);
	check_saved(BALLOON_PAGES);
	kernel_pages = settled();
	fill_guests(g, 2, PAGES);
	begin_work(g, 2);
	for (int i = 0; i < 2; i++) {
		pages = resident(&g[i]);
		inflate(&g[i], SMALL_MIB);
		left = resident(&g[i]);
		/* Some were never there, and some come back as parts of huge pages. */
		check(pages - left >= (BALLOON_MIB - SMALL_MIB) / 2 * MIB / (long)PGSZ,
		      "of its %ld pages %ld are left", pages, left);
	}
	/* Half of what was filled first was shared, one for both; of that most is gone. */
	pages = kernel_pages - BALLOON_PAGES / 4;
	check(wait_at_most("kernel_pages", pages) <= pages,
	      "shared pages are gone: %lld were there, %lld are left", kernel_pages,
	      ksm_stat("kernel_pages"));
	wait_scans(5, "balloon");
	for (int i = 0; i < 2; i++)
		inflate(&g[i], BALLOON_MIB);
	end_work(g, 2, "balloon");
	fill_guests(g, 2, BALLOON_PAGES);
	check_saved(BALLOON_PAGES);
	bad = wrong_pages(g, 2);
	check(!bad, "every byte of what came back is right, %ld pages wrong", bad);
	end_guests(g, 2);
}

/* ---- reboot ---- */

static void reboot_guests(void)
{
	/* At each boot all free memory is overwritten. */
	const struct guest_options options = { .append = "memtest=1" };
	long long kernel_pages, most;
	struct guest g[2];

	start_guests(g, 2, GUEST_MIB, &options);
	check_saved(PAGES);
	kernel_pages = settled();
	begin_work(g, 1);
	wait_scans(0, "before the reset");
	guest_qmp(&g[0], "{\"execute\": \"system_reset\"}");
	guest_tell(&g[1], "reboot");
	for (int i = 0; i < 2; i++)
		guest_ready(&g[i]);
	/* Half of what they held was shared, one for both. */
	most = kernel_pages - PAGES / 2 * 3 / 4;
	check(wait_at_most("kernel_pages", most) <= most,
	      "both booted again: of %lld shared pages %lld are left", kernel_pages,
	      ksm_stat("kernel_pages"));
	fill_guests(g, 2, PAGES);
	check_saved(PAGES);
	check_shared(g, "rebooted");
	begin_work(g, 2);
	wait_scans(5, "rebooted");
	end_work(g, 2, "rebooted");
	end_guests(g, 2);
}

/* ---- migration ---- */

/* Pages of a guest that two QEMUs hold in the same frames: the one it comes from, and the other. */
static int arrived(const struct guest *there, const struct guest *here, const uint64_t *frames)
{
	double begin = ksm_now();
	int n;

	while (!(n = same(there, frames, here, frames, 0)) && ksm_now() - begin < LIMIT_S)
		usleep(100000);
	return n;
}

static void migration(void)
{
	static const char *const incoming[] = { "-incoming", "unix:/tmp/migration", NULL };
	const struct guest_options options = { .more = incoming };
	struct guest g[2], there;
	uint64_t frames[SAMPLE];
	int n;

	start_guests(g, 2, GUEST_MIB, NULL);
	check_saved(PAGES);
	sample(&g[0], frames);
	begin_work(g, 2);
	guest_start(&there, g[0].id, GUEST_MIB, &options);
	guest_connect(&there);
	/* Slowly at first, so that there is a way. */
	guest_qmp(&g[0], "{\"execute\": \"migrate-set-parameters\", \"arguments\": "
			 "{\"max-bandwidth\": %ld, \"downtime-limit\": 20000}}", 4 * MIB);
	guest_qmp(&g[0], "{\"execute\": \"migrate\", \"arguments\": "
			 "{\"uri\": \"unix:/tmp/migration\"}}");
	n = arrived(&there, &g[0], frames);
	check(n && wait_qmp(&g[0], "query-migrate", "\"active\""),
	      "%d of %d pages are shared by both QEMUs before all have arrived", n, SAMPLE);
	wait_scans(5, "on the way");
	guest_qmp(&g[0], "{\"execute\": \"migrate-set-parameters\", \"arguments\": "
			 "{\"max-bandwidth\": %ld}}", 1024 * MIB);
	check(wait_qmp(&g[0], "query-migrate", "\"completed\""), "all have arrived");
	guest_kill(&g[0], SIGTERM);
	g[0] = there;
	wait_scans(5, "elsewhere");
	end_work(g, 2, "elsewhere");
	check_shared(g, "elsewhere");
	end_guests(g, 2);
}

/* ---- snapshot ---- */

static void snapshot(void)
{
	static const char *const incoming[] = { "-incoming", "exec:cat /tmp/snapshot", NULL };
	const struct guest_options options = { .more = incoming };
	struct guest g[2];
	int id;

	start_guests(g, 2, GUEST_MIB, NULL);
	begin_work(g, 2);
	wait_scans(0, "before the stop");
	guest_qmp(&g[0], "{\"execute\": \"stop\"}");
	wait_scans(5, "stopped");
	guest_qmp(&g[0], "{\"execute\": \"cont\"}");
	wait_scans(5, "continued");
	end_work(g, 1, "continued");

	begin_work(g, 1);
	guest_qmp(&g[0], "{\"execute\": \"stop\"}");
	guest_qmp(&g[0], "{\"execute\": \"migrate\", \"arguments\": "
			 "{\"uri\": \"exec:cat >/tmp/snapshot\"}}");
	check(wait_qmp(&g[0], "query-migrate", "\"completed\""), "written to a file");
	id = g[0].id;
	guest_kill(&g[0], SIGTERM);
	wait_scans(0, "only a file");
	guest_start(&g[0], id, GUEST_MIB, &options);
	guest_connect(&g[0]);
	check(wait_qmp(&g[0], "query-status", "\"paused\""), "restored from the file");
	guest_qmp(&g[0], "{\"execute\": \"cont\"}");
	wait_scans(5, "restored");
	end_work(g, 2, "restored");
	check_shared(g, "restored");
	unlink("/tmp/snapshot");
	end_guests(g, 2);
}

/* ---- pins ---- */

/* Send back whatever comes in, to each who connects. */
static pid_t start_echo(void)
{
	const struct sockaddr_vm address = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_ANY,
		.svm_port = ECHO_PORT,
	};
	static char buf[65536];
	int fd, peer;
	ssize_t n;
	pid_t pid;

	ksm_shell("modprobe vhost_vsock");
	fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (const struct sockaddr *)&address, sizeof(address)) ||
	    listen(fd, 2))
		ksm_die("vsock: %s", strerror(errno));
	pid = fork();
	if (pid) {
		close(fd);
		return pid;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGCHLD, SIG_IGN);
	while ((peer = accept(fd, NULL, NULL)) >= 0) {
		if (fork()) {
			close(peer);
			continue;
		}
		while ((n = recv(peer, buf, sizeof(buf), 0)) > 0)
			if (send(peer, buf, n, MSG_NOSIGNAL) < n)
				break;
		_exit(0);
	}
	_exit(1);
}

/*
 * The kernel lets five reads a second through; the others wait, with the guest's pages
 * pinned, while kksmd passes over them again and again.
 */
static void slow_reads(const struct guest *g, const char *device)
{
	ksm_shell("cd /sys/fs/cgroup && echo +io >cgroup.subtree_control && mkdir -p slow && "
		  "echo \"$(cat /sys/block/%s/dev) riops=5\" >slow/io.max && "
		  "echo %d >slow/cgroup.procs", device, g->pid);
}

static void pins(void)
{
	static char loop_drive[128];
	static const char *const devices[2][8] = { {
		"-drive", loop_drive,
		"-drive", "file=/tmp/disk-1,if=virtio,format=raw,cache=writeback,aio=threads",
		"-device", "vhost-vsock-pci,guest-cid=3",
	}, {
		"-drive", "file=/dev/ram0,if=virtio,format=raw,cache=none,aio=native",
		"-drive", "file=/tmp/disk-2,if=virtio,format=raw,cache=writeback,aio=threads",
		"-device", "vhost-vsock-pci,guest-cid=4",
	} };
	struct guest_options options = { 0 };
	char append[sizeof(with_modules) + 32];
	struct ksm_loop loop;
	struct guest g[2];
	pid_t echo;
	long moves;

	ksm_loop_open(&loop, DISK_PAGES);
	snprintf(loop_drive, sizeof(loop_drive),
		 "file=%s,if=virtio,format=raw,cache=none,aio=io_uring", loop.path);
	ksm_shell("modprobe brd rd_nr=1 rd_size=%lu", DISK_PAGES * PGSZ / 1024);
	for (int i = 1; i <= 2; i++)
		ksm_shell("truncate -s %lu /tmp/disk-%d", DISK_PAGES * PGSZ, i);
	echo = start_echo();
	snprintf(append, sizeof(append), "disks=2 echo=%d %s", ECHO_PORT, with_modules);
	options.append = append;
	for (int i = 0; i < 2; i++) {
		options.more = devices[i];
		start_guests(&g[i], 1, GUEST_MIB, &options);
	}
	slow_reads(&g[0], strrchr(loop.path, '/') + 1);
	slow_reads(&g[1], "ram0");
	begin_work(g, 2);
	wait_scans(30, "pins");
	moves = end_work(g, 2, "pins");
	check(moves, "pages went through disks and vhost %ld times", moves);
	check_shared(g, "pins");
	end_guests(g, 2);
	kill(echo, SIGTERM);
	ksm_loop_close(&loop);
	ksm_shell("rmmod brd; rmdir /sys/fs/cgroup/slow; rm /tmp/disk-*");
}

/* ---- kill ---- */

static void kill_guests(void)
{
	struct guest g[2];

	start_guests(g, 1, GUEST_MIB, NULL);
	for (int i = 0; i < 3; i++) {
		start_guests(&g[1], 1, GUEST_MIB, NULL);
		check_kill(&g[1], &g[0]);
		check_log(&g[1]);
	}
	end_guests(g, 1);
}

/* ---- unwanted ---- */

/* How many pages of the sample nobody else maps. */
static int alone(const struct guest *g, const uint64_t *frames)
{
	int n = 0;

	for (int i = 0; i < SAMPLE; i++)
		n += ksm_kpagecount(ksm_pfn(g->pid, guest_page(g, frames[i]))) == 1;
	return n;
}

static void unwanted(void)
{
	static const char *const off[] = { "-machine", "mem-merge=off", NULL };
	const struct guest_options options = { .more = off };
	uint64_t frames[SAMPLE];
	struct guest g[3];
	long long regions;

	start_guests(g, 2, GUEST_MIB, NULL);
	regions = ksm_stat("regions");
	start_guests(&g[2], 1, GUEST_MIB, &options);
	check(regions && ksm_stat("regions") == regions, "mem-merge=off: nothing is registered");
	begin_work(&g[2], 1);
	wait_scans(5, "mem-merge=off");
	end_work(&g[2], 1, "mem-merge=off");
	guest_ask(&g[2], "common 0 %d", SAMPLE);
	check_shared(g, "the others");
	sample(&g[0], frames);
	check(!alone(&g[0], frames), "the others share all of %d common pages", SAMPLE);
	sample(&g[2], frames);
	check(alone(&g[2], frames) == SAMPLE, "mem-merge=off: %d of %d it has for itself",
	      alone(&g[2], frames), SAMPLE);
	end_guests(g, 3);
}

/* ---- in files of their own ---- */

static void boot(void)
{
	boot_guests(&k);
}

static void faults(void)
{
	guest_faults(&k);
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
	{ "patterns", patterns },
	{ "thp", thp },
	{ "balloon", balloon },
	{ "reboot", reboot_guests },
	{ "migration", migration },
	{ "snapshot", snapshot },
	{ "pins", pins },
	{ "kill", kill_guests },
	{ "unwanted", unwanted },
	{ "boot", boot },
	{ "faults", faults },
};

static bool wanted(const char *name, char **names)
{
	if (!*names)
		return true;
	for (; *names; names++)
		if (!strcmp(name, *names))
			return true;
	return false;
}

/* long SECONDS [CASE]... */
int main(int argc, char **argv)
{
	if (argc > 1)
		seconds = atoi(argv[1]);
	ksm_begin(&k);
	close(ksm_open_kvm());
	bring_modules();
	start_kksmd(&k);
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		if (!wanted(cases[i].name, argv + 2))
			continue;
		printf("# %s, at %.0f s\n", cases[i].name, ksm_now());
		cases[i].run();
		check(!wait_at_most("regions", 0), "nothing is registered any more");
		check(!wait_at_most("kernel_pages", 0), "and no page is shared");
	}
	ksm_finish(&k);
	return checks_end();
}
