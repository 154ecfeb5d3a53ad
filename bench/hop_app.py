"""What Ray Serve runs for the hop bench: the product's gateway and tail around nothing, and baselines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import zmq
import zmq.asyncio
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from bench.child import free_ports
from bench.hop_reply import DIGEST, MODEL, REPLY_BYTES, reply_to
from cloud_cluster.application import GatewayHost
from cloud_cluster.executor import Outcome
from cloud_cluster.tail import Tail
from shared.codec import Codec
from shared.config import CloudConfig, ServedModelConfig
from shared.tensor import DType
from shared.wire import Message
from shared.wire.messages import TensorHeader

__all__ = ["cloud", "through_handle", "through_http"]


class NoOp:
    """An executor (:class:`cloud_cluster.executor.Executor`) that computes nothing."""

    digest = DIGEST
    unit_ms: Sequence[float] = ()

    def execute(self, message: Message) -> Outcome:
        payload = reply_to(sum(memoryview(each).nbytes for each in message.payloads))
        header = TensorHeader(
            slot=0,
            dtype=DType.UINT8,
            codec=Codec.FLOAT32,
            shape=[1, REPLY_BYTES],
            order=[0, 1],
            payload_bytes=REPLY_BYTES,
        )
        return Outcome(tensors=[header], payloads=[payload])


class NoOpTail:
    """As :class:`cloud_cluster.application.TailHost`, with nothing to load."""

    async def __init__(self, model: dict[str, Any], gateway: str) -> None:  # type: ignore[misc]
        self._tail = Tail(ServedModelConfig.model_validate(model), [gateway], executor=NoOp())
        await self._tail.start()
        self._task = asyncio.get_running_loop().create_task(self._tail.run(), name="run no-op tail")

    async def check_health(self) -> None:
        if self._task.done():
            self._task.result()
            raise RuntimeError("the tail has ended")


class Replica:
    """What an application would write with Serve alone: bytes in by handle or by HTTP, bytes out."""

    async def infer(self, payload: bytes) -> bytes:
        return reply_to(len(payload))

    async def __call__(self, request: Request) -> Response:
        return Response(reply_to(len(await request.body())), media_type="application/octet-stream")


class HandleGateway:
    """The gateway that Suture would have if it reached its replicas by ``DeploymentHandle.remote``.

    Devices reach it as they reach the real one, by ZeroMQ; it admits, counts and checks nothing.
    """

    async def __init__(self, port: int, replica: DeploymentHandle[Any]) -> None:  # type: ignore[misc]
        self._replica = replica
        self._socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        self._socket.bind(f"tcp://127.0.0.1:{port}")
        self._task = asyncio.get_running_loop().create_task(self._serve(), name="run handle gateway")

    async def _serve(self) -> None:
        while True:
            device, payload = await self._socket.recv_multipart()
            await self._socket.send_multipart([device, await self._replica.infer.remote(payload)])

    async def check_health(self) -> None:
        if self._task.done():
            self._task.result()


def cloud() -> tuple[Application, str]:
    """The product's path, and where devices connect to it."""
    device_port, replica_port, load_port = free_ports(3)
    gateway = {"device_port": device_port, "replica_port": replica_port, "load_port": load_port}
    model = {"name": MODEL}
    plain = CloudConfig.model_validate({"gateway": gateway, "models": [model]}).model_dump(mode="json")
    small = {"num_cpus": 0.1}
    tail = serve.deployment(name="NoOpTail", ray_actor_options=small)(NoOpTail)
    host = serve.deployment(name="Gateway", ray_actor_options=small)(GatewayHost)
    bound = host.bind(plain, tail.bind(model, f"tcp://127.0.0.1:{replica_port}"))
    return bound, f"tcp://127.0.0.1:{device_port}"


def through_handle() -> tuple[Application, str]:
    """A gateway that calls its replica by handle, and where devices connect to it."""
    [port] = free_ports(1)
    small = {"num_cpus": 0.1}
    replica = serve.deployment(name="Replica", ray_actor_options=small)(Replica).bind()
    gateway = serve.deployment(name="HandleGateway", ray_actor_options=small)(HandleGateway)
    return gateway.bind(port, replica), f"tcp://127.0.0.1:{port}"


def through_http() -> Application:
    """A replica that Serve's proxy, or any handle, reaches directly."""
    return serve.deployment(name="Replica", ray_actor_options={"num_cpus": 0.1})(Replica).bind()
