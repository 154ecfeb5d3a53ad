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
from edge_agent.actions import Fallback
from edge_agent.commands import write_bundle
from edge_agent.fit_command import fit_tables
from edge_agent.result import Where
from shared.calibration import calibrate
from shared.codec import TRANSFORMS, Codec, Form
from shared.codec.network_tables import NetworkTables
from shared.config import ModelConfig, ModelSource
from shared.errors import ConfigError, PlanError
from shared.models import TABLES_FILE, resolve
from tests.edge_agent import edge_networks as networks
from tests.edge_agent.agents import NOWHERE, agent_config, cloud_config, eager

pytestmark = pytest.mark.slow

CALIBRATION = {"factory": "tests.edge_agent.edge_networks:views", "samples": 24}
NAME = "landscapes"
FACTORY = "tests.edge_agent.edge_networks:landscapes"
UNSEEN = [networks.synthetic_photo(3, 32, 32, 1000 + seed) for seed in range(3)]
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the network without tables: captured once for all tests."""
    bundle = tmp_path_factory.mktemp("bundle")
    write_bundle(ModelSource(name=NAME, factory=FACTORY), bundle)
    return bundle


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, plain: Path, cache_dir: Path) -> Path:
    out = tmp_path_factory.mktemp("tables") / "landscapes.safetensors"
    said = fit_tables(source(mine(plain)), out, cache_dir)
    assert "fitted to 12 inputs (factory)" in said
    assert "transform_tables: landscapes.safetensors" in said
    return out


def served(bundle: Path, tables: Path | None = None) -> dict[str, Any]:
    values = {} if tables is None else {"transform_tables": str(tables)}
    return {"name": NAME, "bundle": str(bundle), **values}


def mine(bundle: Path, tables: Path | None = None, **values: Any) -> dict[str, Any]:
    return {**served(bundle, tables), "calibration": CALIBRATION, "min_agreement": 0.5, **values}


def source(values: dict[str, Any]) -> ModelConfig:
    return agent_config(Path(), NOWHERE, values).models[0]


async def pin(agent: EdgeAgent, cut: int, codec: Codec) -> None:
    """Once it has been judged, while nobody waits."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return agent.pin(NAME, cut, codec)
            except PlanError as error:
                if "not judged yet" not in str(error):
                    raise
                await asyncio.sleep(0.05)


def other_tables(tables: Path, out: Path) -> Path:
    """Good ones, but not the same."""
    read = NetworkTables.from_bytes(tables.read_bytes())
    fewer = {slot: each for slot, each in read.by_slot.items() if slot != max(read.by_slot)}
    out.write_bytes(NetworkTables(read.network, fewer, read.fitted_to).to_bytes())
    return out


def off_by(got: Any, want: Any) -> float:
    return float(np.abs(np.asarray(got) - want.numpy()).max() / np.abs(want.numpy()).max())


async def test_split_is_whole_within_the_steps_fidelity_at_every_cut(
    cache_dir: Path, plain: Path, tables: Path
) -> None:
    async with InProcessCloud(cloud_config(cache_dir, served(plain, tables))) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, mine(plain, tables))
        async with EdgeAgent.from_config(config) as agent:
            graph = agent.graph(NAME)
            known = agent.models[NAME].tables
            assert known is not None
            assert len(known.fitted_to) == 12
            cuts = [cut for cut in graph.cuts if cut.live and known.by_slot.keys() >= set(cut.live)]
            assert max(len(cut.live) for cut in cuts) == 2
            assert len(cuts) >= 4
            for cut in cuts:
                sizes, errors = {}, {}
                for codec in (Codec.TRANSFORM_1, Codec.TRANSFORM_3):
                    await pin(agent, cut.index, codec)
                    results = [await agent.infer(NAME, image) for image in UNSEEN[:2]]
                    for result in results:
                        assert (result.where, result.fallback) == (Where.SPLIT, None)
                        assert result.codec == codec.label
                    sizes[codec] = max(result.uplink_bytes for result in results)
                    errors[codec] = max(
                        off_by(result.outputs, eager(networks.landscapes, image))
                        for result, image in zip(results, UNSEEN, strict=False)
                    )
                plain_bytes = sum(spec.nbytes for spec in graph.live_specs(cut, 1))
                assert sizes[Codec.TRANSFORM_3] <= sizes[Codec.TRANSFORM_1] < plain_bytes / 2
                assert errors[Codec.TRANSFORM_1] < 0.05
                assert errors[Codec.TRANSFORM_3] < 0.2


async def test_a_batch_travels_by_the_transform_too(cache_dir: Path, plain: Path, tables: Path) -> None:
    async with InProcessCloud(cloud_config(cache_dir, served(plain, tables))) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, mine(plain, tables))
        async with EdgeAgent.from_config(config) as agent:
            await pin(agent, 2, Codec.TRANSFORM_2)
            images = torch.cat(UNSEEN)
            result = await agent.infer(NAME, images)
            assert (result.where, result.codec, result.fallback) == (Where.SPLIT, "transform-2", None)
            assert off_by(result.outputs, eager(networks.landscapes, images)) < 0.1


@pytest.mark.parametrize("there", ["none", "others"])
async def test_without_the_same_tables_in_the_cloud_the_transform_is_left_alone(
    cache_dir: Path,
    plain: Path,
    tables: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    there: str,
) -> None:
    theirs = None if there == "none" else other_tables(tables, tmp_path / "others")
    async with InProcessCloud(cloud_config(cache_dir, served(plain, theirs))) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, mine(plain, tables))
        async with EdgeAgent.from_config(config) as agent:
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
    cache_dir: Path, plain: Path, tables: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with InProcessCloud(cloud_config(cache_dir, served(plain, tables))) as cloud:
        config = agent_config(
            cache_dir, cloud.device_endpoint, mine(plain, codecs=["float32", "transform-1"])
        )
        async with EdgeAgent.from_config(config) as agent:
            with pytest.raises(PlanError, match="not transform-1"):
                agent.pin(NAME, 2, Codec.TRANSFORM_1)
            assert "its tables are none here" in caplog.text
            assert "its codecs name the transform, which is not used without tables" in caplog.text


async def test_a_damaged_payload_is_refused_and_the_device_completes(
    cache_dir: Path, plain: Path, tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaging(*args: Any) -> Any:
        header, payload = whole(*args)
        damaged = bytearray(payload)
        damaged[3] ^= 0xFF  # which segment it is
        return header, bytes(damaged)

    whole = runner.encode
    async with InProcessCloud(cloud_config(cache_dir, served(plain, tables))) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, mine(plain, tables))
        async with EdgeAgent.from_config(config) as agent:
            await pin(agent, 2, Codec.TRANSFORM_1)
            monkeypatch.setattr(runner, "encode", damaging)
            result = await agent.infer(NAME, UNSEEN[0])
            assert result.where is Where.DEVICE_FALLBACK
            assert result.fallback is Fallback.CLOUD_ERROR
            assert off_by(result.outputs, eager(networks.landscapes, UNSEEN[0])) < 1e-4


async def test_fidelity_within_a_deadline_takes_the_best_answer_that_the_link_allows(
    cache_dir: Path, plain: Path, tables: Path
) -> None:
    objective = {"maximise": "fidelity", "deadline_ms": 60_000}
    async with InProcessCloud(cloud_config(cache_dir, served(plain, tables))) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, mine(plain, tables, objective=objective))
        async with EdgeAgent.from_config(config) as agent:
            await pin(agent, 3, Codec.TRANSFORM_1)
            agent.unpin(NAME)
            decision = agent.decision(NAME)
            rows = decision.rows
            assert decision.objective == "fidelity within 60000 ms"
            assert rows.infidelity[decision.row] == 0
            lossy = [row for row in range(len(rows)) if rows.codec_of(row).form is not Form.EXACT]
            assert set(TRANSFORMS) & {rows.codec_of(row) for row in lossy}
            assert all(0 < rows.infidelity[row] <= 0.5 for row in lossy)
            result = await agent.infer(NAME, UNSEEN[0], objective={**objective, "deadline_ms": 50_000})
            assert result.decision["objective"] == "fidelity within 50000 ms"


async def test_tables_travel_in_a_bundle(cache_dir: Path, plain: Path, tables: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    write_bundle(source(mine(plain, tables)), bundle)
    held, given = resolve(source(mine(bundle))).tables, resolve(source(mine(plain, tables))).tables
    assert held is not None
    assert given is not None
    assert held.digest == given.digest
    async with InProcessCloud(cloud_config(cache_dir, served(bundle))) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, mine(bundle))
        async with EdgeAgent.from_config(config) as agent:
            await pin(agent, 2, Codec.TRANSFORM_1)
            result = await agent.infer(NAME, UNSEEN[0])
            assert (result.where, result.codec, result.fallback) == (Where.SPLIT, "transform-1", None)


def test_fitting_into_a_bundle_replaces_what_it_held(cache_dir: Path, plain: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(plain, tmp_path / "bundle"))
    (bundle / TABLES_FILE).write_bytes(b"not tables")
    few = source(mine(bundle, calibration={**CALIBRATION, "samples": 4}))
    with pytest.raises(ConfigError, match="are of no use for landscapes"):
        resolve(few)
    assert "part of the bundle" in fit_tables(few, bundle, cache_dir)
    found = resolve(few)
    assert found.tables is not None
    calibration = calibrate(found, few.calibration)
    assert calibration.fitted == {1, 3}
    assert len(list(calibration.unfitted())) == 2
    assert found.tables.digest[:16] in calibration.name


def test_tables_of_another_network_and_too_few_inputs_say_what_to_do(
    cache_dir: Path, plain: Path, tables: Path, tmp_path: Path
) -> None:
    other = ModelSource(name="mnist", transform_tables=tables)
    with pytest.raises(ConfigError, match="fit them again with `edge-agent fit`"):
        resolve(other)
    with pytest.raises(ConfigError, match="cannot read the transform tables"):
        resolve(source(mine(plain, tmp_path / "none")))
    few = source(mine(plain, calibration={**CALIBRATION, "samples": 3}))
    with pytest.raises(ConfigError, match="3 calibration inputs are too few"):
        fit_tables(few, tmp_path / "out", cache_dir)
