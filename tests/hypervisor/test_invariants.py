# SPDX-License-Identifier: GPL-2.0-or-later
"""The global properties: silent on a working machine, and each one heard when its own kind of thing breaks."""

from collections.abc import Callable

import pytest
from guest_calls import RMRR_BASE, RMRR_DFN, Caller, R, bed

from abi.errno import EIO
from hypervisor.frames import DOMID_NONE, REF
from hypervisor.pagetable.radix import Changes
from machine.firmware import Rmrr
from testbed.build import COPIER, NIC, ROGUE
from testbed.invariants import INVARIANTS, Violation, check

REGION = Rmrr(RMRR_BASE, RMRR_BASE + 0x3FFF, (COPIER,))
DFN = 0x1000


@pytest.fixture(params=[("vtd", "pv"), ("vtd", "pvh"), ("smmuv3", "pv"), ("smmuv3", "pvh")], ids="-".join)
def busy(request: pytest.FixtureRequest) -> Caller:
    """A machine on which much has happened: superpages, splits, reserved regions, moved devices, warm caches."""
    backend, guest = request.param
    caller = bed(backend, guest=guest, rmrrs=(REGION,))
    for _ in range(3):
        caller.alloc()
    assert caller.attach(1) == 0
    assert caller.attach(1, COPIER) == 0
    assert caller.attach(2, ROGUE) == 0
    assert caller.map(1, 0, DFN, 2048).rc == 0
    assert caller.unmap(1, DFN + 5, 3).rc == 0
    for k in range(512):
        assert caller.map(2, k, DFN + k, flags=R).rc == 0
    assert caller.map(2, 2048, 0x4_0000, 1).rc == 0
    for dfn in (DFN, DFN + 4, DFN + 9, DFN + 600, DFN + 1023, RMRR_DFN):
        caller.reach(dfn, NIC, write=True)
        caller.reach(dfn, ROGUE)
    assert caller.xen.remove_page(caller.dom0, caller.gfn(700)) == 0
    assert caller.free(3) == 0
    return caller


def names(violations: list[Violation]) -> set[str]:
    return {violation.invariant for violation in violations}


def test_a_working_machine_violates_nothing(busy: Caller) -> None:
    assert check(busy.testbed) == []


def test_a_check_changes_nothing(busy: Caller) -> None:
    before, unit = busy.everything(), busy.testbed.unit.save()
    check(busy.testbed)
    assert busy.xen.save() == before
    assert busy.testbed.unit.save() == unit
    assert not busy.changed_frames()


def test_what_hardware_did_not_confirm_counts_as_held(busy: Caller) -> None:
    flush, busy.xen.backend.flush = busy.xen.backend.flush, lambda *args: -EIO
    assert busy.unmap(1, DFN + 512, 700).rc == -EIO
    busy.xen.backend.flush = flush
    assert names(check(busy.testbed)) <= {"caches_say_what_tables_say"}, "but hardware may still know it"
    assert busy.unmap(1, DFN + 512 + 700, 100).rc == 0
    assert busy.xen.backend.flush_all(busy.context(1)) == 0
    assert check(busy.testbed) == []


def a_reference_too_many(busy: Caller) -> None:
    busy.frames.get(busy.mfn(3000), 1, REF)


def a_type_reference_nobody_holds(busy: Caller) -> None:
    busy.frames.refs[busy.mfn(3000)] += 1 << 32


def a_frame_given_back_while_in_use(busy: Caller) -> None:
    busy.frames.owner[busy.mfn(3000)] = DOMID_NONE


def a_mapping_of_xens_memory(busy: Caller) -> None:
    table = busy.context(1).table
    table.map(0x9000, 3, 1, table.format.permission[1], Changes())


def a_page_becomes_a_page_table_while_devices_write_to_it(busy: Caller) -> None:
    busy.frames.pagetable[busy.mfn(20)] = 1


def a_table_entry_lost(busy: Caller) -> None:
    table = busy.context(2).table
    frame = next(frame for frame, used in table.filled.items() if used == 1)
    for word in range(frame << 9, (frame << 9) + 512):
        busy.testbed.memory.words[word] = 0


def an_arena_page_lost(busy: Caller) -> None:
    busy.dom0.iommu.arena.allocate()


def a_deposit_for_nothing(busy: Caller) -> None:
    busy.context(2).table._deposits[2, 0x8_0000] = busy.dom0.iommu.arena.allocate()


def a_context_beyond_the_limit(busy: Caller) -> None:
    busy.dom0.iommu.limit = 1


def a_device_that_thinks_it_is_elsewhere(busy: Caller) -> None:
    busy.dom0.devices[NIC].context = busy.context(2)


def a_device_on_two_lists(busy: Caller) -> None:
    busy.context(2).devices.append(busy.dom0.devices[NIC])


def a_device_in_a_dying_context(busy: Caller) -> None:
    busy.context(2).dying = True


def a_region_counted_twice(busy: Caller) -> None:
    busy.context(1).identity[0].users += 1


def a_region_unmapped(busy: Caller) -> None:
    busy.context(1).table.unmap(RMRR_DFN + 1, 1, Changes())


def two_contexts_with_one_tag(busy: Caller) -> None:
    busy.context(2).hw = busy.context(1).hw


def a_move_that_hardware_was_not_told_of(busy: Caller) -> None:
    device = busy.dom0.devices[NIC]
    busy.context(1).devices.remove(device)
    busy.context(2).devices.append(device)
    device.context = busy.context(2)


def an_unmap_without_a_flush(busy: Caller) -> None:
    table = busy.context(1).table
    assert busy.reach(DFN + 600) is not None
    table.unmap(DFN + 600, 1, Changes())


def a_change_of_rights_without_a_flush(busy: Caller) -> None:
    table = busy.context(1).table
    assert busy.reach(DFN + 9, write=True) is not None
    changes = Changes()
    table.unmap(DFN + 9, 1, changes)
    mfn, _, entry = changes.removed[0]
    table.map(DFN + 9, mfn, 1, table.format.permission[1] | entry & table.format.referenced, Changes())


BREAKS: dict[Callable[[Caller], None], str] = {
    a_reference_too_many: "references",
    a_type_reference_nobody_holds: "writable_references",
    a_frame_given_back_while_in_use: "free_frames",
    a_mapping_of_xens_memory: "no_reach_into_others",
    a_page_becomes_a_page_table_while_devices_write_to_it: "page_tables_are_not_writable",
    a_table_entry_lost: "tables_are_accounted_for",
    an_arena_page_lost: "arenas_are_accounted_for",
    a_deposit_for_nothing: "deposits_stand_by_for_leaves",
    a_context_beyond_the_limit: "contexts_are_numbered",
    a_device_that_thinks_it_is_elsewhere: "devices_and_contexts_agree",
    a_device_on_two_lists: "devices_and_contexts_agree",
    a_device_in_a_dying_context: "devices_and_contexts_agree",
    a_region_counted_twice: "reserved_regions_are_mapped",
    a_region_unmapped: "reserved_regions_are_mapped",
    two_contexts_with_one_tag: "tags_are_unique",
    a_move_that_hardware_was_not_told_of: "hardware_walks_what_contexts_say",
    an_unmap_without_a_flush: "caches_say_what_tables_say",
    a_change_of_rights_without_a_flush: "caches_say_what_tables_say",
}


@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
def test_what_is_broken_is_named(busy: Caller, damage: Callable[[Caller], None]) -> None:
    damage(busy)
    violations = check(busy.testbed)
    assert BREAKS[damage] in names(violations), violations
    assert check(busy.testbed, BREAKS[damage]) == [v for v in violations if v.invariant == BREAKS[damage]]
    assert all(str(violation).startswith(violation.invariant) for violation in violations)


def test_every_property_has_its_prose_and_something_that_breaks_it() -> None:
    assert set(BREAKS.values()) == set(INVARIANTS)
    for name, function in INVARIANTS.items():
        assert function.__doc__, name
        assert function.__doc__.strip().endswith("."), name


def test_an_unknown_name_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="references"):
        check(bed().testbed, "refs")
