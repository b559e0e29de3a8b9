# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps around every handler, once per calling convention.

Copy in, check, handle, copy out.  A request whose answer could not be written back is refused with -EFAULT before
anything is changed; bytes of the struct that belong to no field must be zero.

A preempted call is issued again with its progress in bits 31:8 of the sub-op register, in units of 256 pages, as
Xen's memory_op does it: the guest's struct is not a place for the hypervisor's bookkeeping.  A guest that sets
these bits itself says "the first pages are done" and fools nobody but itself.
"""

from collections.abc import Callable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Final, Protocol

from abi.errno import EFAULT, EINVAL, EOPNOTSUPP
from abi.versions import Abi, Convention
from base.units import U32_MAX
from hypervisor.domain import Domain, Vcpu
from hypervisor.pviommu.result import RESTART, Result
from hypervisor.pviommu.table import ROWS, Handler, Row

if TYPE_CHECKING:
    from hypervisor.xen import Xen

UNION_SIZE: Final = 32
"""Bytes of the tagged union, whatever its sub-op."""


class Entry(Protocol):
    """A calling convention's way in."""

    def wrap_handlers(self, wrap: "Wrap") -> None:
        """Put what ``wrap`` makes of a sub-op's name and handler in the place of every handler."""
        ...

    def narrow(self) -> "Entry":
        """The way in for callers whose structs have the layout of 32 bits."""
        ...

    @property
    def carries_progress(self) -> bool:
        """Whether a re-issued call can say how far earlier passes got."""
        ...

    def enter(self, xen: "Xen", vcpu: Vcpu, args: tuple[int, ...], target: Domain | None = None) -> int:
        """One pass of the hypercall with registers ``args``; may answer :data:`RESTART`.

        It acts on ``target`` (``None``: the caller's own domain); pointers are the caller's all the same.
        """
        ...

    def again(self, args: tuple[int, ...], progress: tuple[int, ...]) -> tuple[int, ...]:
        """The registers with which a preempted call is issued again."""
        ...


NARROW: Final = "i386"
"""The layout of a 32-bit caller's structs."""
Wrap = Callable[[str, Handler], Handler]
Decode = Callable[[memoryview | bytearray], tuple[int, ...] | None]
PutOut = Callable[[memoryview | bytearray, tuple[int, ...]], None]
_Prepared = tuple[Handler, Decode | None, PutOut | None, int, bool, bool]
"""A sub-op's row and codec, joined for one ABI version and taken apart for speed: handler; the struct's fields, or
``None`` if a byte that belongs to none of them is set (no function: no argument); what stores the answer (no
function: there is none); size of the struct; whether it is copied in; whether a preempted call says how far it got."""


def prepare(abi: Abi, rows: Mapping[str, Row]) -> dict[int, _Prepared]:
    """Every sub-op of ``abi`` by number, its handler taken from ``rows``."""
    tagged = abi.convention is Convention.UNION
    prepared: dict[int, _Prepared] = {}
    for number, subop in abi.subops.items():
        codec = subop.codec
        if not subop.implemented:
            prepared[number] = (_reserved, None, None, 0, False, False)
            continue
        row = rows[subop.name]
        if codec is None:
            prepared[number] = (row.handler, None, None, 0, False, row.resumes)
            continue
        copied_in = tagged or codec.out != codec.fields
        prepared[number] = (
            row.handler,
            codec.decode_clean if copied_in else _cleared,
            codec.put_out if codec.out else None,
            codec.size,
            copied_in,
            row.resumes,
        )
    return prepared


def narrowed(prepared: Mapping[int, _Prepared], abi: Abi) -> dict[int, _Prepared]:
    """``prepared`` with the codecs of a 32-bit caller's structs."""
    rows: dict[int, _Prepared] = {}
    for number, (handler, decode, put_out, _, copied_in, resumes) in prepared.items():
        codec = abi.subops[number].codec_on(NARROW)
        if decode is None or codec is None:
            rows[number] = prepared[number]
            continue
        read = codec.decode_clean if copied_in else _cleared
        rows[number] = (handler, read, codec.put_out if put_out else None, codec.size, copied_in, resumes)
    return rows


def _wrapped(prepared: Mapping[int, _Prepared], abi: Abi, wrap: Wrap) -> dict[int, _Prepared]:
    """``prepared`` with other handlers for what is implemented."""
    return {
        number: (wrap(abi.subops[number].name, row[0]), *row[1:]) if abi.subops[number].implemented else row
        for number, row in prepared.items()
    }


def _reserved(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    """A number that the header defines and nobody implements."""
    return -EOPNOTSUPP, ()


def _cleared(buffer: memoryview | bytearray) -> tuple[int, ...]:
    """A struct that is only written: what the guest left in it does not matter and does not stay."""
    buffer[:] = bytes(len(buffer))
    return ()


class SubopEntry:
    """Sub-op number and a pointer to its own struct (v4 on)."""

    carries_progress: Final = True

    def __init__(self, abi: Abi, rows: Mapping[str, Row] = ROWS) -> None:
        self._abi: Final = abi
        self._subops = prepare(abi, rows)
        self._narrow: SubopEntry | None = None
        """What :meth:`narrow` said last, while it still holds."""

    def wrap_handlers(self, wrap: Wrap) -> None:
        self._subops, self._narrow = _wrapped(self._subops, self._abi, wrap), None

    def narrow(self) -> "Entry":
        if self._narrow is None:
            self._narrow = other = copy(self)
            other._subops = narrowed(self._subops, self._abi)
        return self._narrow

    def enter(self, xen: "Xen", vcpu: Vcpu, args: tuple[int, ...], target: Domain | None = None) -> int:
        domain = vcpu.domain if target is None else target
        iommu = domain.iommu
        if iommu is None or not iommu.allowed:
            return -self._abi.errno_unusable
        start = 0
        prepared = self._subops.get(args[0])
        if prepared is None:  # bits above 31, the progress of a preempted call, or no such number
            start = args[0] & U32_MAX & ~0xFF
            prepared = self._subops.get(args[0] & 0xFF)
            if prepared is None or (start and not prepared[5]):
                return -self._abi.errno_unknown_subop
        handler, decode, put_out, size, copied_in, _ = prepared
        if decode is None:
            return handler(xen, vcpu, domain, (), start)[0]
        arg = args[1]
        memory = vcpu.memory
        copy: bytearray | None = None
        buffer: memoryview | bytearray | None = memory.window(arg, size)
        if buffer is None:  # not plain memory of one page: work on a copy
            raw = memory.read(arg, size) if copied_in else bytes(size)
            if raw is None:
                return -EFAULT
            buffer = copy = bytearray(raw)
            if put_out is not None and not memory.writable(arg, size):
                return -EINVAL if decode(copy) is None else -EFAULT
        fields = decode(buffer)
        if fields is None:
            return -EINVAL
        result, out = handler(xen, vcpu, domain, fields, start)
        if put_out is not None and result != RESTART:
            put_out(buffer, out)
            if copy is not None and not memory.write(arg, copy):
                return -EFAULT
        return result

    def again(self, args: tuple[int, ...], progress: tuple[int, ...]) -> tuple[int, ...]:
        return (args[0] & 0xFF | progress[0] & ~0xFF, *args[1:])


class UnionEntry:
    """One pointer to a tagged union (v1 to v3); the whole union is copied back, whatever the result."""

    carries_progress: Final = False
    """A struct is no place for it; the limit of 256 pages bounds what goes on without a pause."""

    def __init__(self, abi: Abi, rows: Mapping[str, Row] = ROWS) -> None:
        self._abi: Final = abi
        self._subops = prepare(abi, rows)

    def wrap_handlers(self, wrap: Wrap) -> None:
        self._subops = _wrapped(self._subops, self._abi, wrap)

    def narrow(self) -> "Entry":
        return self  # the union's members lie at the same places

    def enter(self, xen: "Xen", vcpu: Vcpu, args: tuple[int, ...], target: Domain | None = None) -> int:
        arg = args[0]
        memory = vcpu.memory
        copy: bytearray | None = None
        buffer: memoryview | bytearray | None = memory.window(arg, UNION_SIZE)
        if buffer is None:
            raw = memory.read(arg, UNION_SIZE)
            if raw is None or not memory.writable(arg, UNION_SIZE):
                return -EFAULT
            buffer = copy = bytearray(raw)
        domain = vcpu.domain if target is None else target
        iommu = domain.iommu
        if iommu is None or not iommu.allowed:
            return -self._abi.errno_unusable
        prepared = self._subops.get(buffer[0] | buffer[1] << 8)
        if prepared is None:
            return -self._abi.errno_unknown_subop
        handler, decode, put_out, _, _, _ = prepared
        fields = () if decode is None else decode(buffer)
        if fields is None:
            return -EINVAL
        result, out = handler(xen, vcpu, domain, fields, 0)
        if put_out is not None and result != RESTART:
            put_out(buffer, out)
            if copy is not None and not memory.write(arg, copy):
                return -EFAULT
        return result

    def again(self, args: tuple[int, ...], progress: tuple[int, ...]) -> tuple[int, ...]:
        return args


_ENTRIES: Final[dict[Convention, Callable[[Abi, Mapping[str, Row]], Entry]]] = {
    Convention.SUBOP: SubopEntry,
    Convention.UNION: UnionEntry,
}


def entry_for(abi: Abi, rows: Mapping[str, Row] = ROWS) -> Entry:
    """The way in for ``abi``'s calling convention, with ``rows`` as the sub-op table;
    ``ValueError`` for one that this hypervisor does not offer."""
    try:
        return _ENTRIES[abi.convention](abi, rows)
    except KeyError:
        raise ValueError(f"no dispatcher for {abi.name}: its calling convention is {abi.convention.name}") from None
