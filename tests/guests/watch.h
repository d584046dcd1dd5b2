/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * watch.h - let a scanner work until nothing more comes of it, and keep account, for demo.c
 */
#ifndef KSMDEV_GUESTS_WATCH_H
#define KSMDEV_GUESTS_WATCH_H

#include <stdbool.h>

#include "bench/scanner.h"

#define MIB		1048576.0
#define PAGES_MIB(n)	((n) * (PGSZ / MIB))

/**
 * struct watch - a scene, and the scanner that works on it
 * @scene: its name, for the results
 * @who: the scanner, or NULL where nobody scans
 * @begin: when the scene began; what is drawn is later than that
 * @next_sample: when to take down again how much memory is used
 */
struct watch {
	const char *scene;
	const struct scanner *who;
	double begin;
	double next_sample;
};

/**
 * struct outcome - what a scanner achieved
 * @saved: MiB that it says it saves
 * @cpu: CPU seconds of its threads until it saved 99 % of that
 * @wall: seconds until then
 */
struct outcome {
	double saved;
	double cpu;
	double wall;
};

/* Of the scanner, or "nobody". */
const char *watch_name(const struct watch *w);
/* It begins, and the scanner, if there is one, gets ready. */
void watch_begin(struct watch *w, const char *scene, const struct scanner *who);
/* Take down how much memory is used, once a second; @guests that run so far. */
void watch_memory(struct watch *w, int guests);
/*
 * Start the scanner, and stop it when nothing more comes of it. @show is called
 * about once a second with the seconds since the start, and at the end.
 */
struct outcome watch_settle(struct watch *w, int guests, void (*show)(double seconds, bool end));

#endif /* KSMDEV_GUESTS_WATCH_H */
