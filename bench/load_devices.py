"""Many devices in one process: each with a session of its own, all sending one activation computed before.

``python -m bench.load_devices GATEWAY MODEL DIGEST CUT COUNT FILE`` is a controlled child.  FILE holds the
payload; its header comes with it.  The devices speak the protocol through the product's own wire functions
and compute nothing, so that their share of the processor is small.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq

from bench.child import answer
from edge_agent.inbox import Inbox, send_now
from shared.errors import OverloadedError
from shared.wire import MessageType, WireLimits, budget_from_ms, decode_message, encode_message
from shared.wire.messages import Announce, Hello, Infer, ModelOffer, Ping

_LIMITS = WireLimits(max_message_bytes=2**26)
_PATIENCE_S = 30.0
_PING_S = 1.0


class _Device:
    """``done`` is told of every answer: its ms, and the error's code or 0."""

    def __init__(self, context: zmq.Context[Any], gateway: str, hello: Hello, fleet: _Fleet) -> None:
        self.index: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._fleet = fleet
        self._sent: dict[int, float] = {}
        self._next_id = 0
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(gateway)
        self._inbox = Inbox(self._socket, self._on_frames)
        self._say(encode_message(hello))

    def ask(self, budget_ms: float) -> bool:
        """False when ZeroMQ's queue to the gateway is full: the request was not sent."""
        fleet = self._fleet
        self._next_id += 1
        nbytes = len(fleet.payload)
        announced = self._say(encode_message(Announce(payload_bytes=nbytes), request_id=self._next_id))
        sent = announced and self._say(
            encode_message(
                fleet.header,
                [fleet.payload],
                request_id=self._next_id,
                model=self.index.result(),
                cut=fleet.cut,
                budget_ms=budget_from_ms(budget_ms),
            )
        )
        if sent:
            self._sent[self._next_id] = time.perf_counter()
        return sent

    def ping(self) -> None:
        self._say(encode_message(Ping(), request_id=2**63))

    def close(self) -> None:
        self._inbox.close()
        self._socket.close()

    def _say(self, frames: Any) -> bool:
        sent = send_now(self._socket, frames)
        self._inbox.look_again()
        return sent

    def _on_frames(self, frames: list[memoryview]) -> None:
        message = decode_message(frames, _LIMITS)
        if message.type is MessageType.CARD:
            for model in message.header.models:
                if model.name == self._fleet.model and model.replicas and not self.index.done():
                    self.index.set_result(model.index)
        elif message.type in (MessageType.RESULT, MessageType.ERROR):
            began_s = self._sent.pop(message.request_id, None)
            if began_s is not None:
                code = message.header.code if message.type is MessageType.ERROR else 0
                self._fleet.done(self, (time.perf_counter() - began_s) * 1e3, code)


class _Fleet:
    def __init__(self, model: str, cut: int, header: Infer, payload: bytes) -> None:
        self.model, self.cut, self.header, self.payload = model, cut, header, payload
        self.devices: list[_Device] = []
        self._again = False
        self._budget_ms = 0.0
        self._answers: list[tuple[float, int]] = []
        self._under_way = self._unsent = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def done(self, device: _Device, elapsed_ms: float, code: int) -> None:
        self._answers.append((elapsed_ms, code))
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()
        if self._again:
            self._ask(device)

    def _ask(self, device: _Device) -> None:
        if device.ask(self._budget_ms):
            self._under_way += 1
            self._idle.clear()
        else:
            self._unsent += 1

    async def closed(self, seconds: float, in_flight: int, budget_ms: float) -> dict[str, Any]:
        """Every device keeps ``in_flight`` requests under way."""
        self._answers, self._again, self._budget_ms, self._unsent = [], True, budget_ms, 0
        began_s, cpu_s = time.perf_counter(), time.process_time()
        for device in self.devices:
            for _ in range(in_flight):
                self._ask(device)
        await asyncio.sleep(seconds)
        figures = self._figures(began_s, cpu_s)
        self._again = False
        await self._drain()
        return figures

    async def open(self, seconds: float, rate_hz: float, budget_ms: float, seed: int) -> dict[str, Any]:
        """All devices together ask ``rate_hz`` times a second, at random, whatever comes back."""
        self._answers, self._budget_ms, self._unsent = [], budget_ms, 0
        # Two sources, so that requests come at the moments at which bench/load_serve.py asks with this seed.
        draw, whose = random.Random(seed), random.Random(f"{seed} whose")
        began_s, cpu_s = time.perf_counter(), time.process_time()
        due_s = began_s
        while due_s < began_s + seconds:
            due_s += draw.expovariate(rate_hz)
            await asyncio.sleep(max(due_s - time.perf_counter(), 0.0))
            self._ask(whose.choice(self.devices))
        figures = self._figures(began_s, cpu_s)
        await self._drain()
        # Latencies of all, the last ones included; the rate is that of the time of asking.
        return figures | {"answers": self._answers}

    def _figures(self, began_s: float, cpu_s: float) -> dict[str, Any]:
        elapsed_s = time.perf_counter() - began_s
        answered = sum(code == 0 for _, code in self._answers)
        return {
            "seconds": elapsed_s,
            "per_s": answered / elapsed_s,
            "unsent": self._unsent,
            "cpu_share": (time.process_time() - cpu_s) / elapsed_s,
            "answers": list(self._answers),
        }

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._idle.wait()
        except TimeoutError as error:
            held = [len(device._sent) for device in self.devices]
            what = f"{self._under_way} requests were never answered, by device: {held}"
            raise RuntimeError(what) from error

    async def keep_alive(self) -> None:
        while True:
            await asyncio.sleep(_PING_S)
            for device in self.devices:
                device.ping()


async def _serve(gateway: str, model: str, digest: str, cut: int, count: int, activation: bytes) -> None:
    header, _, payload = activation.partition(b"\n")
    fleet = _Fleet(model, cut, msgspec.json.decode(header, type=Infer), payload)
    hello = Hello(agent="load", software="bench", models=[ModelOffer(name=model, digest=digest)])
    context: zmq.Context[Any] = zmq.Context()
    context.max_sockets = 4096
    fleet.devices = [_Device(context, gateway, hello, fleet) for _ in range(count)]
    await asyncio.wait_for(asyncio.gather(*(device.index for device in fleet.devices)), _PATIENCE_S)
    pinging = asyncio.create_task(fleet.keep_alive(), name="pings")
    try:
        await answer({"closed": fleet.closed, "open": fleet.open}, {"overloaded": OverloadedError.code})
    finally:
        pinging.cancel()
        for device in fleet.devices:
            device.close()
        context.destroy(linger=0)


if __name__ == "__main__":
    endpoint, name, model_digest, cut_index, devices, file = sys.argv[1:]
    asyncio.run(
        _serve(
            endpoint, name, model_digest, int(cut_index), int(devices), Path(json.loads(file)).read_bytes()
        )
    )
