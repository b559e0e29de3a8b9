# SPDX-License-Identifier: GPL-2.0-or-later
"""A hardware domain that makes hypercalls by hand: fields in, result and fields out, and what became of the frames."""

from typing import Any, NamedTuple

from abi.canonical import CANONICAL
from hypervisor.frames import REF
from hypervisor.iommu.context import IommuContext
from machine.firmware import Rmrr
from machine.iommu.unit import Fault
from testbed.build import NIC, TestBed, build
from testbed.config import Config

MIB = 1 << 20
ARG = 5
"""The guest page (pfn) that holds the argument struct."""
SCATTERED = 2048
"""First pfn of the guest's scattered half in :func:`bed`."""
R, W, RW = 1, 2, 3
RMRR_BASE = 24 * MIB
"""A place in RAM that no domain owns, for reserved regions of 4 pages."""
RMRR_DFN = RMRR_BASE >> 12


class Answer(NamedTuple):
    """A hypercall's result and the struct's fields as they were left."""

    rc: int
    fields: dict[str, int]


class Caller:
    """dom0 of a test bed, with the ABI's structs at hand."""

    def __init__(self, testbed: TestBed) -> None:
        self.testbed = testbed
        self.xen = testbed.xen
        self.abi = testbed.xen.abi
        self.dom0 = testbed.dom0
        self.frames = testbed.xen.frames
        self.vcpu = testbed.vcpu

    # ------------------------------------------------------------------------------------------- hypercalls

    def encode(self, name: str, **fields: int) -> bytes:
        codec = self.abi.by_name[name].codec
        assert codec is not None
        values = {field.name: field.default for field in CANONICAL[name]} | fields
        return codec.encode(*values.values())

    def call(self, name: str, **fields: int) -> Answer:
        """Sub-op ``name`` with the struct at a usual place."""
        raw = self.encode(name, **fields)
        self.testbed.ram.write(ARG << 12, raw)
        rc = self.call_at(name, self.testbed.ram.linear(ARG << 12))
        codec = self.abi.by_name[name].codec
        assert codec is not None
        return Answer(rc, codec.as_dict(self.testbed.ram.read(ARG << 12, codec.size)))

    def call_at(self, name: str, address: int) -> int:
        """Sub-op ``name`` with whatever lies at ``address`` as its struct."""
        return self.xen.hypercall(self.vcpu, self.abi.hypercall, *self.abi.registers(name, address))

    def noop(self) -> int:
        self.testbed.ram.write(ARG << 12, bytes(32))
        return self.call_at("noop", self.testbed.ram.linear(ARG << 12))

    # ---------------------------------------------------------------------------------------- what they mean

    def init(self, contexts: int = 16, arena_order: int = 6) -> int:
        """Set PV-IOMMU up, where the version has that step."""
        return self.call("init", max_ctx_no=contexts, arena_order=arena_order).rc if self.abi.has("init") else 0

    def alloc(self) -> int:
        answer = self.call("alloc_context")
        assert answer.rc == 0, answer
        return answer.fields["ctx_no"]

    def map(self, ctx_no: int, pfn: int, dfn: int, pages: int = 1, flags: int = RW, **more: int) -> Answer:
        """Map guest pages; ``pages`` have to be contiguous in the guest's frame numbers."""
        return self.call(
            "map_pages",
            **{"ctx_no": ctx_no, "gfn": self.gfn(pfn), "dfn": dfn, "nr_pages": pages, "flags": flags} | more,
        )

    def unmap(self, ctx_no: int, dfn: int, pages: int = 1, **more: int) -> Answer:
        return self.call("unmap_pages", ctx_no=ctx_no, dfn=dfn, nr_pages=pages, **more)

    def attach(self, ctx_no: int, sbdf: int = NIC) -> int:
        return self.call(
            "reattach_device", ctx_no=ctx_no, segment=sbdf >> 16, bus=sbdf >> 8 & 0xFF, devfn=sbdf & 0xFF
        ).rc

    def free(self, ctx_no: int, flags: int = 0) -> int:
        return self.call("free_context", ctx_no=ctx_no, flags=flags).rc

    # --------------------------------------------------------------------------------------------- the state

    def gfn(self, pfn: int) -> int:
        return self.testbed.ram.pfn_to_gfn(pfn)

    def mfn(self, pfn: int) -> int:
        return self.testbed.mfns[pfn]

    def refs(self, pfn: int) -> int:
        """References to the page beside the guest's own; a PV guest's writable ones are counted along."""
        mfn = self.mfn(pfn)
        general = self.frames.count(mfn) - REF
        if self.dom0.pv:
            assert self.frames.writable_count(mfn) <= general
        else:
            assert not self.frames.writable_count(mfn)
        return general

    def context(self, number: int) -> IommuContext:
        assert self.dom0.iommu is not None
        found = self.dom0.iommu.get(number)
        assert found is not None
        return found

    def lookup(self, ctx_no: int, dfn: int) -> int | None:
        """The machine frame behind ``dfn`` as the tree says."""
        table = self.context(ctx_no).table
        assert table is not None
        found = table.lookup(dfn)
        return None if found is None else found[0]

    @property
    def arena_used(self) -> int:
        assert self.dom0.iommu is not None
        return self.dom0.iommu.arena.used if self.dom0.iommu.arena is not None else 0

    def reach(self, dfn: int, sbdf: int = NIC, write: bool = False) -> int | None:
        """The machine frame that a device's access to ``dfn`` arrives at, ``None`` if it is blocked."""
        maddr = self.testbed.translate(sbdf, dfn << 12, write)
        return None if isinstance(maddr, Fault) else maddr >> 12

    def everything(self) -> Any:
        """All that a refused hypercall must leave alone: Xen's state and, from now on, the bytes of RAM."""
        self.testbed.memory.snapshot()
        return self.xen.save()

    def changed_frames(self) -> set[int]:
        """Frames whose bytes differ from what they were at :meth:`everything`."""
        memory = self.testbed.memory
        return {f for f, old in memory._saved.items() if memory.read(f << 12, 4096) != old}


def bed(
    backend: str = "vtd",
    profile: str = "v7-fixed",
    guest: str = "pv",
    *,
    init: bool = True,
    ram: int = 32 * MIB,
    guest_ram: int = 16 * MIB,
    rmrrs: tuple[Rmrr, ...] = (),
    **config: Any,
) -> Caller:
    """A small machine, PV-IOMMU already set up unless ``init`` says otherwise."""
    caller = Caller(
        build(
            Config(backend=backend, profile=profile, guest=guest, ram=ram, guest_ram=guest_ram, rmrrs=rmrrs, **config)
        )
    )
    if init:
        assert caller.init() == 0
    return caller
