// SPDX-License-Identifier: GPL-2.0-only
/*
 * ksm_register_memory.c - the announcement's function that registers qemu
 *
 * Everything below this comment is the text printed in
 * the message of 17 November 2008 by Izik Eidus to linux-kernel and
 * kvm, "[PATCH 0/4] ksm - dynamic page sharing driver for linux v2", as quoted
 * in a reply to it.
 * It is kept as it was printed; qemu.c includes it.
 */
int ksm_register_memory(void)
{
    int fd;
    int ksm_fd;
    int r = 1;
    struct ksm_memory_region ksm_region;

    fd = open("/dev/ksm", O_RDWR | O_TRUNC, (mode_t)0600);
    if (fd == -1)
        goto out;

    ksm_fd = ioctl(fd, KSM_CREATE_SHARED_MEMORY_AREA);
    if (ksm_fd == -1)
        goto out_free;

    ksm_region.npages = phys_ram_size / TARGET_PAGE_SIZE;
    ksm_region.addr = phys_ram_base;
    r = ioctl(ksm_fd, KSM_REGISTER_MEMORY_REGION, &ksm_region);
    if (r)
        goto out_free1;

    return r;

out_free1:
    close(ksm_fd);
out_free:
    close(fd);
out:
    return r;
}
