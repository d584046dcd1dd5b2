// SPDX-License-Identifier: GPL-2.0-only
/*
 * qemu.c - what stands around the announcement's function in qemu, and a check
 *
 * The function is compiled as it was printed, against variables of the types
 * that qemu's vl.c had. Registers some memory and waits for a line (or the end)
 * on standard input, so that a test can look at what is registered meanwhile.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ksm.h"

#define TARGET_PAGE_BITS 12
#define TARGET_PAGE_SIZE (1 << TARGET_PAGE_BITS)

typedef unsigned long ram_addr_t;

static ram_addr_t phys_ram_size = 8 << 20;
static uint8_t *phys_ram_base;

int ksm_register_memory(void);

/* Compilers of 2008 let a pointer become a number with a warning. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wint-conversion"
#include "ksm_register_memory.c"
#pragma GCC diagnostic pop

int main(void)
{
	int r;

	phys_ram_base = mmap(NULL, phys_ram_size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (phys_ram_base == MAP_FAILED) {
		perror("qemu: mmap: give the machine more memory");
		return 1;
	}
	memset(phys_ram_base, 0x5a, phys_ram_size);

	r = ksm_register_memory();
	if (r) {
		fprintf(stderr, "qemu: ksm_register_memory() returned %d: %m: try modprobe ksm\n",
			r);
		return 1;
	}
	printf("registered %lu pages\n", phys_ram_size / TARGET_PAGE_SIZE);
	fflush(stdout);

	/* The function leaves both descriptors open: the registration holds. */
	getchar();
	for (ram_addr_t i = 0; i < phys_ram_size; i++) {
		if (phys_ram_base[i] != 0x5a) {
			fprintf(stderr, "qemu: byte %lu is wrong: report it with the kernel log\n",
				i);
			return 1;
		}
	}
	return 0;
}
