/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a pv-iommu.h needs of Xen's public xen.h, in its manner. */
#ifndef __XEN_PUBLIC_XEN_H__
#define __XEN_PUBLIC_XEN_H__

#include <stdint.h>

#if defined(__XEN__) || defined(__XEN_TOOLS__)
#define uint64_aligned_t uint64_t __attribute__((aligned(8)))
#endif

#define ___DEFINE_XEN_GUEST_HANDLE(name, type) \
    typedef struct { type *p; } __guest_handle_ ## name
#define __DEFINE_XEN_GUEST_HANDLE(name, type) \
    ___DEFINE_XEN_GUEST_HANDLE(name, type);   \
    ___DEFINE_XEN_GUEST_HANDLE(const_##name, const type)
#define DEFINE_XEN_GUEST_HANDLE(name) __DEFINE_XEN_GUEST_HANDLE(name, name)
#define XEN_GUEST_HANDLE(name) __guest_handle_ ## name

typedef uint16_t domid_t;
typedef unsigned long xen_pfn_t;
typedef unsigned long xen_ulong_t;
__DEFINE_XEN_GUEST_HANDLE(void, void);

struct shared_noise { int ignored : 3, also : 5; union { long a; struct { char b[8]; } c; } u[2]; };
static inline int xen_noise(struct shared_noise *n) { return n->ignored + (int){ 1 }; }

#endif
