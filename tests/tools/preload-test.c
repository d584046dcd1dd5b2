// SPDX-License-Identifier: GPL-2.0-only
/*
 * preload-test - a program that uses madvise(), to be run with libksm-preload
 *
 *	preload-test		MADV_MERGEABLE and MADV_UNMERGEABLE; prints TAP
 *	preload-test auto	with LIBKSM_AUTO=1; prints TAP
 *	preload-test kernel	what /dev/ksm does not take; prints TAP
 *	preload-test ranges	a part of the first; prints TAP
 *	preload-test few	where few files may be open; prints TAP
 *	preload-test leave	the main thread leaves, another one ends the process
 *	preload-test fds	how many files are open beyond the first three
 *
 * Runs with the driver, and with preload-fake.so in its place. What is registered it asks the
 * driver: that refuses to register a page a second time.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ksm.h"

#define PAGE 4096ul
#define PAGES 16
#define MIB (1ul << 20)

static const char *title = "preload";
static int failures;

static void check(int good, const char *what)
{
	printf("%s - %s: %s\n", good ? "ok" : "not ok", title, what);
	failures += !good;
}

static void __attribute__((noreturn)) fail(const char *what)
{
	printf("not ok - %s: %s: %m\n", title, what);
	exit(1);
}

static int registered(const void *page)
{
	struct ksm_memory_region region = { .npages = 1, .addr = (uintptr_t)page };
	int fd = open("/dev/ksm", O_RDWR | O_CLOEXEC), area, ret;

	area = ioctl(fd, KSM_CREATE_SHARED_MEMORY_AREA);
	if (area < 0)
		fail("cannot ask /dev/ksm");
	ret = ioctl(area, KSM_REGISTER_MEMORY_REGION, &region);
	if (ret && errno != EEXIST)
		fail("cannot ask for a page");
	close(area);
	close(fd);
	return !!ret;
}

/* Memory with nothing next to it. */
static char *map(size_t size, int prot, int flags)
{
	char *p = mmap(NULL, size + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED ||
	    mmap(p + PAGE, size, prot, MAP_FIXED | MAP_ANONYMOUS | flags, -1, 0) == MAP_FAILED)
		fail("mmap");
	return p + PAGE;
}

static char *map_pages(void)
{
	return map(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
}

/* Pages as a string: x is registered, . is not. */
static const char *show(const char *p)
{
	static char text[PAGES + 1];
	int i;

	for (i = 0; i < PAGES; i++)
		text[i] = registered(p + i * PAGE) ? 'x' : '.';
	return text;
}

static void expect(const char *p, const char *wanted, const char *what)
{
	const char *seen = show(p);
	int good = !strcmp(seen, wanted);

	check(good, what);
	if (!good)
		printf("# expected %s, seen %s\n", wanted, seen);
}

static int start_sharing(char *p, int from, int to)
{
	return madvise(p + from * PAGE, (to - from) * PAGE, MADV_MERGEABLE);
}

static int stop_sharing(char *p, int from, int to)
{
	return madvise(p + from * PAGE, (to - from) * PAGE, MADV_UNMERGEABLE);
}

/*
 * Wait until the helper is done with what it is at: in a new process until all is registered
 * that was in its parent, later with a look. What is asked for is done after that. To ask the
 * driver before would be in its way.
 */
static void settle(void)
{
	stop_sharing(map_pages(), 0, 1);
}

/* The helper looks every five seconds at least. Return whether it came to be. */
static int becomes(const void *page, int wanted)
{
	int i;

	for (i = 0; i < 1000 && registered(page) != wanted; i++)
		usleep(10000);
	settle();
	return registered(page) == wanted;
}

/* Return whether the kernel's own scanner has been given what begins at @p. */
static int is_kernels(const char *p)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	int here = 0, found = 0;
	unsigned long start;
	char line[512], c;

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx%c", &start, &c) == 2 && c == '-')
			here = start == (unsigned long)p;
		if (here && !strncmp(line, "VmFlags:", 8))
			found = !!strstr(line, " mg");
	}
	fclose(f);
	return found;
}

static int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	/* Two are names of directories, one is the directory itself. */
	return n - 3;
}

static void test_kernel(void)
{
	char *p = map_pages(), *q = map_pages();
	int before = count_fds();
	int wanted = syscall(SYS_madvise, q, PAGES * PAGE, MADV_MERGEABLE);

	check(start_sharing(p, 0, 16) == wanted && is_kernels(p) == is_kernels(q),
	      "MADV_MERGEABLE goes to the kernel");
	check(start_sharing(p, 0, 16) == wanted, "and again");
	check(stop_sharing(p, 0, 16) == wanted && !is_kernels(p), "and MADV_UNMERGEABLE");
	check(count_fds() == before, "and no file is left open");
}

static void test_ranges(void)
{
	char *p = map_pages(), *hole;

	errno = 77;
	check(!start_sharing(p, 4, 12) && errno == 77, "MADV_MERGEABLE succeeds, and leaves errno alone");
	expect(p, "....xxxxxxxx....", "exactly the range is registered");
	check(!is_kernels(p + 4 * PAGE) && !is_kernels(p), "and not with the kernel's own scanner");
	check(!start_sharing(p, 4, 12) && !start_sharing(p, 5, 6), "a second time is fine");
	expect(p, "....xxxxxxxx....", "and changes nothing");
	check(!start_sharing(p, 2, 6), "an overlapping range is fine");
	expect(p, "..xxxxxxxxxx....", "and registers what was not");
	errno = 77;
	check(!stop_sharing(p, 7, 9) && errno == 77, "MADV_UNMERGEABLE of the middle");
	expect(p, "..xxxxx..xxx....", "removes exactly that");
	check(!stop_sharing(p, 0, 4) && !stop_sharing(p, 11, 16), "MADV_UNMERGEABLE of more than there is");
	expect(p, "....xxx..xx.....", "removes what there is");
	check(!start_sharing(p, 0, 16), "MADV_MERGEABLE over gaps");
	expect(p, "xxxxxxxxxxxxxxxx", "fills them");
	check(!stop_sharing(p, 0, 16) && !stop_sharing(p, 0, 16), "MADV_UNMERGEABLE of all, twice");
	expect(p, "................", "nothing is left");
	check(!madvise(p, PAGE + 1, MADV_MERGEABLE), "a part of a page");
	expect(p, "xx..............", "counts as a page");
	stop_sharing(p, 0, 2);

	check(!madvise(p, 0, MADV_MERGEABLE), "nothing is fine");
	check(madvise(p + 1, PAGE, MADV_MERGEABLE) == -1 && errno == EINVAL,
	      "an address within a page is EINVAL");
	check(madvise(p, -PAGE, MADV_MERGEABLE) == -1 && errno == EINVAL, "so is a wrap around");
	hole = map_pages();
	munmap(hole + 4 * PAGE, PAGE);
	check(start_sharing(hole, 0, 16) == -1 && errno == ENOMEM, "a hole is ENOMEM");
	expect(p, "................", "what is refused is not registered");

	p[0] = 1;
	check(!madvise(p, PAGE, MADV_DONTNEED) && !p[0] && !start_sharing(p, 0, 1), "other advice is passed on");
	check(madvise(p, PAGE, 12345) == -1 && errno == EINVAL, "so is nonsense");
	check(!posix_madvise(p, PAGE, POSIX_MADV_WILLNEED), "posix_madvise() works");
	stop_sharing(p, 0, 1);
}

/* Have the process open no file of this number, or a higher one. */
static void limit_files(rlim_t number)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = number ? number : limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

/* The helper has /proc/self/maps, the device, and an area for each range. */
static void test_few_files(void)
{
	char *p = map_pages();
	int ret, err;

	start_sharing(p, 0, 16);
	limit_files(3);
	ret = stop_sharing(p, 7, 9);
	limit_files(0);
	check(!ret, "MADV_UNMERGEABLE succeeds if what is beside it has no area");
	expect(p, "xxxxxxx.........", "and takes it out");
	start_sharing(p, 0, 16);
	stop_sharing(p, 0, 16);
	start_sharing(p, 0, 16);
	limit_files(2);
	ret = stop_sharing(p, 7, 9);
	err = errno;
	limit_files(0);
	check(ret == -1 && err == EMFILE, "if itself has none it says why");
	expect(p, "................", "and it is taken out, too");
}

/* As with the kernel's own, the advice goes with the memory. */
static void test_unmapped(void)
{
	char *p = map_pages();

	start_sharing(p, 0, 16);
	munmap(p + 4 * PAGE, 4 * PAGE);
	check(becomes(p + 4 * PAGE, 0), "what is not mapped any more is removed");
	expect(p, "xxxx....xxxxxxxx", "and no more than that");
	stop_sharing(p, 0, 4);
	stop_sharing(p, 8, 16);
}

static int run_child(int (*child)(char *), char *p)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		alarm(60);
		_exit(child(p));
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		fail("fork");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

static int has_registered(char *p)
{
	settle();
	return !!strcmp(show(p), "xxxxxxxx........");
}

static int removes_all(char *p)
{
	return !(!stop_sharing(p, 0, 16) && !strcmp(show(p), "................"));
}

static int registers(char *p)
{
	return !(!start_sharing(p, 0, 1) && !strcmp(show(p), "x..............."));
}

static int child_of_child(char *p)
{
	return run_child(has_registered, p) || has_registered(p);
}

static void test_fork(void)
{
	char *p = map_pages();

	start_sharing(p, 0, 8);
	check(!run_child(has_registered, p), "a child has it registered, too");
	check(!run_child(child_of_child, p), "and a child of it");
	check(!run_child(removes_all, p), "a child may remove it");
	expect(p, "xxxxxxxx........", "which leaves it registered here");
	stop_sharing(p, 0, 8);
	check(run_child(has_registered, p) == 1, "what was removed is not registered in a child");
}

static int exec_fds(char *p)
{
	(void)p;
	execl("/proc/self/exe", "preload-test", "fds", NULL);
	return 254;
}

static void test_fds(void)
{
	int before = count_fds(), zero, lowest = dup(0);
	char *p = map_pages();

	close(lowest);
	start_sharing(p, 0, 8);
	zero = dup(0);
	check(zero == lowest && count_fds() == before + 1, "the program's table of files is as it was");
	close(zero);
	check(run_child(exec_fds, NULL) == before - 3, "nothing is open after exec");
	close_range(3, ~0U, 0);
	expect(p, "xxxxxxxx........", "the program may close all its files");
	check(!stop_sharing(p, 2, 3), "and go on");
	expect(p, "xx.xxxxx........", "as if nothing had happened");
	stop_sharing(p, 0, 16);
}

static long churn(char *p)
{
	long i, bad = 0;

	for (i = 0; i < 100; i++)
		bad += !!start_sharing(p, 0, 3) + !!stop_sharing(p, 1, 2) + !!stop_sharing(p, 0, 3);
	return bad;
}

/*
 * While the process forks, threads neither start nor end: of that the address sanitizer's
 * allocator may keep a lock in the child.
 */
static pthread_barrier_t begin;
static volatile int forking = 1;

static void *churn_while_forking(void *arg)
{
	char *p = arg;
	long bad = 0;

	pthread_barrier_wait(&begin);
	while (forking)
		bad += churn(p);
	bad += !!start_sharing(p, 0, 3) + !!stop_sharing(p, 1, 2);
	return (void *)bad;
}

static void test_threads(void)
{
	char *p = map_pages();
	pthread_t threads[4];
	int i, good = 1;
	void *bad;

	pthread_barrier_init(&begin, NULL, 5);
	for (i = 0; i < 4; i++)
		if (pthread_create(&threads[i], NULL, churn_while_forking, p + i * 4 * PAGE))
			fail("pthread_create");
	pthread_barrier_wait(&begin);
	for (i = 0; i < 20; i++)
		good &= !run_child(registers, map_pages());
	forking = 0;
	for (i = 0; i < 4; i++) {
		pthread_join(threads[i], &bad);
		good &= !bad;
	}
	check(good, "threads share and unshare while the process forks");
	expect(p, "x.x.x.x.x.x.x.x.", "and what they registered last is registered");
	stop_sharing(p, 0, 16);
}

static char *handled;
static volatile sig_atomic_t nr_handled;

static void on_timer(int sig)
{
	(void)sig;
	start_sharing(handled, 0, 1);
	stop_sharing(handled, 0, 1);
	nr_handled++;
}

static void __attribute__((noreturn)) *endless(void *arg)
{
	for (;;) {
		churn(arg);
		pthread_testcancel();
	}
}

static void test_interrupted(void)
{
	const struct itimerval often = { { 0, 10000 }, { 0, 10000 } }, never = { 0 };
	char *p = map_pages();
	pthread_t thread;

	handled = map_pages();
	signal(SIGPROF, on_timer);
	setitimer(ITIMER_PROF, &often, NULL);
	while (nr_handled < 20)
		churn(p);
	setitimer(ITIMER_PROF, &never, NULL);
	signal(SIGPROF, SIG_IGN);
	expect(handled, "................", "a signal handler may share and unshare");

	if (pthread_create(&thread, NULL, endless, p))
		fail("pthread_create");
	usleep(20000);
	pthread_cancel(thread);
	pthread_join(thread, NULL);
	check(!stop_sharing(p, 0, 16), "a thread may be cancelled in the midst of it");
}

static int is_auto(char *p)
{
	settle();
	return !registered(p);
}

static void test_auto(void)
{
	int rw = PROT_READ | PROT_WRITE;
	char *small = map(MIB - PAGE, rw, MAP_PRIVATE), *shared = map(MIB, rw, MAP_SHARED);
	char *none = map(MIB, PROT_NONE, MAP_PRIVATE), *constant = map(MIB, PROT_READ, MAP_PRIVATE);
	char *p = map(3 * MIB, rw, MAP_PRIVATE), *heap, *file;
	int fd = memfd_create("file", 0);

	if (fd < 0 || ftruncate(fd, MIB))
		fail("memfd");
	file = mmap(NULL, MIB, rw, MAP_PRIVATE, fd, 0);
	if (file == MAP_FAILED)
		fail("mmap");
	close(fd);
	check(becomes(p, 1) && registered(p + 3 * MIB - PAGE) && !registered(p - PAGE) &&
	      !registered(p + 3 * MIB), "private memory is found");
	check(becomes(constant, 1), "and if it cannot be written to");
	check(!registered(small), "not if it is smaller than was said");
	check(!registered(none), "not if it cannot be read");
	check(!registered(shared), "not if it is shared memory");
	check(!registered(file), "not if it is a file");

	check(!run_child(is_auto, p), "a child looks, too");
	check(!madvise(p + MIB, MIB, MADV_UNMERGEABLE) && !registered(p + MIB) && registered(p) &&
	      registered(p + 2 * MIB), "MADV_UNMERGEABLE removes it");
	heap = sbrk(2 * MIB);
	check(becomes(heap + MIB, 1), "the heap is found when it grows");
	check(!registered(p + MIB) && !registered(p + 2 * MIB - PAGE) && registered(p + 2 * MIB),
	      "what MADV_UNMERGEABLE was for stays alone");
	check(run_child(is_auto, p + MIB) == 1, "in a child, too");
	check(!madvise(p + MIB, MIB, MADV_MERGEABLE) && registered(p + MIB), "unless it is marked again");
	check(!start_sharing(small, 1, 2) && registered(small + PAGE) && !registered(small),
	      "what is marked may be small");
	munmap(p, 3 * MIB);
	check(becomes(p, 0) && !registered(p + 2 * MIB), "what is not mapped any more is removed");
}

static void *last_thread(void *arg)
{
	(void)arg;
	usleep(300000);
	printf("the last words");
	return NULL;
}

static void leave(void)
{
	char *p = map_pages();
	pthread_t thread;

	setvbuf(stdout, NULL, _IOFBF, BUFSIZ);
	if (start_sharing(p, 0, 16) || !registered(p) || pthread_create(&thread, NULL, last_thread, NULL))
		fail("cannot begin");
	pthread_exit(NULL);
}

int main(int argc, char **argv)
{
	/* Whatever hangs. */
	alarm(100);
	if (argc > 1 && !strcmp(argv[1], "fds"))
		return count_fds() - 3;
	if (argc > 1 && !strcmp(argv[1], "leave"))
		leave();
	if (argc > 1 && !strcmp(argv[1], "kernel")) {
		test_kernel();
		return failures != 0;
	}
	if (argc > 1 && !strcmp(argv[1], "ranges")) {
		test_ranges();
		return failures != 0;
	}
	if (argc > 1 && !strcmp(argv[1], "few")) {
		test_few_files();
		return failures != 0;
	}
	if (argc > 1 && !strcmp(argv[1], "auto")) {
		title = "preload, auto";
		test_auto();
		return failures != 0;
	}
	test_ranges();
	test_fork();
	test_fds();
	test_threads();
	test_interrupted();
	test_unmapped();
	return failures != 0;
}
