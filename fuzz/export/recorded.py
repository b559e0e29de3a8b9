# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypercalls as they reached the emulated hypervisor, written down while a program runs."""

import struct
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Final, NamedTuple

from abi.declare import ARCHES
from abi.errno import ENOBUFS
from abi.layout import as_struct, place
from abi.memory_op import ENTRY, MAP, MEMORY_OP
from abi.model import Convention
from fuzz.target import Call, Target
from hypervisor.domain import Vcpu
from testbed.build import TestBed

_MAP: Final[struct.Struct] = as_struct(place(MAP, ARCHES["x86-64"]), "pci")
_ENTRY: Final[struct.Struct] = as_struct(place(ENTRY, ARCHES["x86-64"]))


class Issued(NamedTuple):
    """An iommu_op call."""

    number: int
    name: str
    raw: bytes
    argument: str
    carrier: int | None
    """The domain that remote_cmd takes it to."""
    progress: int
    """What the guest claims that earlier passes of it did."""
    answer: Call | None
    """``None`` if it stopped the hypervisor."""
    domid: int = 0
    """Of the caller."""


class RegionsAsked(NamedTuple):
    """A memory_op call that asks which device frames firmware keeps."""

    flags: int
    slots: int
    """Entries that fit into the buffer."""
    device: int
    """Segment << 16 | bus << 8 | devfn."""
    result: int | None
    """``None`` if it stopped the hypervisor."""
    needed: int
    """``nr_entries`` afterwards."""
    regions: tuple[tuple[int, int], ...]
    """(first frame, frames) of what was written into the buffer."""


def listen(target: Target, heard: Callable[[Issued], None]) -> None:
    """Tell ``heard`` of every iommu_op that ``target`` issues: before it is made, and again with its answer."""
    genuine: Callable[..., Call] = target.issue

    def issue(number: int, name: str, raw: bytes, argument: str) -> Call:
        carrier, progress = target.wrapping
        carrier = carrier if name != "remote_cmd" else None
        register = number if carrier is not None else number | progress
        issued = Issued(register, name, raw, argument, carrier, progress, None, target.caller.domid)
        heard(issued)
        answer = genuine(number, name, raw, argument)
        heard(issued._replace(answer=answer))
        return answer

    setattr(target, "issue", issue)  # noqa: B010 -- on the instance


class Tap:
    """Between a bed's guests and its hypervisor, below whatever makes calls fail on their way.

    Calls that a :class:`fuzz.target.Target` issues itself do not come by here, but its questions for regions do.
    """

    def __init__(self, bed: TestBed) -> None:
        self.calls: list[Issued | RegionsAsked] = []
        """What came by since somebody emptied this."""
        self._abi: Final = bed.xen.abi
        self._memory: Final = copy(bed.linear)  # not met by the failures that a program puts into the vCPU's own
        self._genuine: Final = bed.xen.hypercall
        setattr(bed.xen, "hypercall", self._hypercall)  # noqa: B010 -- on the instance
        setattr(bed.hypercalls, "hypercall", partial(self._hypercall, bed.vcpu))  # noqa: B010 -- likewise

    def _hypercall(self, vcpu: Vcpu, number: int, *args: int) -> int:
        if number not in (MEMORY_OP, self._abi.hypercall):
            return self._genuine(vcpu, number, *args)
        note = self._regions if number == MEMORY_OP else self._iommu_op
        address = args[0] if number != MEMORY_OP and self._abi.convention is Convention.UNION else args[1]
        size = _MAP.size if number == MEMORY_OP else self._size(args)
        before = self._memory.read(address, size) or bytes(size)
        self.calls.append(note(args, before, None, before))
        result = self._genuine(vcpu, number, *args)
        self.calls[-1] = note(args, before, result, self._memory.read(address, size) or before)
        return result

    def _number(self, args: tuple[int, ...]) -> int:
        if self._abi.convention is Convention.UNION:
            return self._abi.subop_of(self._memory.read(args[0], 32) or bytes(32))
        return args[0]

    def _size(self, args: tuple[int, ...]) -> int:
        subop = self._abi.subops.get(self._number(args))
        return subop.codec.size if subop is not None and subop.codec is not None else 0

    def _iommu_op(self, args: tuple[int, ...], before: bytes, result: int | None, after: bytes) -> Issued:
        number = self._number(args)
        subop = self._abi.subops.get(number)
        name = subop.name if subop is not None and subop.implemented else ""
        answer = None if result is None else Call(number, name, "plain", before, result, after, 0, None)
        return Issued(number, name, before, "plain", None, 0, answer)

    def _regions(self, args: tuple[int, ...], before: bytes, result: int | None, after: bytes) -> RegionsAsked:
        flags, slots, buffer, segment, bus, devfn = _MAP.unpack(before)
        needed = _MAP.unpack(after)[1]
        written = min(slots, needed) if result in (0, -ENOBUFS) else 0
        there = self._memory.read(buffer, written * _ENTRY.size) or b""
        regions = tuple((first, pages) for first, pages in _ENTRY.iter_unpack(there))
        return RegionsAsked(flags, slots, segment << 16 | bus << 8 | devfn, result, needed, regions)
