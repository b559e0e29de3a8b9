# SPDX-License-Identifier: GPL-2.0-or-later
"""A fault plan: hypercalls that fail on demand, on the way between guest and hypervisor.

A map or unmap that is to fail at page k is cut to its first k pages, which the hypervisor really does; the guest gets
the errno and the count of those k.  So tables and answer agree, as they do when a hypervisor runs out of memory in
mid-call.  Any other sub-op is not carried out at all.
"""

from dataclasses import dataclass
from typing import Any, Final

from abi.versions import Abi, Convention
from guest_driver.port import HypercallPort
from hypervisor.guest_access import GuestMemory

_COUNTED: Final = ("map_pages", "unmap_pages")


@dataclass(slots=True)
class Fault:
    """The next calls of ``subop``: let ``skip`` calls pass, then fail ``times`` of them with ``errno``.

    For map and unmap ``page`` counts pages over all calls since the fault was armed, in units of the calls' page size.
    """

    subop: str
    errno: int
    page: int = 0
    skip: int = 0
    times: int = 1


class FaultyHypercalls:
    """A hypercall port with a fault plan; without one it is in nobody's way."""

    def __init__(self, port: HypercallPort, abi: Abi, memory: GuestMemory) -> None:
        self._port: Final = port
        self._abi: Final = abi
        self._memory: Final = memory
        self.faults: Final[list[Fault]] = []
        self.injected = 0
        """Calls that failed because of the plan."""
        self.overrides: Final[dict[str, int]] = {}
        """Fields of query_capabilities' answer that the guest is to see otherwise."""
        self.hidden_caps = 0
        """Bits of ``cap_flags`` that the guest does not see."""

    def hypercall(self, nr: int, *args: int) -> int:
        if nr != self._abi.hypercall or not (self.faults or self.overrides or self.hidden_caps):
            return self._port.hypercall(nr, *args)
        name, address = self._name(args)
        for fault in self.faults:
            if fault.subop == name:
                result = self._maybe_fail(fault, address, nr, args)
                if result is not None:
                    return result
                break
        result = self._port.hypercall(nr, *args)
        if name == "query_capabilities" and result == 0:
            self._rewrite(address)
        return result

    def _maybe_fail(self, fault: Fault, address: int, nr: int, args: tuple[int, ...]) -> int | None:
        """The failing call's result, or ``None`` if this call is to pass."""
        if fault.skip:
            fault.skip -= 1
            return None
        if fault.subop not in _COUNTED:
            return self._failed(fault)
        codec = self._abi.by_name[fault.subop].codec
        raw = self._memory.read(address, codec.size) if codec is not None else None
        if codec is None or raw is None:
            return None
        fields: dict[str, Any] = codec.as_dict(raw)
        pages = fields["nr_pages"]
        if fault.page >= pages:
            fault.page -= pages
            return None
        at, fault.page = fault.page, 0
        if at:  # a call refused at its first page leaves the struct as the guest wrote it
            fields["nr_pages"] = at
            self._memory.write(address, codec.encode(*fields.values()))
            result = self._port.hypercall(nr, *args)
            fields = codec.as_dict(self._memory.read(address, codec.size) or raw)
            fields["nr_pages"] = pages
            self._memory.write(address, codec.encode(*fields.values()))
            if result:
                return result
        return self._failed(fault)

    def _failed(self, fault: Fault) -> int:
        self.injected += 1
        fault.times -= 1
        if fault.times <= 0:
            self.faults.remove(fault)
        return fault.errno

    def _rewrite(self, address: int) -> None:
        codec = self._abi.by_name["query_capabilities"].codec
        assert codec is not None
        fields = codec.as_dict(self._memory.read(address, codec.size) or bytes(codec.size))
        fields.update({name: value for name, value in self.overrides.items() if name in fields})
        if "cap_flags" in fields:
            fields["cap_flags"] &= ~self.hidden_caps
        self._memory.write(address, codec.encode(*fields.values()))

    def _name(self, args: tuple[int, ...]) -> tuple[str, int]:
        if self._abi.convention is Convention.UNION:
            raw = self._memory.read(args[0], 32)
            number, address = (self._abi.subop_of(raw) if raw else -1), args[0]
        else:
            number, address = args[0], args[1]
        subop = self._abi.subops.get(number)
        return (subop.name if subop else f"sub-op {number}"), address
