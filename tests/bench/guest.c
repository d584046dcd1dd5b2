// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest.c - a virtual machine that reads and writes a process's memory, for bench.c
 *
 * The guest is a loop of five instructions, in protected mode without paging, so that
 * its addresses are those that KVM maps; it goes over all of its memory and halts. It
 * leaves no trace in the page tables of the process, only in those that KVM keeps.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "../ksm_kvm.h"
#include "guest.h"
#include "scanner.h"

#define GUEST_CODE 0x1000UL
#define GUEST_DATA 0x100000UL
#define CODE_READ 0
#define CODE_WRITE 16

/* 0: mov al, [esi]; 2: add esi, edx; 4: dec ecx; 5: jnz 0; 7: hlt; the same with a write */
static const unsigned char code[] = {
	[CODE_READ] = 0x8a, 0x06, 0x01, 0xd6, 0x49, 0x75, 0xf9, 0xf4,
	[CODE_WRITE] = 0x88, 0x06, 0x01, 0xd6, 0x49, 0x75, 0xf9, 0xf4,
};

static int vcpu = -1;
static struct kvm_run *run;
static size_t nr_pages;

/* 32 bits, all of the address space. */
static void make_flat(struct kvm_segment *segment)
{
	segment->base = 0;
	segment->limit = UINT32_MAX;
	segment->g = 1;
	segment->db = 1;
}

long guest_start(long addr, long npages, long unused, long unused2)
{
	int kvm = ksm_open_kvm(), vm = ioctl(kvm, KVM_CREATE_VM, 0), size;
	struct kvm_sregs sregs;
	void *page;

	(void)unused;
	(void)unused2;
	if (vm < 0)
		ksm_die("KVM_CREATE_VM: %m");
	page = mmap(NULL, PGSZ, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		ksm_die("mmap: %m");
	memcpy(page, code, sizeof(code));
	ksm_add_guest_memory(vm, 0, GUEST_CODE, page, PGSZ);
	ksm_add_guest_memory(vm, 1, GUEST_DATA, (void *)addr, npages * PGSZ);
	nr_pages = npages;

	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (vcpu < 0 || size < (int)sizeof(*run))
		ksm_die("KVM_CREATE_VCPU: %m");
	run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED || ioctl(vcpu, KVM_GET_SREGS, &sregs))
		ksm_die("KVM_GET_SREGS: %m");
	sregs.cr0 |= 1;
	sregs.cs.selector = 8;
	make_flat(&sregs.cs);
	make_flat(&sregs.ds);
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs))
		ksm_die("KVM_SET_SREGS: %m");
	return 0;
}

/* The byte at @offset of each page from @first on, so many pages apart. */
static long touch(int entry, size_t first, size_t every, int offset, int value)
{
	struct kvm_regs regs = {
		.rip = GUEST_CODE + entry,
		.rax = value,
		.rcx = DIV_UP(nr_pages - first, every),
		.rdx = every * PGSZ,
		.rsi = GUEST_DATA + first * PGSZ + offset,
		.rflags = 2,
	};
	double start;

	if (ioctl(vcpu, KVM_SET_REGS, &regs))
		ksm_die("KVM_SET_REGS: %m");
	start = now();
	if (ioctl(vcpu, KVM_RUN, 0))
		ksm_die("KVM_RUN: %m");
	start = now() - start;
	if (run->exit_reason != KVM_EXIT_HLT)
		ksm_die("the guest ended with exit reason %u", run->exit_reason);
	return start * 1e9;
}

long guest_read(long every, long unused, long unused2, long unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	return touch(CODE_READ, 0, every, 0, 0);
}

long guest_write(long first, long every, long value, long unused)
{
	(void)unused;
	return touch(CODE_WRITE, first, every, PGSZ - 1, value);
}
