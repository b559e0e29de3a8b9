# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu golden``: does the emulated hypervisor answer as a recorded one did?"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from abi.versions import Convention
from hypervisor import profile as profiles
from pviommu.options import Defects, Json, UsageError, switch_on
from testbed.golden.records import RecordError
from testbed.golden.replay import Replay, replay


def golden(
    files: Annotated[list[Path], typer.Argument(help="Records: JSON lines, one file per boot.")],
    profile: Annotated[str, typer.Option(help="The hypervisor that has to answer.")] = "v3",
    defect: Defects = "",
    as_json: Json = False,
) -> None:
    """Replay records of a running Xen and compare return values, structs, invalidations, tables and references.

    Prints the first difference of every file with the record's line.  Exit status 0 without a difference, 1 with one.
    """
    if profile not in profiles.names():
        raise UsageError(f"unknown profile {profile!r}; there are: {', '.join(profiles.names())}")
    if profiles.get(profile).abi.convention is not Convention.UNION:
        raise UsageError(f"the records are of the tagged union's interface (v1 to v3); {profile} has another")
    ids = switch_on(defect, profile, "vtd")
    results = []
    for file in files:
        try:
            results.append(replay(file, profile, ids))
        except RecordError as error:
            raise UsageError(str(error)) from None
    if as_json:
        print(json.dumps({"profile": profile, "files": [_as_dict(result) for result in results]}, indent=2))
    else:
        for result in results:
            _print(result)
    raise typer.Exit(1 if any(result.differences for result in results) else 0)


def _as_dict(result: Replay) -> dict[str, Any]:
    first = result.differences[0] if result.differences else None
    return {
        "file": str(result.path),
        "calls": result.calls,
        "states": result.states,
        "descriptors": result.descriptors,
        "stopped": result.stopped or None,
        "passed_over": result.passed_over,
        "difference": first
        and {"line": first.line, "what": first.what, "recorded": first.recorded, "replayed": first.replayed},
    }


def _print(result: Replay) -> None:
    counted = f"{result.calls} calls, {result.states} states"
    if result.differences:
        print(f"{result.path}: differs after {counted}")
        print(f"  {result.differences[0]}")
    else:
        print(f"{result.path}: the same, {counted}" + (f"; ends in {result.stopped}" if result.stopped else ""))
    if result.passed_over:
        print(f"  passed over: lines of kind {', '.join(result.passed_over)}")
