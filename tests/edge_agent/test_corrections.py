"""What requests taught fades with its age, and one more of them does not bring back what has faded."""

from __future__ import annotations

import pytest

from edge_agent.controller import Decision
from edge_agent.corrections import Corrections
from shared.codec import Codec
from shared.plan.stages import Stage
from tests.edge_agent.test_controller import World, decide


def remote() -> Decision:
    world = World().connect()
    world.controller.pin("net", 1, Codec.UINT8)
    return decide(world)


def answered(
    corrections: Corrections, decision: Decision, network_ms: float, cloud: float, now_ms: float
) -> None:
    """A request that took so long beyond the round trip, and ran so many times slower than profiled."""
    measured = {
        Stage.NETWORK: decision.conditions.rtt_ms + decision.predicted[Stage.DOWNLINK] + network_ms,
        Stage.CLOUD: decision.predicted[Stage.CLOUD] * cloud,
    }
    corrections.observe(decision, measured, now_ms)


def test_a_good_answer_does_not_bring_back_what_was_bad_long_ago() -> None:
    corrections, decision = Corrections(), remote()
    for number in range(5):
        answered(corrections, decision, 250.0, 3.0, 100.0 * number)
    assert corrections.network_ms(500.0) == pytest.approx(250.0)
    assert corrections.factor(Stage.CLOUD, 500.0) == pytest.approx(3.0)
    # Two half-lives after they ceased to hold.
    later_ms = 400.0 + 5_000.0 + 10_000.0
    faded_ms, faded = corrections.network_ms(later_ms), corrections.factor(Stage.CLOUD, later_ms)
    assert faded_ms == pytest.approx(250.0 / 4, rel=0.05)
    assert faded == pytest.approx(3.0 ** (1 / 4))
    answered(corrections, decision, 0.0, 1.0, later_ms)
    assert corrections.network_ms(later_ms) <= faded_ms
    assert corrections.factor(Stage.CLOUD, later_ms) <= faded


def test_another_connection_is_charged_nothing_for_the_one_before() -> None:
    corrections, decision = Corrections(), remote()
    for number in range(5):
        answered(corrections, decision, 800.0, 3.0, 100.0 * number)
    corrections.on_connected()
    assert corrections.network_ms(500.0) == 0.0
    assert corrections.factor(Stage.CLOUD, 500.0) == pytest.approx(3.0)


def test_one_odd_answer_among_many_moves_nothing() -> None:
    corrections, decision = Corrections(), remote()
    for number in range(10):
        answered(corrections, decision, 5.0, 1.0, 100.0 * number)
    answered(corrections, decision, 900.0, 1.0, 1_000.0)
    assert corrections.network_ms(1_000.0) == pytest.approx(5.0)
