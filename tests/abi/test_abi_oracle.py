# SPDX-License-Identifier: GPL-2.0-or-later
"""The executable specification is pure and total, and its oracle accepts what it says and nothing else."""

from dataclasses import replace

from abi_bench import MAP, NIC, RUNNING, request, sbdf, world
from hypothesis import given, settings
from hypothesis import strategies as st

from abi.canonical import CANONICAL
from abi.contract_fixed import contract_called
from abi.errno import EBUSY, EFAULT, EILSEQ, EIO, ENOMEM, ERESTART
from abi.explain import explain
from abi.semantics import call, step
from abi.world import Chance, Context, Leaf, Request

small = st.integers(0, 12) | st.sampled_from([0x100, 0x102, 0x500, 0x1000, 0xFFFF, 0x10000, 0xFFFFFFFF, (1 << 36) + 1])
chances = st.builds(
    Chance,
    readable=st.booleans() | st.just(True),
    writable=st.booleans() | st.just(True),
    holes_zero=st.booleans() | st.just(True),
    no_memory_at=st.none() | st.integers(0, 3),
    preempt_after=st.none() | st.integers(0, 4),
    driver_errno=st.sampled_from([0, 0, ENOMEM, EILSEQ, EIO]),
)
eventful = st.builds(
    replace,
    chances,
    no_tag=st.booleans(),
    unconfirmed=st.booleans(),
    stay=st.sampled_from([frozenset(), frozenset({NIC})]),
    gone_from=st.none() | st.integers(0, 3),
)
"""The same with what only happens to sound versions."""


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_step_is_pure_and_total_and_answers_only_from_its_table(data):
    name = data.draw(st.sampled_from(RUNNING))
    contract = contract_called(name)
    state = world(name)
    for _ in range(data.draw(st.integers(1, 6))):
        subop = data.draw(st.integers(0, 14))
        row = contract.abi.subops.get(subop)
        args = tuple(data.draw(small) for _ in CANONICAL[row.name]) if row is not None else ()
        wide = {field.name: n for n, field in enumerate(CANONICAL[row.name])} if row is not None else {}
        if "nr_pages" in wide:  # a huge batch is as good as a small one here, and quicker
            args = tuple(value % 300 if n == wide["nr_pages"] else value for n, value in enumerate(args))
        progress = data.draw(st.sampled_from([0, 0, 0x100, 0x200]))
        asked = Request(0, subop, args, data.draw(eventful), inner=(0,) * 8, progress=progress)
        before = repr(state)
        after, outcome = step(contract, state, asked)
        assert repr(state) == before
        if outcome.bug:
            return
        allowed = {0, -ERESTART, -EFAULT}
        unknown = row is None or (progress and row.name not in contract.resumable)
        table = contract.tables["" if unknown else row.name]
        allowed |= {-test.errno for test in table}
        if row is not None and row.name == "init" and contract.init_alters:
            allowed |= {-test.errno for test in contract.tables["alloc_context"]}
        if row is not None and row.name != "remote_cmd":
            assert outcome.result in allowed
        assert len(outcome.args) == len(args)
        assert (outcome.again is not None) == (outcome.result == -ERESTART)
        state = after


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_the_oracle_accepts_every_outcome_of_the_specification(data):
    name = data.draw(st.sampled_from(RUNNING))
    contract = contract_called(name)
    subop = data.draw(st.sampled_from(["map_pages", "unmap_pages", "alloc_context", "reattach_device", "free_context"]))
    chance = data.draw(chances)
    if chance.preempt_after == 0:
        chance = replace(chance, preempt_after=None)
    state = world(name, contexts={0: Context(), 1: Context({dfn: Leaf(0x100, 3) for dfn in range(0x1000, 0x1003)})})
    values = {"ctx_no": data.draw(st.integers(0, 2)), "dfn": data.draw(st.sampled_from([0, 0x1000, 0x1002]))}
    values |= {"gfn": 0x100, "flags": 3 if "map" in subop else 0, "nr_pages": data.draw(st.integers(0, 5))}
    asked = request(name, subop, chance, (), **values | sbdf(NIC))
    after, outcome = call(contract, state, asked)
    if outcome.bug:
        return
    known = Chance(readable=chance.readable, writable=chance.writable, holes_zero=chance.holes_zero)
    explained = explain(contract, state, replace(asked, chance=known), outcome.result, outcome.args)
    assert explained is not None
    if chance.writable:  # else nothing tells how far the call got
        assert explained[0] == after


def test_the_oracle_refuses_a_wrong_answer():
    contract = contract_called("v7")
    asked = request("v7", "map_pages", **MAP)
    assert explain(contract, world("v7"), asked, 0, (1, 0x100, 0x1000, 3, 0x1000, 4, 4)) is not None
    assert explain(contract, world("v7"), asked, 0, (1, 0x100, 0x1000, 3, 0x1000, 4, 3)) is None
    assert explain(contract, world("v7"), asked, -EBUSY, (1, 0x100, 0x1000, 3, 0x1000, 4, 4)) is None
    assert explain(contract, world("v7"), asked, -ENOMEM, (1, 0x100, 0x1000, 3, 0x1000, 4, 2)) is not None
