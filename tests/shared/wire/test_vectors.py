"""The golden vectors of version 1, and the pages of docs/protocol.md that must agree with the code.

A vector is a file of frames, each after its length in four bytes, little-endian.  Vectors are kept for
ever: what version 1 once sent must be read by every later release that speaks version 1.  A header that
gains a field gets a second vector beside the first, which is then only read.
"""

import re
import struct
from pathlib import Path

import msgspec
import pytest

from shared import errors
from shared.codec import Codec
from shared.errors import LimitError, ProtocolError, VersionError
from shared.tensor import DType
from shared.wire import SET_CUT, Frame0, MessageType, WireLimits, decode_message, encode_message, peek
from shared.wire import messages as m
from shared.wire.frame import FRAME0_BYTES
from shared.wire.limits import MAX_DEPTH, MAX_TENSORS

ROOT = Path(__file__).parents[3]
VECTORS = ROOT / "tests" / "vectors"
DOC = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")

DIGEST = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def tensor(slot, dtype, codec, shape, order, payload_bytes):
    return m.TensorHeader(
        slot=slot, dtype=dtype, codec=codec, shape=shape, order=order, payload_bytes=payload_bytes
    )


# One channel of ten values 0.0, 0.5, ... 4.5: scale 4.5/255, zero point 0.
UINT8_PAYLOAD = struct.pack("<f", 4.5 / 255) + b"\x00" + bytes([0, 28, 57, 85, 113, 142, 170, 198, 227, 255])

MESSAGES = {
    "hello": encode_message(
        m.Hello(
            agent="jetson-1",
            software="suture 0.1.0",
            models=[m.ModelOffer(name="mnist", digest=DIGEST)],
        ),
        request_id=1,
    ),
    "card": encode_message(
        m.Card(
            gateway="gw",
            software="suture 0.1.0",
            limits=m.Limits(),
            models=[m.ModelCard(name="mnist", digest=DIGEST, index=0, unit_ms=[0.25, 1.5], replicas=2)],
            load_endpoint="tcp://127.0.0.1:5557",
        ),
        request_id=1,
    ),
    "card-tables": encode_message(
        m.Card(
            gateway="gw",
            software="suture 0.1.0",
            limits=m.Limits(),
            models=[
                m.ModelCard(
                    name="mnist", digest=DIGEST, index=0, unit_ms=[0.25, 1.5], replicas=2, tables="9f86d081"
                )
            ],
        ),
        request_id=1,
    ),
    "announce": encode_message(m.Announce(payload_bytes=15), request_id=7),
    "infer": encode_message(
        m.Infer(
            batch=1,
            tensors=[tensor(3, DType.FLOAT32, Codec.UINT8, [1, 1, 2, 5], [0, 1, 2, 3], 15)],
            reply_codec=Codec.FLOAT32,
        ),
        [UINT8_PAYLOAD],
        request_id=7,
        model=0,
        cut=1,
        codec=Codec.UINT8,
        budget_ms=200,
    ),
    "infer-set-cut": encode_message(
        m.Infer(
            batch=2,
            tensors=[
                tensor(3, DType.FLOAT32, Codec.FLOAT32, [2, 3], [1, 0], 24),
                tensor(5, DType.INT64, Codec.UINT8, [2], [0], 16),
            ],
            reply_codec=Codec.FLOAT16_ZSTD,
            tail_units=b"\x0c\x01",
        ),
        [struct.pack("<6f", 1, 4, 2, 5, 3, 6), struct.pack("<2q", -1, 2**40)],
        request_id=2**64 - 1,
        model=3,
        cut=SET_CUT,
        codec=Codec.UINT8,
    ),
    "result": encode_message(
        m.Result(
            tensors=[tensor(9, DType.FLOAT32, Codec.FLOAT32, [1, 2], [0, 1], 8)],
            timings=m.TailTimings(
                wait_ms=0.125, decode_ms=0.0625, compute_ms=1.5, encode_ms=0.03125, batch_requests=2
            ),
            replica="mnist#a",
            span_ms=2.5,
            span_bytes=150,
            queue_ms=0.5,
            gateway_ms=4.0,
        ),
        [struct.pack("<2f", 0.25, 0.75)],
        request_id=7,
        cut=1,
        codec=Codec.FLOAT32,
    ),
    "error": encode_message(
        m.ErrorReply(code=31, message="the queue of mnist is full", retry_after_ms=40.0), request_id=7
    ),
    "ping": encode_message(m.Ping(), request_id=2**63),
    "ping-probe": encode_message(m.Ping(probe_bytes=4), [bytes(4)], request_id=2**63 + 1),
    "ping-wanted": encode_message(m.Ping(wanted=[0, 3]), request_id=2**63 + 2),
    "pong": encode_message(m.Pong(span_ms=0.5, span_bytes=44), request_id=2**63 + 1),
    "credit": encode_message(m.Credit(credits=2, busy_fraction=0.75, slowdown=1.25)),
    "goodbye": encode_message(m.Goodbye(reason="the agent is stopping")),
    "load": encode_message(
        m.LoadReport(
            gateway="gw",
            sequence=41,
            models=[
                m.ModelLoad(
                    name="mnist",
                    ready=1,
                    starting=1,
                    target=2,
                    queue_ms=3.5,
                    wait_ms=1.75,
                    slowdown=1.0,
                    queued=2,
                    in_flight=1,
                    batch_requests=1.5,
                    admitted_per_s=30.0,
                    refused_per_s=0.5,
                )
            ],
        )
    ),
    "replica-hello": encode_message(
        m.ReplicaHello(
            replica="mnist#a",
            model="mnist",
            digest=DIGEST,
            unit_ms=[0.25, 1.5],
            credits=2,
            software="suture 0.1.0",
        )
    ),
    "replica-hello-version": encode_message(
        m.ReplicaHello(
            replica="mnist#b", model="mnist", digest=DIGEST, unit_ms=[0.25, 1.5], credits=2, version="2"
        )
    ),
    "replica-hello-tables": encode_message(
        m.ReplicaHello(
            replica="mnist#b", model="mnist", digest=DIGEST, unit_ms=[0.25, 1.5], credits=2, tables="9f86d081"
        )
    ),
    "local-infer": encode_message(
        m.LocalInfer(
            model="mnist",
            tensors=[tensor(0, DType.UINT8, Codec.FLOAT32, [1, 3], [0, 1], 3)],
            tree=[{"tuple": [0]}, {}],
            deadline_ms=200.0,
        ),
        [b"\x01\x02\x03"],
        request_id=1,
    ),
    "local-result": encode_message(
        m.LocalResult(
            tensors=[tensor(0, DType.FLOAT32, Codec.FLOAT32, [1, 2], [0, 1], 8)],
            tree=0,
            where="split",
            cut=1,
            cut_name="conv1",
            codec="uint8",
            uplink_bytes=15,
            latency_ms=6.5,
            breakdown={"device": 2.5, "uplink": 2.5, "cloud": 1.5},
            decision={"reason": "fastest"},
        ),
        [struct.pack("<2f", 0.25, 0.75)],
        request_id=1,
    ),
    "local-infer-objective": encode_message(
        m.LocalInfer(
            model="mnist",
            tensors=[tensor(0, DType.UINT8, Codec.FLOAT32, [1, 3], [0, 1], 3)],
            tree=[{"tuple": [0]}, {}],
            deadline_ms=200.0,
            objective={"minimise": "energy", "deadline_ms": 150.0},
        ),
        [b"\x01\x02\x03"],
        request_id=1,
    ),
    "local-result-energy": encode_message(
        m.LocalResult(
            tensors=[tensor(0, DType.FLOAT32, Codec.FLOAT32, [1, 2], [0, 1], 8)],
            tree=0,
            where="split",
            cut=1,
            cut_name="conv1",
            codec="uint8",
            uplink_bytes=15,
            latency_ms=6.5,
            breakdown={"device": 2.5, "uplink": 2.5, "cloud": 1.5},
            decision={"reason": "least energy"},
            energy_mj=20.5,
            meter="model",
        ),
        [struct.pack("<2f", 0.25, 0.75)],
        request_id=1,
    ),
    "result-batched": encode_message(
        m.Result(
            tensors=[tensor(9, DType.FLOAT32, Codec.FLOAT32, [1, 2], [0, 1], 8)],
            timings=m.TailTimings(compute_ms=6.0, batch_requests=3, busy_ms=2.25),
            replica="mnist#a",
        ),
        [struct.pack("<2f", 0.25, 0.75)],
        request_id=7,
        cut=1,
        codec=Codec.FLOAT32,
    ),
    "credit-shared": encode_message(m.Credit(credits=0, slowdown=1.25, window=3, elsewhere_ms=12.5)),
    "load-versions": encode_message(
        m.LoadReport(
            gateway="gw",
            sequence=42,
            models=[
                m.ModelLoad(
                    name="mnist",
                    ready=1,
                    starting=0,
                    target=1,
                    queue_ms=0.0,
                    wait_ms=0.0,
                    slowdown=1.0,
                    index=index,
                    age_ms=40.0,
                )
                for index in (0, 3)
            ],
            period_ms=100.0,
        )
    ),
    "local-status": encode_message(m.LocalStatus(with_labels=True), request_id=2),
    "local-state": encode_message(
        m.LocalState(state={"agent": "jetson", "up_s": 2.5, "models": [{"name": "mnist", "labels": None}]}),
        request_id=2,
    ),
    "cancel": encode_message(m.Cancel(reason="the caller left"), request_id=7),
}

ONLY_READ = {"local-infer", "local-result"}
"""Vectors of headers that have gained a field since: later releases read them but send another one."""


def to_vector(frames):
    return b"".join(struct.pack("<I", len(frame)) + bytes(frame) for frame in frames)


def read_vector(name):
    data = (VECTORS / f"{name}.v1.bin").read_bytes()
    frames, position = [], 0
    while position < len(data):
        (size,) = struct.unpack_from("<I", data, position)
        frames.append(data[position + 4 : position + 4 + size])
        position += 4 + size
    assert position == len(data)
    return frames


def parse(frames):
    """The parser's promise: a message, or one of three errors."""
    try:
        return decode_message(frames, WireLimits())
    except (ProtocolError, LimitError, VersionError):
        return None


class TestVectors:
    def test_every_message_type_has_a_vector(self):
        assert {parse(read_vector(name)).type for name in MESSAGES} == set(MessageType)
        assert {path.name for path in VECTORS.glob("*.v1.bin") if not path.name.startswith("payload-")} == {
            f"{name}.v1.bin" for name in MESSAGES
        }

    @pytest.mark.parametrize("name", MESSAGES.keys() - ONLY_READ)
    def test_what_is_sent_is_the_vector(self, name):
        assert [bytes(frame) for frame in MESSAGES[name]] == read_vector(name)

    @pytest.mark.parametrize("name", MESSAGES)
    def test_what_is_read_is_what_was_sent(self, name):
        read = decode_message(read_vector(name), WireLimits())
        sent = decode_message(MESSAGES[name], WireLimits())
        assert (read.frame0, read.header) == (sent.frame0, sent.header)
        assert [bytes(payload) for payload in read.payloads] == [bytes(frame) for frame in MESSAGES[name][2:]]

    @pytest.mark.parametrize("name", MESSAGES)
    def test_truncation_at_every_offset_is_refused(self, name):
        frames = read_vector(name)
        for index, frame in enumerate(frames):
            for size in range(len(frame)):
                assert parse([*frames[:index], frame[:size], *frames[index + 1 :]]) is None
            assert parse(frames[:index]) is None

    @pytest.mark.parametrize("name", MESSAGES)
    def test_every_flipped_bit_is_refused_or_read_as_some_message(self, name):
        frames = read_vector(name)
        for index, frame in enumerate(frames):
            for bit in range(8 * len(frame)):
                damaged = bytearray(frame)
                damaged[bit // 8] ^= 1 << bit % 8
                message = parse([*frames[:index], damaged, *frames[index + 1 :]])
                if index == 0 and bit < 8 * 6:
                    # Magic, version, type, flags: at most a message of another type with such a header.
                    assert message is None or message.type is not MessageType(frame[4])
                peek(damaged)

    @pytest.mark.parametrize("name", MESSAGES)
    def test_no_frame_may_follow(self, name):
        for extra in (b"", b"x", read_vector(name)[0]):
            assert parse([*read_vector(name), extra]) is None


class TestDocument:
    def test_frame_0(self):
        rows = re.findall(r"^\| (\d+) \| (\d) \| ([\w ]+) \|", section("Frame 0"), re.M)
        places = [(int(offset), int(size)) for offset, size, _ in rows]
        ends = [offset + size for offset, size in places]
        assert [offset for offset, _ in places] == [0, *ends[:-1]]
        assert ends[-1] == FRAME0_BYTES
        frame0 = Frame0(
            MessageType.CANCEL, request_id=7, model=1, cut=2, codec=3, budget_ms=4, tensor_count=5
        ).pack()
        values = {name: frame0[int(offset) : int(offset) + int(size)] for offset, size, name in rows}
        assert values.pop("magic") == b"SUT"
        assert {name: int.from_bytes(value, "little") for name, value in values.items()} == {
            "version": 1,
            "type": 15,
            "flags": 0,
            "codec": 3,
            "tensor count": 5,
            "request id": 7,
            "budget ms": 4,
            "model": 1,
            "cut": 2,
        }

    def test_limits(self):
        rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section("Limits"), re.M))
        defaults = WireLimits()
        assert rows["bytes of all frames"] == (
            f"`max_message_bytes`, {defaults.max_message_bytes // 2**20} MiB unless configured"
        )
        assert rows["bytes of the header"] == f"{defaults.max_header_bytes // 2**20} MiB"
        assert rows["decoded bytes, summed over the tensors"].startswith(
            f"{defaults.max_decoded_bytes // 2**20} MiB;"
        )
        assert rows["`batch`"] == f"`max_batch`, {defaults.max_batch} unless configured"
        assert rows["frames of a message"] == str(MAX_TENSORS + 2)
        assert rows["nesting of free-form fields"] == str(MAX_DEPTH)

    def test_message_types(self):
        rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", section("Message types"), re.M)
        assert {int(number): name for number, name in rows} == {int(kind): kind.name for kind in MessageType}

    def test_error_codes(self):
        rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (yes|no) \|", section("Error codes"), re.M)
        known = {
            cls.code: (name, "yes" if cls.retryable else "no")
            for name in errors.__all__
            if isinstance(cls := getattr(errors, name), type)
        }
        assert {int(code): (name, retry) for code, name, retry in rows} == known

    def test_dtypes(self):
        rows = re.findall(r"^\| (\d+) \| (\w+) \| (\d) \|", section("Element types"), re.M)
        assert {(int(number), label, int(size)) for number, label, size in rows} == {
            (int(dtype), dtype.label, dtype.itemsize) for dtype in DType
        }

    def test_codecs(self):
        rows = re.findall(r"^\| `0x([0-9a-f]{2})` \| ([\w+-]+) \|", section("Codec ids"), re.M)
        assert {int(number, 16): label for number, label in rows} == {
            int(codec): codec.label for codec in Codec
        }

    @pytest.mark.parametrize(
        "struct_type",
        [getattr(m, name) for name in m.__all__ if name not in ("Header", "MessageType")],
    )
    def test_field_tables(self, struct_type):
        rows = re.findall(r"^\| `(\w+)` \|[^|]+\| ([^|]+) \|", section(f"`{struct_type.__name__}`"), re.M)
        assert [name for name, _ in rows] == [field.name for field in msgspec.structs.fields(struct_type)]
        optional = {name for name, presence in rows if presence.strip() != "required"}
        assert optional == {field.name for field in msgspec.structs.fields(struct_type) if not field.required}

    @pytest.mark.parametrize("name", ["announce", "infer", "result", "error", "ping-probe", "load"])
    def test_worked_bytes(self, name):
        (block,) = re.findall(rf"```hex {re.escape(name)}\n(.*?)```", DOC, re.S)
        frames = []
        for line in block.splitlines():
            if line.startswith("#"):
                frames.append(b"")
            else:
                frames[-1] += bytes.fromhex(line.partition("  #")[0])
        assert frames == read_vector(name)


def section(title):
    """The text under a heading, up to the next one."""
    (text,) = re.findall(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", DOC, re.M | re.S)
    return text


if __name__ == "__main__":
    # Adds the vectors that are missing; those that exist are never rewritten.
    for vector_name, vector_frames in MESSAGES.items():
        path = VECTORS / f"{vector_name}.v1.bin"
        if not path.exists():
            path.write_bytes(to_vector(vector_frames))
