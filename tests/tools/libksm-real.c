// SPDX-License-Identifier: GPL-2.0-only
/*
 * libksm-real - libksm as a program sees it, with the device or without
 *
 * Compiled as C against the shared library and as C++ against the static one.
 * Where /dev/ksm cannot be opened, ksm_share() must fail the same way; where
 * it can, the calls must work.
 */
#include <errno.h>
#include <fcntl.h>
#include <libksm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef __cplusplus
#define LANGUAGE "C++"
#else
#define LANGUAGE "C"
#endif

static int failures;

static void check(int good, const char *what)
{
	printf("%s - libksm in " LANGUAGE ": %s\n", good ? "ok" : "not ok", what);
	if (!good) {
		printf("# errno %d: %s\n", errno, strerror(errno));
		failures++;
	}
}

static int fails_with(int ret, int err)
{
	return ret == -1 && errno == err;
}

int main(void)
{
	size_t size = 1 << 20;
	unsigned int percent = 0, threads = 0;
	unsigned long long merged = 1;
	int device, device_errno, i, fds[2], hints = 1;
	char *p;

	p = (char *)mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) {
		perror("mmap: free some memory");
		return 1;
	}
	memset(p, 1, size);

	check(fails_with(ksm_share(p, 0), EINVAL), "an empty buffer is EINVAL");
	check(fails_with(ksm_share(p + 1, 4096), EINVAL), "a buffer without a whole page is EINVAL");
	check(fails_with(ksm_share(p, SIZE_MAX), EINVAL), "a buffer that wraps is EINVAL");
	check(fails_with(ksm_unshare(p), EINVAL), "removing what is not registered is EINVAL");
	check(fails_with(ksm_unmerge(p), EINVAL), "unmerging what is not registered is EINVAL");

	check(fails_with(ksm_merge(p, &merged), EINVAL) && !merged,
	      "merging what is not registered is EINVAL");

	device = open("/dev/ksm", O_RDWR | O_CLOEXEC);
	device_errno = errno;
	if (device < 0) {
		check(fails_with(ksm_share(p, size), device_errno),
		      "without the device ksm_share() says why");
		check(fails_with(ksm_unshare(p), EINVAL), "what failed is not registered");
		check(fails_with(ksm_set_pace(0, 0), device_errno) &&
		      fails_with(ksm_get_pace(NULL, NULL), device_errno),
		      "and there is no pace either");
	} else {
		close(device);
		check(!ksm_share(p, size), "a buffer is registered");
		check(fails_with(ksm_share(p, size), EEXIST), "twice is EEXIST");
		check(fails_with(ksm_share(p + 4096, 4096), EEXIST), "an overlap is EEXIST");
		check(!ksm_merge(p, &merged) && merged == size / 4096, "a buffer is merged at once");
		check(!ksm_merge(p, &merged) && !merged, "there is nothing more to merge then");
		check(!ksm_unmerge(p), "a buffer is unmerged");
		check(!ksm_unshare(p), "a buffer is removed");
		check(!ksm_get_pace(&percent, &threads) && threads >= 1 &&
		      !ksm_set_pace(percent, threads), "the pace is read and set");
		check(fails_with(ksm_set_pace(0, 65), EINVAL), "too many threads are EINVAL");
		check(!ksm_share(p + 1, size - 2), "a buffer that is not aligned is registered");
		check(!ksm_share(p, 4096), "the page it does not fill is free for another");
		check(!ksm_unshare(p) && !ksm_unshare(p + 1), "both are removed");

		ksm_share(p, size);
		close_range(device, ~0U, 0);
		check(!pipe(fds) && fails_with(ksm_unshare(p), ENOTTY) &&
		      fcntl(fds[0], F_GETFD) >= 0 && fcntl(fds[1], F_GETFD) >= 0,
		      "a file in the place of an area stays open");
		ksm_share(p, size);
		check(!ksm_unshare(p), "and the buffer may be registered again");
	}

	for (i = 0; i < 200; i++)
		if (!ksm_hint(i) || !*ksm_hint(i) || strchr(ksm_hint(i), '\n'))
			hints = 0;
	check(hints, "there is a hint of one line for every error");
	return failures != 0;
}
