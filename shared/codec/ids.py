"""The codec byte: how a tensor's elements are written, and what then squeezes the bytes.

The high nibble is the :class:`Form` of the elements, the low nibble the entropy :class:`Stage`.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Codec", "Form", "Stage"]


class Form(IntEnum):
    """How the elements of a floating-point tensor are written; all others are always EXACT."""

    EXACT = 1
    HALF = 2
    UINT8 = 3
    INT4 = 4


class Stage(IntEnum):
    PLAIN = 0
    LZ4 = 1
    ZSTD = 2


class Codec(IntEnum):
    """One byte on the wire; numbers are never reused.  0 stands for no codec."""

    FLOAT32 = 0x10
    FLOAT32_LZ4 = 0x11
    FLOAT32_ZSTD = 0x12
    FLOAT16 = 0x20
    FLOAT16_LZ4 = 0x21
    FLOAT16_ZSTD = 0x22
    UINT8 = 0x30
    UINT8_LZ4 = 0x31
    UINT8_ZSTD = 0x32
    INT4 = 0x40
    INT4_LZ4 = 0x41
    INT4_ZSTD = 0x42

    @property
    def form(self) -> Form:
        return _FORMS[self]

    @property
    def stage(self) -> Stage:
        return _STAGES[self]

    @property
    def plain(self) -> Codec:
        """The same elements without an entropy stage."""
        return _PLAIN[self]

    @property
    def label(self) -> str:
        """As people write it, e.g. ``uint8+zstd``."""
        return self.name.lower().replace("_", "+")

    @classmethod
    def of(cls, form: Form, stage: Stage) -> Codec:
        return cls(form << 4 | stage)

    @classmethod
    def from_label(cls, label: str) -> Codec:
        """Raises ValueError that lists the labels there are."""
        for codec in cls:
            if codec.label == label:
                return codec
        raise ValueError(f"no codec {label!r}; there are {', '.join(codec.label for codec in cls)}")


_FORMS = {codec: Form(codec >> 4) for codec in Codec}
_STAGES = {codec: Stage(codec & 0xF) for codec in Codec}
_PLAIN = {codec: Codec(codec & 0xF0) for codec in Codec}
