"""The controller in a simulated world: events in, decisions out, no clock and no socket."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.controller import Controller, Decision
from shared.codec import Codec, Form
from shared.config import CloudLinkConfig
from shared.errors import PlanError, UnknownModelError
from shared.graph.ir import Graph
from shared.plan.constraints import Constraints
from shared.plan.energy import Power, energy_mj
from shared.plan.gate import Fidelity, Gate, GateKey
from shared.plan.latency import Conditions, latency_ms, stage_ms
from shared.plan.objective import Energy, Latency, Throughput
from shared.plan.profile import Profile
from shared.plan.radio import LinkType
from shared.plan.solve import choose
from shared.plan.stages import Stage
from shared.tensor import DType
from shared.wire.messages import Limits, LoadReport, ModelCard, ModelLoad
from tests.shared.plan.builders import DIGEST, chain, dag, profile_of

UNITS = 24
SIZES = [150_528, *(int(400_000 * 0.8**index) + 10 for index in range(UNITS - 1)), 1000]
GRAPH: Graph = chain(SIZES)
DEVICE_MS = [4.0] * UNITS
CLOUD_MS = [0.4] * UNITS
PROFILE: Profile = profile_of(GRAPH, DEVICE_MS)
LOCAL_MS = sum(DEVICE_MS)


def card(**changes: object) -> ModelCard:
    values: dict[str, object] = {
        "name": "net",
        "digest": DIGEST,
        "index": 0,
        "unit_ms": CLOUD_MS,
        "replicas": 1,
    }
    return ModelCard(**(values | changes))  # type: ignore[arg-type]


@dataclass
class World:
    """What is true, and the controller that has to find out.  Loads are reported ten times a second."""

    uplink_bps: float = 50e6
    rtt_ms: float = 10.0
    wait_ms: float = 0.0
    reported_wait_ms: float | None = None
    slowdown: float = 1.0
    device: float = 1.0
    cloud: float = 1.0
    network_ms: float = 0.0
    now_ms: float = 0.0
    sequence: int = 0
    controller: Controller = field(default_factory=lambda: Controller(CloudLinkConfig()))
    planned: bool = False

    def __post_init__(self) -> None:
        if not self.planned:
            self.controller.add_model("net", GRAPH, PROFILE, self.now_ms)

    def connect(self) -> World:
        self.controller.on_connected(self.now_ms)
        self.controller.on_card(card(), self.now_ms)
        self.report()
        return self

    def report(self, ready: int = 1) -> None:
        self.sequence += 1
        wait_ms = self.wait_ms if self.reported_wait_ms is None else self.reported_wait_ms
        load = ModelLoad(
            name="net",
            ready=ready,
            starting=0,
            target=1,
            queue_ms=wait_ms,
            wait_ms=wait_ms,
            slowdown=self.slowdown,
        )
        report = LoadReport(gateway="g", sequence=self.sequence, models=[load])
        self.controller.on_load(report, self.now_ms)

    def span(self, noise: float = 0.0) -> None:
        self.controller.on_span(100_000, 100_000 * 8000 / (self.uplink_bps * (1 + noise)), self.now_ms)

    def true_conditions(self) -> Conditions:
        return Conditions(
            self.uplink_bps,
            self.rtt_ms,
            wait_ms=self.wait_ms,
            slowdown=self.slowdown,
            device=self.device,
            cloud=self.cloud,
            network_ms=self.network_ms,
            downlink_bps=self.uplink_bps,
        )

    def request(self) -> Decision:
        """One request as it goes in truth, reported back as the agent would."""
        decision = self.controller.decide("net", self.now_ms)
        measured = stage_ms(decision.rows, decision.row, self.true_conditions())
        self.now_ms += sum(measured.values())
        if decision.is_local:
            measured = {stage: measured[stage] for stage in (Stage.QUEUE, Stage.DEVICE, Stage.OVERHEAD)}
        else:
            if decision.payload_bytes >= 10_000:
                self.controller.on_span(decision.payload_bytes, measured[Stage.UPLINK], self.now_ms)
            self.controller.on_rtt(self.rtt_ms, self.now_ms)
        self.report()
        self.controller.on_timings(decision, measured, self.now_ms)
        return decision

    def regret(self, decision: Decision) -> float:
        """The share by which the decision is slower than the best one, in truth."""
        truth = latency_ms(self.controller.rows("net"), self.true_conditions())
        return float(truth[decision.row] / truth.min() - 1)


def decide(world: World, **arguments: object) -> Decision:
    return world.controller.decide("net", world.now_ms, **arguments)  # type: ignore[arg-type]


# -- reach


def test_before_any_cloud_is_known_everything_is_local() -> None:
    world = World()
    assert decide(world).place == "device"
    world.controller.on_connected(0.0)
    assert decide(world).place == "device"
    assert not decide(world).conditions.reachable


def test_a_card_and_a_fast_link_move_work_to_the_cloud_and_a_lost_link_brings_it_back() -> None:
    world = World().connect()
    assert decide(world).place != "device"
    world.controller.on_disconnected(world.now_ms)
    local = decide(world)
    assert local.place == "device"
    assert local.reason == "no link to the cloud"
    assert local.predicted_ms == pytest.approx(LOCAL_MS)
    assert local.runner_up is None
    world.controller.on_connected(world.now_ms)
    world.report()
    assert decide(world).place != "device"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"error": "digests differ"}, "digests differ"),
        ({"digest": "sha256:" + "0" * 64}, "this device holds " + DIGEST),
        ({"unit_ms": []}, "0 of 24 units are profiled"),
    ],
)
def test_a_card_that_does_not_fit_keeps_work_on_the_device(changes: dict[str, object], reason: str) -> None:
    world = World().connect()
    world.controller.on_card(card(**changes), world.now_ms)
    assert decide(world).place == "device"
    assert reason in decide(world).reason
    world.controller.on_card(card(), world.now_ms)
    assert decide(world).place != "device"


def test_no_ready_replica_means_no_cloud() -> None:
    world = World().connect()
    world.report(ready=0)
    assert decide(world).place == "device"
    assert decide(world).reason == "no replica is ready"
    world.report(ready=1)
    assert decide(world).place != "device"


def test_payloads_beyond_the_gateways_limit_are_not_chosen() -> None:
    world = World().connect()
    world.controller.pin("net", 1, Codec.FLOAT32)
    assert decide(world).payload_bytes == 1_600_040
    world.controller.on_limits(Limits(max_message_bytes=1_600_000), world.now_ms)
    assert decide(world).payload_bytes <= 1_600_000
    assert decide(world, batch=8).payload_bytes <= 1_600_000


def test_cards_and_loads_of_other_networks_are_ignored() -> None:
    world = World().connect()
    before = decide(world)
    world.controller.on_card(card(name="other", unit_ms=[1.0]), world.now_ms)
    assert decide(world) is before
    with pytest.raises(UnknownModelError, match="it has: net"):
        world.controller.decide("other", 0.0)


# -- following the world


@given(
    st.floats(5e5, 2e8),
    st.floats(2.5, 100.0),
    st.booleans(),
    st.lists(st.floats(-0.2, 0.2), min_size=13, max_size=13),
)
@settings(max_examples=60, deadline=None)
def test_three_samples_after_a_step_the_decision_is_right(
    rate: float, factor: float, up: bool, noise: list[float]
) -> None:
    world = World(uplink_bps=rate).connect()
    for _ in range(5):
        world.controller.on_rtt(world.rtt_ms, 0.0)
    for deviation in noise[:10]:
        world.span(deviation)
    world.uplink_bps = rate * factor if up else rate / factor
    for deviation in noise[10:]:
        world.span(deviation)
    # 5% of hysteresis, and what an estimate within 21% can cost at most.
    assert world.regret(decide(world)) < 0.30


@given(st.floats(5e5, 2e8), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_noise_of_a_fifth_causes_no_flapping(rate: float, seed: int) -> None:
    draw = random.Random(seed)
    world = World(uplink_bps=rate).connect()
    for _ in range(20):
        world.span(draw.uniform(-0.2, 0.2))
        world.controller.on_rtt(world.rtt_ms, 0.0)
    settled = len(world.controller.switches)
    for _ in range(300):
        world.now_ms += 100
        world.report()
        world.span(draw.uniform(-0.2, 0.2))
        assert world.regret(decide(world)) < 0.15
    assert len(world.controller.switches) - settled <= 4


def test_a_throttled_device_moves_the_cut_within_five_requests_and_back() -> None:
    world = World(uplink_bps=6e6).connect()
    for _ in range(20):
        world.request()
    assert decide(world).cut.edge_units
    world.device = 3.0
    for _ in range(5):
        world.request()
    assert world.regret(decide(world)) < 0.06
    assert decide(world).conditions.device == pytest.approx(3.0, rel=0.02)
    assert "device" in world.controller.switches[-1].reason
    assert decide(world).place == "cloud"  # so nothing more is seen of the device: what is known must fade
    world.device = 1.0
    while world.now_ms < 90_000:
        world.request()
    assert world.regret(decide(world)) < 0.06


def test_a_cloud_that_is_busier_than_it_reports_is_found_out_within_five_requests() -> None:
    world = World(uplink_bps=50e6).connect()
    for _ in range(10):
        world.request()
    assert decide(world).place == "cloud"
    world.reported_wait_ms, world.wait_ms = 0.0, 90.0
    for _ in range(5):
        world.request()
    assert decide(world).place == "device"
    assert "queue wait" in decide(world).reason


def test_a_slow_cloud_that_reports_nothing_is_found_out_within_five_requests() -> None:
    world = World(uplink_bps=50e6).connect()
    world.request()
    world.cloud = 9.0
    for _ in range(5):
        world.request()
    assert world.regret(decide(world)) < 0.06


def test_a_slow_cloud_that_says_so_is_not_corrected_twice() -> None:
    world = World(uplink_bps=100e6, slowdown=3.0).connect()
    world.span()
    for _ in range(20):
        assert not world.request().is_local
    assert decide(world).conditions.slowdown == 3
    assert decide(world).conditions.cloud == pytest.approx(1.0)


def test_what_was_learned_of_the_cloud_fades_so_that_it_is_tried_again() -> None:
    world = World(uplink_bps=50e6).connect()
    world.reported_wait_ms, world.wait_ms = 0.0, 200.0
    for _ in range(6):
        world.request()
    assert decide(world).place == "device"
    world.wait_ms = 0.0
    for _ in range(400):
        world.now_ms += 100
        world.report()
    assert decide(world).place == "cloud"


def test_the_way_between_is_learned_beyond_the_ping() -> None:
    world = World(network_ms=6.0).connect()
    for _ in range(20):
        world.request()
    assert decide(world).conditions.network_ms == pytest.approx(6.0, abs=0.2)
    assert world.controller.prediction_error("net") == pytest.approx(0.0, abs=0.05)


def test_one_odd_reply_changes_nothing() -> None:
    world = World().connect()
    for _ in range(10):
        world.request()
    before = decide(world)
    odd = {stage: ms * 50 for stage, ms in before.predicted.items()}
    world.controller.on_timings(before, odd, world.now_ms)
    after = decide(world)
    assert after.cut == before.cut
    assert after.predicted_ms == pytest.approx(before.predicted_ms, rel=0.10)


def test_a_small_steady_gain_is_taken_after_a_while_and_not_before() -> None:
    world = World(uplink_bps=1e9).connect()
    world.span()
    rows = world.controller.rows("net")
    start = decide(world)

    def gain(rate: float) -> float:
        truth = latency_ms(rows, replace(start.conditions, uplink_bps=rate, downlink_bps=rate))
        return 1 - float(truth.min() / truth[start.row])

    world.uplink_bps = next(rate for rate in (1e9 / 1.01**step for step in range(2000)) if gain(rate) > 0.02)
    for _ in range(3):
        world.span()
    held = decide(world)
    assert held.row == start.row
    assert 0.01 < held.gain < 0.05
    for _ in range(30):
        world.now_ms += 100
        world.report()
    assert decide(world).row != start.row
    assert decide(world).gain == 0
    assert decide(world).reason.startswith("better for some time")


# -- stale knowledge


def test_a_stale_load_report_is_unknown_and_never_nothing() -> None:
    world = World().connect()
    assert decide(world).conditions.wait_ms == 0
    world.now_ms += 301
    stale = decide(world)
    assert stale.conditions.wait_ms >= 20
    assert stale.load_age_ms == 301
    world.report()
    assert decide(world).conditions.wait_ms == 0


def test_a_busy_cloud_that_fell_silent_is_not_taken_to_be_idle() -> None:
    world = World(wait_ms=80.0, slowdown=3.0).connect()
    world.now_ms += 5_000
    assert decide(world).conditions.wait_ms == 80
    assert decide(world).conditions.slowdown == 3


def test_a_report_that_counts_our_own_request_does_not_count_it_once_it_is_answered() -> None:
    world = World(uplink_bps=100e6).connect()
    world.span()
    sent = decide(world)
    measured = stage_ms(sent.rows, sent.row, world.true_conditions())
    world.now_ms += sum(measured.values()) - 1
    world.reported_wait_ms = measured[Stage.CLOUD]
    world.report()
    assert decide(world).load_wait_ms == pytest.approx(measured[Stage.CLOUD])
    world.now_ms += 1
    world.controller.on_timings(sent, measured, world.now_ms)
    assert decide(world).load_wait_ms == pytest.approx(0.0, abs=1e-9)
    world.now_ms += 1
    world.report()
    others_ms = decide(world).load_wait_ms
    assert others_ms > 0
    world.now_ms += sum(measured.values()) + 1
    world.controller.on_timings(sent, measured, world.now_ms)
    assert decide(world).load_wait_ms == pytest.approx(others_ms)


def test_load_reports_out_of_order_are_ignored() -> None:
    world = World().connect()
    world.sequence, world.wait_ms = 10, 5.0
    world.report()
    world.sequence, world.wait_ms = 7, 500.0
    world.report()
    assert decide(world).conditions.wait_ms == 5


# -- requests that went wrong


def test_an_answer_that_does_not_come_makes_the_link_slow_and_a_probe_due() -> None:
    world = World(uplink_bps=100e6).connect()
    for _ in range(5):
        world.request()
    world.controller.pin("net", 1, Codec.UINT8)
    sent = decide(world)
    world.controller.unpin("net")
    world.now_ms += 1_000
    world.report()
    assert not world.controller.wants_probe(world.now_ms)
    world.controller.on_overdue(sent, 1_000.0, world.now_ms)
    after = decide(world)
    assert after.link.bounded
    assert after.conditions.uplink_bps == pytest.approx(sent.payload_bytes * 8, rel=0.1)
    assert world.controller.wants_probe(world.now_ms) > 0
    world.span()
    assert decide(world).place == "cloud"


def test_a_request_that_is_not_late_yet_teaches_nothing() -> None:
    world = World().connect()
    before = decide(world)
    world.controller.on_overdue(before, before.remote_ms * 0.9, world.now_ms)
    assert decide(world) is before


def test_a_cloud_that_never_answers_is_left_alone_for_longer_each_time() -> None:
    world = World(uplink_bps=100e6).connect()
    for _ in range(3):
        world.span()
    tries: list[float] = []
    while world.now_ms < 120_000:
        world.now_ms += 100
        world.report()
        world.span()
        decision = decide(world)
        if not decision.is_local:
            tries.append(world.now_ms)
            world.now_ms += 1_000
            world.controller.on_overdue(decision, 1_000.0, world.now_ms)
    assert 2 <= len(tries) <= 12
    assert tries[-1] - tries[-2] > 5_000


def test_refusals_keep_work_local_for_as_long_as_asked_and_longer_each_time() -> None:
    world = World().connect()
    for expected_ms in (250, 500, 1000, 2000, 4000, 8000, 8000):
        assert decide(world).place != "device"
        world.controller.on_refused("net", 0.0, world.now_ms)
        assert decide(world).place == "device"
        assert decide(world).reason == "the cloud refused work"
        world.now_ms += expected_ms - 1
        world.report()
        assert decide(world).place == "device"
        world.now_ms += 1
    world.controller.on_refused("net", 20_000.0, world.now_ms)
    world.now_ms += 19_999
    assert decide(world).place == "device"


def test_an_answer_ends_the_series_of_refusals() -> None:
    world = World().connect()
    for _ in range(5):
        world.controller.on_refused("net", 0.0, world.now_ms)
    world.now_ms += 10_000
    world.report()
    assert not world.request().is_local
    world.controller.on_refused("net", 0.0, world.now_ms)
    world.now_ms += 250
    assert decide(world).place != "device"


def test_a_slower_way_back_is_the_downlinks_and_is_charged_once() -> None:
    graph = chain([150_528] + [2_000] * (UNITS - 1) + [50_000])
    world = World(planned=True)
    world.controller.add_model("net", graph, profile_of(graph, [20.0] * UNITS), 0.0)
    world.connect()
    for uplink_bps in (50e6, 12e6):
        world.uplink_bps = uplink_bps
        world.controller.pin("net", 0)
        for _ in range(6):
            world.request()
        world.controller.unpin("net")
        truth = latency_ms(world.controller.rows("net"), world.true_conditions())
        decision = decide(world)
        assert not decision.is_local
        assert decision.predicted_ms == pytest.approx(float(truth[decision.row]), rel=0.05)


# -- probes


def test_a_link_without_traffic_is_probed_and_its_return_is_noticed() -> None:
    world = World(uplink_bps=0.2e6).connect()
    for _ in range(3):
        world.span()
    assert decide(world).place == "device"
    world.uplink_bps = 80e6
    probed: list[float] = []
    while decide(world).place == "device" and world.now_ms < 60_000:
        world.now_ms += 100
        world.report()
        size = world.controller.wants_probe(world.now_ms)
        if size:
            probed.append(world.now_ms)
            world.controller.on_probe_sent(size, world.now_ms)
            world.controller.on_span(size, size * 8000 / world.uplink_bps, world.now_ms)
    assert decide(world).place == "cloud"
    assert len(probed) <= 3
    assert world.now_ms < 10_000


def test_probes_stay_within_one_percent_of_the_link() -> None:
    world = World(uplink_bps=2e6).connect()
    sent = 0
    for _ in range(36_000):
        world.now_ms += 100
        size = world.controller.wants_probe(world.now_ms)
        if size:
            sent += size
            world.controller.on_probe_sent(size, world.now_ms)
            world.controller.on_span(size, size * 8000 / world.uplink_bps, world.now_ms)
    saved_up = 6 * 32_768
    assert 0.5 * 0.01 * 0.25e6 * 3600 < sent <= 0.01 * 0.25e6 * 3600 + saved_up


def _probe(world: World, burst_bytes: int = 1500) -> int:
    """One heartbeat: the probe that is wanted, as a link that lets ``burst_bytes`` through at once carries
    it.  Its bytes."""
    world.now_ms += 100
    world.report()
    size = world.controller.wants_probe(world.now_ms)
    if size:
        world.controller.on_probe_sent(size, world.now_ms)
        span_ms = max(size - burst_bytes, 0) * 8000 / world.uplink_bps + 0.05
        world.controller.on_span(size, span_ms, world.now_ms)
    return size


@pytest.mark.parametrize("faster_bps", [4e6, 100e6])
@pytest.mark.parametrize("changed_ms", range(300_000, 320_000, 2_500))
def test_a_slow_link_that_gets_fast_is_noticed_by_small_hints(faster_bps: float, changed_ms: int) -> None:
    world = World(uplink_bps=0.5e6).connect()
    while world.now_ms < changed_ms:  # what was saved for the first minute is spent
        _probe(world)
    assert decide(world).place == "device"
    world.uplink_bps = faster_bps
    sent = 0
    while not 0.5 < world.controller.link(world.now_ms).uplink_bps / faster_bps < 2:
        sent += _probe(world)
        assert world.now_ms < changed_ms + 8_000  # to save up for a probe takes 20 s
    assert sent <= 4 * 32_768


def test_a_bursty_slow_link_is_not_hinted_beyond_the_budget() -> None:
    world = World(uplink_bps=0.5e6).connect()
    while world.now_ms < 60_000:
        _probe(world)
    sent = sum(_probe(world, burst_bytes=4000) for _ in range(36_000))
    assert sent <= 0.01 * 0.75e6 / 8 * 3600 + 3 * 32_768  # what the bursts make of 0.5 Mbps


def test_an_estimate_that_is_surprised_at_every_sample_still_keeps_the_budget() -> None:
    world = World(uplink_bps=2e6).connect()
    rng, sent = random.Random(3), 0
    for _ in range(36_000):
        world.uplink_bps = 2e6 * math.exp(rng.uniform(-1.5, 1.5))
        sent += _probe(world)
    assert sent <= 0.01 * 2e6 * math.exp(1.5) / 8 * 3600 + 9 * 32_768


def test_traffic_that_measures_the_link_makes_probes_needless() -> None:
    world = World().connect()
    for _ in range(100):
        world.now_ms += 500
        world.span()
        assert world.controller.wants_probe(world.now_ms) == 0


def test_no_link_and_no_bytes_mean_no_probes() -> None:
    assert World().controller.wants_probe(0.0) == 0
    silent = Controller(CloudLinkConfig(probe_bytes=0))
    silent.on_connected(0.0)
    assert silent.wants_probe(60_000.0) == 0


# -- deadlines, batches, pins


def test_a_deadline_overrides_hysteresis_but_changes_nothing_for_the_next_request() -> None:
    world = World(uplink_bps=1e9).connect()
    world.span()
    start = decide(world)
    rows = world.controller.rows("net")
    for rate in (1e9 / 1.01**step for step in range(2000)):
        truth = latency_ms(rows, replace(start.conditions, uplink_bps=rate, downlink_bps=rate))
        if 1 - truth.min() / truth[start.row] > 0.03:
            break
    world.uplink_bps = rate
    for _ in range(3):
        world.span()
    held = decide(world)
    assert held.row == start.row
    between = held.predicted_ms * (1 - held.gain / 2)
    urgent = decide(world, deadline_ms=between)
    assert urgent.predicted_ms <= between
    assert "deadline" in urgent.reason
    assert decide(world, deadline_ms=held.predicted_ms + 1) is held
    assert decide(world) is held


def test_a_deadline_that_nothing_meets_gets_the_fastest() -> None:
    world = World().connect()
    assert decide(world, deadline_ms=0.01).gain == 0


def slow_link() -> World:
    """Here the device alone is a little faster than anything that is sent."""
    world = World(uplink_bps=100e6).connect()
    while True:
        world.span()
        decision = decide(world)
        truth = latency_ms(decision.rows, decision.conditions)
        truth[decision.rows.local] = math.inf
        if decision.is_local and truth.min() > 1.1 * LOCAL_MS:
            return world
        world.uplink_bps *= 0.97


def queue_of(world: World, period_ms: float, told: bool) -> tuple[list[float], list[Decision]]:
    """The backlog that each of a stream of requests finds at the device, and what is decided for it."""
    free_ms, backlogs, decisions = 0.0, [], []
    for number in range(200):
        now_ms = number * period_ms
        backlog_ms = max(free_ms - now_ms, 0.0)
        decision = world.controller.decide(
            "net", world.now_ms, 1000.0 - backlog_ms, backlog_ms=backlog_ms if told else 0.0
        )
        held_ms = decision.predicted[Stage.DEVICE] + decision.predicted[Stage.ENCODE]
        free_ms = max(free_ms, now_ms) + held_ms
        backlogs.append(backlog_ms)
        decisions.append(decision)
    return backlogs, decisions


def test_requests_that_come_faster_than_the_device_computes_do_not_all_wait_for_it() -> None:
    period_ms = 0.7 * LOCAL_MS
    blind, _ = queue_of(slow_link(), period_ms, told=False)
    assert max(blind) > 10 * LOCAL_MS
    backlogs, decisions = queue_of(slow_link(), period_ms, told=True)
    assert max(backlogs) < LOCAL_MS
    assert {decision.is_local for decision in decisions} == {True, False}
    assert any("wait for the device" in decision.reason for decision in decisions)


def test_without_a_backlog_the_plan_is_the_plan() -> None:
    world = slow_link()
    plain = decide(world)
    assert world.controller.decide("net", world.now_ms, backlog_ms=0.5) is plain
    backlogs, decisions = queue_of(world, 1.5 * LOCAL_MS, told=True)
    assert not any(backlogs)
    assert all(decision is plain for decision in decisions)


def test_a_backlog_moves_no_pin() -> None:
    world = slow_link()
    world.controller.pin("net", UNITS)
    assert world.controller.decide("net", world.now_ms, backlog_ms=1e6).is_local


def test_a_larger_batch_has_its_own_optimum() -> None:
    world = World(uplink_bps=6e6).connect()
    for _ in range(10):
        world.span()
    one, eight = decide(world), decide(world, batch=8)
    assert eight.conditions.batch == 8
    truth = latency_ms(eight.rows, replace(one.conditions, batch=8))
    assert eight.predicted_ms == pytest.approx(truth.min())
    assert eight.payload_bytes == 8 * round(float(eight.rows.payload_bytes[eight.row]))
    assert decide(world, batch=8) is eight
    world.span()
    assert decide(world, batch=8) is not eight
    assert decide(world).conditions.batch == 1


def test_a_pin_holds_whatever_the_link_does_except_without_one() -> None:
    world = World().connect()
    world.controller.pin("net", 5, Codec.FLOAT16)
    for rate in (1e5, 1e9):
        world.uplink_bps = rate
        for _ in range(3):
            world.span()
        assert decide(world).cut.index == 5
        assert decide(world).codec is Codec.FLOAT16
        assert decide(world, deadline_ms=0.01).cut.index == 5
        assert decide(world, batch=4).cut.index == 5
    world.controller.on_disconnected(world.now_ms)
    assert decide(world).place == "device"
    world.controller.on_connected(world.now_ms)
    assert decide(world).reason == "pinned"
    world.controller.unpin("net")
    assert decide(world).place == "cloud"
    world.controller.pin("net", UNITS)
    assert decide(world).place == "device"


def test_a_pin_on_what_is_not_there_is_refused() -> None:
    world = World().connect()
    with pytest.raises(PlanError, match="cuts 0 to 24, not 25"):
        world.controller.pin("net", 25)
    with pytest.raises(PlanError, match=r"may use .*uint8.*, not int4"):
        world.controller.pin("net", 3, Codec.INT4)


MIXED: Graph = dag([[0], [0, 1], [2]], [60_000, 50_000, 2_000, 5], [3], DType.UINT8)


def mixed_world() -> World:
    """Bytes and floats cross the first cut; the bytes gain nothing from an entropy stage."""
    profile = profile_of(MIXED, [5.0, 40.0, 60.0])
    bytes_costs = profile.payloads[0]
    for codec in bytes_costs:
        bytes_costs[codec] = bytes_costs[Codec.FLOAT32]  # type: ignore[index]
    world = World(planned=True)
    world.controller.add_model("net", MIXED, profile, 0.0)
    return world


def test_a_mix_is_kept_when_new_times_of_the_cloud_make_new_rows() -> None:
    world = mixed_world()
    world.controller.on_connected(0.0)
    offer = card(digest=MIXED.digest, unit_ms=[0.5, 4.0, 6.0])
    world.controller.on_card(offer, 0.0)
    rows = world.controller.rows("net")
    row = next(row for row in range(len(rows)) if rows.mix[row] >= 0)
    codecs = rows.codecs_of(row)
    world.controller.pin("net", rows.cut_of(row), codecs)
    decision = decide(world)
    assert (decision.codecs, decision.codec) == (codecs, rows.codec_of(row))
    switches = len(world.controller.switches)
    world.controller.on_card(card(digest=MIXED.digest, unit_ms=[0.5, 4.0, 6.1]), 1.0)
    after = decide(world)
    assert after.rows is not rows
    assert (after.codecs, after.cut) == (codecs, decision.cut)
    assert len(world.controller.switches) == switches


# -- objectives and constraints

POWER = Power(busy_w=6.0, idle_w=0.5, link=LinkType.WIRED)


def planned_for(**options: object) -> World:
    controller = Controller(CloudLinkConfig())
    world = World(controller=controller, planned=True)
    controller.add_model("net", GRAPH, PROFILE, 0.0, **options)  # type: ignore[arg-type]
    return world.connect()


def test_a_model_has_its_objective_and_a_request_may_have_another() -> None:
    world = planned_for(objective=Energy(POWER), power=POWER)
    frugal = decide(world)
    assert frugal.unit == "mJ"
    assert frugal.energy_mj == pytest.approx(frugal.cost)
    fast = decide(world, objective=Latency())
    assert fast.predicted_ms < frugal.predicted_ms
    assert fast.energy_mj is not None
    assert fast.energy_mj > frugal.cost
    assert decide(world) is frugal
    assert frugal.as_dict()["energy_mj"] == pytest.approx(frugal.cost)


def test_a_deadline_holds_for_an_objective_other_than_latency() -> None:
    world = planned_for(objective=Energy(POWER), power=POWER)
    frugal, fastest = decide(world), decide(world, objective=Latency())
    between = (frugal.predicted_ms + fastest.predicted_ms) / 2
    in_time = decide(world, deadline_ms=between)
    assert in_time.predicted_ms <= between
    energy = energy_mj(in_time.rows, in_time.conditions, POWER)
    latency = latency_ms(in_time.rows, in_time.conditions)
    assert in_time.cost == pytest.approx(energy[latency <= between].min())
    too_late = decide(world, deadline_ms=fastest.predicted_ms / 2)
    assert too_late.row == fastest.row
    assert "nothing meets the deadline" in too_late.reason


def test_a_standing_limit_that_cannot_be_kept_is_approached_and_a_requests_own_is_an_error() -> None:
    world = planned_for(objective=Energy(POWER, deadline_ms=0.5))
    nearest = decide(world)
    assert "deadline_ms 0.5 cannot be kept; the nearest possible is" in nearest.unmet
    assert nearest.unmet == nearest.as_dict()["unmet"]
    assert nearest.predicted_ms == pytest.approx(decide(world, objective=Latency()).predicted_ms)
    with pytest.raises(PlanError, match=r"net: deadline_ms 0.5 cannot be kept; the nearest possible is"):
        decide(world, objective=Energy(POWER, deadline_ms=0.5))


def test_a_stream_says_how_many_requests_it_needs_under_way() -> None:
    world = planned_for(objective=Throughput())
    world.uplink_bps = 6e6
    for _ in range(3):
        world.span()
    stream = decide(world)
    assert stream.cost == pytest.approx(stream.period_ms)
    assert stream.in_flight == math.ceil(stream.predicted_ms / stream.period_ms)
    assert stream.in_flight > 1


def test_constraints_hold_whatever_the_link_does() -> None:
    constraints = Constraints(codecs=(Codec.UINT8_LZ4,), max_uplink_bytes=60_000, input_never_leaves="unit2")
    world = planned_for(constraints=constraints)
    for rate in (1e6, 1e7, 1e9):
        world.uplink_bps = rate
        for _ in range(3):
            world.span()
        for decision in (decide(world), decide(world, batch=2)):
            assert decision.payload_bytes <= 60_000
            if not decision.is_local:
                assert decision.codec is Codec.UINT8_LZ4
                assert 2 in decision.cut.edge_units
    assert not decide(world).is_local
    with pytest.raises(PlanError, match="input_never_leaves"):
        world.controller.pin("net", 1, Codec.UINT8_LZ4)


def test_a_pinned_cut_is_used_whatever_it_costs_while_there_is_a_cloud() -> None:
    world = planned_for(constraints=Constraints(cut=3))
    for rate in (1e4, 1e9):
        world.uplink_bps = rate
        for _ in range(3):
            world.span()
        for decision in (decide(world), decide(world, deadline_ms=1.0), decide(world, batch=2)):
            assert decision.cut.index == 3
        explanation = world.controller.explain("net", world.now_ms)
        assert explanation.candidates[explanation.winner].cut == 3
    world.controller.on_disconnected(world.now_ms)
    assert decide(world).is_local


def test_a_pin_that_breaks_a_constraint_is_refused_before_there_is_a_cloud() -> None:
    constraints = Constraints(cut=3, input_never_leaves="unit7")
    with pytest.raises(PlanError, match=r"cut 3 .* the nearest possible is cut 8"):
        Controller(CloudLinkConfig()).add_model("net", GRAPH, PROFILE, 0.0, constraints=constraints)


def test_the_explanation_is_of_the_decision() -> None:
    world = planned_for(
        objective=Energy(POWER),
        constraints=Constraints(input_never_leaves="unit2", max_uplink_bytes=60_000),
        power=POWER,
    )
    decision, explanation = decide(world), world.controller.explain("net", world.now_ms)
    winner = explanation.candidates[explanation.winner]
    assert (winner.cut, winner.codec, winner.cost) == (
        decision.cut.index,
        decision.codec_label,
        pytest.approx(decision.cost),
    )
    assert explanation.objective == decision.objective == "energy"
    assert winner.energy_mj == pytest.approx(decision.energy_mj)
    assert {"input_never_leaves", "max_uplink_bytes"} <= explanation.exclusions.keys()
    assert len(explanation.candidates) > len(decision.rows)


@pytest.mark.parametrize("uplink_mbps", [2.0, 9.0, 100.0])
def test_at_the_uplink_of_the_switch_the_runner_up_is_as_fast(uplink_mbps: float) -> None:
    world = World(uplink_bps=uplink_mbps * 1e6).connect()
    for _ in range(3):
        world.span()
        world.controller.on_rtt(10.0, world.now_ms)
    decision = decide(world)
    assert decision.runner_up is not None
    before = decision.conditions
    there = decision.switch_uplink_mbps
    assert there == decision.as_dict()["switch_uplink_mbps"]
    if there is None:
        rates = [rate * 1e6 for rate in (1e-4, 1e-2, 1.0, 1e2, 1e6)]
    else:
        at = latency_ms(decision.rows, replace(before, uplink_bps=there * 1e6))
        assert at[decision.row] == pytest.approx(at[decision.runner_up])
        rates = []
    for rate in rates:
        at = latency_ms(decision.rows, replace(before, uplink_bps=rate))
        assert at[decision.row] <= at[decision.runner_up]
    assert decide(world, objective=Energy(POWER)).switch_uplink_mbps is None


def test_a_gate_opens_the_menu_and_closes_what_fails_it() -> None:
    world = World(uplink_bps=8e6).connect()
    for _ in range(3):
        world.span()
    before = decide(world)
    assert not before.is_local
    forms = {Form.HALF: Fidelity(1.0, 0.0), Form.UINT8: Fidelity(0.5, 0.9), Form.INT4: Fidelity(1.0, 0.0)}
    measured = {cut.live: forms for cut in GRAPH.cuts if cut.live}
    gate = Gate(GateKey(DIGEST, "test", "top1"), 16, measured)
    world.controller.on_measured("net", world.now_ms, gate=gate)
    assert Codec.INT4 in {decide(world).rows.codec_of(row) for row in range(len(decide(world).rows))}
    assert decide(world).codec.form is not Form.UINT8


def test_a_measured_profile_replaces_the_one_that_was_assumed() -> None:
    world = World().connect()
    world.controller.on_disconnected(world.now_ms)
    world.controller.on_measured("net", world.now_ms, profile=PROFILE.stretched(2.0))
    assert decide(world).predicted_ms == pytest.approx(2 * LOCAL_MS)


def test_wide_cuts_become_candidates_and_stay_through_a_new_card() -> None:
    graph = dag([[0], [1], [0], [3], [2, 4]], [200_000, 2_000, 2_000, 2_000, 2_000, 10], [5], DType.UINT8)
    controller = Controller(CloudLinkConfig(assumed_uplink_mbps=5))
    controller.add_model("net", graph, profile_of(graph, [2.0, 90.0, 2.0, 90.0, 2.0]), 0.0)
    controller.on_connected(0.0)
    controller.on_card(card(unit_ms=[0.2, 9.0, 0.2, 9.0, 0.2]), 0.0)
    narrow = controller.decide("net", 0.0)
    wide = graph.set_cut([0, 2])
    assert wide.index == -1
    controller.on_measured("net", 1.0, wide_cuts=[wide])
    better = controller.decide("net", 1.0)
    assert better.cut == wide
    assert better.reason == "more is known of its cuts and codecs"
    assert better.predicted_ms < 0.7 * narrow.predicted_ms
    controller.on_card(card(unit_ms=[0.3, 9.0, 0.3, 9.0, 0.3]), 2.0)
    assert controller.decide("net", 2.0).cut == wide
    assert controller.decide("net", 2.0).reason == better.reason


# -- records


def random_events(world: World, draw: random.Random, record: Callable[[Decision], None]) -> None:
    for _ in range(300):
        world.now_ms += draw.choice([0.0, 5.0, 40.0, 400.0])
        kind = draw.randrange(9)
        if kind == 0:
            world.uplink_bps = 10 ** draw.uniform(5, 9)
        elif kind == 1:
            world.span(draw.uniform(-0.2, 0.2))
        elif kind == 2:
            world.controller.on_rtt(draw.uniform(1, 100), world.now_ms)
        elif kind == 3:
            world.wait_ms, world.slowdown = draw.choice([0.0, 50.0]), draw.choice([1.0, 4.0])
            world.report(ready=draw.choice([0, 1, 1, 2]))
        elif kind == 4:
            world.request()
        elif kind == 5:
            world.controller.on_overdue(decide(world), draw.uniform(1, 3000), world.now_ms)
        elif kind == 6 and draw.random() < 0.3:
            world.controller.on_refused("net", draw.choice([0.0, 300.0]), world.now_ms)
        elif kind == 7 and draw.random() < 0.3:
            world.controller.on_disconnected(world.now_ms)
        elif kind == 8 and draw.random() < 0.6:
            world.controller.on_connected(world.now_ms)
        record(decide(world))


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_whatever_happens_every_decision_is_sound_and_can_be_made_again_from_its_record(seed: int) -> None:
    world = World().connect()
    seen: list[Decision] = []
    random_events(world, random.Random(seed), seen.append)
    for decision in [*seen, *world.controller.log]:
        assert math.isfinite(decision.predicted_ms)
        assert decision.predicted_ms == pytest.approx(sum(decision.predicted.values()))
        if not decision.conditions.reachable:
            assert decision.is_local
        scores = Latency().score(decision.rows, decision.conditions)
        assert choose(scores, decision.previous, decision.threshold).row == decision.row
        json.dumps(decision.as_dict(), allow_nan=False)
    for switch in world.controller.switches:
        assert switch.reason


@given(st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_the_same_events_give_the_same_decisions(seed: int) -> None:
    told = []
    for _ in range(2):
        decisions: list[dict[str, object]] = []
        random_events(
            World().connect(),
            random.Random(seed),
            lambda decision, kept=decisions: kept.append(decision.as_dict()),  # type: ignore[misc]
        )
        told.append(decisions)
    assert told[0] == told[1]


def test_the_log_is_bounded() -> None:
    controller = Controller(CloudLinkConfig(), log_length=10)
    controller.add_model("net", GRAPH, PROFILE, 0.0)
    for now in range(50):
        controller.on_rtt(5.0, float(now))
    assert len(controller.log) == 10


def test_a_cloud_that_came_and_was_of_no_use_is_not_the_reason_of_a_later_switch() -> None:
    world = World(wait_ms=500.0).connect()
    assert decide(world).is_local
    for device in (1.0, 8.0):
        world.device = device
        for _ in range(6):
            world.request()
    assert not decide(world).is_local
    assert decide(world).reason.startswith("device 1.00 -> ")


def test_a_record_tells_a_person_what_was_decided_on_what_and_why() -> None:
    world = World(uplink_bps=100e6).connect()
    for _ in range(3):
        world.span()
        world.controller.on_rtt(10.0, world.now_ms)
    world.uplink_bps = 9e6
    for _ in range(3):
        world.span()
    decision = decide(world)
    assert decision.place == "split"
    told = decision.as_dict()
    assert told["cut_name"] == decision.cut.name
    assert told["codec"] == decision.codec_label
    assert told["runner_up"]["place"] in ("device", "split", "cloud")
    assert told["margin"] == pytest.approx(told["runner_up"]["cost"] - told["cost"])
    assert told["conditions"]["uplink_bps"] == pytest.approx(9e6)
    assert told["rtt_age_ms"] == 0
    assert "uplink 100 -> 9 Mbps" in told["reason"]
    assert decision.cut.name in str(decision)
    assert set(told["predicted"]) == {stage.value for stage in Stage}
