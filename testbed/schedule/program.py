# SPDX-License-Identifier: GPL-2.0-or-later
"""What a vCPU does in a run: hypercalls by name, or anything else that is called on its behalf."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from abi.canonical import CANONICAL
from abi.errno import errno_name
from abi.versions import Convention
from base.units import PAGE_SHIFT
from hypervisor.domain import Vcpu
from testbed.build import TestBed
from testbed.ports import DomainRam


class Answer(NamedTuple):
    """A hypercall's result, and the fields of its struct as the guest finds them."""

    result: int
    fields: dict[str, int]

    def __str__(self) -> str:
        fields = " ".join(f"{name}={value:#x}" for name, value in self.fields.items())
        return f"{errno_name(self.result)} {fields}".rstrip()


class Hypercall(NamedTuple):
    """Sub-op ``name`` with these canonical fields; those that are left out are at their defaults."""

    name: str
    fields: Mapping[str, int] = MappingProxyType({})
    on: int | None = None
    """The domain to act on, through ``remote_cmd``; ``None``: the caller's own."""

    def __str__(self) -> str:
        where = [] if self.on is None else [f"on d{self.on}"]
        return " ".join([self.name, *where, *(f"{name}={value:#x}" for name, value in self.fields.items())])


Item = Hypercall | Callable[[], object]
"""A step of a program: a hypercall, or a call of the toolstack or the test itself."""
_INNER: Final = 256
"""Where in the page the struct of a remote sub-op lies."""


class Caller:
    """A vCPU of a test bed making hypercalls by name, its structs in a page of its own: the last of its domain's memory
    for vCPU 0, the one before for vCPU 1, and so on."""

    def __init__(self, bed: TestBed, vcpu: Vcpu) -> None:
        self.xen: Final = bed.xen
        self.vcpu: Final = vcpu
        self._ram: Final[DomainRam] = bed.rams[vcpu.domain.domid]
        self._address: Final = self._ram.pages - 1 - vcpu.number << PAGE_SHIFT

    def call(self, name: str, *, on: int | None = None, **fields: int) -> Answer:
        """One hypercall; ``ValueError`` for a sub-op, or a value of a field, that the version has not got."""
        abi = self.xen.abi
        if on is not None:
            self._put(name, fields, self._address + _INNER)
            remote = {"domid": on, "subop": abi.by_name[name].number, "arg": self._ram.linear(self._address + _INNER)}
            self._put("remote_cmd", remote, self._address)
            return self._issue("remote_cmd", name, self._address + _INNER)
        self._put(name, fields, self._address)
        return self._issue(name, name, self._address)

    def run(self, item: Item) -> object:
        """Do one item of a program."""
        return self.call(item.name, on=item.on, **item.fields) if isinstance(item, Hypercall) else item()

    def _put(self, name: str, fields: Mapping[str, int], where: int) -> None:
        abi = self.xen.abi
        if not abi.has(name):
            raise ValueError(f"{abi.name} has no sub-op {name}")
        values = {declared.name: declared.default for declared in CANONICAL[name]}
        unknown = fields.keys() - values.keys()
        if unknown:
            raise ValueError(f"{name} has no field {min(unknown)!r}; there are: {', '.join(values)}")
        subop = abi.by_name[name]
        if subop.codec is not None:
            self._ram.write(where, subop.codec.encode(*{**values, **fields}.values()))
        elif abi.convention is Convention.UNION:
            self._ram.write(where, subop.number.to_bytes(2, "little").ljust(32, b"\0"))

    def _issue(self, asked: str, read: str, where: int) -> Answer:
        abi = self.xen.abi
        result = self.xen.hypercall(self.vcpu, abi.hypercall, *abi.registers(asked, self._ram.linear(self._address)))
        codec = abi.by_name[read].codec
        if codec is None:
            return Answer(result, {})
        after = codec.as_dict(self._ram.read(where, codec.size))
        return Answer(result, {field: after[field] for field in codec.out})
