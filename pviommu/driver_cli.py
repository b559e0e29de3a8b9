# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu driver``: the guest drivers, validated against a hypervisor before a kernel ever runs them.

Exit status: 0 clean, 1 something was found, 2 wrong usage, 3 a fault of this program.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from guest_driver import drivers
from hypervisor import profile as profiles
from pviommu.driver_view import (
    outcome_as_dict,
    outcome_lines,
    report_as_dict,
    report_as_junit,
    report_lines,
)
from pviommu.options import Defects, Json, UsageError, check_writable, switch_on
from testbed import backends
from testbed.validate.ownership import ownership, rows_as_lines
from testbed.validate.partial import CAUSES, partial_unmap
from testbed.validate.validate import Report, validate

FOUND: Final = 1
GUESTS: Final = ("pv", "pvh", "hvm")

app = typer.Typer(
    name="driver",
    help="The posted guest drivers and the reference: list them, validate them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

DriverName = Annotated[
    str, typer.Option("--driver", help="A driver of 'pviommu driver list'; NAME~ID mends a defect, NAME+ID adds one.")
]
ProfileName = Annotated[
    str, typer.Option("--profile", help="How the hypervisor answers; 'all': every profile without defects.")
]
BackendName = Annotated[str, typer.Option("--backend", help="Translation backend.")]
GuestKind = Annotated[str | None, typer.Option("--guest", help="pv, pvh or hvm; default is pv and pvh.")]


@app.command("list")
def list_drivers(
    as_json: Json = False,
    defects: Annotated[bool, typer.Option("--defects", help="List every known defect too.")] = False,
) -> None:
    """Every driver, what it is, and the ids of its defects."""
    if as_json:
        print(json.dumps(_catalogue(), indent=2))
        return
    width = max(map(len, drivers.names()))
    for name in drivers.names():
        version = drivers.get(name)
        print(f"{name:{width}} {version.posted}")
        print(f"{'':{width}} {version.summary}")
        if version.defects:
            print(f"{'':{width}} defects: {', '.join(defect.id for defect in version.defects)}")
    if defects:
        for defect in drivers.DEFECTS.values():
            also = f" ({', '.join(defect.also)})" if defect.also else ""
            print(f"\n{defect.id}{also}  {', '.join(defect.versions)}")
            print(f"    {defect.title}\n    seen: {defect.seen}\n    read: {defect.source}")


def _catalogue() -> dict[str, object]:
    return {
        "drivers": [
            {
                "name": version.name,
                "posted": version.posted,
                "summary": version.summary,
                "defects": [defect.id for defect in version.defects],
            }
            for version in map(drivers.get, drivers.names())
        ],
        "defects": [
            {
                "id": defect.id,
                "also": list(defect.also),
                "versions": list(defect.versions),
                "title": defect.title,
                "seen": defect.seen,
                "source": defect.source,
                "applies": not defect.judged,
            }
            for defect in drivers.DEFECTS.values()
        ],
    }


@app.command("validate")
def validate_driver(
    driver: DriverName = "reference",
    profile: ProfileName = "v7-fixed",
    backend: BackendName = "vtd",
    guest: GuestKind = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes to use; more than kinds of guests are of no use.")] = 2,
    as_json: Json = False,
    defect: Defects = "",
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the outcome as JUnit XML to this file.")] = None,
) -> None:
    """Take a driver through its life and report what holds, what does not, and why."""
    _check(driver, backend, guest)
    if profile != "all" and profile not in profiles.names():
        raise UsageError(f"unknown profile {profile!r}; there are: all, {', '.join(profiles.names())}")
    guests = ("pv", "pvh") if guest is None else (guest,)
    fixed = tuple(name for name in profiles.names() if not profiles.get(name).defects)
    chosen = fixed if profile == "all" else (profile,)
    for name in chosen:
        switch_on(defect, name, backend)
    check_writable(junit)
    reports: list[Report] = []
    for name in chosen:
        reports.append(validate(driver, name, backend, guests, progress=None if as_json else _progress(), jobs=jobs))
    if as_json:
        print(json.dumps([report_as_dict(report) for report in reports], indent=2))
    else:
        for report in reports:
            print("\n".join(report_lines(report)), end="\n\n" if len(reports) > 1 else "\n")
    if junit is not None:
        junit.write_text(report_as_junit(reports), encoding="utf-8")
    if not all(report.clean for report in reports):
        raise typer.Exit(FOUND)


@app.command("partial-unmap")
def partial(
    driver: DriverName = "reference",
    profile: ProfileName = "v7-fixed",
    backend: BackendName = "vtd",
    guest: GuestKind = None,
    pages: Annotated[int, typer.Option(min=1, max=64, help="Pages that are unmapped in one call.")] = 8,
    defect: Defects = "",
    cause: Annotated[str | None, typer.Option(help=f"Only one of: {', '.join(CAUSES)}.")] = None,
    as_json: Json = False,
) -> None:
    """An unmap fails at page k: what the guest believes, what the hypervisor has, what the device reaches."""
    _check(driver, backend, guest)
    _speaks(driver, profile)
    switch_on(defect, profile, backend)
    if cause is not None and cause not in CAUSES:
        raise UsageError(f"unknown cause {cause!r}; there are: {', '.join(CAUSES)}")
    kind = guest or "pvh"
    causes = tuple(CAUSES) if cause is None else (cause,)
    outcomes = list(partial_unmap(driver, profile, backend, kind, pages, causes))
    if as_json:
        print(json.dumps([outcome_as_dict(outcome) for outcome in outcomes], indent=2))
    else:
        print("\n".join(outcome_lines(driver, profile, kind, outcomes)))
    if not all(outcome.honest for outcome in outcomes):
        raise typer.Exit(FOUND)


@app.command("ownership")
def thread_002(
    driver: DriverName = "reference",
    profile: ProfileName = "v7-fixed",
    backend: BackendName = "vtd",
    defect: Defects = "",
) -> None:
    """DMA ownership of a group with two devices: what the mailing list asked, and what merged code answers."""
    _check(driver, backend, None)
    _speaks(driver, profile)
    switch_on(defect, profile, backend)
    rows = list(ownership(driver, profile, backend))
    print("\n".join(rows_as_lines(rows)))
    if not all(row.ok for row in rows):
        raise typer.Exit(FOUND)


def _speaks(driver: str, profile: str) -> None:
    if profile not in profiles.names():
        raise UsageError(f"unknown profile {profile!r}; there are: {', '.join(profiles.names())}")
    if not drivers.get(driver).speaks(profiles.get(profile).abi):
        raise UsageError(f"driver {driver} does not speak the ABI of profile {profile}")


def _check(driver: str, backend: str, guest: str | None) -> None:
    try:
        drivers.get(driver)
        backends.get(backend)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if guest is not None and guest not in GUESTS:
        raise UsageError(f"unknown guest kind {guest!r}; there are: {', '.join(GUESTS)}")


def _progress() -> Callable[[str], None] | None:
    """A line that is overwritten, on a terminal."""
    return _show if sys.stderr.isatty() else None


def _show(what: str) -> None:
    print(f"\r\x1b[K{what}\r", end="", file=sys.stderr, flush=True)
