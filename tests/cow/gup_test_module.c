// SPDX-License-Identifier: GPL-2.0-only
/*
 * gup_test_module.c - the kernel's gup_test as a module, for kernels built without it
 *
 * It takes long-term pins for the cow selftest. The source is Debian's linux-source-6.12
 * package's, as it is; what follows lets it be compiled for older kernels.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
#define get_user_pages(start, nr, flags, pages) get_user_pages(start, nr, flags, pages, NULL)
#define pin_user_pages(start, nr, flags, pages) pin_user_pages(start, nr, flags, pages, NULL)
#endif

#include GUP_TEST_SOURCE

MODULE_DESCRIPTION("pins user pages for the cow selftest");
MODULE_LICENSE("GPL");
