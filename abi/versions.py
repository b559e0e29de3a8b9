# SPDX-License-Identifier: GPL-2.0-or-later
"""The registry of posted ABI versions, oldest first."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from abi.model import DEFAULT_CONTEXT, Abi, Constant, Convention, CopyBack, SubOp
from abi.v3 import H0, V1, V2, V3
from abi.v4 import V4
from abi.v7 import V5, V6, V7

__all__ = [
    "DEFAULT_CONTEXT",
    "Abi",
    "Constant",
    "Convention",
    "CopyBack",
    "SubOp",
    "UnknownVersion",
    "get",
    "names",
]

_REGISTRY: Final[Mapping[str, Abi]] = MappingProxyType({abi.name: abi for abi in (H0, V1, V2, V3, V4, V5, V6, V7)})


class UnknownVersion(KeyError):
    """Nobody posted a version of that name."""

    def __str__(self) -> str:
        return str(self.args[0])


def get(name: str) -> Abi:
    """The version called ``name`` (capitals do not matter); :class:`UnknownVersion` lists the known names."""
    if name in _REGISTRY:
        return _REGISTRY[name]
    for known, abi in _REGISTRY.items():
        if known.lower() == name.lower():
            return abi
    raise UnknownVersion(f"no ABI version is called {name!r}; there are {', '.join(_REGISTRY)}")


def names() -> tuple[str, ...]:
    """Every version's name, oldest first."""
    return tuple(_REGISTRY)
