// SPDX-License-Identifier: GPL-2.0-only
/*
 * symbols.c - find the kernel functions that are not exported
 *
 * A kprobe on kallsyms_lookup_name() gives its address, and that function finds
 * the others. Kernels without kprobes take the address as a module parameter.
 * All or nothing: the first function that is missing is named in the log and the
 * module refuses to load.
 */
#define pr_fmt(fmt) "ksmdev: " fmt

#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/module.h>

#include "internal.h"

static unsigned long kallsyms_address;
module_param_named(kallsyms_lookup_name, kallsyms_address, ulong, 0400);
MODULE_PARM_DESC(kallsyms_lookup_name,
		 "address of that function (see /proc/kallsyms), for kernels without kprobes");

DEFINE_STATIC_CALL_NULL(ksmdev_kallsyms_lookup_name, kallsyms_lookup_name);

#define KSMDEV_DEFINE_SYMBOL(name) DEFINE_STATIC_CALL_NULL(ksmdev_##name, name);
KSMDEV_SYMBOLS(KSMDEV_DEFINE_SYMBOL)

static unsigned long find_kallsyms(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	unsigned long address;

	if (kallsyms_address)
		return kallsyms_address;
	if (register_kprobe(&probe))
		return 0;
	/* With IBT this is past the ENDBR, which suits a direct call. */
	address = (unsigned long)probe.addr;
	unregister_kprobe(&probe);
	return address;
}

static unsigned long find_symbol(const char *name)
{
	unsigned long address = static_call(ksmdev_kallsyms_lookup_name)(name);

	if (!address)
		pr_err("this kernel lacks %s(), which merging needs: not loaded\n", name);
	return address;
}

/**
 * ksmdev_mm_init() - find every kernel function that mm/ calls
 *
 * Context: Module init, once, before anything else of mm/ is called. May sleep.
 * Return: 0; -ENOENT if this kernel lacks one, which is named in the log.
 */
int ksmdev_mm_init(void)
{
	unsigned long address = find_kallsyms();

	if (!address) {
		pr_err("no kprobe on kallsyms_lookup_name(): give its address from /proc/kallsyms as kallsyms_lookup_name=\n");
		return -ENOENT;
	}
	static_call_update(ksmdev_kallsyms_lookup_name,
			   (typeof(kallsyms_lookup_name) *)address);

#define KSMDEV_FIND_SYMBOL(name)						\
	do {									\
		address = find_symbol(#name);					\
		if (!address)							\
			return -ENOENT;						\
		static_call_update(ksmdev_##name, (typeof(name) *)address);	\
	} while (0);
	KSMDEV_SYMBOLS(KSMDEV_FIND_SYMBOL)

#ifdef KSMDEV_EXTRA_SYMBOL
	/* Test builds name a function that does not exist, to see the refusal. */
	if (!find_symbol(__stringify(KSMDEV_EXTRA_SYMBOL)))
		return -ENOENT;
#endif
	return 0;
}
