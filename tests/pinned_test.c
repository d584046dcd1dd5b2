// SPDX-License-Identifier: GPL-2.0-only
/*
 * pinned_test.c - pages that somebody holds: a pipe, an io_uring, a system call, a device
 *
 * A page that a device or a pipe holds must not be merged, because what arrives there would be
 * lost. Let go, it merges like others.
 *
 * Needs the module nbd in the VM: its test does not skip.
 */
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/nbd.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ksm_access.h"

/* ---- pages that somebody holds ---- */

/* Page 0 of @a is held: not merged, while its neighbours are. */
#define EXPECT_HELD(a, b, pfn) do { \
	ksm_passes(&self->k, 6); \
	EXPECT_EQ(ksm_pfn(0, a), (pfn)); \
	EXPECT_NE(ksm_pfn(0, b), (pfn)); \
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N - 1); \
} while (0)

TEST_F(device, vmsplice)
{
	char *a, *b, data[PGSZ];
	struct iovec iov;
	uint64_t pfn;
	int fds[2];

	make_twins(self->area, &a, &b, N, 30);
	ASSERT_EQ(pipe(fds), 0);
	iov = (struct iovec){ a, PGSZ };
	ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), PGSZ);
	pfn = ksm_pfn(0, a);
	EXPECT_HELD(a, b, pfn);
	EXPECT_TRUE(ksm_page_is(a, 30, 0));

	/* The pipe holds the very page: what is written now is read there. */
	ksm_fill_page(a, 31, 0);
	EXPECT_EQ(ksm_pfn(0, a), pfn);
	ASSERT_EQ(read(fds[0], data, PGSZ), PGSZ);
	EXPECT_TRUE(ksm_page_is(data, 31, 0));

	/* Let go, it merges. */
	ksm_fill_page(a, 30, 0);
	ksm_merge_all(&self->k);
	EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);

	/* A merged page in a pipe: the pipe keeps it when the owner writes. */
	ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), PGSZ);
	ksm_passes(&self->k, 2);
	ksm_fill_page(a, 32, 0);
	ksm_fill_page(b, 33, 0);
	ksm_passes(&self->k, 4);
	ASSERT_EQ(read(fds[0], data, PGSZ), PGSZ);
	EXPECT_TRUE(ksm_page_is(data, 30, 0));
	EXPECT_TRUE(ksm_page_is(a, 32, 0));
	EXPECT_TRUE(ksm_page_is(b, 33, 0));

	/* The pipe outlives the mapping, the region and the area. */
	ksm_fill_page(a, 30, 0);
	ksm_fill_page(b, 30, 0);
	ksm_merge_all(&self->k);
	ASSERT_EQ(ksm_same_frames(0, a, 0, b, N), N);
	ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), PGSZ);
	munmap(a, N * PGSZ);
	munmap(b, N * PGSZ);
	ASSERT_EQ(ksm_remove(self->area), 0);
	ASSERT_EQ(read(fds[0], data, PGSZ), PGSZ);
	EXPECT_TRUE(ksm_page_is(data, 30, 0));
	EXPECT_EQ(ksm_stat("pages_shared"), 0);
	close(fds[0]);
	close(fds[1]);
}

/* A minimal ring: one submission at a time, no liburing in the VM. */
struct ring {
	int fd;
	struct io_uring_params params;
	char *sq, *cq;
	struct io_uring_sqe *sqes;
};

static void ring_open(struct ring *r)
{
	memset(r, 0, sizeof(*r));
	r->fd = syscall(SYS_io_uring_setup, 4, &r->params);
	if (r->fd < 0)
		ksm_die("io_uring_setup: %s; set kernel.io_uring_disabled=0", strerror(errno));
	r->sq = mmap(NULL, r->params.sq_off.array + r->params.sq_entries * sizeof(__u32),
		     PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQ_RING);
	r->cq = mmap(NULL, r->params.cq_off.cqes +
		     r->params.cq_entries * sizeof(struct io_uring_cqe),
		     PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_CQ_RING);
	r->sqes = mmap(NULL, r->params.sq_entries * sizeof(*r->sqes),
		       PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQES);
	if (r->sq == MAP_FAILED || r->cq == MAP_FAILED || r->sqes == MAP_FAILED)
		ksm_die("cannot map an io_uring: %s", strerror(errno));
}

static int ring_read_fixed(struct ring *r, int fd, void *addr, unsigned int len)
{
	__u32 *tail = (__u32 *)(r->sq + r->params.sq_off.tail);
	__u32 *array = (__u32 *)(r->sq + r->params.sq_off.array);
	__u32 mask = *(__u32 *)(r->sq + r->params.sq_off.ring_mask);
	__u32 *head = (__u32 *)(r->cq + r->params.cq_off.head);
	__u32 cq_mask = *(__u32 *)(r->cq + r->params.cq_off.ring_mask);
	struct io_uring_cqe *cqes = (void *)(r->cq + r->params.cq_off.cqes);
	__u32 index = *tail & mask;
	int res;

	r->sqes[index] = (struct io_uring_sqe){
		.opcode = IORING_OP_READ_FIXED,
		.fd = fd,
		.addr = (uintptr_t)addr,
		.len = len,
	};
	array[index] = index;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, r->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		ksm_die("io_uring_enter: %s", strerror(errno));
	res = cqes[*head & cq_mask].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return res;
}

/* Buffers registered with io_uring are pinned for as long as it likes. */
TEST_F(device, io_uring_fixed_buffer)
{
	char *a, *b, data[PGSZ];
	struct iovec iov;
	struct ring ring;
	uint64_t pfn;
	int fd;

	fd = open("/tmp/ksm_access_test", O_RDWR | O_CREAT | O_TRUNC, 0600);
	ASSERT_GE(fd, 0);
	unlink("/tmp/ksm_access_test");
	ksm_fill_page(data, 41, 0);
	ASSERT_EQ(write(fd, data, PGSZ), PGSZ);
	ring_open(&ring);

	/* Twice: pinned before any scan, and pinned when merged already. */
	make_twins(self->area, &a, &b, N, 40);
	for (int round = 0; round < 2; round++) {
		iov = (struct iovec){ a, PGSZ };
		ASSERT_EQ(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS,
				  &iov, 1), 0);
		pfn = ksm_pfn(0, a);
		EXPECT_HELD(a, b, pfn);
		EXPECT_TRUE(ksm_page_is(a, 40, 0));
		EXPECT_EQ(ring_read_fixed(&ring, fd, a, PGSZ), PGSZ);
		EXPECT_TRUE(ksm_page_is(a, 41, 0));
		EXPECT_TRUE(ksm_page_is(b, 40, 0));
		ksm_fill_page(a, 40, 0);
		EXPECT_EQ(ksm_pfn(0, a), pfn);
		ASSERT_EQ(syscall(SYS_io_uring_register, ring.fd,
				  IORING_UNREGISTER_BUFFERS, NULL, 0), 0);
		/* The kernel may give up the pin a little later. */
		for (int i = 0; i < 1000 && ksm_same_frames(0, a, 0, b, N) < N; i++) {
			ksm_merge_all(&self->k);
			usleep(20000);
		}
		EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
		EXPECT_EQ(ksm_wrong(a, N, 40), 0);
	}
	close(ring.fd);
	close(fd);
}

struct pinned_write {
	char *to, *from;
	ssize_t result;
};

static void *pinned_writer(void *arg)
{
	struct pinned_write *w = arg;
	struct iovec local = { w->from, PGSZ };
	struct iovec remote = { w->to, PGSZ };

	w->result = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
	return NULL;
}

/*
 * process_vm_writev() pins the target's page and then reads the source, which
 * is made to wait in a page fault: a pin as long as we like, and what is written
 * at its end must arrive in the target.
 */
TEST_F(device, write_through_pin)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_api api = { .api = UFFD_API };
	char *a, *b, *source, data[PGSZ];
	int uffd;

	make_twins(self->area, &a, &b, N, 50);
	source = ksm_mmap(1);
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	ASSERT_GE(uffd, 0);
	ASSERT_EQ(ioctl(uffd, UFFDIO_API, &api), 0);
	reg.range.start = (uintptr_t)source;
	reg.range.len = PGSZ;
	ASSERT_EQ(ioctl(uffd, UFFDIO_REGISTER, &reg), 0);

	/* Pinned before any scan, then pinned when merged already. */
	for (int round = 0; round < 2; round++) {
		struct pinned_write w = { .to = a, .from = source };
		struct pollfd pfd = { .fd = uffd, .events = POLLIN };
		struct uffdio_copy copy = {
			.dst = (uintptr_t)source,
			.src = (uintptr_t)data,
			.len = PGSZ,
		};
		struct uffd_msg msg;
		pthread_t thread;
		uint64_t pfn;

		ASSERT_EQ(pthread_create(&thread, NULL, pinned_writer, &w), 0);
		ASSERT_EQ(poll(&pfd, 1, 20000), 1);
		ASSERT_EQ(read(uffd, &msg, sizeof(msg)), (ssize_t)sizeof(msg));
		ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
		pfn = ksm_pfn(0, a);
		EXPECT_HELD(a, b, pfn);

		ksm_fill_page(data, 51, round);
		ASSERT_EQ(ioctl(uffd, UFFDIO_COPY, &copy), 0);
		pthread_join(thread, NULL);
		EXPECT_EQ(w.result, (ssize_t)PGSZ);
		EXPECT_EQ(ksm_pfn(0, a), pfn);
		EXPECT_TRUE(ksm_page_is(a, 51, round));
		EXPECT_TRUE(ksm_page_is(b, 50, 0));

		ksm_fill_page(a, 50, 0);
		ksm_merge_all(&self->k);
		EXPECT_EQ(ksm_same_frames(0, a, 0, b, N), N);
		ASSERT_EQ(madvise(source, PGSZ, MADV_DONTNEED), 0);
	}
	close(uffd);
}

/*
 * A network block device whose server is this test: a direct read from it is
 * on its way for as long as the server keeps the answer back, and the data are
 * received into the reader's page at the very end.
 */
#define NBD_DEVICE	"/dev/nbd0"
#define NBD_BLOCKS	256		/* of a page each */
#define NBD_SLOW_BLOCK	100		/* only this one's answer is kept back */

static bool nbd_transfer(int fd, void *buf, size_t size, bool out)
{
	for (size_t done = 0; done < size; ) {
		ssize_t len = out ? write(fd, (char *)buf + done, size - done) :
				    read(fd, (char *)buf + done, size - done);

		if (len <= 0)
			return false;
		done += len;
	}
	return true;
}

/* Serve: tell @held when the slow block was asked for, answer it after @go. */
static long fn_nbd_serve(long sock, long held, long go, long seed)
{
	static char data[1 << 20];
	struct nbd_request req;

	while (nbd_transfer(sock, &req, sizeof(req), false)) {
		struct nbd_reply reply = { .magic = htonl(NBD_REPLY_MAGIC) };
		size_t len = ntohl(req.len), block = be64toh(req.from) / PGSZ;
		unsigned int type = ntohl(req.type) & 0xffff;
		char token;

		if (type == NBD_CMD_DISC) {
			/* Other processes have this socket open; the kernel waits for its end. */
			shutdown(sock, SHUT_RDWR);
			break;
		}
		if (len > sizeof(data))
			return -E2BIG;
		if (type == NBD_CMD_WRITE && !nbd_transfer(sock, data, len, false))
			return -EIO;
		if (block == NBD_SLOW_BLOCK) {
			if (!nbd_transfer(held, "h", 1, true) ||
			    !nbd_transfer(go, &token, 1, false))
				return -EPIPE;
		}
		memcpy(reply.handle, req.handle, sizeof(reply.handle));
		if (!nbd_transfer(sock, &reply, sizeof(reply), true))
			return -EIO;
		if (type != NBD_CMD_READ)
			continue;
		for (size_t i = 0; i < len / PGSZ; i++)
			ksm_fill_page(data + i * PGSZ, seed, block + i);
		if (!nbd_transfer(sock, data, len / PGSZ * PGSZ, true))
			return -EIO;
	}
	return 0;
}

/* Sits in NBD_DO_IT for as long as the device is connected. */
static long fn_nbd_run(long sock, long unused, long unused2, long unused3)
{
	int fd = open(NBD_DEVICE, O_RDWR);

	(void)unused;
	(void)unused2;
	(void)unused3;
	if (fd < 0)
		return -errno;
	ioctl(fd, NBD_CLEAR_SOCK);
	if (ioctl(fd, NBD_SET_BLKSIZE, PGSZ) ||
	    ioctl(fd, NBD_SET_SIZE_BLOCKS, NBD_BLOCKS) ||
	    ioctl(fd, NBD_SET_SOCK, sock))
		return -errno;
	ioctl(fd, NBD_DO_IT);
	ioctl(fd, NBD_CLEAR_QUE);
	ioctl(fd, NBD_CLEAR_SOCK);
	close(fd);
	return 0;
}

static long fn_direct_io(long addr, long block, long out, long unused)
{
	int fd = open(NBD_DEVICE, O_RDWR | O_DIRECT);
	ssize_t len;

	(void)unused;
	if (fd < 0)
		return -errno;
	len = out ? pwrite(fd, (void *)addr, PGSZ, block * PGSZ) :
		    pread(fd, (void *)addr, PGSZ, block * PGSZ);
	if (len < 0)
		len = -errno;
	close(fd);
	return len;
}

TEST_F(device, direct_io_in_flight)
{
	struct ksm_child server, run, c;
	char *a = ksm_mmap(N), *b = ksm_mmap(N), token;
	int sock[2], held[2], go[2], fd;
	uint64_t pfn;

	ksm_shell("modprobe nbd");
	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sock), 0);
	ASSERT_EQ(pipe(held), 0);
	ASSERT_EQ(pipe(go), 0);
	ksm_spawn(&server);
	ksm_spawn(&run);
	ksm_spawn(&c);
	ksm_call_start(&server, fn_nbd_serve, sock[1], held[1], go[0], 60);
	ksm_call_start(&run, fn_nbd_run, sock[0], 0, 0, 0);
	/* Connected as soon as a read of another block succeeds. */
	for (int i = 0; ; i++) {
		long ret = ksm_call(&c, fn_direct_io, a, 1, 0);

		if (ret == (long)PGSZ)
			break;
		ASSERT_LT(i, 100) TH_LOG("reading " NBD_DEVICE ": %s", strerror(-ret));
		usleep(50000);
	}
	EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, 1, 60), 1);

	ksm_call(&c, ksm_fn_fill, a, N, 61);
	ksm_call(&c, ksm_fn_fill, b, N, 61);
	ASSERT_GE(ksm_call(&c, ksm_fn_area_register, self->k.dev, a, N), 0);
	ASSERT_GE(ksm_call(&c, ksm_fn_area_register, self->k.dev, b, N), 0);

	/* A read before any scan; a read and a write of a merged page. */
	for (int round = 0; round < 3; round++) {
		bool out = round == 2;

		ksm_call_start(&c, fn_direct_io, KSM_ARG(a), NBD_SLOW_BLOCK, out, 0);
		ASSERT_EQ(read(held[0], &token, 1), 1);
		pfn = ksm_pfn(c.pid, a);
		ksm_passes(&self->k, 6);
		EXPECT_EQ(ksm_pfn(c.pid, a), pfn);
		/* A device that only reads from it may hold a merged page on 6.1. */
		if (!out) {
			EXPECT_NE(ksm_pfn(c.pid, b), pfn);
		}
		EXPECT_GE(ksm_same_frames(c.pid, a, c.pid, b, N), N - 1);
		ASSERT_EQ(write(go[1], "g", 1), 1);
		EXPECT_EQ(ksm_call_finish(&c), (long)PGSZ);
		EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, a, N, 61), out ? 0 : 1);
		EXPECT_EQ(ksm_call(&c, ksm_fn_wrong, b, N, 61), 0);
		if (!out) {
			/* What came from the device is there. */
			EXPECT_EQ(ksm_pfn(c.pid, a), pfn);
			EXPECT_NE(ksm_call(&c, fn_peek, a, 0, 0),
				  ksm_call(&c, fn_peek, b, 0, 0));
			ksm_call(&c, ksm_fn_fill, a, 1, 61);
		}
		/* On 6.12 it is copied to be written out, and was held, so that it waits its turn. */
		ksm_merge_held(&self->k);
		EXPECT_EQ(ksm_same_frames(c.pid, a, c.pid, b, N), N);
	}

	fd = open(NBD_DEVICE, O_RDWR);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(ioctl(fd, NBD_DISCONNECT), 0);
	close(fd);
	ksm_call_finish(&run);
	EXPECT_EQ(ksm_call_finish(&server), 0);
	ksm_end(&server);
	ksm_end(&run);
	ksm_end(&c);
}

TEST_HARNESS_MAIN
