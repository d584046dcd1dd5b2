/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * hold.h - how long locks that others wait for are held: measured and bounded
 */
#ifndef KSMDEV_HOLD_H
#define KSMDEV_HOLD_H

#include <linux/types.h>

struct mm_struct;

/* A lock is let go after so long and taken anew, if one thing after the other is done under it. */
#define HOLD_MAX_NS	(100 * NSEC_PER_USEC)

/* Holds, by whoever has the lock. */
u64 hold_begin(struct mm_struct *mm);
bool hold_is_long(u64 since);
void hold_end(struct mm_struct *mm, u64 since);
void hold_table(struct mm_struct *mm, unsigned long addr, u64 ns);
void hold_end_in(struct mm_struct *mm, unsigned long addr, u64 since);

u64 hold_total(void);

/* Visits of a page table, by whoever scans. */
u64 hold_claim(struct mm_struct *mm, unsigned long addr);
bool hold_wait(u64 until, bool (*interrupted)(void));
bool hold_visit(struct mm_struct *mm, unsigned long addr, bool (*interrupted)(void));
void hold_leave(struct mm_struct *mm, unsigned long addr);

extern unsigned long ksmdev_longest_hold_us;

#endif /* KSMDEV_HOLD_H */
