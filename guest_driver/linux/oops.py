# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a guest kernel: what C answers to a NULL pointer, where Python would say AttributeError."""


class KernelOops(Exception):
    """The guest kernel died; the text is what it would print last."""


class NullTable:
    """A table of function pointers that was never set: every use of it is a NULL dereference."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        raise KernelOops(f"unable to handle kernel NULL pointer dereference: ops->{name}")
