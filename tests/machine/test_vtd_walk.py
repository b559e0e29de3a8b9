# SPDX-License-Identifier: GPL-2.0-or-later
"""A walk told step by step, and the fast path held against it and against a third, naive reading of the manual."""

from hypothesis import given, settings
from hypothesis import strategies as st
from vtd_machine import PS, RW, SID, R, VtdMachine

from machine.iommu.replacement import parse
from machine.iommu.unit import Fault
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.reasons import FAULT_NAMES

IOVA = 0x12_3456_7890


def told(machine, iova=IOVA, write=False, sid=SID):
    walk = machine.unit.walk(sid, iova, write)
    return [f"{step.name} {step.level} [{step.slot}]: {step.meaning}" for step in walk.steps], walk


def test_walk_tells_every_entry_on_the_way_to_a_page():
    machine = VtdMachine()
    table = machine.context(SID, machine.page(), did=5)
    at = machine.map(table, IOVA, 0x20_0000, R | 1 << 11)
    machine.start()
    steps, walk = told(machine)
    context = machine.memory.read64(machine.root) & ~0xFFF
    pointers = [machine.memory.read64(machine.entry_at(table, IOVA, level)) & ~0xFFF for level in (4, 3, 2)]
    assert steps == [
        f"root entry None [0]: P CTP={context:#x}",
        f"context entry None [24]: P TT=0 (second level) AW=2 (48-bit) DID=5 SLPTPTR={table:#x}",
        f"SL-PML4E 4 [0]: R W table -> {pointers[0]:#x}",
        f"SL-PDPE 3 [72]: R W table -> {pointers[1]:#x}",
        f"SL-PDE 2 [418]: R W table -> {pointers[2]:#x}",
        "SL-PTE 1 [359]: R 4K leaf -> 0x200000 SNP",
    ]
    assert (walk.steps[-1].maddr, walk.steps[-1].words) == (at, (0x20_0801,))
    assert (walk.maddr, walk.page_size, walk.readable, walk.writable) == (0x20_0890, 4096, True, False)
    assert walk.blocked is None


def test_walk_of_a_superpage_ends_at_its_level():
    machine = VtdMachine()
    table = machine.context(SID, machine.page())
    machine.map(table, IOVA, 0x4000_0000, level=2)
    machine.start()
    steps, walk = told(machine, write=True)
    assert steps[-1] == "SL-PDE 2 [418]: R W 2M leaf -> 0x40000000"
    assert (walk.maddr, walk.page_size) == (0x4000_0000 | IOVA & 0x1F_FFFF, 2 << 20)


def test_walk_says_why_a_request_is_blocked():
    machine = VtdMachine()
    assert told(machine)[1].maddr == IOVA  # translation is off
    machine.start()
    assert told(machine) == (["root entry None [0]: not present"], machine.unit.walk(SID, IOVA))
    assert told(machine)[1].blocked == "root entry not present"
    machine.root_entry(0, 0x4000_0001)
    assert told(machine)[0][-1] == "context entry None [24]: no RAM here"
    machine.root_entry(0, 0)
    machine.context_entry(SID, 2, 0)
    assert told(machine)[0][-1] == "context entry None [24]: not present FPD"
    machine.context_entry(SID, 0x4000_0011, 0x103)
    steps, walk = told(machine)
    assert steps[-1].endswith("AW=3 (not supported) DID=1 SLPTPTR=0x40000000, reserved bits 0x10 0x0")
    assert walk.blocked == "reserved bit in context entry"
    machine.context_entry(SID, 0x4000_0001, 0x102)
    steps, walk = told(machine)
    assert steps[-1] == "SL-PML4E 4 [0]: no RAM here" and walk.blocked == "invalid context entry"
    machine.context_entry(SID, 0x9, 0x102)
    steps, walk = told(machine)
    assert steps[-1] == "context entry None [24]: P TT=2 (pass-through) AW=2 (48-bit) DID=1"
    assert walk.maddr == IOVA and walk.page_size is None
    table = machine.context(SID, machine.page())
    assert told(machine)[0][-1] == "SL-PML4E 4 [0]: not present"
    machine.map(table, IOVA, 0x40_1000, level=2)
    steps, walk = told(machine)
    assert steps[-1] == "SL-PDE 2 [418]: R W 2M leaf -> 0x401000, reserved bits 0x1000"
    assert walk.blocked == "reserved bit in second-level entry"
    assert told(machine, 1 << 48)[1].blocked == "address beyond the input width"
    assert told(machine, 0xFEE0_0000)[1].blocked == "interrupt address range"
    assert told(machine, 0xFEE0_0000, write=True)[1].maddr == 0xFEE0_0000


def test_walk_leaves_no_trace():
    machine = VtdMachine().start()
    before = machine.unit.save()
    told(machine)
    assert machine.unit.save() == before


# The naive reading: bytes in, one question at a time, no masks shared with the model.


def field(word, high, low):
    return int(f"{word:064b}"[63 - high : 64 - low], 2)


def naive(machine, sid, iova, write):
    """Fault reason, or (machine address, bytes covered)."""
    config, ram = machine.unit.config, machine.memory

    def word(maddr):
        return int.from_bytes(ram.read(maddr, 8), "little") if maddr + 8 <= ram.size else None

    def zero(value, high, low):
        return high < low or field(value, high, low) == 0

    haw = config.host_address_width
    if 0xFEE0_0000 <= iova <= 0xFEEF_FFFF:
        return (iova, None) if write and iova % 4 == 0 else 0xE
    root = machine.root + (sid >> 8) * 16
    low, high = word(root), word(root + 8)
    if low is None:
        return 8
    if not field(low, 0, 0):
        return 1
    if not (zero(low, 11, 1) and zero(low, 63, haw) and high == 0):
        return 0xA
    context = field(low, 63, 12) * 4096 + (sid & 255) * 16
    low, high = word(context), word(context + 8)
    if low is None:
        return 9
    if not field(low, 0, 0):
        return 2
    kind = field(low, 3, 2)
    pointer_ok = kind == 2 or zero(low, 63, haw)
    if not (zero(low, 11, 4) and pointer_ok and zero(high, 7, 7) and zero(high, 63, 24)):
        return 0xB
    if config.domain_id_bits < 16 and field(high, 23, 8 + config.domain_id_bits):
        return 0xB
    width = {1: 39, 2: 48}.get(field(high, 2, 0))
    if (
        width not in config.address_widths
        or kind == 3
        or (kind == 1 and not config.device_tlb)
        or (kind == 2 and not config.pass_through)
    ):
        return 3
    if iova >= 2 ** min(width, config.max_guest_address_width):
        return 4
    if kind == 2:
        return (iova, None)
    table, rights = field(low, 63, 12) * 4096, {0, 1}
    levels = {39: 3, 48: 4}[width]
    for level in range(levels, 0, -1):
        size = 4096 * 512 ** (level - 1)
        entry = word(table + iova // size % 512 * 8)
        if entry is None:
            return 3 if level == levels else 7
        rights &= {right for right in (0, 1) if field(entry, right, right)}
        if int(write) not in rights:
            return 5 if write else 6
        leaf = level == 1 or field(entry, 7, 7) == 1
        sizes = {1: True, 2: config.superpage_2m, 3: config.superpage_1g, 4: False}
        if leaf and not sizes[level]:
            return 0xC
        good = zero(entry, 51, haw) and zero(entry, 62, 62)
        good = good and (zero(entry, 11, 11) or (leaf and config.snoop_control))
        if leaf and level > 1:
            good = good and zero(entry, {2: 20, 3: 29}[level], 12)
        if not good:
            return 0xC
        table = field(entry, 51, 12) * 4096
        if leaf:
            output = table + iova % size
            return 0xE if 0xFEE0_0000 <= output < 0xFEF0_0000 else (output, size)
    raise AssertionError


CONFIGS = st.builds(
    VtdConfig,
    domain_id_bits=st.sampled_from((4, 8, 16)),
    address_widths=st.sampled_from(((39, 48), (39,), (48,))),
    max_guest_address_width=st.sampled_from((48, 42, 39)),
    host_address_width=st.sampled_from((36, 39, 48, 52)),
    superpage_1g=st.booleans(),
    pass_through=st.booleans(),
    device_tlb=st.booleans(),
    snoop_control=st.booleans(),
    caching_mode=st.booleans(),
    paging_structure_caches=st.booleans(),
    collapse_faults=st.booleans(),
)
ONE_BIT = st.integers(0, 63).map(lambda bit: 1 << bit)
MASKS = st.one_of(
    ONE_BIT, ONE_BIT, st.builds(int.__or__, ONE_BIT, ONE_BIT), st.integers(0, (1 << 64) - 1), st.just(RW), st.just(PS)
)
WHERE = st.sampled_from(("root", "root high", "context", "context high", 4, 3, 2, 1))
IOVAS = st.one_of(
    st.just(IOVA),
    st.integers(0, (1 << 48) - 1),
    st.integers(0, 52).map(lambda bit: 1 << bit),
    st.integers(0xFEDF_FFF0, 0xFEF0_0010),
)
TARGETS = st.sampled_from((0x20_0000, 0x4000_0000, 0xFEE0_0000, 0xC000_0000, 0x10_0000))


def spoil(machine, table, top, where, mask):
    memory = machine.memory
    if isinstance(where, int):
        at = table  # the table's first bytes, unless the way down still leads through RAM
        if where <= top:
            for level in range(top, where - 1, -1):
                at = table + 8 * (IOVA >> 9 * level + 3 & 511)
                table = memory.read64(at) & 0xFF_FFFF_F000
                if table + 4096 > memory.size:
                    break
    else:
        at = machine.root
        if where.startswith("context"):
            at = (memory.read64(machine.root) & 0xFF_FFFF_F000) + 16 * SID
        if where.endswith("high"):
            at += 8
        if at + 8 > memory.size:
            return
    memory.write64(at, memory.read64(at) ^ mask)


@settings(max_examples=400, deadline=None)
@given(
    config=CONFIGS,
    kind=st.sampled_from((0, 0, 0, 1, 2)),
    aw=st.sampled_from((1, 2, 2)),
    level=st.sampled_from((1, 1, 2, 3)),
    target=TARGETS,
    rights=st.sampled_from((RW, RW, R, 2)),
    edits=st.lists(st.tuples(WHERE, MASKS), max_size=3),
    requests=st.lists(st.tuples(st.one_of(st.just(IOVA), IOVAS), st.booleans()), min_size=1, max_size=4),
)
def test_fast_path_told_walk_and_naive_reading_agree(config, kind, aw, level, target, rights, edits, requests):
    machine = VtdMachine(config, size=2 << 20)
    top = aw + 2
    table = machine.context(SID, machine.page(), aw=aw, did=3, tt=kind)
    machine.map(table, IOVA, target, rights, level, top)
    machine.start()
    for where, mask in edits:
        spoil(machine, table, top, where, mask)
    for iova, write in requests:
        expected = naive(machine, SID, iova, write)
        told_walk = machine.unit.walk(SID, iova, write)
        for _ in range(2):  # once from memory, once from what the first left in the caches
            got = machine.unit.translate(SID, iova, write)
            if isinstance(expected, int):
                assert isinstance(got, Fault) and got.code == expected
                assert told_walk.blocked == FAULT_NAMES[expected] and told_walk.maddr is None
            else:
                assert got == told_walk.maddr == expected[0]
                assert told_walk.page_size == expected[1]


# Totality: whatever software leaves in registers, tables and queues, the unit answers.

RAM = 64 << 12
WORDS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.builds(lambda page, low: page << 12 | low, st.integers(0, 70), st.integers(0, 0xFFF)),
    st.builds(
        lambda kind, high: (kind | high << 16) & (1 << 64) - 1,
        st.sampled_from((1, 2, 4, 5, 0x65, 0xF2, 0x31, 0x15)),
        MASKS,
    ),
)
OFFSETS = st.one_of(
    st.sampled_from((0x18, 0x20, 0x28, 0x34, 0x38, 0x3C, 0x40, 0x44, 0x88, 0x90, 0x9C, 0xA0, 0xA4, 0xA8, 0xF0, 0xF8)),
    st.integers(-16, 0x1010),
)
ACTIONS = st.one_of(
    st.tuples(st.just("write"), OFFSETS, st.sampled_from((1, 2, 4, 8)), WORDS),
    st.tuples(st.just("write"), st.just(0x18), st.just(4), st.sampled_from((0xC400_0000, 0x8400_0000, 0x8000_0000))),
    st.tuples(st.just("store"), st.integers(0, RAM // 8 - 1), st.just(0), WORDS),
    st.tuples(st.just("read"), OFFSETS, st.sampled_from((1, 2, 4, 8)), st.just(0)),
    st.tuples(st.just("dma"), st.integers(0, 0xFFFF), st.integers(0, 1), st.one_of(WORDS, st.integers(0, 1 << 39))),
)


@settings(max_examples=200, deadline=None)
@given(config=CONFIGS, filler=st.integers(0, 1 << 30), actions=st.lists(ACTIONS, max_size=40))
def test_no_bit_pattern_makes_the_unit_raise(config, filler, actions):
    machine = VtdMachine(config, size=RAM)
    unit, words = machine.unit, machine.memory.words
    for index in range(filler % 3, RAM // 8, 37):
        words[index] = (filler * (index | 1) & 0x3F) << 12 | filler >> index % 24 & 0xFF
    for what, where, how, value in actions:
        if what == "write":
            unit.write(where, how, value & (1 << 8 * how) - 1)
        elif what == "store":
            words[where] = value
        elif what == "read":
            assert 0 <= unit.read(where, how) < 1 << 8 * how
        else:
            answer = unit.translate(where, value, bool(how))
            assert isinstance(answer, Fault) or answer >= 0
            unit.walk(where, value, bool(how))
    unit.restore(unit.save())


# Invalidation against history: an answer may be old, but only as old as the last command that named it.


@settings(max_examples=100, deadline=None)
@given(
    config=st.builds(VtdConfig, caching_mode=st.booleans(), paging_structure_caches=st.booleans()),
    policy=st.sampled_from(("stale", "stale", "eager", "oldest:3", "random:1", "random:2")),
    steps=st.lists(
        st.tuples(
            st.sampled_from(("map", "map", "super", "unmap", "use", "use", "pages", "domain", "hint")),
            st.integers(0, 15),
            st.integers(0, 3),
        ),
        max_size=60,
    ),
)
def test_answers_are_never_older_than_the_last_invalidation_that_names_them(config, policy, steps):
    """Pages 0-7 of one 2 MiB region and 8-15 of the next; ``possible`` holds every answer memory gave since."""
    machine = VtdMachine(config, replacement=parse(policy))
    table = machine.context(SID, machine.page(), did=2)
    machine.start()

    def address(page):
        return (page >> 3 << 21) + (page & 7 << 0) * 0x1000

    def now(page):
        return machine.unit.walk(SID, address(page), True).maddr

    possible = {page: {now(page)} for page in range(16)}
    for what, page, detail in steps:
        iova = address(page)
        if what in ("map", "super", "unmap"):
            entry = machine.entry_at(table, iova, 2)
            old = machine.memory.read64(entry)
            if what == "super" or old & PS:
                machine.memory.write64(entry, 0x40_0000 * detail | PS | RW if what == "super" else 0)
            else:
                target = 0x1000 * (16 * detail + page)
                machine.map(table, iova, target, RW if what == "map" else 0)
            for each in range(16):
                possible[each].add(now(each))
        elif what == "use":
            got = machine.unit.translate(SID, iova, True)
            assert (None if isinstance(got, Fault) else got) in possible[page]
        else:
            # Without its hint a command also forgets the way to the pages, so it renews what it names; with
            # the hint the old tables may still be walked.
            first, count = (page & ~((1 << detail) - 1), 1 << detail) if what != "domain" else (0, 16)
            if what == "domain":
                assert machine.submit((0xE2 | 2 << 16, 0))
            else:
                assert machine.submit((0xF2 | 2 << 16, iova | (what == "hint") << 6 | detail))
            if what != "hint":
                for each in range(first, first + count):
                    possible[each] = {now(each)}
