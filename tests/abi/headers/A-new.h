/* SPDX-License-Identifier: GPL-2.0-or-later */
/* XenServer's interface, written by hand from the layout tables, with the tables' offsets asserted. */
#ifndef HAND_A_H
#define HAND_A_H

#include "xen.h"

#define IOMMUOP_query_caps            1
#define IOMMUOP_map_page              2
#define IOMMUOP_unmap_page            3
#define IOMMUOP_lookup_foreign_page   5
#define IOMMUOP_unmap_foreign_page    6

struct pv_iommu_op {
    uint16_t subop_id;
#define IOMMU_page_order (0xf1 << 10)
#define IOMMU_get_page_order(flags) ((flags & IOMMU_page_order) >> 10)
#define IOMMU_QUERY_map_cap (1 << 0)
#define IOMMU_QUERY_map_all_mfns (1 << 1)
#define IOMMU_OP_readable (1 << 0)
#define IOMMU_OP_writeable (1 << 1)
#define IOMMU_MAP_OP_no_ref_cnt (1 << 2)
    uint16_t flags;
    int32_t status;
    union {
        struct { uint64_t offset; } query_caps;
        struct { uint64_t bfn; uint64_t gfn; } map_page;
        struct { uint64_t bfn; } unmap_page;
        struct { uint64_t bfn, gfn; domid_t domid; uint16_t ioserver; } lookup_foreign_page;
        struct { uint64_t bfn; uint16_t ioserver; } unmap_foreign_page;
    } u;
};

#ifdef __i386__
_Static_assert(sizeof(struct pv_iommu_op) == 28, "size");
#else
_Static_assert(sizeof(struct pv_iommu_op) == 32, "size");
#endif
#define AT(f, o) _Static_assert(offsetof(struct pv_iommu_op, f) == (o), #f)
AT(flags, 2);
AT(status, 4);
AT(u.query_caps.offset, 8);
AT(u.map_page.bfn, 8);
AT(u.map_page.gfn, 16);
AT(u.unmap_page.bfn, 8);
AT(u.lookup_foreign_page.bfn, 8);
AT(u.lookup_foreign_page.gfn, 16);
AT(u.lookup_foreign_page.domid, 24);
AT(u.lookup_foreign_page.ioserver, 26);
AT(u.unmap_foreign_page.bfn, 8);
AT(u.unmap_foreign_page.ioserver, 16);

#endif
