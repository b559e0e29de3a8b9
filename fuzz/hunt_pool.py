# SPDX-License-Identifier: GPL-2.0-or-later
"""Hunts in parallel: one process for each entry at a time.

Each worker has a pipe of its own, so that one that is killed, whenever that is, is noticed; its entry is hunted again.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Final

from fuzz.hunt import Hunt, Quarry, look
from fuzz.spawn import start

AGAIN: Final = 2
"""Times that an entry is hunted again after its worker was killed."""

Work = tuple[Quarry, float, int, bool]
"""Arguments of :func:`fuzz.hunt.look`."""


def hunt(
    over: list[Quarry],
    seconds: float,
    seed: int,
    jobs: int = 1,
    shrink: bool = True,
    say: Callable[[str], None] = lambda what: None,
) -> Iterator[Hunt]:
    """Look for each, ``jobs`` at a time; results as they come.  ``say`` is told in a line of every worker that died.

    An entry counts as missed if its worker fails by itself, or is killed again and again.
    """
    if jobs == 1:
        for quarry in over:
            yield look(quarry, seconds, seed, shrink)
        return
    pool = _Pool([(quarry, seconds, seed, shrink) for quarry in over], say)
    try:
        yield from pool.results(min(jobs, len(over)))
    finally:
        pool.dismiss()


class _Pool:
    """Processes that hunt one entry after the other."""

    def __init__(self, work: list[Work], say: Callable[[str], None]) -> None:
        self._left: Final = deque((item, AGAIN) for item in work)
        """Work that nobody has, and how often it is taken up again if its worker is killed."""
        self._say: Final = say
        self._context: Final = multiprocessing.get_context("spawn")
        self._workers: Final[dict[Connection, tuple[SpawnProcess, Work, int]]] = {}
        """Where a worker is heard, to its process and what it is at."""

    def results(self, jobs: int) -> Iterator[Hunt]:
        """What the hunts came to, as they end."""
        for _ in range(jobs):
            self._hire()
        while self._workers:
            for pipe in wait(list(self._workers)):
                assert isinstance(pipe, Connection)
                try:
                    found: Hunt | None = pipe.recv()
                except (EOFError, OSError):  # it is gone, or went in the middle of a word
                    found = self._bury(pipe)
                    self._hire()
                else:
                    self._employ(pipe, self._workers.pop(pipe)[0])
                if found is not None:
                    yield found

    def dismiss(self) -> None:
        """End every worker."""
        for process, _, _ in self._workers.values():
            process.kill()
        for pipe, (process, _, _) in self._workers.items():
            process.join()
            pipe.close()
        self._workers.clear()

    def _hire(self) -> None:
        if self._left:
            pipe, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
            start(process)
            theirs.close()  # the worker's own is the last one: the pipe ends with it
            self._employ(pipe, process)

    def _employ(self, pipe: Connection, process: SpawnProcess) -> None:
        """Give a worker its next entry, or let it go."""
        if not self._left:
            pipe.close()  # it ends when it hears nothing more
            return
        work, again = self._left.popleft()
        self._workers[pipe] = process, work, again
        with suppress(OSError):  # it is gone already, which is noticed when it is heard
            pipe.send(work)

    def _bury(self, pipe: Connection) -> Hunt | None:
        """A worker is gone: what it was at is hunted again, or missed."""
        process, work, again = self._workers.pop(pipe)
        pipe.close()
        process.join()
        quarry, _, seed, _ = work
        status = process.exitcode or 0
        killed = status < 0
        how = f"was killed (signal {-status})" if killed else f"failed (exit status {status})"
        if killed and again:
            self._say(f"the worker that hunted {quarry.defect} {how}: it is hunted again")
            self._left.appendleft((work, again - 1))
            return None
        self._say(f"the worker that hunted {quarry.defect} {how}: it counts as missed")
        return Hunt(quarry.defect, quarry.side, quarry.title, False, 0, 0, 0, 0, seed=seed)


def _serve(pipe: Connection) -> None:
    """A worker's process."""
    _end_with_parent()
    with suppress(EOFError):
        while True:
            pipe.send(look(*pipe.recv()))


def _end_with_parent() -> None:
    """A worker whose hunt is gone, however it went, goes as well; and an interrupt is the parent's to take."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_it() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_it, daemon=True).start()
