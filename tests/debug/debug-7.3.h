/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * debug-7.3.h - what differs for provoke.c in 7.3
 *
 * Not in provoke.c, for a change of that has every debug kernel built anew.
 */
#include <linux/mm.h>
#include <linux/page_table_check.h>

/* It wants to know which address the page was at. */
#define __page_table_check_pte_clear(mm, pte)	__page_table_check_pte_clear(mm, 0, pte)
