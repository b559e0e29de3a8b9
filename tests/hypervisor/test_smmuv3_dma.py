# SPDX-License-Identifier: GPL-2.0-or-later
"""Driver and SMMU together: what devices can reach follows what the hypervisor did, at once and no longer."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smmuv3_host import (
    BASE,
    CFGI_STE,
    CFGI_STE_RANGE,
    COPIER,
    DISTANCE,
    NIC,
    NSNH_ALL,
    PAGE,
    RW,
    S2_IPA,
    S12_VMALL,
    Host,
)

from machine.firmware import SmmuNode
from machine.iommu.smmuv3.config import Smmuv3Config

POLLING = Smmuv3Config(msi=False)
OLD = Smmuv3Config(ril=False, bbml=0, two_level=False, sid_bits=10, vmid16=False, msi=False, coherent=False)
CONFIGS = pytest.mark.parametrize("config", [Smmuv3Config(), POLLING, OLD], ids=["default", "polling", "old"])
BLOCK = 512
FRAMES = 2048
"""A 2 MiB aligned block of frames in the host's memory that tables never come from."""


def faults(host):
    return [(fault.sid, fault.iova, fault.write, fault.name) for fault in host.backend.take_faults()]


def test_everything_is_blocked_before_the_driver_attaches():
    host = Host()
    assert host.read(NIC, 0x1000) is None
    assert host.read(COPIER, 0) is None


def test_unknown_streams_are_recorded():
    host = Host()
    host.read(NIC, 0x5000)
    assert faults(host) == [(NIC, 0, False, "C_BAD_STREAMID")]


@CONFIGS
def test_dma_goes_where_the_context_maps_and_faults_elsewhere(config):
    host = Host([config])
    context = host.context()
    host.attached(NIC, context)
    host.map(context, 5, FRAMES)
    assert host.reaches(NIC, 5, FRAMES)
    assert host.read(NIC, 6 * PAGE) is None
    assert faults(host) == [(NIC, 6 * PAGE, False, "F_TRANSLATION")]


@CONFIGS
def test_permissions_are_enforced_and_reported(config):
    host = Host([config])
    context = host.context()
    host.attached(NIC, context)
    fmt = host.backend.format
    host.map(context, 1, FRAMES, bits=fmt.permission[1])
    host.map(context, 2, FRAMES, bits=fmt.permission[2])
    assert host.read(NIC, 1 * PAGE) is not None
    assert not host.reaches(NIC, 1, FRAMES)
    assert host.reaches(NIC, 2, FRAMES)
    assert host.read(NIC, 2 * PAGE) is None
    assert faults(host) == [
        (NIC, 1 * PAGE, True, "F_PERMISSION"),
        (NIC, 2 * PAGE, False, "F_PERMISSION"),
    ]


def test_faults_are_read_once():
    host = Host()
    context = host.context()
    host.attached(NIC, context)
    host.read(NIC, 0x1234_5678)
    assert [(f.sid, f.iova) for f in host.backend.take_faults()] == [(NIC, 0x1234_5678)]
    assert host.backend.take_faults() == []


@CONFIGS
def test_events_of_a_long_run_of_faults_come_back_in_order(config):
    host = Host([config])
    context = host.context()
    host.attached(NIC, context)
    for round_number in range(5):
        wanted = [PAGE * (1 + 100 * round_number + k) for k in range(100)]
        for iova in wanted:
            host.read(NIC, iova)
        assert [fault.iova for fault in host.backend.take_faults()] == wanted


def test_a_full_event_queue_loses_events_and_recovers():
    host = Host([POLLING])  # without messages nobody empties it meanwhile
    context = host.context()
    host.attached(NIC, context)
    for k in range(200):
        host.read(NIC, PAGE * (k + 1))
    assert len(host.backend.take_faults()) == 128
    assert host.backend.units[0].events.overflows == 1
    host.read(NIC, PAGE)
    assert [fault.iova for fault in host.backend.take_faults()] == [PAGE]
    assert host.backend.units[0].events.overflows == 1


def test_messages_keep_the_event_queue_from_filling():
    host = Host()
    context = host.context()
    host.attached(NIC, context)
    for k in range(500):
        host.read(NIC, PAGE * (k + 1))
    assert len(host.backend.take_faults()) == 500


def test_the_driver_keeps_a_bounded_number_of_events():
    host = Host()
    context = host.context()
    host.attached(NIC, context)
    for k in range(3000):
        host.read(NIC, PAGE * (k + 1))
    assert len(host.backend.take_faults()) <= 1024 + 128
    host.read(NIC, PAGE)
    assert [fault.iova for fault in host.backend.take_faults()] == [PAGE]


# Stale entries.  The unit's cache keeps everything until it is told.


@CONFIGS
def test_an_unmapped_page_stays_reachable_only_until_the_flush(config):
    host = Host([config])
    context = host.context()
    host.attached(NIC, context)
    host.map(context, 5, FRAMES)
    assert host.reaches(NIC, 5, FRAMES)
    changes = host.unmap(context, 5)
    assert host.reaches(NIC, 5, FRAMES), "the cache is not as hostile as this test wants it"
    assert host.backend.flush(context, 5, 1, changes) == 0
    assert not host.reaches(NIC, 5, FRAMES)


@CONFIGS
def test_flushing_one_page_leaves_the_others_cached(config):
    host = Host([config])
    context = host.context()
    host.attached(NIC, context)
    host.map(context, 5, FRAMES, 2)
    assert host.reaches(NIC, 6, FRAMES + 1)
    host.unmap_and_flush(context, 5)
    hits = host.units[0].counters.iotlb_hits
    assert host.reaches(NIC, 6, FRAMES + 1)
    assert host.units[0].counters.iotlb_hits == hits + 1


def test_mapping_into_empty_entries_needs_no_command():
    host = Host()
    context = host.context()
    host.attached(NIC, context)
    host.read(NIC, 5 * PAGE)
    host.probe.commands.clear()
    host.map(context, 5, FRAMES, 3)
    assert host.probe.commands == []
    assert host.reaches(NIC, 5, FRAMES)


@CONFIGS
def test_removing_tables_forgets_cached_pointers_to_them(config):
    host = Host([config])
    context = host.context()
    host.attached(NIC, context)
    host.map(context, 5, FRAMES)
    assert host.reaches(NIC, 5, FRAMES)
    changes = host.unmap(context, 5)
    assert len(changes.tables) == 3
    assert host.backend.flush(context, 5, 1, changes) == 0
    for table in changes.tables:  # the frames become somebody's data, which looks like descriptors
        for k in range(512):
            host.memory.write64((table << 12) + 8 * k, FRAMES << 12 | 0x7FF)
    assert host.read(NIC, 5 * PAGE) is None
    assert host.read(NIC, 7 * PAGE) is None


@settings(max_examples=40, deadline=None)
@given(data=st.data(), config=st.sampled_from([Smmuv3Config(), POLLING, OLD]))
def test_no_stale_translation_survives_a_flush(data, config):
    host = Host([config])
    context = host.context()
    host.attached(NIC, context)
    mapped = {}
    for _ in range(data.draw(st.integers(3, 12))):
        base = data.draw(st.sampled_from([0, BLOCK, 3 * BLOCK]))
        if data.draw(st.booleans()):
            dfn, count = base + data.draw(st.integers(0, 40)), data.draw(st.integers(1, 40))
        else:
            dfn, count = base, BLOCK
        if data.draw(st.booleans()):
            mfn = FRAMES + data.draw(st.integers(0, 2)) * BLOCK + (dfn - base)
            free = next((k for k in range(count) if dfn + k in mapped), count)
            if free:
                host.map(context, dfn, mfn, free)
                mapped.update((dfn + k, mfn + k) for k in range(free))
        else:
            there = next((k for k in range(count) if dfn + k not in mapped), count)
            if there:
                assert host.unmap_and_flush(context, dfn, there) == 0
                for k in range(there):
                    del mapped[dfn + k]
        for dfn in {0, 1, 39, 40, 79, BLOCK - 1, BLOCK, BLOCK + 7, 2 * BLOCK - 1, 3 * BLOCK, 4 * BLOCK - 1}:
            if dfn in mapped:
                assert host.reaches(NIC, dfn, mapped[dfn])
            else:
                assert host.read(NIC, dfn * PAGE) is None


# Which commands


def test_flush_of_a_page_is_one_command():
    host = Host()
    context = host.context()
    host.attached(NIC, context)
    host.map(context, 4, FRAMES, 2)
    changes = host.unmap(context, 5)
    host.probe.commands.clear()
    assert host.backend.flush(context, 5, 1, changes) == 0
    vmid = host.ste(NIC)[2] & 0xFFFF
    assert host.probe.commands == [(S2_IPA | vmid << 32, 5 << 12 | 1)]


@pytest.mark.parametrize("dfn,count", [(0, 2), (7, 3), (5, 33), (1, 511), (0, 512), (5, 4096), (1000, 100_000), (3, 1)])
def test_range_commands_cover_the_pages_exactly(dfn, count):
    host = Host()
    context = host.context()
    host.attached(NIC, context)
    changes = host.map(context, dfn, 1 << 20, count)
    changes.modified = True
    host.probe.commands.clear()
    assert host.backend.flush(context, dfn, count, changes) == 0
    covered = []
    for first, second in host.probe.commands:
        assert first & 0xFF == S2_IPA
        pages = 1
        if second >> 10 & 3:
            pages = ((first >> 12 & 31) + 1) << (first >> 20 & 31)
            assert pages > 1, "NUM, SCALE and TTL all 0 is reserved"
        covered.append((second >> 12, pages))
    assert covered[0][0] == dfn
    assert sum(pages for _, pages in covered) == count
    assert all(a + n == b for (a, n), (b, _) in pairwise(covered))


def test_without_range_commands_long_flushes_take_the_whole_vmid():
    host = Host([OLD])
    context = host.context()
    host.attached(NIC & 0x3FF, context)
    host.map(context, 0, FRAMES, 40)
    host.probe.commands.clear()
    host.unmap_and_flush(context, 1, 4)
    assert host.probe.ops() == [S2_IPA] * 4
    host.probe.commands.clear()
    host.unmap_and_flush(context, 10, 30)
    assert host.probe.ops() == [S12_VMALL]


def test_a_context_without_devices_costs_no_commands():
    host = Host()
    context = host.context()
    host.map(context, 0, FRAMES, 40)
    host.probe.commands.clear()
    assert host.unmap_and_flush(context, 3, 7) == 0
    assert host.backend.flush_all(context) == 0
    assert host.probe.commands == []


def test_only_flushes_that_free_tables_forget_pointers_to_tables():
    host = Host()
    context = host.context()
    host.attached(NIC, context)
    host.map(context, 4, FRAMES, 2)
    host.probe.commands.clear()
    host.unmap_and_flush(context, 5)
    host.unmap_and_flush(context, 4)
    assert [second & 1 for _, second in host.probe.commands] == [1, 0]


def test_a_new_second_level_table_is_announced_for_all_its_streams():
    host = Host()
    host.attached(NIC + 5, host.context())
    assert host.probe.commands[-3][0] == CFGI_STE_RANGE | (NIC & ~0xFF) << 32
    assert host.probe.commands[-3][1] == 7, "2^8 streams"
    host.probe.commands.clear()
    host.attached(NIC + 6, host.context())
    assert host.probe.ops() == [CFGI_STE, CFGI_STE]


# Moving devices


@CONFIGS
def test_reattaching_moves_the_device_and_only_it(config):
    host = Host([config])
    one, two = host.context(), host.context()
    nic, _ = host.attached(NIC, one), host.attached(COPIER, one)
    host.map(one, 5, FRAMES)
    host.map(two, 5, FRAMES + 1)
    assert host.reaches(NIC, 5, FRAMES) and host.reaches(COPIER, 5, FRAMES)
    assert host.backend.attach(nic, two) == 0
    assert host.reaches(NIC, 5, FRAMES + 1) and host.reaches(COPIER, 5, FRAMES)
    assert host.backend.attach(nic, one) == 0
    assert host.reaches(NIC, 5, FRAMES)


@CONFIGS
def test_a_detached_device_is_blocked_silently(config):
    host = Host([config])
    context = host.context()
    nic = host.attached(NIC, context)
    host.map(context, 5, FRAMES)
    assert host.reaches(NIC, 5, FRAMES)
    assert host.backend.detach(nic) == 0
    assert not host.reaches(NIC, 5, FRAMES)
    assert faults(host) == []


def test_a_device_that_comes_back_does_not_find_what_was_unmapped_meanwhile():
    host = Host()
    context = host.context()
    nic = host.attached(NIC, context)
    host.map(context, 5, FRAMES)
    assert host.reaches(NIC, 5, FRAMES)
    host.backend.detach(nic)
    host.unmap_and_flush(context, 5)  # no device: no command
    host.backend.attach(nic, context)
    assert not host.reaches(NIC, 5, FRAMES)


def test_a_new_context_does_not_inherit_what_its_vmid_once_reached():
    host = Host()
    context = host.context()
    nic = host.attached(NIC, context)
    host.map(context, 5, FRAMES)
    assert host.reaches(NIC, 5, FRAMES)
    vmid = host.ste(NIC)[2] & 0xFFFF
    host.backend.detach(nic)
    host.unmap_and_flush(context, 5)
    host.backend.context_release(context)
    again = host.context()
    host.backend.attach(nic, again)
    assert host.ste(NIC)[2] & 0xFFFF == vmid
    assert not host.reaches(NIC, 5, FRAMES)


def test_all_requester_ids_of_a_device_move_together():
    host = Host()
    one, two = host.context(), host.context()
    ids = (NIC, NIC + 2, NIC + 4)
    device = host.device(NIC, ids)
    assert host.backend.attach(device, one) == 0
    host.map(one, 5, FRAMES)
    host.map(two, 5, FRAMES + 1)
    assert all(host.reaches(sid, 5, FRAMES) for sid in ids)
    assert not host.reaches(NIC + 1, 5, FRAMES)
    assert host.backend.attach(device, two) == 0
    assert all(host.reaches(sid, 5, FRAMES + 1) for sid in ids)


def test_a_stream_never_translates_while_its_entry_changes():
    host = Host()
    one, two = host.context(), host.context()
    nic = host.attached(NIC, one)
    roots = {one.table.root << 12: one.hw.vmids[0], two.table.root << 12: two.hw.vmids[0]}
    states = []

    def look(first, second):
        if first & 0xFF == CFGI_STE:
            states.append(host.ste(NIC))

    host.probe.on_command = look
    assert host.backend.attach(nic, two) == 0
    assert [state[0] for state in states] == [0b0001, 0b0001, 0b1101]
    assert states[0][3] == one.table.root << 12
    assert states[1][2:] == states[2][2:]
    assert roots[states[2][3]] == states[2][2] & 0xFFFF
    assert states[2][3] == two.table.root << 12


# Superpages


@CONFIGS
def test_folding_and_splitting_under_dma(config):
    host = Host([config])
    context = host.context()
    host.attached(NIC, context)
    for k in range(BLOCK):
        host.map(context, k, FRAMES + k)
        assert host.reaches(NIC, k, FRAMES + k)
    assert context.table.lookup(0)[2] == 9
    assert host.reaches(NIC, 77, FRAMES + 77)
    assert host.unmap_and_flush(context, 77) == 0
    assert not host.reaches(NIC, 77, FRAMES + 77)
    assert host.reaches(NIC, 76, FRAMES + 76) and host.reaches(NIC, 78, FRAMES + 78)
    host.map(context, 77, FRAMES + 77)
    assert context.table.lookup(0)[2] == 9
    assert host.unmap_and_flush(context, 0, BLOCK) == 0
    assert not any(host.reaches(NIC, k, FRAMES + k) for k in range(0, BLOCK, 7))


def test_break_before_make_where_the_unit_wants_it():
    host = Host([OLD])
    context = host.context()
    host.attached(NIC & 0x3FF, context)
    seen = []

    def look(first, second):
        # nothing is there while the unit is told
        seen.append((first & 0xFF, context.table.lookup(0)))

    for k in range(BLOCK - 1):
        host.map(context, k, FRAMES + k)
    host.probe.on_command = look
    host.map(context, BLOCK - 1, FRAMES + BLOCK - 1)
    assert seen[0] == (S12_VMALL, None)
    assert context.table.lookup(0)[2] == 9
    seen.clear()
    host.unmap_and_flush(context, 5)
    assert seen[0] == (S12_VMALL, None)
    assert context.table.lookup(0)[2] == 0


def test_no_break_before_make_where_it_is_not_needed():
    host = Host()
    context = host.context()
    host.attached(NIC, context)
    host.probe.on_command = lambda first, second: lookups.append(context.table.lookup(0))
    lookups = []
    for k in range(BLOCK):
        host.map(context, k, FRAMES + k)
    host.unmap_and_flush(context, 5)
    assert lookups and None not in lookups


# Geometry and more than one unit


@pytest.mark.parametrize(
    "oas,levels,roots,vtcr",
    [
        (32, 3, 1, None),
        (36, 3, 1, None),
        (40, 3, 2, 0x23558),
        (42, 3, 8, None),
        (44, 4, 1, 0x43594),
        (48, 4, 1, None),
    ],
)
def test_both_ends_of_the_input_range_translate_at_every_width(oas, levels, roots, vtcr):
    host = Host([Smmuv3Config(oas=oas)])
    context = host.context()
    host.attached(NIC, context)
    assert (context.table.levels, context.table.root_frames) == (levels, roots)
    assert host.backend.max_iova == (1 << oas) - 1
    if vtcr is not None:
        assert host.ste(NIC)[2] >> 32 & 0x7FFFF == vtcr, "VTCR_EL2 as real Xen sets it"
    last = host.backend.max_iova >> 12
    for dfn in (0, last, last // 2, last // 2 + 1, last // 3):
        host.map(context, dfn, FRAMES + 3)
        assert host.reaches(NIC, dfn, FRAMES + 3)
    assert host.read(NIC, 1 << oas) is None


def test_concatenated_roots_come_out_of_the_arena_and_go_back_to_it():
    host = Host([Smmuv3Config(oas=42)])
    arena = host.arena(5)
    arena.allocate()
    context = host.context(arena)
    assert arena.used == 1 + 8
    assert context.table.root % 8 == 0
    nic = host.attached(NIC, context)
    dfn = host.backend.max_iova >> 12
    host.map(context, dfn, FRAMES)
    assert host.reaches(NIC, dfn, FRAMES)
    host.unmap_and_flush(context, dfn)
    host.backend.detach(nic)
    host.backend.context_release(context)
    assert arena.used == 1


def test_an_arena_without_a_run_for_the_roots_is_enomem_and_keeps_nothing():
    host = Host([Smmuv3Config(oas=40)])
    arena = host.arena(2)
    held = [arena.allocate() for _ in range(4)]
    arena.free(held[1])
    arena.free(held[2])
    context = type(host.context())(99, arena)
    assert host.backend.context_init(context) == -12
    assert (arena.used, context.table, context.hw) == (2, None, None)
    assert host.context().hw.vmids == (2,), "the VMID went back"


def test_the_narrowest_unit_sets_the_input_range_and_each_its_own_output():
    nodes = [SmmuNode(BASE, include_all=False, scope=(NIC,)), SmmuNode(BASE + DISTANCE)]
    host = Host([Smmuv3Config(oas=48), Smmuv3Config(oas=42)], nodes)
    assert host.backend.max_iova == (1 << 42) - 1
    context = host.context()
    host.attached(NIC, context)
    host.attached(COPIER, context)
    assert host.ste(NIC, 0)[2] >> 48 & 7 == 5
    assert host.ste(COPIER, 1)[2] >> 48 & 7 == 3
    dfn = host.backend.max_iova >> 12
    host.map(context, dfn, FRAMES)
    assert host.reaches(NIC, dfn, FRAMES) and host.reaches(COPIER, dfn, FRAMES)
    changes = host.unmap(context, dfn)
    assert host.backend.flush(context, dfn, 1, changes) == 0
    assert not host.reaches(NIC, dfn, FRAMES) and not host.reaches(COPIER, dfn, FRAMES)


def test_flushes_go_only_to_units_that_the_context_uses():
    nodes = [SmmuNode(BASE, include_all=False, scope=(NIC,)), SmmuNode(BASE + DISTANCE)]
    host = Host([Smmuv3Config(), Smmuv3Config()], nodes)
    context = host.context()
    nic = host.attached(NIC, context)
    copier = host.attached(COPIER, context)
    host.map(context, 5, FRAMES, 3)
    assert host.reaches(NIC, 5, FRAMES)
    assert host.backend.detach(nic) == 0
    assert host.probes[0].ops()[-1] == S12_VMALL
    for probe in host.probes:
        probe.commands.clear()
    host.unmap_and_flush(context, 5)
    assert host.probes[0].commands == []
    assert host.probes[1].ops() == [S2_IPA]
    assert host.backend.detach(copier) == 0


def test_a_device_behind_no_unit_cannot_be_attached():
    host = Host(nodes=[SmmuNode(BASE, segment=1)])
    assert host.backend.attach(host.device(NIC), host.context()) == -19


def test_stream_ids_count_from_the_offset_in_the_iort():
    host = Host(nodes=[SmmuNode(BASE, stream_offset=0x300)])
    host.attached(COPIER, host.context())
    assert host.ste(COPIER + 0x300)[0] == 0b1101
    assert host.ste(COPIER) is None


# Snapshots


def test_going_back_to_a_snapshot_undoes_attach_flush_and_faults():
    host = Host()
    one, two = host.context(), host.context()
    nic = host.attached(NIC, one)
    host.map(one, 5, FRAMES)
    host.map(two, 5, FRAMES + 1)
    assert host.reaches(NIC, 5, FRAMES)
    for _ in range(3):
        host.memory.snapshot()
        kept = (host.backend.save(), [u.save() for u in host.units], one.table.save(), two.table.save(), one.hw, two.hw)
        devices = nic.hw
        frames = host.frames.save()
        assert host.backend.attach(nic, two) == 0
        assert host.unmap_and_flush(one, 5) == 0
        host.attached(COPIER, two)
        host.attached(0x4242, two)
        host.read(NIC, 0x9000)
        host.context()
        host.memory.reset()
        host.backend.restore(kept[0])
        for unit, state in zip(host.units, kept[1]):
            unit.restore(state)
        one.table.restore(kept[2])
        two.table.restore(kept[3])
        one.hw, two.hw, nic.hw = kept[4], kept[5], devices
        host.frames.restore(frames)
        assert host.reaches(NIC, 5, FRAMES)
        assert not host.reaches(COPIER, 5, FRAMES + 1)
        host.backend.take_faults()
        changes = host.unmap(one, 5)
        assert host.backend.flush(one, 5, 1, changes) == 0
        assert not host.reaches(NIC, 5, FRAMES)
        for table in changes.tables:
            one.pool.free(table)
        host.map(one, 5, FRAMES)


def test_enable_forgets_what_an_earlier_system_left():
    host = Host()
    context = host.context()
    host.attached(NIC, context)
    host.map(context, 5, FRAMES)
    assert host.reaches(NIC, 5, FRAMES)
    host.probe.commands.clear()
    assert host.backend.enable() == 0
    assert NSNH_ALL in host.probe.ops()
    assert host.reaches(NIC, 5, FRAMES)
    assert host.backend.format.permission[3] == RW
