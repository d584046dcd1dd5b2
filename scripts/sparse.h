/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sparse.h - what sparse 0.6.4 does not know, and headers of Linux 7.3 use
 *
 * For scripts/check-static alone, which has sparse read it before anything else.
 */
#ifndef KSMDEV_SPARSE_H
#define KSMDEV_SPARSE_H

/* It does not warn of a qualifier that is there. */
#define __typeof_unqual__ __typeof__

/* A constant if that of a literal is asked for, as MODULE_INFO() does in an assertion. */
#define __builtin_strlen(string) (sizeof(string) - 1)

#endif
