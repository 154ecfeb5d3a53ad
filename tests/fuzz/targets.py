"""What the fuzzer drives: every parser of bytes that come from elsewhere, one function per target.

A target takes any bytes and returns.  An exception that leaves it is a finding: each catches exactly the
errors that the parser promises, and checks what the parser promises of a success.  ``SEEDS`` gives every
target the inputs to start from.  Torch is imported by the targets that need it, when they are first used.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.local_wire import unpack_tree
from shared.config import AgentConfig, CloudConfig, load_config
from shared.errors import BundleError, CodecError, ConfigError, ProtocolError, SutureError, VersionError
from shared.tensor import DType, TensorSpec
from shared.wire import Message, MessageType, WireLimits, decode_message, error_from_reply, peek, restamp
from shared.wire.frame import FRAME0_BYTES, SUPPORTED_VERSIONS, Frame0
from shared.wire.messages import ErrorReply, LocalInfer, LocalResult, TensorHeader

__all__ = ["LIMITS", "SEEDS", "TARGETS", "frames_of", "joined"]

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors"
LIMITS = WireLimits(max_header_bytes=2**16, max_message_bytes=2**18, max_decoded_bytes=2**20)


def frames_of(data: bytes) -> list[bytes]:
    """Frames as the golden vectors keep them, each after its length in four bytes; the rest is the last."""
    frames, position = [], 0
    while position + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, position)
        frames.append(data[position + 4 : position + 4 + size])
        position += 4 + size
    return frames


def joined(frames: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)


def header(data: bytes) -> None:
    """Frame 0: unpack, peek and restamp."""
    seen = peek(data)
    try:
        frame0 = Frame0.unpack(data)
    except ProtocolError as error:
        another = seen is not None and not SUPPORTED_VERSIONS[0] <= seen[0] <= SUPPORTED_VERSIONS[1]
        _require(isinstance(error, VersionError) == another)
        return
    assert seen == (frame0.version, frame0.type, frame0.request_id)
    assert len(data) == FRAME0_BYTES
    assert frame0.pack() == data
    assert Frame0.unpack(restamp(data, request_id=7, budget_ms=0, model=1)).request_id == 7


def message(data: bytes) -> None:
    """A whole message: the typed header, its tensors, and the trees of the local messages."""
    try:
        parsed = decode_message(frames_of(data), LIMITS)
    except ProtocolError:
        return
    assert len(parsed.payloads) == parsed.frame0.tensor_count
    described = getattr(parsed.header, "tensors", None)
    if described is not None:
        decoded = sum(DType(tensor.dtype).itemsize * math.prod(tensor.shape) for tensor in described)
        assert decoded <= LIMITS.max_decoded_bytes
        assert [tensor.payload_bytes for tensor in described] == [view.nbytes for view in parsed.payloads]
    if isinstance(parsed.header, ErrorReply):
        assert isinstance(error_from_reply(parsed.header), SutureError)
    if isinstance(parsed.header, LocalInfer | LocalResult):
        json.dumps(_free_form(parsed), allow_nan=False)
        try:
            unpack_tree(parsed)
        except (CodecError, ProtocolError):
            return


def _require(kept: bool) -> None:
    if not kept:
        raise AssertionError("the error is not the one that is promised")


def _free_form(parsed: Message) -> list[Any]:
    if parsed.type is MessageType.LOCAL_INFER:
        return [parsed.header.tree, parsed.header.objective]
    return [parsed.header.tree, parsed.header.decision]


def payload(data: bytes) -> None:
    """A tensor header and its payload against a spec of 48 floats, and against the spec it claims."""
    from shared.codec import decode

    parts = frames_of(data)
    if len(parts) < 2:
        return
    try:
        claimed = msgspec.msgpack.decode(parts[0], type=TensorHeader)
    except msgspec.MsgspecError:
        return
    specs = [TensorSpec("t", DType.FLOAT32, (2, 3, 8), (0, 1, 2))]
    shape = tuple(claimed.shape)
    if claimed.dtype in set(DType) and math.prod(dim or 1 for dim in shape) <= 2**16:
        specs.append(TensorSpec("t", DType(claimed.dtype), shape, tuple(range(len(shape)))))
    for spec in specs:
        try:
            decoded = decode(claimed, parts[1], spec)
        except CodecError:
            continue
        assert tuple(decoded.shape) == spec.shape
        assert decoded.untyped_storage().nbytes() <= max(2 * spec.nbytes, 64)


def transform(data: bytes) -> None:
    """Segments of a map of 2 x 8 x 8 in one payload, by tables made here."""
    from shared.codec.transform import decode, unpack

    spec = TensorSpec("t", DType.FLOAT32, (1, 2, 8, 8), (0, 1, 2, 3))
    try:
        decoded = decode(unpack(data), _transform_tables(), spec)
    except CodecError:
        return
    assert tuple(decoded.tensor.shape) == spec.shape
    assert 1 <= decoded.segments <= decoded.of


def tables(data: bytes) -> None:
    """Bytes of tables as they are, and as places and values that damage good ones."""
    from shared.codec.transform import tables_from_bytes, tables_to_bytes

    damaged = bytearray(_transform_seeds("tables")[0])
    for place, value in zip(data[1::2], data[2::2], strict=False):
        damaged[(place * 256 + data[0]) * 7 % len(damaged)] = value
    for content in (data, bytes(damaged)):
        try:
            found = tables_from_bytes(content)
        except CodecError:
            continue
        assert tables_from_bytes(tables_to_bytes(found)).digest == found.digest


@functools.cache
def _transform_tables() -> Any:
    import torch

    from shared.codec.transform import Geometry, fit

    samples = torch.randn(16, 2, 8, 8, generator=torch.Generator().manual_seed(0)).cumsum(3)
    return fit(samples, geometry=Geometry((2, 8, 8), 0, (8, 8)))


def _transform_seeds(kind: str) -> list[bytes]:
    import torch

    from shared.codec.transform import encode, pack, tables_to_bytes

    if kind == "tables":
        return [tables_to_bytes(_transform_tables())]
    tensor = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(1)).cumsum(3)
    coded = [
        encode(scale * tensor, _transform_tables(), step, segments)
        for scale in (1.0, 20.0)
        for step in (0, 12, 24)
        for segments in (1, 4)
    ]
    return [pack(segments) for segments in coded if segments is not None]


def bundle(data: bytes) -> None:
    """The loader: bytes that begin with a brace are a graph.json, others choose damages to a good bundle."""
    from shared.graph import read_bundle

    with tempfile.TemporaryDirectory(dir=_scratch()) as name:
        root = Path(name)
        files = dict(_good_bundle())
        if data[:1] == b"{":
            files["graph.json"] = data
        else:
            _damage(files, data)
        for file, content in files.items():
            (root / file).write_bytes(content)
        try:
            read_bundle(root)
        except BundleError:
            return


def config(data: bytes) -> None:
    """A configuration file of either side; what follows a zero byte is the value of an override."""
    text, _, override = data.partition(b"\0")
    environ = {"SUTURE_CLOUD__GATEWAY": override.decode("utf-8", "replace")} if override else {}
    with tempfile.NamedTemporaryFile(dir=_scratch(), suffix=".yaml") as file:
        file.write(text)
        file.flush()
        for kind in (AgentConfig, CloudConfig):
            try:
                load_config(kind, file.name, environ)
            except ConfigError as error:
                _require(len(str(error)) < 100_000)


def _scratch() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@functools.cache
def _good_bundle() -> dict[str, bytes]:
    """A network of two layers as a bundle, made by hand so that no capture is needed."""
    import torch

    from shared.graph.bundle import save_bundle
    from tests.fuzz.small_bundle import small_network

    with tempfile.TemporaryDirectory() as name:
        save_bundle(small_network(), name, labels=["a", "b"], example=((torch.ones(1, 4),), {}))
        return {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}


_VALUES: tuple[Any, ...] = (
    0, -1, 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63), 0.5, 1e308, True, None, "", "x" * 70, "cpu", "cuda",
    [], {}, [[1, 0]], {"slot": 0}, {"slot": 2}, {"batch": [1, 0]}, {"batch": [2**39, 1]}, {"dtype": "int64"},
    {"float": "nan"}, "aten.view.default", "aten.reshape.default", "aten.repeat.default", "aten.full.default",
    "aten.embedding.default", "aten.split.Tensor", "aten.einsum.default", "aten.as_strided.default",
)  # fmt: skip


def _damage(files: dict[str, bytes], data: bytes) -> None:
    """The first byte chooses a file; pairs of bytes then choose a place in it and what to put there."""
    names = sorted(files)
    name = "graph.json" if not data or data[0] < 192 else names[data[0] % len(names)]
    if name.endswith(".json"):
        document = json.loads(files[name])
        for place, value in zip(data[1::2], data[2::2], strict=False):
            _replace(document, place * 37 + value, copy.deepcopy(_VALUES[value % len(_VALUES)]))
        files[name] = json.dumps(document).encode()
        return
    content = bytearray(files[name])
    for place, value in zip(data[1::2], data[2::2], strict=False):
        content[place * len(content) // 256] = value
    files[name] = bytes(content[: len(content) - (data[-1] if len(data) % 2 else 0)])


def _replace(document: Any, place: int, value: Any) -> None:
    """Put ``value`` at the place of that number, counted modulo how many there are."""
    places = list(_places(document))
    if not places:
        return
    holder, key = places[place % len(places)]
    if value == [] and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif value == {}:
        del holder[key]
    else:
        holder[key] = value


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    keys = document if isinstance(document, dict) else range(len(document))
    for key in list(keys):
        yield document, key
        if isinstance(document[key], dict | list):
            yield from _places(document[key])


def _vectors(kind: str) -> list[bytes]:
    payloads = kind == "payload"
    return [
        path.read_bytes()
        for path in sorted(VECTORS.glob("*.bin"))
        if path.name.startswith("payload-") is payloads
    ]


def _configs() -> list[bytes]:
    files = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))]
    return [*files, *(text + b"\0tcp://10.0.0.5:5555" for text in files)]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "header": header,
    "message": message,
    "payload": payload,
    "transform": transform,
    "tables": tables,
    "bundle": bundle,
    "config": config,
}

SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "header": lambda: [frames_of(vector)[0][:FRAME0_BYTES] for vector in _vectors("message")],
    "message": lambda: _vectors("message"),
    "payload": lambda: _vectors("payload"),
    "transform": lambda: _transform_seeds("transform"),
    "tables": lambda: [*_transform_seeds("tables"), b"", *(bytes([n, 1, 2, 3, n]) for n in range(9))],
    "bundle": lambda: [_good_bundle()["graph.json"], *(bytes([first, 9, 4]) for first in range(0, 256, 16))],
    "config": _configs,
}
