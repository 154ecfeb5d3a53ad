"""What happens to a device does not happen to its answers: disk, cache, clock, threads, memory, bundles."""

from __future__ import annotations

import ast
import asyncio
import datetime
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_agent import EdgeAgent
from edge_agent.catching_up import CatchingUp
from edge_agent.guard import Guard
from edge_agent.registration import Registered
from edge_agent.result import Where
from edge_agent.runner import Runner
from shared.errors import InternalError, StartupError
from shared.graph import save_bundle
from shared.graph.capture import capture
from tests.edge_agent import edge_networks as networks
from tests.edge_agent.agents import NOWHERE, agent_config, eager, model
from tests.edge_agent.fake_gateway import eventually
from tests.edge_agent.test_agent import answer, with_fake_gateway

ROOT = Path(__file__).parents[2]
IMAGE = networks.BATCH_ONE.numpy()
PHOTO = eager(networks.photos, networks.BATCH_ONE).numpy()


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


async def answers(cache_dir: Path) -> None:
    """With a cut that is pinned, so that the start judges its codecs as well."""
    async with EdgeAgent.from_config(agent_config(cache_dir, NOWHERE, model("photos", cut=3))) as agent:
        np.testing.assert_allclose((await agent.infer("photos", IMAGE)).outputs, PHOTO, rtol=1e-5, atol=1e-6)


# the disk

FULL_DISK = """
import asyncio, resource, signal, sys
from edge_agent import EdgeAgent
from shared.config import AgentConfig, parse_config
from shared.errors import BundleError
from shared.zoo import build

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

async def main():
    config = parse_config(AgentConfig, {
        "models": [{"name": "mnist"}], "cloud": {"gateway": "tcp://127.0.0.1:9"}, "cache_dir": sys.argv[1],
        "threads": 1, "profile_repeats": 3,
    }, "test", {})
    # Every write fails after its first bytes, in the kernel, as on a disk that has just become full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    async with EdgeAgent.from_config(config) as agent:
        network = agent.models["mnist"]
        args, kwargs = network.example
        result = await agent.infer("mnist", *args, **kwargs)
        print(result.where, tuple(result.outputs.shape))
        from shared.graph import save_bundle
        try:
            save_bundle(network.captured, sys.argv[2])
        except BundleError as error:
            print(error)

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_full_disk_costs_a_warning_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    cache, bundle = tmp_path / "cache", tmp_path / "bundle"
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, cache, bundle],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    where, refusal = run.stdout.splitlines()
    assert where == "device (1, 10)"
    assert f"cannot write {bundle}" in refusal
    assert "the profile is not kept: cannot write" in run.stderr
    assert "cannot keep the graph of mnist" in run.stderr
    assert [path for path in cache.rglob("*") if path.is_file()] == []


async def test_a_cache_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    await answers(tmp_path / "file" / "cache")
    assert "the profile is not kept: cannot write" in caplog.text


def _empty(content: bytes) -> bytes:
    return b""


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _noise(content: bytes) -> bytes:
    return random.Random(1).randbytes(len(content))


def _other_numbers(content: bytes) -> bytes:
    return json.dumps({key: -1 for key in json.loads(content)}).encode()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a start leaves in the cache."""
    directory = tmp_path_factory.mktemp("kept")
    asyncio.run(answers(directory))
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("damage", [_empty, _half, _noise, _other_numbers])
async def test_a_damaged_cache_is_thrown_away_with_a_warning_and_measured_again(
    tmp_path: Path,
    kept: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    assert {name.partition("-")[0] for name in kept} == {"gate", "profile"}
    for name, content in kept.items():
        (tmp_path / name).write_bytes(damage(content))
    await answers(tmp_path)
    for name, content in kept.items():
        assert f"in {tmp_path / name}, measuring again" in caplog.text
        assert json.loads((tmp_path / name).read_bytes()).keys() == json.loads(content).keys()


@pytest.mark.slow
def test_a_damaged_bundle_ends_the_start_with_one_message_and_exit_code_2(tmp_path: Path) -> None:
    module, args = networks.photos()
    bundle, config = tmp_path / "bundle", tmp_path / "agent.yaml"
    save_bundle(capture(module, args, name="photos"), bundle)
    weights = bundle / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1  # one bit of one weight
    weights.write_bytes(content)
    config.write_text(
        f"models: [{{name: photos, bundle: {bundle}}}]\ncache_dir: {tmp_path}\nsocket: ipc://{tmp_path}/s\n"
    )
    run = subprocess.run(
        [Path(sys.executable).with_name("edge-agent"), "--config", config],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 2, run.stderr
    complaint = run.stderr.splitlines()[-1]
    assert complaint.startswith(f"edge-agent: bundle {bundle}: it is damaged: the digest is sha256:")
    assert "copy it again" in complaint
    assert "Traceback" not in run.stderr


# the clock


async def test_a_wall_clock_that_jumps_by_hours_moves_no_deadline(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = random.Random(7)
    real, real_ns = time.time, time.time_ns
    async with with_fake_gateway(cache_dir, timeout_ms=30_000.0) as fakes:
        monkeypatch.setattr(time, "time", lambda: real() + hours.uniform(-1e5, 1e5))
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + hours.randrange(-(10**14), 10**14))
        fakes.agent.pipeline.table.guard = Guard(slack_ms=4000.0)  # time enough on a busy machine
        requests = [
            asyncio.ensure_future(fakes.agent.infer("photos", IMAGE, deadline_ms=5000)) for _ in range(4)
        ]
        await eventually(lambda: len(fakes.infers()) == 4)
        answer(fakes, fakes.infers()[0], PHOTO)
        results = await asyncio.gather(*requests)
        assert sorted(str(result.where) for result in results) == ["device-fallback"] * 3 + ["split"]
        assert {result.fallback for result in results} == {"late", None}
        assert all(0 < result.latency_ms < 5050 for result in results)
        assert fakes.agent.link_state == "online"


def test_no_module_reads_the_wall_clock() -> None:
    """Deadlines, heartbeats and measurements are on steady clocks; nothing of ours asks what time it is."""
    forbidden = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow")}
    found = []
    for package in ("shared", "edge_agent", "cloud_cluster"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    if (node.value.id, node.attr) in forbidden:
                        found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
                elif isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
                    found += [
                        f"{path.relative_to(ROOT)}:{node.lineno}"
                        for alias in node.names
                        if (node.module, alias.name) in forbidden or alias.name == "datetime"
                    ]
    assert found == []
    assert datetime.datetime.now  # what is looked for is there


# threads and memory


class Failing(Runner):
    """Raises what it is told to in the worker thread, at the sections that it is told."""

    failures: dict[str, list[BaseException]]

    def __init__(self, device: str, threads: int | None) -> None:
        super().__init__(device, threads)
        self.failures = {}

    def _timed(self, section: str, body: Callable[[], Any]) -> tuple[Any, float]:
        if self.failures.get(section):
            raise self.failures[section].pop()
        return super()._timed(section, body)


class Killed(BaseException):
    """Ends a thread, as no Exception does."""


@pytest.mark.parametrize("error", [Killed("the thread is gone"), MemoryError()])
async def test_a_worker_thread_that_dies_fails_its_request_and_is_replaced(
    cache_dir: Path, error: BaseException
) -> None:
    config = agent_config(cache_dir, NOWHERE, model("photos"))
    async with EdgeAgent.from_config(config, runner_factory=Failing) as agent:
        assert isinstance(agent.runner, Failing)
        for section in ("compute", "start", "encode"):
            agent.runner.failures = {section: [error]}
            with pytest.raises(InternalError, match=type(error).__name__):
                await agent.infer("photos", IMAGE, deadline_ms=60_000)
            result = await agent.infer("photos", IMAGE)
            np.testing.assert_allclose(result.outputs, PHOTO, rtol=1e-5, atol=1e-6)
        assert len(agent.pipeline.table) == 0


@pytest.mark.parametrize("error", [Killed("the thread is gone"), MemoryError()])
async def test_a_worker_thread_that_dies_while_it_finishes_a_request_ends_that_one_alone(
    cache_dir: Path, error: BaseException
) -> None:
    async with with_fake_gateway(cache_dir, runner_factory=Failing) as fakes:
        assert isinstance(fakes.agent.runner, Failing)
        requests = [asyncio.ensure_future(fakes.agent.infer("photos", IMAGE)) for _ in range(3)]
        await eventually(lambda: len(fakes.infers()) == 3)
        fakes.agent.runner.failures = {"compute": [error]}
        fakes.gateway.inbox.close()
        fakes.gateway.socket.close()
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
        assert [type(each) for each in outcomes].count(InternalError) == 1
        for each in outcomes:
            if not isinstance(each, BaseException):
                np.testing.assert_allclose(each.outputs, PHOTO, rtol=1e-5, atol=1e-6)
        assert (await fakes.agent.infer("photos", IMAGE)).where is Where.DEVICE


@pytest.mark.parametrize("error", [InternalError("the thread that computed this ended"), MemoryError()])
async def test_an_answer_that_cannot_be_decoded_here_now_is_computed_here(
    cache_dir: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_fake_gateway(cache_dir) as fakes:

        async def fails(*_: Any, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(fakes.agent.runner, "decode", fails)
        fakes.gateway.on_infer = lambda message: answer(fakes, message, PHOTO)
        result = await fakes.agent.infer("photos", IMAGE)
        assert (result.where, result.fallback) == (Where.DEVICE_FALLBACK, "undecodable")
        np.testing.assert_allclose(result.outputs, PHOTO, rtol=1e-5, atol=1e-6)


async def test_a_full_accelerator_costs_no_answer_and_is_said_once(
    cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The CPU takes over before the cut; what is above it goes to the cloud as planned."""
    async with with_fake_gateway(cache_dir, runner_factory=Failing) as fakes:
        assert isinstance(fakes.agent.runner, Failing)
        fakes.gateway.on_infer = lambda message: answer(fakes, message, PHOTO)
        for _ in range(3):
            full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            fakes.agent.runner.failures = {"compute": [full]}
            result = await fakes.agent.infer("photos", IMAGE)
            assert result.where is Where.SPLIT
            np.testing.assert_allclose(result.outputs, PHOTO, rtol=1e-5, atol=1e-6)
        said = [record.message for record in caplog.records if "no memory left" in record.message]
        assert len(said) == 1
        assert "runs on the CPU" in said[0]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
async def test_a_network_that_does_not_fit_at_the_start_is_a_startup_error_that_names_it(
    tmp_path: Path, error: Exception
) -> None:
    class Full(Failing):
        async def load(self, *_: Any) -> Any:
            raise error

    with pytest.raises(StartupError, match=r"model photos: cpu has no memory for it; .*device: cpu"):
        async with EdgeAgent.from_config(
            agent_config(tmp_path, NOWHERE, model("photos")), runner_factory=Full
        ):
            pass


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), InternalError("thread died")]
)
async def test_what_cannot_be_measured_in_the_background_goes_on_as_predicted(
    cache_dir: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    tried: list[str] = []

    class Unmeasurable:
        def profile_steps(self, name: str, *_: Any, **__: Any) -> str:
            return name

        async def call(self, body: Any, **_: Any) -> Any:
            tried.append(body.args[0])
            raise error

    async def idle(for_s: float) -> None:
        return None

    predicted: Any = type("P", (), {"profile": type("Q", (), {"predicted": True, "whole_ms": 1.0})()})()
    predicted.calibration = None
    known: Registered = predicted
    config = agent_config(cache_dir, NOWHERE, model("photos"))
    catching_up = CatchingUp(Unmeasurable(), config, idle, lambda *_: None)  # type: ignore[arg-type]
    for name in ("one", "two"):
        catching_up.add(name, known, None)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        task = asyncio.create_task(catching_up.run())
        await eventually(lambda: caplog.text.count("not measured") == 2)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert tried == ["one", "two"]
