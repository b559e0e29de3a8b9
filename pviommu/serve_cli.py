# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu serve-iommufd``: a real program that opens /dev/iommu, on the Python iommufd.

Exit status: the program's own (128 + signal if one ended it); 1 if it ended well and left something behind, 2 wrong
usage, or no seccomp user notification here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from guest_driver.iommufd.release import LATEST, RELEASES, as_released, release
from pviommu.options import Defects, UsageError, switch_on
from testbed import backends
from testbed.iommufd_machine import MOCK
from testbed.serve.description import Description, read
from testbed.serve.run import serve
from testbed.serve.seccomp import Unsupported

FOUND: Final = 1


def serve_iommufd(
    program: Annotated[list[str], typer.Argument(help="The program and its arguments, behind --.")],
    devices: Annotated[
        Path | None, typer.Option("--devices", help="Description of machine and devices (docs/iommufd.md).")
    ] = None,
    machine: Annotated[
        str, typer.Option("--machine", help=f"Without --devices: {MOCK}, {', '.join(backends.names())}.")
    ] = MOCK,
    kernel: Annotated[
        str, typer.Option("--kernel", help=f"Without --devices, whose iommufd: {', '.join(RELEASES)}.")
    ] = LATEST,
    released: Annotated[bool, typer.Option("--as-released", help="With the faults of that kernel.")] = False,
    test_commands: Annotated[bool, typer.Option("--test", help="Offer IOMMU_TEST_CMD and its mock devices.")] = False,
    defect: Defects = "",
    trace: Annotated[bool, typer.Option("--trace", help="A line on standard error for each ioctl.")] = False,
) -> None:
    """Run a program that opens /dev/iommu on the Python iommufd, its devices emulated."""
    try:
        if devices is not None:
            if (machine, kernel, released) != (MOCK, LATEST, False):
                raise ValueError("machine and kernel are said in the file that --devices names")
            described = read(devices)
        else:
            if machine != MOCK and machine not in backends.names():
                raise ValueError(f"unknown machine {machine!r}; there are: {MOCK}, {', '.join(backends.names())}")
            described = Description(machine, as_released(kernel) if released else release(kernel))
        if described.machine != MOCK:
            switch_on(defect, "v7-fixed", described.machine)
        outcome = serve(described, program, test_commands, _note if trace else None)
    except (ValueError, Unsupported) as error:
        raise UsageError(str(error)) from None
    for line in outcome.warnings:
        print(f"pviommu: the kernel says: {line}", file=sys.stderr)
    for line in outcome.left:
        print(f"pviommu: left behind: {line}", file=sys.stderr)
    if trace:
        print(f"pviommu: {outcome.calls} ioctls", file=sys.stderr)
    dirty = outcome.warnings or outcome.left
    raise typer.Exit(outcome.status or (FOUND if dirty else 0))


def _note(line: str) -> None:
    print(f"pviommu: {line}", file=sys.stderr)
