# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that once showed a fault: each runs clean, and those that name defects show them when they are switched on.

A program says so in a comment: ``# shows A5 T3``.  Drop a finding's ``program.txt`` into
``corpus/`` and it is a regression test.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fuzz.concurrent import Concurrent
from fuzz.program import format_op, parse
from fuzz.run import replay

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.txt"))
SHOWS = [
    (path, defect)
    for path in CORPUS
    for line in re.findall(r"^# shows (.+)$", path.read_text(), re.M)
    for defect in line.split()
]


def name(path):
    return path.stem if isinstance(path, Path) else str(path)


@pytest.mark.parametrize("path", CORPUS, ids=name)
def test_a_program_of_the_corpus_runs_clean(path):
    program = parse(path.read_text())
    assert not program.bench.defects
    if program.bench.vcpus > 1:
        concurrent = Concurrent(program)
        broken = concurrent.attempt(concurrent.parts.schedule).broken
    else:
        found = replay(program)
        broken = found and f"{format_op(found.program.ops[-1])}: {found.clause}: {found.what}"
    assert broken is None


@pytest.mark.parametrize(("path", "defect"), SHOWS, ids=name)
def test_a_program_of_the_corpus_shows_its_defect(path, defect):
    program = parse(path.read_text())
    found = replay(replace(program, bench=replace(program.bench, defects=defect)))
    assert found is not None


def test_the_corpus_has_something_of_every_kind():
    text = "\n".join(path.read_text() for path in CORPUS)
    assert len(CORPUS) >= 10 and len(SHOWS) >= 5
    for word in (
        "backend=vtd",
        "backend=smmuv3",
        "vcpu 1",
        "fault plan=",
        "level=driver",
        "preempt",
        "raw ",
        "against=",
    ):
        assert word in text, word
