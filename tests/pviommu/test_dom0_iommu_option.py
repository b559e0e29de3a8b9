# SPDX-License-Identifier: GPL-2.0-or-later
"""``--dom0-iommu`` on run, walk and dump, and one line for words that do not exist or do not fit."""

import pytest
from typer.testing import CliRunner

from pviommu.cli import app


def pviommu(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


COMMANDS = [("run", "--count", "1", "--stream", "0"), ("walk", "00:04.0", "0x1000"), ("dump",)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("nowhere",), "dom0-iommu=nowhere: v7-fixed knows dma=no, strict"),
        (("nb-ctx=3",), "dom0-iommu=nb-ctx=3: v7-fixed knows"),
        (("dma=no", "--profile", "v3"), "dom0-iommu=dma=no: v3 knows nb-ctx=N"),
        (("passthrough", "--guest", "pvh"), "a PVH dom0 needs"),
        (("passthrough,dma=no",), "contradicts"),
    ],
)
def test_a_word_that_does_not_fit_is_one_line(command, words, why):
    done = pviommu(*command, "--backend", "vtd", "--dom0-iommu", *words)
    assert done.exit_code == 2
    assert why in done.output and "Traceback" not in done.output


def test_none_leaves_every_device_in_a_context_that_passes_through():
    for backend in ("vtd", "smmuv3"):
        shown = pviommu("dump", "--backend", backend, "--guest", "pv", "--dom0-iommu", "none")
        assert shown.exit_code == 0 and "01:00.0): passes everything through" in shown.output
        walked = pviommu("walk", "00:04.0", "0x1000", "--backend", backend, "--guest", "pv", "--dom0-iommu", "none")
        assert walked.exit_code == 0 and "not translated" in walked.output


def test_a_run_under_passthrough_is_clean_and_its_trace_says_so(tmp_path):
    trace = tmp_path / "run.trace"
    words = ("--backend", "vtd", "--count", "2", "--stream", "0", "--dom0-iommu", "passthrough")
    done = pviommu("run", *words, "--trace", str(trace))
    assert done.exit_code == 0, done.output
    assert '"dom0_iommu":"passthrough"' in trace.read_text()
    again = pviommu("dump", "--context", "0", "--trace", str(trace))
    assert "passes everything through" in again.output
    refused = pviommu("dump", "--dom0-iommu", "none", "--trace", str(trace))
    assert refused.exit_code == 2 and "--dom0-iommu is the trace's own" in refused.output


def test_a_run_without_an_iommu_says_that_the_driver_declined():
    done = pviommu("run", "--backend", "vtd", "--count", "1", "--stream", "0", "--dom0-iommu", "none")
    assert done.exit_code == 1 and "declined this hypervisor (ENODEV)" in done.output
