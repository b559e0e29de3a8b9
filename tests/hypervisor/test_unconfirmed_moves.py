# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves of devices that hardware does not confirm, with devices at work meanwhile: nothing that hardware may still use
is used for anything else, and once it confirms again everything is as it was."""

from contextlib import contextmanager

import pytest
from copying_device import Copying
from guest_calls import RMRR_BASE, Caller, bed

from abi.errno import EIO, ENOENT
from hypervisor.locking.install import install_places
from machine.firmware import Rmrr
from testbed.build import COPIER, NIC, ROGUE
from testbed.invariants import check
from testbed.schedule.faults import FaultPlan, Faults
from testbed.units import UnitSpec

REGION = Rmrr(RMRR_BASE, RMRR_BASE + 0x3FFF, (COPIER,))
PLANS = [f"confirm:{nth}{onwards}" for nth in range(1, 8) for onwards in ("", "+")]


class Busy(Faults):
    """A plan under which devices access memory whenever hardware is told something."""

    def __init__(self, plan: str, caller: Caller) -> None:
        super().__init__(FaultPlan.parse(plan))
        self.caller = caller

    def fails(self, kind: str) -> bool:
        if kind == "confirm":
            for requester in requesters(self.caller, NIC, ROGUE):
                self.caller.reach(0x10, requester)
        return super().fails(kind)


@contextmanager
def unconfirmed(caller, plan):
    places = install_places(caller.xen)
    places.plan = Busy(plan, caller)
    try:
        yield
    finally:
        places.remove()


def requesters(caller, *devices):
    return [requester for device in devices for requester in caller.testbed.pci.requester_ids(device)]


def tags_in_use(caller):
    return [(getattr(u, "_dids", None) or u._vmids)._used.count(1) for u in caller.xen.backend.units]


def everyone_reaches(caller, pfn, dfn, *devices):
    return all(caller.reach(dfn, requester) == caller.mfn(pfn) for requester in requesters(caller, *devices))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        ("vtd", "default"),
        ("vtd", "caching"),
        ("vtd", "scalable"),
        ("vtd", "scalable+caching"),
        ("vtd", "device-tlb"),
        ("smmuv3", "default"),
        ("smmuv3", "break-before-make"),
    ],
)
def test_where_a_device_was_to_go_is_used_again_only_when_hardware_has_forgotten_it(backend, kind, plan):
    caller = bed(backend, units=(UnitSpec(kind),), phantom_functions=1)
    source, target = caller.alloc(), caller.alloc()
    used, tags = caller.arena_used, tags_in_use(caller)
    for device in (NIC, ROGUE):
        assert caller.attach(source, device) == 0
    assert caller.map(source, 64, 0x10).rc == 0
    assert caller.map(target, 65, 0x10).rc == 0
    with unconfirmed(caller, plan):
        moved = caller.attach(target, ROGUE) == 0
        caller.free(target, caller.abi.free_reattach_default if not moved else 0)
        assert not check(caller.testbed)
    if moved:
        assert everyone_reaches(caller, 65, 0x10, ROGUE)
        return
    assert caller.free(target) in (0, -ENOENT)
    assert not check(caller.testbed)
    assert caller.attach(source, ROGUE) == 0, "where it is"
    assert everyone_reaches(caller, 64, 0x10, NIC, ROGUE)
    assert caller.alloc() == target
    assert caller.attach(target, ROGUE) == 0
    assert [caller.reach(0x10, requester) for requester in requesters(caller, ROGUE)] == [None, None]
    for device in (NIC, ROGUE):
        assert caller.attach(0, device) == 0
    assert caller.unmap(source, 0x10).rc == 0
    assert (caller.arena_used, tags_in_use(caller)) == (used, tags)
    assert not check(caller.testbed) and not caller.xen.kept


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_a_caching_device_is_back_with_the_next_flush_of_its_context(backend, plan):
    copying = Copying(backend=backend)
    caller, second = copying.caller, copying.caller.alloc()
    assert caller.map(copying.ctx, 2048, 0x300, 2).rc == 0
    assert caller.map(second, 2050, 0x300, 2).rc == 0
    assert copying.reach(0x300) == 2048
    with unconfirmed(caller, plan):
        moved = caller.attach(second, COPIER) == 0
    context = second if moved else copying.ctx
    assert caller.unmap(context, 0x301).rc == 0
    assert copying.reach(0x300) == (2050 if moved else 2048)
    assert copying.reach(0x301) is None
    assert not check(caller.testbed)


@pytest.mark.parametrize("plan", [f"confirm:{nth}" for nth in range(1, 5)])
@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_a_device_whose_cutting_off_is_not_confirmed_keeps_what_it_may_reach(backend, plan):
    copying = Copying(backend=backend)
    caller = copying.caller
    assert caller.map(copying.ctx, 2048, 0x300, 2).rc == 0
    assert [copying.reach(0x300), copying.reach(0x301)] == [2048, 2049]
    copying.cache.answering = False
    with unconfirmed(caller, plan):
        caller.unmap(copying.ctx, 0x300)
    if caller.unmap(copying.ctx, 0x301).rc == 0:
        assert copying.reach(0x301) is None
    assert caller.attach(0, COPIER) == 0
    assert caller.free(copying.ctx) == 0
    assert copying.reach(0x300) is None
    assert not caller.xen.kept


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_quarantine_is_as_it_was_when_hardware_confirms_again(backend, plan):
    caller = bed(backend, rmrrs=(REGION,), ram=64 << 20)
    xen, dom0, device = caller.xen, caller.dom0, caller.dom0.devices[COPIER]
    iommu = xen.dom_io().iommu
    tags = tags_in_use(caller)
    with unconfirmed(caller, plan):
        error = xen.deassign_device(dom0, device)
        assert error in (0, -EIO)
        assert not check(caller.testbed)
        xen.assign_device(dom0, device)
        assert not check(caller.testbed)
        kept = [context for context in iommu.contexts.values() if not context.devices]
        assert all(context.dying and context.unconfirmed for context in kept)
    assert xen.assign_device(dom0, device) == 0
    assert xen.deassign_device(dom0, device) == 0
    assert xen.assign_device(dom0, device) == 0
    assert caller.attach(0, COPIER) == 0
    assert caller.reach(caller.gfn(64), COPIER) == caller.mfn(64)
    assert not iommu.contexts and not xen.kept
    assert tags_in_use(caller) == tags
    assert not check(caller.testbed)


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_what_context_0_was_not_confirmed_to_have_forgotten_is_let_go_when_it_is(backend):
    caller = bed(backend)
    with unconfirmed(caller, "confirm:1+"):
        assert caller.xen.remove_page(caller.dom0, caller.gfn(64)) == -EIO
    assert caller.xen.kept
    assert caller.xen.remove_page(caller.dom0, caller.gfn(64)) == 0
    assert not caller.xen.kept
