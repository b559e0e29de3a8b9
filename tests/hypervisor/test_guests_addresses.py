# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose PCI addresses reattach_device reads: the guest's own in ``e2``, the machine's everywhere else."""

import pytest

from abi.errno import ENODEV
from base.units import make_sbdf
from testbed.build import COPIER, NIC, ROGUE, build
from testbed.config import Config, DomU
from testbed.schedule import Caller

FIRST, SECOND, THIRD = (make_sbdf(0, 0, slot, 0) for slot in (1, 2, 3))


def guest_of(backend, profile, devices=(COPIER, ROGUE), vpci=True):
    guest = DomU(devices=devices, vpci=vpci)
    bed = build(Config(backend=backend, profile=profile, ram=32 << 20, guest_ram=16 << 20, domus=(guest,)))
    caller = Caller(bed, bed.domus[0].vcpus[0])
    assert caller.call("init", max_ctx_no=4, arena_order=6).result == 0
    return bed, caller, caller.call("alloc_context").fields["ctx_no"]


def move(caller, ctx, sbdf):
    return caller.call("reattach_device", ctx_no=ctx, bus=sbdf >> 8 & 0xFF, devfn=sbdf & 0xFF).result


def where(bed):
    return {sbdf: device.context.number for sbdf, device in bed.domus[0].devices.items()}


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_e2_reads_the_guests_own_addresses_and_then_the_machines(backend):
    bed, caller, ctx = guest_of(backend, "e2")
    assert move(caller, ctx, SECOND) == 0
    assert where(bed) == {COPIER: 0, ROGUE: ctx}
    assert move(caller, ctx, COPIER) == 0, "a machine address of its own"
    assert where(bed) == {COPIER: ctx, ROGUE: ctx}
    assert move(caller, 0, FIRST) == 0
    assert where(bed) == {COPIER: 0, ROGUE: ctx}
    assert move(caller, ctx, THIRD) == -ENODEV
    assert move(caller, ctx, NIC) == -ENODEV, "a machine address of somebody else's"


def test_the_guests_own_address_comes_first():
    devices = (ROGUE, NIC, COPIER, make_sbdf(0, 0, 0x1C, 0))
    bed, caller, ctx = guest_of("vtd", "e2", devices)
    assert move(caller, ctx, make_sbdf(0, 0, 4, 0)) == 0
    assert where(bed) == {ROGUE: 0, NIC: 0, COPIER: 0, devices[3]: ctx}


@pytest.mark.parametrize(("profile", "vpci"), [("v7", True), ("e1", True), ("v7-fixed", True), ("e2", False)])
def test_elsewhere_they_are_nobodys(profile, vpci):
    _, caller, ctx = guest_of("vtd", profile, vpci=vpci)
    assert move(caller, ctx, FIRST) == -ENODEV
    assert move(caller, ctx, COPIER) == 0
