# SPDX-License-Identifier: GPL-2.0-or-later
"""Booting the Linux port in a test bed's hardware domain, with its hypercalls observed if somebody wants to know."""

from collections import Counter
from collections.abc import Callable
from typing import Final

from abi.codec import Codec
from abi.versions import Abi, Convention
from guest_driver.boot import GuestKernel, boot
from guest_driver.port import HypercallPort
from guest_driver.xen_iommu import X86_MSI_WINDOW
from hypervisor.guest_access import GuestMemory
from testbed.build import TestBed

_UNION_BYTES: Final = 32


class HypercallCall:
    """One finished hypercall: its sub-op, the struct's fields before and after, and the return value."""

    __slots__ = ("after", "before", "name", "result")

    def __init__(self, name: str, before: dict[str, int], after: dict[str, int], result: int) -> None:
        self.name: Final = name
        self.before: Final = before
        self.after: Final = after
        self.result: Final = result


class ObservedHypercalls:
    """A hypercall port that counts what passes, and shows it to ``watch``.

    Reading the struct before and after costs more than the hypercall's own work, so that is only done for a watcher.
    """

    def __init__(self, port: HypercallPort, abi: Abi, memory: GuestMemory) -> None:
        self._port: Final = port
        self._abi: Final = abi
        self._memory: Final = memory
        self.counts: Final[Counter[tuple[str, int]]] = Counter()
        """(sub-op name, return value) to number of calls."""
        self.pages: Final[Counter[str]] = Counter()
        """By sub-op name: 4 KiB pages that map_pages and unmap_pages reported as done."""
        self.watch: Callable[[HypercallCall], None] | None = None
        self._union: Final = abi.convention is Convention.UNION
        self._subops: Final = {
            number: (subop.name, subop.codec, subop.name in ("map_pages", "unmap_pages"))
            for number, subop in abi.subops.items()
        }

    def hypercall(self, nr: int, *args: int) -> int:
        if nr != self._abi.hypercall:
            result = self._port.hypercall(nr, *args)
            self.counts[f"hypercall {nr}", result] += 1
            return result
        if self._union:
            address = args[0]
            raw = self._memory.read(address, _UNION_BYTES)
            number = self._abi.subop_of(raw) if raw else -1
        else:
            number, address = args[0], args[1]
        name, codec, counted = self._subops.get(number) or (f"sub-op {number}", None, False)
        watch = self.watch
        before = self._memory.read(address, codec.size) if watch is not None and codec is not None else None
        result = self._port.hypercall(nr, *args)
        self.counts[name, result] += 1
        after = None
        if codec is not None and (counted or watch is not None):
            after = self._memory.read(address, codec.size)
            if counted and after is not None:
                fields = codec.decode(after)  # (..., pgsize, nr_pages, mapped or unmapped)
                self.pages[name] += fields[-1] * (fields[-3] >> 12)
        if watch is not None:
            watch(HypercallCall(name, _shown(codec, before), _shown(codec, after), result))
        return result


def _shown(codec: Codec | None, struct: bytes | None) -> dict[str, int]:
    return {} if codec is None or struct is None else codec.as_dict(struct)


class Guest:
    """The hardware domain's kernel, booted: ``kernel`` is Linux's side, ``hypercalls`` what passed between."""

    def __init__(self, testbed: TestBed, watch: Callable[[HypercallCall], None] | None = None) -> None:
        self.hypercalls: Final = ObservedHypercalls(testbed.hypercalls, testbed.xen.abi, testbed.vcpu.memory)
        self.hypercalls.watch = watch
        self.kernel: Final[GuestKernel] = boot(
            self.hypercalls,
            testbed.ram,
            testbed.guest_pci,
            testbed.mmio,
            testbed.xen.abi,
            msi_window=None if testbed.backend.doorbell_is_translated else X86_MSI_WINDOW,
        )
        testbed.attached.append(self.kernel)
