"""The typed header of every message, and the enum of message types.

``docs/protocol.md`` is the authority; this module is its transcription.  Headers are msgpack maps
(msgspec): unknown fields are ignored, so a newer peer may add some; a field is never re-used.
Durations are in milliseconds of the sender's own clock and are never compared with another's.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

__all__ = [
    "Announce",
    "Card",
    "Credit",
    "ErrorReply",
    "Goodbye",
    "Hello",
    "Infer",
    "Limits",
    "LoadReport",
    "MessageType",
    "ModelCard",
    "ModelLoad",
    "ModelOffer",
    "Ping",
    "Pong",
    "ReplicaHello",
    "Result",
    "TailTimings",
    "TensorHeader",
]


class MessageType(IntEnum):
    HELLO = 1
    CARD = 2
    ANNOUNCE = 3
    INFER = 4
    RESULT = 5
    ERROR = 6
    PING = 7
    PONG = 8
    CREDIT = 9
    GOODBYE = 10
    LOAD = 11
    REPLICA_HELLO = 12


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """Base: immutable, keyword-only, unknown fields ignored."""


class ModelOffer(_Header):
    """A network that the device holds: its name and the digest over graph and weights."""

    name: str
    digest: str


class Hello(_Header):
    """Device to gateway, first message of a session."""

    agent: str
    software: str
    models: list[ModelOffer]


class Limits(_Header):
    """What the gateway accepts from one device."""

    max_in_flight: int = 32
    max_in_flight_bytes: int = 64 * 2**20
    max_message_bytes: int = 32 * 2**20
    max_batch: int = 64
    heartbeat_ms: float = 100.0
    heartbeat_timeout_ms: float = 300.0


class ModelCard(_Header):
    """What the device needs to know of one served network.

    ``unit_ms`` holds the measured time of every unit on an idle replica at batch 1, ``[]`` while no
    replica has profiled yet.  ``error`` is set when the device's digest is not the one served.
    """

    name: str
    digest: str
    index: int
    unit_ms: list[float]
    replicas: int
    error: str = ""


class Card(_Header):
    """Gateway to device: the answer to HELLO, and again whenever a card changes."""

    gateway: str
    software: str
    limits: Limits
    models: list[ModelCard]
    load_endpoint: str = ""


class Announce(_Header):
    """Sent just before an INFER: the gateway's arrival span of the two gives the uplink bandwidth."""

    payload_bytes: int


class TensorHeader(_Header):
    """One tensor that follows as one frame of ``payload_bytes``.

    ``dtype`` is a :class:`shared.tensor.DType`, ``codec`` a :class:`shared.codec.Codec`, ``order`` as
    in :mod:`shared.tensor`.
    """

    slot: int
    dtype: int
    codec: int
    shape: list[int]
    order: list[int]
    payload_bytes: int


class Infer(_Header):
    """Device to gateway to replica.  Model, cut, budget and request id are in frame 0.

    ``tail_units`` is empty for a topological cut; otherwise a little-endian bit mask of the units that
    the cloud runs.  ``reply_codec`` is the codec that the device wants the outputs in.
    """

    batch: int
    tensors: list[TensorHeader]
    reply_codec: int
    tail_units: bytes = b""


class TailTimings(_Header):
    """Measured in the replica; ``wait_ms`` is the time between arrival and start of the work there."""

    wait_ms: float = 0.0
    decode_ms: float = 0.0
    compute_ms: float = 0.0
    encode_ms: float = 0.0
    batch_requests: int = 1


class Result(_Header):
    """Replica to gateway to device.  The gateway fills ``span_ms`` (arrival of INFER minus arrival of its
    ANNOUNCE), ``queue_ms`` (waiting for a credit) and ``gateway_ms`` (INFER in to RESULT out)."""

    tensors: list[TensorHeader]
    timings: TailTimings
    replica: str = ""
    span_ms: float = 0.0
    span_bytes: int = 0
    queue_ms: float = 0.0
    gateway_ms: float = 0.0


class ErrorReply(_Header):
    """``code`` is that of :mod:`shared.errors`."""

    code: int
    message: str
    retry_after_ms: float = 0.0


class Ping(_Header):
    """``probe_bytes`` is the size of the padding frame that follows; 0 for a plain heartbeat."""

    probe_bytes: int = 0


class Pong(_Header):
    """``span_ms`` and ``span_bytes`` as in RESULT, for a PING that was announced; else 0."""

    span_ms: float = 0.0
    span_bytes: int = 0


class ReplicaHello(_Header):
    """Replica to gateway: what it serves, its measured unit times, and its first credits."""

    replica: str
    model: str
    digest: str
    unit_ms: list[float]
    credits: int
    software: str = ""


class Credit(_Header):
    """Replica to gateway: ``credits`` more requests may be sent; and what the replica has seen since."""

    credits: int
    busy_fraction: float = 0.0
    slowdown: float = 1.0


class Goodbye(_Header):
    """No more work to or from this peer after what is in flight."""

    reason: str = ""


class ModelLoad(_Header):
    """``queue_ms`` is queued work in milliseconds of one idle replica; ``wait_ms`` what a request
    arriving now would wait; ``slowdown`` measured over profiled compute time."""

    name: str
    ready: int
    starting: int
    target: int
    queue_ms: float
    wait_ms: float
    slowdown: float
    queued: int = 0
    in_flight: int = 0
    batch_requests: float = 1.0
    admitted_per_s: float = 0.0
    refused_per_s: float = 0.0


class LoadReport(_Header):
    """One frame on the load feed; ``sequence`` rises by one per report of this gateway."""

    gateway: str
    sequence: int
    models: list[ModelLoad]
