"""The commands that a person types to start the cloud, as real processes on a real Ray cluster.

What counts as started is the answer of the gateway's own port, never an exit code.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
import zmq
import zmq.asyncio

from shared.codec import Codec, decode, encode
from shared.config import ServedModelConfig
from shared.graph import Program, load
from shared.models import resolve
from shared.wire import Message, MessageType, decode_message
from shared.wire.messages import Infer, LoadReport
from tests.cloud_cluster.cloud_peers import LIMITS, FakeDevice

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(170)]

REPOSITORY = Path(__file__).parents[2]
SERVE = Path(sys.executable).with_name("serve")
START_S = 90
STOP_S = 40


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def gateway_ports() -> Iterator[tuple[int, int]]:
    """For devices and for the load feed."""
    device_port, replica_port, load_port = free_ports(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUTURE_GATEWAY__DEVICE_PORT", str(device_port))
        patch.setenv("SUTURE_GATEWAY__REPLICA_PORT", str(replica_port))
        patch.setenv("SUTURE_GATEWAY__LOAD_PORT", str(load_port))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        yield device_port, load_port


@pytest.fixture(scope="module")
def cluster(gateway_ports: tuple[int, int]) -> Iterator[str]:
    """The address of a Ray cluster of our own; ``ray stop`` would end everybody's."""
    from ray.cluster_utils import Cluster

    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield running.address
    running.shutdown()


class Command:
    """A running ``serve run ...`` and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process, output: Path) -> None:
        self.process = process
        self._output = output

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    async def answered(self, message: asyncio.Task[Message] | asyncio.Task[LoadReport]) -> None:
        """Wait for the message, but not longer than the command lives."""
        async with asyncio.timeout(START_S):
            while not message.done():
                assert self.process.returncode is None, self.output
                await asyncio.wait([message], timeout=0.2)

    async def deployed(self) -> None:
        """Wait until Serve has finished deploying: to it, a replica that dies before is a failed deploy."""
        async with asyncio.timeout(START_S):
            while "Application 'default' is ready" not in self.output:
                assert self.process.returncode is None, self.output
                await asyncio.sleep(0.1)


@asynccontextmanager
async def serve_run(cluster: str, directory: Path, *arguments: str) -> AsyncIterator[Command]:
    output = directory / "output.txt"
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            SERVE,
            "run",
            *arguments,
            cwd=directory,
            env={**os.environ, "RAY_ADDRESS": cluster},
            stdout=file,
            stderr=asyncio.subprocess.STDOUT,
        )
    command = Command(process, output)
    try:
        yield command
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(STOP_S):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
            print(command.output)


async def served(device: FakeDevice, command: Command, **digests: str) -> Message:
    """The first card on which every offered model has a replica."""
    await device.greet(**digests)
    while True:
        card = asyncio.create_task(device.next_card())
        await command.answered(card)
        if all(model.replicas for model in card.result().header.models):
            return card.result()


class WholeNetwork:
    """efficientnet-lite0 here, to compare with."""

    def __init__(self) -> None:
        model = resolve(ServedModelConfig(name="efficientnet-lite0"))
        self.program: Program = load(model.captured)
        self.graph = self.program.graph
        args, kwargs = model.example
        self.leaves: list[torch.Tensor] = self.graph.flatten(args, kwargs)
        (self.answer,) = self.program(self.leaves)

    async def check(self, device: FakeDevice, cut_index: int) -> None:
        cut = self.graph.cuts[cut_index]
        state = self.program.start(self.leaves)
        self.program.run(state, cut.edge_units)
        encoded = [
            encode(tensor, Codec.FLOAT32, slot)
            for tensor, slot in zip(self.program.live(state, cut), cut.live, strict=True)
        ]
        infer = Infer(batch=1, tensors=[header for header, _ in encoded], reply_codec=Codec.FLOAT32)
        payloads = [payload for _, payload in encoded]
        await device.send(infer, payloads, request_id=cut_index, cut=cut_index, budget_ms=30_000)
        answer = await device.next(MessageType.RESULT)
        (header,) = answer.header.tensors
        output = decode(header, answer.payloads[0], self.graph.values[header.slot].at(1))
        scale = self.answer.abs().max()
        assert ((output - self.answer).abs().max() / scale).item() <= 1e-5


@pytest.fixture(scope="module")
def network() -> WholeNetwork:
    return WholeNetwork()


@pytest.mark.parametrize(
    "arguments",
    [
        ("cloud_cluster",),
        ("cloud_cluster:app",),
        ("cloud_cluster:app", f"config={REPOSITORY / 'configs/cloud.yaml'}"),
        (str(REPOSITORY / "configs/serve.yaml"),),
    ],
    ids=["bare", "app", "config", "yaml"],
)
async def test_the_command_starts_the_cloud_and_ctrl_c_stops_it(
    cluster: str,
    gateway_ports: tuple[int, int],
    network: WholeNetwork,
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    async with FakeDevice(f"tcp://127.0.0.1:{gateway_ports[0]}") as device:
        async with serve_run(cluster, tmp_path, *arguments) as command:
            card = await served(device, command, **{"efficientnet-lite0": network.graph.digest})
            (model,) = card.header.models
            assert model.error == ""
            assert len(model.unit_ms) == len(network.graph.units)
            for cut_index in (0, 1, len(network.graph.units) // 2):
                await network.check(device, cut_index)
            if arguments[0].endswith(".yaml"):
                assert (await asyncio.to_thread(status))["models"]["efficientnet-lite0"]["admitted"] == 3
        await device.next(MessageType.GOODBYE)


def status() -> dict[str, dict[str, dict[str, int]]]:
    with urllib.request.urlopen("http://127.0.0.1:8000/status", timeout=20) as reply:
        parsed: dict[str, dict[str, dict[str, int]]] = json.load(reply)
    return parsed


CLOUD = """
models:
  - {name: net, factory: "tests.cloud_cluster.cloud_peers:tiny_net", replicas: 2, num_cpus: 0.3}
"""


async def test_a_killed_replica_costs_no_request_and_comes_back(
    cluster: str, gateway_ports: tuple[int, int], tmp_path: Path
) -> None:
    (tmp_path / "cloud.yaml").write_text(CLOUD)
    device_port, load_port = gateway_ports
    model = resolve(ServedModelConfig(name="net", factory="tests.cloud_cluster.cloud_peers:tiny_net"))
    graph = model.captured.graph
    header, payload = encode(model.example[0][0], Codec.FLOAT32, graph.inputs[0])
    infer = Infer(batch=1, tensors=[header], reply_codec=Codec.FLOAT32)

    context = zmq.asyncio.Context()
    feed = context.socket(zmq.SUB)
    feed.subscribe(b"")
    feed.connect(f"tcp://127.0.0.1:{load_port}")

    async def ready(count: int) -> LoadReport:
        while True:
            report = decode_message(await feed.recv_multipart(), LIMITS).header
            assert isinstance(report, LoadReport)
            if report.models[0].ready == count:
                return report

    try:
        async with (
            FakeDevice(f"tcp://127.0.0.1:{device_port}") as device,
            serve_run(cluster, tmp_path, "cloud_cluster:app", "config=cloud.yaml") as command,
        ):
            await served(device, command, net=graph.digest)
            await command.answered(asyncio.create_task(ready(2)))
            await command.deployed()
            victims = re.findall(r"Tail-net pid=(\d+)", command.output)
            for request_id in range(30):
                await device.send(infer, [payload], request_id=request_id, cut=0)
                if request_id == 10:
                    os.kill(int(victims[0]), signal.SIGKILL)
            answers = [await device.next(MessageType.RESULT) for _ in range(30)]
            assert {answer.request_id for answer in answers} == set(range(30))
            await command.answered(asyncio.create_task(ready(1)))
            await command.answered(asyncio.create_task(ready(2)))
            await device.send(infer, [payload], request_id=100, cut=0)
            assert (await device.next(MessageType.RESULT)).request_id == 100
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cloud_cluster:app", "modles=alexnet"), "modles: unknown key"),
        (("cloud_cluster:app", "config=none.yaml"), "cannot read none.yaml"),
    ],
)
def test_a_mistake_is_one_message_and_no_traceback(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = subprocess.run(
        [SERVE, "run", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
