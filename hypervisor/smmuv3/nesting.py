# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests' context descriptors in front of stage 2 (IHI 0070, 3.4, 5.2): stream words, invalidations, faults.

A nested stream has Config 7: descriptors and stage 1 tables are intermediate addresses, fetched through the parent's
stage 2 under the parent's VMID.  The ASIDs are the guest's.  Its commands are rewritten before they reach a unit: VMIDs
are the parent's, stream ids those of devices in the context, and bits that no field of the command has are cleared, so
that a guest cannot make the queue stop.
"""

from collections.abc import Sequence
from typing import Final

from abi.errno import EINVAL, EIO
from abi.x1 import NestedFlags, NestedFormat
from base.units import Sbdf
from hypervisor.domain import GuestFault
from hypervisor.iommu.backend import FaultReport
from hypervisor.iommu.context import IommuContext, NestedTable, PciDevice
from hypervisor.iommu.nesting import Command, Stage1Features
from hypervisor.smmuv3 import layouts as hw
from hypervisor.smmuv3.unit import SmmuUnit

_LINEAR: Final = 0
_CD_BYTES: Final = 64
_LEAF_LOG2: Final = {1: 6, 2: 10}
"""log2 of the descriptors in a leaf, by S1Fmt."""
_WRITE_BACK: Final = 1
_INNER_SHAREABLE: Final = 3

_ASID: Final = 0xFFFF << 48
_RANGE: Final = hw.Tlbi.scale.mask | hw.Tlbi.num.mask
_ADDRESS: Final = hw.TlbiAddress.address.mask | hw.TlbiAddress.tg.mask | hw.TlbiAddress.leaf.mask | 3 << 8
_HINTS: Final = hw.TlbiAddress.tg.mask | 3 << 8
"""Granule and level: what units without ranges have no field for."""
_TLBI: Final = {
    hw.CMD_TLBI_NH_ALL: (0, 0),
    hw.CMD_TLBI_NH_ASID: (_ASID, 0),
    hw.CMD_TLBI_NH_VA: (_ASID | _RANGE, _ADDRESS),
    hw.CMD_TLBI_NH_VAA: (_RANGE, _ADDRESS),
}
"""What a guest decides in its TLB invalidations: bits of either word."""
_CFGI: Final = {hw.CMD_CFGI_CD: (0xFFFFF << 12, 1), hw.CMD_CFGI_CD_ALL: (0, 0)}
"""The same where the command names a stream."""
_OP: Final = 0xFF

_C_BAD_SUBSTREAMID: Final = 0x08
"""Its record has the PASID and no bit that says so."""
_STAGE_1_ONLY: Final = frozenset({0x06, _C_BAD_SUBSTREAMID, 0x0A})
"""F_STREAM_DISABLED, C_BAD_SUBSTREAMID, C_BAD_CD: what descriptors say, and those are the guest's."""
_EITHER_STAGE: Final = frozenset({0x10, 0x11, 0x12, 0x13})
"""Translation, address size, access flag and permission faults: the event tells the stage."""


def stage1_everywhere(units: Sequence[SmmuUnit]) -> bool:
    """Whether every unit has a stage 1: a context's devices may be behind any."""
    return all(unit.idr0 & hw.Idr0.s1p.mask for unit in units)


def stage1_words(nested: NestedTable) -> tuple[int, int]:
    """STE words 0 and 1 for the guest's table."""
    flags = nested.flags
    low = hw.Ste0.pack(
        v=1,
        config=hw.CONFIG_NESTED,
        s1fmt=NestedFlags.s1fmt.get(flags),
        s1cdmax=NestedFlags.s1cdmax.get(flags),
    )
    attributes = hw.Ste1.pack(
        shcfg=hw.SHCFG_INCOMING,
        s1dss=NestedFlags.s1dss.get(flags),
        s1cir=_WRITE_BACK,
        s1cor=_WRITE_BACK,
        s1csh=_INNER_SHAREABLE,
    )
    return low | nested.address, attributes


class Smmuv3Nesting:
    """A :class:`hypervisor.iommu.nesting.Nesting` over units that all have stage 1."""

    def __init__(self, units: tuple[SmmuUnit, ...]) -> None:
        self._units: Final = units
        self._pasid_bits: Final = min(hw.Idr1.ssidsize.get(unit.idr1) for unit in units)
        self._two_level: Final = all(unit.idr0 & hw.Idr0.cd2l.mask for unit in units)

    def features(self, device: PciDevice) -> Stage1Features:
        unit = next((unit for unit in self._units if device.sbdf in unit.node.scope), None)
        unit = unit or next(unit for unit in self._units if unit.node.include_all)
        return Stage1Features(NestedFormat.SMMUV3_CD, self._pasid_bits, unit.id_registers)

    def table_bytes(self, flags: int) -> int:
        form, log2count = NestedFlags.s1fmt.get(flags), NestedFlags.s1cdmax.get(flags)
        if flags & NestedFlags.reserved() or NestedFlags.format.get(flags) != NestedFormat.SMMUV3_CD:
            return 0
        if log2count > self._pasid_bits or form == 3 or NestedFlags.s1dss.get(flags) == 3:
            return 0
        if form == _LINEAR or not log2count:
            return _CD_BYTES << log2count if form == _LINEAR else 0
        return 8 << max(0, log2count - _LEAF_LOG2[form]) if self._two_level else 0

    def invalidate(self, context: IommuContext, commands: Sequence[Command]) -> tuple[int, int]:
        state = context.stage2.hw
        for done, command in enumerate(commands):
            error = self._run(context, state.vmids, command)
            if error:
                return error, done
        return 0, len(commands)

    def _run(self, context: IommuContext, vmids: tuple[int, ...], command: Command) -> int:
        op = command[0] & _OP
        streams = [stream for device in context.devices for stream in device.hw or ()]
        error = 0
        if op in _TLBI:
            low, high = _TLBI[op]
            if hw.TlbiAddress.tg.get(command[1] & high) > 1:
                return -EINVAL
            for index in {index for index, _ in streams}:
                unit = self._units[index]
                ranged = 0 if unit.ranges else _RANGE
                word = op | command[0] & low & ~ranged | hw.Tlbi.vmid.put(vmids[index])
                error = unit.commands.run_one(word, command[1] & high & ~(_HINTS if ranged else 0)) or error
        elif op in _CFGI:
            low, high = _CFGI[op]
            named = hw.Command.sid.get(command[0])
            asked = [d for d in context.devices if named in (rid & 0xFFFF for rid in d.requester_ids)]
            if not asked:
                return -EINVAL
            for index, sid in (stream for device in asked for stream in device.hw or ()):
                word = op | command[0] & low | hw.Command.sid.put(sid)
                error = self._units[index].commands.run_one(word, command[1] & high) or error
        else:
            return -EINVAL
        return -EIO if error else 0

    def guests_fault(self, report: FaultReport) -> tuple[int, GuestFault] | None:
        word0, word1 = report.record[0], report.record[1]
        stage2 = hw.Event1.s2.get(word1)
        if report.code not in _STAGE_1_ONLY and (report.code not in _EITHER_STAGE or stage2):
            return None
        node = self._units[report.unit].node
        requester = report.sid - node.stream_offset | node.segment << 16
        has_pasid = hw.Event0.ssv.get(word0) or report.code == _C_BAD_SUBSTREAMID
        pasid = hw.Event0.ssid.get(word0) if has_pasid else None
        address = report.record[2] if report.code in _EITHER_STAGE else 0
        return requester, GuestFault(Sbdf(requester), address, report.write, pasid, report.code)
