# SPDX-License-Identifier: GPL-2.0-or-later
"""A model's process: how it starts, and why it never outlives the program that asked it.

Three things end it: :meth:`ModelProcess.stop`, the interpreter's exit, and the kernel's parent-death signal, which
needs no cooperation from a program that was killed.
"""

import atexit
import contextlib
import ctypes
import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from typing import Final

PR_SET_PDEATHSIG: Final = 1
"""prctl(2)."""


class ModelMissing(Exception):
    """The program that runs a model is not installed; the text is one line that names the package."""


class ModelDied(Exception):
    """A model's process ended while it was needed; the text holds what it said last."""


def find_program(names: Sequence[str], package: str, variable: str) -> str:
    """Path of the first of ``names`` on PATH; the environment variable ``variable`` names another one."""
    chosen = os.environ.get(variable)
    if chosen:
        found = shutil.which(chosen)
        if found is None:
            raise ModelMissing(f"{variable}={chosen}: there is no such program")
        if "QEMU" not in _version(found):
            raise ModelMissing(f"{variable}={chosen}: that is not QEMU, going by what it says to --version")
        return found
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return found
    raise ModelMissing(f"{names[0]} is missing; install the package {package} (apt-get install {package})")


@functools.cache
def _version(program: str) -> str:
    """What ``--version`` prints; nothing if the program does not run or does not end."""
    command = [program, "--version"]
    try:
        said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.decode(errors="replace")


def major_version(program: str) -> int:
    """The first number that a program's ``--version`` prints; 0 if it prints none."""
    found = re.search(r"(\d+)\.\d+", _version(program))
    return int(found[1]) if found else 0


def _dies_with(parent: int) -> Callable[[], None]:
    """What the child does between fork and exec."""
    libc = ctypes.CDLL(None)

    def tie() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent went away before the line above
            os._exit(1)

    return tie


class ModelProcess:
    """``argv`` as a child that ends no later than this process.  ``keep`` are descriptors that it inherits."""

    def __init__(
        self, argv: Sequence[str], keep: Sequence[int] = (), environment: dict[str, str] | None = None
    ) -> None:
        self._output: Final = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        self.argv: Final = tuple(argv)
        self._process: Final = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(keep),
            env={**os.environ, **(environment or {})},
            preexec_fn=_dies_with(os.getpid()),
        )
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        """What it printed so far, on both streams."""
        if self._output.closed:
            return ""
        self._output.seek(0)
        return self._output.read().decode(errors="replace").strip()

    def death(self) -> ModelDied:
        """The exception for a process that ended unasked."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        last = self.said().splitlines()[-3:]
        return ModelDied(f"{self.argv[0]} ended with status {self._process.poll()}: {' / '.join(last) or 'no output'}")

    def stop(self) -> None:
        """End it now.  May be called again."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._output.close()
        atexit.unregister(self.stop)
