# SPDX-License-Identifier: GPL-2.0-or-later
"""Words in memory against values typed from the manual or dumped from a real Xen: descriptors, entries, geometry."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smmuv3_host import BASE, COPIER, NIC, Host

from hypervisor.iommu.pool import Arena
from hypervisor.smmuv3.events import decode
from hypervisor.smmuv3.format import STAGE2
from hypervisor.smmuv3.geometry import allocate_root, geometry
from machine.iommu.smmuv3.config import Smmuv3Config

XEN_TYPE_BITS = 0xF << 55


@pytest.mark.parametrize(
    "xen,level,permission",
    [
        (0x0540_0000_0000_07FF, 1, 3),  # p2m_iommu_map_rw
        (0x05C0_0000_0000_077F, 1, 1),  # p2m_iommu_map_ro
        (0x0540_0000_0000_07FD, 2, 3),
        (0x0540_0000_0000_07FD, 3, 3),
    ],
)
def test_leaves_are_those_of_xens_p2m_but_for_the_type(xen, level, permission):
    entry = STAGE2.leaf_bits[level] | STAGE2.permission[permission]
    assert entry == xen & ~XEN_TYPE_BITS


def test_leaves_and_tables_are_told_apart_at_every_level():
    for level in (1, 2, 3):
        assert STAGE2.is_leaf(STAGE2.leaf_bits[level] | STAGE2.permission[1], level)
    for level in (2, 3, 4):
        assert not STAGE2.is_leaf(5 << 12 | STAGE2.table_bits, level)
    assert STAGE2.table_bits == 3


def test_a_leaf_keeps_permission_and_mark_across_levels():
    entry = 512 << 12 | STAGE2.leaf_bits[1] | STAGE2.permission[1] | STAGE2.referenced
    up = STAGE2.at_level(entry, 1, 2)
    assert up == 512 << 12 | STAGE2.leaf_bits[2] | STAGE2.permission[1] | STAGE2.referenced
    assert STAGE2.at_level(up, 2, 1) == entry


def test_the_entry_of_an_attached_stream():
    host = Host([Smmuv3Config(oas=44)])
    context = host.context()
    host.attached(COPIER, context)
    vmid = context.hw.vmids[0]
    dw2 = vmid | 0x43594 << 32 | 1 << 51 | 1 << 54 | 1 << 58  # VTCR of a real Xen; AA64, PTW, R
    assert host.ste(COPIER) == (0b1101, 1 << 44, dw2, context.table.root << 12, 0, 0, 0, 0)


def test_neighbours_of_an_attached_stream_abort():
    host = Host()
    host.attached(COPIER, host.context())
    for sid in range(256):
        if sid != COPIER:
            assert host.ste(sid) == (1, 1 << 44, 0, 0, 0, 0, 0, 0)
    assert host.ste(0x100) is None


def test_a_linear_table_aborts_from_one_end_to_the_other():
    host = Host([Smmuv3Config(two_level=False, sid_bits=10)])
    host.attached(NIC, host.context())
    assert host.bus.read32(BASE + 0x88) == 10
    for sid in range(1024):
        assert host.ste(sid)[0] == (0b1101 if sid == NIC else 1)


@pytest.mark.parametrize("sid_bits", [4, 8, 9, 12, 16, 20, 32])
def test_stream_tables_of_every_size(sid_bits):
    host = Host([Smmuv3Config(sid_bits=sid_bits)])
    sid = (1 << min(sid_bits, 16)) - 1
    host.attached(sid, host.context())
    assert host.ste(sid)[0] == 0b1101
    base = host.units[0].read(0x80, 8) & 0xF_FFFF_FFFF_FFC0
    size = 8 << max(0, sid_bits - 8) if sid_bits > 8 else 64 << sid_bits
    assert base % min(size, 8 << 8) == 0
    assert host.units[0].read(0x88, 4) >> 16 == (sid_bits > 8)


def test_ids_and_addresses_of_events():
    record = (0x10 | 0x103 << 32, 1 << 35 | 1 << 39, 0xABC_D123, 0xABC_D000)
    assert decode(2, record)[:6] == (2, 0x103, 0xABC_D123, False, 0x10, "F_TRANSLATION")
    assert decode(0, (0x13 | 7 << 32, 0, 0x1000, 0))[1:4] == (7, 0x1000, True)
    assert decode(0, (0x04 | 7 << 32, 0, 0xFFFF, 0))[2:6] == (0, False, 4, "C_BAD_STE")
    assert decode(0, (0xE3, 0, 0, 0))[5] == "event 0xe3"


@pytest.mark.parametrize(
    "bits,levels,t0sz,sl0,roots",
    [(32, 3, 32, 1, 1), (36, 3, 28, 1, 1), (40, 3, 24, 1, 2), (42, 3, 22, 1, 8), (44, 4, 20, 2, 1), (48, 4, 16, 2, 1)],
)
def test_full_widths_are_xens(bits, levels, t0sz, sl0, roots):
    shape = geometry(bits, bits)
    assert (shape.levels, shape.t0sz, shape.sl0, shape.root_frames) == (levels, t0sz, sl0, roots)


@settings(max_examples=100, deadline=None)
@given(order=st.integers(0, 6), taken=st.sets(st.integers(0, 63)), bits=st.sampled_from([40, 41, 42, 43]))
def test_roots_are_found_in_an_arena_exactly_if_there_is_a_run(order, taken, bits):
    shape = geometry(bits, 43)
    arena = Arena(64, 1 << order)
    frames = [arena.allocate() for _ in range(1 << order)]
    held = {k for k in taken if k < 1 << order}
    for k, frame in enumerate(frames):
        if k not in held:
            arena.free(frame)
    root = allocate_root(shape, None, arena)
    count = shape.root_frames
    runs = [first for first in range(0, 1 << order, count) if not held & set(range(first, first + count))]
    runs = [first for first in runs if first + count <= 1 << order]
    assert root == (64 + runs[0] if runs else None)
    assert arena.used == len(held) + (count if runs else 0)
