# SPDX-License-Identifier: GPL-2.0-or-later
"""Each property of nested tables and of enforced coherency is broken by something on purpose; sound runs break none."""

import pytest
from test_nesting_hypervisor import CD, DATA, VA, Guest

from abi.errno import EINVAL
from base.units import make_sbdf
from guest_driver.iommufd.release import release
from hypervisor.domain import GuestFault
from hypervisor.vtd.format import SECOND_STAGE
from testbed.build import COPIER
from testbed.invariants_nesting import INVARIANTS, check
from testbed.scenarios.catalogue import SCENARIOS
from testbed.scenarios.coherency import IOVA, start


@pytest.fixture
def guest():
    guest = Guest()
    guest.stage1()
    _, (guest.parent, _) = guest.call("alloc_context", 0, 0)
    assert guest.call("map_pages", guest.parent, CD, CD, 3, 4096, 32, 0)[0] == 0
    guest.context = guest.nested(guest.parent)
    assert guest.attach(guest.context) == 0 and guest.read() == b"the data"
    return guest


def coherent():
    """dev2 in an enforcing context and dev1, without snoop control, in another."""
    session, machine = start("vtd", release())
    for name in ("dev2", "dev1"):
        assert session.bound[name].attach(session.ids["ioas1"])[0] == 0
    assert session.map("ioas1", IOVA) == 0
    return session, machine


def test_the_list_is_complete():
    broken = {"nested-stage2", "nested-cached", "nested-children", "guest-faults", "snoop-entries", "snoop-units"}
    assert set(INVARIANTS) == broken
    assert all(len(entry.text) > 20 for entry in INVARIANTS.values())


def test_nothing_is_broken(guest):
    assert not check(guest.bed)
    guest.read(VA + 4096)
    guest.call("unmap_pages", guest.parent, DATA, 4096, 1, 0)
    assert not check(guest.bed)
    assert guest.attach(0) == 0 and guest.call("free_context", guest.context, 0)[0] == 0
    assert not check(guest.bed)
    assert not check(coherent()[1].testbed)


@pytest.mark.parametrize("name", ["nesting", "nesting-refused"])
def test_scenarios_break_nothing_at_any_step(name, monkeypatch):
    from testbed.scenarios import nesting

    machines = []
    real = nesting.start
    monkeypatch.setattr(nesting, "start", lambda kernel: machines.append(real(kernel)) or machines[-1])
    for step in SCENARIOS[name].steps("smmuv3", release()):
        assert step.ok and not check(machines[-1][1].testbed), step.text


def test_a_stream_with_another_tag(guest):
    unit = guest.bed.xen.backend.units[0]
    entry = unit.streams._entry(COPIER & 0xFFFF)
    guest.bed.memory.write64(entry + 16, guest.bed.memory.read64(entry + 16) ^ 1)
    assert "nested-stage2" in check(guest.bed)


def test_a_flush_that_names_pages_leaves_combined_translations(guest):
    context = guest.bed.dom0.iommu.contexts[guest.parent]
    context.children = 0  # what the flush looks at
    assert guest.call("unmap_pages", guest.parent, DATA, 4096, 1, 0)[0] == 0
    context.children = 1
    assert "nested-cached" in check(guest.bed)
    assert guest.read() == b"the data"


def test_a_parent_that_miscounts(guest):
    guest.bed.dom0.iommu.contexts[guest.parent].children += 1
    assert "nested-children" in check(guest.bed)


def test_somebody_elses_fault(guest):
    guest.bed.dom0.iommu.faults.append(GuestFault(make_sbdf(0, 5, 0, 0), 0, False, None, 0x10))
    assert "guest-faults" in check(guest.bed)


def test_promotion_of_entries():
    session, machine = coherent()
    contexts = machine.testbed.dom0.iommu.contexts.values()
    enforcing = next(context for context in contexts if context.enforces_cache and context.devices)
    enforcing.table._page_bits = SECOND_STAGE.leaf_bits[1]
    assert session.map("ioas1", IOVA + 4096) == 0
    assert "snoop-entries" in check(machine.testbed)


def test_a_hypervisor_that_lets_everybody_in():
    session, machine = start("vtd", release(), checked=False)
    assert session.table("table", "dev2", "ioas1") == 0
    assert session.bound["dev1"].attach(session.ids["table"])[0] == 0
    assert "snoop-units" in check(machine.testbed)
    session, machine = start("vtd", release())
    assert session.table("table", "dev2", "ioas1") == 0
    assert session.bound["dev1"].attach(session.ids["table"])[0] == -EINVAL
