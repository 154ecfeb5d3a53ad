"""Objectives, of a network and of a single request, and the energy in results."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cloud_cluster.in_process import InProcessCloud
from edge_agent import EdgeAgent
from edge_agent.power import choose_meter
from edge_agent.result import Result, Where
from edge_agent.runner import Runner
from shared.errors import PlanError
from shared.plan.energy import BUSY
from tests.edge_agent import edge_networks as networks
from tests.edge_agent.agents import NOWHERE, agent_config, cloud_config, model

IMAGE = networks.BATCH_ONE.numpy()
POWER = {"busy_w": 8.0, "idle_w": 2.0, "link": "wifi", "meter": "model"}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


@contextlib.asynccontextmanager
async def connected(cache_dir: Path, **values: Any) -> AsyncIterator[EdgeAgent]:
    photos = model("photos", calibration={"samples": 2}, **values)
    async with InProcessCloud(cloud_config(cache_dir, model("photos"))) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, photos, power=POWER)
        async with EdgeAgent.from_config(config) as agent:
            yield agent


async def test_a_network_has_its_objective_and_a_request_may_have_its_own(cache_dir: Path) -> None:
    async with connected(cache_dir, objective={"minimise": "energy", "deadline_ms": 5000}) as agent:
        frugal = await agent.infer("photos", IMAGE)
        assert (frugal.decision["objective"], frugal.decision["unit"]) == ("energy within 5000 ms", "mJ")
        assert frugal.decision["cost"] == pytest.approx(frugal.decision["energy_mj"])
        fast = await agent.infer("photos", IMAGE, objective="latency")
        assert (fast.decision["objective"], fast.decision["unit"]) == ("latency", "ms")
        assert fast.decision["cost"] == pytest.approx(fast.decision["predicted_ms"])
        cheap = await agent.infer("photos", IMAGE, objective={"minimise": "weighted", "per_uplink_kb": 1.0})
        assert cheap.decision["unit"] == "points"
        assert (cheap.where, cheap.uplink_bytes) == (Where.DEVICE, 0)
        again = await agent.infer("photos", IMAGE)
        assert again.decision["objective"] == "energy within 5000 ms"


async def test_an_objective_that_is_none_or_cannot_be_kept_is_an_error(
    cache_dir: Path,
) -> None:
    config = agent_config(cache_dir, NOWHERE, model("photos", calibration={"samples": 2}))
    async with EdgeAgent.from_config(config) as agent:
        for objective, said in [
            ("speed", "objective 'speed' is not one: .*'latency', 'energy'"),
            ({"minimise": "energy", "energy_mj": 1.0}, "takes deadline_ms, not energy_mj"),
            (["energy"], "is not one"),
            ("weighted", "is not one: weighted needs a price above 0"),
            (
                {"minimise": "latency", "energy_mj": 1e-9},
                "energy_mj 1e-09 cannot be kept; the nearest possible",
            ),
        ]:
            with pytest.raises(PlanError, match=said):
                await agent.infer("photos", IMAGE, objective=objective)
        assert len(agent.pipeline.table) == 0
        assert (await agent.infer("photos", IMAGE)).where is Where.DEVICE


def reckoned(result: Result) -> float:
    """By hand: 8 W in stages of compute, 2 W in all others, and Wi-Fi's line for both transfers."""
    busy = sum(ms for stage, ms in result.breakdown.items() if stage in BUSY)
    energy = 8.0 * busy + 2.0 * (result.latency_ms - busy)
    if result.uplink_bytes:
        uplink_ms = result.breakdown.get("uplink", 0.0)  # none where so little is sent at once
        planned_mbps = result.decision["conditions"]["uplink_bps"] / 1e6
        mbps = result.uplink_bytes * 8 / uplink_ms / 1e3 if uplink_ms else planned_mbps
        energy += (283.17 * mbps + 132.86) / 1e3 * (result.uplink_bytes * 8 / mbps / 1e3)
        down_mbps = result.decision["conditions"]["downlink_bps"] / 1e6
        energy += (137.01 * down_mbps + 132.86) / 1e3 * (5 * 4 * 8 / 1e3 / down_mbps)
    return energy


async def test_the_model_meter_reckons_what_was_measured_at_the_watts_of_the_plans(cache_dir: Path) -> None:
    async with connected(cache_dir) as agent:
        for cut in (0, 3, len(agent.graph("photos").cuts) - 1):
            agent.pin("photos", cut)
            result = await agent.infer("photos", IMAGE)
            assert result.meter == "model"
            assert result.energy_mj == pytest.approx(reckoned(result))
            assert bool(result.uplink_bytes) == (result.where is not Where.DEVICE)


async def test_a_counter_measures_from_the_start_of_a_request_to_its_end(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "sys/class/powercap/intel-rapl:0"
    package.mkdir(parents=True)
    for name, text in {"name": "package-0", "energy_uj": "1000", "max_energy_range_uj": "9000000"}.items():
        (package / name).write_text(text)

    class Drawing(Runner):
        """Every section of compute costs 2.5 mJ."""

        def _timed(self, section: str, body: Callable[[], Any]) -> tuple[Any, float]:
            if section == "compute":
                used = int((package / "energy_uj").read_text())
                (package / "energy_uj").write_text(str(used + 2500))
            return super()._timed(section, body)

    monkeypatch.setattr("edge_agent.agent.choose_meter", partial(choose_meter, root=tmp_path))
    photos = model("photos", calibration={"samples": 2})
    config = agent_config(cache_dir, NOWHERE, photos, power={"meter": "auto"})
    async with EdgeAgent.from_config(config, runner_factory=Drawing) as agent:
        for _ in range(2):
            result = await agent.infer("photos", IMAGE)
            assert (result.meter, result.energy_mj) == ("rapl", pytest.approx(2.5))


async def test_a_result_holds_what_was_predicted_beside_what_was_measured(cache_dir: Path) -> None:
    async with connected(cache_dir) as agent:
        agent.pin("photos", 3)
        assert agent.prediction_error("photos") is None
        result = await agent.infer("photos", IMAGE)
        decision = result.decision
        assert decision["measured"] == result.breakdown
        assert {"device", "cloud"} <= decision["predicted"].keys() & decision["measured"].keys()
        assert sum(decision["predicted"].values()) == pytest.approx(decision["predicted_ms"])
        error = agent.prediction_error("photos")
        assert error == pytest.approx(abs(decision["predicted_ms"] - result.latency_ms) / result.latency_ms)
