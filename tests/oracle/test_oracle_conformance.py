# SPDX-License-Identifier: GPL-2.0-or-later
"""Device models pass the suites that our own hardware halves pass, and show faults of software as those do."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from oracle.conformance import MODELS
from oracle.process import ModelMissing
from testbed.conformance import SUITES, check_backend


def model(name):
    try:
        return MODELS[name]()
    except ModelMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("suite", ["hardware", "pair"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_passes_the_suite_that_ours_passes(name, suite):
    backend, elsewhere = model(name)
    results = list(check_backend(backend, suite, elsewhere=elsewhere))
    assert [result.clause for result in results] == [clause.__name__ for clause in SUITES[suite]]
    assert [str(result) for result in results if result.failure is not None] == []
    assert {result.clause for result in results if result.exempt is not None} <= elsewhere.exempt.keys()


@pytest.mark.parametrize("name", MODELS)
def test_a_flush_that_does_nothing_fails_on_a_model_too(name):
    backend, elsewhere = model(name)

    def lazy(platform, frames):
        driver = backend.make_driver(platform, frames)
        driver.flush = lambda *arguments: 0
        return driver

    results = check_backend(replace(backend, make_driver=lazy), "pair", elsewhere=elsewhere)
    assert "an_unmapped_page_is_out_of_reach_after_the_flush" in {
        result.clause for result in results if result.failure is not None
    }


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pviommu", "conformance", *arguments], capture_output=True, text=True, timeout=300
    )


def test_the_command_says_how_every_clause_ended():
    done = run("vtd", "--suite", "format", "--json")
    assert done.returncode == 0, done.stderr
    assert {row["suite"] for row in json.loads(done.stdout)} == {"format"}


@pytest.mark.parametrize("arguments", [("none",), ("vtd", "--suite", "speed")])
def test_what_is_not_there_is_one_line_and_status_2(arguments):
    done = run(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
