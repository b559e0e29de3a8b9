# SPDX-License-Identifier: GPL-2.0-or-later
"""Bit layouts, declared the way the manuals print them.

A layout is a class whose body lists ``name = bits(msb, lsb)``, most significant first::

    class ContextEntryHigh(Layout, width=64):
        did = bits(23, 8)
        aw = bits(2, 0)

Overlapping fields, fields outside the width and reversed bounds are errors when the class is made, so a
typing mistake cannot survive an import.  Values that do not fit a field are refused, never cut.

Layouts serve the edges: building entries at set-up, decoding for people, tests.  Loops that run per page use
the plain ``mask``, ``lsb`` and ``pack`` results as ints.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Final, final


@final
class Field:
    """Bits ``msb`` down to ``lsb``, inclusive, of the word that a :class:`Layout` describes."""

    __slots__ = ("doc", "lsb", "mask", "msb", "name", "width")

    def __init__(self, msb: int, lsb: int, doc: str = "") -> None:
        if not 0 <= lsb <= msb:
            raise ValueError(f"bits({msb}, {lsb}): the bounds are (msb, lsb), msb >= lsb >= 0")
        self.msb: Final = msb
        self.lsb: Final = lsb
        self.doc: Final = doc
        self.name = "?"
        self.width: Final = msb - lsb + 1
        self.mask: Final = ((1 << self.width) - 1) << lsb
        """The field's bits in place, all ones."""

    def get(self, word: int) -> int:
        return (word & self.mask) >> self.lsb

    def put(self, value: int) -> int:
        """``value`` shifted into place; ``ValueError`` if it does not fit."""
        if value >> self.width:
            raise ValueError(f"{self.name} is {self.width} bits wide, {value:#x} does not fit")
        return value << self.lsb

    def __repr__(self) -> str:
        where = f"{self.msb}" if self.msb == self.lsb else f"{self.msb}:{self.lsb}"
        return f"<{self.name}[{where}]>"


def bits(msb: int, lsb: int, doc: str = "") -> Field:
    """Declare bits ``msb``..``lsb`` (inclusive) of a layout."""
    return Field(msb, lsb, doc)


def bit(position: int, doc: str = "") -> Field:
    """Declare a one-bit field."""
    return Field(position, position, doc)


class Layout:
    """A word of ``width`` bits; subclasses list its fields.  Never instantiated: words stay plain ints."""

    width: int = 64
    fields: ClassVar[dict[str, Field]] = {}

    def __init_subclass__(cls, width: int = 64, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.width = width
        cls.fields = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        taken = 0
        for name, field in cls.fields.items():
            field.name = name
            if field.msb >= width:
                raise TypeError(f"{cls.__name__}.{name} uses bit {field.msb} of a {width}-bit word")
            if taken & field.mask:
                raise TypeError(f"{cls.__name__}.{name} overlaps another field")
            taken |= field.mask

    @classmethod
    def pack(cls, /, **values: int) -> int:
        """A word with the named fields set and all other bits 0."""
        word = 0
        for name, value in values.items():
            if name not in cls.fields:
                raise TypeError(f"{cls.__name__} has no field {name!r}; it has {', '.join(cls.fields)}")
            word |= cls.fields[name].put(value)
        return word

    @classmethod
    def decode(cls, word: int) -> dict[str, int]:
        """Every field's value, most significant field first as declared."""
        return {name: field.get(word) for name, field in cls.fields.items()}

    @classmethod
    def reserved(cls) -> int:
        """A mask of the bits that no field names."""
        named = 0
        for field in cls.fields.values():
            named |= field.mask
        return ((1 << cls.width) - 1) & ~named

    @classmethod
    def describe(cls, word: int) -> str:
        """``name=value`` for every non-zero field, for people."""
        return " ".join(cls._describe(word)) or "0"

    @classmethod
    def _describe(cls, word: int) -> Iterator[str]:
        for name, field in cls.fields.items():
            value = field.get(word)
            if value:
                yield name if field.width == 1 else f"{name}={value:#x}"
        stray = word & cls.reserved()
        if stray:
            yield f"reserved={stray:#x}"
