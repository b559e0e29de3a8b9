# SPDX-License-Identifier: GPL-2.0-or-later
"""The flags of a contract, and the facts of a posting, in words: what they mean, and whom a change of them breaks."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Way:
    """One value of a flag.  ``for_old``: what it means for a guest of a version that did otherwise and now meets this;
    ``for_new``: for a guest that knows another way and is set back to this."""

    what: str
    for_old: str = ""
    for_new: str = ""


_BOTH: Final = frozenset({"map_pages", "unmap_pages"})

BEHAVIOUR: Final[Mapping[str, tuple[str, Mapping[Any, Way]]]] = MappingProxyType(
    {
        "count": (
            "mapped and unmapped",
            {
                "set": Way(
                    "set to the pages of this call; not written on early errors",
                    "an early error leaves what the guest had put there",
                    "an early error leaves what the guest had put there",
                ),
                "add": Way(
                    "the pages done are added to what the guest put there",
                    "a guest that reuses its struct counts the pages of earlier calls again",
                    "a guest that sets the field to 0 first notices nothing",
                ),
                "reset": Way(
                    "0 on entry, then the pages of this call",
                    "a guest that lets the count add up over calls loses all but the last",
                    "",
                ),
            },
        ),
        "cursor": (
            "a call that takes long",
            {
                False: Way("leaves gfn, dfn and nr_pages as they were"),
                True: Way(
                    "is preempted, and leaves gfn, dfn and nr_pages advanced in the guest's struct",
                    "a guest that reads its own inputs back, or reuses the struct, works on the wrong pages",
                    "",
                ),
            },
        ),
        "reserved_once": (
            "a range that touches a reserved region",
            {
                frozenset(): Way("map and unmap stop at its first page"),
                frozenset({"map_pages"}): Way(
                    "unmap stops at its first page; map tests only the first page of the range",
                    "an unmap that enters a reserved region stops there with -EADDRNOTAVAIL",
                ),
                _BOTH: Way(
                    "only the first page of the range is tested: entering the region from below is not seen",
                    "",
                    "an unmap that enters a reserved region removes the device's identity mapping and answers 0",
                ),
            },
        ),
        "init_alters": (
            "init",
            {
                False: Way("answers for itself and changes nothing in its struct"),
                True: Way(
                    "goes on into alloc_context: context 1 is taken, max_ctx_no in the struct becomes its number",
                    "a second init answers 0 and takes another context; -EACCES never comes",
                    "a second init answers 0 and takes another context; -EACCES never comes",
                ),
            },
        ),
        "init_wraps": (
            "max_ctx_no in init",
            {
                False: Way("a count that cannot be kept is refused with -E2BIG"),
                True: Way("is cut to 16 bits: 0xffff stops the hypervisor at any time, 0x10000 means none for ever"),
            },
        ),
        "init_sticks": (
            "init that failed with -ENOMEM",
            {
                False: Way("may be tried again"),
                True: Way("counts as done", "has one try", "has one try"),
            },
        ),
        "refusal_marks": (
            "a free refused with -EBUSY",
            {
                False: Way("changes nothing"),
                True: Way(
                    "leaves the context dying: nothing can be attached to it any more",
                    "cannot attach to a context whose free was refused: -EINVAL",
                    "cannot attach to a context whose free was refused: -EINVAL",
                ),
            },
        ),
        "same_is_nothing": (
            "reattaching to the context that the device is in",
            {
                False: Way("programs the device again"),
                True: Way("does nothing"),
            },
        ),
        "overwrites": (
            "a reserved region where the guest has mapped something",
            {
                False: Way("is refused"),
                True: Way(
                    "replaces what is there, silently",
                    "loses its own mappings there without an error",
                    "loses its own mappings there without an error",
                ),
            },
        ),
        "units": (
            "pgsize",
            {
                False: Way(
                    "4 KiB pages, whatever the struct says",
                    "",
                    "asks for a superpage, gets one 4 KiB page and is told that 1 was mapped",
                ),
                True: Way("pages of that size, mapped as a whole or not at all"),
            },
        ),
        "reports_flush": (
            "a failing IOTLB flush",
            {
                False: Way("is logged, the call succeeds"),
                True: Way("fails the call"),
            },
        ),
    }
)
"""Attribute of :class:`abi.contract.Contract` -> (its subject, value -> words)."""

FACTS: Final[Mapping[str, tuple[str, Mapping[Any, str]]]] = MappingProxyType(
    {
        "amd": (
            "AMD-Vi",
            {
                "none": "not ported",
                "no-lookup": "ported without looking mappings up: map sees no conflict, every unmap answers -ENOENT",
                "leaks": "looks mappings up; contexts are not cleaned up, so references to pages are never dropped",
                "whole": "ported",
            },
        ),
        "passthrough_fails": (
            "passing a device to an HVM guest",
            {True: "failed with -ENOSPC in a reviewer's test", False: "no failure was reported"},
        ),
        "zeroes_answers": (
            "the answer of query_capabilities",
            {True: "is the answer and nothing else", False: "carries two bytes of the hypervisor's stack"},
        ),
    }
)
"""Attribute of :class:`abi.posting.Hypervisor` -> (its subject, value -> words)."""
