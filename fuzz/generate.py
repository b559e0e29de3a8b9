# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs out of a random number generator that knows what the operations mean.

What makes it find things: contexts, devices and mappings that exist are used again; each program has its own weights,
with some operations missing altogether (swarm testing); the next mapping often continues the last one; runs that are
aligned and contiguous form superpages; and now and then a number is one of those at which code goes wrong.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from abi.versions import Abi
from fuzz import domain_generate, machines
from fuzz.choices import Choices
from fuzz.numbers import (
    BASES,
    CONTIGUOUS,
    DEVICES,
    EDGES,
    FIRST_FRAME,
    FLAGS,
    MMIO,
    PAGES,
    PATTERNS,
    SIZES,
    fitting,
)
from fuzz.program import Bench
from fuzz.verbs import Op
from hypervisor import profile as profiles

_WEIGHTS: Final = {
    "alloc": 3,
    "free": 2,
    "attach": 4,
    "map": 14,
    "unmap": 10,
    "dma": 16,
    "again": 8,
    "superpage": 4,
    "slice": 4,
    "long": 0.3,
    "edge": 0.5,
    "remove": 1,
    "p2m": 0.4,
    "remote": 0.5,
    "progress": 0.4,
    "fail": 1,
    "preempt": 1,
    "lookup": 2,
    "flush": 2,
    "query": 0.3,
    "regions": 0.2,
    "noop": 0.3,
    "init": 0.3,
    "raw": 0.7,
}
_OPTIONAL: Final = tuple(name for name in _WEIGHTS if name not in ("alloc", "map", "dma"))


class Generator(Choices):
    """Programs for one bench; equal seeds give equal programs, whatever PYTHONHASHSEED is."""

    def __init__(self, bench: Bench, abi: Abi, seed: int) -> None:
        super().__init__(abi.max_nr_pages, seed, sets_up=abi.has("init"))
        self.bench: Final = bench
        self._abi: Final = abi
        self._verbs: Final[set[str]] = set(_WEIGHTS) - {
            verb
            for verb, subop in (
                ("lookup", "lookup_page"),
                ("flush", "flush_pages"),
                ("init", "init"),
                ("remote", "remote_cmd"),
                ("progress", "init"),
            )
            if not abi.has(subop)
        }
        if bench.defects or profiles.get(bench.profile).defects:
            self._verbs.discard("progress")  # these bits are this hypervisor's own: no posted one knows them
        self._make: Final[dict[str, Callable[[], Op]]] = {
            "alloc": self._alloc,
            "free": self._free,
            "attach": self._attach,
            "map": self._map,
            "unmap": self._unmap,
            "dma": self._dma,
            "again": self._again,
            "superpage": self._superpage,
            "slice": self._slice,
            "long": self._long,
            "edge": self._edge,
            "remove": self._remove,
            "fail": self._fail,
            "p2m": self._retype,
            "remote": self._remote,
            "progress": lambda: ("progress", self._pick((0x100, 0x100, 0x200, 0x300, 0x1000, 0xFFFF_FF00))),
            "preempt": lambda: ("preempt", self._pick(PATTERNS)),
            "lookup": lambda: ("lookup", self._ctx(), self._somewhere(), *self._arg()),
            "flush": self._flush,
            "regions": lambda: (
                "regions",
                self._rng.choice(DEVICES),
                self._pick((0, 0, 1, 1, 2)),
                self._pick((0, 1, 8)),
            ),
            "query": lambda: ("query", *self._arg()),
            "noop": lambda: ("noop", "plain", 0),
            "init": lambda: (
                "init",
                self._pick((0, 1, 4, 0xFFFE, 0xFFFF, 0xFFFFFFFF)),
                self._pick((0, 3, 6, 60)),
                *self._arg(),
            ),
            "raw": self._raw,
            **{verb: partial(self._of_domains, verb) for verb in domain_generate.WEIGHTS},
        }
        self._machine: Final = machines.get(bench.machine)
        self._pending: list[Op] = []
        self._access = 3

    def program(self, length: int) -> tuple[Op, ...]:
        """``length`` operations."""
        rng = self._rng
        self._pending.clear()
        self._domains.begin()
        self._look_around()
        dropped = {name for name in _OPTIONAL if rng.random() < 0.35}
        chosen = {name: weight for name, weight in _WEIGHTS.items() if name in self._verbs and name not in dropped}
        if rng.random() < domain_generate.SHARE:
            chosen.update((name, weight) for name, weight in domain_generate.WEIGHTS.items() if rng.random() > 0.25)
        names = list(chosen)
        weights = [weight * rng.choice((0.3, 1, 1, 3)) for weight in chosen.values()]
        self._base = rng.choice(BASES)
        self._access = rng.choice((3, 3, 3, 1, 2))
        if self._abi.map_no_flush and rng.random() < 0.5:
            self._access |= self._abi.map_no_flush
        self._wild = rng.choice((0.0, 0.01, 0.05, 0.2))
        ops: list[Op] = []
        if self.bench.contexts is None and self._abi.has("init") and rng.random() < 0.95:
            if rng.random() < 0.1:
                ops.append(("fault", rng.choice(("xenheap:1", "xenheap:2", "xenheap:3"))))
            elif rng.random() < 0.2:  # too large a wish first
                ops.append(("init", rng.choice((1, 4, 0xFFFF)), rng.choice((12, 20, 60)), "plain", 0))
            ops.append(("init", rng.choice((1, 3, 4, 16)), rng.choice((0, 2, 4, 6, 8)), "plain", 0))
        for _ in range(rng.randint(1, 3)):
            ops.append(self._alloc())
        while len(ops) < 6 and rng.random() < 0.7:
            ops.append(("attach", rng.choice(DEVICES), self._ctx(), 0, "plain", 0))
        make = [self._make[name] for name in names]
        for maker in rng.choices(make, weights, k=length):
            ops.append(fitting(maker()))
            while self._pending and len(ops) < length:
                ops.append(fitting(self._pending.pop()))
            if len(ops) >= length:
                break
        return tuple(ops)

    # --------------------------------------------------------------------------------------------------- operations

    def _alloc(self) -> Op:
        flags = self._pick(FLAGS) if self._is_wild() else 0
        number = 1
        while number in self._contexts:
            number += 1
        if not flags and (self.bench.contexts is None or number <= self.bench.contexts):
            self._contexts.append(number)
        return ("alloc", flags, *self._arg())

    def _free(self) -> Op:
        number = self._ctx()
        flags = self._pick(FLAGS) if self._is_wild() else self._pick((0, 1, 1))
        if number in self._contexts and flags:
            self._contexts.remove(number)
            self._mapped[:] = [run for run in self._mapped if run[0] != number]
        return ("free", number, flags, *self._arg())

    def _attach(self) -> Op:
        device = self._machine.stranger if self._is_wild() else self._rng.choice(DEVICES)
        number = 0 if self._rng.random() < 0.15 else self._ctx()
        return ("attach", device, number, 1 if self._is_wild() else 0, *self._arg())

    def _note(self, ctx: int, at: int, pages: int, frame: tuple[str, int], access: int) -> None:
        self._mapped.append((ctx, at, pages, frame, access))
        if len(self._mapped) > 24:
            del self._mapped[:8]

    def _map(self) -> Op:
        ctx, frame, pages = self._ctx(), self._frame(), self._count()
        if self._machine.frame_0 and self._rng.random() < 0.05:
            frame = ("xen", 0)
        access = (
            self._pick(FLAGS)
            if self._is_wild()
            else self._access
            if self._rng.random() < 0.7
            else self._pick((1, 2, 3))
        )
        size = 0x1000
        at = self._base + self._below(1024) if self._rng.random() < 0.4 else self._somewhere()
        if self._limited is None:
            draw = self._rng.random()
            if draw < 0.06:
                size, pages = 0x20_0000, self._pick((1, 1, 2, 0))
                if draw < 0.045:
                    at, frame = at & ~511, ("ram", self._pick((0, 512)))
            elif draw < 0.07 and self._wild:
                size = self._pick(SIZES)
        self._note(ctx, at, max(1, min(pages, 1024)) * (size >> 12 or 1), frame, access)
        return ("map", ctx, frame, at, pages, access, size, *self._arg())

    def _unmap(self) -> Op:
        if self._mapped and self._rng.random() < 0.8:
            index = -1 if self._rng.random() < 0.4 else int(self._rng.random() * len(self._mapped))
            ctx, at, pages, _, _ = self._mapped[index]
            draw = self._rng.random()
            if draw < 0.35:
                at, pages = at + self._below(pages), 1
            elif draw < 0.5:
                skip = self._below(pages)
                at, pages = at + skip, max(pages - skip, 1)
            elif draw < 0.58:
                pages += 1
            elif self._limited is None and draw < 0.64:
                self._pending.append(self._touch(ctx, at, pages))
                return ("unmap", ctx, at & ~511, self._pick((1, 1, 2)), 0x20_0000, "plain", 0)
            if self._limited is not None and not self._is_wild():
                pages = min(pages, self._limited)
            self._pending.append(self._touch(ctx, at, pages))
            if self._rng.random() < 0.5:
                self._pending.append(("unmap", ctx, at, pages, 0x1000, *self._arg()))
                return self._touch(ctx, at, pages)
            return ("unmap", ctx, at, pages, 0x1000, *self._arg())
        if self._rng.random() < 0.1:  # what is Xen's own: the identity table
            return ("unmap", 0, self._pick((FIRST_FRAME, FIRST_FRAME + 9, 9, MMIO)), 1, 0x1000, "plain", 0)
        size = self._pick(SIZES) if self._limited is None and self._is_wild() else 0x1000
        return ("unmap", self._ctx(), self._somewhere(), self._count(), size, *self._arg())

    def _flush(self) -> Op:
        """Let hardware see what was mapped with the flush put off, or something near."""
        if self._mapped and self._rng.random() < 0.8:
            ctx, at, pages, _, _ = self._mapped[-1 if self._rng.random() < 0.5 else self._below(len(self._mapped))]
            return ("flush", ctx, at, pages, 0x1000, *self._arg())
        size = self._pick(SIZES) if self._is_wild() else self._pick((0x1000, 0x20_0000))
        return ("flush", self._ctx(), self._somewhere(), self._count(), size, *self._arg())

    def _touch(self, ctx: int, at: int, pages: int) -> Op:
        """DMA where something was mapped, by any device: which one is in the context is not known here."""
        return ("dma", self._rng.choice(DEVICES[:5]), at, pages)

    def _dma(self) -> Op:
        if self._mapped and self._rng.random() < 0.85:
            index = -1 if self._rng.random() < 0.5 else int(self._rng.random() * len(self._mapped))
            _, at, pages, _, _ = self._mapped[index]
            if self._rng.random() < 0.3:
                at, pages = at + self._below(pages + 1), 1
            return ("dma", self._rng.choice(DEVICES), at, pages)
        return ("dma", self._rng.choice(DEVICES), self._somewhere(), 1 + self._below(4))

    def _again(self) -> Op:
        """Continue the last mapping, or put the same or another thing in its place."""
        if not self._mapped:
            return self._map()
        ctx, at, pages, (space, number), access = self._mapped[-1]
        count = self._count()
        draw = self._rng.random()
        if draw < 0.55:
            at, number = at + pages, number + pages
        elif draw < 0.7:
            if at < count or number < count:
                return self._map()
            at, number = at - count, number - count
        elif draw < 0.8:
            ctx = self._ctx()
        else:
            count = min(pages, self._limited or pages)
        if space == "ram" and number >= PAGES:
            number %= PAGES
        at &= (1 << 64) - 1
        number &= (1 << 64) - 1
        self._note(ctx, at, max(1, min(count, 1024)), (space, number), access)
        return ("map", ctx, (space, number), at, count, access, 0x1000, *self._arg())

    def _superpage(self) -> Op:
        """Aligned, contiguous pages in pieces, in some order: what folds into a superpage."""
        rng = self._rng
        ctx, first = self._ctx(), self._pick((0, 512))
        at = (self._base & ~511) + self._pick((0, 512, 512, 1024))
        piece = self._pick((256, 256, 128, 64)) if self._limited else self._pick((256, 128, 512, 511, 512))
        cuts = list(range(0, 512, piece))
        ops: list[Op] = [
            ("map", ctx, ("ram", first + cut), at + cut, min(piece, 512 - cut), self._access, 0x1000, "plain", 0)
            for cut in cuts
        ]
        draw = rng.random()
        if draw < 0.3:
            ops.reverse()
        elif draw < 0.5:
            rng.shuffle(ops)
        ops.insert(self._below(len(ops)), self._touch(ctx, at, 512))
        lead = 0
        if rng.random() < 0.4:  # pages of the table before it
            lead = 1 + self._below(16)
            before = ("ram", (first - lead) % CONTIGUOUS)
            ops.append(("map", ctx, before, at - lead, lead, self._access, 0x1000, "plain", 0))
        ops.append(self._touch(ctx, at, 512))
        if rng.random() < 0.2:  # split it from there on, when there may be no table for that
            ops.append(("fail", self._pick((0, 1, 1)), 0))
            ops.append(("unmap", ctx, at - lead, lead + 1 + self._below(4), 0x1000, "plain", 0))
        self._note(ctx, at - lead, 512 + lead, ("ram", (first - lead) % CONTIGUOUS), self._access)
        ops.reverse()
        self._pending.extend(ops[:-1])
        return ops[-1]

    def _slice(self) -> Op:
        """Take one part of a superpage out and perhaps put it back."""
        runs = [run for run in self._mapped if run[2] >= 256]
        if not runs:
            return self._superpage()
        ctx, at, pages, frame, access = runs[int(self._rng.random() * len(runs))]
        skip, count = self._below(pages), 1 + self._below(self._pick((1, 4, 200)))
        self._pending.append(self._touch(ctx, at, pages))
        if self._rng.random() < 0.6:
            again = (frame[0], frame[1] + skip)
            self._pending.append(("map", ctx, again, at + skip, count, access, 0x1000, "plain", 0))
        self._pending.append(self._touch(ctx, at + skip, count))
        return ("unmap", ctx, at + skip, count, 0x1000, "plain", 0)

    def _of_domains(self, verb: str) -> Op:
        first, *others = self._domains.make(verb)
        self._pending.extend(reversed(others))
        self._look_around()
        return first

    def _look_around(self) -> None:
        """Who calls, and what is known of it."""
        here = self._domains.here
        self._contexts, self._mapped, self._pages = here.contexts, here.mapped, here.pages

    def _remote(self) -> Op:
        if self._domains.has_guests and self._rng.random() < 0.8:
            return ("remote", self._domains.any())
        return ("remote", self._pick((0, 0, 0, 0, 1, 0x7FF0)))

    def _fail(self) -> Op:
        """What fails next; often where a context is being made."""
        draw = self._rng.random()
        if draw < 0.2:
            return ("fail", 0, 1 + self._below(3))
        if draw < 0.4:
            self._pending += [("alloc", 0, "plain", 0), ("alloc", 0, "plain", 0)]
            return ("fail", 1, 0)
        if draw < 0.6:
            self._pending.append(self._unmap())
            return ("fail", 1, 0)
        return ("fail", 1 + self._below(4), 0)

    def _long(self) -> Op:
        """Many pages that form no superpage, and their end."""
        number, step = self._ctx(), min(self._limited or 1000, self._pages - 8)
        if step < 200:
            return self._map()
        end: list[Op] = [("free", number, 1, "plain", 0)]
        maps: list[Op] = [
            ("map", number, ("ram", 8), (self._base ^ 0x4000) + 1 + step * k, step, self._access, 0x1000, "plain", 0)
            for k in range(2400 // step)
        ]
        if self._domains.caller and self._rng.random() < 0.5:
            end = self._domains.end(self._domains.caller)[::-1]
        self._pending += [*end, *maps]
        self._look_around()
        return ("preempt", self._pick((1, 1, 2)))

    def _remove(self) -> Op:
        """Take a page away, for choice one that is mapped, and look what is there then."""
        if self._domains.has_guests and self._rng.random() < 0.5:
            return ("remove", self._domains.page())
        if self._mapped and self._rng.random() < 0.5:
            ctx, at, pages, (space, number), _ = self._mapped[int(self._rng.random() * len(self._mapped))]
            skip = self._below(min(pages, 512))
            if space == "ram" and 8 <= number + skip < PAGES:
                self._pending.append(self._touch(ctx, at + skip, 1))
                if "lookup" in self._verbs:
                    self._pending.append(("lookup", ctx, at + skip, "plain", 0))
                return ("remove", ("ram", number + skip))
        return ("remove", ("ram", 8 + self._below(self._pages - 8)))

    def _edge(self) -> Op:
        """A mapping where numbers end or a reserved region begins, and its end."""
        ctx, at, pages = self._ctx(), self._pick(EDGES), self._pick((1, 1, 2))
        self._pending += [("unmap", ctx, at, pages, 0x1000, "plain", 0), self._touch(ctx, at, pages)]
        return ("map", ctx, self._frame(), at, pages, self._access, 0x1000, "plain", 0)

    def _retype(self) -> Op:
        """A page of the guest's becomes one that devices may not write, one that is elsewhere, or RAM again."""
        kinds = (
            ("pagetable", "ram") if self.bench.guest == "pv" else ("ro", "shared", "paged", "logdirty", "hole", "ram")
        )
        frame = self._frame()
        if frame[0] != "ram" or frame[1] < 8:
            frame = ("ram", 8 + self._below(self._pages - 8))
        at = self._base + self._below(1024)
        self._pending.append(("map", self._ctx(), frame, at, 1, self._access, 0x1000, "plain", 0))
        return ("p2m", frame, self._rng.choice(kinds))

    def _raw(self) -> Op:
        """Bytes: a number that may be no sub-op's, a struct that may be nothing."""
        rng = self._rng
        number = self._pick((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 0xFF, 0xFFFF))
        data = bytearray(rng.getrandbits(8) if rng.random() < 0.2 else 0 for _ in range(40))
        for _ in range(self._below(4)):
            data[self._below(40)] = self._pick((0, 1, 2, 3, 0x10, 0x7F, 0x80, 0xFF))
        return (
            "raw",
            number | self._pick((0, 0, 0, 0x100, 0x8000_0000)) if self._limited is None else number,
            bytes(data),
            "plain",
        )
