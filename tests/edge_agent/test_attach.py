"""A running agent asked by another program: its state, files sent through it, and what is shown of both."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from cloud_cluster.in_process import InProcessCloud
from edge_agent import attach
from edge_agent.agent import EdgeAgent
from edge_agent.cli import app
from edge_agent.client import Client
from edge_agent.infer_command import infer_files
from edge_agent.top_view import status_view
from shared.errors import (
    ConfigError,
    InputMismatchError,
    PlanError,
    UnavailableError,
    UnknownModelError,
)
from tests.edge_agent.agents import NOWHERE, agent_config, cloud_config, model
from tests.edge_agent.edge_networks import BATCH_ONE

FEW = {"calibration": {"samples": 2}}
PHOTO = BATCH_ONE.numpy()


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
async def client(tmp_path: Path, cache_dir: Path) -> AsyncIterator[Client]:
    """Of an agent alone, with a network that takes images and one that takes a tree."""
    socket = f"ipc://{tmp_path}/agent.sock"
    config = agent_config(
        cache_dir, NOWHERE, model("photos", **FEW), model("trees", **FEW), socket=socket, name="jetson"
    )
    async with EdgeAgent.from_config(config, serve=True), Client(socket) as client:
        yield client


def shown(view: Any, width: int = 160) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(view)
    return console.export_text()


async def test_the_state_tells_link_networks_and_what_became_of_requests(client: Client) -> None:
    state = await client.status()
    assert (state["agent"], state["device"], state["in_flight"]) == ("jetson", "cpu", 0)
    assert state["link"]["state"] == "offline"
    photos, trees = state["models"]
    assert photos["inputs"] == [{"dtype": "uint8", "shape": [1, 16, 16, 3]}]
    assert len(trees["inputs"]) == 3
    assert photos["units"]
    assert "labels" not in photos
    assert photos["requests"] == 0
    await client.infer("photos", PHOTO)
    with pytest.raises(InputMismatchError):
        await client.infer("photos", PHOTO.astype(np.float32))
    with pytest.raises(PlanError):
        await client.infer("photos", PHOTO, objective="cheapest")
    photos = (await client.status())["models"][0]
    assert photos["requests"] == 3
    assert photos["where"]["device"] == 1
    assert photos["errors"] == {"InputMismatchError": 1, "PlanError": 1}
    assert photos["latency_p50_ms"] == pytest.approx(sum(photos["stages_ms"].values()))


async def test_labels_come_where_they_are_asked_for(client: Client) -> None:
    assert [model["labels"] for model in (await client.status(with_labels=True))["models"]] == [None, None]


async def test_a_state_that_does_not_come_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    async with asyncio.timeout(20):
        with pytest.raises(UnavailableError, match="start one with"):
            async with Client(f"ipc://{tmp_path}/nobody.sock", patience_s=0.2):
                raise AssertionError("entered")


async def test_an_array_is_sent_and_its_classes_are_ranked(client: Client, tmp_path: Path) -> None:
    np.save(tmp_path / "photo.npy", PHOTO)
    files = [tmp_path / "photo.npy"] * 2
    first, second = json.loads(await infer_files(client, "photos", files, best=2, as_json=True))
    direct = (await client.infer("photos", PHOTO)).outputs[0]
    assert [each["class"] for each in first["best"]] == np.argsort(-direct)[:2].tolist()
    assert first["best"] == second["best"]
    assert (first["where"], first["outputs"]) == ("device", "float32 1 x 5")
    table = await infer_files(client, "photos", files, best=1)
    assert str(tmp_path / "photo.npy") in table
    assert table.count("%") == 2


async def test_what_cannot_be_sent_is_refused_before_it_is(client: Client, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UnknownModelError, match="did you mean photos"):
        await infer_files(client, "photo", [tmp_path / "a.png"])
    with pytest.raises(InputMismatchError, match="takes 3 tensors"):
        await infer_files(client, "trees", [tmp_path / "a.png"])
    with pytest.raises(ConfigError, match=r"a\.png is an image"):  # this network takes channels last
        await infer_files(client, "photos", [tmp_path / "a.png"])


async def test_top_shows_the_networks_and_with_json_a_line(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    await client.infer("photos", PHOTO)
    await attach.watch(Client(client.endpoint), once=True, every_s=1.0, as_json=True)
    state = json.loads(capsys.readouterr().out)
    text = shown(status_view(state, {"photos": 12.5}))
    assert "agent jetson on cpu" in text
    assert "cloud   offline" in text
    assert "all on the device" in text
    assert "1 request, 12.5 a second; device 100%" in text
    await attach.watch(Client(client.endpoint), once=True, every_s=1.0, as_json=False)
    assert "trees" in capsys.readouterr().out


async def test_a_split_network_is_drawn_with_both_its_sides(tmp_path: Path, cache_dir: Path) -> None:
    async with InProcessCloud(cloud_config(cache_dir, model("photos"))) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, model("photos", cut=1, **FEW))
        async with EdgeAgent.from_config(config) as agent:
            result = await agent.infer("photos", PHOTO)
            state = json.loads(json.dumps(agent.status()))
    text = shown(status_view(state))
    units = len(state["models"][0]["units"])
    assert result.where == "split"
    assert f"1 of {units} units here" in text
    assert "split after" in text
    assert "cloud   online" in text


def test_a_cut_across_branches_and_errors_are_said() -> None:
    plan = {
        "cut": -1,
        "cut_name": "left | right",
        "place": "split",
        "codec": "uint8",
        "payload_bytes": 2000,
        "predicted_ms": None,
        "objective": "energy",
        "reason": "first plan",
        "uplink_measured": True,
        "uplink_bounded": True,
        "uplink_spread": 0.25,
        "uplink_age_ms": 1500.0,
        "rtt_age_ms": 20.0,
        "load_age_ms": None,
        "conditions": {"uplink_bps": 6e6, "rtt_ms": 21.0, "wait_ms": 0.0, "slowdown": 1.0},
    }
    model = {
        "name": "net",
        "digest": "sha256:0123456789",
        "units": ["a", "b"],
        "plan": plan,
        "where": {"split": 3},
        "errors": {"DeadlineError": 2},
        "requests": 5,
        "switches": 1,
        "uplink_bytes": 6000,
        "energy_mj": 9.0,
        "latency_p50_ms": 10.0,
        "latency_p95_ms": 12.0,
        "stages_ms": {"device": 4.0, "uplink": 6.0, "odd": 1.0},
        "prediction_error": None,
    }
    state = {
        "software": "suture 9",
        "agent": "a",
        "device": "cpu",
        "up_s": 3700,
        "in_flight": 0,
        "link": {"state": "online", "reason": "ok"},
        "models": [model],
    }
    text = shown(status_view(state))
    assert "up 1 h 1 min" in text
    assert "uplink at most 6 Mbps ±25%, 2 s ago" in text
    assert "cut across branches: left | right" in text
    assert "DeadlineError 2" in text
    assert "other 1.0" in text
    assert "3 mJ each" in text


def test_the_commands_say_where_an_agent_would_be(tmp_path: Path) -> None:
    for command in (["top", "--once"], ["infer", "photos", "a.npy"]):
        ran = CliRunner().invoke(app, [*command, "--socket", f"ipc://{tmp_path}/none.sock"])
        assert isinstance(ran.exception, UnavailableError)
    ran = CliRunner().invoke(app, ["infer", "photos", "a.npy", "--objective", "{"])
    assert isinstance(ran.exception, ConfigError)


@pytest.mark.parametrize("as_json", [True, False])
def test_doctor_prints_every_check_and_fails_where_one_does(
    tmp_path: Path, cache_dir: Path, as_json: bool
) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text(
        f"cache_dir: {cache_dir}\nsocket: ipc://{tmp_path}/agent.sock\ncloud: {{gateway: '{NOWHERE}'}}\n"
        "models: [{name: photos, factory: 'tests.edge_agent.edge_networks:photos'}]\n"
    )
    ran = CliRunner().invoke(app, ["doctor", "--config", str(config), *(["--json"] if as_json else [])])
    assert ran.exit_code == 1
    if as_json:
        checks = {each["name"]: each for each in json.loads(ran.stdout)}
        assert (checks["torch"]["verdict"], checks["reach"]["verdict"]) == ("ok", "failure")
    else:
        assert "failure  reach" in ran.stdout
        assert "start the cloud" in ran.stdout
