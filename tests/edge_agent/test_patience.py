from __future__ import annotations

import pytest

from edge_agent.controller import Controller
from edge_agent.patience import Patience
from shared.config import CloudLinkConfig
from tests.edge_agent.test_controller import GRAPH, PROFILE, World, decide


def acts_after_ms(gain: float, seed: int, replicas: int = 1) -> float:
    patience = Patience(1000.0, seed)
    now_ms = 0.0
    while not patience.allows(gain, now_ms, replicas):
        now_ms += 100.0
    return now_ms


def test_it_takes_the_mean_time_at_full_gain_and_longer_for_less() -> None:
    full = sum(acts_after_ms(0.5, seed) for seed in range(400)) / 400
    half = sum(acts_after_ms(0.25, seed) for seed in range(400)) / 400
    assert full == pytest.approx(1000.0, rel=0.15)
    assert half == pytest.approx(2000.0, rel=0.15)


def test_with_many_replicas_fewer_move_at_a_time() -> None:
    sixteen = sum(acts_after_ms(0.5, seed, replicas=16) for seed in range(400)) / 400
    assert sixteen == pytest.approx(4000.0, rel=0.15)


def test_moments_that_went_by_are_not_saved_up() -> None:
    patience = Patience(1000.0, 1)
    patience.passes(0.0)
    patience.passes(60_000.0)
    assert patience.next_ms(60_000.0) > 60_000.0
    assert not patience.allows(1.0, 60_000.0)


def test_without_patience_every_moment_will_do() -> None:
    assert Patience(0.0).allows(0.01, 0.0)


def patient(seed: int) -> World:
    controller = Controller(CloudLinkConfig(), patience_ms=1000.0, seed=seed)
    controller.add_model("net", GRAPH, PROFILE, 0.0)
    return World(controller=controller, planned=True).connect()


def turns_after_ms(world: World, ready: int = 1) -> float:
    began_ms, before = world.now_ms, decide(world).place
    while decide(world).place == before:
        world.now_ms += 100.0
        world.report(ready)
        assert world.now_ms < 60_000.0
    return world.now_ms - began_ms


def test_devices_follow_the_same_news_one_after_the_other() -> None:
    delays = []
    for seed in range(30):
        world = patient(seed)
        assert decide(world).place != "device"
        world.wait_ms = 500.0
        delays.append(turns_after_ms(world))
    assert sum(delay <= 300.0 for delay in delays) < 15
    assert len(set(delays)) > 8
    assert max(delays) < 15_000.0


def test_devices_of_many_replicas_take_longer() -> None:
    def mean_ms(ready: int) -> float:
        worlds = [patient(seed) for seed in range(30)]
        for world in worlds:
            world.wait_ms = 500.0
        return sum(turns_after_ms(world, ready) for world in worlds) / len(worlds)

    # Alone, each goes at its first moment: by then more is gained than it takes for that.
    assert mean_ms(ready=16) > 1.6 * mean_ms(ready=1)


def test_an_impatient_device_follows_at_once() -> None:
    world = World().connect()
    world.wait_ms = 500.0
    assert turns_after_ms(world) <= 100.0


def test_a_deadline_waits_for_no_moment() -> None:
    world = patient(3)
    world.wait_ms = 500.0
    world.report()
    held = decide(world)
    assert held.place != "device"
    assert decide(world, deadline_ms=held.predicted_ms - 1.0).place == "device"


def test_what_is_not_the_load_is_followed_at_once() -> None:
    world = patient(3)
    world.controller.on_disconnected(world.now_ms)
    assert decide(world).place == "device"
    world.controller.on_connected(world.now_ms)
    for _ in range(5):
        world.span()
    world.report()
    assert decide(world).place != "device"
    world.uplink_bps = 1e5
    for _ in range(3):
        world.span()
    assert decide(world).place == "device"
