"""What the doctor finds, with a real gateway and with everything that can be amiss."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from cloud_cluster.in_process import InProcessCloud
from edge_agent.checks import Check, Verdict, render
from edge_agent.cloud_checks import gateway_checks
from edge_agent.doctor import examine
from edge_agent.estimate import LinkEstimator
from edge_agent.scout import Visit
from shared.config import AgentConfig, LinkKeysConfig
from shared.wire.messages import Card, Limits, ModelCard, ModelLoad, ModelOffer
from tests.edge_agent.agents import NOWHERE, agent_config, cloud_config, model


def by_name(config: AgentConfig) -> dict[str, Check]:
    return {check.name: check for check in examine(config)}


async def test_a_healthy_device_and_cloud_are_found_to_be_so(tmp_path: Path) -> None:
    async with InProcessCloud(cloud_config(tmp_path, model("photos"))) as cloud:
        config = agent_config(
            tmp_path, cloud.device_endpoint, model("photos"), socket=f"ipc://{tmp_path}/agent.sock"
        )
        found = await asyncio.to_thread(by_name, config)
    amiss = {name for name, check in found.items() if check.verdict is not Verdict.OK}
    assert amiss <= {"power"}  # which meter there is depends on the machine
    assert found["cloud photos"].found == "the same network, 1 replica(s) ready"
    assert "MB of weights, sha256:" in found["model photos"].found
    assert "load feed heard" in found["link"].found
    assert found["gateway"].found.endswith("not encrypted")


async def test_different_networks_under_one_name_are_a_failure(tmp_path: Path) -> None:
    async with InProcessCloud(cloud_config(tmp_path, model("photos", "other_photos"))) as cloud:
        found = await asyncio.to_thread(
            by_name, agent_config(tmp_path, cloud.device_endpoint, model("photos"))
        )
    assert found["cloud photos"].verdict is Verdict.FAILURE
    assert "sha256:" in found["cloud photos"].found
    assert "same bundle" in found["cloud photos"].remedy


def test_without_a_gateway_the_port_and_the_gateway_fail_with_a_next_step(tmp_path: Path) -> None:
    found = by_name(agent_config(tmp_path, NOWHERE, model("photos")))
    assert found["reach"].verdict is Verdict.FAILURE
    assert "start the cloud" in found["reach"].remedy
    assert found["gateway"].verdict is Verdict.FAILURE
    assert not any(name.startswith("cloud ") for name in found)


def test_what_the_configuration_names_and_is_not_there_is_named(tmp_path: Path) -> None:
    config = agent_config(tmp_path, NOWHERE, model("photos"))
    broken = config.model_copy(
        update={
            "models": [config.models[0].model_copy(update={"factory": "nowhere:at_all"})],
            "socket": f"ipc://{tmp_path}/missing/too/agent.sock",
            "cloud": config.cloud.model_copy(
                update={"keys": LinkKeysConfig(secret=tmp_path / "none.key_secret", server="x" * 40)}
            ),
        }
    )
    found = by_name(broken)
    assert "nowhere" in found["model photos"].remedy
    assert "missing" in found["socket"].found
    assert found["keys"].verdict is Verdict.FAILURE
    assert "keys new" in found["keys"].remedy
    assert "gateway" not in found  # without its key there is no use in knocking


def test_a_gpu_that_is_not_there_is_a_failure_with_a_remedy(tmp_path: Path) -> None:
    config = agent_config(tmp_path, NOWHERE, model("photos")).model_copy(update={"device": "cuda:99"})
    device = by_name(config)["device"]
    assert device.verdict is Verdict.FAILURE
    assert "device: cpu" in device.remedy


def test_a_cache_that_cannot_be_written_and_too_many_threads_are_warnings(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    config = agent_config(tmp_path, NOWHERE, model("photos")).model_copy(
        update={"cache_dir": tmp_path / "file", "threads": 4096}
    )
    found = by_name(config)
    assert found["cache"].verdict is Verdict.WARNING
    assert found["device"].verdict is Verdict.WARNING
    assert "4096 threads" in found["device"].found


def test_a_name_that_does_not_resolve_is_not_taken_for_a_dead_gateway(tmp_path: Path) -> None:
    found = by_name(agent_config(tmp_path, "tcp://no-such-host.invalid:5555", model("photos")))
    assert "DNS" in found["reach"].remedy


def test_an_agent_that_is_running_is_noticed(tmp_path: Path) -> None:
    config = agent_config(tmp_path, NOWHERE, model("photos")).model_copy(
        update={"socket": f"ipc://{tmp_path}/agent.sock"}
    )
    assert by_name(config)["socket"].found.endswith("free")
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(f"{tmp_path}/agent.sock")
        agent.listen()
        assert "is serving there" in by_name(config)["socket"].found


OFFER = ModelOffer(name="photos", digest="sha256:1")
CARD = Card(
    gateway="g",
    software="suture 0.0.0",
    limits=Limits(),
    models=[ModelCard(name="photos", digest="sha256:1", index=0, unit_ms=[], replicas=0)],
)
LOAD = ModelLoad(name="photos", ready=0, starting=0, target=0, queue_ms=0, wait_ms=0, slowdown=1)
VISIT = Visit(CARD, "", LinkEstimator(5e6, 40.0).estimate(0.0), True, True, {"photos": LOAD})


@pytest.mark.parametrize(
    ("visit", "name", "verdict", "said"),
    [
        (VISIT, "gateway", Verdict.WARNING, "update the older"),
        (VISIT, "link", Verdict.OK, ""),
        (VISIT, "cloud photos", Verdict.WARNING, "wait for it"),
        (replace(VISIT, loads={}), "link", Verdict.WARNING, "load_port"),
        (
            replace(VISIT, card=None, problem="silence"),
            "gateway",
            Verdict.FAILURE,
            "computes everything here",
        ),
    ],
)
def test_every_state_of_the_gateway_has_its_verdict(
    tmp_path: Path, visit: Visit, name: str, verdict: Verdict, said: str
) -> None:
    config = agent_config(tmp_path, NOWHERE, model("photos"))
    found = {check.name: check for check in gateway_checks(config, visit, [OFFER])}
    assert found[name].verdict is verdict
    assert said in found[name].remedy


def test_a_check_is_shown_with_its_remedy_and_without_markup_of_its_own() -> None:
    shown = render(Check("cache", Verdict.WARNING, "[bold]dir", "make room"))
    assert "\\[bold]dir" in shown
    assert shown.endswith("make room")
    assert "→" not in render(Check("cache", Verdict.OK, "fine"))
