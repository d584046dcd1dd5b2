// SPDX-License-Identifier: GPL-2.0-only
/*
 * preload-sim - a simulation that knows nothing of /dev/ksm
 *
 *	preload-sim MIB SECONDS
 *
 * Fills MIB of memory from malloc() with what is the same in all its processes, prints where
 * that is, computes for SECONDS or until SIGTERM, and looks whether all is still there.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static unsigned long value(size_t i)
{
	return i * 0x9e3779b97f4a7c15 + 2008;
}

/* Ends the sleep. */
static void enough(int signal)
{
	(void)signal;
}

int main(int argc, char **argv)
{
	size_t i, wrong = 0, n = argc > 2 ? (atol(argv[1]) << 20) / sizeof(long) : 0;
	unsigned long *map = malloc(n * sizeof(*map));

	if (!n || !map)
		return 2;
	for (i = 0; i < n; i++)
		map[i] = value(i);
	signal(SIGTERM, enough);
	printf("%p\n", (void *)map);
	fflush(stdout);
	sleep(atoi(argv[2]));
	for (i = 0; i < n; i++)
		wrong += map[i] != value(i);
	printf("%zu wrong\n", wrong);
	return wrong != 0;
}
