/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ksm_vmm.h - what monitors of virtual machines use: KVM, and userfaultfds. Part of ksm_util.h.
 */
#ifndef KSM_VMM_H
#define KSM_VMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Does the processor offer virtualization, inside this VM? */
bool ksm_has_virtualization(void);
/* A userfaultfd with UFFD_FEATUREs, non-blocking, and memory for it to watch. They die if refused. */
int ksm_uffd_open(uint64_t features);
void ksm_uffd_register(int fd, void *addr, size_t npages, uint64_t mode);
/* Write-protect what is there; dies if refused. */
void ksm_uffd_protect(int fd, void *addr, size_t npages);

/* Load the module and open /dev/kvm; dies if it cannot. */
int ksm_open_kvm(void);

#endif /* KSM_VMM_H */
