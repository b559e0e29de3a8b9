/* SPDX-License-Identifier: GPL-2.0-or-later */
/* H0 and v1 to v3, written by hand from the layout tables, with the tables' offsets asserted. */
#ifndef HAND_V3_H
#define HAND_V3_H

#include "xen.h"
#include "physdev.h"

#define IOMMU_DEFAULT_CONTEXT (0)
#define IOMMUOP_query_capabilities    1
#define IOMMUOP_alloc_context         2
#define IOMMUOP_free_context          3
#define IOMMUOP_reattach_device       4
#define IOMMUOP_map_pages             5
#define IOMMUOP_unmap_pages           6
#define IOMMUOP_lookup_page           7

struct pv_iommu_op {
    uint16_t subop_id;
    uint16_t ctx_no;
#define IOMMU_CREATE_clone (1 << 0)
#define IOMMU_OP_readable (1 << 0)
#define IOMMU_OP_writeable (1 << 1)
    uint32_t flags;
    union {
        struct {
            uint64_t gfn;
            uint64_t dfn;
            uint32_t nr_pages;
            uint32_t mapped;
        } map_pages;
        struct {
            uint64_t dfn;
            uint32_t nr_pages;
            uint32_t unmapped;
        } unmap_pages;
        struct {
            struct physdev_pci_device dev;
        } reattach_device;
        struct {
            uint64_t gfn;
            uint64_t dfn;
        } lookup_page;
        struct {
            uint16_t max_ctx_no;
            uint32_t max_nr_pages;
            uint64_t max_iova_addr;
        } cap;
    };
};
typedef struct pv_iommu_op pv_iommu_op_t;
DEFINE_XEN_GUEST_HANDLE(pv_iommu_op_t);

#define AT(f, o) _Static_assert(offsetof(struct pv_iommu_op, f) == (o), #f)
_Static_assert(sizeof(struct pv_iommu_op) == 32, "size");
AT(subop_id, 0);
AT(ctx_no, 2);
AT(flags, 4);
AT(map_pages.gfn, 8);
AT(map_pages.dfn, 16);
AT(map_pages.nr_pages, 24);
AT(map_pages.mapped, 28);
AT(unmap_pages.dfn, 8);
AT(unmap_pages.nr_pages, 16);
AT(unmap_pages.unmapped, 20);
AT(reattach_device.dev.seg, 8);
AT(reattach_device.dev.bus, 10);
AT(reattach_device.dev.devfn, 11);
AT(lookup_page.gfn, 8);
AT(lookup_page.dfn, 16);
AT(cap.max_ctx_no, 8);
AT(cap.max_nr_pages, 12);
AT(cap.max_iova_addr, 16);

#endif
