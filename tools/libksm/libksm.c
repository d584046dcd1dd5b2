// SPDX-License-Identifier: GPL-2.0-only
/*
 * libksm - register buffers with /dev/ksm in one call
 *
 * Each buffer gets a shared memory area of its own, because removing takes
 * every region out of an area. The areas' file descriptors are kept in a list,
 * looked up by the address that the caller knows.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "device.h"
#include "ksm.h"
#include "libksm.h"

#define KSM_DEVICE "/dev/ksm"

#define EXPORT __attribute__((visibility("default")))

struct buffer {
	struct buffer *next;
	void *addr;
	struct ksm_memory_region region;
	int area_fd;
};

static struct buffer *buffers;
static pthread_mutex_t buffers_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static int fork_err;

static void fork_prepare(void)
{
	pthread_mutex_lock(&buffers_lock);
}

static void fork_parent(void)
{
	pthread_mutex_unlock(&buffers_lock);
}

/*
 * A program that closes all its files, to become a daemon, closes ours, too, and the number may
 * be another file's by now. Areas alone answer this, and it does nothing.
 */
static int is_area(int fd)
{
	struct ksm_merge_range none = { .size = 0 };

	return ioctl(fd, KSM_MERGE_RANGE, &none) < 0 && errno == EINVAL;
}

/*
 * A registration names the memory of the process that made it. The child has
 * none: it only holds copies of the descriptors, which would keep the parent's
 * areas alive beyond the parent, and must not remove them in its name.
 */
static void fork_child(void)
{
	struct buffer *b;

	while ((b = buffers)) {
		buffers = b->next;
		if (is_area(b->area_fd))
			close(b->area_fd);
		free(b);
	}
	pthread_mutex_unlock(&buffers_lock);
}

static void fork_init(void)
{
	fork_err = pthread_atfork(fork_prepare, fork_parent, fork_child);
}

/* Close @fd on the way out of a failure whose errno is the caller's. */
static void close_keep_errno(int fd)
{
	int err = errno;

	close(fd);
	errno = err;
}

/* Return a descriptor of the device, or -1 and errno. */
int ksm_open_device(void)
{
	int version, dev_fd;

	dev_fd = open(KSM_DEVICE, O_RDWR | O_CLOEXEC);
	if (dev_fd < 0)
		return -1;

	version = ioctl(dev_fd, KSM_GET_API_VERSION);
	if (version == KSM_API_VERSION)
		return dev_fd;
	if (version >= 0)
		errno = EPROTONOSUPPORT;
	close_keep_errno(dev_fd);
	return -1;
}

/* Return a new, empty shared memory area, or -1 and errno. */
static int create_area(void)
{
	int dev_fd, area_fd;

	dev_fd = ksm_open_device();
	if (dev_fd < 0)
		return -1;
	area_fd = ioctl(dev_fd, KSM_CREATE_SHARED_MEMORY_AREA);
	if (area_fd < 0)
		goto err_dev;
	/* The interface of 2008 does not know close-on-exec. */
	if (fcntl(area_fd, F_SETFD, FD_CLOEXEC) < 0)
		goto err_area;
	close(dev_fd);
	return area_fd;

err_area:
	close_keep_errno(area_fd);
err_dev:
	close_keep_errno(dev_fd);
	return -1;
}

/* Return the link that leads to @addr's buffer, or to the list's end. */
static struct buffer **find_link(const void *addr)
{
	struct buffer **link = &buffers;

	while (*link && (*link)->addr != addr)
		link = &(*link)->next;
	return link;
}

/* Set @region to the whole pages within @len bytes at @addr. */
static int whole_pages(struct ksm_memory_region *region, const void *addr,
		       size_t len)
{
	uintptr_t page_size = sysconf(_SC_PAGESIZE);
	uintptr_t start = (uintptr_t)addr;
	uintptr_t head = -start % page_size;
	size_t npages;

	/* Nothing lies behind the last address. */
	if (len > UINTPTR_MAX - start || len < head)
		goto err_inval;
	npages = (len - head) / page_size;
	if (!npages)
		goto err_inval;

	*region = (struct ksm_memory_region) {
		.npages = npages,
		.addr = start + head,
	};
	return 0;

err_inval:
	errno = EINVAL;
	return -1;
}

/**
 * ksm_share() - let the kernel share a buffer's pages with equal pages
 * @addr: start of the buffer
 * @len: its length in bytes
 *
 * Registers the whole pages inside the buffer; a part of a page at either end
 * is left out, since it may hold data of somebody else. The buffer should be
 * private anonymous memory (malloc, new, mmap with MAP_PRIVATE |
 * MAP_ANONYMOUS); other memory may be registered but is never shared.
 *
 * What is registered is a range of addresses: call ksm_unshare() before the
 * buffer is freed, or whatever is mapped there next will be scanned as well.
 * The registration ends with the process and with exec. A child of fork()
 * starts without any and may call ksm_share() for its own copy.
 *
 * Context: any thread; not from a signal handler.
 * Return: 0, or -1 with errno set: EINVAL no whole page lies inside the buffer,
 * or the range is beyond the address space; EEXIST it overlaps a registered
 * one; ENOENT there is no /dev/ksm, the module is not loaded; EACCES no right
 * to open it; EPROTONOSUPPORT the module speaks another version of the
 * interface; EMFILE, ENFILE, ENOMEM a resource ran out.
 */
EXPORT int ksm_share(void *addr, size_t len)
{
	struct ksm_memory_region region;
	struct buffer *b;

	if (whole_pages(&region, addr, len))
		return -1;

	pthread_once(&fork_once, fork_init);
	if (fork_err) {
		errno = fork_err;
		return -1;
	}

	b = malloc(sizeof(*b));
	if (!b)
		return -1;
	b->addr = addr;
	b->region = region;

	/* Held over all of it, so that no fork copies an fd that is not in the list. */
	pthread_mutex_lock(&buffers_lock);
	b->area_fd = create_area();
	if (b->area_fd < 0)
		goto err_unlock;
	if (ioctl(b->area_fd, KSM_REGISTER_MEMORY_REGION, &region) < 0)
		goto err_area;
	b->next = buffers;
	buffers = b;
	pthread_mutex_unlock(&buffers_lock);
	return 0;

err_area:
	close_keep_errno(b->area_fd);
err_unlock:
	pthread_mutex_unlock(&buffers_lock);
	free(b);
	return -1;
}

/**
 * ksm_unshare() - end what ksm_share() began
 * @addr: the address that was given to ksm_share()
 *
 * The buffer is scanned no more. Pages that are shared already stay shared
 * until they are written to, unmapped, or ksm_unmerge() was called before.
 *
 * Context: any thread; not from a signal handler.
 * Return: 0, or -1 with errno set: EINVAL no buffer at @addr is registered by
 * this process; EBADF, ENOTTY the program has closed its file, and so it is registered no more.
 */
EXPORT int ksm_unshare(void *addr)
{
	struct buffer **link, *b;
	int err = 0;

	pthread_mutex_lock(&buffers_lock);
	link = find_link(addr);
	b = *link;
	if (b) {
		*link = b->next;
		/* Closing is not enough: a child may hold a copy of the fd. */
		if (ioctl(b->area_fd, KSM_REMOVE_MEMORY_REGION) < 0)
			err = errno;
		/* That number is somebody else's. */
		if (err != EBADF && err != ENOTTY)
			close(b->area_fd);
		free(b);
	} else {
		err = EINVAL;
	}
	pthread_mutex_unlock(&buffers_lock);

	if (!err)
		return 0;
	errno = err;
	return -1;
}

/**
 * ksm_unmerge() - give a buffer's shared pages back their own copies now
 * @addr: the address that was given to ksm_share()
 *
 * For a stretch of the program that must not be delayed by the copying that a
 * first write to a shared page takes. The buffer stays registered: its pages
 * will be shared again unless ksm_unshare() follows.
 *
 * Context: any thread; not from a signal handler.
 * Return: 0, or -1 with errno set: EINVAL no buffer at @addr is registered by
 * this process; ENOMEM memory is short, and only some pages were copied; EINTR
 * a fatal signal.
 */
EXPORT int ksm_unmerge(void *addr)
{
	struct buffer *b;
	int ret = -1;

	pthread_mutex_lock(&buffers_lock);
	b = *find_link(addr);
	if (b)
		ret = ioctl(b->area_fd, KSM_UNMERGE);
	else
		errno = EINVAL;
	pthread_mutex_unlock(&buffers_lock);
	return ret;
}

/**
 * ksm_merge() - share a buffer's pages with equal ones now
 * @addr: the address that was given to ksm_share()
 * @merged: set to how many pages of the buffer were merged, also when a signal
 *	ended it early; may be NULL
 *
 * For a moment when the program knows that its data is complete, and would rather
 * spend its own time than wait for the kernel thread. Pages are found equal to
 * those in this buffer, and in others that were scanned before.
 *
 * Context: any thread; not from a signal handler. Other calls of this library, and
 * fork(), wait until it is done.
 * Return: 0, or -1 with errno set: EINVAL no buffer at @addr is registered by
 * this process; EINTR a signal, call it again to go on; ENOMEM memory is short.
 */
EXPORT int ksm_merge(void *addr, unsigned long long *merged)
{
	struct ksm_merge_range range = { .size = sizeof(range) };
	struct buffer *b;
	int ret = -1;

	pthread_mutex_lock(&buffers_lock);
	b = *find_link(addr);
	if (b) {
		range.addr = b->region.addr;
		range.npages = b->region.npages;
		ret = ioctl(b->area_fd, KSM_MERGE_RANGE, &range);
	} else {
		errno = EINVAL;
	}
	pthread_mutex_unlock(&buffers_lock);
	if (merged)
		*merged = range.merged;
	return ret;
}

/**
 * ksm_set_pace() - say how much CPU time the kernel threads may take
 * @cpu_percent: of all of them together, in per cent of one CPU, at most 100 for
 *	each thread; 0: the fixed pace of ksmctl start PAGES_TO_SCAN SLEEP
 * @threads: how many threads; 0: as many as there are
 *
 * Neither starts nor stops them.
 *
 * Context: any thread.
 * Return: 0, or -1 with errno set: EPERM the program lacks CAP_SYS_ADMIN; EINVAL
 * a number is too large, or the threads run and the fixed pace was never set;
 * ENOMEM; or what ksm_share() has to say about /dev/ksm.
 */
EXPORT int ksm_set_pace(unsigned int cpu_percent, unsigned int threads)
{
	struct ksm_pace pace = {
		.size = sizeof(pace),
		.cpu_percent = cpu_percent,
		.threads = threads,
	};
	int ret, fd = ksm_open_device();

	if (fd < 0)
		return -1;
	ret = ioctl(fd, KSM_SET_PACE, &pace);
	close_keep_errno(fd);
	return ret;
}

/**
 * ksm_get_pace() - ask how much CPU time the kernel threads may take
 * @cpu_percent: set to what ksm_set_pace() takes; may be NULL
 * @threads: set to how many threads there are; may be NULL
 *
 * Context: any thread.
 * Return: 0, or -1 with errno set as ksm_share() does for /dev/ksm.
 */
EXPORT int ksm_get_pace(unsigned int *cpu_percent, unsigned int *threads)
{
	struct ksm_pace pace = { .size = sizeof(pace) };
	int ret, fd = ksm_open_device();

	if (fd < 0)
		return -1;
	ret = ioctl(fd, KSM_GET_PACE, &pace);
	close_keep_errno(fd);
	if (ret)
		return ret;
	if (cpu_percent)
		*cpu_percent = pace.cpu_percent;
	if (threads)
		*threads = pace.threads;
	return 0;
}

/**
 * ksm_hint() - what a user can do about a failure to use /dev/ksm
 * @err: errno after a function of this library failed
 *
 * Return: one line of English without a full stop, never NULL.
 */
EXPORT const char *ksm_hint(int err)
{
	switch (err) {
	case ENOENT:
	case ENODEV:
	case ENXIO:
		return "the module is not loaded; as root: modprobe ksm";
	case EACCES:
		return "be root or in the group that owns it; as root: usermod -aG kvm USER, then log in again";
	case EPERM:
	case ENOSYS:
		return "not allowed here; run as root and outside of containers that hide devices or system calls";
	case ENOTTY:
	case EPROTONOSUPPORT:
		return "program and module do not fit together; install both from the same tree and reload";
	case EINVAL:
		return "give a buffer of at least one whole page, and remove it by the same address";
	case EEXIST:
		return "the buffer overlaps one that is registered; remove that one first";
	case ENOSPC:
		return "too many regions; raise /sys/module/ksmdev/parameters/regions_per_area";
	case ENOMEM:
		return "memory is short; register less, or raise the memory limit of the cgroup";
	case EMFILE:
	case ENFILE:
		return "each buffer takes a file descriptor; register fewer, or raise ulimit -n";
	case EAGAIN:
		return "no thread could be started; end some, or raise ulimit -u";
	case EINTR:
		return "a signal came; call it again to go on";
	default:
		return "look for ksmdev in the kernel log (dmesg)";
	}
}
