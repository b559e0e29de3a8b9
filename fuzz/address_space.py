# SPDX-License-Identifier: GPL-2.0-or-later
"""An end to programs that eat memory: ``MemoryError`` where they are, instead of a machine that is out of it."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_most(memory: int) -> Iterator[None]:
    """This process may have ``memory`` bytes of address space, or fewer if it was given fewer; 0: as before."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    given = [limit for limit in (memory, *before) if limit not in (0, resource.RLIM_INFINITY)]
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (min(given), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
