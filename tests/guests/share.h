/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * share.h - what the driver says of one process whose memory libksm-preload registered
 */
#ifndef KSMDEV_GUESTS_SHARE_H
#define KSMDEV_GUESTS_SHARE_H

#include <sys/types.h>

/**
 * struct share - pages of a process
 * @registered: those that may be shared
 * @shared: its part of the pages that are kept for it and others
 * @saved: what it would need more without sharing
 */
struct share {
	long long registered;
	long long shared;
	long long saved;
};

struct share share_of(pid_t pid);
void share_add(struct share *sum, const struct share *s);

#endif /* KSMDEV_GUESTS_SHARE_H */
