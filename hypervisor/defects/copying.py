# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps around every handler as posted code does them: copy, act, copy back, whatever may come of it."""

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Final

from abi.errno import EFAULT, EINVAL
from abi.versions import Abi
from base.units import U32_MAX
from hypervisor.domain import Domain, Vcpu
from hypervisor.pviommu.entry import NARROW, UNION_SIZE, SubopEntry, UnionEntry, narrowed, prepare
from hypervisor.pviommu.result import RESTART
from hypervisor.pviommu.table import Row

if TYPE_CHECKING:
    from hypervisor.xen import Xen


class PostedUnionEntry(UnionEntry):
    """v1 to v3.  Without the two faults below it does what its parent does."""

    def __init__(self, abi: Abi, rows: Mapping[str, Row]) -> None:
        super().__init__(abi, rows)
        self.ignores_holes = False
        """Bytes of the struct that belong to no field are not looked at (A6)."""
        self.acts_first = False
        """What cannot be written back is done all the same (S3)."""
        self.stack: bytes = b""
        self._codecs: Final = {number: subop.codec for number, subop in abi.subops.items()}

    def use(self, rows: Mapping[str, Row]) -> None:
        """Handle sub-ops by these rows from now on."""
        self._subops = prepare(self._abi, rows)

    def enter(self, xen: "Xen", vcpu: Vcpu, args: tuple[int, ...], target: Domain | None = None) -> int:
        arg = args[0]
        memory = vcpu.memory
        raw = memory.read(arg, UNION_SIZE)
        if raw is None or not (self.acts_first or memory.writable(arg, UNION_SIZE)):
            return -EFAULT
        domain = vcpu.domain if target is None else target
        if domain.iommu is None or not domain.iommu.allowed:
            return -self._abi.errno_unusable
        buffer = bytearray(raw)
        result = self._act(xen, vcpu, domain, buffer)
        if result != RESTART and not memory.write(arg, buffer):
            return -EFAULT
        return result

    def _act(self, xen: "Xen", vcpu: Vcpu, domain: Domain, buffer: bytearray) -> int:
        number = buffer[0] | buffer[1] << 8
        prepared = self._subops.get(number)
        if prepared is None:
            return -self._abi.errno_unknown_subop
        handler, decode, put_out, _, _, _ = prepared
        codec = self._codecs[number]
        if decode is None:
            fields: tuple[int, ...] | None = ()
        else:
            fields = codec.decode(buffer) if self.ignores_holes and codec is not None else decode(buffer)
        if fields is None:
            return -EINVAL
        result, out = handler(xen, vcpu, domain, fields, 0)
        if put_out is not None and result != RESTART:
            put_out(buffer, out)
        return result


class PostedSubopEntry(SubopEntry):
    """v4 to v7, in the same way."""

    def __init__(self, abi: Abi, rows: Mapping[str, Row]) -> None:
        super().__init__(abi, rows)
        self.ignores_holes = False
        self.acts_first = False
        self.stack: bytes = b""
        """What an answer's bytes that nobody wrote contain (A4)."""
        self.rest: Final[dict[Vcpu, tuple[int, ...]]] = {}
        """The fields that a vCPU's preempted call leaves in the guest's struct, to go on from (A9)."""
        self.goes_on: dict[int, int] = {}
        """Sub-ops that go on into another one on the same struct, whose answer is the only one (A2)."""
        self._codecs = {number: subop.codec for number, subop in abi.subops.items()}

    def use(self, rows: Mapping[str, Row]) -> None:
        """Handle sub-ops by these rows from now on."""
        self._subops, self._narrow = prepare(self._abi, rows), None

    def narrow(self) -> "PostedSubopEntry":
        other = copy(self)
        other._subops = narrowed(self._subops, self._abi)
        other._codecs = {number: subop.codec_on(NARROW) for number, subop in self._abi.subops.items()}
        return other

    def enter(self, xen: "Xen", vcpu: Vcpu, args: tuple[int, ...], target: Domain | None = None) -> int:
        domain = vcpu.domain if target is None else target
        if domain.iommu is None or not domain.iommu.allowed:
            return -self._abi.errno_unusable
        start = args[0] & U32_MAX & ~0xFF
        number = args[0] & 0xFF if args[0] not in self._subops else args[0]
        prepared = self._subops.get(number)
        if prepared is None or (start and not prepared[5]):
            return -self._abi.errno_unknown_subop
        handler, decode, put_out, size, copied_in, _ = prepared
        if decode is None:
            return handler(xen, vcpu, domain, (), start)[0]
        arg, memory = args[1], vcpu.memory
        raw = memory.read(arg, size) if copied_in else (self.stack * size)[:size] or bytes(size)
        if raw is None or not (put_out is None or self.acts_first or memory.writable(arg, size)):
            return -EFAULT
        buffer = bytearray(raw)
        codec = self._codecs[number]
        if not copied_in:
            fields: tuple[int, ...] | None = ()
        else:
            fields = codec.decode(buffer) if self.ignores_holes and codec is not None else decode(buffer)
        if fields is None:
            return -EINVAL
        result, out = handler(xen, vcpu, domain, fields, start)
        following = self.goes_on.get(number)
        codec = None if following is None else self._codecs[following]
        if following is not None and codec is not None:
            handler, _, put_out, _, _, _ = self._subops[following]
            result, out = handler(xen, vcpu, domain, codec.decode(buffer), 0)
        if result == RESTART:
            return self._leave_rest(vcpu, arg, buffer, number)
        if put_out is not None:
            put_out(buffer, out)
            if not memory.write(arg, buffer):
                return -EFAULT
        return result

    def _leave_rest(self, vcpu: Vcpu, arg: int, buffer: bytearray, number: int) -> int:
        """A preempted call's struct says what is left; one that cannot be written back is not issued again."""
        codec = self._codecs[number]
        rest = self.rest.pop(vcpu, None)
        if rest is None or codec is None:
            return RESTART
        holes = codec.hole_mask
        kept = int.from_bytes(buffer, "little") & holes
        moved = int.from_bytes(codec.encode(*rest), "little") & ~holes | kept
        return RESTART if vcpu.memory.write(arg, moved.to_bytes(codec.size, "little")) else -EFAULT
