# SPDX-License-Identifier: GPL-2.0-or-later
"""Several units with different capabilities in one machine, and units that meet whatever bytes there are."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vtd_machine import CAP, ECAP, FSTS, GCMD, PPF, QIE, RTADDR, SID, SRTP, TE, VtdMachine
from vtd_scalable import FS, NESTED, SS, ScalableMachine

from machine.dma import DmaFabric
from machine.iommu.replacement import parse
from machine.iommu.unit import Fault
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.unit import VtdUnit

SECOND_BASE = 0xFEDA_0000
IOVA = 0x40_0000_0000


def pair(**config):
    """A machine whose second unit has capabilities of its own; both walk the same root table."""
    machine = VtdMachine()
    second = VtdUnit("vtd1", machine.bus, VtdConfig(**config))
    machine.bus.map(SECOND_BASE, second.register_size, second)
    fabric = DmaFabric(machine.bus)
    fabric.cover(machine.unit)
    fabric.cover(second, SID + 8)
    machine.start()
    machine.bus.write64(SECOND_BASE + RTADDR, machine.root)
    machine.bus.write32(SECOND_BASE + GCMD, SRTP)
    machine.bus.write32(SECOND_BASE + GCMD, TE)
    return machine, second, fabric


def test_units_report_capabilities_of_their_own():
    machine, second, _ = pair(superpage_1g=False, domain_id_bits=8, device_tlb=True)
    assert machine.bus.read64(SECOND_BASE + CAP) == second.config.cap != machine.r64(CAP)
    assert machine.bus.read64(SECOND_BASE + ECAP) >> 2 & 1 and not machine.r64(ECAP) >> 2 & 1


def test_scope_decides_which_unit_translates_and_records():
    machine, second, fabric = pair(superpage_1g=False)
    table = machine.context(SID, machine.page(), did=5)
    machine.context(SID + 8, table, did=5)
    machine.map(table, IOVA, 0, level=3)
    assert fabric.port(SID).write(IOVA + 0x5000, b"x") is None
    fault = fabric.port(SID + 8).write(IOVA + 0x5000, b"y")
    assert (fault.unit, fault.code) == ("vtd1", 0xC)
    assert machine.bus.read32(SECOND_BASE + FSTS) & PPF and not machine.r32(FSTS)
    assert machine.memory.read(0x5000, 1) == b"x"
    assert second.counters.faults == 1 and machine.unit.counters.faults == 0


def test_invalidating_one_unit_leaves_the_other_stale():
    machine, _, fabric = pair()
    table = machine.context(SID, machine.page(), did=5)
    machine.context(SID + 8, table, did=5)
    at = machine.map(table, IOVA, 0x20_0000)
    for sid in (SID, SID + 8):
        assert fabric.port(sid).write(IOVA, b"x") is None
    machine.memory.write64(at, 0)
    assert machine.submit((0xE2 | 5 << 16, 0))
    assert isinstance(fabric.port(SID).write(IOVA, b"y"), Fault)
    assert fabric.port(SID + 8).write(IOVA, b"z") is None


@pytest.mark.parametrize("coherent", [False, True])
def test_each_unit_sees_memory_its_own_way(coherent):
    machine, _, fabric = pair(coherent_walk=coherent)
    table = machine.context(SID, machine.page())
    machine.context(SID + 8, table)
    machine.map(table, IOVA, 0x20_0000)
    assert fabric.port(SID).write(IOVA, b"x") is None
    assert (fabric.port(SID + 8).write(IOVA, b"x") is None) == coherent
    machine.bus.write_back(0, machine.memory.size)
    assert fabric.port(SID + 8).write(IOVA, b"x") is None


# Totality in every mode.

RAM = 64 << 12
WORDS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.builds(lambda page, low: page << 12 | low, st.integers(0, 70), st.integers(0, 0xFFF)),
    st.builds(
        lambda kind, high: (kind | high << 16) & (1 << 64) - 1,
        st.sampled_from((1, 2, 3, 4, 5, 6, 7, 8, 0x65, 0xF2, 0x36, 0x17)),
        st.integers(0, (1 << 48) - 1),
    ),
)
OFFSETS = st.one_of(st.sampled_from((0x18, 0x20, 0x28, 0x34, 0x38, 0x88, 0x90, 0xF0, 0xF8)), st.integers(-16, 0x1010))
ACTIONS = st.one_of(
    st.tuples(st.just("write"), OFFSETS, st.sampled_from((4, 8)), WORDS),
    st.tuples(st.just("write"), st.just(RTADDR), st.just(8), st.integers(0, 66).map(lambda page: page << 12 | 1 << 10)),
    st.tuples(st.just("write"), st.just(GCMD), st.just(4), st.sampled_from((TE | SRTP | QIE, TE | SRTP, TE | QIE))),
    st.tuples(st.just("store"), st.integers(0, RAM // 8 - 1), st.just(0), WORDS),
    st.tuples(st.just("flush"), st.integers(0, RAM), st.just(0), st.just(4096)),
    st.tuples(
        st.sampled_from(("dma", "dma", "ask", "translated")),
        st.integers(0, 0xFFFF),
        st.integers(0, 5),
        st.one_of(WORDS, st.integers(0, 1 << 39)),
    ),
)


@settings(max_examples=150, deadline=None)
@given(
    config=st.builds(
        VtdConfig,
        scalable=st.booleans(),
        device_tlb=st.booleans(),
        coherent_walk=st.booleans(),
        caching_mode=st.booleans(),
        five_levels=st.booleans(),
        second_stage_accessed_dirty=st.booleans(),
        supervisor_requests=st.booleans(),
        host_address_width=st.sampled_from((36, 52)),
    ),
    policy=st.sampled_from(("stale", "eager", "oldest:2", "random:8")),
    filler=st.integers(0, 1 << 30),
    actions=st.lists(ACTIONS, max_size=40),
)
def test_no_bit_pattern_makes_any_unit_raise(config, policy, filler, actions):
    machine = VtdMachine(config, size=RAM, replacement=parse(policy))
    unit, words = machine.unit, machine.memory.words
    for index in range(filler % 3, RAM // 8, 7):
        words[index] = (filler * (index | 1) & 0x3F) << 12 | filler >> index % 24 & 0xFFF
    for what, where, how, value in actions:
        pasid = None if how < 2 else how * 0x111 & 0xFFFFF
        if what == "write":
            unit.write(where, how, value & (1 << 8 * how) - 1)
        elif what == "store":
            words[where] = value
        elif what == "flush":
            machine.bus.write_back(where, value)
        elif what == "ask":
            assert unit.translation_request(where, value, bool(how & 1), pasid).maddr >= 0
        elif what == "translated":
            unit.translated_request(where, value, bool(how & 1))
        else:
            answer = unit.translate(where, value, bool(how & 1), pasid)
            assert isinstance(answer, Fault) or answer >= 0
            unit.walk(where, value, bool(how & 1), pasid)
    unit.restore(unit.save())


SPOILS = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, (1 << 64) - 1)), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(kind=st.sampled_from((FS, SS, NESTED)), spoils=SPOILS, pasid=st.sampled_from((None, 0, 0x41, 0x42)))
def test_spoiled_scalable_tables_never_raise(kind, spoils, pasid):
    machine = ScalableMachine(size=1 << 21, five_levels=True, second_stage_accessed_dirty=True)
    machine.scalable_context()
    first, second = machine.page(), machine.page()
    machine.fs_map(first, IOVA, 0x10_0000)
    machine.map(second, IOVA, 0x10_0000)
    machine.space(kind, fs=first, ss=second)
    machine.start()
    last = machine.page()
    used = [at for at in range(0x10_0000, last, 8) if machine.memory.read64(at)]
    for where, mask in spoils:
        at = used[where % len(used)]
        machine.memory.write64(at, machine.memory.read64(at) ^ (mask if mask & 1 else 1 << (mask >> 1 & 63)))
        for iova, write in itertools.product((IOVA, 0), (False, True)):
            answer = machine.request(iova, write, pasid)
            assert isinstance(answer, Fault) or answer >= 0
            machine.unit.walk(SID, iova, write, pasid)
