// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksmctl.c - the announcement's program that controls the kernel thread
 *
 * Everything below this comment is the text printed in
 * the message of 17 November 2008 by Izik Eidus to linux-kernel and
 * kvm, "[PATCH 0/4] ksm - dynamic page sharing driver for linux v2", as quoted
 * in a reply to it.
 * It is kept as it was printed, faults included, to show that
 * it compiles against our ksm.h and runs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/stat.h>
#include <sys/ioctl.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "ksm.h"

int main(int argc, char *argv[])
{
      int fd;
      int used = 0;
      int fd_start;
      struct ksm_kthread_info info;
      

      if (argc < 2) {
              fprintf(stderr,
                      "usage: %s {start npages sleep | stop | info}\n",
                      argv[0]);
              exit(1);
      }

      fd = open("/dev/ksm", O_RDWR | O_TRUNC, (mode_t)0600);
      if (fd == -1) {
              fprintf(stderr, "could not open /dev/ksm\n");
              exit(1);
      }

      if (!strncmp(argv[1], "start", strlen(argv[1]))) {
              used = 1;
              if (argc < 4) {
                      fprintf(stderr,
                  "usage: %s start npages_to_scan max_pages_to_merge sleep\n",
                  argv[0]);
                      exit(1);
              }
              info.pages_to_scan = atoi(argv[2]);
              info.max_pages_to_merge = atoi(argv[3]);
              info.sleep = atoi(argv[4]);
              info.flags = ksm_control_flags_run;

              fd_start = ioctl(fd, KSM_START_STOP_KTHREAD, &info);
              if (fd_start == -1) {
                      fprintf(stderr, "KSM_START_KTHREAD failed\n");
                      exit(1);
              }
              printf("created scanner\n");
      }

      if (!strncmp(argv[1], "stop", strlen(argv[1]))) {
              used = 1;
              info.flags = 0;
              fd_start = ioctl(fd, KSM_START_STOP_KTHREAD, &info);
              printf("stopped scanner\n");
      }

      if (!strncmp(argv[1], "info", strlen(argv[1]))) {
              used = 1;
              ioctl(fd, KSM_GET_INFO_KTHREAD, &info);
       printf("flags %d, pages_to_scan %d npages_merge %d, sleep_time %d\n",
       info.flags, info.pages_to_scan, info.max_pages_to_merge, info.sleep);
      }

      if (!used)
              fprintf(stderr, "unknown command %s\n", argv[1]);

      return 0;
}
