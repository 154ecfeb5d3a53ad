"""Latency, against the formula written out for one row at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.graph.ir import Graph
from shared.plan.latency import Conditions, latency_ms, stage_ms
from shared.plan.profile import Profile
from shared.plan.rows import build_rows
from shared.plan.stages import Stage
from tests.shared.plan.builders import CONDITIONS, chain, networks, profile_of

Network = tuple[Graph, Profile, tuple[float, ...]]


@given(networks(), CONDITIONS)
@settings(max_examples=60, deadline=None)
def test_latency_is_the_formula(network: Network, at: Conditions) -> None:
    rows = build_rows(*network)
    latency = latency_ms(rows, at)
    for row in range(len(rows)):
        expected = at.queue_ms + at.overhead_ms + rows.edge_ms[row] * at.device * at.batch
        if row != rows.local:
            expected += rows.encode_ms[row] * at.encode * at.batch
            expected += rows.payload_bytes[row] * at.batch * 8 / at.uplink_bps * 1000
            expected += at.rtt_ms + at.network_ms + at.wait_ms
            expected += rows.decode_ms[row] * at.decode * at.batch
            expected += rows.cloud_ms[row] * at.slowdown * at.cloud * at.batch
            expected += rows.column(Stage.RESULT_ENCODE)[row] * at.decode * at.batch
            expected += rows.result_bytes[row] * at.batch * 8 / at.downlink_bps * 1000
            expected += rows.column(Stage.RESULT_DECODE)[row] * at.encode * at.batch
        assert latency[row] == pytest.approx(expected, rel=1e-9)
        assert sum(stage_ms(rows, row, at).values()) == pytest.approx(expected, rel=1e-9)


@given(networks(), CONDITIONS, st.floats(1, 100))
@settings(max_examples=60, deadline=None)
def test_more_bandwidth_never_costs(network: Network, at: Conditions, factor: float) -> None:
    rows = build_rows(*network)
    faster = replace(at, uplink_bps=at.uplink_bps * factor)
    assert (latency_ms(rows, faster) <= latency_ms(rows, at) * (1 + 1e-9)).all()


@given(networks(), CONDITIONS)
@settings(max_examples=30, deadline=None)
def test_out_of_reach_only_the_device_is_left(network: Network, at: Conditions) -> None:
    rows = build_rows(*network)
    latency = latency_ms(rows, replace(at, reachable=False))
    assert np.isfinite(latency).nonzero()[0].tolist() == [rows.local]


def test_a_dead_uplink_costs_much_but_stays_a_number() -> None:
    graph = chain([1000, 20, 5])
    rows = build_rows(graph, profile_of(graph, [3.0, 4.0]), (1.0, 1.0))
    latency = latency_ms(rows, Conditions(uplink_bps=0.0, rtt_ms=1.0))
    assert np.isfinite(latency).all()
    assert latency.argmin() == rows.local


def test_stages_come_in_order_and_a_local_row_has_three() -> None:
    graph = chain([1000, 20, 5])
    rows = build_rows(graph, profile_of(graph, [3.0, 4.0]), (1.0, 1.0))
    stages = stage_ms(rows, rows.local, Conditions(1e6, 30.0, wait_ms=9.0, queue_ms=1.0, overhead_ms=0.5))
    assert list(stages) == list(Stage)
    assert {stage: ms for stage, ms in stages.items() if ms} == {
        Stage.QUEUE: 1.0,
        Stage.DEVICE: 7.0,
        Stage.OVERHEAD: 0.5,
    }
