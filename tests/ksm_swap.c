// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksm_swap.c - swap, and a block device for it and for others. See ksm_swap.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <unistd.h>

#include "ksm_frames.h"
#include "ksm_memory.h"
#include "ksm_program.h"
#include "ksm_swap.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

void ksm_loop_open(struct ksm_loop *loop, size_t npages)
{
	static const char zeros[PGSZ];
	char file[64];
	int backing;

	ksm_shell("modprobe loop");
	/* ramfs, because its pages cannot be swapped out themselves. */
	snprintf(loop->dir, sizeof(loop->dir), "/tmp/ksm_loop.%d", getpid());
	if (mkdir(loop->dir, 0700) || mount("none", loop->dir, "ramfs", 0, NULL))
		ksm_die("cannot mount a ramfs on %s: %s", loop->dir, strerror(errno));
	snprintf(file, sizeof(file), "%s/file", loop->dir);
	backing = open(file, O_RDWR | O_CREAT, 0600);
	/* All of it now: later it would be charged to the cgroup of whoever writes. */
	for (size_t i = 0; i < npages; i++)
		if (write(backing, zeros, PGSZ) != (ssize_t)PGSZ)
			ksm_die("cannot write %s: %s", file, strerror(errno));
	loop->ctl = open("/dev/loop-control", O_RDWR);
	if (loop->ctl < 0)
		ksm_die("cannot open /dev/loop-control: %s", strerror(errno));
	snprintf(loop->path, sizeof(loop->path), "/dev/loop%d",
		 ioctl(loop->ctl, LOOP_CTL_GET_FREE));
	loop->fd = open(loop->path, O_RDWR);
	if (loop->fd < 0 || ioctl(loop->fd, LOOP_SET_FD, backing))
		ksm_die("cannot set up %s: %s", loop->path, strerror(errno));
	close(backing);
	/* Some kernels mount nothing that somebody else might write to. */
	close(loop->fd);
	loop->fd = open(loop->path, O_RDONLY);
}

void ksm_loop_close(struct ksm_loop *loop)
{
	if (ioctl(loop->fd, LOOP_CLR_FD))
		ksm_die("LOOP_CLR_FD of %s: %s", loop->path, strerror(errno));
	close(loop->fd);
	close(loop->ctl);
	/* The loop device lets go of the file a little later. */
	for (int i = 0; umount(loop->dir) && i < 100; i++)
		usleep(20000);
	if (rmdir(loop->dir))
		ksm_die("cannot remove %s: %s", loop->dir, strerror(errno));
}

static int zram_open(size_t npages)
{
	char path[64], buf[24] = "";
	int fd, number;

	ksm_shell("modprobe zram num_devices=0");
	fd = open("/sys/class/zram-control/hot_add", O_RDONLY);
	if (fd < 0 || read(fd, buf, sizeof(buf) - 1) <= 0)
		ksm_die("cannot add a zram device: %s", strerror(errno));
	close(fd);
	number = atoi(buf);
	snprintf(path, sizeof(path), "/sys/block/zram%d/disksize", number);
	snprintf(buf, sizeof(buf), "%lu", npages * PGSZ);
	if (ksm_write_file(path, buf))
		ksm_die("cannot write %s to %s", buf, path);
	return number;
}

void ksm_swap_on(struct ksm_swap *swap, bool loop, size_t npages)
{
	static struct {
		char boot[1024];
		uint32_t version, last_page, nr_badpages;
		char pad[PGSZ - 1024 - 12 - 10];
		char magic[10];
	} __attribute__((packed)) header = { .version = 1, .magic = "SWAPSPACE2" };
	int fd;

	swap->loop.fd = -1;
	if (loop) {
		ksm_loop_open(&swap->loop, npages);
		snprintf(swap->path, sizeof(swap->path), "%s", swap->loop.path);
	} else {
		swap->zram = zram_open(npages);
		snprintf(swap->path, sizeof(swap->path), "/dev/zram%d", swap->zram);
	}
	header.last_page = npages - 1;
	fd = open(swap->path, O_RDWR);
	if (fd < 0 || write(fd, &header, sizeof(header)) != (ssize_t)sizeof(header) || fsync(fd))
		ksm_die("cannot write to %s: %s", swap->path, strerror(errno));
	close(fd);
	if (swapon(swap->path, 0))
		ksm_die("swapon %s: %s", swap->path, strerror(errno));
}

void ksm_swap_off(struct ksm_swap *swap)
{
	char number[16];

	if (swapoff(swap->path))
		ksm_die("swapoff %s: %s", swap->path, strerror(errno));
	if (swap->loop.fd >= 0) {
		ksm_loop_close(&swap->loop);
		return;
	}
	snprintf(number, sizeof(number), "%d", swap->zram);
	if (ksm_write_file("/sys/class/zram-control/hot_remove", number))
		ksm_die("cannot remove zram%s", number);
}

size_t ksm_swapped(const void *addr, size_t npages)
{
	size_t n = 0;

	for (size_t i = 0; i < npages; i++)
		n += !!(ksm_pagemap(0, ksm_page(addr, i)) & PM_SWAPPED);
	return n;
}

size_t ksm_page_out(void *addr, size_t npages)
{
	size_t out = 0;

	for (int i = 0; i < 20 && out < npages; i++) {
		/*
		 * Pages that another CPU has on their way to the LRU lists are
		 * passed over; compaction begins with putting all there.
		 */
		if (i) {
			ksm_write_file("/proc/sys/vm/compact_memory", "1");
			usleep(20000);
		}
		if (madvise(addr, npages * PGSZ, MADV_PAGEOUT))
			ksm_die("MADV_PAGEOUT: %s", strerror(errno));
		out = ksm_swapped(addr, npages);
	}
	return out;
}
