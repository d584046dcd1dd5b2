/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_module.h - the fixture of tests that unload the module, and what must be gone then
 *
 * Each test leaves the module loaded, as it found it, for whatever runs next and
 * for the VM's own unload at the end.
 */
#ifndef KSM_MODULE_H
#define KSM_MODULE_H

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_load.h"

/* Nothing with our name may be left when the module is gone. */
static inline bool nothing_left(void)
{
	static const char *const paths[] = {
		"/dev/ksm", MODULE, "/sys/class/misc/ksm",
		"/sys/devices/virtual/misc/ksm", "/sys/kernel/tracing/events/ksmdev",
	};
	bool nothing = true;
	char line[256];
	FILE *f;

	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
		if (access(paths[i], F_OK))
			continue;
		printf("# %s is still there\n", paths[i]);
		nothing = false;
	}
	/* Who waits for a thread's end waits for less than what /proc shows. */
	for (double end = ksm_now() + KSM_PATIENCE; ksm_count_threads() && ksm_now() < end;)
		usleep(10000);
	if (ksm_count_threads()) {
		printf("# %u threads are still there\n", ksm_count_threads());
		nothing = false;
	}
	f = fopen("/proc/misc", "re");
	while (f && fgets(line, sizeof(line), f)) {
		if (!strstr(line, " ksm\n"))
			continue;
		printf("# /proc/misc still has ksm\n");
		nothing = false;
	}
	if (f)
		fclose(f);
	/* And no kprobe stays behind on what we looked for. */
	f = fopen("/sys/kernel/debug/kprobes/list", "re");
	while (f && fgets(line, sizeof(line), f)) {
		if (!strstr(line, "kallsyms_lookup_name"))
			continue;
		printf("# a kprobe is still there: %s", line);
		nothing = false;
	}
	if (f)
		fclose(f);
	return nothing;
}

FIXTURE(module) {
	int unused;
};

FIXTURE_SETUP(module)
{
	(void)self;
	ksm_load();
}

FIXTURE_TEARDOWN_PARENT(module)
{
	ksm_load();
}

#endif /* KSM_MODULE_H */
