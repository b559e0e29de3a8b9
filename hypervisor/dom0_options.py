# SPDX-License-Identifier: GPL-2.0-or-later
"""``dom0-iommu=`` on Xen's command line, as far as PV-IOMMU's versions have a say in it.

``nb-ctx=N`` and ``arena-order=N``, of v1 to v3: how many contexts the hardware domain has, context 0 counted, and log2
of its arena's pages.  ``dma=no``, of v4 on: the hardware domain's default context maps nothing but reserved regions.

Upstream's own options say what else a PV hardware domain's default context maps one to one: ``strict=no`` all of RAM
but Xen's own, ``map-reserved`` what firmware keeps of RAM, ``map-inclusive`` everything below 4 GiB but Xen and message
interrupts.  ``passthrough``: its devices' requests are not translated in the default context.  ``none``: nor is it told
of an IOMMU.  A PVH hardware domain has neither: its devices would reach other frames than it named.
"""

from dataclasses import dataclass, replace
from typing import Final

from hypervisor.profile import Profile

MAX_ARENA_ORDER: Final = 18
_UPSTREAM: Final = ("strict", "map-reserved", "map-inclusive", "passthrough")
_MESSAGES: Final = (0xFEE00, 0xFEEFF)
"""Frames of x86's message interrupts: never mapped."""
_FOUR_GIB: Final = 1 << 20
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
    strict: bool = True
    map_reserved: bool = False
    map_inclusive: bool = False
    passthrough: bool = False
    none: bool = False

    @property
    def untranslated(self) -> bool:
        """The default context of the hardware domain lets requests through as they are."""
        return self.passthrough or self.none


def parse(text: str, profile: Profile, *, pv: bool = True) -> Dom0Options:
    """Read the option's value; ``ValueError`` for what ``profile``'s version does not know, for what a hardware domain
    that is PV or not cannot have, and for a contradiction."""
    options = Dom0Options()
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if profile.contexts_at_creation and name == "nb-ctx":
            options = replace(options, contexts=_number(part, value, 1, 0xFFFF) - 1)
        elif profile.contexts_at_creation and name == "arena-order":
            options = replace(options, arena_order=_number(part, value, 1, MAX_ARENA_ORDER + 1))
        elif not profile.contexts_at_creation and name.removeprefix("no-") == "dma":
            options = replace(options, dma=_flag(part))
        elif name.removeprefix("no-") in _UPSTREAM:
            options = replace(options, **{name.removeprefix("no-").replace("-", "_"): _flag(part)})
        elif part == "none":
            options = replace(options, none=True)
        else:
            own = ("nb-ctx=N", "arena-order=N") if profile.contexts_at_creation else ("dma=no",)
            raise ValueError(f"dom0-iommu={part}: {profile.name} knows {', '.join((*own, *_UPSTREAM, 'none'))}")
    word = "none" if options.none else "passthrough"
    if options.untranslated and not pv:
        raise ValueError(f"dom0-iommu={word}: a PVH dom0 needs its devices' addresses translated; it takes a pv guest")
    if options.untranslated and not options.dma:
        raise ValueError(f"dom0-iommu={word}: with dma=no the default context maps nothing, which contradicts it")
    return options


def ranges(
    options: Dom0Options, xen_frames: int, frames: int, reserved: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """(first, last) frames that a PV hardware domain's default context maps besides the domain's own; they may overlap.
    ``xen_frames`` are Xen's at the bottom of ``frames`` of RAM, of which firmware keeps ``reserved``."""
    wanted = list(reserved) if options.map_reserved else []
    if not options.strict:
        wanted.append((xen_frames, frames - 1))
    if options.map_inclusive:
        wanted += [(xen_frames, _MESSAGES[0] - 1), (_MESSAGES[1] + 1, _FOUR_GIB - 1)]
    return wanted


def _flag(part: str) -> bool:
    """``name``, ``name=yes``, ``no-name`` or ``name=no``."""
    name, _, value = part.partition("=")
    if value not in (*_NO, *_YES):
        raise ValueError(f"dom0-iommu={part}: {value!r} is neither yes nor no")
    return (value in _YES) != name.startswith("no-")


def _number(part: str, text: str, first: int, end: int) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not first <= value < end:
        raise ValueError(f"dom0-iommu={part}: it takes a number from {first} to {end - 1}")
    return value
