# SPDX-License-Identifier: GPL-2.0-or-later
"""Where demonstrations are played: a test bed, hypercalls by name, and a transcript of what happened."""

from dataclasses import dataclass, field
from typing import Any, Final

from abi.canonical import CANONICAL
from abi.errno import errno_name
from hypervisor.domain import Domain
from hypervisor.errors import HostStopped
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.pagetable.radix import Changes
from testbed.build import TestBed, build
from testbed.config import Config

_ARG: Final = 5 << 12
_LOW: Final = 0x4000_0000
"""Where 32-bit code has its struct."""
_READ_ONLY: Final = 0x7F00_0000_0000


@dataclass(slots=True)
class Happening:
    """What a demonstration saw."""

    holds: bool
    """Whether what a sound hypervisor guarantees was the case."""
    lines: list[str] = field(default_factory=list)
    """Hypercalls with their answers, tables, references and flushes, in order."""


class Stage:
    """dom0 of a test bed built from ``config``."""

    def __init__(self, config: Config) -> None:
        self.bed: Final[TestBed] = build(config)
        self.xen: Final = self.bed.xen
        self.dom0: Final[Domain] = self.bed.dom0
        self.lines: Final[list[str]] = []
        self.flushed: Final[list[str]] = []
        """What the driver was told to flush since the last call began, references dropped included."""
        self._watch()

    # ------------------------------------------------------------------------------------------- hypercalls

    def call(self, name: str, **given: int) -> tuple[int, dict[str, int]]:
        """One hypercall: (result, fields afterwards).  :class:`HostStopped` ends the demonstration."""
        return self._call(name, given, writable=True)

    def call_read_only(self, name: str, **given: int) -> tuple[int, dict[str, int]]:
        """The same with the struct where the guest itself may not write."""
        return self._call(name, given, writable=False)

    def _call(
        self, name: str, given: dict[str, int], *, writable: bool, arch: str = "x86-64"
    ) -> tuple[int, dict[str, int]]:
        abi = self.xen.abi
        codec = abi.by_name[name].codec_on(arch)
        assert codec is not None
        values = {f.name: f.default for f in CANONICAL[name]} | given
        self.bed.ram.write(_ARG, codec.encode(*values.values()))
        address = self.bed.ram.linear(_ARG)
        if arch != "x86-64":
            self.bed.linear.pages[_LOW >> 12] = (_ARG >> 12, True)
            address = _LOW
        if not writable:
            self.bed.linear.pages[_READ_ONLY >> 12] = (_ARG >> 12, False)
            address = _READ_ONLY
        asked = " ".join(f"{key}={value:#x}" for key, value in given.items())
        self.flushed.clear()
        try:
            enter = self.xen.hypercall if arch == "x86-64" else self.xen.hypercall32
            result = enter(self.bed.vcpu, abi.hypercall, *abi.registers(name, address))
        except HostStopped as stop:
            self.lines.append(f"{name} {asked} never returns: {type(stop).__name__}: {stop}")
            raise
        after = codec.as_dict(self.bed.ram.read(_ARG, codec.size))
        answer = " ".join(f"{key}={after[key]:#x}" for key in codec.out)
        self.lines.append(f"{name} {asked} = {errno_name(result) if result else 0} {answer}".rstrip())
        self.lines.extend(f"    {event}" for event in self.flushed)
        return result, after

    def call32(self, name: str, **given: int) -> tuple[int, dict[str, int]]:
        """The same from 32-bit code: the struct as a 32-bit compiler lays it out."""
        return self._call(name, given, writable=True, arch="i386")

    def mapped(self, context: int, dfn: int) -> bool:
        """Whether a context maps a device frame, noted in the transcript."""
        assert self.dom0.iommu is not None
        table = self.dom0.iommu.contexts[context].table
        found = table is not None and table.lookup(dfn) is not None
        self.note(f"device frame {dfn:#x} of context {context} is {'' if found else 'not '}mapped")
        return found

    def raw_struct(self, name: str) -> bytes:
        """The last call's struct as it lies in guest memory."""
        codec = self.xen.abi.by_name[name].codec
        assert codec is not None
        return self.bed.ram.read(_ARG, codec.size)

    def set_up(self, contexts: int = 8, order: int = 6) -> None:
        """IOMMU_init, where the interface has it."""
        if "init" in self.xen.abi.by_name:
            self.call("init", max_ctx_no=contexts, arena_order=order)

    def alloc(self) -> int:
        return self.call("alloc_context")[1]["ctx_no"]

    def map(self, context: int, pfn: int, dfn: int, pages: int = 1, **more: int) -> tuple[int, dict[str, int]]:
        given = {"ctx_no": context, "gfn": self.gfn(pfn), "dfn": dfn, "flags": 3, "nr_pages": pages} | more
        return self.call("map_pages", **given)

    def unmap(self, context: int, dfn: int, pages: int = 1) -> tuple[int, dict[str, int]]:
        return self.call("unmap_pages", ctx_no=context, dfn=dfn, nr_pages=pages)

    def reattach(self, device: int, context: int) -> int:
        where = {"seg": device >> 16, "bus": device >> 8 & 0xFF, "devfn": device & 0xFF}
        fields = [f.name for f in CANONICAL["reattach_device"]]
        named = dict(zip(fields[1:4], where.values()))
        return self.call("reattach_device", ctx_no=context, **named)[0]

    # ------------------------------------------------------------------------------------------ observation

    def gfn(self, pfn: int) -> int:
        return self.bed.ram.pfn_to_gfn(pfn)

    def references(self, pfn: int) -> int:
        """References on dom0's page ``pfn``, noted in the transcript."""
        count = self.xen.frames.count(self.bed.mfns[pfn])
        self.lines.append(f"page {pfn:#x} of dom0 holds {count} references")
        return count

    def arena(self) -> int:
        """Arena pages in use, noted in the transcript."""
        assert self.dom0.iommu is not None and self.dom0.iommu.arena is not None
        used = self.dom0.iommu.arena.used
        self.lines.append(f"{used} of {self.dom0.iommu.arena.pages} arena pages are in use")
        return used

    def note(self, text: str) -> None:
        self.lines.append(text)

    def _watch(self) -> None:
        xen, backend, flushed = self.xen, self.xen.backend, self.flushed
        flush, flush_all, attach, put = backend.flush, backend.flush_all, backend.attach, xen.frames.put

        def note_flush(context: IommuContext, dfn: int, pages: int, changes: Changes) -> int:
            flushed.append(f"flush of context {context.number}: dfn {dfn:#x}, {pages} pages")
            return flush(context, dfn, pages, changes)

        def note_flush_all(context: IommuContext) -> int:
            flushed.append(f"flush of all of context {context.number}")
            return flush_all(context)

        def note_attach(device: PciDevice, context: IommuContext) -> int:
            flushed.append(f"{device.function} is put into context {context.number}")
            return attach(device, context)

        def note_put(mfn: int, count: int, ref: int) -> None:
            flushed.append(f"{count} references dropped from frame {mfn:#x} on")
            put(mfn, count, ref)

        for part, name, by in (
            (backend, "flush", note_flush),
            (backend, "flush_all", note_flush_all),
            (backend, "attach", note_attach),
            (xen.frames, "put", note_put),
        ):
            _replace(part, name, by)


def _replace(part: Any, name: str, by: Any) -> None:
    setattr(part, name, by)
