# SPDX-License-Identifier: GPL-2.0-or-later
"""Error numbers that only Linux has; the shared ones are in ``abi.errno``."""

from typing import Final

EREMOTEIO: Final = 121
EPROBE_DEFER: Final = 517
"""Kernel-internal: bind again later."""
ESPIPE: Final = 29
EBADFD: Final = 77
EBADE: Final = 52
