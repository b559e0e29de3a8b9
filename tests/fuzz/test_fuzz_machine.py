# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypothesis state machines on every bench; how long they look is the profile's business (tests/conftest.py)."""

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from fuzz.engines import machine as machines
from fuzz.engines.machine import machine
from fuzz.program import Bench, parse
from fuzz.run import Runner, replay

NIGHTLY = settings.get_current_profile_name() == "nightly"
EXAMPLES = {} if NIGHTLY else {"max_examples": 10}
BENCHES = [
    Bench("vtd", "v7-fixed", "pv", 4, 6),
    Bench("vtd", "v3-fixed", "pvh", 4, 6),
    Bench("smmuv3", "v7-fixed", "pvh", 4, 4),
    Bench("smmuv3", "v3-fixed", "pv", 4, 6),
]


@pytest.mark.parametrize("bench", BENCHES, ids=lambda bench: f"{bench.backend}-{bench.profile}-{bench.guest}")
def test_hypercalls_in_any_order_keep_the_contract(bench):
    run_state_machine_as_test(machine(bench), settings=settings(stateful_step_count=40, **EXAMPLES))


def test_a_planted_fault_is_found_and_printed_as_a_program_that_replays(monkeypatch):
    def writes_always_allowed(bed):
        permissions = bed.xen.map_permissions
        for flags in permissions:
            permissions[flags] = permissions[3 | flags]

    bench = Bench("vtd", "v7-fixed", "pv", 4, 6, seed=99)  # one that no other test has built
    monkeypatch.setitem(machines._RUNNERS, bench, Runner(bench, writes_always_allowed))
    with pytest.raises(AssertionError) as caught:
        run_state_machine_as_test(
            machine(bench),
            settings=settings(max_examples=300, stateful_step_count=40, database=None, phases=[Phase.generate]),
        )
    (text,) = [note for note in caught.value.__notes__ if note.startswith("# pviommu program 1")]
    program = parse(text)
    assert replay(program) is None, "without the fault it is clean"
    assert replay(program, writes_always_allowed) is not None
