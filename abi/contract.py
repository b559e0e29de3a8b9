# SPDX-License-Identifier: GPL-2.0-or-later
"""What each version answers, as tables: sub-op by condition by errno, in the order of the tests.

As the posted hypervisors do it, whatever their headers promise (the promises are with the sub-ops in
:mod:`abi.versions`; lint compares).  The same without what went wrong in them is in :mod:`abi.contract_fixed`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, NamedTuple

from abi import versions
from abi.conditions import USABILITY, FrameKind
from abi.errno import (
    E2BIG,
    EACCES,
    EADDRINUSE,
    EADDRNOTAVAIL,
    EBUSY,
    EFAULT,
    EILSEQ,
    EINVAL,
    EIO,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    errno_name,
)
from abi.model import Abi, Convention

DONE: Final = 0
"""In place of an errno: the condition answers 0, there is nothing to do."""
STOPS: Final = -1
"""In place of an errno: the condition stops the hypervisor."""


READ_ONLY_KINDS: Final = frozenset({FrameKind.READ_ONLY, FrameKind.SHARED})
"""Frames that sound hypervisors let nobody write, devices included."""


class Row(NamedTuple):
    """One test: if ``condition`` holds, the sub-op answers -``errno`` (or see :data:`DONE` and :data:`STOPS`)."""

    condition: str
    errno: int
    each: bool = False
    """Tested for every page in turn, after the tests that are not."""

    @property
    def answer(self) -> str:
        """What the condition leads to, in words."""
        return {DONE: "0", STOPS: "stops the hypervisor"}.get(self.errno) or f"-{errno_name(self.errno)}"


Table = tuple[Row, ...]


@dataclass(frozen=True)
class Contract:
    """How one version answers.  The flags are what its tables cannot say."""

    name: str
    abi: Abi
    tables: Mapping[str, Table]
    """By canonical sub-op name, framing (copying in and out, usability) included."""
    frames: Mapping[FrameKind, str] = field(default_factory=dict)
    """Kind of frame -> the condition that it meets when it is mapped; absent: it can be mapped."""
    count: str = "set"
    """How ``mapped``/``unmapped`` come about: ``set`` to the pages done once the loop was entered, ``add``ed to what
    the guest left there, or ``reset`` to 0 on entry and then set."""
    cursor: bool = False
    """A preempted call leaves gfn, dfn and nr_pages advanced in the guest's struct."""
    reserved_once: frozenset[str] = frozenset()
    """Sub-ops that test reserved-dfn for the first page of the pass only, again and again."""
    init_alters: bool = False
    """init goes on into alloc_context on the same struct and answers what that answers."""
    init_wraps: bool = False
    """The number of contexts plus one is kept in 16 bits; 0 of that stops the hypervisor, even after an init."""
    init_sticks: bool = False
    """An init that failed for want of memory counts as done: there is no second try."""
    refusal_marks: bool = False
    """A refused free leaves the context marked as dying: nothing can be attached to it any more."""
    same_is_nothing: bool = True
    """Reattaching to the context that the device is in does nothing; else it is done again."""
    overwrites: bool = False
    """A reserved region replaces what the guest mapped there, without a word."""
    hardware_maps: frozenset[FrameKind] = frozenset()
    """Kinds of frames that are refused to every domain but the hardware domain."""
    units: bool = False
    """pgsize is honoured: a unit of that size is mapped or unmapped as a whole, and counted as one."""
    reports_flush: bool = False
    """A failing IOTLB flush fails the call; if not, it is a line in the hypervisor's log."""
    fixed: bool = False

    def table(self, subop: str) -> Table:
        return self.tables[subop]

    def frame_answer(self, kind: FrameKind) -> str:
        """What map_pages makes of a frame of that kind, in words."""
        if kind in READ_ONLY_KINDS and self.fixed:
            return f"mapped to be read, -{errno_name(EPERM)} to be written"
        codes = {row.condition: f"-{errno_name(row.errno)}" for row in self.table("map_pages")}
        answer = codes.get(self.frames.get(kind, ""), "mapped")
        if kind in self.hardware_maps:
            return f"mapped for the hardware domain, {answer} for others"
        return answer

    @property
    def resumable(self) -> frozenset[str]:
        """Sub-ops whose number may come with bits that say how far earlier passes got."""
        said = self.fixed and self.abi.convention is Convention.SUBOP
        return frozenset({"map_pages", "unmap_pages", "remote_cmd"}) if said else frozenset()

    @property
    def usability(self) -> tuple[str, ...]:
        """What "may not use PV-IOMMU" stands for."""
        if not self.runs:
            return USABILITY["A"]
        return USABILITY["v1" if self.abi.errno_unusable == EPERM else "v4"]

    @property
    def runs(self) -> bool:
        """Whether :mod:`abi.semantics` carries it out; if not, it is a table of statuses."""
        return self.abi.convention is not Convention.BATCH


class NoContract(KeyError):
    """What that version answers is not known."""

    def __str__(self) -> str:
        return str(self.args[0])


def rows(*pairs: tuple[str, int], each: bool = False) -> Table:
    """Tests in order, each a condition and its errno."""
    return tuple(Row(condition, errno, each) for condition, errno in pairs)


# --- v1 to v3: read the struct, then ask whether the caller may; the whole struct is written back, whatever the result

MOVE_LATE: Final = rows(("no-table-memory", ENOMEM), ("entry-changed", EILSEQ), ("phantom", EIO))

_V1_OWN: Final[Mapping[str, Table]] = {
    "noop": (),
    "query_capabilities": (),
    "alloc_context": rows(("no-number", ENOSPC), ("no-context-memory", ENOMEM)),
    "free_context": rows(("default-context", EINVAL), ("no-context", ENOENT), ("busy", EBUSY)),
    "reattach_device": rows(
        ("no-device", ENOENT),
        ("device-lost", ENOENT),
        ("no-context", ENOENT),
        ("target-dying", EINVAL),
        ("reserved-occupied", EINVAL),
    )
    + MOVE_LATE,
    "map_pages": rows(("too-many-pages", E2BIG), ("no-context", EINVAL))
    + rows(
        ("frame-shared", EINVAL),
        ("frame-paged", EIO),
        ("frame-refused", EPERM),
        ("occupied", EADDRINUSE),
        ("no-table-memory", ENOMEM),
        each=True,
    ),
    "unmap_pages": rows(("too-many-pages", E2BIG), ("no-context", EINVAL))
    + rows(("not-mapped", ENOENT), ("no-split-memory", ENOMEM), each=True),
    "lookup_page": rows(("no-context", EINVAL), ("not-mapped", ENOENT)),
}

_REFUSED: Final = (FrameKind.MMIO, FrameKind.MMIO_DENIED, FrameKind.FOREIGN, FrameKind.XEN, FrameKind.HOLE)
V1_FRAMES: Final = MappingProxyType(
    {FrameKind.SHARED: "frame-shared", FrameKind.PAGED_OUT: "frame-paged"} | dict.fromkeys(_REFUSED, "frame-refused")
)


def _union(abi: Abi, own: Mapping[str, Table]) -> Mapping[str, Table]:
    before = rows(("unreadable", EFAULT), ("unusable", abi.errno_unusable))
    tables = {name: before + tests + rows(("unwritable", EFAULT)) for name, tests in own.items()}
    tables[""] = before + rows(("unknown", abi.errno_unknown_subop))
    return MappingProxyType(tables)


def _v1(abi: Abi) -> Contract:
    return Contract(
        abi.name,
        abi,
        _union(abi, _V1_OWN),
        V1_FRAMES,
        refusal_marks=True,
        same_is_nothing=False,
    )


# --- v4 to v7: ask whether the caller may, then read the sub-op's own struct

_V4_OWN: Final[Mapping[str, Table]] = {
    "query_capabilities": (),
    "init": rows(("too-many-contexts", E2BIG), ("count-wraps", STOPS), ("initialized", EACCES), ("no-arena", ENOMEM)),
    "alloc_context": rows(("no-number", ENOSPC), ("no-context-memory", ENOMEM)),
    "free_context": rows(("default-context", EINVAL), ("no-context", ENOENT), ("busy", EBUSY)),
    "reattach_device": rows(
        ("no-device", ENOENT),
        ("in-place", DONE),
        ("device-lost", ENOENT),
        ("no-context", ENOENT),
        ("target-dying", EINVAL),
        ("reserved-overlap", EADDRINUSE),
    )
    + MOVE_LATE,
    "map_pages": rows(("default-context", EINVAL), ("no-context", EINVAL))
    + rows(
        ("reserved-dfn", EADDRNOTAVAIL),
        ("frame-hole", ENOENT),
        ("frame-refused", EPERM),
        ("occupied", EADDRINUSE),
        ("no-table-memory", ENOMEM),
        each=True,
    ),
    "unmap_pages": rows(("default-context", EINVAL), ("no-context", EINVAL))
    + rows(("reserved-dfn", EADDRNOTAVAIL), ("not-mapped", ENOENT), ("no-split-memory", ENOMEM), each=True),
    "remote_cmd": rows(("not-privileged", EPERM), ("no-domain", ENOENT), ("nested-remote", EINVAL)),
}

_V4_FRAMES: Final = MappingProxyType(
    {
        FrameKind.PAGED_OUT: "frame-hole",
        FrameKind.HOLE: "frame-hole",
        FrameKind.MMIO_DENIED: "frame-refused",
    }
)
"""Frames of other guests and of Xen can be mapped: whether a reference could be taken is not looked at."""
V7_FRAMES: Final = MappingProxyType(
    dict(_V4_FRAMES) | {FrameKind.FOREIGN: "frame-refused", FrameKind.XEN: "frame-refused"}
)


def _subops(abi: Abi, own: Mapping[str, Table]) -> Mapping[str, Table]:
    unusable = rows(("unusable", abi.errno_unusable))
    tables = {"": unusable + rows(("unknown", abi.errno_unknown_subop)), "noop": unusable}
    for subop in abi.subops.values():
        if not subop.implemented:
            tables[subop.name] = unusable + rows(("unimplemented", EOPNOTSUPP))
        elif subop.name in own:
            read = rows(("unreadable", EFAULT)) if subop.copied_in else ()
            written = rows(("unwritable", EFAULT)) if subop.copied_back.name == "ALWAYS" else ()
            tables[subop.name] = unusable + read + own[subop.name] + written
    return MappingProxyType(tables)


def _v4(abi: Abi, own: Mapping[str, Table] = _V4_OWN) -> Contract:
    return Contract(
        abi.name,
        abi,
        _subops(abi, own),
        _V4_FRAMES,
        count="add",
        cursor=True,
        reserved_once=frozenset({"map_pages", "unmap_pages"}),
        init_alters=True,
        init_wraps=True,
        init_sticks=True,
        refusal_marks=True,
        overwrites=True,
    )


def _changed(own: Mapping[str, Table], subop: str, condition: str, errno: int) -> Mapping[str, Table]:
    changed = tuple(row._replace(errno=errno) if row.condition == condition else row for row in own[subop])
    return {**own, subop: changed}


def _v7(abi: Abi) -> Contract:
    own = dict(_changed(_V4_OWN, "reattach_device", "no-device", ENODEV))
    found, there, *later = own["reattach_device"]
    own["reattach_device"] = (found, there, *rows(("device-unattached", ENOENT)), *later)
    hardware = frozenset({FrameKind.FOREIGN, FrameKind.XEN})
    return replace(_v4(abi, own), frames=V7_FRAMES, hardware_maps=hardware, reserved_once=frozenset({"map_pages"}))


# --- XenServer: statuses, not return values; tables only

_A_OWN: Final[Mapping[str, Table]] = {
    "query_caps": (),
    "map_page": rows(("order", ENOSPC), ("not-allowed", EPERM), ("iommu-failed", EIO)),
    "unmap_page": rows(("order", ENOSPC), ("not-allowed-unmap", EPERM), ("not-mapped", ENOENT), ("iommu-failed", EIO)),
    "map_foreign_page": rows(
        ("order", ENOSPC), ("not-allowed", EPERM), ("foreign-gone", ENXIO), ("foreign-refused", EPERM)
    ),
    "lookup_foreign_page": rows(
        ("order", ENOSPC), ("not-allowed", EPERM), ("foreign-gone", ENXIO), ("foreign-refused", EPERM)
    ),
    "unmap_foreign_page": rows(("order", ENOSPC), ("not-allowed-unmap", EPERM), ("not-mapped", ENOENT)),
}


def _a(abi: Abi) -> Contract:
    frame = rows(("unusable", ENOSYS), ("bad-count", EINVAL), ("unreadable", EFAULT))
    tables = {name: frame + _A_OWN[name] for name in abi.by_name}
    tables[""] = frame + rows(("unknown", ENODEV))
    return Contract(abi.name, abi, MappingProxyType(tables))


def _all() -> Iterator[Contract]:
    get = versions.get
    yield from (_a(get(name)) for name in ("A-old", "A-new"))
    yield from (_v1(get(name)) for name in ("v1", "v2", "v3"))
    yield from (_v4(get(name)) for name in ("v4", "v5", "v6"))
    yield _v7(get("v7"))


CONTRACTS: Final[Mapping[str, Contract]] = MappingProxyType({contract.name: contract for contract in _all()})

_UNKNOWN: Final = {
    "P-1": "P-1 was a prototype; its checks were not read",
    "P0": "P0 was a prototype; its checks were not read (a missing device answers 0 there)",
    "H0": "H0 is a header and a design document, nothing answers; v1 is the first implementation",
    "N": "N is a header without an implementation; what it promises is in 'pviommu abi show N'",
    "x1-nested": "x1-nested is an experiment: docs/nesting.md says what it answers; otherwise it is 'v7-fixed'",
    "E3": "E3's hypervisor was not seen; sub-ops 0 to 12 are v7's, and 'e3-fixed' is one reading",
}


def contract_of(name: str) -> Contract:
    """The contract of a version or profile; :class:`NoContract` where nobody knows it."""
    if name in CONTRACTS:
        return CONTRACTS[name]
    abi = versions.get(name)
    if abi.name in CONTRACTS:
        return CONTRACTS[abi.name]
    raise NoContract(_UNKNOWN[abi.name])
