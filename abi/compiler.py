# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's own C compilers, one per architecture, and what they make of a header.

Nothing is run: values are read from the assembler text, where ``asm volatile`` leaves the immediate that the compiler
computed, so a compiler for another architecture serves as well as the machine's own.
"""

import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Compiler:
    """A command that compiles C for one architecture."""

    arch: str
    command: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.command)


class CompilerMissing(Exception):
    """No compiler for that architecture is installed."""


class CompileError(Exception):
    """The compiler refused; the text is its own message."""


_COMMANDS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "x86-64": (("gcc", "-m64"), ("x86_64-linux-gnu-gcc",), ("clang", "--target=x86_64-linux-gnu"), ("cc", "-m64")),
    "i386": (("gcc", "-m32"), ("i686-linux-gnu-gcc",), ("clang", "--target=i386-linux-gnu"), ("cc", "-m32")),
    "arm64": (("aarch64-linux-gnu-gcc",), ("gcc",), ("clang", "--target=aarch64-linux-gnu"), ("cc",)),
}
_PACKAGES: Final = {"x86-64": "gcc", "i386": "gcc", "arm64": "gcc-aarch64-linux-gnu"}
_TEST_MACRO: Final = {"x86-64": "__x86_64__", "i386": "__i386__", "arm64": "__aarch64__"}
_BASE: Final = ("-std=gnu99", "-ffreestanding", "-x", "c")
"""Freestanding: <stdint.h> and <stddef.h> come with the compiler, so no C library for the target is needed."""
_TIMEOUT: Final = 60.0


@functools.cache
def find(arch: str) -> Compiler:
    """The first installed compiler that really compiles for ``arch``; :class:`CompilerMissing` says what to install."""
    macro = _TEST_MACRO[arch]
    source = f"#include <stdint.h>\n#ifndef {macro}\n#error other\n#endif\nint x;\n"
    for command in _COMMANDS[arch]:
        if shutil.which(command[0]) and _run((*command, *_BASE, "-S", "-o", os.devnull, "-"), source)[0] == 0:
            return Compiler(arch, command)
    wanted = ", ".join(" ".join(command) for command in _COMMANDS[arch])
    raise CompilerMissing(f"no C compiler for {arch}: tried {wanted} (Debian: apt-get install {_PACKAGES[arch]})")


def compile_header(compiler: Compiler, path: Path, flags: Sequence[str]) -> str:
    """Compile a header as a file of its own with ``flags``: the compiler's messages, "" if it has none to make."""
    _, messages = _run((*compiler.command, "-ffreestanding", *flags, "-fsyntax-only", "-x", "c", str(path)), "")
    return messages


class Unit:
    """A translation unit that includes one header, for asking a compiler questions about it."""

    def __init__(self, compiler: Compiler, preamble: str, flags: Sequence[str]) -> None:
        self._compiler: Final = compiler
        self._preamble: Final = preamble
        self._flags: Final = tuple(flags)

    def preprocess(self) -> str:
        """The unit after the preprocessor, with ``#define`` lines left in; :class:`CompileError` if it fails."""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "unit.i")
            command = (*self._compiler.command, *_BASE, *self._flags, "-E", "-dD", "-o", str(target), "-")
            status, messages = _run(command, self._preamble)
            if status:
                raise CompileError(messages)
            return _output(target, self._compiler)

    def values(self, expressions: Sequence[str]) -> list[int | None]:
        """Each integer constant expression's value; ``None`` for one that does not compile or is no integer."""
        wanted = dict(enumerate(expressions))
        for _ in range(len(expressions) + 1):
            status, text, messages = self._ask(wanted)
            if status == 0:
                found = {int(n): int(value) for n, value in _VALUE.findall(text)}
                return [found.get(n) for n in range(len(expressions))]
            refused = {int(a or b) for a, b in _REFUSED.findall(messages)} & wanted.keys()
            if not refused:
                raise CompileError(messages)
            for number in refused:
                del wanted[number]
        raise CompileError("the compiler goes on refusing")

    def _ask(self, wanted: dict[int, str]) -> tuple[int, str, str]:
        lines = [self._preamble]
        for number, expression in wanted.items():
            text = f'"\\n.ascii \\"->{number} %0 \\""'
            lines.append(f'#line {number} "probe"')
            lines.append(
                f"void {_FUNCTION}{number}(void) "
                f'{{ __asm__ volatile({text} : : "i" ((long long)(({expression}) | 0))); }}'
            )
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "unit.s")
            command = (
                *self._compiler.command,
                *_BASE,
                *self._flags,
                "-w",
                "-fmax-errors=0",
                "-S",
                "-o",
                str(target),
                "-",
            )
            status, messages = _run(command, "\n".join(lines) + "\n")
            return status, _output(target, self._compiler) if status == 0 else "", messages


_VALUE: Final = re.compile(r"->(\d+) [$#]?(-?\d+) ")
_FUNCTION: Final = "pv_iommu_probe_"
_REFUSED: Final = re.compile(rf"^probe:(\d+):\d+: (?:fatal )?error:|In function .{_FUNCTION}(\d+)", re.MULTILINE)


def _output(target: Path, compiler: Compiler) -> str:
    """What the compiler wrote; :class:`CompileError` if it says that all went well and wrote nothing."""
    try:
        return target.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CompileError(f"{compiler} ended well and left no output ({error.strerror})") from None


def _run(command: Sequence[str], source: str) -> tuple[int, str]:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            input=source,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, f"{command[0]} did not finish within {_TIMEOUT:.0f} s"
    return done.returncode, done.stderr.strip()
