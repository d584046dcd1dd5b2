/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * duplicates.h - how much guests hold more than once
 */
#ifndef KSMDEV_GUESTS_DUPLICATES_H
#define KSMDEV_GUESTS_DUPLICATES_H

#include "qemu.h"

/* MiB of frames that could be given back, as another one of these guests holds the same. */
double duplicates(const struct guest *g, int count);

#endif /* KSMDEV_GUESTS_DUPLICATES_H */
