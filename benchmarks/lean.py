# SPDX-License-Identifier: GPL-2.0-or-later
"""The C version of the hot loops (``lean/main.c``): compiled into a temporary directory, run once, its times kept."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parent / "lean" / "main.c"
COMPILERS: Final = ("cc", "gcc", "clang")


class Lean:
    """What the C version took; nothing is compiled before somebody asks."""

    def __init__(self, seconds: float) -> None:
        self._seconds: Final = seconds
        self._times: dict[tuple[str, str, int], float] | None = None

    def seconds_for(self, backend: str, what: str, pages: int) -> float | None:
        """Seconds for one step of a loop ("map+unmap", "dma-hit", "dma-miss"); ``None`` if there is no such figure."""
        if self._times is None:
            self._times = self._measure()
        return self._times.get((backend, what, pages))

    def _measure(self) -> dict[tuple[str, str, int], float]:
        compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
        if compiler is None:
            print(f"benchmarks: no C compiler ({', '.join(COMPILERS)}), so no comparison with C", file=sys.stderr)
            return {}
        with tempfile.TemporaryDirectory(prefix="pviommu-lean-") as folder:
            program = str(Path(folder) / "lean")
            try:
                subprocess.run(
                    [compiler, "-std=c11", "-O2", "-o", program, str(SOURCE)],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                done = subprocess.run([program, str(self._seconds)], check=True, capture_output=True, text=True)
            except subprocess.CalledProcessError as error:
                why = (error.stderr.strip().splitlines() or ["no message"])[0]
                print(f"benchmarks: the C version failed ({why}), so no comparison with C", file=sys.stderr)
                return {}
        times = {}
        for line in done.stdout.splitlines():
            backend, what, pages, nanoseconds = line.split()
            times[backend, what, int(pages)] = float(nanoseconds) * 1e-9
        return times
