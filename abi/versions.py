# SPDX-License-Identifier: GPL-2.0-or-later
"""The registry of posted ABI versions, oldest first."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from abi.e3 import E3
from abi.model import DEFAULT_CONTEXT, Abi, Constant, Convention, CopyBack, SubOp
from abi.p0 import P0, P_FIRST
from abi.proposal import N
from abi.v3 import H0, V1, V2, V3
from abi.v4 import V4
from abi.v7 import V5, V6, V7
from abi.x1 import X1
from abi.xenserver import A_NEW, A_OLD

__all__ = [
    "DEFAULT_CONTEXT",
    "Abi",
    "Constant",
    "Convention",
    "CopyBack",
    "SubOp",
    "UnknownVersion",
    "experimental",
    "get",
    "names",
]

_POSTED: Final = (A_OLD, A_NEW, P_FIRST, P0, H0, V1, V2, V3, N, V4, V5, V6, V7, E3)
_EXPERIMENTAL: Final = (X1,)
"""This project's own, which nobody posted."""
_REGISTRY: Final[Mapping[str, Abi]] = MappingProxyType({abi.name: abi for abi in (*_POSTED, *_EXPERIMENTAL)})


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
    """Every posted version's name, oldest first."""
    return tuple(abi.name for abi in _POSTED)


def experimental() -> tuple[str, ...]:
    """Names of the versions that are experiments of this project."""
    return tuple(abi.name for abi in _EXPERIMENTAL)
