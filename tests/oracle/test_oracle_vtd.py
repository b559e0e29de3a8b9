# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's VT-d behind our software half: what it answers, and what our hardware half answers beside it."""

import pytest

from machine.iommu.unit import Fault
from oracle.process import ModelMissing
from oracle.vtd_rig import VtdRig


def started(**options):
    try:
        return VtdRig(**options)
    except ModelMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module", params=[48, 39], ids=["4-level", "3-level"])
def machine(request):
    rig = started(aw_bits=request.param)
    yield rig
    rig.close()


@pytest.fixture
def rig(machine):
    """A machine with device 0 in context 1."""
    machine.steps["context"](1)
    machine.steps["attach"](0, 1)
    yield machine
    machine.steps["free"](1)
    machine.forget()
    assert machine.unit.differences == []


def answer(rig, iova, write=True):
    sid = rig.devices[0].sbdf & 0xFFFF
    access = rig.unit.access(sid, iova, write)
    return access.model.code if isinstance(access.model, Fault) else access.model


def test_qemu_translates_what_our_driver_mapped(rig):
    rig.steps["map"](1, 0x200, 0x40200, 600, 3)
    assert answer(rig, 0x200_008) == 0x40200_008
    assert answer(rig, 0x457_FF8, write=False) == 0x40457_FF8
    assert answer(rig, 0x458_000) == 5


def test_qemu_walks_our_1_gib_page(rig):
    rig.steps["map"](1, 0x40000, 0x40000, 0x40000, 3)
    assert [step.name for step in rig.ours.walk(0x18, 0x5234_5678).steps][-1] == "SL-PDPE"
    assert answer(rig, 0x5234_5678) == 0x5234_5678


def test_an_unmapped_page_faults_in_qemu_once_our_driver_returns(rig):
    rig.steps["map"](1, 0x300, 0x40300, 4, 3)
    assert answer(rig, 0x301_000) == 0x40301_000
    rig.steps["unmap"](1, 0x301, 1)
    assert answer(rig, 0x301_000) == 5
    assert answer(rig, 0x302_000, write=False) == 0x40302_000


def test_both_halves_stay_stale_until_the_right_command_and_not_longer(rig):
    rig.steps["map"](1, 0x500, 0x40500, 1, 3)
    assert answer(rig, 0x500_000) == 0x40500_000
    leaf = len(rig.ours.walk(0x18, 0x500_000).steps) - 1
    rig.flip(0, 0x500_000, leaf, 12)  # the frame's lowest bit
    rig.flush_pages(0, 0x501_000, 0, 0, 0)  # another page
    rig.flush_pages(0, 0x500_000, 0, 0, 1)  # another domain
    assert answer(rig, 0x500_000) == 0x40500_000
    rig.flush_pages(0, 0x500_000, 0, 0, 0)
    assert answer(rig, 0x500_000) == 0x40501_000
