"""Small networks as plain graphs, and profiles and conditions for them, for tests of plans."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from shared.codec import Codec, Form
from shared.graph.ir import Graph, Op, Ref, Unit
from shared.graph.tree import Tree
from shared.plan.latency import Conditions
from shared.plan.profile import CodecCost, Profile, ProfileKey
from shared.tensor import DType, SymbolicSpec

DIGEST = "sha256:" + "5" * 64


def spec(name: str, elements: int, dtype: DType = DType.FLOAT32) -> SymbolicSpec:
    return SymbolicSpec(name, dtype, ((1, 0), (0, elements)), (0, 1))


def dag(
    reads: Sequence[Sequence[int]], sizes: Sequence[int], outputs: Sequence[int], input_dtype: DType
) -> Graph:
    """Unit ``k`` reads the slots ``reads[k]`` and writes slot ``k + 1``; slot 0 is the input."""
    units = tuple(
        Unit(
            index,
            f"unit{index}",
            "relu",
            (Op("aten.cat.default", (tuple(Ref(slot) for slot in slots),), (), (index + 1,)),),
            tuple(slots),
            (index + 1,),
        )
        for index, slots in enumerate(reads)
    )
    values = {0: spec("image", sizes[0], input_dtype)}
    values |= {index + 1: spec(f"value{index + 1}", size) for index, size in enumerate(sizes[1:])}
    return Graph(
        name="net",
        inputs=(0,),
        outputs=tuple(outputs),
        input_tree=Tree("leaf"),
        output_tree=Tree("tuple", (Tree("leaf"),) * len(outputs)),
        units=units,
        preamble=(),
        values=values,
        weights={},
        dynamic_batch=True,
        captured_batch=2,
        digest=DIGEST,
    )


def chain(sizes: Sequence[int], input_dtype: DType = DType.UINT8) -> Graph:
    """``sizes[0]`` elements in, then one unit per further size."""
    return dag([[index] for index in range(len(sizes) - 1)], sizes, [len(sizes) - 1], input_dtype)


_RATIO = {
    Codec.FLOAT32: (4.0, 0.1),
    Codec.FLOAT32_LZ4: (2.5, 1.6),
    Codec.FLOAT32_ZSTD: (2.2, 4.0),
    Codec.FLOAT16: (2.0, 0.2),
    Codec.FLOAT16_LZ4: (1.6, 1.5),
    Codec.FLOAT16_ZSTD: (1.4, 3.0),
    Codec.UINT8: (1.0, 0.6),
    Codec.UINT8_LZ4: (0.7, 1.1),
    Codec.UINT8_ZSTD: (0.5, 1.6),
    Codec.INT4: (0.5, 0.9),
    Codec.INT4_LZ4: (0.4, 1.2),
    Codec.INT4_ZSTD: (0.3, 1.4),
}
MEASURED = tuple(_RATIO)
"""What there is without the transform's tables."""


def profile_of(graph: Graph, unit_ms: Sequence[float]) -> Profile:
    """Payloads by fixed ratios; ms per million elements as in ``_RATIO``."""
    payloads = {}
    for slot, value in graph.values.items():
        one = value.at(1)
        payloads[slot] = {}
        for codec in MEASURED:
            form = codec.form if one.dtype.is_float else Form.EXACT
            ratio, ms = _RATIO[Codec.of(form, codec.stage)]
            payloads[slot][codec] = CodecCost(
                round(one.numel * ratio * one.dtype.itemsize / 4), one.numel * ms / 1e6, one.numel * ms / 2e6
            )
    return Profile(
        key=ProfileKey(DIGEST, "cpu", 1, "2.13.0", "test"),
        unit_ms=tuple(unit_ms),
        unit_spread_ms=tuple(0.05 * ms for ms in unit_ms),
        whole_ms=sum(unit_ms),
        whole_spread_ms=0.1,
        repeats=5,
        payloads=payloads,
    )


CONDITIONS = st.builds(
    Conditions,
    uplink_bps=st.floats(1e4, 1e9),
    rtt_ms=st.floats(0.1, 500),
    wait_ms=st.floats(0, 500),
    slowdown=st.floats(0.2, 20),
    downlink_bps=st.floats(1e5, 1e9),
    device=st.floats(0.2, 10),
    encode=st.floats(0.2, 10),
    decode=st.floats(0.2, 10),
    cloud=st.floats(0.2, 10),
    network_ms=st.floats(0, 20),
    queue_ms=st.floats(0, 50),
    overhead_ms=st.floats(0, 5),
    batch=st.integers(1, 8),
)


@st.composite
def networks(draw: st.DrawFn, most_units: int = 8) -> tuple[Graph, Profile, tuple[float, ...]]:
    """A random DAG, its device profile and the cloud's unit times."""
    count = draw(st.integers(1, most_units))
    sizes = draw(st.lists(st.integers(1, 200_000), min_size=count + 1, max_size=count + 1))
    reads = [
        sorted(
            draw(st.sets(st.integers(max(0, index - 3), index), min_size=1, max_size=3)) | {max(0, index - 2)}
        )
        for index in range(count)
    ]
    used = {slot for slots in reads for slot in slots}
    outputs = [slot for slot in range(1, count + 1) if slot not in used]
    graph = dag(reads, sizes, outputs, draw(st.sampled_from([DType.UINT8, DType.FLOAT32])))
    device = draw(st.lists(st.floats(0.001, 200), min_size=count, max_size=count))
    cloud = draw(st.lists(st.floats(0.001, 50), min_size=count, max_size=count))
    return graph, profile_of(graph, device), tuple(cloud)
