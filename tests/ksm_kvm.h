/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_kvm.h - memory of virtual machines, for tests that run one
 *
 * Not in ksm_vmm.c, which is built for 32-bit arm, too: that has no <linux/kvm.h>.
 */
#ifndef KSM_KVM_H
#define KSM_KVM_H

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>

#include "ksm_util.h"

/* Dies if it cannot. */
static inline void ksm_add_guest_memory(int vm, int slot, uint64_t guest, void *host, size_t size)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.guest_phys_addr = guest,
		.memory_size = size,
		.userspace_addr = (uintptr_t)host,
	};

	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		ksm_die("KVM_SET_USER_MEMORY_REGION: %s", strerror(errno));
}

#endif /* KSM_KVM_H */
