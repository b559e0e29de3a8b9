# SPDX-License-Identifier: GPL-2.0-or-later
"""The pytest plugin: fixtures, options, the check afterwards, and the line that repeats a failure."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]


def test_fixtures_are_a_machine_a_guest_and_a_device(pytester):
    pytester.makepyfile(
        """
        def test_it(testbed, guest, device):
            iova = guest.kernel.dma.map_page(device.kernel, 42, 0, 4096, 2)
            assert device.write(iova, b"x") is None
            assert testbed.config.profile == "v3-fixed" and testbed.config.seed == 7
        """
    )
    pytester.makeini("[pytest]")
    options = ("--pviommu-backend=both", "--pviommu-profile=v3-fixed", "--pviommu-seed=7", "-p", "no:xdist", "-v")
    result = pytester.runpytest_inprocess(*options)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_it?vtd? PASSED*", "*test_it?smmuv3? PASSED*"])


def test_a_machine_that_is_not_sound_fails_the_test_unless_that_was_wanted(pytester):
    pytester.makepyfile(
        """
        import pytest

        def test_breaks(testbed):
            testbed.xen.frames.refs[testbed.mfns[9]] += 1

        @pytest.mark.pviommu(check=False, backend="smmuv3")
        def test_breaks_on_purpose(testbed):
            assert testbed.config.backend == "smmuv3"
            testbed.xen.frames.refs[testbed.mfns[9]] += 1
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:xdist", "--strict-markers")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*the machine is not sound any more: references: *",
            "again with: --pviommu-backend vtd --pviommu-profile v7-fixed --pviommu-seed 0 *::test_breaks?vtd?",
        ]
    )


def test_wrong_options_are_said_in_a_line(pytester):
    pytester.makepyfile("def test_it(testbed): pass")
    for option, says in (("--pviommu-backend=toaster", "toaster"), ("--pviommu-profile=v99", "v99")):
        result = pytester.runpytest_inprocess(option, "-p", "no:xdist")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert says in result.stderr.str() and "Traceback" not in result.stdout.str() + result.stderr.str()


def test_a_run_without_the_fixtures_does_not_load_the_test_bed():
    code = (
        "import sys, pytest, pviommu.pytest_plugin\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('testbed', 'hypervisor', 'machine', 'fuzz')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_examples_pass():
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "examples/own_tests", "--pviommu-backend", "both"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "9 passed" in done.stdout
