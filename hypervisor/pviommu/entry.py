# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps around every handler, once per calling convention.

Copy in, check, handle, copy out.  A request whose answer could not be written back is refused with -EFAULT before
anything is changed; bytes of the struct that belong to no field must be zero.

A preempted call is issued again with its progress in bits 31:8 of the sub-op register, in units of 256 pages, as
Xen's memory_op does it: the guest's struct is not a place for the hypervisor's bookkeeping.  A guest that sets
these bits itself says "the first pages are done" and fools nobody but itself.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from abi.errno import EFAULT, EINVAL, EOPNOTSUPP
from abi.versions import Abi, Convention
from base.units import U32_MAX
from hypervisor.domain import Domain, Vcpu
from hypervisor.pviommu.result import RESTART
from hypervisor.pviommu.table import ROWS, Handler

if TYPE_CHECKING:
    from hypervisor.xen import Xen

UNION_SIZE: Final = 32
"""Bytes of the tagged union, whatever its sub-op."""


class Entry(Protocol):
    """A calling convention's way in."""

    def enter(self, xen: "Xen", vcpu: Vcpu, args: tuple[int, ...]) -> int:
        """One pass of the hypercall with registers ``args``; may answer :data:`RESTART`."""
        ...

    def again(self, args: tuple[int, ...], progress: tuple[int, ...]) -> tuple[int, ...]:
        """The registers with which a preempted call is issued again."""
        ...

    def run(self, xen: "Xen", vcpu: Vcpu, domain: Domain, subop: int, arg: int, start: int) -> int:
        """Sub-op ``subop`` on ``domain`` with its struct at ``arg`` in the memory of ``vcpu``."""
        ...


class _Prepared(NamedTuple):
    """A sub-op's row and codec, joined for one ABI version and taken apart for speed.

    ``handler`` is None for reserved numbers, ``decode`` is None where there is no argument, ``patch_out`` is None where
    nothing is written back.
    """

    handler: Handler | None
    decode: Callable[[memoryview | bytes], tuple[int, ...]] | None
    patch_out: Callable[..., None] | None
    size: int
    holes: int
    copied_in: bool
    resumes: bool


def _prepare(abi: Abi) -> dict[int, _Prepared]:
    prepared = {}
    for number, subop in abi.subops.items():
        codec = subop.codec
        if not subop.implemented:
            prepared[number] = _Prepared(None, None, None, 0, 0, False, False)
            continue
        row = ROWS[subop.name]
        if codec is None:
            prepared[number] = _Prepared(row.handler, None, None, 0, 0, False, row.resumes)
            continue
        prepared[number] = _Prepared(
            row.handler,
            codec.decode,
            codec.patch_out if codec.out else None,
            codec.size,
            codec.hole_mask,
            codec.out != codec.fields,
            row.resumes,
        )
    return prepared


class SubopEntry:
    """Sub-op number and a pointer to its own struct (v4 on)."""

    def __init__(self, abi: Abi) -> None:
        self._abi: Final = abi
        self._subops: Final = _prepare(abi)

    def enter(self, xen: "Xen", vcpu: Vcpu, args: tuple[int, ...]) -> int:
        domain = vcpu.domain
        iommu = domain.iommu
        if iommu is None or not iommu.allowed:
            return -self._abi.errno_unusable
        return self.run(xen, vcpu, domain, args[0] & U32_MAX, args[1], 0)

    def again(self, args: tuple[int, ...], progress: tuple[int, ...]) -> tuple[int, ...]:
        return (args[0] & 0xFF | progress[0] & ~0xFF, *args[1:])

    def run(self, xen: "Xen", vcpu: Vcpu, domain: Domain, subop: int, arg: int, start: int) -> int:
        prepared = self._subops.get(subop)
        if prepared is None:
            prepared = self._subops.get(subop & 0xFF)
            if prepared is None or not prepared.resumes:
                return -self._abi.errno_unknown_subop
            start = subop & ~0xFF
        handler, decode, patch_out, size, holes, copied_in, _ = prepared
        if handler is None:
            return -EOPNOTSUPP
        if decode is None:
            return handler(xen, vcpu, domain, (), start)[0]
        memory = vcpu.memory
        buffer: memoryview | bytearray | None = memory.window(arg, size)
        in_place = buffer is not None
        if buffer is None:  # not plain memory of one page: work on a copy
            raw = memory.read(arg, size) if copied_in else bytes(size)
            if raw is None or (patch_out is not None and not memory.writable(arg, size)):
                return -EFAULT
            buffer = bytearray(raw)
        if copied_in:
            if holes and int.from_bytes(buffer, "little") & holes:
                return -EINVAL
            result, out = handler(xen, vcpu, domain, decode(buffer), start)
        else:
            buffer[:] = bytes(size)
            result, out = handler(xen, vcpu, domain, (), start)
        if patch_out is not None and result != RESTART:
            patch_out(buffer, *out)
            if not in_place and not memory.write(arg, buffer):
                return -EFAULT
        return result


class UnionEntry:
    """One pointer to a tagged union (v1 to v3); the whole union is copied back, whatever the result."""

    def __init__(self, abi: Abi) -> None:
        self._abi: Final = abi
        self._subops: Final = _prepare(abi)

    def enter(self, xen: "Xen", vcpu: Vcpu, args: tuple[int, ...]) -> int:
        arg = args[0]
        memory = vcpu.memory
        buffer: memoryview | bytearray | None = memory.window(arg, UNION_SIZE)
        in_place = buffer is not None
        if buffer is None:
            raw = memory.read(arg, UNION_SIZE)
            if raw is None or not memory.writable(arg, UNION_SIZE):
                return -EFAULT
            buffer = bytearray(raw)
        domain = vcpu.domain
        iommu = domain.iommu
        if iommu is None or not iommu.allowed:
            return -self._abi.errno_unusable
        prepared = self._subops.get(self._abi.subop_of(buffer))
        if prepared is None:
            return -self._abi.errno_unknown_subop
        handler, decode, patch_out = prepared[:3]
        if handler is None:
            return -EOPNOTSUPP
        if decode is None:
            return handler(xen, vcpu, domain, (), 0)[0]
        result, out = handler(xen, vcpu, domain, decode(buffer), 0)
        if patch_out is not None and result != RESTART:
            patch_out(buffer, *out)
            if not in_place and not memory.write(arg, buffer):
                return -EFAULT
        return result

    def again(self, args: tuple[int, ...], progress: tuple[int, ...]) -> tuple[int, ...]:
        return args

    def run(self, xen: "Xen", vcpu: Vcpu, domain: Domain, subop: int, arg: int, start: int) -> int:
        return -EOPNOTSUPP  # remote_cmd, the only caller, is not in these versions


_ENTRIES: Final[dict[Convention, Callable[[Abi], Entry]]] = {
    Convention.SUBOP: SubopEntry,
    Convention.UNION: UnionEntry,
}


def entry_for(abi: Abi) -> Entry:
    """The way in for ``abi``'s calling convention; ``ValueError`` for one that this hypervisor does not offer."""
    try:
        return _ENTRIES[abi.convention](abi)
    except KeyError:
        raise ValueError(f"no dispatcher for {abi.name}: its calling convention is {abi.convention.name}") from None
