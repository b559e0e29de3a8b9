# SPDX-License-Identifier: GPL-2.0-or-later
"""An SMMUv3 on the bare machine: registers, command queue, a linear stream table in the kernel's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from abi.errno import EIO, ENODEV, ENOMEM
from base.units import PAGE_SHIFT
from guest_driver.arm_smmu_v3 import layouts as hw
from guest_driver.arm_smmu_v3.entry_writer import arm_smmu_write_entry
from guest_driver.arm_smmu_v3.layouts import Command, Entry
from guest_driver.arm_smmu_v3.port import SmmuFeatures
from guest_driver.arm_smmu_v3.stream_entries import ArmSmmuSteWriter, arm_smmu_make_abort_ste
from guest_driver.linux.kernel import Kernel
from guest_driver.linux.page_alloc import GFP_KERNEL, GFP_ZERO

SID_BITS: Final = 8
"""Streams of bus 0; more would only make the linear table longer."""
_QUEUE_LOG2: Final = 8
"""256 commands of 16 bytes fill a page."""
_EVENTQ_LOG2: Final = 7
_POLLS: Final = 64
_READ_ALLOCATE: Final = 1 << 62
_STE_BYTES: Final = 64


class BareSmmu:
    """The unit whose registers are at ``base``; :func:`arm_smmu_device_probe` makes one."""

    def __init__(self, kernel: Kernel, base: int, features: SmmuFeatures) -> None:
        self._kernel: Final = kernel
        self._base: Final = base
        self.features: Final = features
        self._pages: Final[list[tuple[int, int]]] = []
        """(pfn, order) of what is allocated."""
        self.strtab = 0
        self._cmdq = 0
        self._evtq = 0
        self._prod = 0
        self._evt_cons = 0
        self.confirmed: Callable[[], None] | None = None
        """Called when commands were confirmed."""

    # -- SmmuPort

    def issue(self, commands: Sequence[Command]) -> int:
        for command in [*commands, (hw.CMD_SYNC, 0)]:
            at = self._cmdq + 16 * (self._prod & (1 << _QUEUE_LOG2) - 1)
            self._kernel.ram.write(at, b"".join(word.to_bytes(8, "little") for word in command))
            self._prod = self._prod + 1 & (2 << _QUEUE_LOG2) - 1
        self._write(hw.CMDQ_PROD, self._prod)
        done = any(self._read(hw.CMDQ_CONS) & 0xFFFFF == self._prod for _ in range(_POLLS))
        if self.confirmed is not None and done:
            self.confirmed()
        return 0 if done else -EIO

    def prepare_stream(self, sid: int) -> int:
        return -ENODEV if sid >> self.features.sid_bits else 0

    def write_ste(self, sid: int, target: Entry) -> int:
        writer = ArmSmmuSteWriter(
            self._kernel.ram, self._kernel.printk, self.ste_address(sid), lambda: self.issue([hw.cfgi_ste(sid)])
        )
        arm_smmu_write_entry(writer, target)
        return 0

    def ste_address(self, sid: int) -> int:
        return self.strtab + _STE_BYTES * sid

    # -- starting and stopping

    def arm_smmu_device_reset(self) -> int:
        """Queues and an aborting stream table, then on: 0, -ENOMEM, or -EIO from a unit that does not answer."""
        table = self._alloc(max(0, self.features.sid_bits + 6 - PAGE_SHIFT))
        self._cmdq = self._alloc(0)
        self._evtq = self._alloc(0)
        if not table or not self._cmdq or not self._evtq:
            self.arm_smmu_device_remove()
            return -ENOMEM
        self.strtab = table
        abort = b"".join(word.to_bytes(8, "little") for word in arm_smmu_make_abort_ste())
        self._kernel.ram.write(table, abort * (1 << self.features.sid_bits))
        if not self._enable(0):
            return -EIO
        self._write64(hw.STRTAB_BASE, table | _READ_ALLOCATE)
        self._write(hw.STRTAB_BASE_CFG, self.features.sid_bits)
        self._write64(hw.CMDQ_BASE, self._cmdq | _READ_ALLOCATE | _QUEUE_LOG2)
        self._write64(hw.EVENTQ_BASE, self._evtq | _READ_ALLOCATE | _EVENTQ_LOG2)
        for register in (hw.CMDQ_PROD, hw.CMDQ_CONS, hw.EVENTQ_PROD, hw.EVENTQ_CONS):
            self._write(register, 0)
        if not self._enable(hw.CR0_CMDQEN):
            return -EIO
        if self.issue([(hw.CMD_CFGI_STE_RANGE, 31), (hw.CMD_TLBI_NSNH_ALL, 0)]):
            return -EIO
        everything = hw.CR0_CMDQEN | hw.CR0_EVENTQEN | hw.CR0_SMMUEN
        return 0 if self._enable(everything) else -EIO

    def arm_smmu_device_remove(self) -> None:
        self._enable(0)
        while self._pages:
            self._kernel.pages.free_pages(*self._pages.pop())

    def take_events(self) -> list[Entry]:
        """Records of the event queue since the last call, four words each."""
        found = []
        while (self._evt_cons ^ self._read(hw.EVENTQ_PROD)) & (2 << _EVENTQ_LOG2) - 1:
            raw = self._kernel.ram.read(self._evtq + 32 * (self._evt_cons & (1 << _EVENTQ_LOG2) - 1), 32)
            found.append(tuple(int.from_bytes(raw[8 * k : 8 * k + 8], "little") for k in range(4)))
            self._evt_cons = self._evt_cons + 1 & (2 << _EVENTQ_LOG2) - 1
        self._write(hw.EVENTQ_CONS, self._evt_cons)
        return found

    def _alloc(self, order: int) -> int:
        pfn = self._kernel.pages.alloc_pages(GFP_KERNEL | GFP_ZERO, order)
        if pfn:
            self._pages.append((pfn, order))
        return pfn << PAGE_SHIFT

    def _enable(self, cr0: int) -> bool:
        self._write(hw.CR0, cr0)
        return any(self._read(hw.CR0ACK) == cr0 for _ in range(_POLLS))

    def _read(self, register: int) -> int:
        return self._kernel.mmio.readl(self._base + register)

    def _write(self, register: int, value: int) -> None:
        self._kernel.mmio.writel(self._base + register, value)

    def _write64(self, register: int, value: int) -> None:
        self._write(register, value & 0xFFFF_FFFF)
        self._write(register + 4, value >> 32)


def arm_smmu_device_probe(kernel: Kernel, base: int) -> BareSmmu | int:
    """Read what the unit can do; -ENODEV without stage 1."""
    idr0, idr1 = kernel.mmio.readl(base + hw.IDR0), kernel.mmio.readl(base + hw.IDR1)
    idr5 = kernel.mmio.readl(base + hw.IDR5)
    if not idr0 & hw.Idr0.s1p.mask:
        return -ENODEV
    features = SmmuFeatures(
        ssid_bits=hw.Idr1.ssidsize.get(idr1),
        sid_bits=min(SID_BITS, hw.Idr1.sidsize.get(idr1)),
        asid_bits=16 if idr0 & hw.Idr0.asid16.mask else 8,
        two_level_cd=bool(idr0 & hw.Idr0.cd2l.mask),
        oas=hw.Idr5.oas.get(idr5),
    )
    return BareSmmu(kernel, base, features)
