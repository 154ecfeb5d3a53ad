"""The link fails in every way a link can: answers keep coming, and the cloud is used again afterwards."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.gate import Gate, Towards
from cloud_cluster.in_process import InProcessCloud
from edge_agent import EdgeAgent
from edge_agent.link import LinkState
from edge_agent.result import Result
from edge_agent.session import Session
from tests.faults.rig import (
    HEARTBEAT_MS,
    HEARTBEAT_TIMEOUT_MS,
    IMAGE,
    Traffic,
    agent_behind,
    cloud_of,
    eventually,
    gate_to,
    remote,
)
from tests.security.keyring import Keyring

SEED = 41


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


def ask(agent: EdgeAgent) -> Traffic:
    return Traffic(partial(agent.infer, "photos", IMAGE))


BREAKING: dict[str, Callable[[Gate], Any]] = {
    "refuse": Gate.refuse,
    "blackhole": Gate.blackhole,
    "half open, the device is not told": lambda gate: gate.half_open("gateway"),
}
"""What leaves no way to the cloud until it is healed, or until the device finds out."""

PASSING: dict[str, Callable[[Gate], Any]] = {
    "reset": Gate.reset,
    "half closed towards the device": lambda gate: gate.half_close("device"),
    "half closed towards the gateway": lambda gate: gate.half_close("gateway"),
    "half open, the gateway is not told": lambda gate: gate.half_open("device"),
}
"""What ends the connections that there are, and lets others be made."""

SLOWING: dict[str, Callable[[Gate], Any]] = {
    "latency": lambda gate: gate.latency(0.1),
    "rate": lambda gate: gate.rate(800_000),
    "slice": lambda gate: gate.slice(1),
}


async def through(fault: Callable[[Gate], Any], cache_dir: Path, *, offline: bool) -> Traffic:
    """Traffic before, during and after a fault."""
    async with InProcessCloud(cloud_of(cache_dir)) as cloud:
        with gate_to(cloud.device_endpoint, cloud.load_endpoint) as gate:
            async with agent_behind(gate, cache_dir) as agent:
                traffic = ask(agent)
                async with traffic.flowing():
                    await traffic.more(5, remote)
                    fault(gate)
                    if offline:
                        await eventually(lambda: agent.link_state is not LinkState.ONLINE)
                    await traffic.more(20)
                    gate.heal()
                    await traffic.more(5, remote)
                traffic.settle(agent)
    return traffic


@pytest.mark.parametrize("name", [*BREAKING, *PASSING])
async def test_a_broken_link_costs_no_answer_and_heals(cache_dir: Path, name: str) -> None:
    fault = {**BREAKING, **PASSING}[name]
    traffic = await through(fault, cache_dir, offline=True)
    assert set(traffic.places) & {"device", "device-fallback"}


@pytest.mark.parametrize("name", SLOWING)
async def test_a_slow_link_costs_no_answer_and_heals(cache_dir: Path, name: str) -> None:
    await through(SLOWING[name], cache_dir, offline=False)


async def test_an_outage_of_many_attempts_to_dial_costs_no_answer_and_heals(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the network is gone for half a minute, with every timeout a tenth of what is usual."""
    began: list[str] = []
    run = Session.run

    async def counted(self: Session) -> Any:
        began.append(self.endpoint)
        return await run(self)

    monkeypatch.setattr(Session, "run", counted)
    async with InProcessCloud(cloud_of(cache_dir)) as cloud:
        with gate_to(cloud.device_endpoint, cloud.load_endpoint) as gate:
            async with agent_behind(gate, cache_dir) as agent:
                traffic = ask(agent)
                async with traffic.flowing():
                    await traffic.more(5, remote)
                    gate.blackhole()
                    await eventually(lambda: agent.link_state is LinkState.OFFLINE)
                    began.clear()
                    await eventually(lambda: len(began) >= 2)
                    gate.refuse()
                    await eventually(lambda: len(began) >= 8)
                    gate.heal()
                    await traffic.more(5, remote)
                traffic.settle(agent)


async def test_a_connection_that_breaks_at_any_byte_costs_no_answer(cache_dir: Path) -> None:
    """In greetings, in hellos and cards, in the middle of payloads and of answers."""
    chance = random.Random(SEED)
    async with InProcessCloud(cloud_of(cache_dir)) as cloud:
        with gate_to(cloud.device_endpoint, cloud.load_endpoint) as gate:
            async with agent_behind(gate, cache_dir) as agent:
                traffic = ask(agent)
                async with traffic.flowing():
                    for number in range(24):
                        towards: Towards = "gateway" if number % 2 else "device"
                        nbytes = int(math.exp(chance.uniform(0.0, math.log(20_000))))
                        print(f"seed {SEED}: {nbytes} more bytes towards the {towards}")
                        gate.drop_after(nbytes, towards)
                        # The byte may fall on the load feed, whose loss is no loss of the gateway.
                        await traffic.more(3)
                    gate.heal()
                    await traffic.more(5, remote)
                traffic.settle(agent)


async def test_with_keys_corrupted_bytes_cost_no_answer_and_change_none(
    cache_dir: Path, tmp_path: Path
) -> None:
    keyring = Keyring(tmp_path / "keys")
    keyring.list("camera")
    async with InProcessCloud(cloud_of(cache_dir, gateway={"keys": keyring.of_gateway})) as cloud:
        with gate_to(cloud.device_endpoint, cloud.load_endpoint) as gate:
            async with agent_behind(gate, cache_dir, keys=keyring.of_device("camera")) as agent:
                traffic = ask(agent)
                async with traffic.flowing():
                    await traffic.more(5, remote)
                    print(f"seed {SEED}")
                    gate.corrupt(every_bytes=5_000.0, seed=SEED)
                    await traffic.more(20)
                    gate.heal()
                    # A corrupted length looks like a slow link, for as long as those are excused.
                    await traffic.more(5, remote)
                traffic.settle(agent)


async def test_without_keys_corrupted_bytes_end_no_request_without_an_outcome(cache_dir: Path) -> None:
    """Answers may be wrong then, which only a key can tell; but all come, and the cloud is used again."""
    async with InProcessCloud(cloud_of(cache_dir)) as cloud:
        with gate_to(cloud.device_endpoint, cloud.load_endpoint) as gate:
            async with agent_behind(gate, cache_dir) as agent:
                counters = agent.pipeline.table.counters
                for seed in range(SEED, SEED + 4):
                    print(f"seed {seed}")
                    gate.corrupt(every_bytes=3_000.0, seed=seed)
                    requests = [agent.infer("photos", IMAGE) for _ in range(20)]
                    ended = await asyncio.gather(*requests, return_exceptions=True)
                    assert [end for end in ended if not isinstance(end, Result)] == []
                    gate.heal()
                    traffic = ask(agent)
                    async with traffic.flowing():
                        await traffic.more(5, remote)
                    assert traffic.errors == []
                assert counters.submitted == counters.completed_by_cloud + counters.completed_by_device
                assert len(agent.pipeline.table) == agent.pipeline.table.held_bytes == 0


async def test_silence_is_noticed_within_the_heartbeats_of_one_timeout(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in heartbeats, because a machine may be slow and its heartbeats with it."""
    sent: list[float] = []
    ping = Session.send_ping

    def counted(self: Session, probe_bytes: int) -> bool:
        sent.append(self.silence.heard_ms)
        return ping(self, probe_bytes)

    monkeypatch.setattr(Session, "send_ping", counted)
    async with InProcessCloud(cloud_of(cache_dir)) as cloud:
        with gate_to(cloud.device_endpoint, cloud.load_endpoint) as gate:
            async with agent_behind(gate, cache_dir) as agent:
                await eventually(lambda: len(sent) > 3)
                gate.blackhole()
                sent.clear()
                await eventually(lambda: agent.link_state is LinkState.OFFLINE)
                assert "nothing heard from" in agent.link_reason
    assert 1 <= len(sent) <= math.ceil(HEARTBEAT_TIMEOUT_MS / HEARTBEAT_MS) + 2
