/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * engine.h - what the engine offers to the front door, ksm.c
 */
#ifndef KSMDEV_ENGINE_H
#define KSMDEV_ENGINE_H

#include <linux/types.h>

#include "../ksm.h"

struct attribute_group;
struct ksmdev_area;
struct ksmdev_scan;
struct seq_file;

/* Areas. engine/area.c */
struct ksmdev_area *ksmdev_area_create(void);
void ksmdev_area_release(struct ksmdev_area *area);
int ksmdev_area_register(struct ksmdev_area *area, u64 addr, u64 npages);
/* engine/bury.c */
void ksmdev_area_remove_all(struct ksmdev_area *area);
void ksmdev_areas_exit(void);
/* engine/unmerge.c */
int ksmdev_area_unmerge(struct ksmdev_area *area, bool (*interrupted)(void));

/* Scanning. engine/scan.c */
struct ksmdev_scan *ksmdev_scan_create(bool all);
void ksmdev_scan_destroy(struct ksmdev_scan *scan);
int ksmdev_scan_run(struct ksmdev_scan *scan, unsigned long pages,
		    unsigned long max_merges, bool (*interrupted)(void));
int ksmdev_merge_range(struct ksmdev_area *area, u64 addr, u64 npages, u64 *merged,
		       bool privileged, bool (*interrupted)(void));

/* The kernel threads. engine/kksmd.c */
int ksmdev_kksmd_start(const struct ksm_kthread_info *info);
void ksmdev_kksmd_stop(void);
void ksmdev_kksmd_info(struct ksm_kthread_info *info);
int ksmdev_kksmd_set_pace(const struct ksm_pace *pace);
void ksmdev_kksmd_pace(struct ksm_pace *pace);
void ksmdev_kksmd_wake(void);
int ksmdev_kksmd_init(void);
void ksmdev_kksmd_exit(void);

/* Statistics. engine/stats.c */
extern const struct attribute_group ksmdev_stats_group;
void ksmdev_area_show(struct seq_file *m, struct ksmdev_area *area, bool (*interrupted)(void));

/* Shared pages gone over. engine/sweep.c */
void ksmdev_sweep_exit(void);

/* Fingerprints, and the indexes. engine/hash.c, engine/index.c, engine/shared.c */
void ksmdev_hash_init(void);
int ksmdev_index_init(void);
void ksmdev_index_exit(void);
int ksmdev_shared_init(void);
void ksmdev_shared_exit(void);

#endif /* KSMDEV_ENGINE_H */
