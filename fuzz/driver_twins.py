# SPDX-License-Identifier: GPL-2.0-or-later
"""A program of driver level on two kernels that must agree: two drivers, two backends, two profiles.

Compared are success and failure of every operation, what ``iova_to_phys`` says, and the pages that each device reaches.
Neither kernel's invariants are asked, only the other kernel.  Where one runs out of memory the program ends.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from abi.errno import errno_name
from fuzz.driver_run import DriverRunner
from fuzz.program import Bench
from fuzz.spans import Span
from fuzz.sweep import Broken
from fuzz.twins import other_bench, spaces
from fuzz.verbs import DEVICES, Op, ProgramError
from guest_driver import drivers
from testbed.build import TestBed

_ENOMEM: Final = errno_name(-12)
_NAMES: Final = ("nic", "copier", "rogue")


def other_kernel(bench: Bench) -> Bench:
    """The bench that ``bench.against`` stands for, a driver's name included."""
    if bench.against in drivers.names():
        return replace(bench, driver=bench.against, against="")
    try:
        return other_bench(bench)
    except ProgramError:
        raise ProgramError(f"there is no driver, backend or profile {bench.against!r} to compare with") from None


class DriverTwins(DriverRunner):
    """Runs programs on the bench and on the one it is held against."""

    def __init__(self, bench: Bench, sabotage: Callable[[TestBed], None] | None = None) -> None:
        """``sabotage`` goes into the first machine only."""
        other = other_kernel(bench)
        self._other: Final = DriverRunner(other)
        if bench.driver != other.driver:
            self._sides = bench.driver, other.driver
        elif bench.backend != other.backend:
            self._sides = bench.backend, other.backend
        else:
            self._sides = bench.profile, other.profile
        self._over = False
        super().__init__(bench, sabotage)

    def begin(self) -> None:
        super().begin()
        self._other.begin()
        self._over = False

    def step(self, operation: Op, sweep: bool = True) -> tuple[str, Broken | None]:
        """Both sides do it, and are compared; reach only with ``sweep``."""
        if self._over:
            return "-", None
        (left, _), (right, _) = super().step(operation, False), self._other.step(operation, False)
        if _ENOMEM in (left, right) and left != right:
            self._over = True
            return left, None
        differs = left != right if operation[0] == "iova_to_phys" else _worked(left) != _worked(right)
        if differs:
            one, two = self._sides
            return left, Broken("same-answer", f"{operation[0]} answered {left} with {one} and {right} with {two}")
        if not _worked(left) and "E" not in left[:1]:  # both kernels died
            self._over = True
        return left, self._end_sweep(True) if sweep else None

    def _end_sweep(self, full: bool) -> Broken | None:
        if self._over:
            return None
        left, right = _reach(self), _reach(self._other)
        for name, spans in left.items():
            if spans != right[name]:
                one, two = self._sides
                odd = sorted(set(spans) ^ set(right[name]))[:1]
                where = f"from dfn {odd[0][0]:#x} on" if odd else "in its own context or not"
                return Broken("same-reach", f"{name} reaches other pages with {one} than with {two}, {where}")
        return None


def _worked(answer: str) -> bool:
    return answer == "0" or answer.startswith("0x")


def _reach(runner: DriverRunner) -> dict[str, tuple[Span, ...]]:
    """What each device that was moved out of the default context reaches."""
    bed = runner.bed
    tables = spaces(bed)
    reach = {}
    for name in _NAMES:
        device = bed.dom0.devices.get(DEVICES[name])  # type: ignore[call-overload]
        context = device.context if device is not None else None
        number = int(context.number) if context is not None else 0
        reach[name] = tuple(tables.get(str(number), ()))
    return reach
