# SPDX-License-Identifier: GPL-2.0-or-later
"""Scalable mode held against a naive reading of the manual, and against what memory said since the last command."""

from hypothesis import given, settings
from hypothesis import strategies as st
from vtd_machine import SID, iotlb_domain
from vtd_scalable import (
    DID,
    FS,
    FULL,
    IOVA,
    NESTED,
    PT,
    RID_PASID,
    SHIFT,
    SS,
    TARGET,
    USER,
    WRITE,
    P,
    Stages,
    pasid_iotlb,
    pasid_iotlb_pages,
)

from machine.iommu.replacement import parse
from machine.iommu.unit import Fault
from machine.iommu.vtd.reasons import FAULT_NAMES


def field(word, high, low):
    return int(f"{word:064b}"[63 - high : 64 - low] or "0", 2)


class Stop(Exception):
    pass


def naive_second(machine, address, write):
    config, ram = machine.unit.config, machine.memory
    table, allowed = machine.second, {0, 1}
    if address >= 2**48:
        raise Stop(0x84)
    for level in (4, 3, 2, 1):
        size = 4096 * 512 ** (level - 1)
        at = table + address // size % 512 * 8
        if at + 8 > ram.size:
            raise Stop(0x7B if level == 4 else 0x78)
        entry = ram.read64(at)
        if field(entry, 1, 0) == 0:
            raise Stop(0x79)
        allowed &= {bit for bit in (0, 1) if field(entry, bit, bit)}
        if int(write) not in allowed:
            raise Stop(0x85 if write else 0x86)
        leaf = level == 1 or field(entry, 7, 7)
        bad = field(entry, 51, config.host_address_width) or field(entry, 62, 62)
        bad = bad or (not leaf and field(entry, 11, 11)) or (leaf and level == 4)
        if leaf and level in (2, 3):
            bad = bad or field(entry, {2: 20, 3: 29}[level], 12)
        if bad:
            raise Stop(0x7A)
        table = field(entry, 51, 12) * 4096
        if leaf:
            return table + address % size, size
    raise AssertionError


def naive_first(machine, address, write, supervisor, wpe):
    config, ram = machine.unit.config, machine.memory
    if field(address, 63, 47) not in (0, 2**17 - 1):
        raise Stop(0x80)
    table, user, writable = machine.guest(machine.first), True, True
    for level in (4, 3, 2, 1):
        size = 4096 * 512 ** (level - 1)
        at = table + address // size % 512 * 8
        if machine.kind == NESTED:
            if at >= 2**48:
                raise Stop(0x74)
            try:
                at = naive_second(machine, at, False)[0]
            except Stop as stop:
                if stop.args[0] in (0x79, 0x86):
                    raise Stop(0x75 if level == 4 else 0x76) from None
                raise
        if at + 8 > ram.size:
            raise Stop(0x73 if level == 4 else 0x70)
        entry = ram.read64(at)
        if not field(entry, 0, 0):
            raise Stop(0x71)
        user, writable = user and bool(field(entry, 2, 2)), writable and bool(field(entry, 1, 1))
        if not user and not supervisor:
            raise Stop(0x81)
        if write and not writable and (wpe or not supervisor):
            raise Stop(0x85)
        leaf = level == 1 or field(entry, 7, 7)
        bad = field(entry, 51, config.host_address_width) or (leaf and level == 4)
        if leaf and level in (2, 3):
            bad = bad or field(entry, {2: 20, 3: 29}[level], 13)
        if leaf and level == 3:
            bad = bad or not config.first_stage_1g
        if bad:
            raise Stop(0x72)
        table = field(entry, 51, 12) * 4096
        if leaf:
            output = table // size * size + address % size
            if machine.kind != NESTED:
                return output, size
            if output >= 2**48:
                raise Stop(0x74)
            output, behind = naive_second(machine, output, write)
            return output, min(size, behind)
    raise AssertionError


def naive(machine, address, write, supervisor, wpe):
    try:
        if machine.kind == PT:
            if address >= 2**48:
                raise Stop(0x83)
            output, size = address, None
        elif machine.kind == SS:
            output, size = naive_second(machine, address, write)
        else:
            output, size = naive_first(machine, address, write, supervisor, wpe)
        if 0xFEE0_0000 <= output < 0xFEF0_0000:
            raise Stop(0x87)
    except Stop as stop:
        return stop.args[0]
    return output, size


ONE_BIT = st.integers(0, 63).map(lambda bit: 1 << bit)
REQUESTS = st.lists(
    st.tuples(
        st.one_of(
            st.just(IOVA),
            st.just(IOVA + 0x1000),
            st.integers(0, (1 << 48) - 1),
            st.integers(0, 63).map(lambda bit: 1 << bit),
            st.integers(0xFEDF_FFF0, 0xFEF0_0010),
        ),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from((FS, FS, SS, NESTED, NESTED, PT)),
    haw=st.sampled_from((46, 52)),
    first_1g=st.booleans(),
    supervisor=st.booleans(),
    bits=st.sampled_from((0, 1 << 4, 1 << 9, 1 << 7)),
    policy=st.sampled_from(("stale", "stale", "eager", "random:3")),
    level=st.sampled_from((1, 1, 2, 3)),
    flags=st.sampled_from((FULL, FULL, P | USER, P | WRITE, P)),
    target=st.sampled_from((TARGET, 0x4000_0000, 0xFEE0_0000 - SHIFT, 0xFEE0_0000, 0)),
    first_edits=st.lists(st.tuples(st.sampled_from((4, 3, 2, 1)), ONE_BIT), max_size=2),
    second_edits=st.lists(st.tuples(st.sampled_from((4, 3, 2)), st.booleans(), ONE_BIT), max_size=1),
    requests=REQUESTS,
)
def test_unit_told_walk_and_naive_reading_agree_in_scalable_mode(
    kind, haw, first_1g, supervisor, bits, policy, level, flags, target, first_edits, second_edits, requests
):
    machine = Stages(
        kind, supervisor=supervisor, bits=bits, policy=parse(policy), host_address_width=haw, first_stage_1g=first_1g
    )
    machine.put(target & -(4096 << 9 * (level - 1)), flags, level)
    for at_level, mask in first_edits if kind in (FS, NESTED) else ():
        if at_level >= level:
            at = machine.fs_at(level=at_level)
            if at + 8 <= machine.memory.size:
                machine.memory.write64(at, machine.memory.read64(at) ^ mask)
            if at_level > level:
                break
    for at_level, data, mask in second_edits if kind in (SS, NESTED) else ():
        where = IOVA if kind == SS else machine.guest(TARGET if data else machine.first)
        if kind == NESTED or at_level >= level:
            at = machine.entry_at(machine.second, where, at_level)
            machine.memory.write64(at, machine.memory.read64(at) ^ mask)
    for iova, write in requests:
        expected = naive(machine, iova, write, False, bool(bits & 1 << 4))
        told = machine.unit.walk(SID, iova, write, RID_PASID)
        for _ in range(2):
            got = machine.request(iova, write, RID_PASID)
            if isinstance(expected, int) or (isinstance(got, Fault) and got.code == 0x77):
                assert isinstance(got, Fault)
                # The told walk changes nothing, so it cannot meet an update that the second stage denies.
                assert got.code == expected or (got.code == 0x77 and kind == NESTED)
                assert got.code == 0x77 or told.blocked == FAULT_NAMES[expected]
            else:
                assert got == told.maddr == expected[0]
                assert told.page_size == expected[1]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from((FS, SS, NESTED)),
    policy=st.sampled_from(("stale", "eager", "oldest:2", "random:5")),
    steps=st.lists(
        st.tuples(
            st.sampled_from(("map", "unmap", "use", "use", "page", "pasid", "domain")),
            st.integers(0, 7),
            st.integers(0, 3),
        ),
        max_size=40,
    ),
)
def test_no_answer_is_older_than_the_last_command_that_names_it(kind, policy, steps):
    machine = Stages(kind, policy=parse(policy))

    def now(page):
        return machine.unit.walk(SID, IOVA + page * 0x1000, True).maddr

    possible = {page: {None} for page in range(8)}
    for what, page, detail in steps:
        iova = IOVA + page * 0x1000
        if what in ("map", "unmap"):
            machine.put(TARGET + 0x1000 * (detail * 8 + page), FULL if what == "map" else 0, iova=iova)
            possible[page].add(now(page))
        elif what == "use":
            got = machine.request(iova, True)
            assert (None if isinstance(got, Fault) else got) in possible[page]
        elif what == "domain" or kind == SS:
            assert machine.submit(iotlb_domain(DID))
            possible = {each: {now(each)} for each in range(8)}
        elif what == "pasid":
            assert machine.submit(pasid_iotlb(DID, RID_PASID))
            possible = {each: {now(each)} for each in range(8)}
        else:
            assert machine.submit(pasid_iotlb_pages(DID, RID_PASID, iova))
            possible[page] = {now(page)}
