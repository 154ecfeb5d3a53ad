"""The agent's socket and the client, in one process and across two."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zmq

from edge_agent import Client
from edge_agent.local_api import LocalApi
from edge_agent.result import Result, Where
from shared.errors import (
    ConfigError,
    DeadlineError,
    InputMismatchError,
    OverloadedError,
    ProtocolError,
    StartupError,
    UnavailableError,
)
from shared.wire import MessageType, WireLimits, decode_message, encode_message
from shared.wire.messages import Goodbye, LocalInfer, Ping
from tests.edge_agent.fake_gateway import eventually

ROOT = Path(__file__).parents[2]


class FakeAgent:
    """Answers with its inputs; ``hold`` keeps requests waiting, ``error`` ends them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any], float | None]] = []
        self.objectives: list[Any] = []
        self.cancelled = 0
        self.error: Exception | None = None
        self.free = asyncio.Event()
        self.free.set()

    async def infer(
        self,
        model: str,
        /,
        *args: Any,
        deadline_ms: float | None = None,
        objective: Any = None,
        **kwargs: Any,
    ) -> Result:
        self.calls.append((model, args, kwargs, deadline_ms))
        self.objectives.append(objective)
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return Result(
            outputs={"args": args, "kwargs": kwargs},
            where=Where.SPLIT,
            cut_index=-1,
            cut="a set of units",
            codec="uint8+zstd",
            uplink_bytes=123,
            latency_ms=4.0,
            breakdown={"device": 3.0, "overhead": 1.0},
            decision={"model": model, "conditions": {"uplink_bps": 1.5}},
            fallback="late",
            energy_mj=12.5,
            meter="rapl",
        )


@contextlib.asynccontextmanager
async def serving(endpoint: str, agent: FakeAgent, **values: Any) -> AsyncIterator[LocalApi]:
    async with LocalApi(endpoint, agent, **values) as api, asyncio.TaskGroup() as group:
        task = group.create_task(api.run())
        yield api
        task.cancel()


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/agent.sock"


async def test_a_call_and_its_result_cross_unchanged(endpoint: str) -> None:
    agent = FakeAgent()
    async with serving(endpoint, agent), Client(endpoint) as client:
        image = np.arange(6, dtype=np.uint8).reshape(2, 3)
        result = await client.infer("net", image, (torch.ones(2), None), flag=True, deadline_ms=900)
    ((model, args, kwargs, deadline_ms),) = agent.calls
    assert (model, kwargs, deadline_ms) == ("net", {"flag": True}, 900)
    assert args[0].tolist() == image.tolist()
    assert args[0].flags.writeable
    assert (args[1][0].tolist(), args[1][1]) == ([1.0, 1.0], None)
    assert result.outputs["args"][0].tolist() == image.tolist()
    assert (result.where, result.cut_index, result.cut) == (Where.SPLIT, -1, "a set of units")
    assert (result.codec, result.uplink_bytes, result.fallback) == ("uint8+zstd", 123, "late")
    assert result.decision == {"model": "net", "conditions": {"uplink_bps": 1.5}}
    assert (result.energy_mj, result.meter) == (12.5, "rapl")
    assert agent.objectives == [None]
    assert list(result.breakdown) == ["device", "overhead", "local_api"]
    assert sum(result.breakdown.values()) == pytest.approx(result.latency_ms)


@pytest.mark.parametrize("objective", ["energy", {"minimise": "energy", "deadline_ms": 150.0}])
async def test_an_objective_of_one_request_crosses_as_it_is(endpoint: str, objective: Any) -> None:
    agent = FakeAgent()
    async with serving(endpoint, agent), Client(endpoint) as client:
        await client.infer("net", np.zeros(3), objective=objective)
    assert agent.objectives == [objective]
    assert agent.calls[0][2] == {}


@pytest.mark.parametrize("error", [OverloadedError("full", 7.0), InputMismatchError("not that")])
async def test_the_agents_errors_arrive_as_they_are(endpoint: str, error: Exception) -> None:
    agent = FakeAgent()
    agent.error = error
    async with serving(endpoint, agent), Client(endpoint) as client:
        with pytest.raises(type(error), match=str(error)) as caught:
            await client.infer("net")
        assert getattr(caught.value, "retry_after_ms", None) == getattr(error, "retry_after_ms", None)


async def test_what_cannot_be_sent_is_refused_before_it_is_sent(endpoint: str) -> None:
    agent = FakeAgent()
    async with serving(endpoint, agent), Client(endpoint) as client:
        with pytest.raises(InputMismatchError):
            await client.infer("net", {1, 2})
    assert agent.calls == []


async def test_many_requests_and_clients_at_once_get_their_own_answers(endpoint: str) -> None:
    agent = FakeAgent()
    async with serving(endpoint, agent), Client(endpoint) as one, Client(endpoint) as two:
        requests = [
            asyncio.ensure_future(client.infer("net", np.array([value])))
            for value in range(40)
            for client in (one, two)
        ]
        for index, result in enumerate(await asyncio.gather(*requests)):
            assert result.outputs["args"][0].tolist() == [index // 2]


async def test_cancelling_withdraws_the_request_from_the_agent(endpoint: str) -> None:
    agent = FakeAgent()
    agent.free.clear()
    async with serving(endpoint, agent) as api, Client(endpoint) as client:
        request = asyncio.ensure_future(client.infer("net"))
        await eventually(lambda: agent.calls)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await eventually(lambda: agent.cancelled == 1)
        await eventually(lambda: not api.in_flight)


async def test_an_agent_that_misses_the_deadline_is_given_up_on(endpoint: str) -> None:
    agent = FakeAgent()
    agent.free.clear()
    async with serving(endpoint, agent), Client(endpoint) as client:
        with pytest.raises(DeadlineError, match="did not answer"):
            await client.infer("net", deadline_ms=20)
        await eventually(lambda: agent.cancelled == 1)


async def test_an_agent_that_goes_away_ends_requests_at_once_and_may_come_back(endpoint: str) -> None:
    agent = FakeAgent()
    agent.free.clear()
    async with contextlib.AsyncExitStack() as stack:
        first = serving(endpoint, agent)
        await first.__aenter__()
        client = await stack.enter_async_context(Client(endpoint))
        request = asyncio.ensure_future(client.infer("net"))
        await eventually(lambda: agent.calls)
        await first.__aexit__(None, None, None)
        with pytest.raises(UnavailableError, match="went away"):
            await request
        with pytest.raises(UnavailableError, match="gone"):
            await client.infer("net")
        agent.free.set()
        await stack.enter_async_context(serving(endpoint, agent))
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(UnavailableError):
                    await client.infer("net")
                    break
                await asyncio.sleep(0.02)


async def test_without_an_agent_the_client_says_how_to_start_one(endpoint: str) -> None:
    with pytest.raises(UnavailableError, match="edge-agent --config"):
        async with Client(endpoint, patience_s=0.1):
            pass
    with pytest.raises(UnavailableError, match="no agent"):
        async with Client("nonsense"):
            pass


async def test_the_socket_is_this_users_alone_and_leaves_nothing_behind(
    endpoint: str, tmp_path: Path
) -> None:
    path = tmp_path / "agent.sock"
    before = os.umask(0o022)
    try:
        async with serving(endpoint, FakeAgent()):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert os.umask(0o022) == 0o022  # put back
    finally:
        os.umask(before)
    assert not path.exists()


async def test_a_socket_left_by_a_killed_agent_is_taken_over(endpoint: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "agent.sock"))
    async with serving(endpoint, FakeAgent()), Client(endpoint) as client:
        assert (await client.infer("net")).uplink_bytes == 123


async def test_the_socket_of_a_living_agent_is_not_taken(endpoint: str) -> None:
    async with serving(endpoint, FakeAgent()), Client(endpoint) as client:
        with pytest.raises(StartupError, match=rf"in use by process {os.getpid()}.*socket:"):
            async with LocalApi(endpoint, FakeAgent()):
                pass
        assert (await client.infer("net")).uplink_bytes == 123


async def test_places_that_cannot_hold_a_socket_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for path, kind, words in [
        (tmp_path / "file", StartupError, "is no socket"),
        (tmp_path / "missing" / "missing" / "agent.sock", StartupError, "create it"),
        (tmp_path / ("x" * 120), ConfigError, "longer than 107"),
        ("@abstract", ConfigError, "no permissions"),
    ]:
        with pytest.raises(kind, match=words):
            async with LocalApi(f"ipc://{path}", FakeAgent()):
                pass
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
async def test_who_may_use_the_socket_is_configured(endpoint: str, tmp_path: Path, mode: int) -> None:
    async with serving(endpoint, FakeAgent(), mode=mode):
        assert stat.S_IMODE((tmp_path / "agent.sock").stat().st_mode) == mode


@pytest.mark.parametrize(("mode", "directory_mode"), [(0o600, 0o700), (0o660, 0o750), (0o666, 0o755)])
async def test_the_directory_of_the_socket_is_made_for_those_who_may_use_it(
    tmp_path: Path, mode: int, directory_mode: int
) -> None:
    directory = tmp_path / "own"
    before = os.umask(0o002)
    try:
        async with serving(f"ipc://{directory}/agent.sock", FakeAgent(), mode=mode):
            assert stat.S_IMODE(directory.stat().st_mode) == directory_mode
    finally:
        os.umask(before)


async def test_a_directory_in_which_others_could_replace_the_socket_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"ipc://{tmp_path}/agent.sock"
    os.chmod(tmp_path, 0o777)
    with pytest.raises(ConfigError, match="anyone on this device could replace"):
        async with LocalApi(endpoint, FakeAgent()):
            pass
    os.chmod(tmp_path, 0o1777)  # as /tmp: what is there only its owner can replace
    async with serving(endpoint, FakeAgent()):
        pass
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match="another user"):
        async with LocalApi(endpoint, FakeAgent()):
            pass


async def test_tcp_serves_loopback_only(tmp_path: Path) -> None:
    for endpoint in ("tcp://0.0.0.0:5999", "tcp://*:5999", "tcp://example.org:5999"):
        with pytest.raises(ConfigError, match="other machines"):
            async with LocalApi(endpoint, FakeAgent()):
                pass
    token_file = tmp_path / "token"
    async with serving("tcp://127.0.0.1:*", FakeAgent(), token_file=token_file) as api:
        async with Client(api.endpoint, token_file=token_file) as client:
            assert (await client.infer("net")).uplink_bytes == 123
        with pytest.raises(StartupError, match="cannot bind"):
            async with LocalApi(api.endpoint, FakeAgent(), token_file=token_file):
                pass


async def test_bad_messages_get_an_error_and_harm_nobody(endpoint: str) -> None:
    agent = FakeAgent()
    agent.free.clear()
    context = zmq.Context()
    peer = context.socket(zmq.DEALER)
    try:
        async with serving(endpoint, agent), Client(endpoint) as client:
            peer.connect(endpoint)

            async def ask(frames: list[bytes]) -> Any:
                await asyncio.to_thread(peer.send_multipart, frames)
                return decode_message(await asyncio.to_thread(peer.recv_multipart), WireLimits())

            call: dict[str, Any] = {"tuple": [{"tuple": []}, {"dict": {}}]}
            good = encode_message(LocalInfer(model="net", tensors=[], tree=call), request_id=5)
            await asyncio.to_thread(peer.send_multipart, good)
            await eventually(lambda: agent.calls)
            trees = [{"list": []}, {"tuple": [{"tuple": []}]}, {"tuple": [{"list": []}, {"dict": {}}]}, 3]
            for frames in [
                [b"rubbish"],
                [b""],
                encode_message(Goodbye(), request_id=9),
                good,  # its id is in flight
                *(encode_message(LocalInfer(model="net", tensors=[], tree=tree)) for tree in trees),
            ]:
                reply = await ask([bytes(frame) for frame in frames])
                assert reply.type is MessageType.ERROR
                assert reply.header.code == ProtocolError.code
            pong = await ask([bytes(frame) for frame in encode_message(Ping(), request_id=11)])
            assert (pong.type, pong.request_id) == (MessageType.PONG, 11)
            agent.free.set()
            assert (await client.infer("net")).uplink_bytes == 123
    finally:
        peer.close(linger=0)
        context.term()


async def test_leaving_a_client_takes_nothing_more_and_waits_for_what_is_in_flight(endpoint: str) -> None:
    agent = FakeAgent()
    agent.free.clear()
    async with serving(endpoint, agent):
        async with Client(endpoint) as client:
            requests = [asyncio.ensure_future(client.infer("net", np.array([n]))) for n in range(5)]
            await eventually(lambda: len(agent.calls) == 5)
            asyncio.get_running_loop().call_later(0.1, agent.free.set)
        for n, request in enumerate(requests):
            assert (await request).outputs["args"][0].tolist() == [n]
        with pytest.raises(UnavailableError, match="closed"):
            await client.infer("net")


@pytest.mark.parametrize("by_an_error", [False, True])
async def test_what_a_left_client_does_not_wait_for_is_withdrawn(endpoint: str, by_an_error: bool) -> None:
    agent = FakeAgent()
    agent.free.clear()
    async with serving(endpoint, agent) as api:
        with pytest.raises(LookupError) if by_an_error else contextlib.nullcontext():
            async with Client(endpoint, drain_s=60 if by_an_error else 0.05) as client:
                request = asyncio.ensure_future(client.infer("net"))
                await eventually(lambda: agent.calls)
                if by_an_error:
                    raise LookupError
        with pytest.raises(UnavailableError, match="closed before"):
            await request
        await eventually(lambda: agent.cancelled == 1)
        await eventually(lambda: not api.in_flight)


CLIENT = """
import asyncio, sys
import numpy as np
from edge_agent import Client

async def main():
    async with Client(sys.argv[1]) as client:
        result = await client.infer("photos", np.zeros((1, 16, 16, 3), np.uint8), deadline_ms=20000)
        rest_ms = sum(result.breakdown.values()) - result.latency_ms
        print(result.where, result.outputs.shape, abs(rest_ms) < 1e-6)
        print(sorted({"torch", "ray"} & set(sys.modules)))

asyncio.run(main())
"""


@pytest.mark.slow
async def test_another_process_uses_the_agents_command_until_a_signal_ends_it(
    tmp_path: Path, endpoint: str
) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text(
        f"socket: {endpoint}\n"
        f"cache_dir: {tmp_path}\n"
        "threads: 1\nprofile_repeats: 3\n"
        "cloud: {gateway: tcp://127.0.0.1:9}\n"
        "models: [{name: photos, factory: 'tests.edge_agent.edge_networks:photos'}]\n"
    )
    agent = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("edge-agent"),
        "--config",
        config,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert agent.stderr is not None
        async with asyncio.timeout(60):
            while b'"event": "ready"' not in (line := await agent.stderr.readline()):
                assert line, "the agent ended before it was ready"
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, endpoint, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await client.communicate()
        assert said.decode().splitlines() == ["device (1, 5) True", "[]"]

        second = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("edge-agent"),
            "--config",
            config,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=asyncio.subprocess.PIPE,
        )
        _, complaint = await second.communicate()
        assert second.returncode == 3
        assert f"in use by process {agent.pid}" in complaint.decode()
        assert "Traceback" not in complaint.decode()
    finally:
        agent.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            rest = await agent.stderr.read()
            status = await agent.wait()
    assert status == 0, rest.decode()
    assert "Traceback" not in rest.decode()
    assert not (tmp_path / "agent.sock").exists()
