# SPDX-License-Identifier: GPL-2.0-or-later
"""The one memory operation that a PV-IOMMU driver makes: which device frames firmware keeps.  Here byte by byte."""

import struct
from typing import TYPE_CHECKING, Final

from abi.errno import EFAULT, ENOBUFS, ENOSYS, errno_name
from base.units import PAGE_SHIFT
from fuzz.sweep import Broken
from fuzz.toolstack import ENTRIES, REGIONS
from fuzz.verbs import DEVICES, ProgramError

if TYPE_CHECKING:
    from fuzz.target import Target

_MEMORY_OP: Final = 12
_RESERVED_DEVICE_MEMORY_MAP: Final = 27
_MAP: Final = struct.Struct("<IIQHBB4x")
"""flags, nr_entries, buffer, segment, bus, devfn."""
_ENTRY: Final = struct.Struct("<QQ")
_SLOTS: Final = 64


def ask(target: "Target", name: str, everything: int, slots: int) -> tuple[int, Broken | None]:
    """Ask for the regions of a device (``everything``: of all), with room for ``slots``: (result, what is wrong).

    ``ProgramError`` for flags that their field of 32 bits does not hold.
    """
    if everything >> 32:
        raise ProgramError(f"regions.all is 32 bits wide, {everything:#x} does not fit")
    bed, device, slots = target.bed, DEVICES[name], min(slots, _SLOTS)
    linear = target.toolstack.dom0.linear
    request = (everything, slots, linear(ENTRIES), device >> 16, device >> 8 & 0xFF, device & 0xFF)
    bed.ram.write(REGIONS, _MAP.pack(*request))
    bed.ram.write(ENTRIES, b"\xee" * _ENTRY.size * _SLOTS)
    hypercall = target.machine.hypercall(bed.xen)
    result = hypercall(bed.vcpu, _MEMORY_OP, _RESERVED_DEVICE_MEMORY_MAP, linear(REGIONS))
    absent = target.machine.code_32  # this hypervisor has no 32-bit form of it
    if target.faults is not None and target.faults.copy and not absent:
        return result, None if result == -EFAULT else _wrong(result, -EFAULT)
    regions = [
        (rmrr.base >> PAGE_SHIFT, (rmrr.last + 1 - rmrr.base) >> PAGE_SHIFT)
        for rmrr in bed.config.rmrrs
        if everything == 1 or device in map(int, rmrr.devices)
    ]
    if absent:
        expected, said = -ENOSYS, request
    elif everything & ~1:
        expected, said = -22, request
    else:
        expected = -ENOBUFS if slots < len(regions) else 0
        said = (request[0], len(regions), *request[2:])
    if result != expected:
        return result, _wrong(result, expected)
    if _MAP.unpack(bed.ram.read(REGIONS, _MAP.size)) != said:
        return result, Broken("written-back", "memory_op: the struct is not what it has to be")
    there = bed.ram.read(ENTRIES, _ENTRY.size * _SLOTS)
    written = b"".join(_ENTRY.pack(*region) for region in regions[:slots]) if result in (0, -ENOBUFS) else b""
    if there != written.ljust(len(there), b"\xee"):
        return result, Broken("written-back", "memory_op: the list of regions is not what it has to be")
    return result, None


def _wrong(result: int, expected: int) -> Broken:
    return Broken("answer", f"memory_op answered {errno_name(result)}, not {errno_name(expected)}")
