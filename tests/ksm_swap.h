/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_swap.h - swap, and a block device for it and for others. Part of ksm_util.h.
 */
#ifndef KSM_SWAP_H
#define KSM_SWAP_H

#include <stdbool.h>
#include <stddef.h>

/**
 * struct ksm_loop - a block device whose contents are in memory that stays there
 * @fd: the device, for reading, or -1
 * @ctl: /dev/loop-control
 * @dir: where the file behind it is
 * @path: of the device
 */
struct ksm_loop {
	int fd;
	int ctl;
	char dir[48];
	char path[64];
};

/* Both die if it cannot be done. */
void ksm_loop_open(struct ksm_loop *loop, size_t npages);
void ksm_loop_close(struct ksm_loop *loop);

/**
 * struct ksm_swap - a swap device
 * @loop: if it is one
 * @zram: number of the zram device otherwise
 * @path: of the device
 */
struct ksm_swap {
	struct ksm_loop loop;
	int zram;
	char path[64];
};

/*
 * Swap to a loop device, or to zram. Both die if it cannot be done; to switch it off
 * brings back all that is swapped out, which must not fail or lose data.
 */
void ksm_swap_on(struct ksm_swap *swap, bool loop, size_t npages);
void ksm_swap_off(struct ksm_swap *swap);
/* How many pages of the range are swapped out. */
size_t ksm_swapped(const void *addr, size_t npages);
/* Swap the range out; how many pages are out in the end. */
size_t ksm_page_out(void *addr, size_t npages);

#endif /* KSM_SWAP_H */
