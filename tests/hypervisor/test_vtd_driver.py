# SPDX-License-Identifier: GPL-2.0-or-later
"""What the VT-d driver does for units that do not see stores at once, remember what is absent, or serve devices with
caches of their own; and that each of these steps, left out, shows."""

import random

import pytest
from copying_device import Copying
from guest_calls import RW, bed
from test_iommu_units import scenario

from abi.errno import EIO
from hypervisor.defects.posted_table import PostedPageTable
from hypervisor.pagetable.radix import Changes, PageTable
from hypervisor.vtd.format import SECOND_STAGE
from hypervisor.vtd.unit import Unit
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus
from testbed.build import COPIER, NIC
from testbed.units import UnitSpec


def one(kind, **config):
    return bed(units=(UnitSpec(kind),), **config)


# ------------------------------------------------------------------------------------------- stores and their order


class Behind:
    """RAM as hardware sees it: nothing but what was published.  ``look`` is called after every publication."""

    def __init__(self, memory):
        self.words, self.memory, self.look = {}, memory, None

    def __call__(self, word, count):
        for k in range(word, word + count):
            self.words[k] = self.memory.words[k]
        if self.look is not None:
            self.look()

    def find(self, root, levels, dfn):
        word, level = (root << 9) + (dfn >> 9 * (levels - 1)), levels
        while True:
            entry = self.words.get(word, "garbage")
            if entry != "garbage":
                entry &= ~(0xF << 52)  # markers of posted tables, which hardware ignores
            if not entry or entry == "garbage" or level == 1 or entry & 1 << 7:
                return (
                    entry if isinstance(entry, str) or not entry else (entry >> 12) + (dfn & (1 << 9 * level - 9) - 1)
                )
            level -= 1
            word = (entry >> 12 << 9) + (dfn >> 9 * level - 9 & 511)


class Pages:
    """A pool whose frames hold rubbish."""

    def __init__(self, memory, first):
        self.memory, self.next, self.unused = memory, first, []

    def allocate(self):
        frame = self.unused.pop() if self.unused else self.next
        self.next = max(self.next, frame + 1)
        self.memory.write(frame << 12, b"\xa5" * 4096)
        return frame

    def free(self, frame):
        self.unused.append(frame)


@pytest.mark.parametrize(
    ("kind", "seed", "steps"), [*((PageTable, seed, 120) for seed in range(6)), (PostedPageTable, 0, 12)]
)
def test_hardware_that_sees_only_what_was_written_back_sees_old_or_new_and_never_anything_else(kind, seed, steps):
    rng = random.Random(seed)
    memory = PhysicalMemory(4 << 20)
    behind, pool = Behind(memory), Pages(memory, 16)
    memory.zero_frame(1)
    behind(1 << 9, 512)
    table = kind(memory, SECOND_STAGE, 3, 1, pool)
    table.written = behind
    probes = [*range(8), *range(504, 520), *range(1016, 1032), 1 << 18, (1 << 18) + 1]

    def frames():
        return {dfn: (found[0] if (found := table.lookup(dfn)) else 0) for dfn in probes}

    def seen():
        return {dfn: behind.find(1, 3, dfn) for dfn in probes}

    for _ in range(steps):
        dfn = rng.choice([0, 3, 256, 505, 512, 1000, 1020, 1 << 18])
        count = rng.choice([1, 2, 9, 256, 512, 700])
        old, changes = frames(), Changes()
        views = []
        behind.look = lambda views=views: views.append(seen())
        if rng.random() < 0.6:
            table.map(dfn, 0x1000 + dfn, count, 3, changes)
        else:
            table.unmap(dfn, count, changes)
        behind.look = None
        new = frames()
        for view in views:
            for probe in probes:
                assert view[probe] in (old[probe], new[probe]), hex(probe)
        assert seen() == new
        for frame in changes.tables:
            for word in range(frame << 9, frame + 1 << 9):
                behind.words.pop(word, None)
            pool.free(frame)


def test_context_entries_are_written_back_before_the_unit_is_told_and_tables_before_what_leads_to_them():
    endpoint = 0x2018
    caller = one("non-coherent", endpoints=(endpoint,))
    unit, events = caller.xen.backend.units[0], []
    submit = unit.queue.submit
    unit.queue.submit = lambda low, high=0: events.append("command") or submit(low, high)
    caller.testbed.bus.uncached_readers.append(lambda maddr, length: events.append((maddr, length)))
    word = unit._context_word(endpoint, False)
    ctx = caller.alloc()
    events.clear()
    caller.attach(ctx, endpoint)
    assert events == [(word << 3, 16), "command", "command"]
    events.clear()
    new = unit._context_word(0x7700, True)
    root = unit._context_word(0x7700, False) >> 9
    assert [length for _, length in events] == [4096, 16]
    assert events[0][0] == root << 12 == new << 3
    assert events[1][0] & 0xFFF == 0x77 * 16


def test_a_store_that_is_not_written_back_is_not_seen(monkeypatch):
    monkeypatch.setattr(SystemBus, "write_back", lambda *_: None)
    with pytest.raises(AssertionError):
        scenario(one("non-coherent"))


def test_coherent_units_are_spared_the_write_backs():
    told = []
    caller = bed()
    caller.testbed.bus.uncached_readers.append(lambda maddr, length: told.append(maddr))
    scenario(caller)
    assert not told


# ------------------------------------------------------------------------------------------------ write buffers


def test_an_addition_flushes_the_write_buffer_and_nothing_else():
    caller = one("write-buffer")
    ctx = caller.alloc()
    caller.attach(ctx, NIC)
    assert caller.map(ctx, 8, 0x10, 1, RW).rc == 0
    before = dict(caller.testbed.unit.counters.commands)
    assert caller.reach(0x10) == caller.mfn(8)
    assert caller.map(ctx, 9, 0x11, 1, RW).rc == 0
    assert caller.reach(0x11) == caller.mfn(9)
    before["write-buffer flush"] += 1
    assert dict(caller.testbed.unit.counters.commands) == before


def test_a_write_buffer_that_is_not_flushed_hides_additions(monkeypatch):
    monkeypatch.setattr(Unit, "flush_write_buffer", lambda _: 0)
    with pytest.raises(AssertionError):
        scenario(one("write-buffer"))


def test_a_unit_that_does_not_finish_its_write_buffer_fails_the_call(monkeypatch):
    caller = one("write-buffer")
    used, unused = caller.alloc(), caller.alloc()
    caller.attach(used, NIC)
    monkeypatch.setattr(Unit, "flush_write_buffer", lambda _: -EIO)
    assert caller.map(used, 8, 0x10, 1, RW).rc == -EIO
    assert caller.map(unused, 8, 0x10, 1, RW).rc == 0, "a context that no device uses needs no flush"


# ------------------------------------------------------------------------------------------------- caching mode


def absent_page_is_remembered_under_a_reused_domain_id(caller):
    first = caller.alloc()
    caller.attach(first, NIC)
    did = caller.context(first).hw.dids
    assert caller.reach(0x123) is None
    caller.attach(0, NIC)
    assert caller.free(first) == 0
    second = caller.alloc()
    assert caller.context(second).hw.dids == did
    assert caller.map(second, 8, 0x123, 1, RW).rc == 0
    caller.attach(second, NIC)
    return caller.reach(0x123) == caller.mfn(8)


def test_a_domain_id_is_clean_when_it_is_used_again():
    assert absent_page_is_remembered_under_a_reused_domain_id(one("caching"))


def test_a_domain_id_that_hardware_may_still_know_is_not_used_again(monkeypatch):
    caller = bed()
    first = caller.alloc()
    dids = caller.context(first).hw.dids
    caller.attach(first, NIC)
    assert caller.map(first, 8, 0x10, 1, RW).rc == 0
    assert caller.reach(0x10) == caller.mfn(8)
    caller.attach(0, NIC)
    unit = caller.xen.backend.units[0]
    used = caller.arena_used
    with monkeypatch.context() as patch:
        patch.setattr(unit, "flush_pages", lambda *_: -EIO)
        assert caller.unmap(first, 0x10, 1).rc == -EIO
        patch.setattr(unit, "flush_did", lambda *_: -EIO)
        assert caller.free(first) == -EIO
        assert caller.context(first).dying
        assert caller.arena_used == used
        second = caller.alloc()
        assert caller.context(second).hw.dids != dids
    assert caller.free(second) == 0
    assert caller.free(first) == 0
    assert caller.arena_used < used
    assert caller.context(caller.alloc()).hw.dids == dids


def test_domain_id_0_is_nobodys_in_caching_mode():
    caller = one("caching")
    assert 0 not in {caller.context(number).hw.dids[0] for number in [0, *(caller.alloc() for _ in range(5))]}


# -------------------------------------------------------------------------------------------------- device TLBs


def test_only_devices_that_can_cache_are_allowed_to():
    copying = Copying()
    words = copying.caller.testbed.memory.words
    unit = copying.caller.xen.backend.units[0]
    assert words[unit._context_word(COPIER, False)] >> 2 & 3 == 1
    copying.caller.attach(copying.ctx, NIC)
    other = copying.caller.xen.backend.units[1]
    assert words[other._context_word(NIC, False)] >> 2 & 3 == 0


def test_the_iotlb_forgets_before_the_devices_are_asked(monkeypatch):
    copying = Copying()
    assert copying.caller.map(copying.ctx, 2048, 0x300, 1, RW).rc == 0
    types, queue = [], copying.caller.xen.backend.units[0].queue
    submit = queue.submit
    monkeypatch.setattr(queue, "submit", lambda low, high=0: types.append(low & 15) or submit(low, high))
    assert copying.caller.unmap(copying.ctx, 0x300, 1).rc == 0
    copying.caller.attach(0, COPIER)
    assert types == [2, 3, 1, 2, 3]


def test_device_tlb_invalidations_left_out_leave_the_device_where_it_was(monkeypatch):
    copying = Copying()
    assert copying.caller.map(copying.ctx, 2048, 0x300, 1, RW).rc == 0
    assert copying.reach(0x300) == 2048
    monkeypatch.setattr(Unit, "_flush_devices", lambda *_: 0)
    assert copying.caller.unmap(copying.ctx, 0x300, 1).rc == 0
    assert copying.reach(0x300) == 2048
