# SPDX-License-Identifier: GPL-2.0-or-later
"""The sub-op table against every ABI version that this hypervisor can speak: nothing forgotten, nothing too much."""

import inspect

import pytest

from abi import versions
from abi.canonical import CANONICAL
from abi.versions import Convention, CopyBack
from hypervisor import profile
from hypervisor.pviommu.entry import entry_for
from hypervisor.pviommu.table import ROWS

SPOKEN = [versions.get(name) for name in (*versions.names(), *versions.experimental())]
DISPATCHED = [abi for abi in SPOKEN if abi.convention in (Convention.SUBOP, Convention.UNION)]
PROFILES = [profile.get(name) for name in (*profile.names(), *profile.experimental())]


@pytest.mark.parametrize("spoken", PROFILES, ids=[p.name for p in PROFILES])
def test_every_implemented_sub_op_of_a_profiles_abi_has_a_row(spoken: profile.Profile) -> None:
    missing = [s.name for s in spoken.abi.subops.values() if s.implemented and s.name not in ROWS]
    assert not missing


def test_every_row_is_a_sub_op_of_some_version() -> None:
    named = {subop.name for abi in SPOKEN for subop in abi.subops.values()}
    assert set(ROWS) <= named


def test_every_row_is_used_by_some_profile() -> None:
    used = {subop.name for p in PROFILES for subop in p.abi.subops.values() if subop.implemented}
    assert set(ROWS) == used


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_is_a_handler_with_five_parameters(name: str) -> None:
    row = ROWS[name]
    assert callable(row.handler)
    assert len(inspect.signature(row.handler).parameters) == 5
    assert name in CANONICAL


def test_exactly_the_loops_over_pages_resume_and_only_remote_cmd_is_not_remote() -> None:
    assert {name for name, row in ROWS.items() if row.resumes} == {"map_pages", "unmap_pages", "remote_cmd"}
    assert {name for name, row in ROWS.items() if not row.remote} == {"remote_cmd"}


def test_progress_fits_above_every_number_of_a_resuming_sub_op() -> None:
    for abi in DISPATCHED:
        if abi.convention is Convention.SUBOP:
            assert max(abi.subops) <= 0xFF


@pytest.mark.parametrize("spoken", PROFILES, ids=[p.name for p in PROFILES])
def test_out_fields_and_copy_back_agree(spoken: profile.Profile) -> None:
    """What a handler answers has somewhere to go, and nothing else is written back."""
    for subop in spoken.abi.subops.values():
        if not subop.implemented or subop.codec is None or spoken.abi.convention is Convention.UNION:
            continue
        assert bool(subop.codec.out) == (subop.copied_back is not CopyBack.NEVER), subop.name


def test_only_batch_versions_have_no_way_in() -> None:
    for abi in SPOKEN:
        if abi.convention is Convention.BATCH:
            with pytest.raises(ValueError, match="calling convention"):
                entry_for(abi)


def test_unknown_profiles_are_named_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="v7-fixed"):
        profile.get("v8-fixed")
