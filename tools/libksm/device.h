/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * device.h - what libksm has for libksm-preload, and for nobody else
 */
#ifndef LIBKSM_DEVICE_H
#define LIBKSM_DEVICE_H

int ksm_open_device(void);

#endif /* LIBKSM_DEVICE_H */
