# SPDX-License-Identifier: GPL-2.0-or-later
"""Our hypervisor's side of a rig: contexts, devices and mappings, by the numbers that programs use.

This calls what the sub-op handlers call: the page-table algorithm, the backend, and the flush that ends a pass.
"""

from collections.abc import Callable, Sequence
from typing import Final

from base.units import CtxNo
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.pagetable.radix import Changes
from hypervisor.xen import Xen
from oracle.intent import Intent, Range


class Software:
    """``devices`` by their place in the row.  ``fixed`` is mapped in every context and never unmapped.

    ``moved(device)`` is called after a device was attached or detached.
    """

    def __init__(
        self,
        xen: Xen,
        devices: Sequence[PciDevice],
        fixed: Range | None = None,
        moved: Callable[[PciDevice], None] = lambda device: None,
    ) -> None:
        self.xen: Final = xen
        self.devices: Final = tuple(devices)
        self.contexts: Final[dict[int, IommuContext]] = {}
        self.intents: Final[dict[int, Intent]] = {}
        self.failures: Final[list[str]] = []
        """What the driver reported as failed: hardware did not confirm something."""
        self._dom0: Final = xen.create_domain(0, hardware=True, pv=True, iommu=False)
        self._fixed: Final = fixed
        self._moved: Final = moved

    def context(self, number: int) -> None:
        """Make context ``number``."""
        if number in self.contexts:
            return
        context = IommuContext(CtxNo(number), self.xen.heap)
        if not self.xen.backend.context_init(context):
            self.contexts[number] = context
            self.intents[number] = Intent()
            if self._fixed is not None:
                self._map(context, self._fixed)

    def free(self, number: int) -> None:
        """Move the devices of a context out of it and release it."""
        context = self.contexts.pop(number, None)
        if context is None:
            return
        for device in list(context.devices):
            self._detach(device)
        changes = Changes()
        assert context.table is not None
        context.table.empty_some(1 << 30, changes)
        self._note(self.xen.finish_teardown_pass(self._dom0, context, changes), f"free {number}")
        self.xen.backend.context_release(context)

    def attach(self, which: int, number: int) -> None:
        """Move device ``which`` into a context, from wherever it is."""
        context = self.contexts.get(number)
        if context is None or which >= len(self.devices):
            return
        device = self.devices[which]
        if device.context is context or self._note(
            self.xen.backend.attach(device, context), f"attach {which} {number}"
        ):
            return
        if device.context is not None:
            device.context.devices.remove(device)
        device.context = context
        context.devices.append(device)
        self._moved(device)

    def detach(self, which: int) -> None:
        """Block the DMA of device ``which``."""
        if which < len(self.devices):
            self._detach(self.devices[which])

    def _detach(self, device: PciDevice) -> None:
        if device.context is None:
            return
        self._note(self.xen.backend.detach(device), f"detach {device.function}")
        device.context.devices.remove(device)
        device.context = None
        self._moved(device)

    def map(self, number: int, dfn: int, mfn: int, pages: int, permission: int) -> None:
        """Map ``pages`` pages; ``permission``: 1 read, 2 write, 3 both."""
        context = self.contexts.get(number)
        if context is not None and dfn + pages <= self.xen.max_dfn + 1:
            self._map(context, Range(dfn, mfn, pages, permission))

    def _map(self, context: IommuContext, new: Range) -> None:
        table = context.table
        assert table is not None
        changes = Changes()
        done, _ = table.map(new.dfn, new.mfn, new.pages, table.format.permission[new.permission], changes)
        self.intents[context.number].add(new.dfn, new.mfn, done, new.permission)
        error = self.xen.finish_pass(self._dom0, context, new.dfn, max(done, 1), changes)
        self._note(error, f"map {new.dfn:#x} in {context.number}")

    def unmap(self, number: int, dfn: int, pages: int) -> None:
        """Unmap ``pages`` pages, up to the first that is not mapped."""
        context = self.contexts.get(number)
        fixed = self._fixed
        if context is None or dfn + pages > self.xen.max_dfn + 1:
            return
        if fixed is not None and fixed.dfn < dfn + pages and dfn < fixed.dfn + fixed.pages:
            return
        assert context.table is not None
        changes = Changes()
        done, _ = context.table.unmap(dfn, pages, changes)
        self.intents[number].remove(dfn, done)
        error = self.xen.finish_pass(self._dom0, context, dfn, max(done, 1), changes)
        self._note(error, f"unmap {dfn:#x} in {number}")

    def _note(self, error: int, what: str) -> int:
        if error:
            self.failures.append(f"{what}: errno {-error}")
        return error
