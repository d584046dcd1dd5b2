// SPDX-License-Identifier: GPL-2.0-only
/*
 * kvm_test.c - memory that a virtual machine maps through page tables of its own
 *
 * KVM keeps second page tables to the same frames, which the CPU uses without
 * looking at ours. Each change of a pte must be told to it first (mmu notifiers),
 * or the guest goes on writing to a page that others share, or that is free.
 * The guest here is some bytes of real-mode code that read or write one byte.
 *
 * This is the one test that may be skipped: where the processor has no
 * virtualization to offer inside the test VM. QEMU without KVM always has.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ksm_harness.h"
#include "ksm_kvm.h"

#define N 64
#define GUEST_CODE 0x1000UL
#define GUEST_DATA 0x100000UL

/* Pages of a chunk are made read-only no more than once in so many seconds: engine/merge.c. */
#define WATCH_INTERVAL 0.1

/* mov al, es:[si]; hlt, and at 16: mov es:[si], al; hlt */
static const unsigned char guest_code[] = {
	[0] = 0x26, 0x8a, 0x04, 0xf4,
	[16] = 0x26, 0x88, 0x04, 0xf4,
};

FIXTURE(guest)
{
	struct ksm k;
	int area;
	int kvm, vm, vcpu;
	struct kvm_run *run;
	struct kvm_sregs sregs;
	char *data;	/* the guest's memory, registered */
	char *twin;	/* the same contents, not the guest's, registered */
};

FIXTURE_SETUP(guest)
{
	char *code;
	int size;

	ksm_begin(&self->k);
	self->area = ksm_area(&self->k);
	if (!ksm_has_virtualization())
		SKIP(return, "this processor offers no virtualization inside the VM");
	self->kvm = ksm_open_kvm();
	self->vm = ioctl(self->kvm, KVM_CREATE_VM, 0);
	ASSERT_GE(self->vm, 0) TH_LOG("KVM_CREATE_VM: %s", strerror(errno));

	code = mmap(NULL, PGSZ, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(code, MAP_FAILED);
	memcpy(code, guest_code, sizeof(guest_code));
	ksm_add_guest_memory(self->vm, 0, GUEST_CODE, code, PGSZ);
	self->data = ksm_mmap(N);
	self->twin = ksm_mmap(N);
	ksm_fill(self->data, N, 1);
	ksm_fill(self->twin, N, 1);
	ASSERT_EQ(ksm_register(self->area, self->data, N), 0);
	ASSERT_EQ(ksm_register(self->area, self->twin, N), 0);
	ksm_add_guest_memory(self->vm, 1, GUEST_DATA, self->data, N * PGSZ);

	self->vcpu = ioctl(self->vm, KVM_CREATE_VCPU, 0);
	ASSERT_GE(self->vcpu, 0) TH_LOG("KVM_CREATE_VCPU: %s", strerror(errno));
	size = ioctl(self->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	ASSERT_GE(size, (int)sizeof(*self->run));
	self->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self->vcpu, 0);
	ASSERT_NE(self->run, MAP_FAILED);
	ASSERT_EQ(ioctl(self->vcpu, KVM_GET_SREGS, &self->sregs), 0);
	self->sregs.cs.base = 0;
	self->sregs.cs.selector = 0;
}

FIXTURE_TEARDOWN(guest)
{
	close(self->vcpu);
	close(self->vm);
	close(self->kvm);
	close(self->area);
	ksm_finish(&self->k);
}

static int run_guest(int vcpu, struct kvm_run *run, struct kvm_sregs *sregs,
		     size_t page, int offset, int write, unsigned char value)
{
	struct kvm_regs regs = {
		.rip = GUEST_CODE + (write ? 16 : 0),
		.rax = value,
		.rsi = offset,
		.rflags = 2,
	};

	sregs->es.base = GUEST_DATA + page * PGSZ;
	if (ioctl(vcpu, KVM_SET_SREGS, sregs) || ioctl(vcpu, KVM_SET_REGS, &regs) ||
	    ioctl(vcpu, KVM_RUN, 0))
		ksm_die("running the guest: %s", strerror(errno));
	if (run->exit_reason != KVM_EXIT_HLT)
		ksm_die("the guest ended with exit reason %u", run->exit_reason);
	if (ioctl(vcpu, KVM_GET_REGS, &regs))
		ksm_die("KVM_GET_REGS: %s", strerror(errno));
	return regs.rax & 0xff;
}

#define guest_read(page, offset) \
	run_guest(self->vcpu, self->run, &self->sregs, page, offset, 0, 0)
#define guest_write(page, offset, value) \
	run_guest(self->vcpu, self->run, &self->sregs, page, offset, 1, value)

/* Wait until pages may be made read-only again. */
static void pause_watching(void)
{
	usleep(WATCH_INTERVAL * 1.2e6);
}

static unsigned char host_read(const char *addr, size_t page, int offset)
{
	return *(volatile unsigned char *)(ksm_page(addr, page) + offset);
}

/* Pages that the guest has mapped, writable, are merged; then it writes. */
TEST_F(guest, writes_after_merge)
{
	size_t wrong = 0;

	/* A write first, so that the guest's mapping is writable; then back. */
	for (int i = 0; i < N; i++) {
		unsigned char old = host_read(self->data, i, 10);

		guest_write(i, 10, ~old);
		wrong += host_read(self->data, i, 10) != (unsigned char)~old;
		guest_write(i, 10, old);
	}
	ASSERT_EQ(wrong, 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, self->data, 0, self->twin, N), N);
	for (int i = 0; i < N; i++)
		wrong += guest_read(i, 20) != host_read(self->twin, i, 20);
	EXPECT_EQ(wrong, 0);
	/* Reading maps the merged pages in the guest and leaves them merged. */
	EXPECT_EQ(ksm_same_frames(0, self->data, 0, self->twin, N), N);

	for (int i = 0; i < N; i += 2) {
		unsigned char old = host_read(self->data, i, 30);

		guest_write(i, 30, ~old);
		wrong += guest_read(i, 30) != (unsigned char)~old;
		wrong += host_read(self->data, i, 30) != (unsigned char)~old;
		wrong += host_read(self->twin, i, 30) != old;
	}
	EXPECT_EQ(wrong, 0);
	EXPECT_EQ(ksm_same_frames(0, self->data, 0, self->twin, N), N / 2);
	EXPECT_EQ(ksm_wrong(self->twin, N, 1), 0);
	EXPECT_EQ(ksm_wrong(self->data, N, 1), N / 2);
}

/* The host writes to a merged page, or unmerges it; the guest sees the right one. */
TEST_F(guest, sees_private_copies)
{
	size_t wrong = 0;

	ksm_merge_all(&self->k);
	for (int i = 0; i < N; i++)
		wrong += guest_read(i, 0) != host_read(self->twin, i, 0);
	ASSERT_EQ(ksm_same_frames(0, self->data, 0, self->twin, N), N);

	ksm_fill(self->data, N / 2, 2);
	for (int i = 0; i < N / 2; i++)
		wrong += guest_read(i, 8) != host_read(self->data, i, 8);
	EXPECT_EQ(wrong, 0);

	ASSERT_EQ(ksm_unmerge(self->area), 0);
	EXPECT_EQ(ksm_same_frames(0, self->data, 0, self->twin, N), 0);
	ksm_fill(self->twin, N, 3);
	for (int i = 0; i < N; i++) {
		wrong += guest_read(i, 16) != host_read(self->data, i, 16);
		guest_write(i, 16, i);
		wrong += host_read(self->data, i, 16) != i;
	}
	EXPECT_EQ(wrong, 0);
	EXPECT_EQ(ksm_wrong(self->twin, N, 3), 0);
}

/*
 * The guest's writes do not pass through our ptes, so they set no dirty bit
 * there: what the scan believes of a page must hold all the same.
 */
TEST_F(guest, writes_between_scans)
{
	unsigned char shadow[N];
	size_t wrong = 0;

	for (int i = 0; i < N; i++)
		shadow[i] = host_read(self->twin, i, 40);
	for (int round = 0; round < 12; round++) {
		for (int i = round % 3; i < N; i += 3) {
			/* Every other round they are equal again. */
			shadow[i] = round % 2 ? host_read(self->twin, i, 40) : round + i;
			guest_write(i, 40, shadow[i]);
		}
		ksm_passes(&self->k, 1 + round % 4);
		for (int i = 0; i < N; i++) {
			bool equal = shadow[i] == host_read(self->twin, i, 40);

			wrong += host_read(self->data, i, 40) != shadow[i];
			wrong += guest_read(i, 40) != shadow[i];
			wrong += !equal && ksm_same_frames(0, ksm_page(self->data, i), 0,
							   ksm_page(self->twin, i), 1);
		}
		ASSERT_EQ(wrong, 0) TH_LOG("round %d", round);
		ASSERT_EQ(ksm_wrong(self->twin, N, 1), 0) TH_LOG("round %d", round);
	}
}

/*
 * Memory that the guest leaves alone is made read-only and not read any more; a
 * write of the guest's, and no other page, is found by the next pass.
 */
TEST_F(guest, idle_memory_is_not_read)
{
	/* One page of each chunk is read anew in each pass. */
	const long long chunks = 4;
	long long hashed, skipped;
	size_t wrong = 0;

	ksm_fill(self->twin, N, 4);
	for (int i = 0; i < N; i++)
		guest_write(i, 50, i);
	ksm_passes(&self->k, 4);
	EXPECT_STATS(0, 0, 2 * N, 0, 0);
	for (int pass = 0; pass < 5; pass++) {
		hashed = ksm_stat("pages_hashed");
		skipped = ksm_stat("pages_skipped");
		ksm_passes(&self->k, 1);
		hashed = ksm_stat("pages_hashed") - hashed;
		EXPECT_LE(hashed, chunks);
		EXPECT_EQ(ksm_stat("pages_skipped") - skipped, 2 * N - hashed);
		/* Reading leaves it so. */
		for (int i = 0; i < N; i++)
			wrong += guest_read(i, 50) != i;
	}
	EXPECT_EQ(wrong, 0);

	for (int round = 0; round < 5; round++) {
		for (int i = round; i < N; i += 8)
			guest_write(i, 50, 100 + round + i);
		hashed = ksm_stat("pages_hashed");
		ksm_passes(&self->k, 1);
		hashed = ksm_stat("pages_hashed") - hashed;
		EXPECT_GE(hashed, N / 8);
		EXPECT_LE(hashed, N / 8 + chunks) TH_LOG("round %d", round);
		EXPECT_STATS(0, 0, 2 * N - N / 8, N / 8, 0);
		for (int i = 0; i < N; i++) {
			unsigned char value = i % 8 <= round ? 100 + i % 8 + i : i;

			wrong += guest_read(i, 50) != value;
			wrong += host_read(self->data, i, 50) != value;
		}
		EXPECT_EQ(wrong, 0) TH_LOG("round %d", round);
		/* Found unchanged and made read-only, and read once more. */
		pause_watching();
		ksm_passes(&self->k, 3);
		EXPECT_STATS(0, 0, 2 * N, 0, 0);
	}
}

/*
 * Passes that follow each other at once find even pages unchanged that are written all
 * the time. They are not made read-only between all writes, each of which would fault.
 */
TEST_F(guest, fast_passes_leave_pages_writable)
{
	double begin = ksm_now(), seconds;
	long faults = 0, before;

	/* Not to be merged: a write would fault for that. */
	ksm_fill(self->data, N, 5);
	for (int i = 0; i < 2000; i++) {
		ksm_passes(&self->k, 2);
		before = ksm_minflt();
		*(volatile char *)self->data = i / 200;
		faults += ksm_minflt() - before;
	}
	seconds = ksm_now() - begin;
	TH_LOG("%ld faults in %.1f s", faults, seconds);
	EXPECT_GE(faults, 1);
	/* A tick may be missing of each interval. */
	EXPECT_LE(faults, seconds / WATCH_INTERVAL * 1.1 + 1);
}

/* A write of the guest's to a page that is read-only makes it equal to another. */
TEST_F(guest, write_to_watched_page_is_found)
{
	unsigned char old[N];

	for (int i = 0; i < N; i++) {
		old[i] = host_read(self->twin, i, 60);
		guest_write(i, 60, ~old[i]);
	}
	ksm_passes(&self->k, 6);
	EXPECT_EQ(ksm_same_frames(0, self->data, 0, self->twin, N), 0);
	for (int i = 0; i < N; i++)
		guest_write(i, 60, old[i]);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, self->data, 0, self->twin, N), N);
	for (int i = 0; i < N; i++)
		EXPECT_EQ(guest_read(i, 60), old[i]);
	EXPECT_EQ(ksm_wrong(self->data, N, 1), 0);
}

struct scanner {
	const struct ksm *k;
	pthread_t thread;
	atomic_bool stop;
};

static void *scan_main(void *arg)
{
	struct scanner *scanner = arg;

	while (!scanner->stop)
		ksm_passes(scanner->k, 1);
	return NULL;
}

/*
 * Pages are found unchanged, then made read-only. Of the writes that come all the time
 * some come in between, and leave no trace but the contents.
 */
TEST_F(guest, write_before_watching_is_found)
{
	enum { ROUNDS = 40 };
	size_t missed = 0, wrong = 0;
	unsigned char value[N];

	for (int i = 0; i < N; i++)
		value[i] = host_read(self->twin, i, 70);
	for (int round = 0; round < ROUNDS; round++) {
		struct scanner scanner = { .k = &self->k };

		ASSERT_EQ(pthread_create(&scanner.thread, NULL, scan_main, &scanner), 0);
		for (int i = 0; i < N; i++)
			guest_write(i, 70, ~value[i]);
		for (int i = 0; i < N; i++) {
			guest_write(i, 70, value[i]);
			usleep(2000);
		}
		scanner.stop = true;
		pthread_join(scanner.thread, NULL);
		pause_watching();
		ksm_passes(&self->k, 4);
		missed += N - ksm_same_frames(0, self->data, 0, self->twin, N);
		for (int i = 0; i < N; i++)
			wrong += guest_read(i, 70) != value[i];
	}
	EXPECT_EQ(missed, 0);
	EXPECT_EQ(wrong, 0);
}

TEST_HARNESS_MAIN
