"""The other ends of the gateway's sockets, reduced to a few lines, and tiny networks to serve."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import torch
import zmq
import zmq.asyncio

from cloud_cluster.gateway import Gateway
from shared.config import GatewayConfig, ServedModelConfig
from shared.keys import KeyPair
from shared.wire import Message, MessageType, WireLimits, decode_message, encode_message
from shared.wire.messages import (
    Announce,
    Header,
    Hello,
    Infer,
    ModelOffer,
    Ping,
    ReplicaHello,
    Result,
    TailTimings,
    TensorHeader,
)

PATIENCE_S = 20
LIMITS = WireLimits()


class Peer:
    """A DEALER with a reader task: ``await peer.next(kind)`` gives messages of a kind in order."""

    def __init__(
        self, endpoint: str, identity: bytes | None = None, curve: tuple[KeyPair, str] | None = None
    ) -> None:
        self._context = zmq.asyncio.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        if identity is not None:
            self.socket.setsockopt(zmq.ROUTING_ID, identity)
        if curve is not None:
            pair, server = curve
            self.socket.setsockopt_string(zmq.CURVE_PUBLICKEY, pair.public)
            self.socket.setsockopt_string(zmq.CURVE_SECRETKEY, pair.secret)
            self.socket.setsockopt_string(zmq.CURVE_SERVERKEY, server)
        self.socket.connect(endpoint)
        self._arrived: dict[MessageType, asyncio.Queue[Message]] = {
            kind: asyncio.Queue() for kind in MessageType
        }
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            message = decode_message(await self.socket.recv_multipart(), LIMITS)
            self._arrived[message.type].put_nowait(message)

    async def send(self, header: Header, payloads: Sequence[Any] = (), **fields: int) -> None:
        await self.socket.send_multipart(encode_message(header, payloads, **fields))

    async def next(self, kind: MessageType) -> Message:
        async with asyncio.timeout(PATIENCE_S):
            return await self._arrived[kind].get()

    def waiting(self, kind: MessageType) -> int:
        return self._arrived[kind].qsize()

    async def close(self) -> None:
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        self._context.destroy(linger=0)

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class FakeDevice(Peer):
    """Offers models, sends requests, reads answers."""

    async def greet(self, **digests: str) -> None:
        offers = [ModelOffer(name=name, digest=digest) for name, digest in digests.items()]
        await self.send(Hello(agent="fake", software="test", models=offers), request_id=1)

    async def hello(self, **digests: str) -> Message:
        await self.greet(**digests)
        return await self.next(MessageType.CARD)

    async def next_card(self) -> Message:
        """Without a limit of time: the gateway may be starting."""
        return await self._arrived[MessageType.CARD].get()

    async def infer(
        self, request_id: int, payload: bytes = b"x" * 64, announce: bool = False, **fields: int
    ) -> None:
        if announce:
            await self.send(Announce(payload_bytes=len(payload)), request_id=request_id)
        tensor = TensorHeader(
            slot=0, dtype=6, codec=0, shape=[len(payload)], order=[0], payload_bytes=len(payload)
        )
        infer = Infer(batch=1, tensors=[tensor], reply_codec=0)
        await self.send(infer, [payload], request_id=request_id, **fields)

    async def settled(self) -> None:
        """Everything sent so far has been handled by the gateway."""
        await self.send(Ping())
        await self.next(MessageType.PONG)


class FakeReplica(Peer):
    """Says hello, and answers only when told to."""

    async def greet(
        self,
        model: str = "net",
        digest: str = "sha256:a",
        credits: int = 2,
        unit_ms: Sequence[float] = (1.0, 2.0),
    ) -> None:
        hello = ReplicaHello(
            replica="fake", model=model, digest=digest, unit_ms=list(unit_ms), credits=credits
        )
        await self.send(hello)

    async def hello(self, **keys: Any) -> None:
        await self.greet(**keys)
        await self.settled()

    async def settled(self) -> None:
        await self.send(Ping())
        await self.next(MessageType.PONG)

    async def work(self) -> Message:
        return await self.next(MessageType.INFER)

    async def answer(self, work: Message) -> None:
        """Echo the tensors."""
        result = Result(tensors=work.header.tensors, timings=TailTimings(compute_ms=1.5), replica="fake")
        await self.send(result, work.payloads, request_id=work.request_id)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what gives no signal."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def gateway_config(**keys: Any) -> GatewayConfig:
    return GatewayConfig(device_port=0, replica_port=0, load_port=0, **keys)


@contextlib.asynccontextmanager
async def running_gateway(
    *models: ServedModelConfig, config: GatewayConfig | None = None
) -> AsyncIterator[Gateway]:
    gateway = Gateway(config or gateway_config(), models or [ServedModelConfig(name="net")])
    await gateway.start()
    async with asyncio.TaskGroup() as group:
        group.create_task(gateway.run())
        try:
            yield gateway
        finally:
            await gateway.stop()


class TinyNet(torch.nn.Module):
    """Three convolutions, a skip and a classifier: some ten units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.body = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        stem = torch.relu(self.stem(image))
        body = torch.relu(self.body(stem) + stem)
        return self.head(body.mean((2, 3)))


def tiny_net(seed: int = 3) -> tuple[torch.nn.Module, tuple[torch.Tensor]]:
    """The factory ``tests.cloud_cluster.cloud_peers:tiny_net``."""
    generator = torch.Generator().manual_seed(seed)
    net = TinyNet()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return net, (torch.randn(1, 3, 12, 12, generator=generator),)


def another_tiny_net() -> tuple[torch.nn.Module, tuple[torch.Tensor]]:
    """The same with other weights: ``tests.cloud_cluster.cloud_peers:another_tiny_net``."""
    return tiny_net(seed=4)


class TinyTagger(torch.nn.Module):
    """An embedding and two outputs: integer input whose values can be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 4)
        self.tags = torch.nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        embedded = self.embedding(tokens)
        return {"tags": self.tags(embedded).softmax(-1), "mean": embedded.mean(1)}


def tiny_tagger() -> tuple[torch.nn.Module, tuple[torch.Tensor]]:
    """The factory ``tests.cloud_cluster.cloud_peers:tiny_tagger``."""
    torch.manual_seed(5)
    return TinyTagger(), (torch.tensor([[1, 2, 3, 4]]),)
