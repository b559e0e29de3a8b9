# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs out of programs: pieces cut, doubled, exchanged or fresh, fields moved to where code goes wrong."""

import random
from collections.abc import Sequence
from typing import Final, Protocol

from fuzz.verbs import PAGE_SPACES, VERBS, WORDS, Op, Value

_EDGES: Final = (0, 1, 2, 255, 256, 257, 511, 512, 513, (1 << 27) - 1, 1 << 36, (1 << 52) - 1, (1 << 64) - 1)
_STEPS: Final = (-512, -256, -1, 1, 256, 512)
LONGEST: Final = 300
"""Operations of a program that has been put together."""


class Source(Protocol):
    """Where fresh operations come from."""

    def program(self, length: int) -> tuple[Op, ...]:
        """``length`` operations, or about that."""
        ...


class Mutator:
    """Makes programs for one bench; equal seeds and parents give equal children."""

    def __init__(self, generator: Source, seed: int) -> None:
        self._generator: Final = generator
        self._rng: Final = random.Random(seed)

    def child(self, parent: tuple[Op, ...], other: tuple[Op, ...]) -> tuple[Op, ...]:
        """``parent`` changed in one to four places, sometimes with a piece of ``other``."""
        ops = list(parent)
        for _ in range(1 + int(self._rng.random() * 4)):
            self._change(ops, other)
        return tuple(ops[:LONGEST]) or parent

    def _change(self, ops: list[Op], other: Sequence[Op]) -> None:
        rng = self._rng
        draw = rng.random()
        at = int(rng.random() * (len(ops) + 1))
        length = 1 + int(rng.random() ** 2 * 24)
        if draw < 0.2:
            del ops[at : at + length]
        elif draw < 0.3:
            ops[at:at] = ops[max(at - length, 0) : at]
        elif draw < 0.5:
            start = int(rng.random() * len(other))
            ops[at:at] = other[start : start + length]
        elif draw < 0.7:
            ops[at:at] = self._generator.program(length)[-length:]
        elif draw < 0.75 and len(ops) > 1:
            here = at % len(ops)
            ops.insert(int(rng.random() * len(ops)), ops.pop(here))
        elif ops:
            here = at % len(ops)
            ops[here] = self._tweak(ops[here])

    def _tweak(self, operation: Op) -> Op:
        """One field of an operation changed."""
        rng = self._rng
        fields = VERBS[str(operation[0])]
        if not fields:
            return operation
        k = int(rng.random() * len(fields))
        value = _other(rng, fields[k].kind, operation[k + 1])
        if operation[0] in ("remove", "p2m") and isinstance(value, tuple):
            value = (value[0], max(value[1], 8)) if value[0] in PAGE_SPACES else operation[1]
        return (*operation[: k + 1], value, *operation[k + 2 :])


def _other(rng: random.Random, kind: str, value: Value) -> Value:
    if isinstance(value, tuple):
        space, number = value
        return space, (number + rng.choice(_STEPS)) % 4096 if space != "gfn" else rng.choice(_EDGES)
    if isinstance(value, bytes):
        if not value:
            return bytes(8)
        at = int(rng.random() * len(value))
        return value[:at] + bytes((rng.choice((0, 1, 0x7F, 0x80, 0xFF)),)) + value[at + 1 :]
    if isinstance(value, str):
        return rng.choice(WORDS[kind]) if kind in WORDS else value
    if kind == "access":
        return rng.choice((0, 1, 2, 3, 4, 7))
    if kind == "size":
        return rng.choice((0x1000, 0x1000, 0x20_0000, 0x4000_0000, 0, 0x3000))
    draw = rng.random()
    if draw < 0.5:
        return max(value + rng.choice(_STEPS), 0) if value > 16 else int(rng.random() * 6)
    if draw < 0.7:
        return value ^ 1 << int(rng.random() * 16)
    limit = 0xFFFF if kind == "count" else (1 << 64) - 1
    return rng.choice(_EDGES) & limit
