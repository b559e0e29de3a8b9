# SPDX-License-Identifier: GPL-2.0-or-later
"""A test bed that executes operations: what stands between a program and the hypervisor under test."""

from collections.abc import Callable
from typing import Final

from abi.canonical import CANONICAL
from abi.model import Convention
from base.units import PAGE_SHIFT
from fuzz.program import DEVICES, Bench, Op, ProgramError, Value
from hypervisor.iommu.pool import Arena
from hypervisor.xen import Xen
from machine.firmware import Rmrr
from machine.memory import PhysicalMemory
from testbed.build import COPIER, MMIO_START, TestBed, build
from testbed.config import MIB, Config

RAM: Final = 16 * MIB
GUEST_RAM: Final = 8 * MIB
RMRR: Final = Rmrr(12 * MIB, 12 * MIB + 0x3FFF, (COPIER,))
"""The copier's reserved region: four pages that no domain owns."""
_STRUCT: Final = 5 << PAGE_SHIFT
_SPLIT: Final = (6 << PAGE_SHIFT) - 4
_READONLY: Final = 0x7F00_0000_0000
_UNMAPPED: Final = 0x7F00_0000_1000
_NONCANONICAL: Final = 0x8000_0000_0000_0000
SUBOPS: Final = {
    "noop": "noop",
    "query": "query_capabilities",
    "init": "init",
    "alloc": "alloc_context",
    "free": "free_context",
    "attach": "reattach_device",
    "map": "map_pages",
    "unmap": "unmap_pages",
    "lookup": "lookup_page",
}
"""Verb to sub-op."""


class Call:
    """A hypercall that was made: what the guest wrote, and what it found afterwards."""

    __slots__ = ("after", "argument", "before", "name", "result")

    def __init__(self, name: str, argument: str, before: bytes, result: int, after: bytes) -> None:
        self.name = name
        """Of the sub-op; "" for a number without one."""
        self.argument = argument
        self.before = before
        self.result = result
        self.after = after


class Target:
    """One bench, built once and reset before every program."""

    def __init__(self, bench: Bench, sabotage: Callable[[TestBed], None] | None = None) -> None:
        """``sabotage`` plants a fault into the finished bed.  ``ProgramError`` for a bench that cannot be built."""
        self.bench: Final = bench
        try:
            config = Config(
                backend=bench.backend,
                profile=bench.profile,
                guest=bench.guest,
                ram=RAM,
                guest_ram=GUEST_RAM,
                seed=bench.seed,
                iotlb_capacity=bench.iotlb,
                rmrrs=(RMRR,),
                defects=tuple(filter(None, bench.defects.split(","))),
            )
            self.bed: Final = build(config)
        except ValueError as error:
            raise ProgramError(str(error)) from None
        bed = self.bed
        self.xen: Final[Xen] = bed.xen
        self.memory: Final[PhysicalMemory] = bed.memory
        self.abi: Final = bed.xen.abi
        self.union: Final = self.abi.convention is Convention.UNION
        bed.linear.pages[_READONLY >> PAGE_SHIFT] = (7, False)
        self._struct: Final = bed.mfns[5] << PAGE_SHIFT
        self._address: Final = bed.ram.linear(_STRUCT)
        self._hypercall: Final = bed.xen.hypercall
        self._fail_in = 0
        self._pattern = 0
        self._bit = 0
        self.failed = False
        """Whether an allocation was made to fail since this was last cleared."""
        self._names: Final = {number: subop.name for number, subop in self.abi.subops.items() if subop.implemented}
        if bench.contexts is not None and self.abi.has("init"):
            self.call("init", (bench.contexts, bench.arena))
        if sabotage is not None:
            sabotage(bed)
        self._interpose(bed.xen.frames)
        if self.arena is not None:
            self._interpose(self.arena)
        bed.snapshot()

    @property
    def arena(self) -> Arena | None:
        assert self.bed.dom0.iommu is not None
        return self.bed.dom0.iommu.arena

    def reset(self) -> None:
        """Back to the start."""
        self.bed.reset()
        self._fail_in = self._pattern = self._bit = 0
        self.failed = False
        self.xen.preempt = None

    # ----------------------------------------------------------------------------------------- allocation failures

    def _interpose(self, pool: object) -> None:
        """Let every allocation from ``pool`` pass by the plan."""
        if "allocate" in vars(pool):
            return
        genuine: Callable[..., int | None] = pool.allocate  # type: ignore[attr-defined]

        def allocate(*args: int) -> int | None:
            if self._fail_in:
                self._fail_in -= 1
                if not self._fail_in:
                    self.failed = True
                    return None
            return genuine(*args)

        setattr(pool, "allocate", allocate)  # noqa: B010 -- on the instance, so that the class stays what it is

    def fail(self, allocation: int) -> None:
        """The ``allocation``-th page or block that is asked for from now on is not to be had; 0: all are again."""
        self._fail_in = allocation

    def preempt(self, pattern: int) -> None:
        """Wherever the hypervisor asks whether the vCPU is wanted elsewhere, the next bit of the pattern says so."""
        self._pattern, self._bit = pattern, 0
        if not pattern:
            self.xen.preempt = None
            return
        length = pattern.bit_length()

        def wanted(vcpu: object) -> bool:
            bit = self._bit % length
            self._bit += 1
            return bool(pattern >> bit & 1)

        self.xen.preempt = wanted

    # ------------------------------------------------------------------------------------------------------ calls

    def number(self, frame: Value) -> int:
        """The frame number that a guest would name for a frame of a program."""
        space, number = frame  # type: ignore[misc, str-unpack]
        assert isinstance(number, int)
        if space == "ram":
            mfns = self.bed.mfns
            if not self.bed.dom0.pv:
                return number
            return mfns[number] if number < len(mfns) else self.memory.frames - 1
        if space == "mmio":
            return (MMIO_START >> PAGE_SHIFT) + number
        if space == "rmrr":
            return (RMRR.base >> PAGE_SHIFT) + number
        return number

    def call(self, name: str, args: tuple[int, ...], argument: Value = "plain", holes: Value = 0) -> Call:
        """Sub-op ``name`` with canonical fields ``args``; ``holes``: which byte that belongs to no field is set.

        ``ProgramError`` if a field does not fit its struct or the version has no such sub-op.
        """
        subop = self.abi.by_name.get(name)
        if subop is None:
            raise ProgramError(f"{self.abi.name} has no sub-op {name}")
        codec = subop.codec
        raw = b""
        if codec is not None:
            try:
                raw = codec.encode(*args)
            except ValueError as error:
                raise ProgramError(str(error)) from None
            if holes and codec.hole_mask:
                raw = _soil(raw, codec.hole_mask, int(str(holes)))
        return self.issue(subop.number, name, raw, str(argument))

    def issue(self, number: int, name: str, raw: bytes, argument: str) -> Call:
        """Hypercall with sub-op ``number`` and ``raw`` as its struct."""
        address = self._address
        if argument == "plain":
            if raw:
                self.memory.write(self._struct, raw)
        else:
            address = self._place(argument, raw)
        if self.union:
            result = self._hypercall(self.bed.vcpu, self.abi.hypercall, address)
        else:
            result = self._hypercall(self.bed.vcpu, self.abi.hypercall, number, address)
        if name == "init" and not result and self.arena is not None:
            self._interpose(self.arena)
        after = self.memory.read(self._struct, len(raw)) if argument == "plain" else self._look(argument, raw)
        return Call(name, argument, raw, result, after)

    def name_of(self, number: int) -> str:
        """The sub-op with this number, "" if there is none."""
        return self._names.get(number, "")

    def raw(self, number: int, raw: bytes, argument: str) -> Call:
        """The same with bytes as they come, as many as the struct takes (missing ones are zero)."""
        if self.union:
            raw = (number.to_bytes(2, "little") + raw[2:] if len(raw) >= 2 else number.to_bytes(2, "little")).ljust(
                32, b"\0"
            )
            return self.issue(number, self._names.get(number, ""), raw[:32], argument)
        name = self._names.get(number, "")
        codec = self.abi.by_name[name].codec if name else None
        size = codec.size if codec is not None else 0
        return self.issue(number, name, raw[:size].ljust(size, b"\0"), argument)

    def _place(self, argument: str, raw: bytes) -> int:
        ram = self.bed.ram
        if argument == "split":
            ram.write(_SPLIT, raw)
            return ram.linear(_SPLIT)
        if argument == "readonly":
            ram.write(7 << PAGE_SHIFT, raw)
            return _READONLY
        return _UNMAPPED if argument == "unmapped" else _NONCANONICAL

    def _look(self, argument: str, raw: bytes) -> bytes:
        if argument == "split":
            return self.bed.ram.read(_SPLIT, len(raw))
        return self.bed.ram.read(7 << PAGE_SHIFT, len(raw)) if argument == "readonly" else raw

    def arguments(self, operation: Op) -> tuple[int, ...]:
        """The canonical fields of a hypercall operation; OUT fields hold a number that no answer has."""
        verb = operation[0]
        if verb == "map":
            _, ctx, frame, at, pages, access, size = operation[:7]
            return (ctx, self.number(frame), at, access, size, pages, 0xABAB)
        if verb == "unmap":
            _, ctx, at, pages, size = operation[:5]
            return (ctx, at, size, pages, 0xABAB)
        if verb == "attach":
            device = DEVICES[str(operation[1])]
            return (operation[2], device >> 16, device >> 8 & 0xFF, device & 0xFF, operation[3])
        if verb == "alloc":
            return (0xABAB, operation[1])
        if verb == "lookup":
            return (operation[1], operation[2], 0xABAB)
        if verb in ("noop", "query"):
            return tuple(field.default for field in CANONICAL[SUBOPS[str(verb)]])
        return operation[1:3]


def _soil(raw: bytes, mask: int, which: int) -> bytes:
    """``raw`` with the ``which``-th byte (from 1, over and over) that belongs to no field set to 1."""
    places = [k for k in range(len(raw)) if mask >> 8 * k & 0xFF]
    dirty = bytearray(raw)
    dirty[places[(which - 1) % len(places)]] = 1
    return bytes(dirty)
