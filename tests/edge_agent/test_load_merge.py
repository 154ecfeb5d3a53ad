"""The load of a cluster with several gateways, from what each of them says."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.load_merge import LoadMerge, MergedLoad
from shared.wire.messages import LoadReport, ModelLoad

PERIOD_MS = 100.0


def load(name: str = "net", **values: Any) -> ModelLoad:
    defaults = {"ready": 1, "starting": 0, "target": 1, "queue_ms": 0.0, "wait_ms": 0.0, "slowdown": 1.0}
    return ModelLoad(name=name, **{**defaults, **values})


def report(gateway: str, sequence: int, *loads: ModelLoad, period_ms: float = 0.0) -> LoadReport:
    return LoadReport(gateway=gateway, sequence=sequence, models=list(loads), period_ms=period_ms)


def of(merge: LoadMerge, now_ms: float, name: str = "net") -> MergedLoad:
    merged = merge.of(name, lambda load: True, now_ms)
    assert merged is not None
    return merged


def test_queues_and_rates_add_up_replicas_do_not_and_the_wait_is_that_of_our_gateway() -> None:
    merge = LoadMerge(PERIOD_MS)
    merge.on_gateway("a")
    ours = load(
        ready=2, target=2, queue_ms=5.0, wait_ms=4.0, queued=3, in_flight=2, admitted_per_s=10.0, slowdown=1.1
    )
    other = load(
        ready=3,
        starting=1,
        target=4,
        queue_ms=7.0,
        wait_ms=90.0,
        queued=1,
        in_flight=4,
        admitted_per_s=20.0,
        refused_per_s=2.0,
        slowdown=1.5,
    )
    assert merge.on_report(report("a", 1, ours), 0.0)
    assert merge.on_report(report("b", 9, other), 50.0)
    merged = of(merge, 60.0)
    assert merged.load == load(
        ready=3,
        starting=1,
        target=4,
        queue_ms=12.0,
        wait_ms=4.0,
        queued=4,
        in_flight=6,
        admitted_per_s=30.0,
        refused_per_s=2.0,
        slowdown=1.5,
    )
    assert (merged.said_ms, merged.fresh_until_ms) == (0.0, 300.0)  # ours, whatever the other says since
    assert merge.of("unheard", lambda load: True, 60.0) is None


def test_the_slowdown_is_the_most_recent_word_not_the_last_that_came() -> None:
    merge = LoadMerge(PERIOD_MS)
    merge.on_gateway("a")
    merge.on_report(report("a", 1, load(slowdown=1.2)), 0.0)
    merge.on_report(report("b", 1, load(slowdown=3.0, age_ms=80.0)), 50.0)
    assert of(merge, 60.0).load.slowdown == 1.2
    merge.on_report(report("b", 2, load(slowdown=2.0, age_ms=5.0)), 70.0)
    assert of(merge, 80.0).load.slowdown == 2.0


def test_a_silent_gateway_is_unknown_and_not_without_load() -> None:
    merge = LoadMerge(PERIOD_MS)
    merge.on_gateway("a")
    merge.on_report(report("a", 1, load(ready=1, queue_ms=5.0, wait_ms=4.0)), 0.0)
    merge.on_report(report("b", 1, load(ready=4, queue_ms=100.0)), 0.0)
    merge.on_report(report("a", 2, load(ready=1, queue_ms=5.0, wait_ms=4.0)), 250.0)
    assert of(merge, 299.0).load.queue_ms == 105.0
    assert of(merge, 300.0).load.queue_ms == 5.0
    late = of(merge, 10_000.0)  # ours too: its last word stands, and says that it is no longer fresh
    assert (late.load.wait_ms, late.fresh_until_ms) == (4.0, 550.0)


def test_before_our_gateway_has_spoken_the_wait_is_unknown() -> None:
    merge = LoadMerge(PERIOD_MS)
    merge.on_gateway("a")
    merge.on_report(report("b", 1, load(ready=4, wait_ms=70.0, slowdown=2.0)), 0.0)
    merged = of(merge, 1.0)
    assert merged.said_ms == merged.fresh_until_ms == -math.inf
    assert (merged.load.ready, merged.load.wait_ms, merged.load.slowdown) == (4, 0.0, 2.0)


def test_out_of_order_and_replayed_reports_are_ignored_and_a_restarted_gateway_is_not() -> None:
    merge = LoadMerge(PERIOD_MS)
    merge.on_gateway("a")
    assert merge.on_report(report("a", 7, load(wait_ms=7.0)), 0.0)
    assert not merge.on_report(report("a", 7, load(wait_ms=70.0)), 10.0)
    assert not merge.on_report(report("a", 6, load(wait_ms=6.0)), 20.0)
    assert (of(merge, 30.0).load.wait_ms, of(merge, 30.0).said_ms) == (7.0, 0.0)
    assert merge.on_report(report("a'", 1, load(wait_ms=1.0)), 40.0)  # gateways are named anew
    merge.on_gateway("a'")
    assert of(merge, 50.0).load.wait_ms == 1.0


def test_a_lost_link_forgets_its_gateway_and_no_other() -> None:
    merge = LoadMerge(PERIOD_MS)
    merge.on_gateway("a")
    merge.on_report(report("a", 5, load(wait_ms=4.0)), 0.0)
    merge.on_report(report("b", 5, load(wait_ms=9.0)), 0.0)
    merge.on_lost()
    merge.on_gateway("b")  # moved: what it said while another was ours holds at once
    assert (of(merge, 10.0).load.wait_ms, of(merge, 10.0).fresh_until_ms) == (9.0, 300.0)
    merge.on_lost()
    assert merge.of("net", lambda load: True, 20.0) is None
    assert merge.on_report(report("a", 5, load()), 30.0)  # a session anew hears it anew


def test_a_gateway_that_speaks_rarely_is_believed_for_longer() -> None:
    merge = LoadMerge(PERIOD_MS)
    merge.on_report(report("a", 1, load(), period_ms=1000.0), 0.0)
    assert of(merge, 1.0).fresh_until_ms == 3000.0


def test_versions_of_one_name_are_told_apart() -> None:
    merge = LoadMerge(PERIOD_MS)
    merge.on_report(report("a", 1, load(wait_ms=1.0, index=1), load(wait_ms=2.0, index=2)), 0.0)
    merged = merge.of("net", lambda load: load.index == 2, 1.0)
    assert merged is not None
    assert merged.load.wait_ms == 2.0


def test_a_crowd_of_names_is_not_kept() -> None:
    merge = LoadMerge(PERIOD_MS)
    merge.on_gateway("a")
    merge.on_report(report("a", 1, load(wait_ms=3.0)), 0.0)
    for number in range(1000):
        merge.on_report(report(f"gateway {number}", 1, load()), 0.0)
    assert len(merge._heard) <= 64


EVENTS = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.integers(0, 5), st.floats(0.0, 200.0), st.integers(0, 3), st.floats(0, 50)
    ),
    max_size=30,
)


@given(EVENTS)
def test_whatever_order_reports_come_in_the_newest_of_each_fresh_gateway_counts(
    events: list[tuple[str, int, float, int, float]],
) -> None:
    merge = LoadMerge(PERIOD_MS)
    merge.on_gateway("a")
    now_ms = 0.0
    newest: dict[str, tuple[int, float, int, float]] = {}
    for gateway, sequence, passed_ms, ready, queue_ms in events:
        now_ms += passed_ms
        fresh = gateway not in newest or sequence > newest[gateway][0]
        taken = merge.on_report(report(gateway, sequence, load(ready=ready, queue_ms=queue_ms)), now_ms)
        assert taken is fresh
        if fresh:
            newest[gateway] = (sequence, now_ms, ready, queue_ms)
        counted = [each for name, each in newest.items() if name == "a" or now_ms < each[1] + 3 * PERIOD_MS]
        if not counted:
            assert merge.of("net", lambda load: True, now_ms) is None
            continue
        merged = of(merge, now_ms)
        assert merged.load.ready == max(each[2] for each in counted)
        assert merged.load.queue_ms == pytest.approx(sum(each[3] for each in counted))
        assert merged.said_ms == (newest["a"][1] if "a" in newest else -math.inf)
