# SPDX-License-Identifier: GPL-2.0-or-later
"""What an ABI version is, as a value: calling convention, sub-ops, structs, flags, limits and the copy-back rule.

Nothing outside ``abi/`` tests a version by name; dispatcher, driver, specification and fuzzer read these values.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from types import MappingProxyType
from typing import Final

from abi.codec import Codec
from abi.declare import ARCHES, Arch, CStruct
from abi.layout import Layout, place

DEFAULT_CONTEXT: Final = 0
"""``IOMMU_DEFAULT_CONTEXT`` of every version."""


class Convention(Enum):
    """How a hypercall's registers carry the request."""

    UNION = "one pointer to a tagged union"
    SUBOP = "sub-op number, pointer to its struct"
    BATCH = "pointer to an array of tagged unions, count"


class CopyBack(Enum):
    """When the hypervisor writes the argument struct back to the guest."""

    NEVER = "never"
    ALWAYS = "always, on errors too"
    STATUS = "always; the sub-op's result is in it"


@dataclass(frozen=True, slots=True)
class Constant:
    """A ``#define`` or enumerator of the header."""

    name: str
    value: int
    group: str
    """``subop``, ``cap``, ``alloc``, ``free``, ``map``, ``query`` or ``context``."""
    doc: str = ""
    spelling: str = ""
    """How the header writes the value, where a number is not all there is to say (``1 << 0``)."""
    needs: str = ""
    """The capability without which a guest must not use it."""


@dataclass(frozen=True, slots=True)
class Promise:
    """An error code that the header's comment promises for a condition."""

    condition: str
    """The condition's key in :mod:`abi.contract`."""
    errno: int
    text: str
    """As the header spells it, where that is not the name of ``errno``."""


@dataclass(frozen=True, slots=True)
class SubOp:
    """One row of the sub-op table."""

    name: str
    """Canonical name: a key of :data:`abi.canonical.CANONICAL`."""
    number: int
    c_name: str
    """The header's name of the number; "" if it has none."""
    declaration: CStruct | None
    """Its struct; ``None`` if the header declares none."""
    codec: Codec | None
    """Its struct on x86-64; ``None`` if the hypervisor never touches the argument."""
    implemented: bool
    """False: a known number that always answers -EOPNOTSUPP."""
    copied_in: bool
    copied_back: CopyBack
    case: str = ""
    """The alternative of the union that holds its arguments; "" if it has none."""
    doc: str = ""
    needs: str = ""
    """The capability that the header asks for."""
    promises: tuple[Promise, ...] = ()

    @property
    def struct(self) -> str:
        return "" if self.declaration is None else str(self.declaration.tag)

    def numbered(self, number: int) -> "SubOp":
        """The same row under another number; only for structs without a tag."""
        return replace(self, number=number)

    def codec_on(self, arch: Arch | str) -> Codec | None:
        """The codec of its struct on ``arch``, also where ``codec`` is None for want of an implementation; ``None``
        if there is no struct at all."""
        if self.declaration is None:
            return None
        return _codec(self.name, self.declaration, arch if isinstance(arch, str) else arch.name, self.case, self.number)


@cache
def _codec(name: str, declaration: CStruct, arch: str, case: str, number: int) -> Codec:
    return Codec(name, declaration, ARCHES[arch], case, number)


def subop(
    name: str,
    number: int,
    c_name: str,
    declaration: CStruct | None = None,
    *,
    touched: bool = True,
    implemented: bool = True,
    copied_in: bool = True,
    copied_back: CopyBack = CopyBack.NEVER,
    case: str = "",
    doc: str = "",
    needs: str = "",
    promises: tuple[Promise, ...] = (),
) -> SubOp:
    """A row, with its x86-64 codec where the hypervisor touches the argument."""
    codec = None
    if declaration is not None and touched:
        codec = _codec(name, declaration, "x86-64", case, number)
    return SubOp(
        name,
        number,
        c_name,
        declaration,
        codec,
        implemented,
        copied_in and codec is not None,
        copied_back,
        case,
        doc,
        needs,
        promises,
    )


@dataclass(frozen=True)
class Abi:
    """One posted version."""

    name: str
    posted: str
    """When, by whom and as what it was posted."""
    convention: Convention
    hypercall: int
    subops: Mapping[int, SubOp]
    constants: tuple[Constant, ...]
    structs: tuple[CStruct, ...]
    """Every struct that the header declares, in its order."""
    errno_unusable: int
    """Answer to everything when the caller may not use PV-IOMMU; positive."""
    errno_unknown_subop: int
    max_nr_pages: int | None
    """Pages per map or unmap call; ``None``: bounded by the field's width."""
    enum_tag: str | None = None
    """Tag of the enum of sub-op numbers; "" for an anonymous enum, ``None`` where they are #defines."""
    aligned_fallback: bool = False
    """The header defines ``uint64_aligned_t`` as plain ``uint64_t`` if nobody else did."""
    includes: tuple[str, ...] = ("xen.h",)
    same_as: str = ""
    """The version whose header this one repeats."""
    implemented: bool = True
    """False: a header without an implementation."""
    mentions: tuple[tuple[str, str], ...] = ()
    """(struct or constant, word): names that the header's comments use and that a reader will look for."""
    documents_partial: bool = False
    """The header says that the page counts hold after a failure too."""
    documents_preemption: bool = False
    """The header says that a call may be preempted and issued again, and what that does to its struct."""
    private: frozenset[str] = frozenset()
    """Constants that the hypervisor accepts but the public header does not define."""

    def __post_init__(self) -> None:
        by_value = {constant.name: constant.value for constant in self.constants}
        object.__setattr__(self, "by_name", MappingProxyType({s.name: s for s in self.subops.values()}))
        object.__setattr__(self, "value_of", MappingProxyType(by_value))
        caps = {c.name.removeprefix("IOMMUCAP_"): c.value for c in self.constants if c.group == "cap"}
        object.__setattr__(self, "caps", MappingProxyType(caps))
        for attribute, names in _FLAG_BITS.items():
            object.__setattr__(self, attribute, next((by_value[n] for n in names if n in by_value), 0))
        for attribute, group in (("map_flags_mask", "map"), ("alloc_flags_mask", "alloc"), ("free_flags_mask", "free")):
            object.__setattr__(self, attribute, _union(c.value for c in self.constants if c.group == group))

    by_name: Mapping[str, SubOp] = None  # type: ignore[assignment]
    """Sub-ops by canonical name."""
    value_of: Mapping[str, int] = None  # type: ignore[assignment]
    """Every constant of the header by its C name."""
    caps: Mapping[str, int] = None  # type: ignore[assignment]
    """Capability bits by the part of their name behind ``IOMMUCAP_``."""
    map_readable: int = 0
    map_writeable: int = 0
    map_cache: int = 0
    map_no_flush: int = 0
    map_flags_mask: int = 0
    alloc_identity: int = 0
    alloc_cache: int = 0
    alloc_flags_mask: int = 0
    free_reattach_default: int = 0
    free_flags_mask: int = 0

    def has(self, name: str) -> bool:
        """Whether the version has the sub-op of that canonical name."""
        return name in self.by_name

    def offers(self, name: str) -> bool:
        """The same, if it is more than a number."""
        return name in self.by_name and self.by_name[name].implemented

    def on(self, arch: str) -> "Abi":
        """The same version as callers on ``arch`` have it: every codec is of the layout there."""
        rows = {n: replace(row, codec=row.codec and row.codec_on(arch)) for n, row in self.subops.items()}
        return replace(self, subops=MappingProxyType(rows))

    def registers(self, name: str, arg: int) -> tuple[int, ...]:
        """The hypercall's arguments for sub-op ``name`` with its struct at guest address ``arg``."""
        if self.convention is Convention.UNION:
            return (arg,)
        if self.convention is Convention.BATCH:
            return (arg, 1)
        return (self.by_name[name].number, arg)

    def subop_of(self, buf: bytes | bytearray | memoryview) -> int:
        """The tag of a tagged union: the first two bytes; ``ValueError`` in versions without one."""
        if self.convention is Convention.SUBOP:
            raise ValueError(f"in {self.name} the sub-op number is a register, its structs carry none")
        return buf[0] | buf[1] << 8

    def layout(self, declaration: CStruct, arch: Arch | str = "x86-64") -> Layout:
        return place(declaration, ARCHES[arch] if isinstance(arch, str) else arch)

    def __repr__(self) -> str:
        return f"<ABI {self.name}>"


_FLAG_BITS: Final = {
    "map_readable": ("IOMMU_MAP_readable", "IOMMU_OP_readable"),
    "map_writeable": ("IOMMU_MAP_writeable", "IOMMU_OP_writeable"),
    "map_cache": ("IOMMU_MAP_cache",),
    "map_no_flush": ("IOMMU_MAP_no_flush",),
    "alloc_identity": ("IOMMU_ALLOC_identity",),
    "alloc_cache": ("IOMMU_ALLOC_cache",),
    "free_reattach_default": ("IOMMU_FREE_reattach_default", "IOMMU_TEARDOWN_REATTACH_DEFAULT"),
}


def _union(values: Iterable[int]) -> int:
    mask = 0
    for value in values:
        mask |= value
    return mask


def table(*rows: SubOp) -> Mapping[int, SubOp]:
    """The sub-op table; ``ValueError`` for a number or name used twice."""
    result: dict[int, SubOp] = {}
    for row in rows:
        if row.number in result or row.name in {r.name for r in result.values()}:
            raise ValueError(f"sub-op {row.number} ({row.name}) is in the table twice")
        result[row.number] = row
    return MappingProxyType(result)
