# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypercalls as bytes: what a guest could write that follows no header.

A part of the calls is noise.  The others are calls of the typed generator, encoded and then damaged in a few bytes,
so that they get past the first checks; DMA and the toolstack's doings stay in between.  What bytes find is in reading
and checking them, not in long runs of pages: most of those are cut to a few pages, in each program another share.
"""

import random
from typing import Final

from fuzz.generate import Generator
from fuzz.program import ARGUMENTS, Op
from fuzz.target import SUBOPS, Target

_BYTES: Final = (0, 1, 2, 3, 0x0F, 0x10, 0x7F, 0x80, 0xFE, 0xFF)
_NOISE: Final = (0.1, 0.4, 0.8)
_DAMAGE: Final = (0.1, 0.4, 0.8)
_LONG: Final = (0.0, 0.02, 0.1)
"""Runs of more than :data:`SHORT` pages that stay as long as they are."""
SHORT: Final = 16
_LONGEST: Final = 4096
"""A number of pages above it is no run but a limit that is tried."""
_PAGES_AT: Final = {"map": 4, "unmap": 3, "dma": 3}
"""Where an operation says how many pages."""
_SIZE: Final = 40
"""Bytes of a struct of noise; the target takes as many as the sub-op's has."""


class RawGenerator:
    """Programs of one bench whose calls are bytes."""

    def __init__(self, target: Target, seed: int) -> None:
        self._target: Final = target
        self._typed: Final = Generator(target.bench, target.abi, seed)
        self._rng: Final = random.Random(seed)
        self._numbers: Final = {name: subop.number for name, subop in target.abi.by_name.items()}

    def program(self, length: int) -> tuple[Op, ...]:
        """``length`` operations or a few less."""
        rng = self._rng
        noise, damage, long = rng.choice(_NOISE), rng.choice(_DAMAGE), rng.choice(_LONG)
        ops: list[Op] = []
        for operation in self._typed.program(length):
            at = _PAGES_AT.get(operation[0])
            if at is not None and SHORT < operation[at] <= _LONGEST and rng.random() >= long:
                operation = (*operation[:at], 1 + int(rng.random() * SHORT), *operation[at + 1 :])
            if operation[0] not in SUBOPS or operation[0] == "init":
                ops.append(operation)
            elif rng.random() < noise:
                ops.append(self._noise())
            else:
                ops.append(self._encoded(operation, damage))
        return tuple(ops)

    def _noise(self) -> Op:
        rng = self._rng
        draw = rng.random()
        if draw < 0.6:
            number = rng.choice(tuple(self._numbers.values()))
        else:
            number = rng.choice((rng.randrange(64), rng.getrandbits(8), rng.getrandbits(16)))
        if rng.random() < 0.5:
            data = rng.randbytes(_SIZE)
        else:
            data = bytes(rng.choice(_BYTES) if rng.random() < 0.3 else 0 for _ in range(_SIZE))
        return ("raw", number, data, self._argument())

    def _encoded(self, operation: Op, damage: float) -> Op:
        """A typed call as the bytes it is, with bytes of it changed now and then."""
        rng, target = self._rng, self._target
        name = SUBOPS[str(operation[0])]
        codec = target.abi.by_name[name].codec
        try:
            data = bytearray(codec.encode(*target.arguments(operation)) if codec is not None else b"")
        except ValueError:  # a number that its field cannot hold
            return self._noise()
        if data and rng.random() < damage:
            for _ in range(1 + int(rng.random() * 3)):
                at = int(rng.random() * len(data))
                data[at] = rng.choice(_BYTES) if rng.random() < 0.7 else data[at] ^ 1 << int(rng.random() * 8)
        return ("raw", self._numbers[name], bytes(data), self._argument())

    def _argument(self) -> str:
        return "plain" if self._rng.random() < 0.9 else self._rng.choice(ARGUMENTS)
