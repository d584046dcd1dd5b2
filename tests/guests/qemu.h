/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * qemu.h - start guests and talk to them, from inside the VM that is their host
 *
 * A guest is an unmodified qemu-system-x86_64 with KVM, which knows nothing of /dev/ksm;
 * libksm-preload.so registers its memory. What cannot be done is fatal, as in ksm_util.h:
 * the log of the guest in question, and what its QEMU said, are shown first.
 */
#ifndef KSMDEV_GUESTS_QEMU_H
#define KSMDEV_GUESTS_QEMU_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

/* Where tests/guests/run puts what they need. */
#define GUEST_DIR	"/guest/"
#define GUEST_KERNEL	GUEST_DIR "vmlinuz"
#define GUEST_INITRD	GUEST_DIR "initrd"
#define GUEST_PRELOAD	GUEST_DIR "libksm-preload.so"
#define GUEST_TROUBLE	GUEST_DIR "trouble"

/**
 * struct guest - a running guest
 * @id: its number, from 1
 * @mib: how much memory it has
 * @pid: its QEMU, or 0
 * @port: its second serial port, both ways
 * @qmp: the monitor of its QEMU
 * @ram: where its memory begins in its QEMU
 * @log: file with its kernel log
 */
struct guest {
	int id;
	int mib;
	pid_t pid;
	FILE *port;
	FILE *qmp;
	char *ram;
	char log[32];
};

/**
 * struct guest_options - what may be different from guest to guest
 * @no_share: its memory is not registered with /dev/ksm, but may be with the kernel's KSM
 * @more: further arguments for QEMU, up to NULL; or NULL
 * @append: further arguments for its kernel; or NULL
 */
struct guest_options {
	bool no_share;
	const char *const *more;
	const char *append;
};

/* Start it; guest_ready() waits until it has booted, or has booted once more. */
void guest_start(struct guest *g, int id, int mib, const struct guest_options *options);
void guest_ready(struct guest *g);
/* Only connect to its QEMU: the guest comes by migration, and was ready elsewhere. */
void guest_connect(struct guest *g);
/* End its QEMU by this signal, and wait for it. */
void guest_kill(struct guest *g, int sig);

/* Send a command of guest.c; the answer after "ok", valid until the next one. */
void guest_tell(struct guest *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const char *guest_answer(struct guest *g);
/* The first number of the answer, or 0. */
long guest_ask(struct guest *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Execute a QMP command, a whole JSON object; its answer, valid until the next one. */
const char *guest_qmp(struct guest *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Where in its QEMU the page with this frame number of the guest is. */
char *guest_page(const struct guest *g, uint64_t guest_frame);
/* How many pages its memory has. */
size_t guest_pages(const struct guest *g);
/* The host's frame of each, 0 where there is none; to be freed. */
uint64_t *guest_frames(const struct guest *g);
/* Proportional set size of its QEMU, in KiB. */
long guest_pss(const struct guest *g);

#endif /* KSMDEV_GUESTS_QEMU_H */
