/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cases.h - cases of long.c that have files of their own
 *
 * kksmd runs at full speed before and after each.
 */
#ifndef KSMDEV_GUESTS_CASES_H
#define KSMDEV_GUESTS_CASES_H

#include "ksm_util.h"

/* Guests boot while kksmd has no pause: boot.c */
void boot_guests(const struct ksm *k);
/* How often guests fault for what kksmd does: faults.c */
void guest_faults(const struct ksm *k);

#endif /* KSMDEV_GUESTS_CASES_H */
