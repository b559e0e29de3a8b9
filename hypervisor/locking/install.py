# SPDX-License-Identifier: GPL-2.0-or-later
"""Putting locks onto an assembled hypervisor."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hypervisor.locking.guards import GUARDS, Guard, guarded
from hypervisor.locking.locks import Locks
from hypervisor.locking.places import Places
from hypervisor.locking.toolstack import TOOLSTACK, guard_toolstack
from hypervisor.locking.toolstack import Guard as ToolstackGuard

if TYPE_CHECKING:
    from hypervisor.xen import Xen


def install_locks(
    xen: "Xen",
    guards: Mapping[str, Guard] = GUARDS,
    toolstack: Mapping[str, ToolstackGuard] = TOOLSTACK,
    locks: Locks | None = None,
) -> Locks:
    """Let every sub-op and every call of the toolstack hold its locks, which may be given; what ``xen`` has already
    stays as it is."""
    if xen.locks is None:
        xen.locks = locks = locks or Locks()
        xen.entry.wrap_handlers(lambda name, handler: guarded(name, handler, guards[name], locks))
        guard_toolstack(xen, locks, toolstack)
    xen.locks.dormant = False
    return xen.locks


def install_places(xen: "Xen") -> Places:
    """All named places of ``xen``, locks included; :meth:`Places.remove` takes them out again, and lets locks that were
    not in use before go dormant."""
    unused = xen.locks is None or xen.locks.dormant
    places = Places(xen, install_locks(xen), locks_unused=unused)
    places.install()
    return places
