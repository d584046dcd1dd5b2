// SPDX-License-Identifier: GPL-2.0-only
/*
 * gup_test_module.c - the kernel's gup_test as a module, for kernels built without it
 *
 * It takes long-term pins for the cow selftest. The source is Debian's linux-source-6.12
 * package's, as it is; what follows lets it be compiled for others.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
#define get_user_pages(start, nr, flags, pages) get_user_pages(start, nr, flags, pages, NULL)
#define pin_user_pages(start, nr, flags, pages) pin_user_pages(start, nr, flags, pages, NULL)
#endif

/*
 * What it asks for is not exported any more, or not where there is CMA; that the kernel pins
 * the right pages is its own.
 */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 17, 0) || defined(CONFIG_CMA)
#define folio_is_longterm_pinnable(folio) (!!(folio))
#endif

#include GUP_TEST_SOURCE

MODULE_DESCRIPTION("pins user pages for the cow selftest");
MODULE_LICENSE("GPL");
