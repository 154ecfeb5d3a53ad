"""The device's side of the hop bench, and its barest baseline, in processes without Ray.

``python -m bench.hop_device GATEWAY`` is a controlled child: it times one request over the agent's own
link to that gateway, or one over a plain DEALER socket.  ``python -m bench.hop_device echo`` is what
answers such a socket without anything in between.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import zmq

from bench.child import answer
from bench.hop_reply import DIGEST, MODEL, check_reply, reply_to
from edge_agent.link import CloudLink, LinkState
from shared.codec import Codec
from shared.config import CloudLinkConfig
from shared.errors import SutureError
from shared.tensor import DType
from shared.wire import Message
from shared.wire.messages import Card, Hello, Infer, LoadReport, ModelOffer, TensorHeader

_PATIENCE_S = 30.0
_BUDGET_MS = 10_000.0
_FAST_BPS = 1e10


class _Listener:
    """Hears what the link has to say, and keeps what the bench wants to know."""

    def __init__(self) -> None:
        self.model_index: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.answers: dict[int, asyncio.Future[Message]] = {}

    def on_link_state(self, state: LinkState, reason: str) -> None:
        print(f"link: {state}, {reason}", file=sys.stderr)

    def on_card(self, card: Card) -> None:
        for model in card.models:
            if model.name == MODEL and model.replicas and not model.error and not self.model_index.done():
                self.model_index.set_result(model.index)

    def on_answer(self, message: Message) -> None:
        self.answers.pop(message.request_id).set_result(message)

    def on_refusal(self, request_id: int, error: SutureError) -> None:
        self.answers.pop(request_id).set_exception(error)

    def on_span(self, span_bytes: int, span_ms: float) -> None:
        pass

    def on_rtt(self, rtt_ms: float) -> None:
        pass

    def on_load(self, report: LoadReport) -> None:
        pass

    def uplink_bps(self) -> float:
        return _FAST_BPS

    def probe_bytes(self) -> int:
        return 0

    def on_probe_sent(self, probe_bytes: int) -> None:
        pass


class _Device:
    def __init__(self, link: CloudLink, listener: _Listener, model: int, context: zmq.Context[Any]) -> None:
        self._link = link
        self._listener = listener
        self._model = model
        self._context = context
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._next_id = 0

    async def link(self, size: int) -> dict[str, float]:
        """One request of this many bytes over the agent's link: its ms, and those of them between its
        arrival at the gateway and the departure of its answer.  Raises ValueError, SutureError."""
        payload = bytes(size)
        header = Infer(
            batch=1,
            tensors=[
                TensorHeader(
                    slot=0,
                    dtype=DType.UINT8,
                    codec=Codec.FLOAT32,
                    shape=[1, size],
                    order=[0, 1],
                    payload_bytes=size,
                )
            ],
            reply_codec=Codec.FLOAT32,
        )
        self._next_id += 1
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._listener.answers[self._next_id] = future
        started_s = time.perf_counter()
        sent = self._link.send_infer(
            self._next_id,
            header,
            [payload],
            model=self._model,
            cut=0,
            codec=Codec.FLOAT32,
            budget_ms=_BUDGET_MS,
            result_bytes=0,
        )
        if not sent:
            raise ValueError(f"the link is {self._link.state}: {self._link.reason}")
        message = await asyncio.wait_for(future, _BUDGET_MS / 1000)
        elapsed_ms = (time.perf_counter() - started_s) * 1000
        check_reply(size, memoryview(message.payloads[0]).cast("B"))
        return {"ms": elapsed_ms, "gateway_ms": message.header.gateway_ms}

    def plain(self, endpoint: str, size: int) -> float:
        """ms of the same over a plain, blocking socket to this endpoint."""
        socket = self._sockets.get(endpoint)
        if socket is None:
            socket = self._sockets[endpoint] = self._context.socket(zmq.DEALER)
            socket.linger = 0
            socket.rcvtimeo = int(_BUDGET_MS)
            socket.connect(endpoint)
        payload = bytes(size)
        started_s = time.perf_counter()
        socket.send(payload, copy=False)
        reply = socket.recv(copy=False)
        elapsed_ms = (time.perf_counter() - started_s) * 1000
        check_reply(size, reply.buffer)
        return elapsed_ms


async def _device(gateway: str) -> None:
    context = zmq.Context()
    listener = _Listener()
    hello = Hello(agent="hop", software="bench", models=[ModelOffer(name=MODEL, digest=DIGEST)])
    link = CloudLink(CloudLinkConfig(gateway=gateway), hello, listener)
    running = asyncio.create_task(link.run(), name="link")
    try:
        model = await asyncio.wait_for(listener.model_index, _PATIENCE_S)
        device = _Device(link, listener, model, context)
        await answer({"link": device.link, "plain": device.plain}, {})
    finally:
        link.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        context.destroy(linger=0)


async def _echo() -> None:
    """Answers until its input ends, from a thread, as bare as pyzmq can be."""
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    port = socket.bind_to_random_port("tcp://127.0.0.1")

    def reply() -> None:
        try:
            while True:
                identity, payload = socket.recv_multipart(copy=False)
                socket.send_multipart([identity, reply_to(len(payload))])
        except zmq.ContextTerminated:
            socket.close(linger=0)

    answering = asyncio.create_task(asyncio.to_thread(reply))
    await answer({}, {"endpoint": f"tcp://127.0.0.1:{port}"})
    context.term()
    await answering


if __name__ == "__main__":
    asyncio.run(_echo() if sys.argv[1:] == ["echo"] else _device(sys.argv[1]))
