# SPDX-License-Identifier: GPL-2.0-or-later
"""Short programs of two vCPUs, each under every schedule with one preemption."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from fuzz.engines.swarm import Swarm
from fuzz.mutate import Source
from fuzz.program import Bench
from fuzz.run import ProgramRunner
from fuzz.verbs import Op
from testbed.build import TestBed

_DEVICES: Final = ("nic", "copier", "rogue")
_FRAMES: Final = (("ram", 8), ("ram", 9), ("ram", 512), ("xen", 3), ("gfn", 1 << 30), ("rmrr", 0))
_ODD: Final = ("ram", 9)
"""The page that is somebody else's in some programs."""
_MOVES: Final = 0.2
"""Of the programs, how many move devices between domains."""


class TogetherGenerator:
    """Two contexts, devices in them, and a few calls on each vCPU that have something to do with each other."""

    def __init__(self, seed: int) -> None:
        self._rng: Final = random.Random(seed)
        self._frames: tuple[tuple[str, int], ...] = _FRAMES

    def program(self, length: int) -> tuple[Op, ...]:
        """A dozen operations at most, whatever ``length``."""
        rng = self._rng
        ops: list[Op] = [("alloc", 0, "plain", 0) for _ in range(rng.randint(0, 2))]
        for _ in range(rng.randint(0, 2) if ops else 0):
            ops.append(("attach", rng.choice(_DEVICES), rng.randint(1, len(ops)), 0, "plain", 0))
        self._frames = _FRAMES
        if rng.random() < 0.4:
            ops.append(("p2m", _ODD, "foreign"))
            self._frames = (_ODD, _ODD, _ODD, *_FRAMES)
        if ops and rng.random() < 0.5:
            ops.append(self._call("map"))
        moves = rng.random() < _MOVES
        if moves:
            ops += [("create_domain", 1, 16, "hvm", 4, "yes"), ("assign", rng.choice(_DEVICES), 1)]
        for vcpu in range(2):
            ops.append(("vcpu", vcpu))
            make = self._move if moves and rng.random() < 0.7 else self._call
            ops.extend(make() for _ in range(rng.choice((1, 1, 2))))
        return tuple(ops)

    def _move(self) -> Op:
        """Something that the toolstack does with a device."""
        rng = self._rng
        device = rng.choice(_DEVICES)
        verb = rng.choice(("assign", "assign", "assign", "deassign", "add_device", "remove_device"))
        if verb == "remove_device":
            return (verb, device)
        return (verb, device, rng.choice((0, 1)))

    def _call(self, verb: str = "") -> Op:
        rng = self._rng
        verb = verb or rng.choice(("alloc", "free", "free", "attach", "attach", "map", "map", "unmap", "query"))
        ctx = rng.choice((0, 1, 1, 1, 2, 3))
        if verb == "alloc":
            return ("alloc", 0, "plain", 0)
        if verb == "free":
            return ("free", ctx, rng.choice((0, 1, 1)), "plain", 0)
        if verb == "attach":
            return ("attach", rng.choice(_DEVICES), ctx, 0, "plain", 0)
        if verb == "query":
            return ("query", "plain", 0)
        at = rng.choice((0x10, 0x11, 0x200))
        if verb == "unmap":
            return ("unmap", ctx, at, rng.choice((1, 1, 2, 256)), 0x1000, "plain", 0)
        return ("map", ctx, rng.choice(self._frames), at, rng.choice((1, 1, 2, 256)), 3, 0x1000, "plain", 0)


class Together(Swarm):
    """Findings of one worker, over several benches in turn, each with two vCPUs at least."""

    def __init__(self, over: list[Bench], seed: int, sabotage: Callable[[TestBed], None] | None = None) -> None:
        super().__init__([replace(bench, vcpus=max(bench.vcpus, 2)) for bench in over], seed, sabotage)

    def _generator(self, runner: ProgramRunner, seed: int) -> Source:
        return TogetherGenerator(seed)
