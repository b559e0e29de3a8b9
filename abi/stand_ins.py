# SPDX-License-Identifier: GPL-2.0-or-later
"""Stand-ins for the headers that a posted pv-iommu.h includes, for checking it outside a Xen or Linux tree.

They are searched last: where ``-I`` leads to the real ones, those are used.  Only what pv-iommu.h needs is here.
"""

from pathlib import Path
from typing import Final

_XEN: Final = """\
#ifndef __XEN_PUBLIC_XEN_H__
#define __XEN_PUBLIC_XEN_H__
#include <stdint.h>
#define __DEFINE_XEN_GUEST_HANDLE(name, type) typedef struct { type *p; } __guest_handle_##name
#define DEFINE_XEN_GUEST_HANDLE(name) __DEFINE_XEN_GUEST_HANDLE(name, name)
#define DEFINE_GUEST_HANDLE_STRUCT(name) typedef struct name *__guest_handle_##name
#define XEN_GUEST_HANDLE(name) __guest_handle_##name
#define XEN_GUEST_HANDLE_64(name) __guest_handle_##name
#define GUEST_HANDLE(name) __guest_handle_##name
typedef uint16_t domid_t;
typedef unsigned long xen_pfn_t;
typedef unsigned long xen_ulong_t;
__DEFINE_XEN_GUEST_HANDLE(void, void);
#endif
"""

_PHYSDEV: Final = """\
#ifndef __XEN_PUBLIC_PHYSDEV_H__
#define __XEN_PUBLIC_PHYSDEV_H__
#include "xen.h"
struct physdev_pci_device {
    uint16_t seg;
    uint8_t bus;
    uint8_t devfn;
};
typedef struct physdev_pci_device physdev_pci_device_t;
DEFINE_XEN_GUEST_HANDLE(physdev_pci_device_t);
#endif
"""

HEADERS: Final = {"xen.h": _XEN, "physdev.h": _PHYSDEV}


def write(folder: Path) -> None:
    """Write the stand-ins into ``folder``."""
    for name, text in HEADERS.items():
        (folder / name).write_text(text, encoding="utf-8")
