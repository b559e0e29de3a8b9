# SPDX-License-Identifier: GPL-2.0-or-later
"""The domains of a machine as they have to be, and what the toolstack's doings make of them.

Each domain has a :class:`fuzz.shadow.Shadow`; here is what they have in common: whose a device is, whose frames may be
mapped, what is left of a domain when it ends.
"""

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from abi.errno import EEXIST, EINVAL, EIO, ENODEV, ENOENT, ENOMEM, ENOSPC, EPERM, ERESTART, ESRCH, errno_name
from base.units import DomId, Sbdf
from fuzz import events
from fuzz.domain_pages import Pages
from fuzz.guest_frames import Frames
from fuzz.guest_memory import GuestMemory
from fuzz.intervals import Intervals
from fuzz.shadow import Shadow
from fuzz.sweep import Broken
from fuzz.toolstack import FIRST_RESERVED, LEAST_PAGES, MOST_ARENA, MOST_PAGES
from fuzz.verbs import DEVICES, Op
from hypervisor.domain import Domain
from hypervisor.frames import DOMID_NONE
from hypervisor.pviommu.contexts import TEARDOWN_LEAVES

if TYPE_CHECKING:
    from fuzz.target import Target

_TABLES: Final = 2
"""Blocks that a new domain's tables may have broken up before its memory is asked for."""
SCARCE: Final = 32
"""Free frames below which anything may find that there is no memory."""


class Domains:
    """The shadows of one target's domains."""

    def __init__(self, target: "Target") -> None:
        bed = target.bed
        xen, dom0 = bed.xen, bed.dom0
        assert dom0.iommu is not None
        self._target: Final = target
        self._xen: Final = xen
        profile = xen.profile
        self._frames: Final = Frames(
            bed.mfns, dom0.pv, xen.frames.frames, list(dom0.mmio), profile.maps_mmio, profile.errno_hole
        )
        if dom0.pv and profile.maps_foreign:
            self._frames.others = self._others
        self.devices: Final = {
            int(device.sbdf): tuple((int(first), int(last)) for first, last in device.reserved)
            for device in dom0.iommu.default.devices
        }
        """Every device of the machine, with its reserved regions."""
        self._caps: Final = sum(xen.abi.caps.get(name, 0) for name in ("cache", "deferred_flush"))
        """Flags of query_capabilities that every domain is told."""
        self._limit: Final = target.machine.limit(target.bench.contexts, dom0.iommu.limit)
        self._ids: Final = target.machine.ids(self)
        self._initialised: Final = dom0.iommu.initialised
        self._at_start: Final = tuple(dom0.iommu.contexts)
        """Numbers of the contexts that a posted init leaves behind."""
        self.shadows: Final[dict[int, Shadow]] = {}
        """By domain id."""
        self.memory: Final = GuestMemory(target)
        self._objects: Final[dict[int, Domain]] = {}
        """The guests as the hypervisor has them."""
        self._arenas: Final[dict[int, tuple[int, int]]] = {}
        """(first frame, pages) of the arena of each guest that has one."""
        self.away: Final[dict[int, str]] = {}
        """Devices that no domain has: in "quarantine", perhaps "blocked" there, or "out" of the machine."""
        self._kin: list[Shadow] = []
        self.pages = Pages()
        self._vague: set[int] = set()

    def reset(self) -> Shadow:
        """A program begins: dom0's shadow."""
        self.shadows.clear()
        self.memory.reset()
        self._objects.clear()
        self._arenas.clear()
        self.away.clear()
        self._kin, self.pages, self._vague = [], Pages(), set()
        abi = self._xen.abi
        caps = abi.caps.get("default_identity", 0) | self._caps
        dom0 = self._shadow(self._target.bed.dom0, self._frames, caps, None)
        dom0.limit, dom0.initialised = self._limit, self._initialised
        dom0.homes, dom0.uncovered = dict.fromkeys(self.devices, 0), self._target.machine.beyond
        for number in self._at_start:
            dom0.spaces[number] = Intervals()
            dom0.regions[number] = []
        return dom0

    def _shadow(self, domain: Domain, frames: Frames, caps: int, arena_pages: int | None) -> Shadow:
        xen, target = self._xen, self._target
        shadow = Shadow(
            xen.abi,
            frames,
            0,
            False,
            self.devices,
            target.machine.max_iova(xen.backend.max_iova),
            xen.pgsize_mask,
            caps,
            xen.profile.errno_paged_out,
            arena_pages,
        )
        shadow.odd, shadow.vague, shadow.kin = self.pages.odd, self._vague, self._kin
        shadow.unsure = any(other.unsure for other in self._kin)
        shadow.starved = lambda pages: self._failed or shadow.free_before < 4 + (pages >> 8)
        shadow.no_block = self._no_block
        shadow.stuck = lambda device, number: self._is_in(domain, device, number)
        self._ids.ask(shadow, target)
        shadow.passes = lambda: target.passes
        shadow.pauses = lambda: xen.preempt is not None
        shadow.unconfirmed = lambda: bool(target.events & events.UNCONFIRMED)
        self._kin.append(shadow)
        self.shadows[int(domain.domid)] = shadow
        return shadow

    # --------------------------------------------------------------------------------------------------- questions

    def before(self) -> None:
        """An operation is about to run."""
        for domid, shadow in self.shadows.items():
            shadow.free_before = shadow.free_when_short = self.free_pages(domid)

    def note_shortage(self) -> None:
        """An allocation found nothing."""
        for domid, shadow in self.shadows.items():
            shadow.free_when_short = self.free_pages(domid)

    def free_pages(self, domid: int) -> int:
        """Of a domain's arena."""
        domain = self._xen.domains.get(DomId(domid))
        iommu = domain.iommu if domain is not None else None
        arena = iommu.arena if iommu is not None else None
        return arena.pages - arena.used if arena is not None else 0

    def after_init(self, domid: int) -> None:
        """A guest has an arena now."""
        domain = self._objects.get(domid)
        if domain is not None and domain.iommu is not None and domain.iommu.arena is not None:
            self._arenas[domid] = (domain.iommu.arena.base, domain.iommu.arena.pages)

    def note(self) -> None:
        """After a flush that was not confirmed, hardware may remember what any domain had mapped."""
        if self._target.events & events.UNCONFIRMED:
            for shadow in self._kin:
                shadow.unsure = True

    def follow(self) -> None:
        """Take over which domains there are and who has which device."""
        there = self._xen.domains
        for domid in [domid for domid in self.shadows if domid not in there]:
            self._kin.remove(self.shadows.pop(domid))
            self._objects.pop(domid, None)
            self._arenas.pop(domid, None)
        self.away.clear()
        self.away.update(dict.fromkeys(self.devices, "out"))
        if self._xen.quarantined is not None:
            self.away.update((int(sbdf), "blocked") for sbdf in self._xen.quarantined.devices)
        for domid, shadow in self.shadows.items():
            shadow.ending = there[DomId(domid)].dying
            devices = there[DomId(domid)].devices.items()
            shadow.homes = {int(sbdf): int(d.context.number) if d.context is not None else 0 for sbdf, d in devices}
            for device in shadow.homes:
                self.away.pop(device, None)

    def place(self, device: int) -> tuple[int, int] | None:
        """(domain, context) in which a device is, ``None`` if no domain has it."""
        for domid, shadow in self.shadows.items():
            home = shadow.homes.get(device)
            if home is not None:
                return domid, home
        return None

    def _others(self, mfn: int, limit: int) -> tuple[int, int, int]:
        """What comes of mapping a machine frame that is not dom0's: see :attr:`fuzz.guest_frames.Frames.others`."""
        for shadow in reversed(self._kin):  # a younger domain may have got a part of what a dead one had
            frames = shadow.frames
            if frames is not self._frames and frames.has(mfn):
                end = min(
                    (other.frames.base for other in self._kin if mfn < other.frames.base),
                    default=frames.base + frames.size,
                )
                return mfn, min(limit, end - mfn, frames.base + frames.size - mfn), 0
        return 0, 0, -EPERM

    def _is_in(self, domain: Domain, device: int, number: int) -> bool:
        found = domain.devices.get(Sbdf(device))
        return found is not None and found.context is not None and found.context.number == number

    @property
    def _failed(self) -> bool:
        return bool(self._target.events & events.NO_MEMORY)

    def _no_block(self, order: int, spare: int = 0) -> bool:
        """Whether memory was made to fail, or there are no more than ``spare`` free, aligned blocks of 2^``order``
        frames."""
        owner, count = self._xen.frames.owner, 1 << order
        nobodys = array("H", [DOMID_NONE]) * count
        free = sum(owner[mfn : mfn + count] == nobodys for mfn in range(0, len(owner) - count + 1, count))
        return self._failed or free <= spare

    def _excused(self, result: int) -> bool:
        """Whether a move of a device may have failed like this."""
        if result == -EIO:
            return bool(self._target.events & events.UNCONFIRMED)
        if result == -ENOMEM:
            return self._failed or self._xen.frames.owner.count(DOMID_NONE) < SCARCE or self._ids.may_be_gone()
        return False

    # ------------------------------------------------------------------------------------------ the toolstack's doings

    def judge(self, operation: Op, result: int) -> Broken | None:
        """Hold the answer of an operation of the toolstack's against what must come of it, and follow what it did."""
        expected = getattr(self, f"_{operation[0]}")(*operation[1:], result)
        self.note()
        if isinstance(expected, Broken):
            return expected
        if result != expected:
            what = f"{operation[0]} answered {errno_name(result)}, not {errno_name(expected)}"
            return Broken("toolstack", what)
        return self._listed()

    def _listed(self) -> Broken | None:
        odd = self._xen.domains.keys() ^ self.shadows.keys()
        if odd:
            number = min(odd)
            there = "should not be there" if number in self._xen.domains else "is gone"
            return Broken("left-over", f"domain {number} {there}")
        dom_io = self._xen.quarantined
        if dom_io is not None and dom_io.iommu is not None:
            for number, context in dom_io.iommu.contexts.items():
                if not context.devices and not (context.dying and context.unconfirmed):
                    return Broken("left-over", f"quarantine's context {number} has no device")
        return None

    def _create_domain(self, domid: int, pages: int, kind: str, arena: int, iommu: str, result: int) -> int | Broken:
        if domid in self.shadows:
            return -EEXIST
        sound = LEAST_PAGES <= pages <= MOST_PAGES and not pages & pages - 1
        if not 0 < domid < FIRST_RESERVED or not sound or arena > MOST_ARENA:
            return -EINVAL
        excused = self._excused(-ENOMEM) or self._excused(-EIO)
        if result == -ENOMEM and (excused or self._no_block(pages.bit_length() - 1, _TABLES)):
            if domid in self._xen.domains and self._excused(-EIO):  # to be destroyed once hardware confirms
                self._add(self._xen.domains[domid], [0], 0, usable=False).ending = True
            return -ENOMEM
        if result:
            return 0
        caller = self._target.toolstack.callers[domid]
        usable = iommu == "yes" and self._xen.profile.every_domain
        self._add(caller.domain, caller.mfns, 1 << arena, usable=usable)
        self.memory.received(caller.mfns)
        for mfn in caller.mfns:
            self.pages.odd.pop(mfn, None)
            self._vague.discard(mfn)
        return 0

    def _add(self, domain: Domain, mfns: list[int], arena_pages: int, *, usable: bool) -> Shadow:
        profile = self._xen.profile
        frames = Frames(mfns, domain.pv, self._xen.frames.frames, [], profile.maps_mmio, profile.errno_hole)
        shadow = self._shadow(domain, frames, self._caps, arena_pages)
        shadow.usable = usable
        self._objects[int(domain.domid)] = domain
        return shadow

    def _destroy_domain(self, domid: int, passes: int, result: int) -> int | Broken:
        shadow = self.shadows.get(domid)
        if shadow is None:
            return -ESRCH
        if not domid:
            return -EINVAL
        begun, shadow.ending, shadow.usable = shadow.ending, True, False
        domain = self._objects[domid]
        stay = [device for device in shadow.homes if Sbdf(device) in domain.devices]
        for device in [device for device in shadow.homes if device not in stay]:
            self._quarantined(shadow, device)
        leaves = max((_scattered(space) for space in shadow.spaces.values()), default=0)
        paused = passes > 1 or bool(self._target.events & events.RESTART)
        if not begun and not stay and leaves > 2 * TEARDOWN_LEAVES and not paused and not result:
            return Broken("yields", f"the end of domain {domid} with {leaves} pages let nobody else run")
        gone = self._arena_is_gone(domid, domain)
        if gone is not None:
            return gone
        if result:
            self._vague.update(mfn for mfn in shadow.frames.mfns if mfn in self.pages.odd)
            if result == -ERESTART and passes and not stay and (begun or leaves > TEARDOWN_LEAVES):
                return -ERESTART
            return -EIO if result == -EIO and self._excused(result) else 0
        return self._nothing_is_left(domid, shadow, domain) or 0

    def _arena_is_gone(self, domid: int, domain: Domain) -> Broken | None:
        """If an ending domain says that it has no arena any more, its frames are free."""
        if domain.iommu is None or domain.iommu.arena is not None or domid not in self._arenas:
            return None
        base, pages = self._arenas.pop(domid)
        owner = self._xen.frames.owner
        kept = [mfn for mfn in range(base, base + pages) if owner[mfn] != DOMID_NONE]
        return Broken("left-over", f"frame {kept[0]:#x} of domain {domid}'s arena is not free") if kept else None

    def _nothing_is_left(self, domid: int, shadow: Shadow, domain: Domain) -> Broken | None:
        """The end of a domain answered 0."""
        frames, iommu = self._xen.frames, domain.iommu
        left = [name for name, number in DEVICES.items() if number in domain.devices]
        if left:
            return Broken("left-over", f"domain {domid} is destroyed and has device {left[0]}")
        if iommu is not None and (iommu.contexts or iommu.arena is not None or iommu.default.hw is not None):
            what = f"context {min(iommu.contexts)}" if iommu.contexts else "its arena" if iommu.arena else "context 0"
            return Broken("left-over", f"domain {domid} is destroyed and has {what}")
        shadow.spaces.clear()
        held = [mfn for mfn in shadow.frames.mfns if frames.owner[mfn] == domid]
        for mfn in held:
            if frames.allocated[mfn] or not (shadow.held(mfn) or shadow.unsure):
                return Broken(
                    "left-over", f"domain {domid} is destroyed and has frame {mfn:#x}, which nobody refers to"
                )
        if held:
            for mfn in shadow.frames.mfns:
                self.pages.odd[mfn] = "gone"
                self._vague.discard(mfn)
        else:
            for mfn in shadow.frames.mfns:
                self.pages.odd.pop(mfn, None)
            del self.shadows[domid], self._objects[domid]
            self._kin.remove(shadow)
        return None

    def _quarantined(self, shadow: Shadow, device: int) -> None:
        shadow.leave(device)
        troubled = self._target.events & (events.NO_MEMORY | events.UNCONFIRMED)
        scarce = self._xen.frames.owner.count(DOMID_NONE) < SCARCE
        self.away[device] = "blocked" if troubled or scarce or self._ids.free is not None else "quarantine"

    def _assign(self, name: str, domid: int, result: int) -> int:
        shadow, device = self.shadows.get(domid), DEVICES[name]
        if shadow is None:
            return -ESRCH
        if device not in self.devices:
            return -ENODEV
        if shadow.ending or (domid and self._objects[domid].iommu is None):
            return -EINVAL
        if self._excused(result) or (result == -ENOSPC and shadow.tagless()):
            return result
        if not result:
            self._take(device)
            shadow.enter(device, 0)
        return 0

    def _take(self, device: int) -> None:
        """A device goes somewhere else, wherever it is."""
        self.away.pop(device, None)
        for shadow in self.shadows.values():
            if device in shadow.homes:
                shadow.leave(device)

    def _deassign(self, name: str, domid: int, result: int) -> int:
        shadow, device = self.shadows.get(domid), DEVICES[name]
        if shadow is None:
            return -ESRCH
        if device not in shadow.homes:
            return -ENODEV
        if result == -EIO and self._excused(result):
            return -EIO
        if not result:
            self._quarantined(shadow, device)
        return 0

    def _add_device(self, name: str, number: int, result: int) -> int:
        dom0, device = self.shadows[0], DEVICES[name]
        if device not in self.devices:
            return -ENODEV
        if self.away.get(device) != "out":
            return -EINVAL
        if number and number not in dom0.spaces:
            return -ENOENT
        refused = dom0.refuses(device, number)
        if refused:
            return refused
        if self._excused(result) or (result == -ENOMEM and dom0.starved(1)):
            return result
        if not result:
            del self.away[device]
            dom0.enter(device, number)
        return 0

    def _remove_device(self, name: str, result: int) -> int:
        device = DEVICES[name]
        if device not in self.devices or self.away.get(device) == "out":
            return -ENODEV
        if result == -EIO and self._excused(result):
            return -EIO
        if not result:
            self._take(device)
            self.away[device] = "out"
        return 0

    # ------------------------------------------------------------------------------------------------------- pages

    def removal(self, domid: int, gfn: int, result: int) -> int:
        """What taking page ``gfn`` away from a domain must answer."""
        expected = self.pages.removal(self.shadows[domid], gfn, result, excused=self._excused(result))
        if expected == -EIO:
            self.note()
        return expected

    def retyping(self, domid: int, gfn: int, kind: str, result: int) -> int:
        """What making a ``kind`` of page of page ``gfn`` must answer."""
        return self.pages.retyping(self.shadows[domid], gfn, kind, result)

    def default_spans(self, domid: int) -> Iterator[tuple[int, int, int, int]]:
        """What a guest's context 0 maps, as ranges."""
        return self.pages.spans(self.shadows[domid].frames)


def _scattered(space: Intervals) -> int:
    """Pages that are no part of a superpage."""
    return sum(end - at for at, end, delta, _ in space if delta & 511)
