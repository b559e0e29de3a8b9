# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of calls, as text and as values.

One call a line: a name and its arguments, numbers in hexadecimal or decimal::

    boot
    alloc 0 copier
    attach 0 copier
    fail unmap_pages ENOMEM page=3
    unmap 0 0x100000 8
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from abi.errno import errno_name


@dataclass(frozen=True, slots=True)
class Call:
    """A name of :data:`testbed.validate.calls.CALLS`, its arguments, and the results that are allowed (none: all)."""

    name: str
    args: tuple[Any, ...] = ()
    expect: tuple[int, ...] = field(default=(), compare=False)
    why: str = field(default="", compare=False)
    """What is wrong if the result is another."""

    def __str__(self) -> str:
        return " ".join([self.name, *(_text(self.name, index, value) for index, value in enumerate(self.args))])


Program = tuple[Call, ...]


def call(name: str, *args: Any, expect: tuple[int, ...] | int = (), why: str = "") -> Call:
    return Call(name, args, (expect,) if isinstance(expect, int) else expect, why)


def text(program: Program) -> str:
    """The program, one call a line."""
    return "\n".join(str(step) for step in program)


def _text(name: str, index: int, value: Any) -> str:
    if name == "fail" and index == 1:
        return errno_name(value)
    if isinstance(value, int) and value >= 4096:
        return f"{value:#x}"
    return str(value)
