from __future__ import annotations

import pytest

from edge_agent.result import Result, Where, breakdown
from shared.plan.stages import Stage


def test_a_breakdown_sums_to_the_latency_and_leaves_out_what_did_not_happen() -> None:
    kept = breakdown(10.0, {Stage.QUEUE: 0.0, Stage.DEVICE: 4.0, Stage.UPLINK: 3.5})
    assert kept == {"device": 4.0, "uplink": 3.5, "overhead": 2.5}
    assert all(type(name) is str for name in kept)


def test_a_caller_further_away_sees_the_same_answer_later() -> None:
    result = Result(
        outputs=1,
        where=Where.SPLIT,
        cut_index=2,
        cut="block",
        codec="uint8",
        uplink_bytes=10,
        latency_ms=5.0,
        breakdown={"device": 5.0},
        decision={},
    )
    seen = result.seen_after(7.5, "local_api")
    assert (seen.latency_ms, seen.breakdown) == (7.5, {"device": 5.0, "local_api": 2.5})
    assert sum(seen.breakdown.values()) == pytest.approx(seen.latency_ms)
    assert result.latency_ms == 5.0
