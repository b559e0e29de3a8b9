# SPDX-License-Identifier: GPL-2.0-or-later
"""The SMMU of a guest of Xen: context descriptors are the guest's, stream entries are hypercalls (x1-nested).

A stream that translates is in a nested context over ``parent``, made from the entry that the driver would have written.
One that bypasses is in ``parent`` itself, and one that aborts in an empty context.  Commands go through flush_nested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from abi.errno import EINVAL, ENODEV, ENOMEM, errno_name
from abi.versions import DEFAULT_CONTEXT
from abi.x1 import MOST_COMMANDS, NestedFlags, NestedFormat
from base.units import PAGE_SHIFT, Sbdf
from guest_driver.arm_smmu_v3.layouts import (
    CFG_BYPASS,
    CFG_S1,
    CMD_TLBI_NH_ASID,
    CMD_TLBI_NH_VA,
    Command,
    Config,
    Entry,
    Idr0,
    Idr5,
    Ste0,
    Ste1,
)
from guest_driver.arm_smmu_v3.port import SmmuFeatures
from guest_driver.linux.kernel import Kernel
from guest_driver.linux.page_alloc import GFP_KERNEL
from guest_driver.xen_hypercall import IommuOp

_UNKNOWN: Final = -1


class XenSmmu:
    """A :class:`guest_driver.arm_smmu_v3.port.SmmuPort` over hypercalls; :func:`xen_smmu_probe` makes one."""

    def __init__(
        self, kernel: Kernel, op: IommuOp, features: SmmuFeatures, parent: int, blocked: int, list_pfn: int
    ) -> None:
        self._kernel: Final = kernel
        self._op: Final = op
        self.features: Final = features
        self.parent: Final = parent
        self.blocked: Final = blocked
        self._contexts: Final[dict[int, tuple[int, int, int]]] = {}
        """Nested context of each stream that has one, with the entry's two words that it was made from."""
        self._list: Final = list_pfn
        """Page for lists of commands: invalidating must not need memory."""
        self.confirmed: Callable[[], None] | None = None
        """Called when commands were confirmed."""
        self.stranded: Final[list[int]] = []
        """Contexts that Xen has refused to free."""

    def issue(self, commands: Sequence[Command]) -> int:
        """Every nested context is told: TLB tags are shared, and a stream's descriptors belong to its own."""
        ret = 0
        for sid, (context, _, _) in list(self._contexts.items()):
            mine = [c for c in commands if c[0] & 0xFF in (CMD_TLBI_NH_ASID, CMD_TLBI_NH_VA) or _sid(c) == sid]
            for start in range(0, len(mine), MOST_COMMANDS):
                ret = self._flush(context, mine[start : start + MOST_COMMANDS]) or ret
        if self.confirmed is not None and not ret:
            self.confirmed()
        return ret

    def take_events(self) -> list[Entry]:
        """Faults of this guest's stage that Xen has for it: flags, PASID, code and address, with the device's sid."""
        found: list[Entry] = []
        while True:
            ret, fields = self._op.call("next_fault", *(0,) * 8)
            if ret:
                return found
            _, bus, devfn, flags, pasid, code, address, _ = fields
            found.append((code, bus << 8 | devfn, flags, pasid, address))

    def remove(self) -> None:
        """Give back what the port itself has; no stream may have a context."""
        self._kernel.pages.free_pages(self._list)

    def _flush(self, context: int, commands: Sequence[Command]) -> int:
        if not commands:
            return 0
        words = b"".join(word.to_bytes(8, "little") for command in commands for word in command)
        self._kernel.ram.write(self._list << PAGE_SHIFT, words)
        address = self._kernel.ram.linear(self._list << PAGE_SHIFT)
        return self._op.call("flush_nested", context, len(commands), address, 0)[0]

    def prepare_stream(self, sid: int) -> int:
        ret, fields = self._op.call("query_device", *_device(sid), 0, 0, 0, 0, 0, 0, 0)
        if ret:
            return ret
        return 0 if fields[4] == NestedFormat.SMMUV3_CD else -ENODEV

    def write_ste(self, sid: int, target: Entry) -> int:
        """Put the stream where ``target`` would; the context of its former table is given back."""
        cfg = Ste0.cfg.get(target[0])
        before = self._contexts.get(sid)
        if cfg == CFG_S1:
            made = self._nested(target)
            if made < 0:
                return made
        elif cfg == CFG_BYPASS:
            made = self.parent
        elif not cfg & 4:
            made = self.blocked
        else:
            return -EINVAL
        ret, _ = self._op.call("reattach_device", made, *_device(sid), 0)
        if ret:
            if cfg == CFG_S1:
                self._free(made)
            return ret
        if cfg == CFG_S1:
            self._contexts[sid] = (made, target[0], target[1])
        else:
            self._contexts.pop(sid, None)
        if before is not None:
            self._free(before[0])
        return 0

    def context_of(self, sid: int) -> int:
        """The nested context of a stream, -1 if it has none."""
        return self._contexts.get(sid, (_UNKNOWN, 0, 0))[0]

    def _nested(self, target: Entry) -> int:
        flags = NestedFlags.pack(
            format=NestedFormat.SMMUV3_CD,
            s1fmt=Ste0.s1fmt.get(target[0]),
            s1dss=Ste1.s1dss.get(target[1]),
            s1cdmax=Ste0.s1cdmax.get(target[0]),
        )
        table = (target[0] & Ste0.s1contextptr.mask) >> PAGE_SHIFT
        ret, fields = self._op.call("alloc_nested", self.parent, table, flags)
        return ret or fields[0]

    def _free(self, context: int) -> None:
        ret, _ = self._op.call("free_context", context, 0)
        if ret:
            self.stranded.append(context)
            self._kernel.printk.warn_on(True, f"xen-smmu: context {context} cannot be freed ({errno_name(ret)})")


def _sid(command: Command) -> int:
    return Config.sid.get(command[0])


def _device(sid: int) -> tuple[int, int, int]:
    return 0, sid >> 8 & 0xFF, sid & 0xFF


def xen_smmu_probe(
    kernel: Kernel, op: IommuOp, sbdf: Sbdf, blocked: int, parent: int = DEFAULT_CONTEXT
) -> XenSmmu | int:
    """The port for devices like ``sbdf``; -ENODEV if its unit offers no context descriptors, -ENOMEM."""
    ret, fields = op.call("query_device", sbdf >> 16, sbdf >> 8 & 0xFF, sbdf & 0xFF, 0, 0, 0, 0, 0, 0, 0)
    if ret:
        return ret
    _, _, _, _, form, pasid_bits, idr0, _idr1, _idr3, idr5 = fields
    if form != NestedFormat.SMMUV3_CD:
        return -ENODEV
    features = SmmuFeatures(
        ssid_bits=pasid_bits,
        sid_bits=16,
        asid_bits=16 if idr0 & Idr0.asid16.mask else 8,
        two_level_cd=bool(idr0 & Idr0.cd2l.mask),
        oas=Idr5.oas.get(idr5),
    )
    pfn = kernel.pages.alloc_pages(GFP_KERNEL)
    return XenSmmu(kernel, op, features, parent, blocked, pfn) if pfn else -ENOMEM
