"""The rows of a plan, against sums taken one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec import Codec
from shared.graph.ir import Graph
from shared.plan.latency import Conditions, latency_ms
from shared.plan.profile import CodecCost, Profile
from shared.plan.rows import FAITHFUL, LOSSLESS, PLAIN, build_rows, decode_scale
from shared.plan.stages import POSITION, Stage
from shared.tensor import DType
from tests.shared.plan.builders import MEASURED, chain, dag, networks, profile_of


@given(networks())
@settings(max_examples=60, deadline=None)
def test_every_row_is_the_sum_of_its_parts(network: tuple[Graph, Profile, tuple[float, ...]]) -> None:
    graph, profile, cloud = network
    rows = build_rows(graph, profile, cloud)
    seen = set()
    for row in range(len(rows)):
        cut, codec = rows.cut_of(row), rows.codec_of(row)
        codecs = rows.codecs_of(row)
        assert rows.edge_ms[row] == pytest.approx(sum(profile.unit_ms[unit] for unit in cut.edge_units))
        assert rows.cloud_ms[row] == pytest.approx(sum(cloud[unit] for unit in cut.cloud_units), abs=1e-9)
        costs = [profile.payloads[slot][each] for slot, each in zip(cut.live, codecs, strict=True)]
        assert rows.payload_bytes[row] == sum(cost.payload_bytes for cost in costs)
        assert rows.encode_ms[row] == pytest.approx(sum(cost.encode_ms for cost in costs))
        results = graph.output_slots_of(cut)
        assert rows.result_bytes[row] == sum(profile.payloads[slot][PLAIN].payload_bytes for slot in results)
        assert bool(rows.remote[row]) == bool(cut.cloud_units)
        assert rows.tensors[row] == len(cut.live)
        if rows.mix[row] < 0:
            seen.add((cut.index, codec))
            assert codecs == (codec,) * len(cut.live)
        else:
            assert codecs[max(range(len(codecs)), key=lambda each: nbytes_of(graph, cut.live[each]))] is codec
            assert rows.find(cut, *codecs) == row
    expected = {(len(graph.units), PLAIN)}
    for cut in graph.cuts[:-1]:
        floats = any(graph.values[slot].dtype.is_float for slot in cut.live)
        expected |= {(cut.index, codec) for codec in (FAITHFUL if floats else LOSSLESS)}
    assert seen == expected
    assert np.count_nonzero(rows.mix < 0) == len(expected)
    assert (np.diff(rows.cut) >= 0).all()


def nbytes_of(graph: Graph, slot: int) -> int:
    return graph.values[slot].at(1).nbytes


def with_random_costs(graph: Graph, profile: Profile, seed: int) -> Profile:
    """Ratios and rates that no two tensors share; what is not of floats is alike in every form."""
    random = np.random.default_rng(seed)
    payloads: dict[int, dict[Codec, CodecCost]] = {}
    for slot, costs in profile.payloads.items():
        payloads[slot] = {
            codec: CodecCost(*(np.array(cost) * random.uniform(0.2, 1.0, 3)).tolist())
            for codec, cost in costs.items()
        }
        if not graph.values[slot].dtype.is_float:
            lossless = payloads[slot]
            payloads[slot] = {codec: lossless[Codec.of(PLAIN.form, codec.stage)] for codec in costs}
    return replace(profile, payloads=payloads)


@given(
    networks(most_units=6),
    st.integers(0, 2**32),
    st.sets(st.sampled_from(MEASURED)),
    st.floats(1e4, 1e10),
)
@settings(max_examples=100, deadline=None)
def test_at_every_cut_some_row_has_the_best_codec_for_each_tensor(
    network: tuple[Graph, Profile, tuple[float, ...]], seed: int, codecs: set[Codec], uplink_bps: float
) -> None:
    graph, profile, cloud = network
    profile = with_random_costs(graph, profile, seed)
    menu = codecs | {PLAIN}
    rows = build_rows(graph, profile, cloud, tuple(codecs))
    at = Conditions(uplink_bps, 10.0)
    rates = np.array([8000.0 / uplink_bps, 1.0, decode_scale(np.array(profile.unit_ms), np.array(cloud))])
    latency = latency_ms(rows, at)
    for cut in graph.cuts[:-1]:
        there = np.flatnonzero(rows.cut == cut.index)
        plain = rows.find(cut, PLAIN)
        assert plain is not None
        best = saved = 0.0
        for slot in cut.live:
            alone = len(cut.live) == 1 and not graph.values[slot].dtype.is_float
            prices = {
                codec: float(np.array(profile.payloads[slot][codec]) @ rates)
                for codec in (menu & set(LOSSLESS) if alone else menu)
            }
            best += min(prices.values())
            saved += prices[PLAIN] - min(prices.values())
        assert latency[there].min() == pytest.approx(latency[plain] - saved, rel=1e-9, abs=1e-9)
        parts = rows.columns[[POSITION[stage] for stage in (Stage.UPLINK, Stage.ENCODE, Stage.DECODE)]]
        sent_ms = np.array([8000.0 / uplink_bps, 1.0, 1.0]) @ parts[:, there]
        assert sent_ms.min() == pytest.approx(best, rel=1e-9)


def test_a_mix_is_labelled_in_order_and_found_by_its_codecs() -> None:
    graph = dag([[0], [0, 1], [0, 1, 2], [3]], [1000, 50_000, 900, 10, 5], [4], DType.UINT8)
    profile = with_random_costs(graph, profile_of(graph, [5.0] * 4), 1)
    rows = build_rows(graph, profile, (1.0,) * 4, tuple(Codec))
    at_cut = [row for row in range(len(rows)) if rows.cut_of(row).index == 2]
    mixes = [row for row in at_cut if rows.mix[row] >= 0]
    assert at_cut[-len(mixes) :] == mixes
    labels = {rows.label_of(row) for row in at_cut}
    assert len(labels) == len(at_cut)
    for row in mixes:
        codecs = rows.codecs_of(row)
        assert len(set(codecs)) > 1
        assert rows.find(graph.cuts[2], *codecs) == row
        assert rows.codec_of(row) is codecs[1]  # of the largest
        first = codecs[0].label.replace("float32", "raw")
        expected = [first, codecs[1].label, codecs[2].label]
        if codecs[1] is codecs[2]:
            expected = [first, f"2x {codecs[1].label}"]
        assert rows.label_of(row) == ", ".join(expected)
    kept = rows.select(rows.mix >= 0)
    assert {kept.codecs_of(row) for row in range(len(kept)) if kept.cut_of(row).index == 2} == {
        rows.codecs_of(row) for row in mixes
    }
    assert rows.find(graph.cuts[2], Codec.INT4, Codec.FLOAT16_LZ4, Codec.UINT8) is None


def test_the_label_of_a_mix_of_many_tensors_is_short() -> None:
    count = 9
    sizes = [1000 + 500 * index for index in range(count + 1)]
    graph = dag(
        [*([0] for _ in range(count)), list(range(1, count + 1))], [*sizes, 1], [count + 1], DType.UINT8
    )
    profile = with_random_costs(graph, profile_of(graph, [1.0] * (count + 1)), 2)
    rows = build_rows(graph, profile, (0.1,) * (count + 1), tuple(Codec))
    labels = [rows.label_of(row) for row in range(len(rows)) if rows.mix[row] >= 0]
    assert max(len(label) for label in labels) <= 60
    assert any(label.startswith("mixed: ") and label.endswith(f"for {count} tensors") for label in labels)


def test_without_a_cloud_only_the_local_row_is_left() -> None:
    graph = chain([10, 20, 5])
    rows = build_rows(graph, profile_of(graph, [3.0, 4.0]), ())
    assert len(rows) == 1
    assert rows.local == 0
    assert rows.cut_of(0) is graph.cuts[-1]
    assert rows.edge_ms[0] == 7.0
    assert not rows.remote.any()


def test_an_integer_input_has_the_lossless_codecs_only_and_finds_them_by_any_name() -> None:
    graph = chain([1000, 20, 5], DType.UINT8)
    rows = build_rows(graph, profile_of(graph, [3.0, 4.0]), (1.0, 1.0))
    at_input = [rows.codec_of(row) for row in np.flatnonzero(rows.cut == 0)]
    assert at_input == list(LOSSLESS)
    found = rows.find(graph.cuts[0], Codec.UINT8_ZSTD)
    assert found is not None
    assert rows.codec_of(found) is Codec.FLOAT32_ZSTD
    assert rows.find(graph.cuts[2], Codec.UINT8) == rows.local
    assert rows.find(graph.cuts[1], Codec.INT4) is None


def test_a_float_input_has_the_whole_menu() -> None:
    graph = chain([1000, 20, 5], DType.FLOAT32)
    rows = build_rows(graph, profile_of(graph, [3.0, 4.0]), (1.0, 1.0), tuple(Codec))
    assert np.count_nonzero(rows.cut == 0) == len(MEASURED)


def test_a_label_says_raw_where_no_codec_changes_what_is_sent() -> None:
    graph = chain([1000, 20, 5])
    rows = build_rows(graph, profile_of(graph, [3.0, 4.0]), (1.0, 1.0), tuple(Codec))
    for some in (rows, rows.select(rows.remote)):
        at = [
            {some.label_of(row) for row in range(len(some)) if some.cut_of(row).index == cut}
            for cut in range(3)
        ]
        assert at == [{"raw", "raw+lz4", "raw+zstd"}, {codec.label for codec in MEASURED}, {""}]


def test_what_was_not_measured_is_no_candidate() -> None:
    graph = chain([1000, 20, 5])
    profile = profile_of(graph, [3.0, 4.0])
    del profile.payloads[1][Codec.FLOAT16]  # type: ignore[attr-defined]
    rows = build_rows(graph, profile, (1.0, 1.0))
    assert rows.find(graph.cuts[1], Codec.FLOAT16) is None
    assert rows.find(graph.cuts[1], Codec.UINT8) is not None


def test_the_clouds_decoding_is_taken_to_be_as_much_faster_as_its_units() -> None:
    graph = chain([1000, 2_000_000, 5])
    profile = profile_of(graph, [30.0, 40.0])
    rows = build_rows(graph, profile, (10.0, 25.0))
    row = rows.find(graph.cuts[1], Codec.UINT8_ZSTD)
    assert row is not None
    local_ms = profile.payloads[1][Codec.UINT8_ZSTD].decode_ms
    assert rows.decode_ms[row] == pytest.approx(local_ms * 35 / 70)


def test_a_set_cut_takes_its_units_and_only_the_results_that_the_cloud_computes() -> None:
    #  0 -> unit0 -> 1 -> unit2 -> 3 (output)
    #   \-> unit1 -> 2 (output)
    graph = dag([[0], [0], [1]], [100, 50, 20, 10], [3, 2], DType.FLOAT32)
    profile = profile_of(graph, [1.0, 2.0, 4.0])
    set_cut = graph.set_cut([1])
    rows = build_rows(graph, profile, (0.5, 0.25, 0.125), [PLAIN], cuts=(*graph.cuts, set_cut))
    row = rows.find(set_cut, PLAIN)
    assert row is not None
    assert rows.cut_of(row) == set_cut
    assert rows.edge_ms[row] == 2.0
    assert rows.cloud_ms[row] == 0.625
    assert rows.payload_bytes[row] == 400
    assert rows.result_bytes[row] == 40
    assert rows.remote[row]
    assert rows.cut_of(rows.local) == graph.cuts[3]


def test_selecting_keeps_the_local_row_in_its_place() -> None:
    graph = chain([1000, 20, 5])
    rows = build_rows(graph, profile_of(graph, [3.0, 4.0]), (1.0, 1.0))
    some = rows.select(rows.codec == int(Codec.UINT8))
    assert [some.codec_of(row) for row in range(len(some))] == [Codec.UINT8, PLAIN]
    assert some.local == 1
    assert some.edge_ms.tolist() == [3.0, 7.0]
    assert some.largest_payload_bytes == 20
    assert len(rows.select(np.zeros(len(rows), dtype=bool))) == 1


def test_unit_times_of_another_network_are_refused() -> None:
    graph = chain([1000, 20, 5])
    with pytest.raises(ValueError, match="3 units, the network 2"):
        build_rows(graph, profile_of(graph, [3.0, 4.0, 5.0]), ())
    with pytest.raises(ValueError, match="card has 1 unit times"):
        build_rows(graph, profile_of(graph, [3.0, 4.0]), (1.0,))


def test_no_column_is_negative_or_unknown() -> None:
    graph = chain([1000, 20, 5])
    rows = build_rows(graph, profile_of(graph, [3.0, 4.0]), (0.1, 0.2))
    assert np.isfinite(rows.columns).all()
    assert (rows.columns >= 0).all()
    assert rows.column(Stage.CLOUD)[rows.local] == 0
