# SPDX-License-Identifier: GPL-2.0-or-later
"""What a handler answers: (return value, values of the struct's OUT fields)."""

from typing import Final

Result = tuple[int, tuple[int, ...]]

RESTART: Final = 1 << 62
"""Return value of a preempted handler; never reaches the guest.  ``vcpu.restart`` says where to go on."""
