// SPDX-License-Identifier: GPL-2.0-only
/*
 * hash.c - what it costs to read a page: hashes that the kernel lends, and others
 *
 * Loading it measures and says in the kernel log, a line for each: ns for a page
 * of 4 KiB that is in no cache, the median of several runs.
 * The engine takes one of these; Documentation/performance.rst has the figures.
 */
#define pr_fmt(fmt) "ksmdev-hash: " fmt

#include <crypto/blake2s.h>
#include <crypto/hash.h>
#include <linux/jhash.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/module.h>
#include <linux/prefetch.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/siphash.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/string.h>
#include <linux/version.h>
#include <linux/vmalloc.h>
#include <linux/xxhash.h>

/* More than any cache holds. */
#define NR_PAGES	(64UL << (20 - PAGE_SHIFT))
#define RUNS		5
/* A slow one need not see all of them. */
#define RUN_NS		(200 * NSEC_PER_MSEC)

static char *data;
static u64 numbers[PAGE_SIZE / sizeof(u64)];
static struct crypto_shash *crc32c_tfm;
/* Where results go, lest the compiler leave out the work. */
static u64 sink;

static u64 do_read(const void *page, const void *next)
{
	const u64 *p = page;
	u64 sum = 0;
	unsigned int i;

	for (i = 0; i < PAGE_SIZE / sizeof(*p); i++)
		sum += READ_ONCE(p[i]);
	return sum;
}

static u64 do_xxh64(const void *page, const void *next)
{
	return xxh64(page, PAGE_SIZE, 42);
}

/* As engine/hash.c does it, of all of a page. */
static u64 do_nh(const void *page, const void *next)
{
	static const siphash_key_t key = { { 42, 43 } };
	unsigned __int128 sum = 0;
	const u64 *word = page;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(numbers); i += 2)
		sum += (unsigned __int128)(word[i] + numbers[i]) *
		       (word[i + 1] + numbers[i + 1]);
	return siphash_2u64(sum, sum >> 64, &key);
}

static u64 do_xxh64_prefetch(const void *page, const void *next)
{
	unsigned int i;

	for (i = 0; i < PAGE_SIZE; i += L1_CACHE_BYTES)
		prefetch(next + i);
	return xxh64(page, PAGE_SIZE, 42);
}

static u64 do_xxh32(const void *page, const void *next)
{
	return xxh32(page, PAGE_SIZE, 42);
}

static u64 do_jhash2(const void *page, const void *next)
{
	return jhash2(page, PAGE_SIZE / sizeof(u32), 42);
}

static u64 do_siphash(const void *page, const void *next)
{
	static const siphash_key_t key = { { 42, 43 } };

	return siphash(page, PAGE_SIZE, &key);
}

static u64 do_hsiphash(const void *page, const void *next)
{
	static const hsiphash_key_t key = { { 42, 43 } };

	return hsiphash(page, PAGE_SIZE, &key);
}

static u64 do_blake2s(const void *page, const void *next)
{
	u8 hash[BLAKE2S_HASH_SIZE];

	/* 6.19: another order. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
	blake2s(NULL, 0, page, PAGE_SIZE, hash, sizeof(hash));
#else
	blake2s(hash, page, NULL, sizeof(hash), PAGE_SIZE, 0);
#endif
	return hash[0];
}

static u64 do_crc32c(const void *page, const void *next)
{
	u32 hash = 0;

	crypto_shash_tfm_digest(crc32c_tfm, page, PAGE_SIZE, (u8 *)&hash);
	return hash;
}

static u64 do_memcmp(const void *page, const void *next)
{
	/* Equal up to the last word. */
	return memcmp(page, next, PAGE_SIZE);
}

static u64 do_zero(const void *page, const void *next)
{
	return !memchr_inv(page, 0, PAGE_SIZE);
}

static int compare(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static void measure(const char *name, u64 (*hash)(const void *page, const void *next))
{
	u64 took[RUNS];
	unsigned long i;
	unsigned int run;

	for (run = 0; run < RUNS; run++) {
		u64 start = ktime_get_ns(), now = start;

		for (i = 0; i < NR_PAGES && now < start + RUN_NS; i++) {
			sink += hash(data + i * PAGE_SIZE,
				     data + (i + 1) % NR_PAGES * PAGE_SIZE);
			if (i % 64 == 63)
				now = ktime_get_ns();
			cond_resched();
		}
		took[run] = div64_ul(ktime_get_ns() - start, i);
	}
	sort(took, RUNS, sizeof(*took), compare, NULL);
	pr_info("%s: %llu ns\n", name, took[RUNS / 2]);
}

static int __init hash_init(void)
{
	unsigned long i;

	data = vmalloc(NR_PAGES * PAGE_SIZE);
	if (!data)
		return -ENOMEM;
	for (i = 0; i < NR_PAGES; i++) {
		memset(data + i * PAGE_SIZE, 0x5a, PAGE_SIZE);
		*(u64 *)(data + (i + 1) * PAGE_SIZE - sizeof(u64)) = i;
	}
	get_random_bytes(numbers, sizeof(numbers));
	measure("plain read", do_read);
	measure("NH and siphash", do_nh);
	measure("xxh64", do_xxh64);
	measure("xxh64, next page prefetched", do_xxh64_prefetch);
	measure("xxh32", do_xxh32);
	measure("jhash2", do_jhash2);
	measure("hsiphash", do_hsiphash);
	measure("siphash", do_siphash);
	measure("blake2s", do_blake2s);
	crc32c_tfm = crypto_alloc_shash("crc32c", 0, 0);
	if (!IS_ERR(crc32c_tfm)) {
		measure("crc32c", do_crc32c);
		crypto_free_shash(crc32c_tfm);
	}
	measure("memcmp with the next page", do_memcmp);
	memset(data, 0, NR_PAGES * PAGE_SIZE);
	measure("zero test of a zero page", do_zero);
	vfree(data);
	return 0;
}

static void __exit hash_exit(void)
{
}

module_init(hash_init);
module_exit(hash_exit);

MODULE_DESCRIPTION("cost of hashes for /dev/ksm");
MODULE_LICENSE("GPL");
