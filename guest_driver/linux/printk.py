# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel log: what a person would find in dmesg, and how many WARNs are in it.

A WARN is a broken promise between kernel parts; tests hold the count against zero.
"""


class Printk:
    """Log lines, oldest first."""

    __slots__ = ("lines", "warnings")

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings = 0
        """Number of WARNs among the lines."""

    def info(self, text: str) -> None:
        self.lines.append(text)

    def err(self, text: str) -> None:
        self.lines.append(f"error: {text}")

    def warn_on(self, condition: bool, text: str) -> bool:
        """The kernel's WARN(): log once per occurrence if ``condition`` holds, and hand it back."""
        if condition:
            self.warnings += 1
            self.lines.append(f"WARNING: {text}")
        return condition

    def save(self) -> tuple[int, int]:
        return len(self.lines), self.warnings

    def restore(self, state: tuple[int, int]) -> None:
        del self.lines[state[0] :]
        self.warnings = state[1]
