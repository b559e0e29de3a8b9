# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting a worker so that an interrupt is nobody's but the parent's, from the worker's first instruction on.

Ctrl-C goes to every process of a terminal, and one that is still importing would end in a traceback.
"""

import signal
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess


def start(worker: SpawnProcess) -> None:
    """Start ``worker`` with interrupts blocked; one that comes meanwhile is the parent's afterwards."""
    resource_tracker.ensure_running()  # it lets interrupts through again once it has started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        worker.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
