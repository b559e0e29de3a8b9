# SPDX-License-Identifier: GPL-2.0-or-later
"""T5: how many arena pages every context leaves behind, by what its units walk."""

import pytest

from testbed.build import build
from testbed.config import Config
from testbed.schedule import Caller
from testbed.units import UnitSpec


def left_behind(profile, kind):
    """Arena pages in use after each of three contexts was made and freed."""
    bed = build(Config(profile=profile, ram=32 << 20, guest_ram=16 << 20, units=(UnitSpec(kind=kind),)))
    caller = Caller(bed, bed.vcpu)
    assert caller.call("init", max_ctx_no=8, arena_order=6).result == 0
    used = []
    for _ in range(3):
        ctx = caller.call("alloc_context").fields["ctx_no"]
        assert caller.call("map_pages", ctx_no=ctx, gfn=bed.ram.pfn_to_gfn(9), dfn=9, nr_pages=1, flags=3).result == 0
        assert caller.call("free_context", ctx_no=ctx).result == 0
        used.append(bed.dom0.iommu.arena.used)
    return used


@pytest.mark.parametrize(
    ("profile", "kind", "pages"),
    [("v7~A2", "default", 1), ("v7~A2", "39-bit", 2), ("v7~A2~T5", "39-bit", 0), ("v7-fixed", "39-bit", 0)],
)
def test_a_posted_context_leaves_the_tables_behind_that_it_was_made_with(profile, kind, pages):
    assert left_behind(profile, kind) == [pages, 2 * pages, 3 * pages]
