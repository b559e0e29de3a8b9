# SPDX-License-Identifier: GPL-2.0-or-later
"""A map request between bytes and ints, by the codec that is generated from the declaration.

``python -m benchmarks.abi_codec`` measures it alone, and construct beside it.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Final

from abi import versions
from abi.codec import Codec
from benchmarks.figures import Figure, clock
from benchmarks.lean import Lean

BAR: Final = 0.3
"""Microseconds asked for, per decode or encode."""
STEPS: Final = 2_000
REQUEST: Final = (1, 0x12345, 0x1000, 3, 0x1000, 32, 0)


def figures(seconds: float, lean: Lean | None = None) -> Iterator[Figure]:
    """Decode and encode of a map request in both calling conventions, and writing the answer into its struct."""
    for name in ("v7", "v3"):
        codec = versions.get(name).by_name["map_pages"].codec
        assert codec is not None
        yield from _codec(name, codec, seconds)


def _codec(name: str, codec: Codec, seconds: float) -> Iterator[Figure]:
    decode, encode, patch_out = codec.decode, codec.encode, codec.patch_out
    raw = encode(*REQUEST)
    answer = bytearray(raw)
    yield _figure(f"{name}, decode a map request", lambda: decode(raw), seconds)
    yield _figure(f"{name}, encode a map request", lambda: encode(1, 0x12345, 0x1000, 3, 0x1000, 32, 0), seconds)
    yield _figure(f"{name}, write mapped into one", lambda: patch_out(answer, 32), seconds, bar=None)


def construct_figures(seconds: float) -> Iterator[Figure]:
    """The same request parsed by construct itself."""
    codec = versions.get("v7").by_name["map_pages"].codec
    assert codec is not None
    raw = codec.encode(*REQUEST)
    yield _figure("v7, parse with construct", lambda: codec.construct.parse(raw), seconds, 200, None)


def _figure(
    name: str, step: Callable[[], object], seconds: float, steps: int = STEPS, bar: float | None = BAR
) -> Figure:
    times = clock(_loop(step, steps), steps, seconds)
    overhead = clock(_loop(_nothing, steps), steps, seconds / 4).best
    best, middle = (max(t - overhead, 0.0) * 1e6 for t in times)
    return Figure("codec", name, "us", best, middle, bar)


def _nothing() -> None:
    """What a step costs that does nothing: the call of the function around it."""


def _loop(step: Callable[[], object], steps: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(steps):
            step()

    return run


def main() -> int:
    found = [*figures(0.5), *construct_figures(0.5)]
    for figure in found:
        bar = f"  bar {figure.bar}" if figure.bar is not None else ""
        print(f"{figure.name:<28} {figure.best:6.3f} {figure.unit} (median {figure.median:.3f}){bar}")
    return 0 if all(figure.passed is not False for figure in found) else 1


if __name__ == "__main__":
    sys.exit(main())
