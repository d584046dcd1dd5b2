// SPDX-License-Identifier: GPL-2.0-only
/*
 * fieldmap-fake.c - a libksm for fieldmap that needs no device
 *
 * Nothing is shared. With FAKE_CORRUPT=OFFSET in the environment one bit of
 * each buffer that reaches so far is turned over when it is registered, as a
 * faulty driver might do: fieldmap has to find it.
 */
#include <errno.h>
#include <stdlib.h>

#include "libksm.h"

int ksm_share(void *addr, size_t len)
{
	const char *corrupt = getenv("FAKE_CORRUPT");
	size_t offset = corrupt ? strtoul(corrupt, NULL, 10) : len;

	if (offset < len)
		((char *)addr)[offset] ^= 1;
	return 0;
}

int ksm_unshare(void *addr)
{
	(void)addr;
	return 0;
}

const char *ksm_hint(int err)
{
	(void)err;
	return "this is the test's library";
}
