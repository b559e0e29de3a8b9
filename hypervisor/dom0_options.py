# SPDX-License-Identifier: GPL-2.0-or-later
"""``dom0-iommu=`` on Xen's command line, as far as PV-IOMMU's versions have a say in it.

``nb-ctx=N`` and ``arena-order=N``, of v1 to v3: how many contexts the hardware domain has, context 0 counted, and log2
of its arena's pages.  ``dma=no``, of v4 on: the hardware domain's default context maps nothing but reserved regions.
"""

from dataclasses import dataclass, replace
from typing import Final

from hypervisor.profile import Profile

MAX_ARENA_ORDER: Final = 18
_NO: Final = ("no", "off", "false", "0")
_YES: Final = ("yes", "on", "true", "1", "")


@dataclass(frozen=True, slots=True)
class Dom0Options:
    """What the command line says; ``None``: nothing."""

    contexts: int | None = None
    """Contexts besides the default one."""
    arena_order: int | None = None
    dma: bool = True
    """The default context maps the hardware domain's memory one to one."""


def parse(text: str, profile: Profile) -> Dom0Options:
    """Read the option's value; ``ValueError`` for what ``profile``'s version does not know."""
    options = Dom0Options()
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if profile.contexts_at_creation and name == "nb-ctx":
            options = replace(options, contexts=_number(part, value, 1, 0xFFFF) - 1)
        elif profile.contexts_at_creation and name == "arena-order":
            options = replace(options, arena_order=_number(part, value, 1, MAX_ARENA_ORDER + 1))
        elif not profile.contexts_at_creation and name in ("dma", "no-dma"):
            if value not in (*_NO, *_YES):
                raise ValueError(f"dom0-iommu={part}: {value!r} is neither yes nor no")
            options = replace(options, dma=(value in _YES) == (name == "dma"))
        else:
            known = "nb-ctx=N, arena-order=N" if profile.contexts_at_creation else "dma=no"
            raise ValueError(f"dom0-iommu={part}: {profile.name} knows {known}")
    return options


def _number(part: str, text: str, first: int, end: int) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not first <= value < end:
        raise ValueError(f"dom0-iommu={part}: it takes a number from {first} to {end - 1}")
    return value
