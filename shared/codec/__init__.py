"""Tensors to payload bytes and back, by codecs whose sizes are known before anything is allocated.

Importing this costs neither torch nor numpy: :func:`encode` and :func:`decode` load them on first use,
and :mod:`shared.codec.raw` needs numpy only.

A codec is a form of the elements times an entropy stage.  Another form is added by a member in
:mod:`~shared.codec.ids`, its size rule in :mod:`~shared.codec.layout` and a coder in the table of
:mod:`~shared.codec.elements`.
"""

from typing import TYPE_CHECKING, Any

from shared.codec.ids import TRANSFORMS, Codec, Form, Stage
from shared.codec.layout import max_payload_bytes, raw_bytes

if TYPE_CHECKING:
    from shared.codec.tensors import decode, encode

__all__ = ["TRANSFORMS", "Codec", "Form", "Stage", "decode", "encode", "max_payload_bytes", "raw_bytes"]


def __getattr__(name: str) -> Any:
    if name in ("encode", "decode"):
        from shared.codec import tensors

        return getattr(tensors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
