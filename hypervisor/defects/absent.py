# SPDX-License-Identifier: GPL-2.0-or-later
"""Ids of the catalogue of posted code that have no entry here, and why."""

from typing import Final

ABSENT: Final[dict[str, str]] = {
    "A11": "not applicable: of the first prototype's batch interface, which no profile speaks",
    "T8": "cannot be shown: a few bytes of Xen's own heap for each context, which no guest, device or table shows",
    "H6": "nothing to show: the text of a log line",
    "H10": "nothing to show by itself: the posted loop of v1 to v3 is not preempted",
}
"""Id -> the reason, in words."""
