/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * preload-fake.h - how to tell what preload-fake.so does for itself
 */
#ifndef PRELOAD_FAKE_H
#define PRELOAD_FAKE_H

/* A sixth argument of its system calls, which take five at most. */
#define FAKE_CALL 0x6b736d32

#endif /* PRELOAD_FAKE_H */
