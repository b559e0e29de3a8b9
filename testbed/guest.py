# SPDX-License-Identifier: GPL-2.0-or-later
"""Booting the Linux port in a test bed's hardware domain, with its hypercalls observed if somebody wants to know."""

from collections import Counter
from collections.abc import Callable
from typing import Final

from abi.versions import Abi, Convention
from guest_driver.boot import GuestKernel, boot
from guest_driver.port import HypercallPort
from guest_driver.xen_iommu import X86_MSI_WINDOW
from hypervisor.guest_access import GuestMemory
from testbed.build import TestBed


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

    def hypercall(self, nr: int, *args: int) -> int:
        if nr != self._abi.hypercall:
            result = self._port.hypercall(nr, *args)
            self.counts[f"hypercall {nr}", result] += 1
            return result
        name, address = self._name(args)
        codec = self._abi.by_name[name].codec if name in self._abi.by_name else None
        if self.watch is None or codec is None:
            result = self._port.hypercall(nr, *args)
            self.counts[name, result] += 1
            if name in ("map_pages", "unmap_pages") and codec is not None:
                self._count_pages(name, self._memory.read(address, codec.size))
            if self.watch is not None:
                self.watch(HypercallCall(name, {}, {}, result))
            return result
        before = self._memory.read(address, codec.size)
        result = self._port.hypercall(nr, *args)
        after = self._memory.read(address, codec.size)
        self.counts[name, result] += 1
        if name in ("map_pages", "unmap_pages"):
            self._count_pages(name, after)
        self.watch(
            HypercallCall(name, codec.as_dict(before) if before else {}, codec.as_dict(after) if after else {}, result)
        )
        return result

    def _count_pages(self, name: str, struct: bytes | None) -> None:
        codec = self._abi.by_name[name].codec
        assert codec is not None
        if struct is not None:
            fields = codec.decode(struct)
            self.pages[name] += fields[-1] * (fields[-3] >> 12)  # (..., pgsize, nr_pages, mapped or unmapped)

    def _name(self, args: tuple[int, ...]) -> tuple[str, int]:
        """(canonical name of the sub-op asked for, address of its struct)."""
        if self._abi.convention is Convention.UNION:
            raw = self._memory.read(args[0], 32)
            number = self._abi.subop_of(raw) if raw else -1
            address = args[0]
        else:
            number, address = args[0], args[1]
        subop = self._abi.subops.get(number)
        return (subop.name if subop else f"sub-op {number}"), address


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
