# SPDX-License-Identifier: GPL-2.0-or-later
"""A test bed that executes operations: what stands between a program and the hypervisor under test."""

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from abi.canonical import CANONICAL
from abi.errno import EINVAL, ESRCH
from abi.model import Convention
from base.units import PAGE_SHIFT
from fuzz import machines
from fuzz.faults import PlannedFaults
from fuzz.linear import READ_ONLY_PAGE
from fuzz.program import Bench
from fuzz.toolstack import OUTER, SPLIT_END, STRUCT_END, CallingDomain, Toolstack
from fuzz.verbs import DEVICES, Op, ProgramError, Value
from fuzz.watched import Watched
from hypervisor.domain import Domain
from hypervisor.iommu.pool import Arena
from machine.firmware import Rmrr
from machine.memory import PhysicalMemory
from testbed.build import COPIER, MMIO_START, TestBed, build
from testbed.config import MIB, Config

RAM: Final = 16 * MIB
GUEST_RAM: Final = 8 * MIB
RMRR: Final = Rmrr(12 * MIB, 12 * MIB + 0x3FFF, (COPIER,))
"""The copier's reserved region: four pages that no domain owns."""
FIRMWARES: Final = range(RMRR.base >> PAGE_SHIFT, (RMRR.last >> PAGE_SHIFT) + 1)
"""Their frames."""
SUBOPS: Final = {
    "noop": "noop",
    "query": "query_capabilities",
    "init": "init",
    "alloc": "alloc_context",
    "free": "free_context",
    "attach": "reattach_device",
    "map": "map_pages",
    "unmap": "unmap_pages",
    "flush": "flush_pages",
    "lookup": "lookup_page",
}
"""Verb to sub-op."""


class Call(Struct, eq=False):
    """A hypercall that was made: what the guest wrote, and what it found afterwards."""

    number: int
    """What stands for the sub-op, in a register or in the union."""
    name: str
    """Of the sub-op; "" for a number without one."""
    argument: str
    before: bytes
    result: int
    after: bytes
    progress: int
    """What the guest put into the bits of the sub-op register that say how far earlier passes got."""
    inner: "Call | None"
    """remote_cmd: the call that it carried, its result as if it had been made directly."""
    domid: int = 0
    """The domain whose contexts it is about: the caller, or the one that remote_cmd took it to."""


class Target(Watched):
    """One bench, built once and reset before every program."""

    def __init__(self, bench: Bench, sabotage: Callable[[TestBed], None] | None = None) -> None:
        """``sabotage`` plants a fault into the finished bed.  ``ProgramError`` for a bench that cannot be built."""
        self.bench: Final = bench
        try:
            self.machine: Final = machines.of(bench.machine, bench.backend)
            config = Config(
                backend=bench.backend,
                profile=bench.profile,
                guest=bench.guest,
                ram=RAM,
                guest_ram=GUEST_RAM,
                seed=bench.seed,
                vcpus=bench.vcpus,
                iotlb_capacity=bench.iotlb,
                rmrrs=(RMRR,),
                defects=tuple(filter(None, bench.defects.split(","))),
            )
            self.bed: Final = build(self.machine.configure(config, bench.contexts, bench.arena))
        except ValueError as error:
            raise ProgramError(str(error)) from None
        super().__init__(self.bed.xen)
        bed = self.bed
        self.memory: Final[PhysicalMemory] = bed.memory
        self.abi: Final = self.machine.as_seen(bed.xen.abi)
        self.union: Final = self.abi.convention is Convention.UNION
        self.toolstack: Final = Toolstack(bed, self.machine.address_space)
        self.caller: CallingDomain = self.toolstack.dom0
        """Who makes the hypercalls."""
        self.of_domains: Final[dict[str, Callable[..., int]]] = {
            "create_domain": self.toolstack.create_domain,
            "destroy_domain": self.destroy_domain,
            "assign": self.toolstack.assign,
            "deassign": self.toolstack.deassign,
            "add_device": self.toolstack.add_device,
            "remove_device": self.toolstack.remove_device,
        }
        """Verb to what it does to domains and devices."""
        self._hypercall: Final = self.machine.hypercall(bed.xen)
        self._iommu_op: Final = self.abi.hypercall
        self._touched: Final = bed.memory.touched
        self._carrier: int | None = None
        self._progress = 0
        self.pointed = False
        """A remote_cmd made of bytes has named memory of the caller's that only its bytes say."""
        self.faults: PlannedFaults | None = None
        """A fault plan, if the program has put one in place."""
        self._structs: Final = {
            number: (subop.name, subop.codec.size if subop.codec is not None else 0)
            for number, subop in self.abi.subops.items()
            if subop.implemented
        }
        """Name and size of the struct of every sub-op."""
        self.xen.map_default(bed.dom0, MMIO_START >> PAGE_SHIFT, MMIO_START >> PAGE_SHIFT, 1)
        if bed.dom0.pv:  # firmware's frames lie within RAM, and are the hardware domain's to access as MMIO is
            bed.dom0.mmio.insert(0, (FIRMWARES[0], FIRMWARES[-1]))
        self.machine.prepare(bed)
        self._set_up()
        if sabotage is not None:
            sabotage(bed)
        if self.arena is not None:
            self._interpose(self.arena)
        self._watch()
        bed.snapshot()

    def translate(self, requester: int, dfn: int, write: bool) -> int | None:
        """The machine address that a requester's access to ``dfn`` reaches behind its unit, ``None`` if it faults."""
        unit, stream = self.bed.fabric.route(requester)
        reached = (unit or self.bed.unit).translate(stream, dfn << PAGE_SHIFT, write)
        return reached if isinstance(reached, int) else None

    @property
    def arena(self) -> Arena | None:
        assert self.bed.dom0.iommu is not None
        return self.bed.dom0.iommu.arena

    def _set_up(self) -> None:
        """Contexts and arena of the bench, where the version's interface or its hypervisor's command line has them."""
        contexts, iommu = self.bench.contexts, self.bed.dom0.iommu
        assert iommu is not None
        if contexts is None or self.machine.command_line:
            return
        if self.abi.has("init"):
            self.call("init", (contexts, self.bench.arena))
        else:
            iommu.limit = contexts
            if iommu.arena is not None and 1 << self.bench.arena < iommu.arena.pages:
                iommu.arena = Arena(iommu.arena.base, 1 << self.bench.arena)

    def reset(self) -> None:
        """Back to the start."""
        if self.faults is not None:
            self.faults.remove()
            self.faults = None
        self.bed.reset()
        self.toolstack.reset()
        self.caller = self.toolstack.dom0
        self._forget()
        self._progress = 0
        self._carrier = None
        self.pointed = False

    def inject(self, plan: str) -> None:
        """A plan of what fails from now on, instead of the one before."""
        if self.faults is not None:
            self.faults.remove()
            self.faults = None
        self.faults = PlannedFaults(self.xen, plan, self._note)

    def call_as(self, domid: int) -> int:
        """From now on that domain makes the calls; -ESRCH, and nothing changes, if it is not there or dying."""
        caller = self.toolstack.callers.get(domid)
        if caller is None:
            return -ESRCH
        self.caller = caller
        return 0

    def destroy_domain(self, domid: int, passes: int) -> int:
        """See :mod:`fuzz.toolstack`; if it was the caller, dom0 is from now on."""
        result = self.toolstack.destroy_domain(domid, passes)
        if domid not in self.toolstack.callers and domid == self.caller.domid:
            self.caller = self.toolstack.dom0
        return result

    def remove(self, frame: Value) -> tuple[int, int, int]:
        """The toolstack takes a page away: (its domain, its frame number there, result)."""
        owner, page = self._page(frame)
        if owner is None:
            return 0, -1, -EINVAL
        gfn = self._number(owner, page)
        return owner.domid, gfn, self.toolstack.remove_page(owner, gfn)

    def retype(self, frame: Value, kind: str) -> tuple[int, int, int]:
        """The toolstack (or, for a PV guest's page tables, the guest) makes another kind of page of a page of the
        guest's own: (its domain, its frame number there, result)."""
        owner, page = self._page(frame)
        if owner is None or page >= len(owner.mfns):
            return 0, -1, -EINVAL
        gfn = self._number(owner, page)
        return owner.domid, gfn, self.toolstack.retype_page(owner, gfn, owner.mfns[page], kind)

    def _page(self, frame: Value) -> tuple[CallingDomain | None, int]:
        """Whose page a frame of a program is, and which; ``None`` if it is no page of a domain that makes calls."""
        space, number = str(frame[0]), int(frame[1])  # type: ignore[index]
        if space == "ram":
            return self.caller, number
        return self.toolstack.callers.get(int(space[1:])) if space[1:].isdigit() else None, number

    def carry(self, domain: int) -> None:
        """The next hypercall is remote_cmd's, for ``domain``; ``ProgramError`` in a version without it."""
        if not self.abi.has("remote_cmd"):
            raise ProgramError(f"{self.abi.name} has no sub-op remote_cmd")
        self._carrier = domain

    def claim(self, progress: int) -> None:
        """The next hypercall says that so many pages were done by earlier passes of it (as far as bits say it)."""
        self._progress = progress & 0xFFFF_FF00

    # ------------------------------------------------------------------------------------------------------ calls

    @property
    def subject(self) -> CallingDomain:
        """Whose contexts and frame numbers the next call is about."""
        if self._carrier is None:
            return self.caller
        return self.toolstack.callers.get(self._carrier, self.caller)

    def number(self, frame: Value) -> int:
        """The frame number that a guest would name for a frame of a program."""
        space, number = frame  # type: ignore[misc, str-unpack]
        assert isinstance(number, int)
        if space == "ram":
            return self._number(self.subject, number)
        if space == "mmio":
            return (MMIO_START >> PAGE_SHIFT) + number
        if space == "rmrr":
            return (RMRR.base >> PAGE_SHIFT) + number
        if space in ("xen", "gfn"):
            return number
        owner, _ = self._page(frame)
        if owner is not None and owner is self.subject:
            return self._number(owner, number)
        return owner.mfns[number] if owner is not None and number < len(owner.mfns) else self.memory.frames - 1

    def _number(self, owner: CallingDomain, page: int) -> int:
        """The number that a domain itself has for one of its pages."""
        return page if not owner.pv else owner.mfns[page] if page < len(owner.mfns) else self.memory.frames - 1

    def call(self, name: str, args: tuple[int, ...], argument: Value = "plain", holes: Value = 0) -> Call:
        """Sub-op ``name`` with canonical fields ``args``; ``holes``: which byte that belongs to no field is set.

        ``ProgramError`` if a field does not fit its struct or the version has no such sub-op.
        """
        raw, subop = self.encode(name, args), self.abi.by_name[name]
        if holes and subop.codec is not None and subop.codec.hole_mask:
            raw = _soil(raw, subop.codec.hole_mask, int(str(holes)))
        return self.issue(subop.number, name, raw, str(argument))

    def encode(self, name: str, args: tuple[int, ...]) -> bytes:
        """The struct of sub-op ``name`` with canonical fields ``args``; ``ProgramError`` as :meth:`call`."""
        subop = self.abi.by_name.get(name)
        if subop is None:
            raise ProgramError(f"{self.abi.name} has no sub-op {name}")
        try:
            return b"" if subop.codec is None else subop.codec.encode(*args)
        except ValueError as error:
            raise ProgramError(str(error)) from None

    def issue(self, number: int, name: str, raw: bytes, argument: str) -> Call:
        """Hypercall with ``number`` in the sub-op register and ``raw`` as its struct."""
        caller, size = self.caller, len(raw)
        inner = struct = None
        if argument == "plain":
            address, struct = caller.address_end - size, caller.structs[size]
            if raw:
                if not self._touched[caller.struct_frame]:
                    self.memory.touch(caller.struct_frame)
                struct[:] = raw
        else:
            address = self._place(argument, raw)
        if self.union:
            result = self._hypercall(caller.vcpu, self._iommu_op, address)
        elif self._carrier is not None and name != "remote_cmd":
            return self._carried(number, name, raw, argument, address)
        else:
            number |= self._progress
            if name == "remote_cmd":
                inner = self._inner(raw)
            result = self._hypercall(caller.vcpu, self._iommu_op, number, address)
            if inner is not None:
                self._finish(inner, number & 0xFFFF_FF00, result)
        if name == "init" and not result:
            self._watch_arena(caller.domain)
        after = self._look(argument, raw) if struct is None else struct.tobytes()
        progress, self._progress = 0 if self.union else number & 0xFFFF_FF00, 0
        return Call(number, name, argument, raw, result, after, progress, inner, caller.domid)

    def _watch_arena(self, domain: Domain | None) -> None:
        """The domain has an arena now: what is asked of it passes by the plan."""
        if domain is not None and domain.iommu is not None and domain.iommu.arena is not None:
            self._interpose(domain.iommu.arena)

    def _carried(self, number: int, name: str, raw: bytes, argument: str, address: int) -> Call:
        """The same by way of remote_cmd; what it answers is the outer call."""
        domain, self._carrier = self._carrier, None
        remote = self.abi.by_name.get("remote_cmd")
        if remote is None or remote.codec is None:
            raise ProgramError(f"{self.abi.name} has no sub-op remote_cmd")
        assert domain is not None
        outer = remote.codec.encode(domain & 0xFFFF, number & 0xFFFF, address)
        caller, ram = self.caller, self.caller.ram
        ram.write(OUTER, outer)
        inner = Call(number, name, argument, raw, 0, raw, 0, None, domain & 0xFFFF)
        register = remote.number | self._progress
        result = self._hypercall(caller.vcpu, self._iommu_op, register, caller.linear(OUTER))
        if name == "init" and not result:
            self._watch_arena(self.xen.domains.get(domain & 0xFFFF))
        inner.after = self._look(argument, raw)
        inner.result, inner.progress, self._progress = result, register & 0xFFFF_FF00, 0
        after = ram.read(OUTER, len(outer))
        return Call(register, "remote_cmd", "plain", outer, result, after, inner.progress, inner, caller.domid)

    def _inner(self, outer: bytes) -> Call | None:
        """The call that a remote_cmd made of bytes would carry, as it is before."""
        codec = self.abi.by_name["remote_cmd"].codec
        assert codec is not None
        domid, number, address = codec.decode(outer)
        subop = self.abi.subops.get(number)
        if subop is None or subop.codec is None or not subop.implemented:
            return None
        memory, size = self.caller.vcpu.memory, subop.codec.size
        before = memory.read(address, size)
        argument = "unmapped" if before is None else "plain" if memory.writable(address, size) else "readonly"
        self.pointed |= argument == "plain"
        call = Call(number, subop.name, argument, before or bytes(size), 0, b"", 0, None, domid)
        call.after = address.to_bytes(8, "little")
        return call

    def _finish(self, inner: Call, progress: int, result: int) -> None:
        there = self.caller.vcpu.memory.read(int.from_bytes(inner.after, "little"), len(inner.before))
        inner.after, inner.progress, inner.result = there or inner.before, progress, result

    @property
    def wrapping(self) -> tuple[int | None, int]:
        """The domain that remote_cmd takes the next call to, if it does, and the progress that it claims."""
        return self._carrier, self._progress

    def name_of(self, number: int) -> str:
        """The sub-op with this number, "" if there is none."""
        return self._structs.get(number, ("", 0))[0]

    def raw(self, number: int, raw: bytes, argument: str) -> Call:
        """The same with bytes as they come, as many as the struct takes (missing ones are zero)."""
        if self.union:
            tag = (number & 0xFFFF).to_bytes(2, "little")
            return self.issue(number, self.name_of(number & 0xFFFF), (tag + raw[2:]).ljust(32, b"\0")[:32], argument)
        name, size = self._structs.get(number) or self._structs.get(number & 0xFF, ("", 0))
        if len(raw) != size:
            raw = raw[:size].ljust(size, b"\0")
        return self.issue(number, name, raw, argument)

    def arguments(self, operation: Op) -> tuple[int, ...]:
        """The canonical fields of a hypercall operation; OUT fields hold a number that no answer has."""
        verb = operation[0]
        if verb == "map":
            _, ctx, frame, at, pages, access, size = operation[:7]
            return (ctx, self.number(frame), at, access, size, pages, 0xABAB)
        if verb == "unmap":
            _, ctx, at, pages, size = operation[:5]
            return (ctx, at, size, pages, 0xABAB)
        if verb == "flush":
            _, ctx, at, pages, size = operation[:5]
            return (ctx, at, size, pages)
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

    def _place(self, argument: str, raw: bytes) -> int:
        caller, space = self.caller, self.caller.space
        if argument == "split":
            caller.ram.write(SPLIT_END - len(raw), raw)
            return caller.linear(SPLIT_END - len(raw))
        if argument == "readonly":
            caller.ram.write(READ_ONLY_PAGE << PAGE_SHIFT, raw)
            return space.read_only
        return space.unmapped if argument == "unmapped" else space.not_the_guests

    def _look(self, argument: str, raw: bytes) -> bytes:
        size = len(raw)
        starts = {"plain": STRUCT_END - size, "split": SPLIT_END - size, "readonly": READ_ONLY_PAGE << PAGE_SHIFT}
        return self.caller.ram.read(starts[argument], size) if argument in starts else raw


def _soil(raw: bytes, mask: int, which: int) -> bytes:
    """``raw`` with the ``which``-th byte (from 1, over and over) that belongs to no field set to 1."""
    places = [k for k in range(len(raw)) if mask >> 8 * k & 0xFF]
    dirty = bytearray(raw)
    dirty[places[(which - 1) % len(places)]] = 1
    return bytes(dirty)
