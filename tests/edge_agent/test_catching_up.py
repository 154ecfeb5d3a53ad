"""A calibrated machine: planned on predictions at once, on measurements as soon as nobody waits.

The sweep is real, and very small.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cloud_cluster.in_process import InProcessCloud
from edge_agent import EdgeAgent
from edge_agent.catching_up import CatchingUp
from edge_agent.commands import calibrate_device
from edge_agent.goals import constraints_of
from edge_agent.plan_command import WhatIf, make_plans
from edge_agent.registration import Registered, register
from edge_agent.runner import Runner
from shared.codec import Codec
from shared.config import AgentConfig
from shared.plan.profile import Profile
from tests.edge_agent import edge_networks as networks
from tests.edge_agent.agents import NOWHERE, agent_config, cloud_config, model
from tests.edge_agent.fake_gateway import eventually

IMAGE = networks.BATCH_ONE.numpy()
PHOTOS = model("photos", calibration={"samples": 2})

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """The file of a calibration, as the command made it."""
    config = agent_config(tmp_path_factory.mktemp("calibrated"), NOWHERE, PHOTOS)
    text = calibrate_device(config, share=0.01)
    (path,) = config.cache_dir.glob("predictor-*.json")
    assert f"kept in {path}" in text
    assert "all others" in text
    return path.name, path.read_bytes()


@pytest.fixture
def calibrated(tmp_path: Path, predictor: tuple[str, bytes]) -> Path:
    name, content = predictor
    (tmp_path / name).write_bytes(content)
    return tmp_path


def kept_in(cache_dir: Path, kind: str) -> list[bytes]:
    return [path.read_bytes() for path in cache_dir.glob(f"{kind}-*.json")]


async def registered_in(config: AgentConfig, runner: Runner) -> tuple[Registered, set[str]]:
    steps: set[str] = set()
    known = await register(runner, config.models[0], config, lambda model, step, done, total: steps.add(step))
    return known, steps


async def test_a_start_with_a_predictor_measures_nothing_and_says_so(calibrated: Path) -> None:
    config = agent_config(calibrated, NOWHERE, PHOTOS)
    runner = Runner("cpu", 1)
    known, steps = await registered_in(config, runner)
    await runner.close()
    assert steps == {"capture"}
    assert known.profile.predicted
    assert all(ms > 0 for ms in known.profile.unit_ms)
    assert known.gate is not None
    assert not known.gate.measured  # nothing lossy before it was judged
    crossing = known.profile.payloads[known.graph.cuts[1].live[0]]
    assert set(crossing) == {Codec.FLOAT32, Codec.FLOAT16, Codec.UINT8, Codec.INT4}
    assert crossing[Codec.FLOAT32].payload_bytes == known.graph.live_specs(known.graph.cuts[1], 1)[0].nbytes
    assert not kept_in(calibrated, "profile")


async def test_steps_are_taken_while_nobody_waits_and_replace_what_was_assumed(calibrated: Path) -> None:
    config = agent_config(calibrated, NOWHERE, PHOTOS)
    runner = Runner("cpu", 1)
    known, _ = await registered_in(config, runner)
    asked = 0
    waiting, may_go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    got: list[Registered] = []

    async def idle(for_s: float) -> None:
        nonlocal asked
        asked += 1
        waiting.set()
        await may_go_on.wait()

    def on_measured(name: str, better: Registered) -> None:
        got.append(better)
        if len(got) == 2:
            ended.set()

    later = CatchingUp(runner, config, idle, on_measured)
    later.add("photos", known, constraints_of(config.models[0]))
    task = asyncio.create_task(later.run())
    await waiting.wait()
    await runner.call(lambda: None)
    assert (asked, got) == (1, [])  # a request is in flight: not one step is taken
    may_go_on.set()
    async with asyncio.timeout(60):
        await ended.wait()
    task.cancel()
    await runner.close()
    profile, gate = got[0].profile, got[1].gate
    assert not profile.predicted
    assert got[0].gate is known.gate
    assert got[1].profile is profile
    assert gate is not None
    assert gate.measured
    assert asked > 2 * config.profile_repeats + len(gate.measured)
    (kept,) = kept_in(calibrated, "profile")
    assert Profile.from_json(kept) == profile
    assert len(kept_in(calibrated, "gate")) == 1


async def test_an_agent_serves_at_once_and_plans_on_what_it_measured_meanwhile(calibrated: Path) -> None:
    async with InProcessCloud(cloud_config(calibrated / "cloud", model("photos"))) as cloud:
        config = agent_config(calibrated, cloud.device_endpoint, PHOTOS)
        seen: list[str] = []
        async with EdgeAgent.from_config(config) as agent, asyncio.timeout(60):
            while "measured" not in seen or "not judged yet" in agent.explain("photos").exclusions:
                result = await agent.infer("photos", IMAGE)
                seen.append(result.decision["profile"])
                await asyncio.sleep(0.05)
            lossy = {each.codec for each in agent.explain("photos").candidates if not each.excluded}
            assert {"float16", "float16+zstd"} <= lossy
        assert seen == sorted(seen, reverse=True)  # predicted, then measured
    known, _ = await registered_in(config, runner := Runner("cpu", 1))
    await runner.close()
    assert not known.profile.predicted


async def test_a_plan_says_that_it_rests_on_predictions(calibrated: Path) -> None:
    config = agent_config(calibrated, NOWHERE, PHOTOS)
    asked = WhatIf(cloud_factor=10.0)
    (planned,) = await make_plans(config, config.models, asked)
    assert planned.facts["device"].startswith("predicted: ")
    assert {each.codec for each in planned.explanation.candidates if not each.excluded} <= {
        "float32",
        "raw",
        "",
    }
    async with EdgeAgent.from_config(config) as agent:
        await eventually(lambda: agent.decision("photos").profile == "measured")
    (planned,) = await make_plans(config, config.models, asked)
    assert planned.facts["device"].startswith("measured: ")
