"""The typed header of every message, and the enum of message types.

``docs/protocol.md`` is the authority; this module is its transcription.  Headers are msgpack maps
(msgspec): unknown fields are ignored, so a newer peer may add some; a field is never re-used.
Durations are in milliseconds of the sender's own clock and are never compared with another's.

The bounds on the types hold for what arrives; :func:`shared.wire.decode_message` checks them, and what
they cannot express, before it hands a header on.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

__all__ = [
    "Announce",
    "Cancel",
    "Card",
    "Credit",
    "ErrorReply",
    "Goodbye",
    "Header",
    "Hello",
    "Infer",
    "Limits",
    "LoadReport",
    "LocalInfer",
    "LocalResult",
    "LocalState",
    "LocalStatus",
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

MAX_TEXT = 1024
"""Characters in a message meant for a person."""

Name = Annotated[str, Meta(max_length=128)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Millis = Annotated[float, Meta(ge=0, le=1e12)]
Millijoules = Annotated[float, Meta(ge=0, le=1e12)]
Ratio = Annotated[float, Meta(ge=0, le=1e9)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Bytes = Annotated[int, Meta(ge=0, le=2**48)]
Byte = Annotated[int, Meta(ge=0, le=255)]
Index = Annotated[int, Meta(ge=0, le=65535)]
Batch = Annotated[int, Meta(ge=1, le=65535)]
UnitMs = Annotated[list[Millis], Meta(max_length=65535)]
Dims = Annotated[list[Count], Meta(max_length=8)]
Endpoints = Annotated[list[Text], Meta(max_length=64)]


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
    LOCAL_INFER = 13
    LOCAL_RESULT = 14
    CANCEL = 15
    LOCAL_STATUS = 16
    LOCAL_STATE = 17


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Base: immutable, keyword-only, unknown fields ignored."""


class ModelOffer(Header, frozen=True, kw_only=True):
    """A network that the device holds: its name and the digest over graph and weights."""

    name: Name
    digest: Name


class Hello(Header, frozen=True, kw_only=True):
    """Device to gateway, first message of a session."""

    agent: Name
    software: Name
    models: Annotated[list[ModelOffer], Meta(max_length=256)]


class Limits(Header, frozen=True, kw_only=True):
    """What the gateway accepts from one device."""

    max_in_flight: Count = 32
    max_in_flight_bytes: Bytes = 64 * 2**20
    max_message_bytes: Bytes = 32 * 2**20
    max_batch: Batch = 64
    heartbeat_ms: Millis = 100.0
    heartbeat_timeout_ms: Millis = 300.0


class ModelCard(Header, frozen=True, kw_only=True):
    """What the device needs to know of one served network.

    ``unit_ms`` holds the measured time of every unit on an idle replica at batch 1, ``[]`` while no
    replica has profiled yet.  ``error`` is set when the device's digest is not the one served.  ``tables`` is
    the digest of the transform's tables that all its replicas hold; left out when there are none.
    """

    name: Name
    digest: Name
    index: Index
    unit_ms: UnitMs
    replicas: Count
    error: Text = ""
    tables: Name | msgspec.UnsetType = msgspec.UNSET


class Card(Header, frozen=True, kw_only=True, omit_defaults=True):
    """Gateway to device: the answer to HELLO, and again whenever a card changes.

    ``gateways`` are the device endpoints of all gateways of the cluster, ``load_endpoints`` their load
    feeds in the same order; a gateway that knows of no other leaves both empty.
    """

    gateway: Name
    software: Name
    limits: Limits
    models: Annotated[list[ModelCard], Meta(max_length=256)]
    load_endpoint: Text = ""
    gateways: Endpoints = msgspec.field(default_factory=list)
    load_endpoints: Endpoints = msgspec.field(default_factory=list)


class Announce(Header, frozen=True, kw_only=True):
    """Sent just before an INFER: the gateway's arrival span of the two gives the uplink bandwidth."""

    payload_bytes: Bytes


class TensorHeader(Header, frozen=True, kw_only=True):
    """One tensor that follows as one frame of ``payload_bytes``.

    ``dtype`` is a :class:`shared.tensor.DType`, ``codec`` a :class:`shared.codec.Codec`, ``order`` as
    in :mod:`shared.tensor`.
    """

    slot: Count
    dtype: Byte
    codec: Byte
    shape: Dims
    order: Dims
    payload_bytes: Bytes


TensorHeaders = Annotated[list[TensorHeader], Meta(max_length=255)]


class Infer(Header, frozen=True, kw_only=True):
    """Device to gateway to replica.  Model, cut, budget and request id are in frame 0.

    ``tail_units`` is empty for a topological cut; otherwise a little-endian bit mask of the units that
    the cloud runs.  ``reply_codec`` is the codec that the device wants the outputs in.
    """

    batch: Batch
    tensors: TensorHeaders
    reply_codec: Byte
    tail_units: Annotated[bytes, Meta(max_length=8192)] = b""


class TailTimings(Header, frozen=True, kw_only=True, omit_defaults=True):
    """Measured in the replica; ``wait_ms`` is the time between arrival and start of the work there.

    ``busy_ms`` is this request's share of the replica's busy time: summed over requests, however many were
    computed together, it is how long the replica was occupied.  0: unknown, then the three stages divided
    by ``batch_requests`` stand for it.
    """

    wait_ms: Millis = 0.0
    decode_ms: Millis = 0.0
    compute_ms: Millis = 0.0
    encode_ms: Millis = 0.0
    batch_requests: Count = 1
    busy_ms: Millis = 0.0


class Result(Header, frozen=True, kw_only=True):
    """Replica to gateway to device.  The gateway fills ``span_ms`` (arrival of INFER minus arrival of its
    ANNOUNCE), ``queue_ms`` (waiting for a credit) and ``gateway_ms`` (INFER in to RESULT out)."""

    tensors: TensorHeaders
    timings: TailTimings
    replica: Name = ""
    span_ms: Millis = 0.0
    span_bytes: Bytes = 0
    queue_ms: Millis = 0.0
    gateway_ms: Millis = 0.0


class ErrorReply(Header, frozen=True, kw_only=True):
    """``code`` is that of :mod:`shared.errors`."""

    code: Index
    message: Text
    retry_after_ms: Millis = 0.0


class Ping(Header, frozen=True, kw_only=True):
    """``probe_bytes`` is the size of the padding frame that follows; 0 for a plain heartbeat.

    ``wanted`` holds the card's indexes of networks that the device had requests for since its last PING
    and ran alone because no replica was ready: a gateway may have one started.  Left out when there is none.
    """

    probe_bytes: Bytes = 0
    wanted: Annotated[list[Index], Meta(max_length=256)] | msgspec.UnsetType = msgspec.UNSET


class Pong(Header, frozen=True, kw_only=True):
    """``span_ms`` and ``span_bytes`` as in RESULT, for a PING that was announced; else 0."""

    span_ms: Millis = 0.0
    span_bytes: Bytes = 0


class ReplicaHello(Header, frozen=True, kw_only=True, omit_defaults=True):
    """Replica to gateway: what it serves, its measured unit times, and its first credits.

    ``version`` is the configured one, which tells networks of one name apart that are both wanted.
    ``precision`` is what it computes in, for people; ``tables`` the digest of the transform's tables that it
    holds, if any.
    """

    replica: Name
    model: Name
    digest: Name
    unit_ms: UnitMs
    credits: Count
    software: Name = ""
    version: Name = ""
    precision: Name = ""
    tables: Name = ""


class Credit(Header, frozen=True, kw_only=True, omit_defaults=True):
    """Replica to gateway: ``credits`` more requests may be sent; and what the replica has seen since.

    ``window``, unless None, is the window from now on, in place of ``credits``: a replica of several
    gateways shares out what it holds at once.  ``elsewhere_ms`` is the work that it holds for the other
    gateways, in its own profiled milliseconds.
    """

    credits: Count
    busy_fraction: Annotated[float, Meta(ge=0, le=1)] = 0.0
    slowdown: Ratio = 1.0
    window: Count | None = None
    elsewhere_ms: Millis = 0.0


class Goodbye(Header, frozen=True, kw_only=True):
    """No more work to or from this peer after what is in flight."""

    reason: Text = ""


class Cancel(Header, frozen=True, kw_only=True):
    """The sender no longer wants the answer to the request id in frame 0; it gets no reply."""

    reason: Text = ""


class ModelLoad(Header, frozen=True, kw_only=True, omit_defaults=True):
    """``queue_ms`` is queued work in milliseconds of one idle replica; ``wait_ms`` what a request
    arriving now would wait; ``slowdown`` measured over profiled compute time.

    ``index`` tells the versions of one network apart, as on the card (65535: not told).  ``age_ms`` is how
    long ago a replica last said anything that ``wait_ms`` and ``slowdown`` rest on.
    """

    name: Name
    ready: Count
    starting: Count
    target: Count
    queue_ms: Millis
    wait_ms: Millis
    slowdown: Ratio
    queued: Count = 0
    in_flight: Count = 0
    batch_requests: Ratio = 1.0
    admitted_per_s: Ratio = 0.0
    refused_per_s: Ratio = 0.0
    index: Index = 65535
    age_ms: Millis = 0.0


class LoadReport(Header, frozen=True, kw_only=True, omit_defaults=True):
    """One frame on the load feed; ``sequence`` rises by one per report of this gateway.

    Another report follows within ``period_ms`` (0: not told).
    """

    gateway: Name
    sequence: Annotated[int, Meta(ge=0, le=2**53)]
    models: Annotated[list[ModelLoad], Meta(max_length=256)]
    period_ms: Millis = 0.0


class LocalInfer(Header, frozen=True, kw_only=True):
    """Application to agent, over the device's own socket.

    ``tree`` is the structure of the call's arguments as plain values (None, bool, int, finite float, str,
    list, dict with str keys; at most 32 deep): whatever form the client and the agent agree on, with each
    tensor standing as its index into ``tensors``.  ``objective`` is a name or a dict, as in the agent's
    configuration; None is the network's own.
    """

    model: Name
    tensors: TensorHeaders
    tree: Any
    deadline_ms: Millis | None = None
    objective: Any = None


class LocalResult(Header, frozen=True, kw_only=True):
    """Agent to application.  ``tree`` is the structure of the outputs, as in :class:`LocalInfer`.

    ``breakdown`` is in milliseconds and sums to ``latency_ms``; ``codec`` is a codec's label or "";
    ``fallback`` says why the device finished what was planned for the cloud, or "".  ``energy_mj`` is the
    device's for this request by ``meter``, None when that had no reading.
    """

    tensors: TensorHeaders
    tree: Any
    where: Name
    cut: Index
    cut_name: Text
    codec: Name
    uplink_bytes: Bytes
    latency_ms: Millis
    breakdown: Annotated[dict[Name, Millis], Meta(max_length=64)]
    decision: Any = None
    fallback: Text = ""
    energy_mj: Millijoules | None = None
    meter: Name = ""


class LocalStatus(Header, frozen=True, kw_only=True):
    """Application to agent: what is its state?  ``with_labels`` asks for the names of classes, too."""

    with_labels: bool = False


class LocalState(Header, frozen=True, kw_only=True):
    """Agent to application: ``state`` is a map of plain values, of which a reader ignores those that it does
    not know."""

    state: Any
