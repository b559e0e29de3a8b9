# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``pviommu run`` does, as rates: packets through guest, card, unit and wire, every byte compared.

One at a time and scattered over the guest's pages; and in the stream.  The far end is in this process: what is
measured is the test bed, not the host's network stack (``pviommu run`` shows how much of its time that takes), per
second of processor time, as everything here.
"""

import time
from collections.abc import Iterator
from statistics import median
from typing import Final

from benchmarks.figures import RUNS, Figure
from benchmarks.hypercalls import BACKENDS
from benchmarks.lean import Lean
from machine.network.choice import open_wire
from testbed.config import Config
from testbed.packets import Report, ping_sizes, run
from testbed.stream import PACKET_BYTES

PINGS: Final = 200
STREAMED: Final = 1280
BAR: Final = 20_000


def figures(seconds: float, lean: Lean | None = None) -> Iterator[Figure]:
    for backend in BACKENDS:
        single: list[float] = []
        streamed: list[float] = []
        end = time.process_time() + seconds
        while len(single) < RUNS or time.process_time() < end:
            report = _run(backend)
            single.append(report.packets_returned / report.cpu_seconds)
            assert report.stream is not None
            streamed.append(report.stream.packets_per_cpu_second)
        yield Figure("packets", f"{backend}, echoes of 56 to 8972 bytes", "echoes/s", max(single), median(single))
        name = f"{backend}, {PACKET_BYTES} bytes in a stream, sent and received"
        yield Figure("packets", name, "packets/s", max(streamed), median(streamed), BAR)


def _run(backend: str) -> Report:
    wire = open_wire("in-process")
    report = run(Config(backend=backend), wire, ping_sizes(PINGS, seed=0), stream_packets=STREAMED)
    wire.close()
    if not report.ok:
        raise RuntimeError(f"the run failed: {(*report.failures, report.leaks)}")
    return report
