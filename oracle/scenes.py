# SPDX-License-Identifier: GPL-2.0-or-later
"""What drivers do, as random steps: map, continue, unmap, move devices, fold and split, with DMA in between.

A program is made of *scenes*, a few steps that belong together.  Superpages form only from aligned, contiguous runs,
so ranges come from a small pool of places and are often continued where the last one ended.
"""

import random
from collections.abc import Callable, Sequence
from typing import Final

from oracle.intent import Intent, Range
from oracle.program import Step, step

CONTEXTS: Final = 4
_SIZES: Final = (1, 1, 2, 3, 7, 16, 64, 511, 512, 512, 513, 1024, 1536)
_GIGABYTE: Final = 1 << 18

Weighted = tuple[int, Callable[[], list[Step]]]
"""How often a scene comes, and the scene."""


class Scenes:
    """Scenes without end for a machine with ``bits`` bits of input address and ``devices`` devices.

    ``frames``: those that programs map, the first of them at a multiple of 1 GiB; ``fixed``: a device frame that is
    mapped already; ``permissions``: those to choose from.  A subclass says how DMA is written and adds scenes.
    """

    def __init__(
        self,
        rng: random.Random,
        bits: int,
        devices: int,
        frames: range,
        fixed: int | None,
        permissions: Sequence[int] = (1, 2, 3, 3, 3, 3),
    ) -> None:
        self.rng: Final = rng
        self._bits: Final = bits
        self.attached: Final[dict[int, int]] = {}
        """Context of each device that is in one."""
        self.contexts: Final[dict[int, Intent]] = {}
        self._device_count: Final = devices
        self._frames: Final = frames
        self._fixed: Final = fixed
        self._permissions: Final = permissions
        self._last_dfn: Final = (1 << bits - 12) - 1
        bases = [0, 0x200, 0x1F0, 0x3_FE00, 0x4_0000, self._last_dfn - 0x7FF, (self._last_dfn >> 1) - 0x3FF & ~511]
        self._bases: Final = [*bases, *(rng.randrange(self._last_dfn - 0x800) & ~511 for _ in range(3))]
        self._last: tuple[int, Range] | None = None
        self._scenes: Final[tuple[Weighted, ...]] = (
            (6, self._map_and_look),
            (5, self._continue),
            (5, self._unmap),
            (2, self._move),
            (1, self._drop),
            (2, self._fold_and_split),
            (1, self._gigabyte),
            *self.more(),
        )
        self._weights: Final = [weight for weight, _ in self._scenes]

    def more(self) -> Sequence[Weighted]:
        """Scenes of the subclass."""
        return ()

    def look(self, number: int, around: Range) -> list[Step]:
        """DMA in context ``number`` at the edges of a range and in it."""
        raise NotImplementedError

    def access(self, which: int, iova: int) -> list[Step]:
        """DMA of device ``which`` to one address."""
        raise NotImplementedError

    def scene(self) -> list[Step]:
        """The next few steps."""
        if len(self.contexts) < 2 or len(self.attached) * 2 <= self._device_count:
            return self._set_up()
        return self.rng.choices(self._scenes, self._weights)[0][1]()

    def _set_up(self) -> list[Step]:
        """A context that is missing, and devices in it."""
        rng = self.rng
        number = rng.randint(1, CONTEXTS)
        steps = []
        if number not in self.contexts:
            self.contexts[number] = Intent()
            steps.append(step("context", number))
        for which in rng.sample(range(self._device_count), 4):
            self.attached[which] = number
            steps.append(step("attach", which, number))
        return steps

    def _range(self) -> Range:
        rng = self.rng
        pages = rng.choice(_SIZES)
        dfn = rng.choice(self._bases) + rng.choice((0, 0, 0, 1, 5, 512, 1000))
        dfn = min(dfn, self._last_dfn + 1 - pages)
        first = self._frames.start
        mfn = rng.randrange(first, self._frames.stop - 2048)
        alike = rng.random()
        if alike < 0.6:
            mfn = mfn & ~511 | dfn & 511
        elif alike < 0.7:
            offset = dfn & _GIGABYTE - 1
            mfn = first + offset if offset < len(self._frames) - 2048 else mfn
        return Range(dfn, mfn, pages, rng.choice(self._permissions))

    def _map(self, number: int, new: Range) -> list[Step]:
        """Map, and keep in mind what is certainly mapped now (up to the first page that was mapped before)."""
        intent = self.contexts[number]
        free = intent.room(new.dfn, new.pages)
        if self._fixed is not None and new.dfn <= self._fixed < new.dfn + free:
            free = self._fixed - new.dfn
        intent.add(new.dfn, new.mfn, free, new.permission)
        if free == new.pages:
            self._last = (number, new)
        return [step("map", number, *new)]

    def _map_and_look(self) -> list[Step]:
        number = self.rng.choice(list(self.contexts))
        new = self._range()
        return [*self._map(number, new), *self.look(number, new)]

    def _continue(self) -> list[Step]:
        """Go on where the last mapping ended, which is how superpages come about."""
        if self._last is None or self._last[0] not in self.contexts:
            return self._map_and_look()
        number, old = self._last
        pages = self.rng.choice((1, 16, 512 - (old.dfn + old.pages & 511), 512, 1024))
        new = Range(old.dfn + old.pages, old.mfn + old.pages, pages, old.permission)
        if new.dfn + pages > self._last_dfn + 1 or new.mfn + pages > self._frames.stop:
            return self._map_and_look()
        return [*self._map(number, new), *self.look(number, new)]

    def _unmap(self) -> list[Step]:
        number = self.rng.choice(list(self.contexts))
        return self._unmap_from(number)

    def _unmap_from(self, number: int) -> list[Step]:
        """Unmap all or a slice of something, with DMA to it before and after."""
        rng = self.rng
        intent = self.contexts[number]
        ranges = intent.ranges()
        if not ranges:
            return self._map_and_look()
        old = rng.choice(ranges)
        start = rng.choice((0, 0, 1, old.pages // 2, old.pages - 1)) % old.pages
        pages = rng.choice((1, old.pages - start, max((old.pages - start) // 2, 1)))
        part = Range(old.dfn + start, old.mfn + start, pages, old.permission)
        before = self.look(number, part)
        intent.remove(part.dfn, pages)
        return [*before, step("unmap", number, part.dfn, pages), *self.look(number, part)]

    def _move(self) -> list[Step]:
        """A device to another context, with DMA to the same address before and after."""
        rng = self.rng
        which = rng.choice(list(self.attached))
        number = rng.choice(list(self.contexts))
        iova = self.address(self.attached[which])
        before = self.access(which, iova)
        self.attached[which] = number
        return [*before, step("attach", which, number), *self.access(which, iova)]

    def _drop(self) -> list[Step]:
        """A device out of its context, or a whole context away."""
        rng = self.rng
        which = rng.choice(list(self.attached))
        number = self.attached[which]
        iova = self.address(number)
        gone = [which]
        steps = self.access(which, iova)
        if rng.random() < 0.5:
            steps.append(step("detach", which))
        else:
            gone = [device for device, context in self.attached.items() if context == number]
            del self.contexts[number]
            steps.append(step("free", number))
        steps += self.access(which, iova)
        for device in gone:
            del self.attached[device]
        return steps

    def _fold_and_split(self) -> list[Step]:
        """2 MiB in pieces until it folds, then a page out of the middle and in again, with DMA all the while."""
        rng = self.rng
        number = rng.choice(list(self.contexts))
        base = rng.choice(self._bases) & ~511
        frame = rng.randrange(self._frames.start >> 9, (self._frames.stop >> 9) - 1) << 9
        old = Range(base, frame, 512, 3)
        steps = [step("unmap", number, base, 1)]
        self.contexts[number].remove(base, 1)
        for first in range(0, 512, 128):
            steps += self._map(number, Range(base + first, frame + first, 128, 3))
            steps += self.look(number, Range(base, frame, first + 128, 3))
        middle = rng.randrange(512)
        steps.append(step("unmap", number, base + middle, 1))
        self.contexts[number].remove(base + middle, 1)
        steps += self.look(number, Range(base + middle, frame + middle, 1, 3))
        steps += self._map(number, Range(base + middle, frame + middle, 1, 3))
        return [*steps, *self.look(number, old)]

    def _gigabyte(self) -> list[Step]:
        """A whole 1 GiB page, and perhaps a hole in it."""
        rng = self.rng
        number = rng.choice(list(self.contexts))
        slots = self._last_dfn + 1 >> 18
        new = Range(rng.randrange(2, slots) << 18 if slots > 2 else 0, self._frames.start, _GIGABYTE, 3)
        taken = self._fixed is not None and new.dfn <= self._fixed < new.dfn + new.pages
        if taken or self.contexts[number].room(new.dfn, new.pages) < new.pages:
            return self._unmap_from(number)
        self.contexts[number].add(*new)
        steps = [step("map", number, *new), *self.look(number, new)]
        cut = rng.randrange(_GIGABYTE)
        self.contexts[number].remove(new.dfn + cut, 1)
        steps.append(step("unmap", number, new.dfn + cut, 1))
        steps += self.look(number, Range(new.dfn + cut, new.mfn + cut, 1, 3))
        if rng.random() < 0.7:
            self.contexts[number].remove(new.dfn, new.pages)
            steps += [
                step("unmap", number, new.dfn, cut),
                step("unmap", number, new.dfn + cut + 1, _GIGABYTE - cut - 1),
            ]
            steps += self.look(number, new)
        return steps

    def device_in(self, number: int) -> int | None:
        inside = [which for which, context in self.attached.items() if context == number]
        return self.rng.choice(inside) if inside else None

    def address(self, number: int) -> int:
        """An I/O virtual address near something that the context maps, or anywhere."""
        rng = self.rng
        ranges = self.contexts[number].ranges()
        if not ranges or rng.random() < 0.1:
            return rng.choice((rng.randrange(1 << self._bits), rng.randrange(1 << 64), 1 << self._bits)) & ~7
        near = rng.choice(ranges)
        dfn = near.dfn + rng.choice((-1, 0, 0, 1, near.pages - 1, near.pages, rng.randrange(near.pages)))
        return (dfn << 12 | rng.choice((0, 8, 0xFF8))) & (1 << 64) - 8


class DmaScenes(Scenes):
    """Scenes for rigs whose steps are single reads and writes of devices."""

    def burst(self) -> list[Step]:
        """All devices at once, most of them where something is mapped."""
        rng = self.rng
        arguments: list[int] = []
        for which, number in self.attached.items():
            ranges = self.contexts[number].ranges()
            if ranges and rng.random() < 0.9:
                old = rng.choice(ranges)
                iova = (old.dfn + rng.randrange(old.pages) << 12) + 8 * rng.randrange(512)
                write = old.permission - 1 if old.permission < 3 else rng.randrange(2)
            else:
                iova, write = self.address(number), rng.randrange(2)
            arguments += (which, iova, write)
        return [step("burst", *arguments)]

    def look(self, number: int, around: Range) -> list[Step]:
        """DMA at the edges of a range and in it."""
        which = self.device_in(number)
        if which is None:
            return []
        rng = self.rng
        places = [0, around.pages - 1, rng.randrange(around.pages), around.pages, -1]
        chosen = rng.sample(places, rng.randint(1, 4))
        return [
            step(rng.choice(("read", "write")), which, (max(around.dfn + place, 0) << 12) + 8 * rng.randrange(512))
            for place in chosen
        ]

    def access(self, which: int, iova: int) -> list[Step]:
        return [step(word, which, iova) for word in self.rng.choice((("read",), ("write",), ("read", "write")))]

    def victim(self) -> tuple[int, int] | None:
        """(device, address) with something mapped."""
        which = self.rng.choice(list(self.attached))
        ranges = self.contexts[self.attached[which]].ranges()
        if not ranges:
            return None
        old = self.rng.choice(ranges)
        return which, old.dfn + self.rng.randrange(old.pages) << 12
