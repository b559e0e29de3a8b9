# SPDX-License-Identifier: GPL-2.0-or-later
"""Random programs for VT-d units: what drivers do, what goes wrong in tables, and what stale caches would show.

A program is made of *scenes*, a few steps that belong together.  Superpages form only from aligned, contiguous runs,
so ranges come from a small pool of places and are often continued where the last one ended.
"""

import random
from collections.abc import Callable, Sequence
from typing import Final

from oracle.intent import Intent, Range
from oracle.program import MACHINE, Step, step
from oracle.vtd_rig import DATA_FIRST, DATA_LAST, MAILBOX_DFN

DEVICES: Final = 8
CONTEXTS: Final = 4
_SIZES: Final = (1, 1, 2, 3, 7, 16, 64, 511, 512, 512, 513, 1024, 1536)
_GIGABYTE: Final = 1 << 18


def machine(rng: random.Random) -> Step:
    """Which machine to start: address bits, caching mode, snoop control."""
    return step(MACHINE, rng.choice((48, 48, 39)), int(rng.random() < 0.25), int(rng.random() < 0.25))


class Generator:
    """Scenes without end for a machine with ``bits`` address bits."""

    def __init__(self, rng: random.Random, bits: int) -> None:
        self._rng: Final = rng
        self._last_dfn: Final = (1 << bits - 12) - 1
        self._bits: Final = bits
        bases = [0, 0x200, 0x1F0, 0x3_FE00, 0x4_0000, 0x7FF_FE00, self._last_dfn - 0x7FF]
        self._bases: Final = [*bases, *(rng.randrange(self._last_dfn - 0x800) & ~511 for _ in range(3))]
        self._contexts: Final[dict[int, Intent]] = {}
        self._devices: Final[dict[int, int]] = {}
        """Context of each device that is in one."""
        self._last: tuple[int, Range] | None = None
        self._scenes: Final[tuple[tuple[int, Callable[[], list[Step]]], ...]] = (
            (16, self._burst),
            (6, self._map_and_look),
            (5, self._continue),
            (5, self._unmap),
            (2, self._move),
            (1, self._drop),
            (2, self._fold_and_split),
            (1, self._gigabyte),
            (8, self._flip),
            (6, self._stale),
            (3, self._descriptors),
        )
        self._weights: Final = [weight for weight, _ in self._scenes]

    def scene(self) -> list[Step]:
        """The next few steps."""
        if len(self._contexts) < 2 or len(self._devices) < 5:
            return self._set_up()
        return self._rng.choices(self._scenes, self._weights)[0][1]()

    # --------------------------------------------------------------------------------------------- software

    def _set_up(self) -> list[Step]:
        """A context that is missing, and devices in it."""
        rng = self._rng
        number = rng.randint(1, CONTEXTS)
        steps = []
        if number not in self._contexts:
            self._contexts[number] = Intent()
            steps.append(step("context", number))
        for which in rng.sample(range(DEVICES), 4):
            self._devices[which] = number
            steps.append(step("attach", which, number))
        return steps

    def _range(self) -> Range:
        rng = self._rng
        pages = rng.choice(_SIZES)
        dfn = rng.choice(self._bases) + rng.choice((0, 0, 0, 1, 5, 512, 1000))
        dfn = min(dfn, self._last_dfn + 1 - pages)
        mfn = rng.randrange(DATA_FIRST, DATA_LAST - 2048)
        alike = rng.random()
        if alike < 0.6:
            mfn = mfn & ~511 | dfn & 511
        elif alike < 0.7:
            mfn = DATA_FIRST | dfn & _GIGABYTE - 1 if dfn & _GIGABYTE - 1 < DATA_LAST - DATA_FIRST - 2048 else mfn
        return Range(dfn, mfn, pages, rng.choice((1, 2, 3, 3, 3, 3)))

    def _map(self, number: int, new: Range) -> list[Step]:
        """Map, and keep in mind what is certainly mapped now (up to the first page that was mapped before)."""
        intent = self._contexts[number]
        free = intent.room(new.dfn, new.pages)
        if new.dfn <= MAILBOX_DFN < new.dfn + free:
            free = MAILBOX_DFN - new.dfn
        intent.add(new.dfn, new.mfn, free, new.permission)
        if free == new.pages:
            self._last = (number, new)
        return [step("map", number, *new)]

    def _map_and_look(self) -> list[Step]:
        number = self._rng.choice(list(self._contexts))
        new = self._range()
        return [*self._map(number, new), *self._look(number, new)]

    def _continue(self) -> list[Step]:
        """Go on where the last mapping ended, which is how superpages come about."""
        if self._last is None or self._last[0] not in self._contexts:
            return self._map_and_look()
        number, old = self._last
        pages = self._rng.choice((1, 16, 512 - (old.dfn + old.pages & 511), 512, 1024))
        new = Range(old.dfn + old.pages, old.mfn + old.pages, pages, old.permission)
        if new.dfn + pages > self._last_dfn + 1 or new.mfn + pages > DATA_LAST:
            return self._map_and_look()
        return [*self._map(number, new), *self._look(number, new)]

    def _unmap(self) -> list[Step]:
        number = self._rng.choice(list(self._contexts))
        return self._unmap_from(number)

    def _unmap_from(self, number: int) -> list[Step]:
        """Unmap all or a slice of something, with DMA to it before and after."""
        rng = self._rng
        intent = self._contexts[number]
        ranges = intent.ranges()
        if not ranges:
            return self._map_and_look()
        old = rng.choice(ranges)
        start = rng.choice((0, 0, 1, old.pages // 2, old.pages - 1)) % old.pages
        pages = rng.choice((1, old.pages - start, max((old.pages - start) // 2, 1)))
        part = Range(old.dfn + start, old.mfn + start, pages, old.permission)
        before = self._look(number, part)
        intent.remove(part.dfn, pages)
        return [*before, step("unmap", number, part.dfn, pages), *self._look(number, part)]

    def _move(self) -> list[Step]:
        """A device to another context, with DMA to the same address before and after."""
        rng = self._rng
        which = rng.choice(list(self._devices))
        number = rng.choice(list(self._contexts))
        iova = self._address(self._devices[which])
        self._devices[which] = number
        write = rng.choice(("read", "write"))
        return [step(write, which, iova), step("attach", which, number), step(write, which, iova)]

    def _drop(self) -> list[Step]:
        """A device out of its context, or a whole context away."""
        rng = self._rng
        which = rng.choice(list(self._devices))
        number = self._devices[which]
        iova = self._address(number)
        gone = [which]
        steps = [step("read", which, iova)]
        if rng.random() < 0.5:
            steps.append(step("detach", which))
        else:
            gone = [device for device, context in self._devices.items() if context == number]
            del self._contexts[number]
            steps.append(step("free", number))
        for device in gone:
            del self._devices[device]
        return [*steps, step("read", which, iova), step("write", which, iova)]

    def _fold_and_split(self) -> list[Step]:
        """2 MiB in pieces until it folds, then a page out of the middle and in again, with DMA all the while."""
        rng = self._rng
        number = rng.choice(list(self._contexts))
        base = rng.choice(self._bases) & ~511
        frame = rng.randrange(DATA_FIRST >> 9, (DATA_LAST >> 9) - 1) << 9
        old = Range(base, frame, 512, 3)
        steps = [step("unmap", number, base, 1)]
        self._contexts[number].remove(base, 1)
        for first in range(0, 512, 128):
            steps += self._map(number, Range(base + first, frame + first, 128, 3))
            steps += self._look(number, Range(base, frame, first + 128, 3))
        middle = rng.randrange(512)
        steps.append(step("unmap", number, base + middle, 1))
        self._contexts[number].remove(base + middle, 1)
        steps += self._look(number, Range(base + middle, frame + middle, 1, 3))
        steps += self._map(number, Range(base + middle, frame + middle, 1, 3))
        return [*steps, *self._look(number, old)]

    def _gigabyte(self) -> list[Step]:
        """A whole 1 GiB page, and perhaps a hole in it."""
        rng = self._rng
        number = rng.choice(list(self._contexts))
        slot = rng.randrange(2, 200)
        new = Range(slot << 18, DATA_FIRST, _GIGABYTE, 3)
        if (
            any(
                old.dfn < new.dfn + new.pages and new.dfn < old.dfn + old.pages
                for old in self._contexts[number].ranges()
            )
            or new.dfn <= MAILBOX_DFN < new.dfn + new.pages
        ):
            return self._unmap_from(number)
        self._contexts[number].add(*new)
        steps = [step("map", number, *new), *self._look(number, new)]
        cut = rng.randrange(_GIGABYTE)
        self._contexts[number].remove(new.dfn + cut, 1)
        steps.append(step("unmap", number, new.dfn + cut, 1))
        steps += self._look(number, Range(new.dfn + cut, new.mfn + cut, 1, 3))
        if rng.random() < 0.7:
            self._contexts[number].remove(new.dfn, new.pages)
            steps += [
                step("unmap", number, new.dfn, cut),
                step("unmap", number, new.dfn + cut + 1, _GIGABYTE - cut - 1),
            ]
            steps += self._look(number, new)
        return steps

    # -------------------------------------------------------------------------------------------------- DMA

    def _device_in(self, number: int) -> int | None:
        inside = [which for which, context in self._devices.items() if context == number]
        return self._rng.choice(inside) if inside else None

    def _address(self, number: int) -> int:
        """An I/O virtual address near something that the context maps, or anywhere."""
        rng = self._rng
        ranges = self._contexts[number].ranges()
        if not ranges or rng.random() < 0.1:
            return rng.choice((rng.randrange(1 << self._bits), rng.randrange(1 << 64), 1 << self._bits)) & ~7
        near = rng.choice(ranges)
        dfn = near.dfn + rng.choice((-1, 0, 0, 1, near.pages - 1, near.pages, rng.randrange(near.pages)))
        return (dfn << 12 | rng.choice((0, 8, 0xFF8))) & (1 << 64) - 8

    def _burst(self) -> list[Step]:
        """All devices at once, most of them where something is mapped."""
        rng = self._rng
        arguments: list[int] = []
        for which, number in self._devices.items():
            ranges = self._contexts[number].ranges()
            if ranges and rng.random() < 0.9:
                old = rng.choice(ranges)
                iova = (old.dfn + rng.randrange(old.pages) << 12) + 8 * rng.randrange(512)
                write = old.permission - 1 if old.permission < 3 else rng.randrange(2)
            else:
                iova, write = self._address(number), rng.randrange(2)
            arguments += (which, iova, write)
        return [step("burst", *arguments)]

    def _look(self, number: int, around: Range) -> list[Step]:
        """DMA at the edges of a range and in it."""
        which = self._device_in(number)
        if which is None:
            return []
        rng = self._rng
        places = [0, around.pages - 1, rng.randrange(around.pages), around.pages, -1]
        chosen = rng.sample(places, rng.randint(1, 4))
        return [
            step(rng.choice(("read", "write")), which, (max(around.dfn + place, 0) << 12) + 8 * rng.randrange(512))
            for place in chosen
        ]

    # -------------------------------------------------------------------------------------------- tampering

    def _victim(self) -> tuple[int, int] | None:
        """(device, address) with something mapped."""
        which = self._rng.choice(list(self._devices))
        ranges = self._contexts[self._devices[which]].ranges()
        if not ranges:
            return None
        old = self._rng.choice(ranges)
        return which, old.dfn + self._rng.randrange(old.pages) << 12

    def _flip(self) -> list[Step]:
        """A few wrong bits in the entries of one walk, all caches empty: both halves read the same tables."""
        rng = self._rng
        victim = self._victim()
        if victim is None:
            return self._map_and_look()
        which, iova = victim
        steps = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            place = rng.choice((0, 1, 2, 3, 4, 5))
            steps.append(step("flip", which, iova, place, rng.randrange(128 if place < 2 else 64)))
        steps.append(step("forget"))
        for _ in range(rng.randint(1, 3)):
            there = iova + 8 * rng.randrange(512) + rng.choice((0, 0, 0, 4096, 1 << 21))
            # A cached right that denies is one of the model's deviations: each access starts with empty caches.
            steps += [step(rng.choice(("read", "write")), which, there), step("forget")]
        return [*steps, step("restore"), step("forget"), step("write", which, iova)]

    def _stale(self) -> list[Step]:
        """An entry changes behind a cached translation; commands that miss it, then one that does not."""
        rng = self._rng
        victim = self._victim()
        if victim is None:
            return self._map_and_look()
        which, iova = victim
        access = rng.choice(("read", "write"))
        place = rng.choice((3, 4, 5)) if self._bits == 48 else rng.choice((3, 4))
        steps = [step("forget"), step(access, which, iova)]
        steps.append(step("flip", which, iova, place, rng.choice((0, 1, 12, 13, 21, 22, 30))))
        order = rng.randrange(4)
        misses: Sequence[Step] = (
            step("flush-pages", which, iova, 0, 0, 1),
            step("flush-pages", which, iova + (8192 << order), order, 0, 0),
            step("flush-domain", which, 2),
            step("flush-device", which, 3, 0),
            step(access, which, iova),
        )
        steps += rng.sample(misses, rng.randint(1, 4))
        steps.append(step(access, which, iova))
        hits: Sequence[Step] = (
            step("flush-pages", which, iova, order, 0, 0),
            step("flush-pages", which, iova, 18, 0, 0),
            step("flush-domain", which, 0),
            step("descriptor", 0xD2, 0),
        )
        steps += [rng.choice(hits), step(access, which, iova), step("restore"), step("forget")]
        return [*steps, step(access, which, iova)]

    def _descriptors(self) -> list[Step]:
        """Invalidation descriptors with wrong bits in them."""
        rng = self._rng
        good: Sequence[tuple[int, int]] = (
            (0x11, 0),
            (0x31 | rng.randrange(1 << 16) << 32 | rng.randrange(4) << 48, 0),
            (0xD2, 0),
            (0xE2 | rng.randrange(8) << 16, 0),
            (0xF2 | rng.randrange(8) << 16, rng.randrange(1 << 30) << 12 | rng.randrange(20)),
            (0x4, 0),
            (0x14 | rng.randrange(1 << 16) << 32, 0),
        )
        steps = []
        for _ in range(rng.randint(1, 3)):
            low, high = rng.choice(good)
            # QEMU 7.2 does not look at reserved bits of interrupt-entry descriptors (type 4): those stay good.
            for _ in range(rng.choice((0, 1, 1, 2)) if low & 0xF != 4 else 0):
                bit = rng.randrange(4, 128)
                if bit < 64 and bit not in (9, 10, 11):  # those belong to the type
                    low ^= 1 << bit
                elif bit >= 64:
                    high ^= 1 << bit - 64
            steps.append(step("descriptor", low, high))
        return steps
