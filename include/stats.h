/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * stats.h - counters that belong to no area
 */
#ifndef KSMDEV_STATS_H
#define KSMDEV_STATS_H

extern unsigned long ksmdev_max_kernel_pages;

#endif /* KSMDEV_STATS_H */
