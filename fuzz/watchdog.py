# SPDX-License-Identifier: GPL-2.0-or-later
"""An end to programs that do not end: after some processor time, :class:`Hang` is raised where they are.

It works in the main thread of a process, which is where workers run programs; elsewhere nothing is armed.
"""

import signal
import threading
from types import FrameType


class Hang(Exception):
    """The program is still running."""


def arm(seconds: float) -> None:
    """From now on, so many seconds of this process' processor time."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGVTALRM, _bite)
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)


def disarm() -> None:
    """The program ended."""
    if threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _bite(number: int, frame: FrameType | None) -> None:
    where = f"{frame.f_code.co_name}, line {frame.f_lineno}" if frame is not None else "somewhere"
    raise Hang(f"no end in sight ({where})")
