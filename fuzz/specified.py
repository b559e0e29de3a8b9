# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle with a second judge beside it: the executable specification, :mod:`abi.semantics`, call by call.

The quick shadow keeps ranges and was written for speed; the specification goes page by page, reads the contract's
tables, and is what everything else in this project is held against.  Under ``against=specification`` each call of a
program is put to both, and at the sweep both have to say the same about every page, device and context.

The specification is told what nobody can predict, and no more: that a preempted pass got so far; that an allocation
found nothing or a flush was not confirmed, *if that happened*, and where the call says that it stopped.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from abi.canonical import CANONICAL
from abi.conditions import FrameKind
from abi.contract_fixed import EVERY
from abi.errno import EBUSY, EINVAL, EIO, ENOMEM, ENOSPC, EPERM, errno_name
from abi.ownership import become, give_up
from abi.predicates import GRAIN
from abi.semantics import PAGE_EFFECTS, call
from abi.world import Chance, Context, Device, Domain, Leaf, Request, State
from fuzz import events
from fuzz.intervals import Intervals
from fuzz.oracle import Oracle
from fuzz.program import Bench
from fuzz.run import Runner
from fuzz.sweep import Broken
from fuzz.target import Call, Target
from fuzz.verbs import ProgramError
from hypervisor import p2m
from testbed.build import TestBed

_CALLER: Final = 0
_PINNED: Final = {"pagetable": FrameKind.READ_ONLY, "ram": None}
_BECOMES: Final = {
    "ram": None,
    "ro": FrameKind.READ_ONLY,
    "shared": FrameKind.SHARED,
    "paged": FrameKind.PAGED_OUT,
    "logdirty": FrameKind.RAM,
    "hole": FrameKind.HOLE,
    "foreign": FrameKind.XEN,
}
"""By word of a program: what the frame is then; ``None``: what it was."""


class FrameKinds(Mapping[int, FrameKind]):
    """What the hardware domain's frame numbers lead to at the start of a program, read from the machine once."""

    def __init__(self, bed: TestBed) -> None:
        self._starts: Final[list[int]] = []
        self._stretches: Final[list[tuple[int, FrameKind]]] = []
        """Last frame and kind of each stretch, by :attr:`_starts`."""
        for first, last, kind in _stretches(bed):
            self._starts.append(first)
            self._stretches.append((last, kind))

    def __getitem__(self, gfn: int) -> FrameKind:
        place = bisect_right(self._starts, gfn) - 1
        if place >= 0:
            last, kind = self._stretches[place]
            if gfn <= last:
                return kind
        return FrameKind.HOLE

    def __iter__(self) -> Iterator[int]:
        raise TypeError("frame numbers without end")

    def __len__(self) -> int:
        raise TypeError("frame numbers without end")


def _stretches(bed: TestBed) -> Iterator[tuple[int, int, FrameKind]]:
    """(first, last, kind) of frames that are no holes, in order."""
    dom0, frames = bed.dom0, bed.xen.frames
    gfn, end = 0, frames.frames if dom0.pv else bed.config.guest_ram >> 12
    while gfn < end:
        mfn, kind, count = dom0.translation.run(gfn, end - gfn)
        if kind == p2m.MMIO:
            allowed = dom0.may_access_mmio(mfn, count)
            yield gfn, gfn + count - 1, FrameKind.MMIO if allowed else FrameKind.MMIO_DENIED
        elif kind != p2m.NONE:
            own = frames.owner[mfn] == dom0.domid
            yield gfn, gfn + count - 1, FrameKind.RAM if own else FrameKind.XEN
        gfn += count
    for first, last in sorted(mmio for mmio in dom0.mmio if mmio[0] >= end):
        if dom0.pv and first > gfn:
            yield gfn, first - 1, FrameKind.MMIO_DENIED
        yield first, last, FrameKind.MMIO
        gfn = last + 1


@dataclass(frozen=True, slots=True)
class _Turn:
    """What happened during a call, as far as an answer may depend on it."""

    result: int
    unconfirmed: bool
    starved: Callable[[int], bool]
    """Whether so many pages may not have found memory."""
    tagless: bool
    stuck: Callable[[int, int], bool]
    """Whether a device is still in that context."""
    passes: tuple[int, ...]
    """How far each preempted pass said that it got."""
    preempts: bool


class SpecifiedOracle(Oracle):
    """The quick judge, and the specification beside it."""

    def __init__(self, target: Target) -> None:
        profile = target.xen.profile
        if profile.defects or target.bench.defects or profile.name not in EVERY:
            raise ProgramError(
                f"{profile.name} with its defects is no contract: the specification is of sound profiles"
            )
        if target.machine.beyond:
            raise ProgramError(
                "the specification knows no device that no unit covers: another machine is held against it"
            )
        self._contract: Final = EVERY[profile.name]
        self._kinds: Final = FrameKinds(target.bed)
        super().__init__(target)
        self._state: State = {_CALLER: self._at_the_start()}

    def _at_the_start(self) -> Domain:
        target, bed = self.target, self.target.bed
        iommu = bed.dom0.iommu
        assert iommu is not None
        return Domain(
            initialized=iommu.initialised,
            max_ctx_no=iommu.limit,
            contexts={int(number): Context() for number in (0, *iommu.contexts)},
            devices={sbdf: Device(0, reserved) for sbdf, reserved in self.domains.devices.items()},
            frames=self._kinds,
            max_iova_addr=target.machine.max_iova(target.xen.backend.max_iova),
            cap_flags=sum(target.abi.caps.get(name, 0) for name in ("default_identity", "cache", "deferred_flush")),
            pgsize_mask=target.xen.pgsize_mask,
            dfn_mask=target.machine.max_iova(target.xen.backend.max_iova) >> 12,
            arena_orders=target.xen.frames.frames.bit_length(),
            direct=bed.dom0.pv,
        )

    def reset(self) -> None:
        super().reset()
        self._state = {_CALLER: self._at_the_start()}

    @property
    def domain(self) -> Domain:
        """The calling domain as the specification knows it."""
        return self._state[_CALLER]

    # ------------------------------------------------------------------------------------------------------- calls

    def judge(self, call: Call) -> Broken | None:
        return super().judge(call) or self._hold(call)

    def _hold(self, made: Call) -> Broken | None:
        """The same call put to the specification."""
        request, later = self._request(made, self._turn(made.result))
        state, outcome = call(self._contract, self._state, request, *later)
        name = made.name or "unknown sub-op"
        if outcome.bug or outcome.result != made.result:
            said = outcome.bug or errno_name(outcome.result)
            return _differs(f"{name} answered {errno_name(made.result)}, and the specification says {said}")
        written = self._written(made, outcome.args)
        inner = made.inner
        if written == made.after and inner is not None and request.inner:
            written, made = self._written(inner, outcome.inner), inner
        if written != made.after:
            return _differs(f"{name} left {made.after.hex()}, and the specification says {written.hex()}")
        self._state = state
        return None

    def _turn(self, result: int) -> _Turn:
        target, faults = self.target, self.target.faults
        return _Turn(
            result=result,
            unconfirmed=bool(target.events & events.UNCONFIRMED),
            starved=self.shadow.starved,
            tagless=(faults is not None and faults.tag) or (result == -ENOSPC and self.shadow.tagless()),
            stuck=self.shadow.stuck,
            passes=tuple(target.passes),
            preempts=target.xen.preempt is not None,
        )

    def _request(self, made: Call, turn: _Turn) -> tuple[Request, Sequence[Chance]]:
        """The call as the specification takes it, and the chances of its later passes."""
        inner = made.inner
        first, *later = self._chances(inner if inner is not None else made, turn)
        carried: tuple[int, ...] = ()
        if inner is not None:
            carried = self._fields(inner)
            passes = [Chance()] * len(later)
            outer = [*passes, self._copies(made, Chance())]
            first, *later = [replace(of, inner=chance) for of, chance in zip(outer, (first, *later))]
        number = made.number & (0xFFFF if self.target.union else 0xFF)
        return Request(_CALLER, number, self._fields(made), first, carried, 0, made.progress), later

    def _fields(self, made: Call) -> tuple[int, ...]:
        """The struct in canonical order."""
        codec = self._codecs.get(made.name)
        there = codec.as_dict(made.before) if codec is not None else {}
        return tuple(there.get(field.name, field.default) for field in CANONICAL.get(made.name, ()))

    def _written(self, made: Call, args: tuple[int, ...]) -> bytes:
        """The struct as it has to read afterwards, if its fields do as ``args`` says."""
        codec = self._codecs.get(made.name)
        if codec is None or not codec.out or args == self._fields(made):
            return made.before
        read = self.target.union or codec.out != codec.fields
        buffer = bytearray(made.before if read else bytes(len(made.before)))
        said = dict(zip((field.name for field in CANONICAL[made.name]), args))
        codec.put_out(buffer, tuple(said[name] for name in codec.out))
        return bytes(buffer)

    def _copies(self, made: Call, chance: Chance) -> Chance:
        """What became of copying the struct in and out."""
        codec = self._codecs.get(made.name)
        if not self.target.union and (codec is None or not codec.size):
            return chance
        return replace(
            chance,
            readable=made.argument not in ("unmapped", "noncanonical"),
            writable=made.argument in ("plain", "split"),
            holes_zero=codec is None or codec.decode_clean(made.before) is not None,
        )

    def _chances(self, made: Call, turn: _Turn) -> list[Chance]:
        """How each pass of a call turned out."""
        if made.name in PAGE_EFFECTS:
            return self._chances_of_pages(made, turn)
        last = self._copies(made, Chance(unconfirmed=turn.unconfirmed))
        short = turn.result == -ENOMEM
        if made.name in ("free_context", "reattach_device"):
            failed = EIO if turn.result == -EIO and turn.unconfirmed else 0
            failed = ENOMEM if short and turn.starved(1) else failed
            number = self._fields(made)[0]
            stay = frozenset(sbdf for sbdf in self.domains.devices if failed and turn.stuck(sbdf, number))
            last = replace(last, driver_errno=failed, stay=stay)
        elif short and (self._has_no_block(made) if made.name == "init" else turn.starved(0)):
            last = replace(last, no_memory_at=0)
        elif turn.result == -ENOSPC and turn.tagless:
            last = replace(last, no_tag=True)
        return [*(Chance(preempt_after=1) for _ in turn.passes), last]

    def _has_no_block(self, made: Call) -> bool:
        """Whether there may have been no room for an arena that the machine is large enough for."""
        order = self._fields(made)[1]
        return order < self.domain.arena_orders and self.shadow.no_block(order)

    def _chances_of_pages(self, made: Call, turn: _Turn) -> list[Chance]:
        """The same for map_pages and unmap_pages, which say where they stopped."""
        fields = dict(zip((field.name for field in CANONICAL[made.name]), self._fields(made)))
        codec = self._codecs[made.name]
        assert codec is not None
        unit = fields["pgsize"] >> 12 if self._contract.units else 1
        done = codec.as_dict(made.after)[PAGE_EFFECTS[made.name][0]] * unit
        ahead = fields["dfn"] % GRAIN
        marks = [progress - ahead for progress in (made.progress or ahead, *turn.passes)]
        chances = [Chance(preempt_after=to - at) for at, to in pairwise(marks)]
        at = done - marks[-1]
        pages = fields["nr_pages"] * unit if made.name == "unmap_pages" else done + 512
        last = self._copies(made, Chance())
        if turn.result == -ENOMEM and turn.starved(pages):
            last = replace(last, no_memory_at=at)
        if turn.result == -EPERM and self.domain.unconfirmed:
            last = replace(last, gone_from=at)
        if turn.unconfirmed:
            last = replace(last, unconfirmed=True, preempt_after=at if turn.preempts and at > 0 else None)
        return [*chances, last]

    # ----------------------------------------------------------------------------------------------- the other ends

    def judge_removal(self, domid: int, gfn: int, result: int) -> Broken | None:
        turn = self._turn(result)
        chance = Chance(
            no_memory_at=0 if result == -ENOMEM and turn.starved(1) else None,
            unconfirmed=result == -EIO and turn.unconfirmed,
        )
        broken = super().judge_removal(domid, gfn, result)
        self._state, said = give_up(self._state, _CALLER, gfn, chance)
        return broken or _unless(said == result, f"taking frame {gfn:#x}", result, said)

    def judge_retype(self, domid: int, gfn: int, kind: str, result: int) -> Broken | None:
        broken = super().judge_retype(domid, gfn, kind, result)
        kinds = _PINNED if self.domain.direct else _BECOMES
        said = -EINVAL
        if gfn >= 0 and kind in kinds:
            busy = self.domain.unconfirmed and result == -EBUSY
            chance = Chance(gone_from=None if busy else 0)
            self._state, said = become(self._state, _CALLER, gfn, kinds[kind], chance)
        return broken or _unless(said == result, f"frame {gfn:#x} as {kind}", result, said)

    # ------------------------------------------------------------------------------------------------------- sweeps

    def sweep(self, full: bool = True) -> Broken | None:
        return self._compare_judges() or super().sweep(full)

    def _compare_judges(self) -> Broken | None:
        """Every page, device and context as both judges have them."""
        shadow, domain = self.shadow, self.domain
        contexts = {number: context for number, context in domain.contexts.items() if number}
        for what, one, other in (
            ("contexts", set(shadow.spaces), set(contexts)),
            ("dying contexts", shadow.dying, {number for number, context in contexts.items() if context.dying}),
            ("devices", shadow.homes, {sbdf: device.context for sbdf, device in domain.devices.items()}),
            ("the limit", (shadow.initialised, shadow.limit), (domain.initialized, domain.max_ctx_no)),
            ("what hardware may remember", shadow.unsure, domain.unconfirmed),
        ):
            if one != other:
                return _differs(f"{what}: the judge says {one}, the specification {other}")
        for number, context in contexts.items():
            said = list(shadow.spaces[number])
            specified = [] if context.dying else list(self._ranges(context.leaves))
            if said != specified and not context.dying:
                odd = sorted(set(said) ^ set(specified))[0]
                who = "the judge" if odd in said else "the specification"
                return _differs(f"context {number}: only {who} has dfn {odd[0]:#x} to {odd[1]:#x}")
        return None

    def _ranges(self, leaves: Mapping[int, Leaf]) -> Intervals:
        """What a guest mapped, as ranges that lead to machine frames."""
        mfns = self.target.bed.mfns
        ranges = Intervals()
        for dfn, leaf in sorted(leaves.items()):
            if not leaf.reserved:
                mfn = leaf.gfn if self.domain.direct or leaf.gfn >= len(mfns) else mfns[leaf.gfn]
                ranges.add(dfn, 1, mfn - dfn, leaf.access)
        return ranges


def _differs(what: str) -> Broken:
    return Broken("specified", what)


def _unless(same: bool, what: str, result: int, said: int) -> Broken | None:
    if same:
        return None
    return _differs(f"{what} answered {errno_name(result)}, and the specification says {errno_name(said)}")


class SpecifiedRunner(Runner):
    """Programs of hypercall level under both judges.

    What the toolstack does to domains and devices is left out: the contract is about what a domain calls.
    """

    def __init__(self, bench: Bench, sabotage: Callable[[TestBed], None] | None = None) -> None:
        super().__init__(bench, sabotage)
        self.steps.update(dict.fromkeys((*self.target.of_domains, "as"), lambda operation: (0, None)))

    def _make_oracle(self) -> Oracle:
        return SpecifiedOracle(self.target)
