// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksm_vmm.c - what monitors of virtual machines use: KVM, and userfaultfds. See ksm_vmm.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ksm_memory.h"
#include "ksm_program.h"
#include "ksm_vmm.h"

bool ksm_has_virtualization(void)
{
	static char line[8192];
	bool found = false;
	FILE *f = fopen("/proc/cpuinfo", "re");

	if (!f)
		ksm_die("cannot open /proc/cpuinfo: %s", strerror(errno));
	while (!found && fgets(line, sizeof(line), f))
		found = !strncmp(line, "flags", 5) &&
			(strstr(line, " svm") || strstr(line, " vmx"));
	fclose(f);
	return found;
}

int ksm_uffd_open(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		ksm_die("userfaultfd: %s", strerror(errno));
	return fd;
}

void ksm_uffd_register(int fd, void *addr, size_t npages, uint64_t mode)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)addr, .len = npages * PGSZ },
		.mode = mode,
	};

	if (ioctl(fd, UFFDIO_REGISTER, &reg))
		ksm_die("UFFDIO_REGISTER: %s", strerror(errno));
}

void ksm_uffd_protect(int fd, void *addr, size_t npages)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = (uintptr_t)addr, .len = npages * PGSZ },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	if (ioctl(fd, UFFDIO_WRITEPROTECT, &wp))
		ksm_die("UFFDIO_WRITEPROTECT: %s", strerror(errno));
}

int ksm_open_kvm(void)
{
	int fd;

	if (access("/dev/kvm", F_OK))
		ksm_shell("modprobe kvm-amd 2>/dev/null || modprobe kvm-intel");
	fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		ksm_die("cannot open /dev/kvm: %s", strerror(errno));
	return fd;
}
