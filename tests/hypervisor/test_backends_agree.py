# SPDX-License-Identifier: GPL-2.0-or-later
"""Random programs of hypercalls get the same answers over VT-d and over SMMUv3, whatever the profile.

Compared are return values, every field that is written back, and how the host stops, if it does.  Where the hardware's
limits differ (docs/profiles.md, "Over both backends") the programs stay below them: the arena is ample.
"""

from typing import Any

import pytest
from guest_calls import RW, Caller, bed
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hypercall_specification import NAMES, PLACES, issue
from test_posted_specification import caller_for, drawn

from abi.canonical import CANONICAL
from hypervisor.errors import HostStopped

PROFILES = ("v1", "v3", "v4", "v6", "v7", "v3-fixed", "v7-fixed", "e3-fixed")
Seen = tuple[Any, ...]
VTD_REGISTERS = 0xFED90
"""Frame of a unit's registers, on one of the two machines."""


def names_of(caller: Caller) -> tuple[str, ...]:
    if caller.abi.has("flush_pages"):
        return NAMES["e3-fixed"]
    return NAMES["v7-fixed" if caller.abi.has("init") else "v3-fixed"]


def answered(caller: Caller, name: str, values: dict[str, int], place: str) -> Seen:
    """What the guest sees of one call."""
    try:
        rc, after, _ = issue(caller, name, tuple(values.get(f.name, f.default) for f in CANONICAL[name]), place)
    except HostStopped as stop:
        return ("stops", type(stop).__name__)
    return rc, after


@pytest.mark.parametrize("guest", ["pv", "pvh"])
@pytest.mark.parametrize("profile", PROFILES)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_random_programs_get_the_same_answers(profile: str, guest: str, data: Any) -> None:
    vtd, smmu = (caller_for(profile, backend, guest) for backend in ("vtd", "smmuv3"))
    if vtd.abi.has("init") and data.draw(st.booleans()):
        assert vtd.init(4, 8) == smmu.init(4, 8)
    for _ in range(data.draw(st.integers(1, 16))):
        name = data.draw(st.sampled_from([n for n in names_of(vtd) if n != "remote_cmd"]))
        values, place = drawn(data.draw, name), data.draw(st.sampled_from(PLACES))
        if values.get("gfn") == VTD_REGISTERS:
            continue
        seen = [answered(caller, name, values, place) for caller in (vtd, smmu)]
        assert seen[0] == seen[1], (name, values, place)
        if seen[0][0] == "stops":
            return


@pytest.mark.parametrize("profile", ["v3", "v7", "v3-fixed", "v7-fixed"])
def test_superpages_come_and_go_alike(profile: str) -> None:
    seen = []
    for backend in ("vtd", "smmuv3"):
        caller = bed(backend, profile, "pvh")
        context = caller.alloc()
        story: list[Any] = []
        for at in range(0, 512, 256):
            story.append(caller.map(context, 512 + at, 0x200 + at, 256))
        story.append(caller.unmap(context, 0x280))
        story.append(caller.unmap(context, 0x200, 256))
        story.append(caller.map(context, 640, 0x280, 1, RW))
        story.append(caller.xen.superpages())
        seen.append(story)
    assert seen[0] == seen[1]
