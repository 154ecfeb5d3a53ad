"""Constraints: who is taken out and why, and errors that name what would be possible."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec import Codec, Form, Stage
from shared.errors import PlanError
from shared.graph.ir import Graph
from shared.plan.constraints import Constraints, constrain, keeps_input
from shared.plan.gate import Fidelity, Gate, GateKey
from shared.plan.profile import Profile
from shared.plan.rows import LOSSLESS, Rows, build_rows
from shared.tensor import DType, SymbolicSpec
from tests.shared.plan.builders import chain, dag, networks, profile_of

Network = tuple[Graph, Profile, tuple[float, ...]]
GRAPH = chain([150_528, 400_000, 100_000, 20_000, 1000])
ROWS = build_rows(GRAPH, profile_of(GRAPH, [20.0, 30.0, 25.0, 15.0]), (2.0, 3.0, 2.5, 1.5), tuple(Codec))


def gate_of(agreements: dict[int, dict[Form, float]]) -> Gate:
    """By cut index and form."""
    measured = {
        GRAPH.cuts[cut].live: {form: Fidelity(value, 0.0) for form, value in forms.items()}
        for cut, forms in agreements.items()
    }
    return Gate(GateKey(GRAPH.digest, "test", "top1"), 10, measured)


def kept(constraints: Constraints, gate: Gate | None = None) -> set[object]:
    rows, excluded = constrain(ROWS, GRAPH, constraints, gate)
    assert len(rows) + len(excluded) == len(ROWS)
    assert all(each.reason for each in excluded)
    assert not rows.remote[rows.local]
    pairs = [(rows.cut_of(row).index, rows.codec_of(row)) for row in range(len(rows)) if row != rows.local]
    return set(pairs)


def test_without_constraints_every_row_stays() -> None:
    assert len(kept(Constraints())) == len(ROWS) - 1


def test_only_allowed_codecs_stay() -> None:
    pairs = kept(Constraints(codecs=(Codec.FLOAT32, Codec.UINT8)))
    assert pairs == {(0, Codec.FLOAT32)} | {
        (cut, codec) for cut in (1, 2, 3) for codec in (Codec.FLOAT32, Codec.UINT8)
    }


def test_a_pair_below_the_agreement_or_never_measured_is_out() -> None:
    gate = gate_of({1: {Form.INT4: 0.95, Form.UINT8: 0.99}, 2: {Form.INT4: 1.0}, 3: {}})
    pairs = kept(Constraints(min_agreement=0.99), gate)
    exact = {(cut, codec) for cut in range(4) for codec in LOSSLESS}
    uint8 = {Codec.UINT8, Codec.UINT8_LZ4, Codec.UINT8_ZSTD}
    int4 = {Codec.INT4, Codec.INT4_LZ4, Codec.INT4_ZSTD}
    assert pairs == exact | {(1, codec) for codec in uint8} | {(2, codec) for codec in int4}
    reasons = {each.reason for each in constrain(ROWS, GRAPH, Constraints(), gate)[1]}
    assert reasons == {
        "min_agreement: 0.950 is below 0.990",
        "not judged yet: unlikely to win, so an agent judges it while nobody waits",
    }


def mixed() -> tuple[Graph, Rows]:
    """A cut of a small tensor of bytes, which lz4 squeezes for nothing, and a large one of floats."""
    graph = dag([[0], [0, 1], [2]], [1000, 50_000, 10, 5], [3], DType.UINT8)
    profile = profile_of(graph, [5.0, 5.0, 5.0])
    small = profile.payloads[0]
    for codec in small:
        if codec.stage is Stage.LZ4:
            small[codec] = small[codec.plain]._replace(payload_bytes=100.0)  # type: ignore[index]
    return graph, build_rows(graph, profile, (1.0, 1.0, 1.0), tuple(Codec))


def mixes_of(rows: Rows) -> set[tuple[Codec, ...]]:
    return {rows.codecs_of(row) for row in range(len(rows)) if rows.mix[row] >= 0}


def test_a_mix_needs_every_lossy_form_in_it_to_pass() -> None:
    graph, rows = mixed()
    cut = graph.cuts[1]
    forms = {form for mix in mixes_of(rows) for form in {codec.form for codec in mix}}
    assert {Form.INT4, Form.UINT8, Form.EXACT} <= forms
    gate = Gate(
        GateKey(graph.digest, "test", "top1"),
        10,
        {cut.live: {Form.HALF: Fidelity(1.0, 0.0), Form.UINT8: Fidelity(0.995, 0.1)}},
    )
    some, excluded = constrain(rows, graph, Constraints(), gate)
    expected = {mix for mix in mixes_of(rows) if all(codec.form is not Form.INT4 for codec in mix)}
    assert mixes_of(some) == expected
    out = {each.row for each in excluded}
    assert out == {
        row
        for row in range(len(rows))
        if any(codec.form is Form.INT4 for codec in rows.codecs_of(row))
        or (
            rows.cut_of(row).index == 2 and any(codec.form is not Form.EXACT for codec in rows.codecs_of(row))
        )
    }
    strict, _ = constrain(rows, graph, Constraints(min_agreement=0.999), gate)
    assert all({codec.form for codec in mix} <= {Form.EXACT, Form.HALF} for mix in mixes_of(strict))


def test_a_mix_needs_every_codec_in_it_to_be_allowed() -> None:
    graph, rows = mixed()
    some, _ = constrain(rows, graph, Constraints(codecs=(Codec.UINT8_ZSTD,)))
    assert mixes_of(some) == set()
    some, _ = constrain(rows, graph, Constraints(codecs=(Codec.UINT8_LZ4, Codec.UINT8)))
    assert mixes_of(some) == {(Codec.FLOAT32_LZ4, Codec.UINT8)}  # for bytes the same as uint8+lz4


def test_without_a_gate_no_agreement_is_asked_for() -> None:
    assert (1, Codec.INT4) in kept(Constraints(min_agreement=1.0))


@given(networks(), st.integers(1, 1_000_000))
@settings(max_examples=40, deadline=None)
def test_no_payload_exceeds_a_metered_link(network: Network, limit: int) -> None:
    graph, _, _ = network
    rows = build_rows(*network)
    some, excluded = constrain(rows, graph, Constraints(max_uplink_bytes=limit))
    assert some.largest_payload_bytes <= limit
    for each in excluded:
        assert "max_uplink_bytes" in each.reason
    assert len(some) == 1 + sum(
        rows.payload_bytes[row] <= limit for row in range(len(rows)) if rows.remote[row]
    )


def image_net(*shapes: tuple[int, ...]) -> Graph:
    """A chain from a uint8 NHWC image through tensors of these shapes."""
    graph = chain([1] * (len(shapes) + 2))
    all_shapes = [(32, 32, 3), *shapes, (10,)]
    for slot, shape in enumerate(all_shapes):
        dtype = DType.UINT8 if slot == 0 else DType.FLOAT32
        dims = ((1, 0), *((0, size) for size in shape))
        graph.values[slot] = SymbolicSpec(  # type: ignore[index]
            f"v{slot}", dtype, dims, tuple(range(len(dims)))
        )
    return graph


def test_the_input_stays_until_its_resolution_is_gone() -> None:
    graph = image_net((3, 32, 32), (64, 32, 32), (64, 16, 16), (400,))
    assert [keeps_input(graph, cut) for cut in graph.cuts] == [False, False, False, True, True, True]


def test_a_plane_of_another_shape_than_the_input_is_counted_generously() -> None:
    graph = image_net((64, 16, 15), (8, 16, 70))
    assert [keeps_input(graph, cut) for cut in graph.cuts] == [False, True, False, True]


def test_channels_last_counts_as_well() -> None:
    graph = image_net((32, 32, 8), (16, 16, 64))
    assert [keeps_input(graph, cut) for cut in graph.cuts][:3] == [False, False, True]


def test_a_skip_connection_of_the_input_keeps_every_cut_that_it_crosses_on_the_device() -> None:
    graph = dag([[0], [1], [0, 2]], [1000, 10, 5, 3], [3], DType.FLOAT32)
    assert [keeps_input(graph, cut) for cut in graph.cuts] == [False, False, False, True]


def test_input_never_leaves_takes_out_what_would_send_it() -> None:
    graph = image_net((3, 32, 32), (64, 16, 16), (400,))
    profile = profile_of(graph, [1.0] * 4)
    every = build_rows(graph, profile, (1.0,) * 4)
    rows, excluded = constrain(every, graph, Constraints(input_never_leaves=True))
    assert {rows.cut_of(row).index for row in range(len(rows))} == {2, 3, 4}
    assert {every.cut_of(each.row).index for each in excluded} == {0, 1}
    assert "input_never_leaves" in excluded[0].reason


def test_a_named_unit_stays_on_the_device() -> None:
    assert {cut for cut, _ in kept(Constraints(input_never_leaves="unit1"))} == {2, 3}  # type: ignore[misc]
    with pytest.raises(PlanError, match="'conv1', which is no unit of net; there are, for example: unit0"):
        constrain(ROWS, GRAPH, Constraints(input_never_leaves="conv1"))


def test_a_pinned_cut_leaves_its_rows_and_the_local_one() -> None:
    assert {cut for cut, _ in kept(Constraints(cut=2))} == {2}  # type: ignore[misc]
    assert kept(Constraints(cut=4)) == set()


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (Constraints(cut=9), "cut 9 is pinned, but net has cuts 0 to 4"),
        (
            Constraints(cut=0, input_never_leaves=True),
            r"cut 0 \(input\) is pinned, but input_never_leaves forbids it; the nearest possible is cut 2",
        ),
        (
            Constraints(cut=0, codecs=(Codec.UINT8,)),
            "none of the allowed codecs can be used there; possible are float32, float32.lz4, float32.zstd",
        ),
        (
            Constraints(cut=1, codecs=(Codec.INT4, Codec.UINT8), min_agreement=0.995),
            r"min_agreement 0.995 there; the nearest possible is 0.990",
        ),
        (
            Constraints(cut=1, codecs=(Codec.FLOAT32, Codec.UINT8), max_uplink_bytes=1000),
            "exceeds max_uplink_bytes 1000; the nearest possible is 400000",
        ),
    ],
)
def test_constraints_that_a_pinned_cut_cannot_keep_say_what_it_could(
    constraints: Constraints, message: str
) -> None:
    gate = gate_of({1: {Form.INT4: 0.9, Form.UINT8: 0.99}})
    with pytest.raises(PlanError, match=message):
        constrain(ROWS, GRAPH, constraints, gate)


def test_lossless_is_what_keeps_every_bit() -> None:
    assert {codec for codec in Codec if codec.label.startswith("float32")} == set(LOSSLESS)


def test_agreement_that_was_seen_but_not_shown_is_not_enough() -> None:
    half, eight = Fidelity(1.0, 0.0, 0.995, 1.0, 4), Fidelity(1.0, 0.1, 0.97, 1.0, 16)
    four = Fidelity(1.0, 0.2, 0.985, 1.0, 64)
    gate = Gate(
        GateKey(GRAPH.digest, "inputs 16", "top1"),
        16,
        {GRAPH.cuts[1].live: {Form.HALF: half, Form.UINT8: eight, Form.INT4: four}},
    )
    pairs = kept(Constraints(min_agreement=0.99), gate)
    assert (1, Codec.FLOAT16) in pairs
    assert (1, Codec.UINT8) not in pairs
    reasons = {each.reason for each in constrain(ROWS, GRAPH, Constraints(min_agreement=0.99), gate)[1]}
    few = "min_agreement: 1.000 on 16 inputs shows 0.9700 only, below 0.990"
    assert f"{few}; some 32 such inputs might show it" in reasons
    seen = "min_agreement: 1.000 on 64 inputs shows 0.9850 only, below 0.990"
    assert f"{seen}; some 1800 such inputs might show it" in reasons
