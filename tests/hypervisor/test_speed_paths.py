# SPDX-License-Identifier: GPL-2.0-or-later
"""Each short way that the hypercall path takes gives what the long way gives."""

import pytest
from guest_calls import RW, SCATTERED, Caller, R, W, bed
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from abi.canonical import CANONICAL
from base.units import PAGE_SHIFT
from hypervisor.errors import XenBug
from hypervisor.frames import REF, WRITABLE_REF, FrameTable
from hypervisor.guest_access import DIRECT_MAP, LinearMemory
from hypervisor.iommu.pool import HeapPool
from hypervisor.p2m import MMIO, NONE, RAM_RO, RAM_RW, P2m
from hypervisor.pagetable.format import ADDRESS_MASK
from hypervisor.pagetable.radix import Changes, PageTable
from hypervisor.vtd.format import SECOND_STAGE
from machine.memory import PhysicalMemory

FIRST = 0x1F0
"""Device frames from here on lie under two tables."""
BUFFER = 0x7000_0000_0000


# ------------------------------------------------------------------------------------------------- references


@settings(max_examples=150)
@given(
    held=st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=40),
    alike=st.booleans(),
    ref=st.sampled_from([REF, WRITABLE_REF]),
    drop=st.booleans(),
)
def test_references_on_a_run_are_those_on_each_of_its_frames(held, alike, ref, drop):
    counts = [max(held[0], 1)] * len(held) if alike else held
    tables = []
    for _ in range(2):
        table = FrameTable(64)
        table.allocate_at(1, 0, 64)
        for mfn, extra in enumerate(counts):
            for _ in range(extra):
                table.get(mfn, 1, ref)
        tables.append(table)
    whole, single = tables
    if drop:
        outcomes = [_outcome(lambda: whole.put(0, len(counts), ref)), _outcome(lambda: _each(single.put, counts, ref))]
        assert outcomes[0] == outcomes[1]
    else:
        whole.get(0, len(counts), ref)
        _each(single.get, counts, ref)
    assert whole.save() == single.save()


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["look", "look", "swap", "hole", "read-only", "reset"]),
            st.integers(0, 3),
            st.sampled_from([0, 8, 0xFF8]),
            st.sampled_from([8, 16]),
        ),
        max_size=30,
    )
)
@example(steps=[(what, 0, 0, 8) for what in ("look", "reset", "look", "reset")])
def test_a_window_that_was_looked_through_before_is_the_one_of_now(steps):
    memory, p2m = PhysicalMemory(16 << PAGE_SHIFT), P2m(4)
    p2m.set(0, 8, 4)
    memory.snapshot()
    linear = LinearMemory(memory, p2m, 4, None, reserved=False)
    for what, gfn, offset, length in steps:
        if what == "look":
            address = DIRECT_MAP + (gfn << PAGE_SHIFT) + offset
            window = linear.window(address, length)
            if window is not None:
                window[:] = bytes([gfn + 1]) * length
            fresh = LinearMemory(memory, p2m, 4, None, reserved=False).window(address, length)
            assert fresh == window
        elif what == "reset":
            memory.reset()
            assert not any(memory.bytes)
        else:
            p2m.set(
                gfn, {"swap": offset % 7 + 4}.get(what, 8), 1, {"hole": NONE, "read-only": RAM_RO}.get(what, RAM_RW)
            )


def test_a_guest_with_structs_everywhere_costs_no_more_windows_than_are_remembered():
    memory, p2m = PhysicalMemory(4 << PAGE_SHIFT), P2m(4)
    p2m.set(0, 0, 4)
    linear = LinearMemory(memory, p2m, 4, None, reserved=False)
    for at in range(0, 2 << PAGE_SHIFT, 8):
        assert linear.window(DIRECT_MAP + at, 8 if at % 4096 else 16) is not None
    assert len(linear._windows) <= 64


def _each(change, counts, ref):
    for mfn in range(len(counts)):
        change(mfn, 1, ref)


def _outcome(action):
    try:
        return action()
    except XenBug as error:
        return str(error)


@given(
    kinds=st.lists(st.sampled_from([0, 1, 1, 1, 2, MMIO, 7]), min_size=1, max_size=30),
    gaps=st.lists(st.integers(0, 30)),
)
def test_a_run_of_guest_frames_is_what_its_frames_are_one_by_one(kinds, gaps):
    p2m = P2m(len(kinds))
    for gfn, kind in enumerate(kinds):
        p2m.set(gfn, 100 + gfn + 10 * sum(gap <= gfn for gap in gaps), 1, kind)
    for gfn in range(len(kinds)):
        mfn, kind, length = p2m.run(gfn, len(kinds))
        ones = [p2m.run(gfn + k, 1) for k in range(length)]
        assert ones == [(mfn + k, kind, 1) for k in range(length)]
        if gfn + length < len(kinds):
            assert p2m.run(gfn + length, 1)[:2] != (mfn + length, kind)


# ------------------------------------------------------------------------------------------------ page tables


@settings(max_examples=60)
@given(
    shape=st.sampled_from([(4, (0, 9, 18)), (4, (0, 9)), (3, (0,))]),
    steps=st.lists(
        st.tuples(
            st.booleans(),
            st.sampled_from([0, 1, 5, 511, 512, 1024, 1 << 18, (1 << 18) - 1]),
            st.sampled_from([1, 1, 2, 511, 512, 513, 1024]),
        ),
        max_size=25,
    ),
    mark=st.integers(0, 25),
)
def test_the_remembered_tables_are_those_in_memory(shape, steps, mark):
    levels, orders = shape
    memory = PhysicalMemory(512 << 12)
    frames = FrameTable(512)
    root = frames.allocate(0x7FF2)
    table = PageTable(memory, SECOND_STAGE, levels, root, HeapPool(frames), orders)
    saved = None
    for number, (maps, dfn, count) in enumerate(steps):
        if number == mark:
            memory.snapshot()
            saved = (table.save(), frames.save(), dict(table._level1))
        changes = Changes()
        if maps:
            table.map(dfn, dfn + (1 << 20), count, 3, changes)
        else:
            table.unmap(dfn, count, changes)
        for gone in changes.tables:
            table._pool.free(gone)
        assert table._level1 == _level1_tables(table, root << 9, levels, 0)
    if saved is not None:
        memory.reset()
        table.restore(saved[0])
        assert table._level1 == saved[2] == _level1_tables(table, root << 9, levels, 0)


def _level1_tables(table, word, level, first):
    """What a walk of memory finds, by dfn >> 9."""
    found = {}
    for k in range(512):
        entry = table._words[word + k]
        if not entry or table.format.is_leaf(entry, level):
            continue
        here = first + (k << 9 * (level - 1))
        below = (entry & ADDRESS_MASK) >> 3
        found |= {here >> 9: below} if level == 2 else _level1_tables(table, below, level - 1, here)
    return found


# ------------------------------------------------------------------------------------------------- hypercalls


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
@pytest.mark.parametrize("guest", ["pv", "pvh"])
def test_a_call_of_many_pages_leaves_what_calls_of_one_page_leave(backend, guest):
    beds = [bed(backend, "v7-fixed", guest) for _ in range(2)]
    for caller in beds:
        assert caller.alloc() == 1
        assert caller.attach(1) == 0
        caller.testbed.snapshot()

    @settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["map", "map", "unmap"]),
                st.sampled_from([0, 100, 512, SCATTERED, SCATTERED + 300]),
                st.integers(FIRST, FIRST + 40),
                st.integers(1, 40),
                st.sampled_from([R, W, RW]),
            ),
            min_size=1,
            max_size=8,
        )
    )
    def compare(program):
        for caller in beds:
            caller.testbed.reset()
        whole, single = beds
        for kind, pfn, dfn, pages, flags in program:
            pages = _contiguous(whole, pfn, pages)
            assert _at_once(whole, kind, pfn, dfn, pages, flags) == _one_by_one(single, kind, pfn, dfn, pages, flags)
            for k in range(80):
                assert whole.lookup(1, FIRST + k) == single.lookup(1, FIRST + k)
                assert whole.reach(FIRST + k) == single.reach(FIRST + k)
        assert whole.frames.refs == single.frames.refs
        assert whole.arena_used == single.arena_used

    compare()


def _contiguous(caller: Caller, pfn: int, pages: int) -> int:
    """How many of the guest's pages from ``pfn`` follow one another in its own frame numbers."""
    return next((k for k in range(1, pages) if caller.gfn(pfn + k) != caller.gfn(pfn) + k), pages)


def _at_once(caller: Caller, kind: str, pfn: int, dfn: int, pages: int, flags: int) -> tuple[int, int]:
    if kind == "map":
        answer = caller.map(1, pfn, dfn, pages, flags)
        return answer.rc, answer.fields["mapped"]
    answer = caller.unmap(1, dfn, pages)
    return answer.rc, answer.fields["unmapped"]


def _one_by_one(caller: Caller, kind: str, pfn: int, dfn: int, pages: int, flags: int) -> tuple[int, int]:
    for k in range(pages):
        error, _ = _at_once(caller, kind, pfn + k, dfn + k, 1, flags)
        if error:
            return error, k
    return 0, pages


def test_a_struct_in_place_is_answered_like_one_that_has_to_be_copied(caller: Caller) -> None:
    """The same bytes once in the guest's direct mapping and once across two pages of its user space."""
    testbed = caller.testbed
    assert caller.alloc() == 1
    testbed.linear.pages[BUFFER >> 12] = (1, True)
    testbed.linear.pages[(BUFFER >> 12) + 1] = (3, True)
    testbed.snapshot()
    pages = {"v3-fixed": 200, "v7-fixed": 600}[testbed.config.profile]

    @settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.sampled_from(["map_pages", "unmap_pages", "lookup_page", "query_capabilities", "alloc_context"]),
        st.fixed_dictionaries(
            {
                "ctx_no": st.sampled_from([0, 1, 1, 2]),
                "gfn": st.sampled_from([caller.gfn(0), caller.gfn(512), 1 << 40]),
                "dfn": st.sampled_from([0, 0x200, 0x1FF]),
                "flags": st.integers(0, 9),
                "pgsize": st.sampled_from([4096, 4096, 2 << 20, 0]),
                "nr_pages": st.sampled_from([0, 1, pages]),
            }
        ),
        st.integers(-1, 300),
        st.integers(1, 23),
    )
    def compare(name, values, flip, before_the_edge):
        if not caller.abi.has(name):
            return
        known = {field.name for field in CANONICAL[name]}
        raw = bytearray(caller.encode(name, **{key: value for key, value in values.items() if key in known}))
        if 0 <= flip < 8 * len(raw):
            raw[flip >> 3] ^= 1 << (flip & 7)
        results = []
        for address in (testbed.ram.linear(0x5008), BUFFER + 4096 - before_the_edge):
            testbed.reset()
            assert testbed.linear.write(address, bytes(raw))
            assert (testbed.linear.window(address, len(raw)) is None) == (address >= BUFFER and address < 1 << 47)
            rc = caller.call_at(name, address)
            mapped = {number: list(c.table.leaves()) for number, c in caller.dom0.iommu.contexts.items()}
            results.append((rc, testbed.linear.read(address, len(raw)), caller.frames.save(), mapped))
        assert results[0] == results[1]

    compare()


def test_flags_that_map_pages_accepts_are_those_that_the_version_defines_and_that_grant_something(caller) -> None:
    abi, fmt = caller.abi, caller.xen.backend.format
    for flags in range(1 << 10):
        read, write = bool(flags & abi.map_readable), bool(flags & abi.map_writeable)
        wrong = flags & ~abi.map_flags_mask or not (read or write)
        expected = None if wrong else (read * fmt.read | write * fmt.write, write)
        assert caller.xen.map_permissions.get(flags) == expected
    assert max(caller.xen.map_permissions) <= abi.map_flags_mask


def test_page_sizes_that_calls_may_name_are_those_that_the_units_walk(caller: Caller) -> None:
    orders = caller.xen.backend.orders if caller.xen.profile.superpage_units else (0,)
    assert caller.xen.page_units == {4096 << order: 1 << order for order in orders}


# ----------------------------------------------------------------------------------------------------- flushes


@given(dfn=st.integers(0, 1 << 20), pages=st.one_of(st.integers(1, 600), st.sampled_from([1 << k for k in range(20)])))
def test_a_flush_names_its_pages_if_they_are_an_aligned_power_of_two_and_else_the_domain(dfn, pages):
    unit = _VTD.xen.backend.units[0]
    commands = _VTD.testbed.unit.counters.commands
    commands.clear()
    assert unit.flush_pages(1, dfn, pages) == 0
    aligned = any(pages == 1 << k and dfn % pages == 0 and pages <= unit.max_pages for k in range(40))
    assert commands == {"IOTLB page" if aligned else "IOTLB domain": 1, "wait": 1}


_VTD = bed("vtd")
