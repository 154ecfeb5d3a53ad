"""Whatever arrives, the parser returns a message within the limits or raises what it promises."""

import math
import tracemalloc

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import LimitError, ProtocolError, VersionError
from shared.tensor import DType
from shared.wire import Frame0, MessageType, WireLimits, decode_message
from shared.wire.messages import Infer, LocalInfer, LocalResult, Result

LIMITS = WireLimits(max_header_bytes=4096, max_message_bytes=16384, max_decoded_bytes=2**20, max_batch=8)

numbers = st.one_of(
    st.integers(-5, 300),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.sampled_from([0.0, -0.0, math.nan, math.inf, 1e308]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8), st.binary(max_size=8))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=5), numbers), inner, max_size=4),
    ),
    max_leaves=12,
)
small = st.integers(0, 300)
tensors = st.fixed_dictionaries(
    {
        "slot": st.one_of(small, values),
        "dtype": st.one_of(st.integers(0, 12), values),
        "codec": st.one_of(small, values),
        "shape": st.one_of(st.lists(st.one_of(small, numbers), max_size=9), values),
        "order": st.one_of(st.permutations(range(3)), st.lists(numbers, max_size=9), values),
        "payload_bytes": st.one_of(st.sampled_from([0, 5, 24]), values),
    }
)
FIELDS = sorted(
    {
        field.name
        for kind in (Infer, Result, LocalInfer, LocalResult)
        for field in msgspec.structs.fields(kind)
    }
)
headers = st.dictionaries(st.sampled_from(FIELDS), st.one_of(values, st.lists(tensors, max_size=3)))
payloads = st.lists(st.sampled_from([b"", bytes(5), bytes(24)]), max_size=4)


def parse(frames):
    try:
        message = decode_message(frames, LIMITS)
    except (ProtocolError, LimitError, VersionError):
        return
    assert message.frame0.tensor_count == len(message.payloads)
    described = getattr(message.header, "tensors", [])
    for tensor, payload in zip(described, message.payloads, strict=bool(described)):
        assert tensor.payload_bytes == payload.nbytes
        assert DType(tensor.dtype).itemsize * math.prod(tensor.shape) <= LIMITS.max_decoded_bytes
        assert sorted(tensor.order) == list(range(len(tensor.shape)))


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_noise(frames):
    parse(frames)


@settings(max_examples=500)
@given(st.sampled_from(MessageType), st.binary(max_size=200), payloads)
def test_a_good_frame_0_before_noise(kind, body, payload_frames):
    frame0 = Frame0(kind, tensor_count=len(payload_frames)).pack()
    parse([frame0, body, *payload_frames])
    parse([frame0 + body])


@settings(max_examples=1000)
@given(st.sampled_from(MessageType), values, payloads)
def test_any_msgpack_value_as_a_header(kind, value, payload_frames):
    body = msgspec.msgpack.encode(value)
    frame0 = Frame0(kind, tensor_count=len(payload_frames)).pack()
    parse([frame0, body, *payload_frames])
    parse([frame0 + body])


@settings(max_examples=250)
@given(
    st.sampled_from(
        [MessageType.INFER, MessageType.RESULT, MessageType.LOCAL_INFER, MessageType.LOCAL_RESULT]
    ),
    headers,
    payloads,
    st.integers(0, 65535),
)
def test_headers_with_the_right_names_and_any_values(kind, header, payload_frames, cut):
    frame0 = Frame0(kind, tensor_count=len(payload_frames), cut=cut).pack()
    parse([frame0, msgspec.msgpack.encode(header), *payload_frames])


def test_no_claimed_size_is_allocated():
    """Array, map, text and binary headers of msgpack claim four billion items in five bytes."""
    claims = [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    ]
    tracemalloc.start()
    try:
        for kind in MessageType:
            for claim in claims:
                for field in ("models", "tensors", "tree", "unit_ms", "reason", "tail_units", "new"):
                    body = b"\x81" + msgspec.msgpack.encode(field) + claim
                    parse([Frame0(kind).pack(), body])
                    parse([Frame0(kind).pack() + body])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20
