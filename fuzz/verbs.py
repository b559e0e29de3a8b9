# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of programs: every operation with its fields, and what may stand in each field.

Operations come at two levels.  *Hypercall* level is what a guest, its devices and the toolstack do to the hypervisor;
*driver* level is what the rest of a guest kernel asks of the IOMMU core, dma-iommu and the xen-iommu driver.  A bench
says which of the two a program is written in; DMA belongs to both.
"""

from typing import Any, Final, NamedTuple

from base.units import make_sbdf
from testbed.build import COPIER, NIC, ROGUE

Value = int | str | bytes | tuple[str, int]
Op = tuple[Any, ...]
"""(verb, value of each of the verb's fields in the order of :data:`VERBS`)."""

DEVICES: Final = {
    "nic": int(NIC),
    "copier": int(COPIER),
    "rogue": int(ROGUE),
    "port": int(make_sbdf(0, 0, 0x1C, 0)),
    "bridge": int(make_sbdf(0, 0, 0, 0)),
    "foreign": 0xFFFF,
    "beyond": int(make_sbdf(1, 0, 0, 0)),
}
"""Name to segment << 16 | bus << 8 | devfn; the domain has no ``foreign`` device, and ``beyond`` only in a machine that
has one."""
MOST_DOMAINS: Final = 4
"""Domains whose pages a program can name."""
PAGE_SPACES: Final = ("ram", *(f"d{number}" for number in range(MOST_DOMAINS)))
"""Pages of the domain that calls, and of a domain by its number."""
SPACES: Final = ("xen", "mmio", "rmrr", "gfn", *PAGE_SPACES)
ARGUMENTS: Final = ("plain", "split", "readonly", "unmapped", "noncanonical")
"""Where a call's struct lies: in one page; across two pages; in a page that the guest may not write; nowhere."""
WORDS: Final = {
    "device": tuple(DEVICES),
    "argument": ARGUMENTS,
    "domain kind": ("hvm", "pv"),
    "yes or no": ("yes", "no"),
    "frame kind": ("ram", "ro", "shared", "paged", "logdirty", "hole", "foreign", "pagetable"),
    "prot": ("rw", "r", "w", "rwc", "none"),
    "group type": ("DMA", "DMA-FQ", "identity", "auto"),
    "call": (
        *("query_capabilities", "init", "alloc_context", "free_context", "reattach_device"),
        *("map_pages", "unmap_pages", "lookup_page"),
    ),
    "boot mode": ("dma", "passthrough"),
    "hidden": ("nothing", "cache", "contexts"),
    "groups": ("own", "shared"),
}
"""By kind of field: what may stand there, where it is a word."""
SIZES: Final = {"4K": 0x1000, "2M": 0x20_0000, "1G": 0x4000_0000}
SIZE_NAMES: Final = {value: name for name, value in SIZES.items()}
ACCESS: Final = {"none": 0, "r": 1, "w": 2, "rw": 3}
ACCESS_NAMES: Final = {value: name for name, value in ACCESS.items()}


class ProgramError(ValueError):
    """A text that is no program; one line that says where and why."""


class Field(NamedTuple):
    """One field of a verb: its name, how it is written, and what it is when left out (``None``: it may not be)."""

    name: str
    kind: str
    default: Value | None = None


_DOMAIN: Final = Field("domain", "count")
_IOVA: Final = Field("iova", "hex")
_SLOT: Final = Field("slot", "count")
_ARG: Final = (Field("arg", "argument", "plain"), Field("holes", "count", 0))
VERBS: Final[dict[str, tuple[Field, ...]]] = {
    "noop": _ARG,
    "query": _ARG,
    "init": (Field("contexts", "count"), Field("arena", "count"), *_ARG),
    "alloc": (Field("flags", "hex", 0), *_ARG),
    "free": (Field("ctx", "count"), Field("flags", "hex", 0), *_ARG),
    "attach": (Field("device", "device"), Field("ctx", "count"), Field("pasid", "hex", 0), *_ARG),
    "map": (
        Field("ctx", "count"),
        Field("frame", "frame"),
        Field("at", "hex"),
        Field("pages", "count", 1),
        Field("access", "access", 3),
        Field("size", "size", 0x1000),
        *_ARG,
    ),
    "unmap": (
        Field("ctx", "count"),
        Field("at", "hex"),
        Field("pages", "count", 1),
        Field("size", "size", 0x1000),
        *_ARG,
    ),
    "flush": (
        Field("ctx", "count"),
        Field("at", "hex"),
        Field("pages", "count", 1),
        Field("size", "size", 0x1000),
        *_ARG,
    ),
    "lookup": (Field("ctx", "count"), Field("at", "hex"), *_ARG),
    "raw": (Field("subop", "hex"), Field("bytes", "bytes", b""), Field("arg", "argument", "plain")),
    "dma": (Field("device", "device"), Field("at", "hex"), Field("pages", "count", 1)),
    "regions": (Field("device", "device"), Field("all", "count", 0), Field("slots", "count", 8)),
    "remote": (Field("domain", "count"),),
    "progress": (Field("pages", "hex"),),
    "remove": (Field("frame", "frame"),),
    "p2m": (Field("frame", "frame"), Field("kind", "frame kind")),
    "fail": (Field("allocation", "count", 0), Field("flush", "count", 0)),
    "preempt": (Field("pattern", "hex"),),
    "fault": (Field("plan", "plan", ""),),
    "vcpu": (Field("number", "count"),),
    "schedule": (Field("order", "schedule", ""),),
    "as": (_DOMAIN,),
    "create_domain": (
        _DOMAIN,
        Field("pages", "count", 64),
        Field("kind", "domain kind", "hvm"),
        Field("arena", "count", 4),
        Field("iommu", "yes or no", "yes"),
    ),
    "destroy_domain": (_DOMAIN, Field("passes", "count", 0)),
    "assign": (Field("device", "device"), _DOMAIN),
    "deassign": (Field("device", "device"), _DOMAIN),
    "add_device": (Field("device", "device"), Field("ctx", "count", 0)),
    "remove_device": (Field("device", "device"),),
    "domain_alloc": (_DOMAIN, Field("device", "device")),
    "domain_free": (_DOMAIN,),
    "domain_attach": (_DOMAIN, Field("device", "device")),
    "domain_detach": (_DOMAIN, Field("device", "device")),
    "iommu_map": (_DOMAIN, _IOVA, Field("frames", "frames"), Field("pages", "count", 1), Field("prot", "prot", "rw")),
    "iommu_map_bytes": (_DOMAIN, _IOVA, Field("paddr", "hex"), Field("bytes", "count")),
    "iommu_map_sg": (_DOMAIN, _IOVA, Field("pieces", "pieces")),
    "iommu_unmap": (_DOMAIN, _IOVA, Field("pages", "count", 1)),
    "iova_to_phys": (_DOMAIN, _IOVA),
    "dma_map_page": (_SLOT, Field("device", "device"), Field("bytes", "count")),
    "dma_unmap_page": (_SLOT,),
    "dma_map_sg": (_SLOT, Field("device", "device"), Field("pieces", "pieces")),
    "dma_unmap_sg": (_SLOT,),
    "dma_alloc_coherent": (_SLOT, Field("device", "device"), Field("bytes", "count")),
    "dma_free_coherent": (_SLOT,),
    "claim_dma_owner": (Field("device", "device"),),
    "release_dma_owner": (Field("device", "device"),),
    "bind_driver": (Field("device", "device"),),
    "unbind_driver": (Field("device", "device"),),
    "attach_pasid": (_DOMAIN, Field("device", "device"), Field("pasid", "count")),
    "unplug": (Field("device", "device"),),
    "plug": (Field("device", "device"),),
    "group_type": (Field("device", "device"), Field("type", "group type")),
    "get_resv_regions": (Field("device", "device"),),
    "fail_call": (
        Field("call", "call"),
        Field("errno", "errno"),
        Field("page", "count", 0),
        Field("skip", "count", 0),
        Field("times", "count", 1),
    ),
    "no_memory": (),
    "domain_fill": (Field("device", "device"),),
    "shutdown": (),
    "boot": (
        Field("mode", "boot mode", "dma"),
        Field("hide", "hidden", "nothing"),
        Field("groups", "groups", "own"),
    ),
}
"""Every operation.  ``dma``: the device reads and writes pages from ``at``; ``regions``: it asks the toolstack's memory
operation for reserved regions; ``remote``: the next hypercall is carried by remote_cmd to that domain; ``progress``:
the next one comes with the guest's own idea of how far earlier passes got; ``remove``: the toolstack takes a page from
the guest; ``p2m``: it makes another kind of page of it; ``fail``: that allocation from now on (1: the next) finds no
memory, that flush is not confirmed (0: none); ``preempt``: from now on the vCPU is wanted elsewhere wherever the next
bit of the pattern, lowest first and over again, says so (0: never); ``fault``: a plan of what fails, at either
level (:mod:`fuzz.faults`); ``vcpu``: what follows is that vCPU's, all at once; ``schedule``: in this order
(:mod:`fuzz.concurrent`).  ``as``: that domain makes the hypercalls that follow; from ``create_domain`` on: what the
toolstack does to domains and their devices (:mod:`fuzz.toolstack`).  From ``domain_alloc`` on: what the guest kernel
asks of its IOMMU code, under the names of Linux's functions; ``fail_call``: the next such hypercall fails;
``domain_fill``: domains are allocated until there are no more."""
DRIVER_VERBS: Final = frozenset((*tuple(VERBS)[tuple(VERBS).index("domain_alloc") :], "dma", "fault"))
"""The operations of driver level."""
ANY_LEVEL: Final = frozenset(("dma", "fault"))
POSITIONAL: Final = {
    verb: name
    for name in ("device", "call", "number")
    for verb, fields_ in VERBS.items()
    if name in (field.name for field in fields_)
}
"""By verb: the field that is written without its name."""
DEFAULTS: Final = {verb: tuple(field.default for field in fields_) for verb, fields_ in VERBS.items()}
_INDEX: Final = {verb: {field.name: k for k, field in enumerate(fields_)} for verb, fields_ in VERBS.items()}


def op(verb: str, **values: Value) -> Op:
    """An operation from named fields; the others have their defaults."""
    known = _INDEX[verb]
    row = list(DEFAULTS[verb])
    for name, value in values.items():
        row[known[name]] = value
    missing = [field.name for field, value in zip(VERBS[verb], row) if value is None]
    if missing:
        raise ProgramError(f"{verb} needs {missing[0]}")
    return (verb, *row)
