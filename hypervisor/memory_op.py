# SPDX-License-Identifier: GPL-2.0-or-later
"""The one memory_op that a PV-IOMMU driver asks for: which device frames firmware keeps for itself.

Everything else of memory_op answers -ENOSYS here.  What the sub-op does, and in which order it tests, is written in
:mod:`abi.memory_op`; the header's -ERANGE for too few slots is -ENOBUFS in Xen, and so here.
"""

from typing import TYPE_CHECKING, Final

from abi.declare import ARCHES
from abi.errno import EFAULT, EINVAL, ENOBUFS, ENOSYS
from abi.layout import as_struct, place
from abi.memory_op import ENTRY, MAP, XENMEM_RDM_ALL, XENMEM_RESERVED_DEVICE_MEMORY_MAP
from base.units import PAGE_SHIFT, U32_MAX
from hypervisor.domain import Vcpu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypervisor.xen import Xen

EXTENT_SHIFT: Final = 6
"""memory_op's first register: the sub-op in the bits below, where a preempted call goes on in those above."""
_LAYOUT: Final = place(MAP, ARCHES["x86-64"])
_MAP: Final = as_struct(_LAYOUT, "pci")  # flags, nr_entries, buffer, segment, bus, devfn
_NEEDED: Final = _LAYOUT.member("nr_entries")
_ENTRY: Final = as_struct(place(ENTRY, ARCHES["x86-64"]))  # start_pfn, nr_pages


def memory_op(xen: "Xen", vcpu: Vcpu, command: int, arg: int) -> int:
    """Sub-op and start extent in ``command``, a struct at guest address ``arg``: 0 or a negative errno."""
    command &= U32_MAX
    if command & (1 << EXTENT_SHIFT) - 1 != XENMEM_RESERVED_DEVICE_MEMORY_MAP:
        return -ENOSYS
    if command >> EXTENT_SHIFT:
        return -EINVAL
    return reserved_device_memory_map(xen, vcpu, arg)


def reserved_device_memory_map(xen: "Xen", vcpu: Vcpu, arg: int) -> int:
    """Write (first frame, frames) of every reserved region of a device, or of all devices, as far as slots go.

    -EFAULT, -EINVAL (an unknown flag); -ENOBUFS with the number of entries needed and as many as fit written.
    """
    memory = vcpu.memory
    raw = memory.read(arg, _MAP.size)
    if raw is None:
        return -EFAULT
    flags, slots, buffer, segment, bus, devfn = _MAP.unpack(raw)
    if flags & ~XENMEM_RDM_ALL:
        return -EINVAL
    pci = segment << 16 | bus << 8 | devfn
    used = result = 0
    for first, pages in _regions(xen, None if flags & XENMEM_RDM_ALL else pci):
        if used < slots and not memory.write(buffer + used * _ENTRY.size, _ENTRY.pack(first, pages)):
            result = -EFAULT
            break
        used += 1
    if not result and slots < used:
        result = -ENOBUFS
    answer = bytearray(raw)
    answer[_NEEDED.offset : _NEEDED.end] = used.to_bytes(_NEEDED.size, "little")
    return result if memory.write(arg, answer) else -EFAULT


def _regions(xen: "Xen", sbdf: int | None) -> "Iterator[tuple[int, int]]":
    """(first frame, frames) of the regions of ``sbdf``, or of all, each once."""
    for rmrr in xen.platform.firmware.rmrrs:
        if sbdf is None or sbdf in rmrr.devices:
            first = rmrr.base >> PAGE_SHIFT
            yield first, (rmrr.last >> PAGE_SHIFT) + 1 - first
