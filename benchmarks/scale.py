# SPDX-License-Identifier: GPL-2.0-or-later
"""How time and memory grow: a million mappings in one context, and spread over 1,000 contexts with 4,096 devices behind
16 units, each held against a thousand mappings in one context with one device behind one unit.

Only hypercalls are timed, in processor time: the structs of a batch are written before, and every mapping is a call
of its own whose page forms no run with its neighbours, so nothing folds and nothing is shared.  Contexts take turns in
bursts, as drivers do.  With another context in every single call, calls take about 1.3 times as long whatever is
mapped: then every one of them finds the processor's caches full of the others'.
"""

import gc
import tracemalloc
from collections.abc import Iterator, Sequence
from statistics import mean, median
from time import process_time
from typing import Final, NamedTuple

from abi.canonical import CANONICAL
from base.units import PAGE_SHIFT, Sbdf
from benchmarks.bed import READ_WRITE, Bed
from benchmarks.figures import Figure
from benchmarks.hypercalls import BACKENDS
from benchmarks.lean import Lean
from testbed.build import COPIER, NIC
from testbed.config import MIB
from testbed.units import UnitSpec

BAR: Final = 1.2
"""Times as much per mapping as at :data:`FEW`."""
FEW: Final = 1_000
MANY: Final = 1_000_000
BATCH: Final = 1_000
"""Calls whose structs lie in guest memory at once; a call's context and page follow from its number."""
RAM: Final = 256 * MIB
GUEST_RAM: Final = 64 * MIB
STRUCTS: Final = 32 * MIB
"""Guest address of the batch's structs."""
SLOT: Final = 64
FIRST_DFN: Final = 0x1000
PAGES: Final = STRUCTS >> PAGE_SHIFT
"""Guest pages that are mapped, again and again."""
STRIDE: Final = 7
"""Between the pages of two mappings, so that none is the other's neighbour."""
BURST: Final = 20
"""Calls for one context before it is the next one's turn."""
EVERY: Final = 20
"""Batches of the large machine between two rounds on the small one."""


class Size(NamedTuple):
    """How large a machine is, and how much is mapped on it."""

    mappings: int
    contexts: int
    devices: int
    units: int


SMALL: Final = Size(FEW, 1, 1, 1)
DEEP: Final = Size(MANY, 1, 1, 1)
WIDE: Final = Size(MANY, 1_000, 4_096, 16)


class ScaleBed(Bed):
    """``size.contexts`` contexts from number 1 on; device k is in context k mod ``size.contexts`` + 1, and all devices
    of a context are behind one unit."""

    def __init__(self, backend: str, size: Size) -> None:
        self.size: Final = size
        taken = (NIC, COPIER)
        free = (Sbdf(sbdf) for sbdf in range(0x200, 0x1_0000) if sbdf not in taken)
        self.devices: Final = [next(free) for _ in range(size.devices)]
        scopes: list[list[Sbdf]] = [[] for _ in range(size.units)]
        for k, sbdf in enumerate(self.devices):
            scopes[k % size.contexts % size.units].append(sbdf)
        units = (*(UnitSpec(scope=tuple(scope)) for scope in scopes[1:]), UnitSpec())
        super().__init__(backend=backend, units=units, endpoints=tuple(self.devices), ram=RAM, guest_ram=GUEST_RAM)

    def set_up(self) -> None:
        arena = (self.size.mappings // 512 + 6 * self.size.contexts + 64).bit_length()
        self.call("init", max_ctx_no=self.size.contexts, arena_order=arena)
        for _ in range(self.size.contexts):
            self.call("alloc_context")
        for k, sbdf in enumerate(self.devices):
            number = k % self.size.contexts + 1
            self.call("reattach_device", ctx_no=number, segment=0, bus=sbdf >> 8, devfn=sbdf & 0xFF)

    def place(self, mapping: int) -> tuple[int, int]:
        """(context, page in it) of a mapping: bursts of :data:`BURST` calls, context after context, round and round."""
        burst, within = divmod(mapping, BURST)
        turn, context = divmod(burst, self.size.contexts)
        return context, turn * BURST + within

    def calls(self, name: str, first: int, count: int) -> Sequence[tuple[int, ...]]:
        """Argument registers of ``count`` one-page calls from number ``first`` on, their structs in guest memory."""
        codec = self.abi.by_name[name].codec
        assert codec is not None
        fields = {field.name: field.default for field in CANONICAL[name]} | {"nr_pages": 1}
        if "gfn" in fields:
            fields["flags"] = READ_WRITE
        found = []
        for k in range(first, first + count):
            context, page = self.place(k)
            fields["ctx_no"] = context + 1
            fields["dfn"] = FIRST_DFN + page
            if "gfn" in fields:
                fields["gfn"] = self.gfn(k * STRIDE % PAGES)
            at = STRUCTS + (k - first) * SLOT
            self.testbed.ram.write(at, codec.encode(*fields.values()))
            found.append(self.abi.registers(name, self.testbed.ram.linear(at)))
        return found

    def run(self, name: str) -> Iterator[float]:
        """Make one call per mapping; the processor seconds of each batch."""
        hypercall, vcpu, number = self.xen.hypercall, self.vcpu, self.abi.hypercall
        for first in range(0, self.size.mappings, BATCH):
            calls = self.calls(name, first, min(BATCH, self.size.mappings - first))
            start = process_time()
            for args in calls:
                if hypercall(vcpu, number, *args):
                    raise RuntimeError(f"{name} failed after {first} calls")
            yield process_time() - start

    def check(self) -> None:
        """Each device reaches what is mapped for it, through its unit."""
        for k, sbdf in enumerate(self.devices):
            turns = (self.size.mappings - 1) // BURST // self.size.contexts
            for turn in (0, turns):
                mapping = (turn * self.size.contexts + k % self.size.contexts) * BURST
                if mapping >= self.size.mappings:
                    continue
                dfn = FIRST_DFN + self.place(mapping)[1]
                expected = self.testbed.mfns[mapping * STRIDE % PAGES]
                if self.testbed.translate(sbdf, dfn << PAGE_SHIFT, True) != expected << PAGE_SHIFT:
                    raise RuntimeError(f"device {k} does not reach mapping {mapping}")

    @property
    def root_bytes(self) -> int:
        """Of one context's root."""
        assert self.testbed.dom0.iommu is not None
        table = self.testbed.dom0.iommu.contexts[1].table
        assert table is not None
        return table.root_frames << PAGE_SHIFT

    def tables(self) -> int:
        """Bytes of tables in use."""
        iommu = self.testbed.dom0.iommu
        assert iommu is not None and iommu.arena is not None
        return iommu.arena.used << PAGE_SHIFT


class Spent(NamedTuple):
    """Processor seconds of every batch of calls, by the sub-op."""

    map_pages: list[float]
    unmap_pages: list[float]


def times(large: ScaleBed, small: ScaleBed) -> tuple[Spent, Spent]:
    """Map everything on ``large``, see that devices reach it, and unmap it; in between, again and again, everything on
    ``small``, so that whatever else the machine does slows both down alike."""
    found, beside = Spent([], []), Spent([], [])
    before = large.xen.frames.refs[:]
    for name in Spent._fields:
        for number, spent in enumerate(large.run(name)):
            getattr(found, name).append(spent)
            if not number % EVERY:
                for other in Spent._fields:
                    getattr(beside, other).extend(small.run(other))
        if name == "map_pages":
            large.check()
    if large.xen.frames.refs != before:
        raise RuntimeError("references are left over")
    return found, beside


def memory(backend: str, size: Size) -> tuple[float, float]:
    """Bytes per mapping: of tables, roots included, and of what the hypervisor keeps beside them."""
    bed = ScaleBed(backend, size)
    none = bed.tables() - size.contexts * bed.root_bytes
    tracemalloc.start()
    try:
        for _ in bed.run("map_pages"):
            pass
        gc.collect()
        records = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return (bed.tables() - none) / size.mappings, records / size.mappings


def growth(backend: str, size: Size, small: Size = SMALL) -> Iterator[tuple[str, float, float]]:
    """(what, how many times as much per mapping as on a small machine, the same by medians)."""
    found, beside = times(ScaleBed(backend, size), ScaleBed(backend, small))
    for name, large, little in zip(("map", "unmap"), found, beside):
        yield name, mean(large) / mean(little), median(large) / median(little)
    (tables, records), (few_tables, few_records) = memory(backend, size), memory(backend, small)
    ratio = (tables + records) / (few_tables + few_records)
    yield "memory", ratio, ratio


def figures(seconds: float, lean: Lean) -> Iterator[Figure]:
    """A million mappings take minutes; a measurement of less than a second makes do with a tenth of everything."""
    for backend in BACKENDS:
        for size in (DEEP, WIDE):
            if seconds < 1:
                contexts, devices = max(1, size.contexts // 10), max(1, size.devices // 10)
                size = size._replace(mappings=size.mappings // 10, contexts=contexts, devices=devices)
            for what, ratio, middle in growth(backend, size):
                name = f"{backend}, {size.mappings:,} in {size.contexts:,} contexts, {size.devices:,} devices: {what}"
                yield Figure("scale", name, "x", ratio, middle, BAR)
