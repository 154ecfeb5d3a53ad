"""Explanations, against plain loops, the exact segments and the controller's own choice."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from shared.codec import Codec, Form
from shared.errors import PlanError
from shared.graph.ir import Graph
from shared.plan.constraints import Constraints
from shared.plan.energy import Power, energy_mj
from shared.plan.explain import QUANTITIES, Explanation, Switch, explain, objective_name, pose
from shared.plan.gate import Fidelity, Gate, GateKey
from shared.plan.latency import Conditions, latency_ms
from shared.plan.objective import Energy, Latency, Throughput, Weighted
from shared.plan.profile import Profile
from shared.plan.radio import LinkType
from shared.plan.rows import Rows, build_rows
from shared.plan.solve import choose, uplink_segments
from tests.shared.plan.builders import CONDITIONS, chain, networks, profile_of

AT = Conditions(uplink_bps=5e6, rtt_ms=10.0, wait_ms=2.0, slowdown=1.0, downlink_bps=5e6)
POWER = Power(busy_w=5.0, idle_w=1.0, link=LinkType.WIFI)


def small() -> tuple[Graph, Rows]:
    """A chain whose tensors shrink, on a device ten times slower than the cloud."""
    graph = chain([60_000, 40_000, 8_000, 500, 10])
    profile = profile_of(graph, [20.0, 40.0, 60.0, 30.0])
    return graph, build_rows(graph, profile, (2.0, 4.0, 6.0, 3.0), tuple(Codec))


def switch_of(explanation: Explanation, quantity: str, direction: str) -> Switch | None:
    found = [
        each for each in explanation.switches if (each.quantity, each.direction) == (quantity, direction)
    ]
    assert len(found) <= 1
    return found[0] if found else None


def test_the_table_holds_every_candidate_with_the_stages_of_its_latency() -> None:
    graph, rows = small()
    explanation = explain(rows, graph, AT, power=POWER)
    latency = latency_ms(rows, AT)
    energy = energy_mj(rows, AT, POWER)
    assert [each.row for each in explanation.candidates] == list(range(len(rows)))
    for each in explanation.candidates:
        assert each.latency_ms == pytest.approx(latency[each.row])
        assert sum(each.stages.values()) == pytest.approx(each.latency_ms)
        assert each.cost == pytest.approx(each.latency_ms)
        assert each.energy_mj == pytest.approx(energy[each.row])
        assert each.excluded == ""
        assert each.codec == rows.label_of(each.row)
    places = [each.place for each in explanation.candidates]
    assert places[0] == "cloud"
    assert places[-1] == "device"
    assert places.count("device") == 1
    assert "split" in places


@given(networks(), CONDITIONS)
@settings(max_examples=40, deadline=None)
def test_winner_runner_up_and_margin_are_those_of_the_solver(
    network: tuple[Graph, Profile, tuple[float, ...]], at: Conditions
) -> None:
    rows = build_rows(*network)
    explanation = explain(rows, network[0], at)
    choice = choose(Latency().score(rows, at))
    assert (explanation.winner, explanation.runner_up) == (choice.row, choice.runner_up)
    assert explanation.margin == pytest.approx(choice.margin)


@given(networks(), CONDITIONS)
@settings(max_examples=40, deadline=None)
def test_the_next_uplink_switches_are_the_ends_of_the_winners_segment(
    network: tuple[Graph, Profile, tuple[float, ...]], at: Conditions
) -> None:
    rows = build_rows(*network)
    explanation = explain(rows, network[0], at)
    segments = uplink_segments(rows, at)
    index = next((i for i, each in enumerate(segments) if each.row == explanation.winner), None)
    if index is None:  # another row of the same cost stands for it
        return
    segment = segments[index]
    for direction, edge in (("below", segment.from_bps), ("above", segment.to_bps)):
        found = switch_of(explanation, "uplink_mbps", direction)
        if 1e4 < edge < 1e10:
            assert found is not None
            assert found.value * 1e6 == pytest.approx(edge, rel=1e-3)


@given(networks(), CONDITIONS)
@settings(max_examples=40, deadline=None)
def test_beyond_a_switch_its_row_wins_and_before_it_the_winner(
    network: tuple[Graph, Profile, tuple[float, ...]], at: Conditions
) -> None:
    rows = build_rows(*network)
    explanation = explain(rows, network[0], at)
    for switch in explanation.switches:
        read, change = QUANTITIES[switch.quantity]
        assert (switch.value < read(at)) == (switch.direction == "below")
        beyond = latency_ms(rows, change(at, switch.value))
        assert beyond[switch.row] == pytest.approx(beyond.min(), rel=1e-9)
        assert switch.row != explanation.winner
        between = (switch.value + read(at)) / 2
        there = latency_ms(rows, change(at, between))
        assert there[explanation.winner] == pytest.approx(there.min(), rel=1e-9)


def test_a_slower_uplink_leads_deeper_and_a_busier_cloud_home() -> None:
    graph, rows = small()
    explanation = explain(rows, graph, AT)
    assert explanation.candidates[explanation.winner].cut == 1
    slower = switch_of(explanation, "uplink_mbps", "below")
    busier = switch_of(explanation, "wait_ms", "above")
    assert slower is not None
    assert explanation.candidates[slower.row].cut == 2
    assert busier is not None
    assert explanation.candidates[busier.row].place == "device"
    # All rows that send wait for the same time, so the distance to the local row is the answer.
    local = explanation.candidates[rows.local]
    gap = local.latency_ms - explanation.candidates[explanation.winner].latency_ms
    assert busier.value - AT.wait_ms == pytest.approx(gap, rel=1e-9)
    assert switch_of(explanation, "wait_ms", "below") is None


def test_constraints_are_named_for_every_row_that_they_exclude() -> None:
    graph, rows = small()
    lossless = (Codec.FLOAT32, Codec.FLOAT32_ZSTD)
    explanation = explain(rows, graph, AT, constraints=Constraints(codecs=lossless, input_never_leaves=True))
    for each in explanation.candidates:
        if each.row == rows.local:
            assert each.excluded == ""
        elif each.cut == 0:
            assert each.excluded.startswith("input_never_leaves: ")
        elif rows.codec_of(each.row) not in lossless:
            assert each.excluded.startswith("codecs: ")
        else:
            assert each.excluded == ""
        assert (each.cost is None) == bool(each.excluded)
    assert sum(explanation.exclusions.values()) == sum(bool(each.excluded) for each in explanation.candidates)
    assert explanation.exclusions["input_never_leaves"] == np.count_nonzero(rows.cut == 0)
    assert explanation.candidates[explanation.winner].cut > 0
    assert all(not explanation.candidates[row].excluded for row in explanation.hull)
    assert all(not explanation.candidates[switch.row].excluded for switch in explanation.switches)


def test_the_gate_is_in_the_table() -> None:
    graph, rows = small()
    measured = {
        cut.live: {
            Form.HALF: Fidelity(1.0, 1e-4),
            Form.UINT8: Fidelity(0.995, 0.01),
            Form.INT4: Fidelity(0.8, 0.2),
        }
        for cut in graph.cuts[1:-1]
    }
    gate = Gate(GateKey("sha256:1", "example", "top1"), 16, measured)
    explanation = explain(rows, graph, AT, gate=gate, constraints=Constraints(min_agreement=0.99))
    for each in explanation.candidates:
        form = rows.codec_of(each.row).form
        expected = {Form.EXACT: 1.0, Form.HALF: 1.0, Form.UINT8: 0.995, Form.INT4: 0.8}[form]
        assert each.agreement == expected
        assert each.excluded.startswith("min_agreement: 0.800") == (form is Form.INT4)
        assert each.inputs_needed is None  # all of them were asked


def test_where_inputs_are_too_few_it_is_said_how_many_would_do() -> None:
    graph, rows = small()
    few = {form: Fidelity(1.0, 0.01, 0.98, 1.0, 16) for form in (Form.HALF, Form.UINT8, Form.INT4)}
    gate = Gate(GateKey("sha256:1", "example", "top1"), 16, {cut.live: few for cut in graph.cuts[1:-1]})
    for constraints in (Constraints(min_agreement=0.99), Constraints(min_agreement=0.9)):
        explanation = explain(rows, graph, AT, gate=gate, constraints=constraints)
        lossy = [each for each in explanation.candidates if each.agreement_shown == 0.98]
        assert lossy
        for each in lossy:
            if constraints.min_agreement == 0.99:
                assert each.inputs_needed is not None
                assert each.inputs_needed > 16
                assert f"some {each.inputs_needed} such inputs might show it" in each.excluded
            else:
                assert (each.inputs_needed, each.excluded) == (None, "")


def test_a_pinned_cut_wins_over_a_cheaper_local_row_while_the_cloud_is_there() -> None:
    graph, rows = small()
    slow = replace(AT, uplink_bps=1e4)
    assert explain(rows, graph, slow).winner == rows.local
    explanation = explain(rows, graph, slow, constraints=Constraints(cut=2))
    assert explanation.candidates[explanation.winner].cut == 2
    assert explanation.candidates[rows.local].excluded.startswith("cut: ")
    alone = explain(rows, graph, replace(slow, reachable=False), constraints=Constraints(cut=2))
    assert alone.winner == rows.local
    with pytest.raises(PlanError, match="pinned"):
        explain(rows, graph, AT, constraints=Constraints(cut=2, max_uplink_bytes=1))


def test_without_a_cloud_the_device_wins_and_nothing_is_said_to_change_that() -> None:
    graph, rows = small()
    explanation = explain(rows, graph, replace(AT, reachable=False))
    assert explanation.winner == rows.local
    assert explanation.runner_up is None
    assert explanation.switches == ()
    assert explanation.exclusions == {"unreachable": len(rows) - 1}
    assert explanation.hull == (rows.local,)
    json.dumps(explanation.as_dict(), allow_nan=False)


def test_a_message_limit_bars_rows_by_their_payload_at_this_batch() -> None:
    graph, rows = small()
    explanation = explain(rows, graph, replace(AT, batch=2), largest_message_bytes=20_000.0)
    for each in explanation.candidates:
        assert each.payload_bytes == 2 * rows.payload_bytes[each.row]
        assert each.excluded.startswith("largest message: ") == (each.payload_bytes > 20_000)
    assert not explanation.candidates[explanation.winner].excluded


def test_limits_of_the_objective_are_named() -> None:
    graph, rows = small()
    fast = float(latency_ms(rows, AT).min())
    within = explain(rows, graph, AT, objective=Energy(POWER, deadline_ms=fast * 1.2), power=POWER)
    assert within.unit == "mJ"
    assert within.objective == f"energy within {fast * 1.2:g} ms"
    for each in within.candidates:
        assert each.excluded.startswith("deadline_ms: ") == (each.latency_ms > fast * 1.2)
    winner = within.candidates[within.winner]
    assert winner.cost == winner.energy_mj
    least = float(energy_mj(rows, AT, POWER).min())
    frugal = explain(rows, graph, AT, objective=Latency(least * 1.1, POWER), power=POWER)
    for each in frugal.candidates:
        assert each.energy_mj is not None
        assert each.excluded.startswith("energy_mj: ") == (each.energy_mj > least * 1.1)
    impossible = explain(rows, graph, AT, objective=Energy(POWER, deadline_ms=0.1))
    assert "nearest possible" in impossible.unmet
    stream = explain(rows, graph, AT, objective=Throughput(10.0))
    assert "latency at 10 requests/s" in stream.exclusions


def test_objectives_have_names() -> None:
    assert objective_name(Latency()) == "latency"
    assert objective_name(Energy(POWER)) == "energy"
    assert objective_name(Throughput()) == "throughput"
    assert objective_name(Weighted(per_ms=1.0, per_uplink_kb=0.5)) == "weighted"


def test_switches_of_other_objectives_are_where_another_row_wins() -> None:
    graph, rows = small()
    objective = Energy(POWER)
    problem, _ = pose(rows, graph, objective, Constraints())
    explanation = explain(rows, graph, AT, objective=objective)
    assert explanation.switches
    for switch in explanation.switches:
        _, change = QUANTITIES[switch.quantity]
        nudge = 1 - 1e-9 if switch.direction == "below" else 1 + 1e-9
        assert problem.winner(change(AT, switch.value * nudge)) == switch.row
        assert problem.winner(change(AT, switch.value / nudge**2)) == explanation.winner


def test_an_explanation_is_plain_json() -> None:
    graph, rows = small()
    values = json.loads(json.dumps(explain(rows, graph, AT, power=POWER).as_dict(), allow_nan=False))
    assert len(values["candidates"]) == len(rows)
    assert values["candidates"][values["winner"]]["stages"]["uplink"] > 0
    assert values["conditions"]["uplink_bps"] == 5e6
    assert math.isfinite(values["margin"])
