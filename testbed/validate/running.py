# SPDX-License-Identifier: GPL-2.0-or-later
"""Running a program from power-on until something does not hold, and making one that fails shorter."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from abi.errno import errno_name
from guest_driver.linux.oops import KernelOops
from hypervisor.errors import HostStopped
from testbed.invariants_guest import Complaint, Key, check
from testbed.validate.calls import perform
from testbed.validate.program import Call, Program
from testbed.validate.world import World

BEFORE_BOOT: Final = ("boot", "fail", "one-group", "no-cache-cap", "no-contexts", "pasid-driver")
"""Calls that do not need a booted guest."""


def run(world: World, program: Program, known: Container[Key] = ()) -> list[Complaint]:
    """Run ``program`` from power-on until the first call after which something does not hold that is not ``known``."""
    try:
        world.reset()
        for step in program:
            found = _step(world, step, known)
            if found:
                return found
        return []
    except KernelOops as death:
        return [Complaint("oops", step.name, str(death))]
    except HostStopped as death:
        world.rebuild()
        return [Complaint("xen", step.name, str(death))]


def _step(world: World, wanted: Call, known: Container[Key]) -> list[Complaint]:
    if world.kernel is None and wanted.name not in BEFORE_BOOT:
        return []  # shrinking may take the boot away
    if wanted.name not in ("boot", "fail") and world.kernel is not None and world.kernel.xen is None:
        return []
    done = perform(world, wanted.name, wanted.args)
    found = check(world, done, known)
    if wanted.expect and done.result not in wanted.expect and not (done.result == -22 and not done.hypercalls):
        allowed = " or ".join(_result(value) for value in wanted.expect)
        wrong = Complaint(
            "expect", wanted.name, f"{wanted.why or 'wrong answer'}: {_result(done.result)}, not {allowed}"
        )
        if wrong.key not in known:
            found.append(wrong)
    return found


def _result(value: object) -> str:
    if isinstance(value, int) and value < 0:
        return f"-{errno_name(value)}" if not errno_name(value).startswith("errno") else str(value)
    return f"{value:#x}" if isinstance(value, int) and value > 9 else str(value)


def keys(world: World, program: Program, known: Container[Key] = ()) -> set[Key]:
    """What fails in ``program`` at the first call after which anything does that is not ``known``."""
    return {complaint.key for complaint in run(world, program, known)}


def shrink(
    world: World, program: Program, key: Key, reference: World | None = None, known: Container[Key] = ()
) -> Program:
    """Take calls away as long as ``key`` still fails, and does not on ``reference``."""
    shorter = True
    while shorter:
        shorter = False
        for index in range(len(program)):
            candidate = program[:index] + program[index + 1 :]
            if key in keys(world, candidate, known) and (
                reference is None or key not in keys(reference, candidate, known)
            ):
                program, shorter = candidate, True
                break
    return program
