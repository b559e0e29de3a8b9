# SPDX-License-Identifier: GPL-2.0-or-later
"""Planted faults are found and shrunk to a few operations; without them the same programs are clean."""

import pytest

from fuzz.engines.swarm import Swarm
from fuzz.program import Bench
from fuzz.shrink import Shrinker

PV = Bench("vtd", "v7-fixed", "pv", 4, 6)


def flush_skipped(bed):
    bed.xen.backend.flush = lambda context, dfn, pages, changes: 0


def flush_of_the_first_page_only(bed):
    genuine = bed.xen.backend.flush
    bed.xen.backend.flush = lambda context, dfn, pages, changes: genuine(context, dfn, 1, changes)


def reference_leaked(bed):
    frames, genuine = bed.xen.frames, bed.xen.frames.put
    frames.put = lambda mfn, count, ref: genuine(mfn, max(count - 1, 1), ref)


def reference_not_taken(bed):
    bed.xen.frames.get = lambda mfn, count, ref: None


def read_only_ignored(bed):
    permissions = bed.xen.map_permissions
    for flags in permissions:
        permissions[flags] = permissions[3 | flags]


def refused_flags_accepted(bed):
    bed.xen.map_permissions[8 | 3] = bed.xen.map_permissions[3]
    bed.xen.map_permissions[7 | 8] = bed.xen.map_permissions[3]
    bed.xen.map_permissions[1 << 31] = bed.xen.map_permissions[3]


FAULTS = (flush_skipped, flush_of_the_first_page_only, reference_leaked, reference_not_taken, read_only_ignored)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found_and_shrunk_to_few_operations(fault):
    swarm = Swarm([PV], 1, fault)
    runner, found = next(hit for hit in swarm.findings(60) if hit is not None)
    small = Shrinker(runner).shrink(runner.locate(found.program.ops))
    assert len(small.program.ops) <= 8, str(small.program)
    assert small.key == runner.run(small.program.ops).key


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
@pytest.mark.parametrize("profile", ["v7-fixed", "v3-fixed"])
@pytest.mark.parametrize("guest", ["pv", "pvh"])
def test_the_fixed_profiles_are_clean(backend, profile, guest):
    swarm = Swarm([Bench(backend, profile, guest, 4, 5)], 7)
    for hit in swarm.findings(30, max_ops=1500):
        assert hit is None, f"{hit[1].program}{hit[1].clause}: {hit[1].what}"
