# SPDX-License-Identifier: GPL-2.0-or-later
"""What the fields of each sub-op are called here, whatever a version calls them.

The same argument travelled under several names and through several structs; dispatcher, driver and specification
handle each sub-op's arguments as one tuple, in the order of this table.  A version that lacks a field decodes it
as its default and ignores it when encoding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class CanonicalField:
    name: str
    c_names: tuple[str, ...]
    """Paths under which versions declare it, without the name of the union alternative."""
    out: bool = False
    """The hypervisor writes it."""
    default: int = 0


def _field(name: str, *c_names: str, out: bool = False, default: int = 0) -> CanonicalField:
    return CanonicalField(name, c_names or (name,), out, default)


_CTX = _field("ctx_no")
_DEVICE = (_field("segment", "dev.seg"), _field("bus", "dev.bus"), _field("devfn", "dev.devfn"))
_PGSIZE = _field("pgsize", default=0x1000)
_NR_PAGES = _field("nr_pages", default=1)
_STATUS = _field("status", out=True)

CANONICAL: Final[Mapping[str, tuple[CanonicalField, ...]]] = MappingProxyType(
    {
        "noop": (),
        "query_capabilities": (
            _field("max_iova_addr", out=True),
            _field("cap_flags", out=True),
            _field("pgsize_mask", out=True, default=0x1000),
            _field("max_pasid", out=True),
            _field("max_ctx_no", out=True),
            _field("max_nr_pages", out=True),
        ),
        "init": (_field("max_ctx_no"), _field("arena_order")),
        "alloc_context": (_field("ctx_no", out=True), _field("flags", "flags", "alloc_flags")),
        "free_context": (_CTX, _field("flags", "flags", "free_flags")),
        "reattach_device": (_CTX, *_DEVICE, _field("pasid")),
        "map_pages": (
            _CTX,
            _field("gfn"),
            _field("dfn"),
            _field("flags", "flags", "map_flags"),
            _PGSIZE,
            _NR_PAGES,
            _field("mapped", out=True),
        ),
        "unmap_pages": (_CTX, _field("dfn"), _PGSIZE, _NR_PAGES, _field("unmapped", out=True)),
        "lookup_page": (_CTX, _field("dfn"), _field("gfn", out=True)),
        "remote_cmd": (_field("domid"), _field("subop", "subop", "cmd"), _field("arg")),
        "alloc_nested": (
            _field("ctx_no", out=True),
            _field("pgtable_gfn"),
            _field("flags", "nested_flags"),
        ),
        "flush_nested": (_CTX, _field("nr_commands"), _field("commands"), _field("done", out=True)),
        "query_device": (
            *_DEVICE,
            _field("flags", "dev_flags", out=True),
            _field("nested_format", out=True),
            _field("pasid_bits", out=True),
            *(_field(f"info{number}", out=True) for number in range(4)),
        ),
        "next_fault": (
            *(_field(field.name, *field.c_names, out=True) for field in _DEVICE),
            _field("flags", "fault_flags", out=True),
            _field("pasid", out=True),
            _field("code", out=True),
            _field("address", out=True),
            _field("lost", out=True),
        ),
        "attach_pasid": (_CTX, *_DEVICE, _field("pasid")),
        "detach_pasid": (*_DEVICE, _field("pasid")),
        "flush_pages": (_CTX, _field("dfn"), _PGSIZE, _NR_PAGES),
        "reserved_device_memory_map": (
            _field("flags"),
            _field("nr_entries", out=True),
            _field("buffer"),
            _field("segment", "seg", "dev.pci.seg", "dev.seg"),
            _field("bus", "dev.pci.bus", "dev.bus"),
            _field("devfn", "dev.pci.devfn", "dev.devfn"),
        ),
        # XenServer's interface shares an ancestor with the others, not its arguments.
        "query_caps": (_field("flags", out=True), _STATUS, _field("offset", out=True)),
        "map_page": (_field("flags"), _STATUS, _field("bfn"), _field("gfn")),
        "unmap_page": (_field("flags"), _STATUS, _field("bfn")),
        "map_foreign_page": (
            _field("flags"),
            _STATUS,
            _field("bfn"),
            _field("gfn"),
            _field("domid"),
            _field("ioserver"),
        ),
        "lookup_foreign_page": (
            _field("flags"),
            _STATUS,
            _field("bfn", out=True),
            _field("gfn"),
            _field("domid"),
            _field("ioserver"),
        ),
        "unmap_foreign_page": (_field("flags"), _STATUS, _field("bfn"), _field("ioserver")),
    }
)
