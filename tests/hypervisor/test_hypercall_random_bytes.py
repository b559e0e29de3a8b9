# SPDX-License-Identifier: GPL-2.0-or-later
"""Anything at all in registers and structs: no exception, and no byte changed that is not Xen's to change."""

from itertools import product
from typing import Any

import pytest
from guest_calls import ARG, RMRR_BASE, Caller, bed
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.frames import DOMID_XEN
from machine.firmware import Rmrr
from testbed.build import COPIER
from testbed.invariants import check

ALL = ["-".join(which) for which in product(("vtd", "smmuv3"), ("v3-fixed", "v7-fixed"), ("pv", "pvh"))]
_beds: dict[str, Caller] = {}


def machine(which: str) -> Caller:
    """A machine in the middle of its life, as good as new each time."""
    if which not in _beds:
        backend, version, kind, guest = which.split("-")
        caller = bed(
            backend, f"{version}-{kind}", guest, rmrrs=(Rmrr(RMRR_BASE, RMRR_BASE + 0x3FFF, (COPIER,)),), ram=32 << 20
        )
        for _ in range(3):
            caller.alloc()
        assert caller.attach(1) == 0
        assert caller.attach(2, COPIER) == 0
        for k in range(0, 1024, 256):
            assert caller.map(1, k, 0x1000 + k, 256).rc == 0
        assert caller.map(2, 2048, 0).rc == 0
        caller.testbed.snapshot()
        _beds[which] = caller
    _beds[which].testbed.reset()
    return _beds[which]


def unharmed(caller: Caller) -> None:
    """Only Xen's own frames and the page with the struct may have changed."""
    frames = caller.frames
    strangers = {
        frame
        for frame in caller.changed_frames()
        if frames.owner[frame] != DOMID_XEN and frame not in (caller.mfn(ARG), caller.mfn(ARG + 1))
    }
    assert not strangers


small = st.integers(0, 4)
interesting = st.one_of(
    small,
    st.sampled_from([0xFE, 0xFF, 0x100, 511, 512, 0x1000, 0xFFF, 0xFFFF, 0x1_0000, 2**32 - 1, 2**63, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)


@pytest.mark.parametrize("which", ALL)
@settings(max_examples=60, deadline=None)
@given(calls=st.lists(st.tuples(interesting, interesting, interesting, st.integers(0, 60)), min_size=1, max_size=8))
def test_random_registers_never_raise(which: str, calls: list[tuple[int, ...]]) -> None:
    caller = machine(which)
    for first, second, third, number in calls:
        for hypercall in (43, number):
            result = caller.xen.hypercall(caller.vcpu, hypercall, first, second, third)
            assert -4095 <= result <= 0
    unharmed(caller)


@pytest.mark.parametrize("which", ALL)
@settings(max_examples=80, deadline=None)
@given(
    calls=st.lists(
        st.tuples(st.integers(0, 16), st.binary(min_size=40, max_size=40), st.integers(0, 15), st.integers(0, 4095)),
        min_size=1,
        max_size=8,
    )
)
def test_random_bytes_as_structs_never_raise_and_touch_nothing_else(which: str, calls: list[Any]) -> None:
    caller = machine(which)
    ram = caller.testbed.ram
    for subop, raw, low, offset in calls:
        at = (ARG << 12) + offset
        tagged = bytes([subop, 0]) + raw[2:] if caller.abi.has("lookup_page") else raw
        ram.write(at, tagged)
        args = (ram.linear(at),) if caller.abi.has("lookup_page") else (subop | low << 28, ram.linear(at))
        assert -4095 <= caller.xen.hypercall(caller.vcpu, 43, *args) <= 0
        after = ram.read(at, 40)
        size = 32 if caller.abi.has("lookup_page") else 40
        assert after[size:] == tagged[size:]
    unharmed(caller)


@st.composite
def plausible(draw: st.DrawFn) -> tuple[str, dict[str, int]]:
    """A sub-op with fields that are near something that exists."""
    ctx = draw(st.one_of(st.integers(0, 4), st.sampled_from([255, 256, 0xFFFF])))
    dfn = draw(st.one_of(st.integers(0xFF0, 0x1410), st.integers(0, 8), st.integers(0x17F8, 0x1808), interesting))
    pages = draw(st.one_of(st.integers(0, 600), st.sampled_from([1, 256, 512, 2**32 - 1])))
    pgsize = draw(st.sampled_from([4096] * 6 + [2 << 20, 1 << 30, 0, 4097]))
    flags = draw(st.one_of(st.integers(0, 7), st.sampled_from([8, 2**31])))
    name = draw(st.sampled_from(["map_pages", "unmap_pages", "map_pages", "unmap_pages", "other"]))
    if name == "map_pages":
        gfn = draw(
            st.one_of(st.integers(0, 0x1400), st.sampled_from([0xE0000, 0xFED90, 0xFEE00, 0x10_0000]), interesting)
        )
        fields = {"ctx_no": ctx, "gfn": gfn, "dfn": dfn, "flags": flags, "pgsize": pgsize, "nr_pages": pages}
        return name, fields
    if name == "unmap_pages":
        return name, {"ctx_no": ctx, "dfn": dfn, "pgsize": pgsize, "nr_pages": pages}
    name = draw(st.sampled_from(["alloc_context", "free_context", "reattach_device", "init", "query_capabilities"]))
    devfn = draw(st.sampled_from([0, 0x20, 0x28, 0xE0, 1]))
    return {
        "alloc_context": ("alloc_context", {"flags": draw(st.integers(0, 2))}),
        "free_context": ("free_context", {"ctx_no": ctx, "flags": draw(st.integers(0, 2))}),
        "reattach_device": ("reattach_device", {"ctx_no": ctx, "bus": draw(st.integers(0, 1)), "devfn": devfn}),
        "init": ("init", {"max_ctx_no": ctx, "arena_order": draw(st.integers(0, 40))}),
        "query_capabilities": ("query_capabilities", {}),
    }[name]


@pytest.mark.parametrize("which", ALL)
@settings(max_examples=40, deadline=None)
@given(calls=st.lists(st.tuples(plausible(), st.booleans(), st.integers(0, 0xFFFFFF)), min_size=1, max_size=12))
def test_plausible_nonsense_keeps_every_invariant(which: str, calls: list[Any]) -> None:
    caller = machine(which)
    hook = {"on": False}
    caller.xen.preempt = lambda vcpu: hook["on"]
    for (name, fields), preempted, progress in calls:
        if not caller.abi.has(name):
            continue
        hook["on"] = preempted
        if progress % 8 == 0 and not caller.abi.has("lookup_page"):
            caller.testbed.ram.write(ARG << 12, caller.encode(name, **fields))
            number = caller.abi.by_name[name].number | progress << 8
            rc = caller.xen.hypercall(caller.vcpu, 43, number, caller.testbed.ram.linear(ARG << 12))
        else:
            rc = caller.call(name, **fields).rc
        assert -4095 <= rc <= 0
        for dfn in (0, 0x1000, 0x1200, 0x1800):
            caller.reach(dfn)
    unharmed(caller)
    assert check(caller.testbed) == []
