"""How much work an INFER asks for, from what the gateway has to read of it and no more."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cloud_cluster.registry import Version
from shared.errors import LimitError, ProtocolError
from shared.wire import SET_CUT, Buffer
from shared.wire.messages import Limits

__all__ = ["expected_work_ms"]


class _Asked(msgspec.Struct, frozen=True, gc=False):
    """The fields of INFER's header that say how much is to be computed."""

    batch: Annotated[int, Meta(ge=1, le=65535)]
    tail_units: Annotated[bytes, Meta(max_length=8192)] = b""


_DECODER = msgspec.msgpack.Decoder(_Asked)
_MAX_HEADER_BYTES = 2**20


def expected_work_ms(version: Version, cut: int, header: Buffer, limits: Limits) -> float:
    """Milliseconds of an idle replica.

    The replica holds the samples and units against the tensors, so that claiming few gains nothing.  Raises
    ProtocolError for a header that is none, LimitError for more samples than may be in one request.
    """
    if len(header) > _MAX_HEADER_BYTES:
        raise LimitError(f"a header of {len(header)} bytes; at most {_MAX_HEADER_BYTES} are accepted")
    try:
        asked = _DECODER.decode(header)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"the header of INFER is not valid: {error}") from error
    if asked.batch > limits.max_batch:
        raise LimitError(f"a batch of {asked.batch}; at most {limits.max_batch} are accepted")
    if (cut == SET_CUT) != bool(asked.tail_units):
        raise ProtocolError("tail_units belong to a cut that is a set of units, and to no other")
    return asked.batch * version.work_ms(cut, asked.tail_units)
