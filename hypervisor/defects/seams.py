# SPDX-License-Identifier: GPL-2.0-or-later
"""The replaceable parts of one assembled hypervisor, made when the first defect asks for them."""

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

from abi.versions import Convention
from hypervisor.defects.context_ops import ContextOps
from hypervisor.defects.copying import PostedSubopEntry, PostedUnionEntry
from hypervisor.defects.page_loop import PageLoop
from hypervisor.locking.guards import GUARDS, Guard
from hypervisor.locking.install import install_locks
from hypervisor.locking.locks import Locks
from hypervisor.locking.toolstack import TOOLSTACK
from hypervisor.locking.toolstack import Guard as ToolstackGuard
from hypervisor.pviommu.entry import entry_for
from hypervisor.pviommu.table import ROWS, Handler

if TYPE_CHECKING:
    from hypervisor.xen import Xen


class Stateful(Protocol):
    """Something that a snapshot has to keep."""

    def save(self) -> Any: ...

    def restore(self, state: Any) -> None: ...


class Seams:
    """What defects may change of ``xen``, which has no domains yet."""

    def __init__(self, xen: "Xen") -> None:
        self.xen: Final = xen
        self.guards: Final[dict[str, Guard]] = dict(GUARDS)
        self.toolstack: Final[dict[str, ToolstackGuard]] = dict(TOOLSTACK)
        self.debug_build = False
        self.stateful: Final[list[Stateful]] = []
        """What defects keep beside the hypervisor's own state."""
        self.rows: Final = dict(ROWS)
        self._posted_copying = False

    @cached_property
    def locks(self) -> Locks:
        """The hypervisor's locks, which are put in place once all defects are: :attr:`guards` and :attr:`toolstack` say
        what takes which."""
        return Locks()

    def finish(self) -> None:
        """All defects are in place."""
        if "locks" in vars(self):
            self.locks.debug_build = self.debug_build
            install_locks(self.xen, self.guards, self.toolstack, self.locks)

    @cached_property
    def loop(self) -> PageLoop:
        """The page loop, in the place of the handlers for runs of pages."""
        loop = PageLoop(self.xen)
        self.stateful.append(loop)
        self.replace_handler("map_pages", loop.map_pages)
        self.replace_handler("unmap_pages", loop.unmap_pages)
        self.replace_handler("lookup_page", loop.lookup_page)
        replace(self.xen, "_let_go", loop.let_go)
        return loop

    @cached_property
    def contexts(self) -> ContextOps:
        """Making, freeing and filling contexts in steps."""
        contexts = ContextOps(self.xen)
        self.replace_handler("alloc_context", contexts.alloc_context)
        self.replace_handler("free_context", contexts.free_context)
        self.replace_handler("reattach_device", contexts.reattach_device)
        return contexts

    @cached_property
    def entry(self) -> "PostedUnionEntry | PostedSubopEntry":
        """The steps around every handler, as posted code does them."""
        abi = self.xen.abi
        entry = (
            PostedUnionEntry(abi, self.rows) if abi.convention is Convention.UNION else PostedSubopEntry(abi, self.rows)
        )
        self._posted_copying = True
        self.xen.entry = entry
        return entry

    def replace_handler(self, name: str, handler: Handler) -> None:
        """Put ``handler`` into the hypervisor's own copy of the sub-op table."""
        self.rows[name] = self.rows[name]._replace(handler=handler)
        if self._posted_copying:
            self.entry.use(self.rows)
        else:
            self.xen.entry = entry_for(self.xen.abi, self.rows)


def replace(part: object, method: str, by: Any) -> Any:
    """Put ``by`` in the place of a method, or of another member, of one object; returns what was there."""
    old = getattr(part, method)
    setattr(part, method, by)
    return old
