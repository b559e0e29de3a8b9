# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``pviommu run`` does, as a rate: echo requests through guest, card, unit and wire, every byte compared."""

import time
from collections.abc import Iterator
from statistics import median
from typing import Final

from benchmarks.figures import RUNS, Figure
from benchmarks.hypercalls import BACKENDS
from benchmarks.lean import Lean
from machine.network.choice import open_wire
from testbed.config import Config
from testbed.packets import ping_sizes, run

PINGS: Final = 200


def figures(seconds: float, lean: Lean) -> Iterator[Figure]:
    for backend in BACKENDS:
        rates: list[float] = []
        end = time.perf_counter() + seconds
        while len(rates) < RUNS or time.perf_counter() < end:
            wire = open_wire("in-process")
            report = run(Config(backend=backend), wire, ping_sizes(PINGS, seed=0))
            wire.close()
            if not report.ok:
                raise RuntimeError(f"the run failed: {(*report.failures, report.leaks)}")
            rates.append(report.packets_per_second)
        yield Figure("packets", f"{backend}, echoes of 56 to 8972 bytes", "packets/s", max(rates), median(rates))
