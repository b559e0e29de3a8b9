# SPDX-License-Identifier: GPL-2.0-or-later
"""Ids of the catalogue of posted code that have no entry here, and why."""

from typing import Final

ABSENT: Final[dict[str, str]] = {
    "A7": "not made yet: 32-bit callers",
    "A11": "not applicable: of the first prototype's batch interface, which no profile speaks",
    "B5": "nothing to show: an option of Xen's command line without effect",
    "C8": "not made yet",
    "D4": "not made yet",
    "D5": "not made yet: needs a default context that shares the p2m",
    "D6": "not made yet: needs frames without an M2P entry",
    "T8": "cannot be shown: Xen's own heap is not modelled",
    "F2": "not made yet",
    "F3": "not made yet on its own; S1 makes every leaf lose a reference",
    "F5": "not made yet",
    "G1": "not made yet",
    "G2": "cannot be shown: a pointer that is read before it is tested",
    "G3": "not made yet",
    "G4": "not made yet",
    "G6": "not applicable: one fork's tree, which no profile stands for",
    "H3": "not made yet: preemption of the posted loop",
    "H4": "not applicable: no live fault of any posted version",
    "H6": "nothing to show: the text of a log line",
    "H8": "not made yet: a mapping of machine frame 0",
    "H9": "not applicable: AMD-Vi",
    "H10": "nothing to show by itself: the posted loop of v1 to v3 is not preempted",
}
"""Id -> the reason, in words."""
