/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * v5 to v7, written by hand from the layout tables, with the tables' offsets asserted; the generated header and the
 * declarations are held against this one.
 */
#ifndef HAND_V7_H
#define HAND_V7_H

#include "xen.h"
#include "physdev.h"

#ifndef uint64_aligned_t
#define uint64_aligned_t uint64_t
#endif

#define IOMMU_DEFAULT_CONTEXT (0)

enum pv_iommu_cmd {
    IOMMU_noop = 0,
    IOMMU_query_capabilities = 1,
    IOMMU_init = 2,
    IOMMU_alloc_context = 3,
    IOMMU_free_context = 4,
    IOMMU_reattach_device = 5,
    IOMMU_map_pages = 6,
    IOMMU_unmap_pages = 7,
    IOMMU_remote_cmd = 8,
    IOMMU_alloc_nested = 9,
    IOMMU_flush_nested = 10,
    IOMMU_attach_pasid = 11,
    IOMMU_detach_pasid = 12,
};

#define IOMMUCAP_default_identity (1U << 0)
#define IOMMUCAP_cache (1U << 1)
#define IOMMUCAP_nested (1U << 2)
#define IOMMUCAP_pasid (1U << 3)
#define IOMMUCAP_identity (1U << 4)

struct pv_iommu_capabilities {
    uint64_aligned_t max_iova_addr;
    uint32_t cap_flags;
    uint32_t pgsize_mask;
    uint32_t max_pasid;
    uint16_t max_ctx_no;
    uint16_t pad0;
};
typedef struct pv_iommu_capabilities pv_iommu_capabilities_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_capabilities_t);

struct pv_iommu_init {
    uint32_t max_ctx_no;
    uint32_t arena_order;
};

#define IOMMU_ALLOC_identity (1 << 0)

struct pv_iommu_alloc {
    uint16_t ctx_no;
    uint32_t alloc_flags;
};

#define IOMMU_FREE_reattach_default (1 << 0)

struct pv_iommu_free {
    uint16_t ctx_no;
    uint32_t free_flags;
};

#define IOMMU_MAP_readable (1 << 0)
#define IOMMU_MAP_writeable (1 << 1)
#define IOMMU_MAP_cache (1 << 2)

struct pv_iommu_map_pages {
    uint16_t ctx_no;
    uint64_aligned_t gfn;
    uint64_aligned_t dfn;
    uint32_t map_flags;
    uint32_t pgsize;
    uint32_t nr_pages;
    uint32_t mapped;
};

struct pv_iommu_unmap_pages {
    uint16_t ctx_no;
    uint64_aligned_t dfn;
    uint32_t pgsize;
    uint32_t nr_pages;
    uint32_t unmapped;
};

struct pv_iommu_reattach_device {
    uint16_t ctx_no;
    struct physdev_pci_device dev;
    uint32_t pasid;
};

struct pv_iommu_remote_cmd {
    uint16_t domid;
    uint16_t subop;
    XEN_GUEST_HANDLE(void) arg;
};

struct pv_iommu_alloc_nested {
    uint16_t ctx_no;
    uint64_aligned_t pgtable_gfn;
    uint64_aligned_t nested_flags;
};

struct pv_iommu_flush_nested {
    /* nothing yet */
};

struct pv_iommu_attach_pasid {
    uint16_t ctx_no;
    struct physdev_pci_device dev;
    uint32_t pasid;
};

struct pv_iommu_detach_pasid {
    struct physdev_pci_device dev;
    uint32_t pasid;
};

/* offset on x86-64 and arm64 / offset on i386, from the tables */
#ifdef __i386__
#define AT(s, f, wide, small) _Static_assert(offsetof(struct s, f) == (small), #s "." #f)
#define IS(s, wide, small) _Static_assert(sizeof(struct s) == (small), #s)
#else
#define AT(s, f, wide, small) _Static_assert(offsetof(struct s, f) == (wide), #s "." #f)
#define IS(s, wide, small) _Static_assert(sizeof(struct s) == (wide), #s)
#endif
IS(pv_iommu_capabilities, 24, 24);
AT(pv_iommu_capabilities, max_iova_addr, 0, 0);
AT(pv_iommu_capabilities, cap_flags, 8, 8);
AT(pv_iommu_capabilities, pgsize_mask, 12, 12);
AT(pv_iommu_capabilities, max_pasid, 16, 16);
AT(pv_iommu_capabilities, max_ctx_no, 20, 20);
AT(pv_iommu_capabilities, pad0, 22, 22);
IS(pv_iommu_init, 8, 8);
AT(pv_iommu_init, max_ctx_no, 0, 0);
AT(pv_iommu_init, arena_order, 4, 4);
IS(pv_iommu_alloc, 8, 8);
AT(pv_iommu_alloc, alloc_flags, 4, 4);
IS(pv_iommu_free, 8, 8);
AT(pv_iommu_free, free_flags, 4, 4);
IS(pv_iommu_map_pages, 40, 36);
AT(pv_iommu_map_pages, gfn, 8, 4);
AT(pv_iommu_map_pages, dfn, 16, 12);
AT(pv_iommu_map_pages, map_flags, 24, 20);
AT(pv_iommu_map_pages, pgsize, 28, 24);
AT(pv_iommu_map_pages, nr_pages, 32, 28);
AT(pv_iommu_map_pages, mapped, 36, 32);
IS(pv_iommu_unmap_pages, 32, 24);
AT(pv_iommu_unmap_pages, dfn, 8, 4);
AT(pv_iommu_unmap_pages, pgsize, 16, 12);
AT(pv_iommu_unmap_pages, nr_pages, 20, 16);
AT(pv_iommu_unmap_pages, unmapped, 24, 20);
IS(pv_iommu_reattach_device, 12, 12);
AT(pv_iommu_reattach_device, dev.seg, 2, 2);
AT(pv_iommu_reattach_device, dev.bus, 4, 4);
AT(pv_iommu_reattach_device, dev.devfn, 5, 5);
AT(pv_iommu_reattach_device, pasid, 8, 8);
IS(pv_iommu_remote_cmd, 16, 8);
AT(pv_iommu_remote_cmd, subop, 2, 2);
AT(pv_iommu_remote_cmd, arg, 8, 4);
IS(pv_iommu_alloc_nested, 24, 20);
AT(pv_iommu_alloc_nested, pgtable_gfn, 8, 4);
AT(pv_iommu_alloc_nested, nested_flags, 16, 12);
IS(pv_iommu_flush_nested, 0, 0);
IS(pv_iommu_attach_pasid, 12, 12);
AT(pv_iommu_attach_pasid, dev, 2, 2);
AT(pv_iommu_attach_pasid, pasid, 8, 8);
IS(pv_iommu_detach_pasid, 8, 8);
AT(pv_iommu_detach_pasid, dev, 0, 0);
AT(pv_iommu_detach_pasid, pasid, 4, 4);

#endif
