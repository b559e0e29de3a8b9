# SPDX-License-Identifier: GPL-2.0-or-later
"""Several vCPUs at once: a run is a pure function of programs, schedule and fault plan.

bed = build(Config(vcpus=2))
run = run_concurrently(bed, [(bed.vcpus[0], [Hypercall("alloc_context")]),
                             (bed.vcpus[1], [Hypercall("alloc_context")])], Schedule.parse("3>1"))
run.results, run.points, run.schedule, run.outcome
"""

from testbed.schedule.faults import FaultPlan, Faults, injected
from testbed.schedule.program import Answer, Caller, Hypercall, Item
from testbed.schedule.run import Run, run_concurrently
from testbed.schedule.schedule import Chooser, Point, RandomWalk, Schedule

__all__ = [
    "Answer",
    "Caller",
    "Chooser",
    "FaultPlan",
    "Faults",
    "Hypercall",
    "Item",
    "Point",
    "RandomWalk",
    "Run",
    "Schedule",
    "injected",
    "run_concurrently",
]
