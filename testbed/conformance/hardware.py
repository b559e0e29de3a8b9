# SPDX-License-Identifier: GPL-2.0-or-later
"""Hardware halves: what every :class:`machine.iommu.unit.IommuUnit` must do whatever software does to it."""

import random

from machine.iommu.unit import Fault
from testbed.conformance.clause import Clause, ConformanceError, require
from testbed.conformance.rig import Rig

_TRIES = 400


def registers_are_total(rig: Rig) -> None:
    """Any register access of any size at any offset with any value is answered, never an exception."""
    unit, rng = rig.unit, random.Random(1)
    for _ in range(_TRIES):
        offset = rng.choice((rng.randrange(0, 0x300, 4), rng.randrange(unit.register_size)))
        size = rng.choice((1, 2, 4, 8))
        try:
            value = unit.read(offset, size)
            unit.write(offset, size, rng.choice((0, (1 << 8 * size) - 1, rng.getrandbits(8 * size))))
        except Exception as error:
            raise ConformanceError(f"{size} bytes at register {offset:#x}: {type(error).__name__}: {error}") from None
        require(0 <= value < 1 << 8 * size, f"register {offset:#x} read as {value:#x} with {size} bytes")


def translation_is_total(rig: Rig) -> None:
    """Any request after any register values over any bytes in RAM is translated or blocked, never an exception."""
    unit, rng = rig.unit, random.Random(2)
    rig.attached()
    for _ in range(_TRIES):
        rig.memory.write64(rng.randrange(rig.first_frame << 12, rig.frames.frames << 12, 8), rng.getrandbits(64))
        sid, iova, write = rig.any_requester(rng), rng.getrandbits(rng.choice((20, 32, 48, 64))), rng.random() < 0.5
        try:
            answer = unit.translate(sid, iova, write)
            unit.walk(sid, iova, write)
        except Exception as error:
            raise ConformanceError(f"request {sid:#x} {iova:#x}: {type(error).__name__}: {error}") from None
        require(isinstance(answer, (int, Fault)), f"translate() answered {answer!r}")


def nothing_attached_means_nothing_passes(rig: Rig) -> None:
    """Once the driver has switched the unit on, requests of devices that it attached nowhere are blocked."""
    assert rig.driver is not None
    for sid in rig.some_requesters:
        for write in (False, True):
            answer = rig.unit.translate(sid, 0x1000, write)
            require(isinstance(answer, Fault), f"requester {sid:#x} reached {answer!r} without being attached")


def walk_changes_nothing(rig: Rig) -> None:
    """Explaining a request fills no cache, records no fault and changes no register or byte of RAM."""
    context, _ = rig.attached()
    rig.map(context, 0x40, 0x2000)
    rig.memory.snapshot()
    faults, hits, misses = rig.unit.counters.faults, rig.unit.counters.iotlb_hits, rig.unit.counters.iotlb_misses
    for iova in (0x40123, 0x41000, 0):
        rig.unit.walk(rig.requester, iova, True)
    after = rig.unit.counters
    require((after.faults, after.iotlb_hits, after.iotlb_misses) == (faults, hits, misses), "walk() counted something")
    require(rig.memory.reset() == 0, "walk() wrote to RAM")
    require(not rig.driver.take_faults(), "walk() recorded a fault")


def walk_and_translate_agree(rig: Rig) -> None:
    """With caches that software kept current, the explanation ends where the request does."""
    context, _ = rig.attached()
    rng = random.Random(3)
    for k in range(40):
        rig.map(context, rng.randrange(1 << 20) * 64 + k, 0x2000 + k, 1, rng.choice((1, 2, 3)))
    known = [dfn for dfn, _, _ in rig.table(context).leaves()]
    for dfn in [*known, *(rng.randrange(1 << 26) for _ in range(40))]:
        for write in (False, True):
            answer = rig.unit.translate(rig.requester, dfn << 12 | 0x88, write)
            walk = rig.unit.walk(rig.requester, dfn << 12 | 0x88, write)
            require(
                walk.maddr == (None if isinstance(answer, Fault) else answer),
                f"dfn {dfn:#x}: translated to {answer!r}, explained as {walk.maddr!r}",
            )


def a_restored_unit_behaves_as_the_saved_one(rig: Rig) -> None:
    """save() and restore() bring registers, caches and counters back."""
    context, _ = rig.attached()
    rig.map(context, 0x10, 0x2010)
    before = rig.unit.translate(rig.requester, 0x10000, True)
    state, hits = rig.unit.save(), rig.unit.counters.iotlb_hits
    registers = [rig.unit.read(offset, 4) for offset in range(0, 0x100, 4)]
    for offset in range(0, 0x100, 4):
        rig.unit.write(offset, 4, 0xFFFF_FFFF)
    rig.unit.restore(state)
    again = [rig.unit.read(offset, 4) for offset in range(0, 0x100, 4)]
    require(registers == again, "registers differ after restore()")
    require(rig.unit.counters.iotlb_hits == hits, "counters differ after restore()")
    require(rig.unit.translate(rig.requester, 0x10000, True) == before, "a translation differs after restore()")


HARDWARE_CLAUSES: tuple[Clause, ...] = (
    registers_are_total,
    translation_is_total,
    nothing_attached_means_nothing_passes,
    walk_changes_nothing,
    walk_and_translate_agree,
    a_restored_unit_behaves_as_the_saved_one,
)
