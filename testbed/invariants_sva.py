# SPDX-License-Identifier: GPL-2.0-or-later
"""What has to hold for context descriptors, stream entries and shared address spaces after every operation.

Numbers are those of the list of invariants (69 to 73); words where there is none.  Each is a generator of complaints
over one :class:`~testbed.sva.watch.Step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from guest_driver.sva.iommu_sva import IommuSva, iommu_sva_get_pasid
from machine.iommu.smmuv3.cd import Cd0
from testbed.sva.meaning import INVALID, Meaning, cd_kind, cd_meaning, mixtures, ste_kind, ste_meaning
from testbed.sva.stores import Entry, Event, Store, before, rounds, sights
from testbed.sva.watch import VA, Step, Watch, members

Check = Callable[[Watch, Step], Iterator[str]]


class Invariant(NamedTuple):
    """A property with its prose."""

    id: str
    text: str
    check: Check


INVARIANTS: Final[dict[str, Invariant]] = {}

SYNCS: Final = {
    ("ste", "bypass", "abort"): 2,
    ("ste", "s1 ssid0", "abort"): 2,
    ("ste", "s1 terminate", "abort"): 2,
    ("ste", "s1 bypass", "abort"): 2,
    ("ste", "s1 ssid0", "bypass"): 3,
    ("ste", "s1 terminate", "bypass"): 3,
    ("ste", "s1 bypass", "bypass"): 2,
    ("ste", "s1 ssid0", "s1 terminate"): 1,
    ("ste", "s1 ssid0", "s1 bypass"): 1,
    ("ste", "s1 bypass", "s1 terminate"): 1,
    ("ste", "s2", "abort"): 2,
    ("ste", "s2", "bypass"): 2,
    ("ste", "s1 ssid0", "s2"): 3,
    ("cd", "empty", "live"): 2,
    ("cd", "empty", "quiet"): 2,
    ("cd", "live", "quiet"): 2,
}
"""How often hardware is waited for at most, from one kind of entry to another and back (upstream's kunit)."""
MOST_SYNCS: Final = 3


def expected_syncs(what: str, old: str, new: str) -> int:
    """The bound for a change between two kinds of entry."""
    return SYNCS.get((what, old, new), SYNCS.get((what, new, old), MOST_SYNCS))


def invariant(id: str, text: str) -> Callable[[Check], Check]:
    def add(function: Check) -> Check:
        assert id not in INVARIANTS
        INVARIANTS[id] = Invariant(id, text, function)
        return function

    return add


def check(watch: Watch, step: Step) -> dict[str, str]:
    """What does not hold after ``step``: by invariant, the first complaint."""
    found = {}
    for entry in INVARIANTS.values():
        what = next(entry.check(watch, step), None)
        if what is not None:
            found[entry.id] = what
    return found


class Update(NamedTuple):
    """One change of one entry: between two releases of locks there is one at most."""

    address: int
    what: str
    """``ste`` or ``cd``."""
    meaning: Meaning
    """How hardware reads it."""
    old: Entry
    new: Entry
    events: list[Event]


def _updates(watch: Watch, step: Step) -> Iterator[Update]:
    """Every update of the step, in order."""
    config = watch.machine.unit.config
    log = watch.log.events
    bounds = [step.start, *(glimpse for glimpse in step.glimpses if step.start < glimpse < step.end), step.end]
    for first, last in pairwise(bounds):
        events = log[first:last]
        for address in dict.fromkeys(event.address for event in events if isinstance(event, Store)):
            place = watch.place(address)
            if place is None:
                continue
            meaning = ste_meaning(config) if place.kind == "ste" else cd_meaning(config)
            new = before(log[last : step.end], address, before(log[step.end :], address, watch.entry(address)))
            yield Update(address, place.kind, meaning, before(events, address, new), new, events)


def _changed(watch: Watch, step: Step) -> Iterator[tuple[int, Entry, Entry]]:
    """(address, entry before the step, entry after it) of the entries that were stored to."""
    for address in step.addresses():
        now = before(watch.log.events[step.end :], address, watch.entry(address))
        yield address, before(step.events, address, now), now


@invariant("69", "whatever hardware fetches during an update is the old entry, the new one, or invalid; hitless: valid")
def old_new_or_invalid(watch: Watch, step: Step) -> Iterator[str]:
    for address, what, meaning, old, new, events in _updates(watch, step):
        seen = list(dict.fromkeys(sights(old, rounds(events, address))))
        place = watch.place(address)
        wrong = mixtures(old, new, seen, meaning)
        if wrong:
            yield f"{place}: {wrong[0][0]:#x} {wrong[0][1]:#x} is neither the old nor the new entry"
        kind = ste_kind if what == "ste" else cd_kind
        hitless = expected_syncs(what, kind(old), kind(new)) < MOST_SYNCS
        if hitless and INVALID not in (meaning(old), meaning(new)) and any(meaning(entry) == INVALID for entry in seen):
            yield f"{place}: invalid for a moment on the way from {kind(old)} to {kind(new)}"


@invariant("70", "an update waits for hardware as often as its kind needs, and no more")
def bounded_syncs(watch: Watch, step: Step) -> Iterator[str]:
    for address, what, _, old, new, events in _updates(watch, step):
        kind = ste_kind if what == "ste" else cd_kind
        taken, bound = len(rounds(events, address)), expected_syncs(what, kind(old), kind(new))
        if taken > bound:
            yield f"{kind(old)} to {kind(new)} takes {taken} rounds instead of {bound}"


@invariant("71", "only entries of the devices that were asked for change, and nobody sees an update that then fails")
def others_are_left_alone(watch: Watch, step: Step) -> Iterator[str]:
    for address in step.addresses():
        place = watch.place(address)
        if place is not None and place.dev not in step.asked:
            yield f"{place} was written"
    if not step.failed:
        return
    group = step.dev is not None and len(members(step.dev)) > 1
    for address, old, new in _changed(watch, step):
        if new != old:
            yield f"{watch.place(address)} is changed by an operation that failed"
        for glimpse in () if group else step.glimpses:  # a group's own lock is the core's, and held all the while
            if _applied(old, watch.log.events[step.start : glimpse], address) != old:
                yield f"{watch.place(address)}: a lock was let go with half of a failing update in it"


def _applied(old: Entry, events: list[Event], address: int) -> Entry:
    words = list(old)
    for event in events:
        if isinstance(event, Store) and event.address == address:
            words[event.word] = event.after
    return tuple(words)


@invariant("72", "a process that ends leaves valid descriptors that translate nothing, for every device and PASID")
def exit_is_quiet(watch: Watch, step: Step) -> Iterator[str]:
    if step.name != "exit" or step.mm is None or step.mm.iommu_mm is None:
        return
    pasid = step.mm.iommu_mm.pasid
    for handle in watch.handles:
        if handle.mm is not step.mm:
            continue
        for dev in members(handle.dev):
            changed = {watch.place(a): (old, new) for a, old, new in _changed(watch, step)}
            old, new = next(
                (pair for place, pair in changed.items() if place and place[1:] == (dev, pasid)), (None,) * 2
            )
            if old is None or new is None:
                yield f"{dev.name}: the descriptor of PASID {pasid} stays as it was"
            elif cd_kind(new) != "quiet" or Cd0.asid.get(new[0]) != Cd0.asid.get(old[0]):
                yield f"{dev.name}: the descriptor of PASID {pasid} is {cd_kind(new)}, or its ASID is another"
            if watch.dma(dev, VA, pasid) != "F_TRANSLATION":
                yield f"{dev.name} still reaches the memory of the process: {watch.dma(dev, VA, pasid)}"
            if watch.machine.port.take_events():
                yield f"{dev.name}: what it does now is recorded"


@invariant("73", "a process keeps its PASID, and a second binding of a device to it is the first one counted up")
def pasid_is_stable(watch: Watch, step: Step) -> Iterator[str]:
    if step.name != "bind" or not isinstance(step.result, IommuSva):
        return
    same = [h for h in watch.handles if h.mm is step.mm and h.dev is step.dev]
    if len(same) > 1:
        yield "two handles for one device and one process"
    pasids = {iommu_sva_get_pasid(handle) for handle in watch.handles if handle.mm is step.mm}
    if len(pasids) > 1 or any(pasid <= 0 for pasid in pasids):
        yield f"the process has PASIDs {sorted(pasids)}"
    earlier = [s for s in watch.steps if s.name == "bind" and s.result is step.result]
    ended = [s for s in watch.steps if s.name == "unbind" and s.dev is step.dev and s.mm is step.mm]
    if step.result.users != len(earlier) - len(ended) and not ended:
        yield f"bound {len(earlier)} times, counted {step.result.users}"


@invariant("listed", "a descriptor becomes valid only when its domain knows to whom invalidations have to go")
def listed_first(watch: Watch, step: Step) -> Iterator[str]:
    for what in step.unlisted:
        yield f"{what} is valid, and its domain does not know"


@invariant("published", "a leaf of descriptors is published when its content is there")
def leaves_are_ready(watch: Watch, step: Step) -> Iterator[str]:
    yield from step.unready


@invariant("asid", "every valid descriptor has the ASID and the tables of a living domain")
def asids_are_owned(watch: Watch, step: Step) -> Iterator[str]:
    smmu = watch.machine.smmu
    for address in dict.fromkeys(e.address for e in watch.log.events if isinstance(e, Store)):
        place = watch.place(address)
        entry = watch.entry(address)
        if place is None or place.kind != "cd" or not Cd0.v.get(entry[0]):
            continue
        domain = smmu.asids.get(Cd0.asid.get(entry[0]))
        if domain is None:
            yield f"{place.dev.name} PASID {place.ssid} has an ASID that is free"
        elif cd_kind(entry) == "live" and entry[1] & ((1 << 52) - 16) != domain.pgtable.root << 12:
            yield f"{place.dev.name} PASID {place.ssid} has tables of another domain"
