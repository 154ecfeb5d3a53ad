"""The transform end to end: fitted by the command, judged on other inputs, used through a real cloud where
both sides hold the same tables, and left alone where they do not."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cloud_cluster.in_process import InProcessCloud
from edge_agent import EdgeAgent, runner
from edge_agent.commands import write_bundle
from edge_agent.fit_command import fit_tables
from edge_agent.result import Where
from shared.codec import TRANSFORMS, Codec, Form
from shared.codec.network_tables import NetworkTables
from shared.config import AgentConfig, ModelSource
from shared.errors import ConfigError, PlanError
from shared.models import TABLES_FILE, resolve
from tests.edge_agent import edge_networks as networks
from tests.edge_agent.agents import agent_config, cloud_config, eager, model

CALIBRATION = {"factory": "tests.edge_agent.edge_networks:views", "samples": 40}
NAME = "landscapes"
UNSEEN = [networks.synthetic_photo(3, 32, 32, 1000 + seed) for seed in range(4)]


def landscapes(**values: Any) -> dict[str, Any]:
    return model(NAME, calibration=CALIBRATION, min_agreement=0.5, **values)


def source(config: AgentConfig) -> Any:
    return config.models[0]


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    out = tmp_path_factory.mktemp("tables") / "landscapes.safetensors"
    said = fit_tables(source(agent_config(cache_dir, "tcp://127.0.0.1:9", landscapes())), out, cache_dir)
    assert "fitted to 20 inputs (factory)" in said
    assert "transform_tables: landscapes.safetensors" in said
    return out


def other_tables(tables: Path, out: Path) -> Path:
    """Good ones, but not the same."""
    read = NetworkTables.from_bytes(tables.read_bytes())
    fewer = {slot: each for slot, each in read.by_slot.items() if slot != max(read.by_slot)}
    out.write_bytes(NetworkTables(read.network, fewer, read.fitted_to).to_bytes())
    return out


def used(agent: EdgeAgent) -> set[Codec]:
    rows = agent.decision(NAME).rows
    return {rows.codec_of(row) for row in range(len(rows))} & set(TRANSFORMS)


def off_by(got: Any, want: Any) -> float:
    return float(np.abs(np.asarray(got) - want.numpy()).max() / np.abs(want.numpy()).max())


async def test_split_is_whole_within_the_steps_fidelity_at_every_cut(cache_dir: Path, tables: Path) -> None:
    served = model(NAME, transform_tables=str(tables))
    mine = landscapes(transform_tables=str(tables))
    async with InProcessCloud(cloud_config(cache_dir, served)) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, mine)
        async with EdgeAgent.from_config(config) as agent:
            assert TRANSFORMS[0] in used(agent)
            rows = agent.decision(NAME).rows
            cuts = {rows.cut_of(row).index for row in range(len(rows)) if rows.codec_of(row) in TRANSFORMS}
            assert len(cuts) >= 3
            for index in sorted(cuts):
                sizes, errors = [], []
                for codec in (Codec.TRANSFORM_1, Codec.TRANSFORM_4):
                    if rows.find(agent.graph(NAME).cuts[index], codec) is None:
                        continue  # not good enough here
                    agent.pin(NAME, index, codec)
                    for image in UNSEEN[:2]:
                        result = await agent.infer(NAME, image)
                        assert result.fallback is None
                        assert result.where is Where.SPLIT
                        assert result.codec == codec.label
                        assert result.decision["payload_bytes"] > 0
                        errors.append(off_by(result.outputs, eager(networks.landscapes, image)))
                        sizes.append(result.uplink_bytes)
                plain = sum(
                    spec.nbytes for spec in agent.graph(NAME).live_specs(agent.graph(NAME).cuts[index], 1)
                )
                assert max(sizes) < plain / 2
                assert max(errors[:2]) < 0.02
                assert max(errors) < 0.2


async def test_a_batch_travels_by_the_transform_too(cache_dir: Path, tables: Path) -> None:
    served = model(NAME, transform_tables=str(tables))
    async with InProcessCloud(cloud_config(cache_dir, served)) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, landscapes(transform_tables=str(tables)))
        async with EdgeAgent.from_config(config) as agent:
            agent.pin(NAME, 2, Codec.TRANSFORM_2)
            images = torch.cat(UNSEEN)
            result = await agent.infer(NAME, images)
            assert (result.where, result.codec, result.fallback) == (Where.SPLIT, "transform-2", None)
            assert off_by(result.outputs, eager(networks.landscapes, images)) < 0.05


async def test_what_was_fitted_to_is_not_what_it_is_judged_on(cache_dir: Path, tables: Path) -> None:
    config = agent_config(cache_dir, "tcp://127.0.0.1:9", landscapes(transform_tables=str(tables)))
    async with EdgeAgent.from_config(config) as agent:
        known = agent.models[NAME].tables
        assert known is not None
        assert len(known.fitted_to) == 20


@pytest.mark.parametrize("there", ["none", "others"])
async def test_without_the_same_tables_in_the_cloud_the_transform_is_left_alone(
    cache_dir: Path, tables: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, there: str
) -> None:
    values = {} if there == "none" else {"transform_tables": str(other_tables(tables, tmp_path / "others"))}
    async with InProcessCloud(cloud_config(cache_dir, model(NAME, **values))) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, landscapes(transform_tables=str(tables)))
        async with EdgeAgent.from_config(config) as agent:
            assert used(agent) == set()
            with pytest.raises(PlanError, match="not transform-1"):
                agent.pin(NAME, 2, Codec.TRANSFORM_1)
            agent.pin(NAME, 2)
            result = await agent.infer(NAME, UNSEEN[0])
            assert (result.where, result.codec) == (Where.SPLIT, "float32")
            await asyncio.sleep(0.2)
        said = [each.getMessage() for each in caplog.records if "transform is not used" in each.getMessage()]
        assert len(said) == 1
        assert "edge-agent fit" in said[0]


async def test_a_device_without_tables_does_not_use_those_of_the_cloud(
    cache_dir: Path, tables: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = model(NAME, transform_tables=str(tables))
    async with InProcessCloud(cloud_config(cache_dir, served)) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, landscapes())
        async with EdgeAgent.from_config(config) as agent:
            assert used(agent) == set()
            assert "its tables are none here" in caplog.text


async def test_a_damaged_payload_is_refused_and_the_device_completes(
    cache_dir: Path, tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaging(*args: Any) -> Any:
        header, payload = whole(*args)
        damaged = bytearray(payload)
        damaged[-1] ^= 0xFF
        damaged[3] ^= 0xFF  # the head of the segment
        return header, bytes(damaged)

    whole = runner.encode
    served = model(NAME, transform_tables=str(tables))
    async with InProcessCloud(cloud_config(cache_dir, served)) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, landscapes(transform_tables=str(tables)))
        async with EdgeAgent.from_config(config) as agent:
            agent.pin(NAME, 2, Codec.TRANSFORM_1)
            monkeypatch.setattr(runner, "encode", damaging)
            result = await agent.infer(NAME, UNSEEN[0])
            assert result.where is Where.DEVICE
            assert result.fallback is not None
            assert off_by(result.outputs, eager(networks.landscapes, UNSEEN[0])) < 1e-5


async def test_fidelity_within_a_deadline_takes_the_best_answer_that_the_link_allows(
    cache_dir: Path, tables: Path
) -> None:
    served = model(NAME, transform_tables=str(tables))
    mine = landscapes(transform_tables=str(tables), objective={"maximise": "fidelity", "deadline_ms": 60_000})
    async with InProcessCloud(cloud_config(cache_dir, served)) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, mine)
        async with EdgeAgent.from_config(config) as agent:
            decision = agent.decision(NAME)
            assert decision.objective == "fidelity within 60000 ms"
            assert decision.rows.infidelity[decision.row] == 0
            lossy = [
                row for row in range(len(decision.rows)) if decision.rows.codec_of(row).form is not Form.EXACT
            ]
            assert all(0 < decision.rows.infidelity[row] <= 0.5 for row in lossy)
            result = await agent.infer(
                NAME, UNSEEN[0], objective={"maximise": "fidelity", "deadline_ms": 50_000}
            )
            assert result.decision["objective"] == "fidelity within 50000 ms"


async def test_tables_travel_in_a_bundle(cache_dir: Path, tables: Path, tmp_path: Path) -> None:
    made = ModelSource(
        name=NAME, factory="tests.edge_agent.edge_networks:landscapes", transform_tables=tables
    )
    bundle = tmp_path / "bundle"
    write_bundle(made, bundle)
    assert (bundle / TABLES_FILE).exists()
    held = resolve(ModelSource(name=NAME, bundle=bundle)).tables
    assert held is not None
    given = resolve(made).tables
    assert given is not None
    assert held.digest == given.digest
    values = {"name": NAME, "bundle": str(bundle)}
    async with InProcessCloud(cloud_config(cache_dir, values)) as cloud:
        mine = {**values, "calibration": CALIBRATION, "min_agreement": 0.5}
        config = agent_config(cache_dir, cloud.device_endpoint, mine)
        async with EdgeAgent.from_config(config) as agent:
            agent.pin(NAME, 2, Codec.TRANSFORM_1)
            result = await agent.infer(NAME, UNSEEN[0])
            assert (result.where, result.codec, result.fallback) == (Where.SPLIT, "transform-1", None)


def test_fitting_into_a_bundle_replaces_what_it_held(cache_dir: Path, tables: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    write_bundle(ModelSource(name=NAME, factory="tests.edge_agent.edge_networks:landscapes"), bundle)
    (bundle / TABLES_FILE).write_bytes(b"not tables")
    mine = {"name": NAME, "bundle": str(bundle), "calibration": {**CALIBRATION, "samples": 8}}
    config = agent_config(cache_dir, "tcp://127.0.0.1:9", mine)
    with pytest.raises(ConfigError, match="are of no use for landscapes"):
        resolve(source(config))
    assert "part of the bundle" in fit_tables(source(config), bundle, cache_dir)
    assert resolve(source(config)).tables is not None


def test_tables_of_another_network_and_too_few_inputs_say_what_to_do(
    cache_dir: Path, tables: Path, tmp_path: Path
) -> None:
    other = ModelSource(
        name="photos", factory="tests.edge_agent.edge_networks:photos", transform_tables=tables
    )
    with pytest.raises(ConfigError, match="fit them again with `edge-agent fit`"):
        resolve(other)
    with pytest.raises(ConfigError, match="cannot read the transform tables"):
        resolve(other.model_copy(update={"transform_tables": tmp_path / "none"}))
    few = {**landscapes(), "calibration": {**CALIBRATION, "samples": 3}}
    with pytest.raises(ConfigError, match="3 calibration inputs are too few"):
        fit_tables(source(agent_config(cache_dir, "tcp://127.0.0.1:9", few)), tmp_path / "out", cache_dir)
    shutil.rmtree(tmp_path)
