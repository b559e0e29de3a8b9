# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames of 1,500 bytes in bursts through the network card and back: ``python -m benchmarks.nic_stream``.

Linear frames (one piece each), a burst as long as the ring allows, completions handled once a burst; with receive
pages mapped anew for every frame, and recycled with their mapping.  A frame counts when it has been sent, echoed by the
wire and received; the last of a burst is compared byte by byte.
"""

import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Final

from benchmarks.figures import RUNS, Figure
from benchmarks.hypercalls import BACKENDS
from benchmarks.lean import Lean
from guest_driver.net.skb import build_skb
from guest_driver.nic import nic_probe
from machine.network.choice import open_wire
from testbed.build import NIC, build
from testbed.config import Config
from testbed.guest import Guest

FRAME_BYTES: Final = 1500
BURST: Final = 48
BURSTS: Final = 20
BAR: Final = 20_000


def figures(seconds: float, lean: Lean | None = None) -> Iterator[Figure]:
    """Packets (sent plus received) a second."""
    for backend in BACKENDS:
        for recycle in (False, True):
            stream = _Stream(backend, recycle)
            rates: list[float] = []
            end = time.perf_counter() + seconds
            while len(rates) < RUNS or time.perf_counter() < end:
                started = time.perf_counter()
                for _ in range(BURSTS):
                    stream.burst()
                rates.append(2 * BURST * BURSTS / (time.perf_counter() - started))
            name = "receive pages recycled" if recycle else "receive pages mapped anew"
            yield Figure(
                "packets", f"{backend}, 1500 bytes in bursts, {name}", "packets/s", max(rates), median(rates), BAR
            )


class _Stream:
    """A card that is up, on a wire that sends everything back."""

    def __init__(self, backend: str, recycle: bool) -> None:
        testbed = build(Config(backend=backend))
        testbed.nic.wire = open_wire("in-process", echo=True)
        guest = Guest(testbed).kernel
        nic = nic_probe(guest.kernel, guest.devices[NIC], recycle=recycle)
        if isinstance(nic, int) or nic.ndo_open():
            raise RuntimeError("the card did not come up")
        self._card: Final = testbed.nic
        self._nic: Final = nic
        self._received: Final[list[bytes]] = []
        self._frame: Final = nic.mac * 2 + bytes(FRAME_BYTES - 12)
        nic.rx_handler = self._received.append

    def burst(self) -> None:
        """Send a burst and take it back."""
        nic, received = self._nic, self._received
        received.clear()
        for _ in range(BURST):
            skb = build_skb(nic.kernel, self._frame, FRAME_BYTES)
            if skb is None or nic.ndo_start_xmit(skb):
                raise RuntimeError("a frame could not be sent")
        for _ in range(4 * BURST):
            self._card.poll()
            nic.poll()
            if len(received) == BURST:
                break
        if len(received) != BURST or received[-1] != self._frame:
            raise RuntimeError(f"{len(received)} of {BURST} frames came back")


if __name__ == "__main__":
    for figure in figures(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0):
        print(figure)
