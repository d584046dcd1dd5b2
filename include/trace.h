/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * trace.h - the tracepoints, system ksmdev
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM ksmdev

#if !defined(KSMDEV_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define KSMDEV_TRACE_H

#include <linux/tracepoint.h>

TRACE_EVENT(ksmdev_scan_start,
	TP_PROTO(unsigned long pages, unsigned long max_merges),
	TP_ARGS(pages, max_merges),
	TP_STRUCT__entry(
		__field(unsigned long, pages)
		__field(unsigned long, max_merges)
	),
	TP_fast_assign(
		__entry->pages = pages;
		__entry->max_merges = max_merges;
	),
	TP_printk("pages=%lu max_merges=%lu", __entry->pages, __entry->max_merges)
);

TRACE_EVENT(ksmdev_scan_end,
	TP_PROTO(unsigned long visited, unsigned long merged, int err),
	TP_ARGS(visited, merged, err),
	TP_STRUCT__entry(
		__field(unsigned long, visited)
		__field(unsigned long, merged)
		__field(int, err)
	),
	TP_fast_assign(
		__entry->visited = visited;
		__entry->merged = merged;
		__entry->err = err;
	),
	TP_printk("visited=%lu merged=%lu err=%d",
		  __entry->visited, __entry->merged, __entry->err)
);

/* A page's contents were read by a scan. */
TRACE_EVENT(ksmdev_hash,
	TP_PROTO(struct mm_struct *mm, unsigned long addr, u64 fingerprint),
	TP_ARGS(mm, addr, fingerprint),
	TP_STRUCT__entry(
		__field(void *, mm)
		__field(unsigned long, addr)
		__field(u64, fingerprint)
	),
	TP_fast_assign(
		__entry->mm = mm;
		__entry->addr = addr;
		__entry->fingerprint = fingerprint;
	),
	TP_printk("mm=%p addr=0x%lx fingerprint=0x%llx",
		  __entry->mm, __entry->addr, __entry->fingerprint)
);

TRACE_EVENT(ksmdev_merge,
	TP_PROTO(struct mm_struct *mm, unsigned long addr, unsigned long pfn),
	TP_ARGS(mm, addr, pfn),
	TP_STRUCT__entry(
		__field(void *, mm)
		__field(unsigned long, addr)
		__field(unsigned long, pfn)
	),
	TP_fast_assign(
		__entry->mm = mm;
		__entry->addr = addr;
		__entry->pfn = pfn;
	),
	TP_printk("mm=%p addr=0x%lx pfn=0x%lx", __entry->mm, __entry->addr, __entry->pfn)
);

/* Why a page was not merged, as the errors that mm/ and engine/merge.c give. */
#define KSMDEV_REASONS				\
	{ EBUSY,	"busy" },		\
	{ ESTALE,	"remapped" },		\
	{ E2BIG,	"large" },		\
	{ EILSEQ,	"differs" },		\
	{ EAGAIN,	"lru_batch" },		\
	{ ETIMEDOUT,	"mmap_lock" },		\
	{ ESRCH,	"exited" }

TRACE_EVENT(ksmdev_merge_failed,
	TP_PROTO(struct mm_struct *mm, unsigned long addr, int err),
	TP_ARGS(mm, addr, err),
	TP_STRUCT__entry(
		__field(void *, mm)
		__field(unsigned long, addr)
		__field(int, reason)
	),
	TP_fast_assign(
		__entry->mm = mm;
		__entry->addr = addr;
		__entry->reason = -err;
	),
	TP_printk("mm=%p addr=0x%lx reason=%s", __entry->mm, __entry->addr,
		  __print_symbolic(__entry->reason, KSMDEV_REASONS))
);

TRACE_EVENT(ksmdev_unmerge,
	TP_PROTO(struct mm_struct *mm, unsigned long addr, int err),
	TP_ARGS(mm, addr, err),
	TP_STRUCT__entry(
		__field(void *, mm)
		__field(unsigned long, addr)
		__field(int, err)
	),
	TP_fast_assign(
		__entry->mm = mm;
		__entry->addr = addr;
		__entry->err = err;
	),
	TP_printk("mm=%p addr=0x%lx err=%d", __entry->mm, __entry->addr, __entry->err)
);

#endif /* KSMDEV_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
