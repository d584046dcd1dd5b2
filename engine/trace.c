// SPDX-License-Identifier: GPL-2.0-only
/*
 * trace.c - the tracepoints of system ksmdev
 *
 * See trace.h. They stand here for all who use them stand above.
 */
#include <linux/mm.h>

#define CREATE_TRACE_POINTS
#include "../include/trace.h"
