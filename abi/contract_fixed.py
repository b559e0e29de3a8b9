# SPDX-License-Identifier: GPL-2.0-or-later
"""``v3-fixed``, ``v7-fixed`` and ``e3-fixed``: the same ABI, answered without what went wrong in the postings.

What is different from the version as posted: nothing is done that cannot be reported, bytes without a meaning must be
zero, flags and page sizes are looked at, the default context is the hypervisor's, a reserved region is refused
wherever it begins, a refused call leaves no trace, counts start at 0, and the guest's struct is not a place for
the hypervisor's bookkeeping.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from abi import versions
from abi.conditions import FrameKind
from abi.contract import CONTRACTS, DONE, MOVE_LATE, Contract, Table, contract_of, rows
from abi.errno import (
    E2BIG,
    EACCES,
    EADDRINUSE,
    EADDRNOTAVAIL,
    EBUSY,
    EFAULT,
    EINVAL,
    EIO,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    EOPNOTSUPP,
    EPERM,
)

_CONTEXT: Final = rows(("default-context", EINVAL), ("no-context", EINVAL), ("target-dying", EINVAL))
_REACH: Final = rows(
    ("bad-pgsize", EINVAL), ("misaligned", EINVAL), ("out-of-range", EINVAL), ("too-many-pages", E2BIG)
)
_ACCESS: Final = rows(("bad-flags", EINVAL), ("no-access", EINVAL))
_RESERVED: Final = rows(("reserved-dfn", EADDRNOTAVAIL), each=True)
_UNCONFIRMED: Final = rows(("unconfirmed", EIO))
_MAPPED: Final = rows(("occupied", EADDRINUSE), ("no-table-memory", ENOMEM), each=True) + _UNCONFIRMED
_UNMAPPED: Final = rows(("not-mapped", ENOENT), ("no-split-memory", ENOMEM), each=True) + _UNCONFIRMED
_PROGRESS: Final = rows(("bad-progress", EINVAL))
_ALLOC: Final = rows(
    ("bad-flags", EINVAL),
    ("identity-context", EOPNOTSUPP),
    ("no-number", ENOSPC),
    ("no-context-memory", ENOMEM),
    ("no-tag", ENOSPC),
)
_FREE: Final = rows(
    ("bad-flags", EINVAL),
    ("default-context", EINVAL),
    ("no-context", ENOENT),
    ("busy", EBUSY),
    ("not-moved", ENOMEM),
    ("unconfirmed", EIO),
)
_MOVE: Final = (
    rows(
        ("cut-off", EIO),
        ("in-place", DONE),
        ("no-context", ENOENT),
        ("target-dying", EINVAL),
        ("reserved-overlap", EADDRINUSE),
        ("reserved-occupied", EADDRINUSE),
        ("move-unconfirmed", EIO),
    )
    + MOVE_LATE
)

_V3: Final[Mapping[str, Table]] = {
    "noop": (),
    "query_capabilities": (),
    "alloc_context": _ALLOC,
    "free_context": _FREE,
    "reattach_device": rows(("no-device", ENODEV)) + _MOVE,
    "map_pages": rows(("too-many-pages", E2BIG))
    + _CONTEXT
    + rows(("out-of-range", EINVAL))
    + _ACCESS
    + _RESERVED
    + rows(("frame-paged", EIO), ("frame-refused", EPERM), each=True)
    + _MAPPED,
    "unmap_pages": rows(("too-many-pages", E2BIG)) + _CONTEXT + rows(("out-of-range", EINVAL)) + _RESERVED + _UNMAPPED,
    "lookup_page": _CONTEXT + rows(("not-mapped", ENOENT), ("frame-lost", ENOENT)),
}

_V7: Final[Mapping[str, Table]] = {
    "query_capabilities": (),
    "init": rows(("too-many-contexts", E2BIG), ("initialized", EACCES), ("no-arena", ENOMEM)),
    "alloc_context": _ALLOC,
    "free_context": _FREE,
    "reattach_device": rows(("pasid", EOPNOTSUPP), ("no-device", ENODEV)) + _MOVE,
    "map_pages": _CONTEXT
    + _REACH
    + _ACCESS
    + _PROGRESS
    + _RESERVED
    + rows(("frame-hole", ENOENT), ("frame-refused", EPERM), each=True)
    + _MAPPED,
    "unmap_pages": _CONTEXT + _REACH + _PROGRESS + _RESERVED + _UNMAPPED,
    "remote_cmd": rows(
        ("not-privileged", EPERM), ("no-domain", ENOENT), ("nested-remote", EINVAL), ("target-unusable", ENODEV)
    ),
}


def _v3_tables(posted: Contract) -> Mapping[str, Table]:
    before = rows(("unreadable", EFAULT), ("unwritable-first", EFAULT), ("unusable", EPERM))
    tables = {name: before + tests for name, tests in _V3.items()}
    return MappingProxyType(tables | {"": before + rows(("unknown", posted.abi.errno_unknown_subop))})


def _v7_tables(posted: Contract) -> Mapping[str, Table]:
    unusable = rows(("unusable", ENODEV))
    tables = dict(posted.tables)
    for name, tests in _V7.items():
        subop = posted.abi.by_name[name]
        read = rows(("unreadable", EFAULT), ("holes", EINVAL)) if subop.copied_in else ()
        writes = posted.tables[name][-1].condition == "unwritable"
        tables[name] = unusable + read + (rows(("unwritable-first", EFAULT)) if writes else ()) + tests
    return MappingProxyType(tables)


def _fixed(posted: Contract, tables: Mapping[str, Table]) -> Contract:
    tested = {row.condition for row in tables["map_pages"]}
    return replace(
        posted,
        name=f"{posted.name}-fixed",
        tables=tables,
        frames={kind: condition for kind, condition in posted.frames.items() if condition in tested},
        count="reset",
        cursor=False,
        reserved_once=frozenset(),
        init_alters=False,
        init_wraps=False,
        init_sticks=False,
        refusal_marks=False,
        same_is_nothing=True,
        hardware_maps=posted.hardware_maps - {FrameKind.XEN},
        overwrites=False,
        units=posted.abi.by_name["map_pages"].struct == "pv_iommu_map_pages",
        reports_flush=True,
        fixed=True,
    )


V3_FIXED: Final = _fixed(contract_of("v3"), _v3_tables(contract_of("v3")))
V7_FIXED: Final = _fixed(contract_of("v7"), _v7_tables(contract_of("v7")))


def _like(sound: Contract, version: str) -> Contract:
    """``version``'s interface, answered as ``sound`` does."""
    abi = versions.get(version)
    tables = {name: table for name, table in sound.tables.items() if not name or abi.has(name)}
    return replace(sound, name=f"{version}-fixed", abi=abi, tables=MappingProxyType(tables))


E3_FIXED: Final = replace(
    V7_FIXED,
    name="e3-fixed",
    abi=versions.get("E3"),
    tables=MappingProxyType(
        dict(V7_FIXED.tables)
        | {
            "flush_pages": rows(("unusable", ENODEV), ("unreadable", EFAULT), ("holes", EINVAL))
            + _CONTEXT
            + _REACH
            + _UNCONFIRMED,
        }
    ),
)
"""E3's own answers were not seen: flush_pages tests its range as unmap_pages does."""

_SOUND: Final = (
    *(_like(V3_FIXED, version) for version in ("v1", "v2")),
    V3_FIXED,
    *(_like(V7_FIXED, version) for version in ("v4", "v5", "v6")),
    V7_FIXED,
    E3_FIXED,
)
EVERY: Final[Mapping[str, Contract]] = MappingProxyType(
    {**CONTRACTS, **{contract.name: contract for contract in _SOUND}}
)
"""Every contract that is known, the fixed ones included."""


def contract_called(name: str) -> Contract:
    """A contract by the name of a version or of a fixed profile."""
    return EVERY[name] if name in EVERY else contract_of(name)
