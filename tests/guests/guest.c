// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest.c - the only program of a guest: memory whose contents it can check
 *
 * The first process of an initramfs that holds little else. It keeps pages of which it
 * knows what must be in them, and does what the second serial port says, a command a
 * line, each answered by a line: "ok NUMBER..." or "failed WHY". host.c or long.c,
 * outside, is the other end.
 *
 * What a page must hold is one of a few things that guests have in common, or something
 * of this guest's own, or one of these with a single byte changed; so there are always
 * pages to be merged, pages that nearly are, and merged ones that are written to. Where
 * there are disks, pages also go there and come back by O_DIRECT, and where there is an
 * echo (vsock) through that.
 *
 * On the kernel's command line: id=N, which tells guests apart; modules=A,B,... to load in
 * that order; disks=2; echo=PORT of the host.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "ksm_util.h"

#define NO_FLIP UINT16_MAX

/* So many pages at most go to or come from a disk at a time; the echo has room for them. */
#define MAX_RUN 32

/* One page in so many is for stir() to write, and this is the first. It is like no other. */
#define STIR_EVERY 64
#define STIR_FIRST 6

/* Seeds of contents that all guests have; a guest's own ones are above. */
enum { ZEROS, COMMON, SAME, OWN };

/**
 * struct content - what a page must hold
 * @seed: of the pattern, or ZEROS
 * @index: which page of the pattern
 * @flip: offset of a byte that is inverted, or NO_FLIP
 */
struct content {
	uint64_t seed;
	uint32_t index;
	uint16_t flip;
};

/**
 * struct disk - a block device
 * @fd: for O_DIRECT
 * @contents: what its pages must hold
 * @npages: how many there are
 */
struct disk {
	int fd;
	struct content *contents;
	size_t npages;
};

static char *memory;
static struct content *contents;
static size_t npages;
static uint64_t last_seed;
static FILE *commands, *port;
static struct disk disks[2];
static size_t ndisks;
static int echo = -1;

static void __attribute__((format(printf, 1, 2))) answer(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfprintf(port, fmt, ap);
	va_end(ap);
	putc('\n', port);
	fflush(port);
}

/* Nobody can go on without this guest: it panics, which the host sees. */
static void __attribute__((noreturn)) give_up(const char *what)
{
	answer("failed %s: %s", what, strerror(errno));
	exit(1);
}

static size_t random_below(size_t n)
{
	static uint64_t state;

	if (!state)
		state = last_seed;
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % n;
}

/*
 * What the pages hold at first, by their number: half of them as in the other guests,
 * some all alike, some empty, and some like no other.
 */
static struct content first_content(size_t page)
{
	struct content c = { .seed = last_seed, .index = page, .flip = NO_FLIP };

	switch (page % 8) {
	case 0 ... 3:
		c.seed = COMMON;
		break;
	case 4:
		c.seed = SAME;
		c.index = 0;
		break;
	case 5:
		c.seed = ZEROS;
		break;
	}
	return c;
}

static void make(char *page, struct content c)
{
	if (c.seed == ZEROS)
		memset(page, 0, PGSZ);
	else
		ksm_fill_page(page, c.seed, c.index);
	if (c.flip != NO_FLIP)
		page[c.flip] ^= 0xff;
}

static bool is_right(size_t page)
{
	static char expected[PGSZ];

	make(expected, contents[page]);
	return !memcmp(expected, ksm_page(memory, page), PGSZ);
}

static void put(size_t page, struct content c)
{
	contents[page] = c;
	make(ksm_page(memory, page), c);
}

static void fill(size_t n)
{
	if (npages)
		munmap(memory, npages * PGSZ);
	free(contents);
	contents = calloc(n, sizeof(*contents));
	memory = mmap(NULL, n * PGSZ, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!contents || memory == MAP_FAILED)
		give_up("memory");
	npages = n;
	for (size_t i = 0; i < n; i++)
		put(i, first_content(i));
}

/* How many of N pages from FIRST on are. */
static size_t wrong(size_t first, size_t n)
{
	size_t bad = 0;

	for (size_t i = first; i < first + n; i++)
		bad += !is_right(i);
	return bad;
}

/* One page at random becomes something else. */
static void rewrite(void)
{
	size_t page = random_below(npages), other = random_below(npages);
	struct content c = { .seed = COMMON, .index = page, .flip = NO_FLIP };

	switch (random_below(6)) {
	case 0:
		c.seed = ++last_seed;
		break;
	case 1:
		c.seed = ZEROS;
		break;
	case 2:
		c = contents[page];
		c.flip = c.flip == NO_FLIP ? random_below(PGSZ) : NO_FLIP;
		/* Only that byte is written. */
		ksm_page(memory, page)[c.flip == NO_FLIP ? contents[page].flip : c.flip] ^= 0xff;
		contents[page] = c;
		return;
	case 3:
		contents[page] = contents[other];
		memmove(ksm_page(memory, page), ksm_page(memory, other), PGSZ);
		return;
	}
	put(page, c);
}

/* Some pages go to a disk, or come from there; how many are wrong then. */
static size_t transfer(struct disk *disk)
{
	size_t n = 1 + random_below(MAX_RUN), page = random_below(npages - n);
	size_t at = random_below(disk->npages - n);
	ssize_t done;

	if (random_below(2)) {
		done = pwrite(disk->fd, ksm_page(memory, page), n * PGSZ, at * PGSZ);
		memcpy(disk->contents + at, contents + page, n * sizeof(*contents));
	} else {
		done = pread(disk->fd, ksm_page(memory, page), n * PGSZ, at * PGSZ);
		memcpy(contents + page, disk->contents + at, n * sizeof(*contents));
	}
	if (done != (ssize_t)(n * PGSZ))
		give_up("a disk");
	return wrong(page, n);
}

/* Some pages go to the host, which sends them back to where others are. */
static size_t exchange(void)
{
	size_t n = 1 + random_below(MAX_RUN);
	size_t from = random_below(npages - n), to = random_below(npages - n);

	/* All of it fits into the socket. */
	if (send(echo, ksm_page(memory, from), n * PGSZ, 0) != (ssize_t)(n * PGSZ))
		give_up("sending");
	memmove(contents + to, contents + from, n * sizeof(*contents));
	if (recv(echo, ksm_page(memory, to), n * PGSZ, MSG_WAITALL) != (ssize_t)(n * PGSZ))
		give_up("receiving");
	return wrong(to, n);
}

/* Is there a command? */
static bool is_called(void)
{
	struct pollfd input = { .fd = fileno(commands), .events = POLLIN };

	return poll(&input, 1, 0);
}

/* The command that ends what goes on for ever has no other meaning. */
static void skip_command(void)
{
	while (fgetc(commands) != '\n')
		if (feof(commands))
			give_up("the port");
}

/*
 * Rewrite and check at random until there is a command: what was wrong, how many rounds,
 * and how often pages went through a disk or the echo.
 */
static void work(void)
{
	size_t rounds = 0, bad = 0, moves = 0;

	answer("ok");
	while (!is_called()) {
		for (int i = 0; i < 32; i++)
			rewrite();
		for (int i = 0; i < 128; i++)
			bad += !is_right(random_below(npages));
		for (size_t i = 0; i < ndisks; i++, moves++)
			bad += transfer(&disks[i]);
		if (echo >= 0) {
			bad += exchange();
			moves++;
		}
		rounds++;
	}
	skip_command();
	answer("ok %zu %zu %zu", bad, rounds, moves);
}

/* Give some pages new contents, which lie far from each other among all the others. */
static size_t stir(void)
{
	size_t n = 0;

	for (size_t i = STIR_FIRST; i < npages; i += STIR_EVERY, n++)
		put(i, (struct content){ .seed = ++last_seed, .index = i, .flip = NO_FLIP });
	return n;
}

/* Read all the others, which stir() never writes. */
static size_t look(void)
{
	size_t n = 0;

	for (size_t i = 0; i < npages; i++) {
		if (i % STIR_EVERY == STIR_FIRST)
			continue;
		(void)*(volatile char *)ksm_page(memory, i);
		n++;
	}
	return n;
}

/* Both in turns until there is a command: how often. */
static void keep_busy(void)
{
	size_t rounds = 0;

	answer("ok");
	for (; !is_called(); rounds++) {
		stir();
		look();
	}
	skip_command();
	answer("ok %zu", rounds);
}

/* Where in the guest's memory the common ones of pages FIRST... are. */
static void where(size_t first, size_t n)
{
	fprintf(port, "ok");
	for (size_t i = first; n && i < npages; i++) {
		if (i % 8 >= 4)
			continue;
		fprintf(port, " %llx", (unsigned long long)ksm_pfn(0, ksm_page(memory, i)));
		n--;
	}
	answer("%s", "");
}

/* Common pages from FIRST on become this guest's own, or common again. */
static void change(size_t first, size_t n, bool own)
{
	for (size_t i = first; n && i < npages; i++) {
		struct content c = first_content(i);

		if (i % 8 >= 4)
			continue;
		if (own)
			c.seed = ++last_seed;
		put(i, c);
		n--;
	}
	answer("ok");
}

static void load_modules(char *names)
{
	char path[64];
	int fd;

	for (char *name = strtok(names, ","); name; name = strtok(NULL, ",")) {
		snprintf(path, sizeof(path), "/%s.ko", name);
		fd = open(path, O_RDONLY);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			give_up(path);
		close(fd);
	}
}

/* They come full of zeros. */
static void open_disk(const char *name)
{
	struct disk *disk = &disks[ndisks++];

	disk->fd = open(name, O_RDWR | O_DIRECT);
	if (disk->fd < 0)
		give_up(name);
	disk->npages = lseek(disk->fd, 0, SEEK_END) / PGSZ;
	disk->contents = calloc(disk->npages, sizeof(*disk->contents));
	if (!disk->contents)
		give_up("memory");
	for (size_t i = 0; i < disk->npages; i++)
		disk->contents[i].flip = NO_FLIP;
}

static void open_echo(unsigned int number)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_HOST,
		.svm_port = number,
	};

	echo = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (echo < 0 || connect(echo, (struct sockaddr *)&address, sizeof(address)))
		give_up("the echo");
}

static void start(void)
{
	struct termios raw;
	const char *id = getenv("id");
	int fd;

	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mount("devtmpfs", "/dev", "devtmpfs", 0, "");
	mount("proc", "/proc", "proc", 0, "");
	fd = open("/dev/ttyS1", O_RDWR);
	if (fd < 0 || tcgetattr(fd, &raw))
		exit(1);
	cfmakeraw(&raw);
	tcsetattr(fd, TCSANOW, &raw);
	port = fdopen(dup(fd), "w");
	commands = fdopen(fd, "r");
	/* One character at a time, or poll() would not know of what stdio has read. */
	setvbuf(commands, NULL, _IONBF, 0);
	last_seed = OWN + (strtoull(id ? id : "0", NULL, 10) << 32);
	if (getenv("modules"))
		load_modules(getenv("modules"));
	if (getenv("disks")) {
		open_disk("/dev/vda");
		open_disk("/dev/vdb");
	}
	if (getenv("echo"))
		open_echo(strtoul(getenv("echo"), NULL, 10));
	/* That the log arrives at all is part of the test that it is clean. */
	ksm_write_file("/dev/kmsg", "<1>ksmdev-guest: ready\n");
	answer("ready");
}

int main(void)
{
	char line[80], word[16];
	size_t a, b;

	start();
	while (fgets(line, sizeof(line), commands)) {
		a = 0;
		b = 0;
		if (sscanf(line, "%15s %zu %zu", word, &a, &b) < 1)
			continue;
		if (!strcmp(word, "fill")) {
			fill(a);
			answer("ok");
		} else if (!strcmp(word, "verify")) {
			answer("ok %zu", wrong(0, npages));
		} else if (!strcmp(word, "work")) {
			work();
		} else if (!strcmp(word, "stir")) {
			answer("ok %zu", stir());
		} else if (!strcmp(word, "look")) {
			answer("ok %zu", look());
		} else if (!strcmp(word, "busy")) {
			keep_busy();
		} else if (!strcmp(word, "where")) {
			where(a, b);
		} else if (!strcmp(word, "own")) {
			change(a, b, true);
		} else if (!strcmp(word, "common")) {
			change(a, b, false);
		} else if (!strcmp(word, "reboot")) {
			reboot(RB_AUTOBOOT);
		} else {
			answer("failed no command %s", word);
		}
	}
	give_up("the port");
}
