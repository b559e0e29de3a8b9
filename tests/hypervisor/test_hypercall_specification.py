# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypervisor against the executable specification of its profile: every answer, and every field of the struct."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import pytest
from guest_calls import MIB, Caller, bed
from hypothesis import given, settings
from hypothesis import strategies as st

from abi.canonical import CANONICAL
from abi.conditions import FrameKind
from abi.contract_fixed import contract_called
from abi.semantics import call
from abi.world import Chance, Device, Domain, Request
from hypervisor import p2m
from hypervisor.frames import DOMID_IO, DOMID_NONE, DOMID_XEN
from machine.firmware import Rmrr
from testbed.build import COPIER, NIC, ROGUE

ALL = ["-".join(which) for which in product(("vtd", "smmuv3"), ("v3-fixed", "v7-fixed", "e3-fixed"), ("pv", "pvh"))]
REGION = Rmrr(12 * MIB, 12 * MIB + 0x3FFF, (COPIER,))
FIRST = REGION.base >> 12
BUFFER = 0x7000_0000_0000
PLACES = ("good", "good", "good", "good", "hole bit", "read-only", "nowhere")
U32 = 2**32 - 1

KINDS = {
    p2m.NONE: FrameKind.HOLE,
    p2m.RAM_RW: FrameKind.RAM,
    p2m.RAM_RO: FrameKind.READ_ONLY,
    p2m.RAM_PAGED: FrameKind.PAGED_OUT,
}


class Frames(Mapping[int, FrameKind]):
    """dom0's frame numbers as the specification sees them, read from the machine when asked."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    def __getitem__(self, gfn: int) -> FrameKind:
        dom0, frames = self.caller.dom0, self.caller.frames
        mfn, kind, _ = dom0.translation.run(gfn, 1)
        if kind == p2m.MMIO:
            return FrameKind.MMIO if dom0.may_access_mmio(mfn, 1) else FrameKind.MMIO_DENIED
        if dom0.pv and kind == p2m.RAM_RW:
            owner = frames.owner[mfn]
            if owner in (DOMID_XEN, DOMID_NONE, DOMID_IO):
                return FrameKind.XEN
            return FrameKind.RAM if owner == dom0.domid else FrameKind.FOREIGN
        return KINDS[kind]

    def __iter__(self) -> Iterator[int]:
        raise NotImplementedError("too many to list")

    def __len__(self) -> int:
        raise NotImplementedError("too many to count")


def specified(caller: Caller) -> Domain:
    """dom0 as the specification knows it, before its first call."""
    caps = caller.call("query_capabilities").fields
    iommu = caller.dom0.iommu
    return Domain(
        initialized=iommu.initialised,
        max_ctx_no=iommu.limit,
        devices={sbdf: Device(0, tuple(device.reserved)) for sbdf, device in caller.dom0.devices.items()},
        frames=Frames(caller),
        max_iova_addr=caller.xen.backend.max_iova,
        cap_flags=caps["cap_flags"],
        pgsize_mask=caps["pgsize_mask"],
        dfn_mask=caller.xen.max_dfn,
    )


fields = {
    "ctx_no": st.one_of(st.integers(0, 3), st.sampled_from([4, 5, 255, 256, 0xFFFF])),
    "flags": st.one_of(st.sampled_from([3, 3, 3, 3, 1, 2]), st.integers(0, 9), st.sampled_from([1 << 31])),
    "pgsize": st.sampled_from([4096] * 8 + [2 * MIB, 2 * MIB, 1 << 30, 0, 4097, 4096 | 2 * MIB]),
    "nr_pages": st.one_of(
        st.integers(0, 20), st.sampled_from([1, 255, 256, 257, 512, 513, U32, 1 << 23, (1 << 23) + 1, 1 << 27])
    ),
    "dfn": st.one_of(
        st.integers(FIRST - 6, FIRST + 6),
        st.sampled_from([0, 1, 512, 1024, FIRST - 512, FIRST - 1024]),
        st.sampled_from([(1 << 36) - 2, (1 << 36) - 1, 1 << 36, (1 << 27) - 1, 1 << 52, 2**64 - 1]),
    ),
    "gfn": st.one_of(
        st.integers(0, 0x430),
        st.integers(0x600, 0x640),
        st.sampled_from([512, 1024, 0xE_0000, 0xE_1000, 0xFED90, 0x10_0000, 1 << 40, 2**64 - 1]),
    ),
    "segment": st.sampled_from([0, 0, 0, 1]),
    "bus": st.sampled_from([0, 0, 1, 1, 2]),
    "devfn": st.sampled_from([0, 0, COPIER & 0xFF, ROGUE & 0xFF, 0xE0, 0x33]),
    "pasid": st.sampled_from([0, 0, 0, 0, 7]),
    "max_ctx_no": st.sampled_from([3, 4, 0, 0xFFFE, 0xFFFF, 0x1_0000, U32]),
    "arena_order": st.sampled_from([8]),
    "domid": st.sampled_from([0, 0, 0, 9, 0x7FF0]),
    "subop": st.sampled_from([0, 1, 3, 4, 5, 6, 7, 8, 9, 12, 13]),
}


few_flags = st.sampled_from([0, 0, 0, 0, 1, 1, 2, 1 << 31])


def drawn(draw: st.DrawFn, name: str) -> dict[str, int]:
    """Fields of a struct."""
    if name == "query_capabilities":
        return {}
    chosen = fields | ({"flags": few_flags} if name in ("alloc_context", "free_context") else {})
    return {f.name: draw(chosen[f.name]) for f in CANONICAL[name] if f.name in chosen}


@st.composite
def requests(draw: st.DrawFn, names: tuple[str, ...]) -> tuple[str, dict[str, int], str, tuple[str, dict[str, int]]]:
    """(sub-op, its fields, where the struct lies, the inner sub-op and fields of remote_cmd)."""
    name = draw(st.sampled_from(names))
    values = drawn(draw, name)
    inner = draw(st.sampled_from(names))
    return name, values, draw(st.sampled_from(PLACES)), (inner, drawn(draw, inner))


NAMES = {
    "v3-fixed": ("alloc_context", "free_context", "reattach_device", "lookup_page", "query_capabilities", "noop")
    + ("map_pages", "unmap_pages") * 3,
    "v7-fixed": ("init", "alloc_context", "free_context", "reattach_device", "query_capabilities", "remote_cmd")
    + ("map_pages", "unmap_pages") * 3,
}


def issue(caller: Caller, name: str, args: tuple[int, ...], place: str) -> tuple[int, tuple[int, ...], bool]:
    """(result, the struct's fields afterwards, whether a hole was set) of one call with the struct at ``place``."""
    subop = caller.abi.by_name[name]
    codec, linear = subop.codec, caller.testbed.linear
    if codec is None:
        raw, size = bytes(32), 32
    else:
        raw, size = codec.encode(*args), codec.size
    holes = codec.hole_mask if codec is not None else 0
    spoiled = place == "hole bit" and holes != 0
    if spoiled:
        raw = (int.from_bytes(raw, "little") | holes & -holes).to_bytes(size, "little")
    linear.pages[BUFFER >> 12] = (9, True)
    assert linear.write(BUFFER, raw)
    if place == "read-only":
        linear.pages[BUFFER >> 12] = (9, False)
    elif place == "nowhere":
        del linear.pages[BUFFER >> 12]
    rc = caller.call_at(name, BUFFER)
    after = caller.testbed.ram.read(9 << 12, size)
    return rc, codec.decode(after) if codec is not None else (), spoiled


NAMES["e3-fixed"] = (*NAMES["v7-fixed"], "flush_pages")


@pytest.mark.parametrize("which", ALL)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_answer_is_the_specified_one(which: str, data: Any) -> None:
    backend, version, kind, guest = which.split("-")
    profile = f"{version}-{kind}"
    caller = bed(backend, profile, guest, ram=16 * MIB, guest_ram=4 * MIB, rmrrs=(REGION,), init=False)
    contract = contract_called(profile)
    state = {0: specified(caller)}
    if caller.abi.has("init") and data.draw(st.booleans()):
        assert caller.init(4, 8) == 0
        state = {0: specified(caller)}
    for name, values, place, (inner, inner_values) in data.draw(st.lists(requests(NAMES[profile]), max_size=14)):
        inner_args: tuple[int, ...] = ()
        if name == "remote_cmd":
            place = "good"
            if values["subop"] not in (0, 9, 12):  # neither noop nor a reserved number: one that has a struct
                values["subop"] = caller.abi.by_name[inner].number
                inner_args = place_struct(caller, inner, inner_values)
            values["arg"] = caller.testbed.ram.linear(0x6000)
        args = tuple(values.get(f.name, f.default) for f in CANONICAL[name])
        subop = caller.abi.by_name[name]
        rc, after, spoiled = issue(caller, name, args, place)
        chance = Chance(
            readable=place != "nowhere" or subop.codec is None,
            writable=place not in ("nowhere", "read-only"),
            holes_zero=not spoiled,
        )
        state, outcome = call(contract, state, Request(0, subop.number, args, chance, inner_args))
        shown = (name, values, place, inner, inner_values, outcome.condition)
        assert rc == outcome.result, shown
        if subop.codec is not None and place != "nowhere":
            compare_fields(caller, name, after, outcome.args or args, shown)
    compare_trees(caller, state[0])


def place_struct(caller: Caller, name: str, values: dict[str, int]) -> tuple[int, ...]:
    """Put a struct where remote_cmd's ``arg`` points."""
    args = tuple(values.get(f.name, f.default) for f in CANONICAL[name])
    codec = caller.abi.by_name[name].codec
    if codec is not None:
        caller.testbed.ram.write(0x6000, codec.encode(*args))
    return args


def compare_fields(caller: Caller, name: str, got: tuple[int, ...], said: tuple[int, ...], shown: Any) -> None:
    """The struct in guest memory, as far as this version has the fields."""
    present = caller.abi.by_name[name].codec.present
    for field, found, specified_ in zip(CANONICAL[name], got, said):
        if field.name in present:
            assert found == specified_, (field.name, shown)


def compare_trees(caller: Caller, domain: Domain) -> None:
    """What is mapped where, and which device is in which context."""
    iommu = caller.dom0.iommu
    assert set(iommu.contexts) == set(domain.contexts) - {0}
    for number, context in iommu.contexts.items():
        there = {}
        for dfn, entry, order in context.table.leaves():
            access = context.table.format.readable(entry) | context.table.format.writable(entry) << 1
            there |= dict.fromkeys(range(dfn, dfn + (1 << order)), access)
        assert there == {dfn: leaf.access for dfn, leaf in domain.contexts[number].leaves.items()}
    for sbdf in (NIC, COPIER, ROGUE):
        assert caller.dom0.devices[sbdf].context.number == domain.devices[sbdf].context
