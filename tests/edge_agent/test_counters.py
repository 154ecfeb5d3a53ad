"""Counting answers: each once, and what is shown of them."""

from __future__ import annotations

import json

import pytest

from edge_agent.counters import ModelCounters
from edge_agent.result import Result, Where
from shared.errors import DeadlineError


def answer(
    latency_ms: float = 10.0,
    where: Where = Where.DEVICE,
    cut: int = 5,
    codec: str = "",
    sent: int = 0,
    fallback: str | None = None,
    **stages: float,
) -> Result:
    return Result(
        None, where, cut, f"unit {cut}", codec, sent, latency_ms, stages, {}, fallback, 2.5, "model"
    )


def test_before_the_first_request_there_is_nothing_to_show() -> None:
    counters = ModelCounters()
    assert counters.requests == 0
    assert counters.latency_ms(0.5) is None
    assert counters.stages_ms() == {}


def test_every_request_is_counted_once_whatever_became_of_it() -> None:
    counters = ModelCounters()
    counters.on_result(answer())
    counters.on_result(answer(where=Where.SPLIT, cut=2, codec="uint8", sent=700))
    counters.on_result(answer(where=Where.DEVICE_FALLBACK, cut=2, codec="uint8", sent=700, fallback="late"))
    counters.on_error(DeadlineError("too late"))
    shown = counters.as_dict()
    assert shown["requests"] == 4
    assert shown["where"] == {"device": 1, "split": 1, "cloud": 0, "device-fallback": 1}
    assert shown["fallbacks"] == {"late": 1}
    assert shown["errors"] == {"DeadlineError": 1}
    assert shown["uplink_bytes"] == 1400
    assert shown["energy_mj"] == pytest.approx(7.5)
    assert shown["latency_sum_ms"] == pytest.approx(30.0)
    json.dumps(shown)


def test_every_answer_is_in_the_bucket_whose_bound_it_keeps() -> None:
    counters = ModelCounters()
    for latency_ms in (0.2, 1.0, 1.1, 5000.0, 5000.1, 1e9):
        counters.on_result(answer(latency_ms))
    assert counters.buckets[:2] == [2, 1]
    assert counters.buckets[-2:] == [1, 2]
    assert sum(counters.buckets) == 6


def test_a_switch_is_another_cut_or_codec_than_the_answer_before() -> None:
    counters = ModelCounters()
    for cut, codec in [(5, ""), (5, ""), (2, "uint8"), (2, "uint8+zstd"), (2, "uint8+zstd"), (5, "")]:
        counters.on_result(answer(cut=cut, codec=codec))
    assert counters.switches == 3


def test_latencies_and_stages_are_those_of_the_last_answers() -> None:
    counters = ModelCounters()
    for _ in range(1000):
        counters.on_result(answer(9999.0, device=9999.0))
    for latency_ms in range(1, 257):
        counters.on_result(answer(float(latency_ms), device=float(latency_ms)))
    assert counters.latency_ms(0.5) == 129.0
    assert counters.latency_ms(0.95) == 244.0
    assert counters.latency_ms(1.0) == 256.0
    assert counters.stages_ms() == {"device": pytest.approx(128.5)}


def test_a_stage_that_some_answers_had_not_is_averaged_over_all() -> None:
    counters = ModelCounters()
    counters.on_result(answer(device=4.0))
    counters.on_result(answer(device=2.0, uplink=8.0))
    assert counters.stages_ms() == {"device": 3.0, "uplink": 4.0}
