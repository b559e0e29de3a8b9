# SPDX-License-Identifier: GPL-2.0-or-later
"""A disagreement is told as a short program with both walks, and the command that is printed shows it again."""

import json
import re
import subprocess
import sys

import pytest

from oracle.catalogue import CATALOGUE

LAZY = """
import hypervisor.vtd.unit, oracle.campaign
oracle.campaign.SHRINK_STEPS = 6_000
for name in ("flush_pages", "flush_did"):
    setattr(hypervisor.vtd.unit.Unit, name, lambda self, *arguments: 0)
"""
"""A driver that forgets to invalidate: a fault of software, which both hardware halves show alike."""
MAIN = "from pviommu.__main__ import main; main()"


def run(patch, *arguments, text=None):
    return subprocess.run(
        [sys.executable, "-c", patch + MAIN, "oracle", "run", "qemu-vtd", *arguments],
        capture_output=True,
        text=True,
        input=text,
        timeout=300,
    )


INTERRUPT = """
import itertools, oracle.outcome
count, with_running = itertools.count(), oracle.outcome.Outcome.with_running
def interrupted(self, tally):
    if next(count) == 300:
        raise KeyboardInterrupt
    return with_running(self, tally)
oracle.outcome.Outcome.with_running = interrupted
"""
"""As if somebody pressed Ctrl-C after 300 steps."""

pytestmark = pytest.mark.skipif(
    bool(CATALOGUE["qemu-vtd"].missing()), reason=CATALOGUE["qemu-vtd"].missing() or "never"
)


@pytest.fixture(scope="module")
def told():
    return run(LAZY, "--only", "fold-split")


def program(text):
    return text.partition("<<'END'\n")[2].partition("END\n")[0]


def test_a_planted_fault_is_found_and_told_with_both_walks(told):
    assert told.returncode == 1
    assert "SL-PTE" in told.stdout or "SL-PDE" in told.stdout
    assert "the model's own account" in told.stdout
    assert "vtd_" in told.stdout


def test_the_printed_program_shows_the_fault_again_and_only_with_it(told):
    text = program(told.stdout)
    assert run(LAZY, "--replay", "-", text=text).returncode == 1
    assert run("", "--replay", "-", text=text).returncode == 0


def test_a_random_program_that_shows_it_is_made_shorter():
    found = run(LAZY, "--from", "1", "--probes", "3000")
    assert found.returncode == 1
    lengths = re.search(r"after (\d+) steps \(shrunk from (\d+)\)", found.stdout)
    assert lengths is not None
    assert int(lengths[1]) == len(program(found.stdout).splitlines()) - 1
    assert int(lengths[1]) < int(lengths[2])


def test_an_interrupted_run_says_where_it_goes_on():
    stopped = run(INTERRUPT, "--probes", "100000", "--seed", "4", "--from", "2")
    assert stopped.returncode == 130
    assert "the same command with --from 2 goes on" in stopped.stdout


def test_equal_seeds_and_probes_check_the_same_accesses_and_no_more_than_asked_for():
    told = []
    for _ in range(2):
        done = run("", "--probes", "400", "--from", "1", "--json")
        assert done.returncode == 0
        told.append(json.loads(done.stdout))
        assert told[-1].pop("seconds") and told[-1].pop("rate")
    assert told[0] == told[1]
    assert 400 <= told[0]["checked"] < 430
