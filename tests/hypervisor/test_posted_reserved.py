# SPDX-License-Identifier: GPL-2.0-or-later
"""Reserved regions of posted hypervisors go with their device: an underflow or a stop is no answer that Xen gives.

Xen takes an identity mapping out by itself, without a look at references; only the guest's own unmap drops them.
"""

import pytest
from guest_calls import MIB, RW, Caller, bed

from machine.firmware import Rmrr
from testbed.build import COPIER

IN_RAM, ABOVE_RAM = 0x180_0000, 0x7000_0000
LATE = ("v4", "v5", "v6", "v7", "e1", "e2")


def with_region(profile: str, backend: str, base: int, *defects: str) -> Caller:
    caller = bed(
        backend,
        profile,
        "pv",
        init=False,
        ram=32 * MIB,
        guest_ram=4 * MIB,
        rmrrs=(Rmrr(base, base + 0x3FFF, (COPIER,)),),
        defects=defects,
    )
    assert caller.init(8, 6) == 0
    if "A2" not in caller.xen.profile.defects:
        assert caller.alloc() == 1
    return caller


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
@pytest.mark.parametrize("base", [IN_RAM, ABOVE_RAM], ids=["in RAM", "above RAM"])
@pytest.mark.parametrize("profile", [*LATE, "v7-fixed"])
def test_a_device_leaves_with_its_region_and_no_reference_is_dropped(profile: str, base: int, backend: str) -> None:
    caller = with_region(profile, backend, base, *(("S1", "F3") if profile == "v7-fixed" else ()))
    before = caller.frames.refs[:]
    assert caller.attach(1, COPIER) == 0
    assert caller.lookup(1, base >> 12) == base >> 12
    assert caller.attach(0, COPIER) == 0
    assert caller.lookup(1, base >> 12) is None
    assert caller.frames.refs == before


@pytest.mark.parametrize("profile", ["v4", "v5", "v6"])
def test_a_device_leaves_a_region_in_which_the_guest_made_a_hole(profile: str) -> None:
    """D2: the host goes on, and says so on its console."""
    caller = with_region(profile, "vtd", ABOVE_RAM)
    dfn = ABOVE_RAM >> 12
    assert caller.attach(1, COPIER) == 0
    assert caller.map(1, 8, dfn - 1, 1, RW).rc == 0
    assert caller.unmap(1, dfn - 1, 3).rc == 0
    assert caller.attach(0, COPIER) == 0
    assert [caller.lookup(1, dfn + k) for k in range(4)] == [None] * 4
    assert any("2 pages could not be unmapped" in line for line in caller.xen.console)
