# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmarks run, their C version runs, and a figure knows which way is better."""

import json
import shutil

import pytest

from benchmarks import dma, hypercalls, test_bed
from benchmarks.figures import RUNS, Figure, Times, clock, rate
from benchmarks.lean import COMPILERS, Lean
from benchmarks.report import as_json

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C compiler")
NO_LEAN = Lean(0.0)
NO_LEAN._times = {}


@needs_compiler
def test_c_version_has_a_time_for_every_loop_that_has_a_bar():
    lean = Lean(0.001)
    for backend in hypercalls.BACKENDS:
        for what, pages in [("map+unmap", 1), ("map+unmap", 32), ("map+unmap", 512), ("dma-hit", 1), ("dma-miss", 1)]:
            seconds = lean.seconds_for(backend, what, pages)
            assert seconds is not None and 0 < seconds < 1e-3
        assert lean.seconds_for(backend, "map+unmap", 7) is None


def test_without_a_compiler_one_line_says_so_and_there_is_no_ratio(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nonexistent")
    lean = Lean(0.001)
    assert lean.seconds_for("vtd", "map+unmap", 1) is None
    assert lean.seconds_for("vtd", "dma-hit", 1) is None
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("subject", [hypercalls, dma, test_bed])
def test_every_figure_is_positive_and_writes_itself_as_json(subject):
    found = list(subject.figures(0.0, NO_LEAN))
    assert found
    report = json.loads(json.dumps(as_json(found)))
    for figure, plain in zip(found, report["figures"], strict=True):
        assert min(figure.best, figure.median) > 0
        assert plain["name"] == figure.name and plain["c"] is None and plain["times_slower_than_c"] is None


def test_rates_pass_from_the_bar_up_and_times_from_the_bar_down():
    assert Figure("s", "n", "pages/s", 10, 9, 10).passed is True
    assert Figure("s", "n", "pages/s", 9.9, 9, 10).passed is False
    assert Figure("s", "n", "ms", 10, 11, 10).passed is True
    assert Figure("s", "n", "ms", 10.1, 11, 10).passed is False
    assert Figure("s", "n", "ms", 10.1, 11).passed is None


def test_ratio_says_how_many_times_as_long_as_in_c():
    assert rate("s", "n", "pages/s", Times(2e-6, 3e-6), 32, None, 1e-8).ratio == pytest.approx(200)
    assert Figure("s", "n", "ms", 6, 7, None, 2).ratio == pytest.approx(3)


def test_a_loop_is_run_often_enough_and_prepared_each_time():
    ran = []
    times = clock(lambda: ran.append("loop"), 1, 0.0, lambda: ran.append("before"))
    assert ran == ["loop"] + ["before", "loop"] * RUNS
    assert 0 <= times.best <= times.median
