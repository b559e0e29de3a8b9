# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles v1 to v7, as posted, against the executable specification of their version.

Where the specification says that the host stops, it stops; where the posting departs from the specification in ways
that end a program (a lock that is kept, a list that is not left), the program ends with the departure's name.
"""

import re
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from guest_calls import ARG, MIB, RW, SCATTERED, Caller, bed
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hypercall_specification import FIRST, NAMES, REGION, compare_fields, fields, issue, place_struct, specified

from abi.canonical import CANONICAL
from abi.contract import contract_of
from abi.semantics import call
from abi.world import READ, WRITE, Chance, Context, Leaf, Request
from hypervisor.errors import HostStopped
from hypervisor.frames import REF
from testbed.build import COPIER, NIC, ROGUE

EARLY, LATE = ("v1", "v2", "v3"), ("v4", "v5", "v6", "v7")
CASES = [
    *product(EARLY + LATE, ("vtd",), ("pv",)),
    ("v3", "smmuv3", "pvh"),
    ("v6", "smmuv3", "pvh"),
    ("v7", "vtd", "pvh"),
]
ENDS = {
    "v1": r"free_context|which answered|BUG_ON in lookup|no page_info|nobody held",
    "v4": r"free_context|BUG_ON|nobody held",
}
"""What a posted hypervisor may stop with where the specification goes on (B1, B2, C1, D6, R1, references)."""
ENDPOINTS = (NIC, COPIER, ROGUE)

chosen = fields | {
    "dfn": st.one_of(
        st.integers(FIRST - 6, FIRST + 3),
        st.sampled_from([0, 1, 512, 1024, FIRST - 512, (1 << 36) - 2, 1 << 36, (1 << 27) - 1, 1 << 52, 2**64 - 1]),
    ),
    "nr_pages": st.one_of(st.integers(0, 4), st.sampled_from([1, 2, 257, 300])),
    "mapped": st.sampled_from([0, 7]),
    "unmapped": st.sampled_from([0, 7]),
    "max_ctx_no": st.sampled_from([3, 4, 0, 0xFFFE, 0xFFFF, 0x1_0000, 2**32 - 1]),
}
PLACES = ("good", "good", "good", "good", "good", "good", "hole bit", "read-only", "nowhere")


def caller_for(version: str, backend: str, guest: str) -> Caller:
    """dom0 of a posted hypervisor; its pages are held by more than itself, as a real dom0's are."""
    caller = bed(backend, version, guest, ram=16 * MIB, guest_ram=4 * MIB, rmrrs=(REGION,), init=False)
    for mfn in caller.testbed.mfns:
        caller.frames.get(mfn, 1, 40 * REF)
    return caller


def state_of(caller: Caller, guest: str) -> Any:
    domain = specified(caller)
    shared = guest == "pvh" and not caller.abi.has("init")
    leaves = {}
    for dfn, entry, order in caller.context(0).table.leaves():
        for page in range(1 << order):
            leaves[dfn + page] = Leaf((entry >> 12 & (1 << 40) - 1) + page, READ | WRITE)
    context = Context(leaves={} if shared else leaves, opaque=shared)
    says = caller.call("query_capabilities").fields
    facts = {name: says[name] for name in ("max_iova_addr", "pgsize_mask")}
    return {0: replace(domain, contexts={0: context}, **facts)}


def drawn(draw: st.DrawFn, name: str) -> dict[str, int]:
    values = {f.name: draw(chosen[f.name]) for f in CANONICAL[name] if f.name in chosen} if name != "noop" else {}
    if name in ("alloc_context", "free_context"):
        values["flags"] = draw(st.sampled_from([0, 0, 0, 2]))
    if name == "reattach_device":
        sbdf = draw(st.sampled_from([*ENDPOINTS, 0x98]))
        values |= {"segment": 0, "bus": sbdf >> 8, "devfn": sbdf & 0xFF}
    return {} if name == "query_capabilities" else values


@pytest.mark.parametrize(("version", "backend", "guest"), CASES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_posted_hypervisor_answers_as_its_version(version: str, backend: str, guest: str, data: Any) -> None:
    caller = caller_for(version, backend, guest)
    contract = contract_of(version)
    names = NAMES["v7-fixed" if caller.abi.has("init") else "v3-fixed"]
    if caller.abi.has("init") and data.draw(st.booleans()):
        assert caller.init(4, 8) == 0
        caller.call("free_context", ctx_no=1)
    state = state_of(caller, guest)
    for _ in range(data.draw(st.integers(1, 14))):
        name = data.draw(st.sampled_from(names))
        values, place, inner_args = drawn(data.draw, name), data.draw(st.sampled_from(PLACES)), ()
        if name == "remote_cmd":
            place, inner = "good", data.draw(st.sampled_from(names))
            if values["subop"] not in (0, 9, 12, 13):
                values["subop"] = caller.abi.by_name[inner].number
                inner_args = place_struct(caller, inner, drawn(data.draw, inner))
            values["arg"] = caller.testbed.ram.linear(0x6000)
        args = tuple(values.get(f.name, f.default) for f in CANONICAL[name])
        subop = caller.abi.by_name[name]
        stopped = ""
        try:
            rc, after, spoiled = issue(caller, name, args, place)
        except HostStopped as stop:
            rc, after, spoiled, stopped = 0, (), False, str(stop)
        chance = Chance(
            readable=place != "nowhere" or (subop.codec is None and caller.abi.has("init")),
            writable=place not in ("nowhere", "read-only"),
            holes_zero=not spoiled,
        )
        state, outcome = call(contract, state, Request(0, subop.number, args, chance, inner_args))
        shown = (name, values, place, inner_args, outcome.condition, stopped)
        if stopped:
            assert outcome.bug or re.search(ENDS["v4" if caller.abi.has("init") else "v1"], stopped), shown
            return
        assert not outcome.bug, shown
        assert rc == outcome.result, shown
        if subop.codec is not None and place != "nowhere":
            compare_fields(caller, name, after, outcome.args or args, shown)
        if caller.abi.has("lookup_page") and outcome.condition in ("no-number", "no-context") and name != "map_pages":
            return  # the domain's lock stays taken (B1, B2)


@pytest.mark.parametrize("version", LATE)
@pytest.mark.parametrize("name", ["map_pages", "unmap_pages"])
def test_a_preempted_call_leaves_its_last_pass_in_the_struct(version: str, name: str) -> None:
    caller = bed("vtd", version, "pv", init=False)
    assert caller.init(4, 9) == 0
    if name == "unmap_pages":
        assert caller.map(1, 512, 0x1001, 600).rc == 0
    passes: list[Any] = []
    caller.xen.preempt = lambda vcpu: True
    caller.xen.rescheduled = passes.append
    counter = "mapped" if name == "map_pages" else "unmapped"
    asked = {"ctx_no": 1, "dfn": 0x1001, "nr_pages": 600, counter: 5}
    if name == "map_pages":
        asked |= {"gfn": caller.gfn(512), "flags": RW}
    answer = caller.call(name, **asked)
    assert answer.rc == 0
    assert answer.fields[counter] == 605
    assert passes
    moved = answer.fields["dfn"] - 0x1001
    assert 0 < moved <= 600
    assert answer.fields["nr_pages"] == 600 - moved
    if name == "map_pages":
        assert answer.fields["gfn"] == caller.gfn(512) + moved


@pytest.mark.parametrize("version", LATE)
def test_a_preempted_call_whose_struct_cannot_be_written_is_given_up(version: str) -> None:
    caller = bed("vtd", version, "pv", init=False)
    assert caller.init(4, 9) == 0
    linear = caller.testbed.linear
    linear.pages[0x7000_0000_0000 >> 12] = (ARG, False)
    asked = {"ctx_no": 1, "dfn": 0x1001, "nr_pages": 600, "gfn": caller.gfn(512), "flags": RW}
    caller.testbed.ram.write(ARG << 12, caller.encode("map_pages", **asked))
    caller.xen.preempt = lambda vcpu: True
    assert caller.call_at("map_pages", 0x7000_0000_0000) == -14
    assert caller.lookup(1, 0x1001) is not None
    assert caller.lookup(1, 0x1001 + 599) is None


def test_v1_to_v3_never_pause_within_their_256_pages() -> None:
    caller = bed("vtd", "v3", "pv")
    context = caller.alloc()
    caller.xen.preempt = lambda vcpu: True
    caller.xen.rescheduled = lambda vcpu: pytest.fail("a v3 call was preempted")
    assert caller.map(context, SCATTERED, 0x1001, 1).rc == 0
    assert caller.map(context, 0, 0x2001, 256).fields["mapped"] == 256


@pytest.mark.parametrize("version", EARLY + LATE)
@pytest.mark.parametrize("there", ["nothing", "the same", "another"])
def test_a_page_of_the_guests_where_a_region_goes(version: str, there: str) -> None:
    caller = caller_for(version, "vtd", "pv")
    if caller.abi.has("init"):
        assert caller.init(4, 8) == 0
    else:
        assert caller.alloc() == 1
    state = state_of(caller, "pv")
    if there != "nothing":
        gfn = FIRST + 1 if there == "the same" else caller.gfn(1)
        caller.frames.owner[FIRST + 1] = caller.dom0.domid
        caller.frames.get(FIRST + 1, 1, 9 * REF)
        assert caller.call("map_pages", ctx_no=1, gfn=gfn, dfn=FIRST + 1, flags=RW, nr_pages=1).rc == 0
        leaf = Leaf(gfn, READ | WRITE)
        state = with_context(state, 1, Context(leaves={FIRST + 1: leaf}))
    else:
        state = with_context(state, 1, Context())
    args = (1, 0, COPIER >> 8, COPIER & 0xFF, 0)
    number = caller.abi.by_name["reattach_device"].number
    _, outcome = call(contract_of(version), state, Request(0, number, args))
    assert caller.attach(1, COPIER) == outcome.result


def with_context(state: Any, number: int, context: Context) -> Any:
    return {0: replace(state[0], contexts={**state[0].contexts, number: context})}
