"""What every attack script uses: the parsers under a memory meter, and a gateway under siege.

An :class:`Attack` on a parser is a stream of inputs for one of the fuzzer's targets, which let nothing out
but what a parser promises.  :func:`siege` is a real gateway on real sockets, with a good device and a good
replica whose request must be answered whatever else arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.asyncio

from cloud_cluster.gateway import Gateway
from shared.config import ServedModelConfig
from shared.wire import MessageType
from tests.cloud_cluster.cloud_peers import FakeDevice, FakeReplica, gateway_config, running_gateway
from tests.fuzz.targets import TARGETS, VECTORS, frames_of, joined

__all__ = [
    "MIB",
    "Attack",
    "Siege",
    "Tried",
    "frames_of",
    "joined",
    "peak_of",
    "rss_bytes",
    "siege",
    "try_all",
    "vectors",
]

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Attack:
    """``inputs(step)`` gives every ``step``-th of its inputs; together they may take ``bound_bytes``."""

    name: str
    target: str
    inputs: Callable[[int], Iterator[bytes]]
    bound_bytes: int = MIB


@dataclass(frozen=True, slots=True)
class Tried:
    inputs: int
    peak_bytes: int


def try_all(attack: Attack, step: int = 1) -> Tried:
    """Every input goes through its parser; what must not leave that leaves this.

    ``peak_bytes`` is what Python had allocated beyond the inputs at the worst moment.
    """
    target = TARGETS[attack.target]
    for first in itertools.islice(attack.inputs(step), 1):
        target(first)  # what is imported or cached once is not the attack's
    count = 0
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for data in attack.inputs(step):
            target(data)
            count += 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return Tried(count, peak - before)


def peak_of(action: Callable[[], Any]) -> int:
    """What Python allocates at the worst moment of one call."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        action()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before


def vectors(payloads: bool = False) -> dict[str, list[bytes]]:
    """The golden vectors as frames, by name: messages, or a tensor header, a payload and its elements."""
    return {
        path.name: frames_of(path.read_bytes())
        for path in sorted(VECTORS.glob("*.bin"))
        if path.name.startswith("payload-") is payloads
    }


def rss_bytes() -> int:
    """Resident memory of this process, without what was freed and is only kept for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Siege:
    """A gateway with a good device and a good replica."""

    def __init__(self, gateway: Gateway, replica: FakeReplica, device: FakeDevice) -> None:
        self.gateway = gateway
        self.replica = replica
        self.device = device
        self._ids = itertools.count(1000)

    @property
    def device_port(self) -> int:
        return int(self.gateway.device_endpoint.rpartition(":")[2])

    @property
    def replica_port(self) -> int:
        return int(self.gateway.replica_endpoint.rpartition(":")[2])

    async def serves(self) -> None:
        """The good device's request is answered, by the good replica."""
        request_id = next(self._ids)
        payload = struct.pack("<Q", request_id) * 8
        await self.device.infer(request_id, payload)
        await self.replica.answer(await self.replica.work())
        answer = await self.device.next(MessageType.RESULT)
        assert answer.request_id == request_id
        assert bytes(answer.payloads[0]) == payload

    async def throw(self, messages: Iterable[list[bytes]], at_replicas: bool = False) -> int:
        """Send messages one after the other, each from a peer that has not been put out; how many.

        The good device's requests are served meanwhile.
        """
        thrown = asyncio.create_task(self._throw(messages, at_replicas))
        while not thrown.done():
            await self.serves()
        return await thrown

    async def _throw(self, messages: Iterable[list[bytes]], at_replicas: bool) -> int:
        endpoint = self.gateway.replica_endpoint if at_replicas else self.gateway.device_endpoint
        context, count = zmq.asyncio.Context(), 0
        try:
            for batch in _batched(messages, 6):
                socket = context.socket(zmq.DEALER)
                socket.setsockopt(zmq.LINGER, 5000)
                socket.connect(endpoint)
                for frames in batch:
                    await socket.send_multipart(frames or [b""])
                    count += 1
                socket.close()
        finally:
            await asyncio.to_thread(context.term)
        return count


def _batched(messages: Iterable[list[bytes]], size: int) -> Iterator[list[list[bytes]]]:
    iterator = iter(messages)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


@contextlib.asynccontextmanager
async def siege(**config: Any) -> AsyncIterator[Siege]:
    settings = gateway_config(device_silence_s=600, heartbeat_timeout_ms=600_000, **config)
    async with (
        running_gateway(ServedModelConfig(name="net"), config=settings) as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await replica.hello()
        await device.hello(net="sha256:a")
        besieged = Siege(gateway, replica, device)
        await besieged.serves()
        yield besieged
        await besieged.serves()
