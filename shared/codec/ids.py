"""The codec byte: how a tensor's elements are written, and what then squeezes the bytes.

The high nibble is the :class:`Form` of the elements, the low nibble the entropy :class:`Stage`.  The
transform is a ladder of forms, from the finest step to the coarsest, each with the one stage that it has.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["TRANSFORMS", "Codec", "Form", "Stage"]


class Form(IntEnum):
    """How the elements of a floating-point tensor are written; all others are always EXACT."""

    EXACT = 1
    HALF = 2
    UINT8 = 3
    INT4 = 4
    TRANSFORM_1 = 5
    TRANSFORM_2 = 6
    TRANSFORM_3 = 7
    TRANSFORM_4 = 8
    TRANSFORM_5 = 9
    TRANSFORM_6 = 10
    TRANSFORM_7 = 11
    TRANSFORM_8 = 12

    @property
    def is_transform(self) -> bool:
        """Whether it needs the tables of the tensor (:mod:`shared.codec.transform`)."""
        return self >= Form.TRANSFORM_1

    @property
    def step(self) -> int:
        """Of a form of the transform: its step in the tables' ladder."""
        return _STEPS_APART * (self - Form.TRANSFORM_1 + 1)


_STEPS_APART = 3
"""In quarters of an octave: each rung's step is 1.7 times the one before, and saves a third of the bytes."""


class Stage(IntEnum):
    PLAIN = 0
    LZ4 = 1
    ZSTD = 2
    ANS = 3
    """The transform's own entropy coder."""


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
    TRANSFORM_1 = 0x53
    TRANSFORM_2 = 0x63
    TRANSFORM_3 = 0x73
    TRANSFORM_4 = 0x83
    TRANSFORM_5 = 0x93
    TRANSFORM_6 = 0xA3
    TRANSFORM_7 = 0xB3
    TRANSFORM_8 = 0xC3

    @property
    def form(self) -> Form:
        return _FORMS[self]

    @property
    def stage(self) -> Stage:
        return _STAGES[self]

    @property
    def plain(self) -> Codec:
        """The same elements without an entropy stage; of the transform, which has none, exact elements."""
        return _PLAIN[self]

    @property
    def lossless(self) -> Codec:
        """What it stands for where the elements are not rewritten: exact ones, by the same entropy stage or,
        for the transform, by zstd."""
        return _LOSSLESS[self]

    @property
    def label(self) -> str:
        """As people write it, e.g. ``uint8+zstd`` or ``transform-3``."""
        return self.name.lower().replace("_", "-" if self.stage is Stage.ANS else "+")

    @classmethod
    def of(cls, form: Form, stage: Stage) -> Codec:
        return cls(form << 4 | stage)

    @classmethod
    def of_form(cls, form: Form) -> Codec:
        """The one that does least besides writing this form."""
        return cls.of(form, Stage.ANS if form.is_transform else Stage.PLAIN)

    @classmethod
    def from_label(cls, label: str) -> Codec:
        """Raises ValueError that lists the labels there are."""
        for codec in cls:
            if codec.label == label:
                return codec
        raise ValueError(f"no codec {label!r}; there are {', '.join(codec.label for codec in cls)}")


_FORMS = {codec: Form(codec >> 4) for codec in Codec}
_STAGES = {codec: Stage(codec & 0xF) for codec in Codec}
_PLAIN = {
    codec: Codec.FLOAT32 if codec.form.is_transform else Codec.of(codec.form, Stage.PLAIN) for codec in Codec
}
_LOSSLESS = {
    codec: Codec.FLOAT32_ZSTD if codec.form.is_transform else Codec.of(Form.EXACT, codec.stage)
    for codec in Codec
}

TRANSFORMS = tuple(codec for codec in Codec if codec.form.is_transform)
"""From the finest to the coarsest."""
