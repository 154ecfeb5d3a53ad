"""The agent end to end: with the real cloud in this process, and with gateways that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cloud_cluster.in_process import InProcessCloud
from edge_agent import EdgeAgent
from edge_agent.guard import Guard
from edge_agent.link import LinkState
from edge_agent.result import Result, Where
from edge_agent.runner import Runner
from shared.codec import Codec, Form, encode
from shared.errors import (
    ConfigError,
    DeadlineError,
    InputMismatchError,
    InternalError,
    OverloadedError,
    PlanError,
    RefusedError,
    StartupError,
    UnavailableError,
    UnknownModelError,
)
from shared.wire import Message, MessageType, error_reply
from shared.wire.messages import Card, Limits, ModelCard, TailTimings
from shared.wire.messages import Result as ResultHeader
from tests.edge_agent import edge_networks as networks
from tests.edge_agent.agents import NOWHERE, agent_config, cloud_config, eager, model
from tests.edge_agent.fake_gateway import FakeGateway, eventually

IMAGE = networks.BATCH_ONE.numpy()


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Profiles are measured once for all tests."""
    return tmp_path_factory.mktemp("profiles")


PHOTO = eager(networks.photos, networks.BATCH_ONE).numpy()


def check(result: Result, want: np.ndarray = PHOTO) -> None:
    np.testing.assert_allclose(result.outputs, want, rtol=1e-5, atol=1e-6)
    assert sum(result.breakdown.values()) == pytest.approx(result.latency_ms)
    assert all(ms >= 0 for ms in result.breakdown.values())


class Fakes:
    """An agent with the photo network, and a fake gateway that offers it."""

    def __init__(self, agent: EdgeAgent, gateway: FakeGateway) -> None:
        self.agent = agent
        self.gateway = gateway

    def infers(self) -> list[Message]:
        return self.gateway.of(MessageType.INFER)


@contextlib.asynccontextmanager
async def with_fake_gateway(
    cache_dir: Path,
    *,
    limits: Limits | None = None,
    timeout_ms: float = 5000.0,
    runner_factory: Any = Runner,
    **values: Any,
) -> AsyncIterator[Fakes]:
    """Entered, the agent is online, pinned to a cut in the middle."""
    gateway = FakeGateway()
    gateway.card = Card(gateway="fake", software="test", limits=Limits(), models=[])
    async with gateway.serving():
        config = agent_config(cache_dir, gateway.endpoint, model("photos"), timeout_ms=timeout_ms, **values)
        async with EdgeAgent.from_config(config, runner_factory=runner_factory) as agent:
            graph = agent.graph("photos")
            gateway.card = Card(
                gateway="fake",
                software="test",
                limits=limits or Limits(),
                models=[
                    ModelCard(
                        name="photos",
                        digest=graph.digest,
                        index=0,
                        unit_ms=[0.01] * len(graph.units),
                        replicas=1,
                    )
                ],
            )
            gateway.send(gateway.card)
            agent.pin("photos", 3)
            await eventually(lambda: not agent.decision("photos").is_local)
            yield Fakes(agent, gateway)


async def test_every_pinned_cut_gives_the_whole_networks_answer(cache_dir: Path) -> None:
    models = [model("photos"), model("trees")]
    pair = (torch.randn(2, 4), torch.randn(2, 4))
    extra = {"bias": torch.randn(2, 3)}
    want = eager(networks.trees, pair, extra=extra)
    async with InProcessCloud(cloud_config(cache_dir, *models)) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, *models)
        async with EdgeAgent.from_config(config) as agent:
            assert agent.link_state is LinkState.ONLINE
            last = len(agent.graph("photos").cuts) - 1
            for cut in agent.graph("photos").cuts:
                agent.pin("photos", cut.index)
                result = await agent.infer("photos", IMAGE)
                check(result)
                places = {0: Where.CLOUD, last: Where.DEVICE}
                assert result.where is places.get(cut.index, Where.SPLIT)
                assert (result.cut_index, result.cut, result.fallback) == (cut.index, cut.name, None)
                assert result.uplink_bytes == sum(
                    spec.nbytes for spec in agent.graph("photos").live_specs(cut, 1)
                )
                assert ("cloud" in result.breakdown) == (cut.index != last)
                assert result.decision["cut"] == cut.index
            for cut in agent.graph("trees").cuts:
                agent.pin("trees", cut.index)
                result = await agent.infer("trees", pair, extra=extra)
                np.testing.assert_allclose(result.outputs["early"], want["early"].numpy(), rtol=1e-5)
                np.testing.assert_allclose(result.outputs["late"][0], want["late"][0].numpy(), rtol=1e-4)
                assert isinstance(result.outputs["late"], tuple)
                assert result.outputs["late"][1].tolist() == want["late"][1].tolist()


async def test_lossy_codecs_batches_and_the_planners_own_choice(cache_dir: Path) -> None:
    async with InProcessCloud(cloud_config(cache_dir, model("photos"))) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, model("photos"))
        async with EdgeAgent.from_config(config) as agent:
            await agent.caught_up()
            agent.pin("photos", 3, Codec.UINT8_ZSTD)
            result = await agent.infer("photos", IMAGE)
            assert result.codec == "uint8+zstd"
            assert result.uplink_bytes < 8 * 16 * 16 * 4 / 2
            np.testing.assert_allclose(result.outputs, PHOTO, atol=0.02)
            images = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8)
            agent.pin("photos", 3)
            batch = await agent.infer("photos", images)
            check(batch, eager(networks.photos, images).numpy())
            assert batch.where is Where.SPLIT
            agent.unpin("photos")
            check(await agent.infer("photos", IMAGE))
            with pytest.raises(PlanError):
                agent.pin("photos", 99)


async def test_a_codec_for_each_tensor_of_a_cut(cache_dir: Path) -> None:
    side = torch.randint(0, 3, (1, 4096), dtype=torch.int64)
    values = torch.randn(1, 4096)
    async with InProcessCloud(cloud_config(cache_dir, model("masked"))) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, model("masked"))
        async with EdgeAgent.from_config(config) as agent:
            await agent.caught_up()
            rows = agent.decision("masked").rows
            mixes = [row for row in range(len(rows)) if rows.mix[row] >= 0]
            assert mixes
            want = eager(networks.masked, values, side).numpy()
            for row in mixes:
                codecs = rows.codecs_of(row)
                agent.pin("masked", rows.cut_of(row), codecs)
                result = await agent.infer("masked", values, side)
                assert result.codec == rows.label_of(row)
                assert result.fallback is None
                exact = {codec.form for codec in codecs} == {Form.EXACT}
                np.testing.assert_allclose(result.outputs, want, atol=1e-5 if exact else 0.05)
            with pytest.raises(PlanError, match=r"masked may use .*, not .* at once"):
                agent.pin("masked", 0, (Codec.INT4, Codec.FLOAT32))


async def test_without_a_cloud_it_answers_and_says_so_once(
    cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "suture")
    config = agent_config(cache_dir, NOWHERE, model("photos"))
    async with EdgeAgent.from_config(config) as agent:
        assert agent.link_state is LinkState.OFFLINE
        for _ in range(3):
            result = await agent.infer("photos", IMAGE)
            check(result)
            assert (result.where, result.uplink_bytes, result.fallback) == (Where.DEVICE, 0, None)
        await asyncio.sleep(0.3)
    said = [record for record in caplog.records if "nothing answers" in record.getMessage()]
    assert len(said) == 1


async def test_the_first_request_is_planned_on_what_was_measured(cache_dir: Path) -> None:
    async with InProcessCloud(cloud_config(cache_dir, model("photos"))) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, model("photos"))
        async with EdgeAgent.from_config(config) as agent:
            decision = agent.decision("photos")
            assert decision.conditions.reachable
            assert decision.link.measured
            assert np.isfinite(decision.link.rtt_age_ms)
            assert np.isfinite(decision.load_age_ms)


async def test_a_cloud_that_comes_later_is_used_without_a_restart(cache_dir: Path) -> None:
    first = FakeGateway()
    async with first.serving():
        pass  # a free port
    port = int(first.endpoint.rpartition(":")[2])
    config = agent_config(cache_dir, first.endpoint, model("photos"))
    async with EdgeAgent.from_config(config) as agent:
        agent.pin("photos", 2)
        assert (await agent.infer("photos", IMAGE)).where is Where.DEVICE
        async with InProcessCloud(cloud_config(cache_dir, model("photos"), port=port)):
            await eventually(lambda: not agent.decision("photos").is_local)
            result = await agent.infer("photos", IMAGE)
            check(result)
            assert result.where is Where.SPLIT
        await eventually(lambda: agent.decision("photos").is_local)
        check(await agent.infer("photos", IMAGE))


async def test_a_network_that_sleeps_is_asked_for_and_used_once_it_is_awake(cache_dir: Path) -> None:
    asleep = model("photos", replicas=0)
    async with InProcessCloud(cloud_config(cache_dir, asleep)) as cloud:
        wanted: list[str] = []
        cloud.gateway.on_unserved = wanted.append
        async with EdgeAgent.from_config(
            agent_config(cache_dir, cloud.device_endpoint, model("photos"))
        ) as agent:
            agent.pin("photos", 2)
            await eventually(lambda: agent.link_state is LinkState.ONLINE)
            assert wanted == []
            result = await agent.infer("photos", IMAGE)
            check(result)
            assert result.where is Where.DEVICE
            await eventually(lambda: wanted == ["photos"])
            await cloud.add_replica(cloud.config.models[0])
            await eventually(lambda: not agent.decision("photos").is_local)
            check(await agent.infer("photos", IMAGE))
            assert wanted == ["photos"]


async def test_a_cloud_that_dies_with_requests_in_flight_costs_no_answer(cache_dir: Path) -> None:
    gateway = FakeGateway()
    async with contextlib.AsyncExitStack() as stack:
        fakes = await stack.enter_async_context(with_fake_gateway(cache_dir))
        requests = [asyncio.ensure_future(fakes.agent.infer("photos", IMAGE)) for _ in range(5)]
        await eventually(lambda: len(fakes.infers()) == 5)
        fakes.gateway.inbox.close()
        fakes.gateway.socket.close()
        for result in await asyncio.gather(*requests):
            check(result)
            assert (result.where, result.fallback) == (Where.DEVICE_FALLBACK, "unreachable")
            assert "gave_up_after" in result.breakdown
        assert len(fakes.agent.pipeline.table) == fakes.agent.pipeline.table.held_bytes == 0
    assert gateway.got == []


async def test_a_silent_cloud_costs_no_deadline(cache_dir: Path) -> None:
    """The gateway answers heartbeats but never the request: the guard starts the device in time."""
    async with with_fake_gateway(cache_dir) as fakes:
        requests = [
            asyncio.ensure_future(fakes.agent.infer("photos", IMAGE, deadline_ms=1000)) for _ in range(4)
        ]
        for result in await asyncio.gather(*requests):
            check(result)
            assert (result.where, result.fallback) == (Where.DEVICE_FALLBACK, "late")
            assert result.uplink_bytes > 0
        assert len(fakes.infers()) == 4
        assert fakes.agent.pipeline.table.outstanding <= 4


async def test_a_late_answer_changes_nothing(cache_dir: Path) -> None:
    async with with_fake_gateway(cache_dir) as fakes:
        result = await fakes.agent.infer("photos", IMAGE, deadline_ms=300)
        assert result.fallback == "late"
        (infer,) = fakes.infers()
        answer(fakes, infer, np.zeros((1, 5), np.float32))
        counters = fakes.agent.pipeline.table.counters
        await eventually(lambda: counters.late_answers == 1)
        assert (counters.submitted, counters.completed_by_device) == (1, 1)


def answer(fakes: Fakes, infer: Message, outputs: np.ndarray) -> None:
    (slot,) = fakes.agent.graph("photos").outputs
    header, data = encode(torch.from_numpy(outputs), Codec.FLOAT32, slot)
    result = ResultHeader(tensors=[header], timings=TailTimings())
    fakes.gateway.send(result, (bytes(data),), infer.request_id)


@pytest.mark.parametrize(
    ("error", "fallback"),
    [(OverloadedError("full", 5.0), "refused"), (InternalError("a defect there"), "cloud-error")],
)
async def test_a_refused_request_is_finished_here(cache_dir: Path, error: Any, fallback: str) -> None:
    async with with_fake_gateway(cache_dir) as fakes:
        fakes.gateway.on_infer = lambda message: fakes.gateway.send(
            error_reply(error), request_id=message.request_id
        )
        result = await fakes.agent.infer("photos", IMAGE)
        check(result)
        assert (result.where, result.fallback) == (Where.DEVICE_FALLBACK, fallback)
        assert fakes.agent.decision("photos").is_local  # it is not asked again at once


async def test_an_answer_of_another_shape_is_finished_here(cache_dir: Path) -> None:
    async with with_fake_gateway(cache_dir) as fakes:
        fakes.gateway.on_infer = lambda message: answer(fakes, message, np.zeros((1, 6), np.float32))
        result = await fakes.agent.infer("photos", IMAGE)
        check(result)
        assert (result.where, result.fallback) == (Where.DEVICE_FALLBACK, "undecodable")


@pytest.mark.parametrize(
    "limits", [Limits(max_in_flight=0), Limits(max_in_flight_bytes=100), Limits(max_batch=1)]
)
async def test_the_gateways_limits_turn_work_to_the_device(cache_dir: Path, limits: Limits) -> None:
    async with with_fake_gateway(cache_dir, limits=limits) as fakes:
        images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
        result = await fakes.agent.infer("photos", images)
        check(result, eager(networks.photos, images).numpy())
        assert (result.where, result.uplink_bytes) == (Where.DEVICE_FALLBACK, 0)
        assert result.fallback == "link-full"
        assert fakes.infers() == []


async def test_another_network_under_the_same_name_runs_on_the_device_alone(
    cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = [model("photos", "other_photos"), model("trees")]
    async with InProcessCloud(cloud_config(cache_dir, *served)) as cloud:
        config = agent_config(
            cache_dir, cloud.device_endpoint, model("photos"), model("trees"), model("words")
        )
        async with EdgeAgent.from_config(config) as agent:
            check(await agent.infer("photos", IMAGE))
            assert agent.decision("photos").is_local
            agent.pin("trees", 0)
            _, args, kwargs = networks.trees()
            assert (await agent.infer("trees", *args, **kwargs)).where is Where.CLOUD
            here = agent.graph("photos").digest
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    (mismatch,) = [message for message in errors if "under the name photos" in message]
    assert mismatch.count("sha256:") >= 2
    assert here in mismatch
    assert any("words runs on the device alone" in message for message in errors)


async def test_cancelling_releases_everything_here_and_there(cache_dir: Path) -> None:
    async with with_fake_gateway(cache_dir) as fakes:
        request = asyncio.ensure_future(fakes.agent.infer("photos", IMAGE))
        await eventually(lambda: fakes.infers())
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        table = fakes.agent.pipeline.table
        assert (len(table), table.held_bytes, table.counters.cancelled) == (0, 0, 1)
        await eventually(lambda: fakes.gateway.of(MessageType.CANCEL))
        assert fakes.gateway.of(MessageType.CANCEL)[0].request_id == fakes.infers()[0].request_id


async def test_many_requests_at_once_and_one_too_many(cache_dir: Path) -> None:
    models = [model("photos")]
    async with InProcessCloud(cloud_config(cache_dir, *models)) as cloud:
        config = agent_config(cache_dir, cloud.device_endpoint, *models, max_in_flight=24)
        async with EdgeAgent.from_config(config) as agent:
            agent.pin("photos", 1)
            images = torch.randint(0, 256, (24, 16, 16, 3), dtype=torch.uint8)
            want = eager(networks.photos, images).numpy()
            requests = [asyncio.ensure_future(agent.infer("photos", images[i : i + 1])) for i in range(24)]
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError, match="max_in_flight"):
                await agent.infer("photos", IMAGE)
            for index, result in enumerate(await asyncio.gather(*requests)):
                check(result, want[index : index + 1])


async def test_mistakes_of_the_caller_are_named(cache_dir: Path) -> None:
    config = agent_config(cache_dir, NOWHERE, model("photos"), model("words"), model("trees"))
    async with EdgeAgent.from_config(config) as agent:
        with pytest.raises(UnknownModelError, match="did you mean photos"):
            await agent.infer("photo", IMAGE)
        with pytest.raises(UnknownModelError, match="it has photos, words, trees"):
            await agent.infer("zebra", IMAGE)
        with pytest.raises(InputMismatchError, match=r"uint8 \[batch, 16, 16, 3\].*uint8 \[16, 16, 3\]"):
            await agent.infer("photos", IMAGE[0])
        with pytest.raises(InputMismatchError, match="float32"):
            await agent.infer("photos", IMAGE.astype(np.float32))
        with pytest.raises(InputMismatchError, match="complex64"):
            await agent.infer("photos", IMAGE.astype(np.complex64))
        with pytest.raises(InputMismatchError, match="must be a tensor, not a str"):
            await agent.infer("photos", "grace_hopper.jpg")
        with pytest.raises(InputMismatchError):
            await agent.infer("photos", IMAGE, IMAGE)
        with pytest.raises(InputMismatchError, match="extra"):
            await agent.infer("trees", (torch.zeros(1, 4), torch.zeros(1, 4)))
        with pytest.raises(InputMismatchError, match="values"):
            await agent.infer("words", torch.full((1, 6), 99))
        with pytest.raises(DeadlineError):
            await agent.infer("photos", IMAGE, deadline_ms=0)
        check(await agent.infer("photos", IMAGE))  # nothing is left behind
        assert agent.pipeline.table.held_bytes == 0


class Broken(Runner):
    """Computes nothing: as when memory runs out."""

    failure: BaseException = RuntimeError("out of memory")

    def _timed(self, section: str, body: Callable[[], Any]) -> tuple[Any, float]:
        if section == "compute":
            raise self.failure
        return super()._timed(section, body)


async def test_a_device_that_cannot_compute_is_an_internal_error_of_that_request(cache_dir: Path) -> None:
    config = agent_config(cache_dir, NOWHERE, model("photos"))
    async with EdgeAgent.from_config(config, runner_factory=Broken) as agent:
        for _ in range(2):
            with pytest.raises(InternalError, match="out of memory"):
                await agent.infer("photos", IMAGE)


async def test_a_race_is_won_by_the_cloud_when_the_device_cannot_compute(cache_dir: Path) -> None:
    async with with_fake_gateway(cache_dir, runner_factory=Broken) as fakes:
        fakes.agent.pin("photos", 0)  # nothing to compute before sending
        table = fakes.agent.pipeline.table
        table.guard = Guard(slack_ms=9_900.0)
        request = asyncio.ensure_future(fakes.agent.infer("photos", IMAGE, deadline_ms=10_000))
        counters = table.counters
        await eventually(lambda: counters.local_completions == 1)
        answer(fakes, fakes.infers()[0], PHOTO)
        result = await request
        check(result)
        assert (result.where, result.fallback) == (Where.CLOUD, None)


async def test_a_defect_ends_the_agent_loudly_and_leaves_no_caller_waiting(cache_dir: Path) -> None:
    class Defective(Broken):
        failure = KeyError("a defect")

    config = agent_config(cache_dir, NOWHERE, model("photos"))
    with pytest.RaisesGroup(pytest.RaisesExc(KeyError, match="a defect")):
        async with EdgeAgent.from_config(config, runner_factory=Defective) as agent:
            with pytest.raises(InternalError, match="defect"):
                await asyncio.shield(asyncio.ensure_future(agent.infer("photos", IMAGE)))
            await asyncio.sleep(20)


async def test_leaving_drains_and_ends_what_does_not_end(cache_dir: Path) -> None:
    async with with_fake_gateway(cache_dir, drain_s=0.1) as fakes:
        request = asyncio.ensure_future(fakes.agent.infer("photos", IMAGE, deadline_ms=60_000))
        await eventually(lambda: fakes.infers())
        pipeline = fakes.agent.pipeline
    with pytest.raises(UnavailableError, match="stopped"):
        await request
    assert len(pipeline.table) == 0
    with pytest.raises(RefusedError, match="stopping") as refused:
        await fakes.agent.infer("photos", IMAGE)
    assert refused.value.retry_after_ms == 100.0


async def test_leaving_takes_nothing_more_finishes_what_it_has_and_tells_the_gateway(cache_dir: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        fakes = await stack.enter_async_context(with_fake_gateway(cache_dir, drain_s=60.0))
        request = asyncio.ensure_future(fakes.agent.infer("photos", IMAGE, deadline_ms=60_000))
        await eventually(lambda: fakes.infers())
        leaving = asyncio.ensure_future(fakes.agent.__aexit__(None, None, None))
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="stopping"):
            await fakes.agent.infer("photos", IMAGE)
        answer(fakes, fakes.infers()[0], PHOTO)
        check(await request)
        await leaving
        await eventually(lambda: fakes.gateway.of(MessageType.GOODBYE))


async def test_an_error_in_the_body_leaves_as_it_is(cache_dir: Path) -> None:
    config = agent_config(cache_dir, NOWHERE, model("photos"))
    with pytest.raises(UnknownModelError):
        async with EdgeAgent.from_config(config) as agent:
            await agent.infer("nothing", IMAGE)


def test_a_configuration_is_checked_before_anything_is_loaded(cache_dir: Path) -> None:
    with pytest.raises(ConfigError, match="uint9"):
        EdgeAgent.from_config(agent_config(cache_dir, NOWHERE, model("photos", codecs=["uint9"])))
    with pytest.raises(ConfigError, match="cannot read"):
        EdgeAgent.from_config(cache_dir / "missing.yaml")


async def test_a_device_without_cuda_is_a_startup_error(cache_dir: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    config = agent_config(cache_dir, NOWHERE, model("photos"), device="cuda:0")
    with pytest.raises(StartupError, match="SUTURE_DEVICE=cpu"):
        async with EdgeAgent.from_config(config):
            pass
