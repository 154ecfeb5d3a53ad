"""Other devices that use the same replica: a process that keeps a few requests of its own under way.

``python -m bench.busy GATEWAY`` is a controlled child, which sends over the agent's own link, with no relay
in between.  It computes nothing: its one payload is a file.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path
from typing import Any

import msgspec

from bench.child import Child, answer
from edge_agent.link import CloudLink, LinkState
from shared.config import CloudLinkConfig
from shared.errors import SutureError
from shared.wire import Message
from shared.wire.messages import Card, Hello, Infer, LoadReport, ModelOffer

__all__ = ["start_busy"]

_PATIENCE_S = 30.0
_BUDGET_MS = 60_000.0
_FAST_BPS = 1e10


async def start_busy(gateway: str, log: Path) -> Child:
    """The process, to be told ``start`` and ``stop``.  Raises ChildError."""
    child = await Child.start("the other devices", [sys.executable, "-m", __name__, gateway], log)
    try:
        await child.ready()
    except BaseException:
        await child.stop()
        raise
    return child


class _Others:
    """A listener of its own link, which sends again whenever an answer comes."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self._running: asyncio.Task[None] | None = None

    async def start(
        self, model: str, digest: str, cut: int, codec: int, infer: str, payloads: list[str], in_flight: int
    ) -> None:
        """Keep ``in_flight`` requests under way; ``infer`` is their header as JSON, ``payloads`` name files.

        Returns when the first is answered.  Raises TimeoutError, and what the cloud refuses them with.
        """
        self._model, self._cut, self._codec = model, cut, codec
        self._infer = msgspec.json.decode(infer, type=Infer)
        self._payloads = [await asyncio.to_thread(Path(path).read_bytes) for path in payloads]
        self._ids = itertools.count(1)
        self._index: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers = 0
        hello = Hello(agent="others", software="bench", models=[ModelOffer(name=model, digest=digest)])
        self._link = CloudLink(CloudLinkConfig(gateway=self._gateway), hello, self)
        self._running = asyncio.create_task(self._link.run(), name="link")
        self._number = await asyncio.wait_for(self._index, _PATIENCE_S)
        for _ in range(in_flight):
            self._send()
        await asyncio.wait_for(self._first, _PATIENCE_S)

    async def stop(self) -> int:
        """End the connection; the number of answers there were.  Nothing to end is fine."""
        if self._running is None:
            return 0
        self._link.close()
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        self._running = None
        return self._answers

    def _send(self) -> None:
        self._link.send_infer(
            next(self._ids),
            self._infer,
            self._payloads,
            model=self._number,
            cut=self._cut,
            codec=self._codec,
            budget_ms=_BUDGET_MS,
        )

    def on_answer(self, message: Message) -> None:
        self._answers += 1
        if not self._first.done():
            self._first.set_result(None)
        self._send()

    def on_refusal(self, request_id: int, error: SutureError) -> None:
        print(f"refused: {error}", file=sys.stderr)
        if not self._first.done():
            self._first.set_exception(error)

    def on_card(self, card: Card) -> None:
        for model in card.models:
            if model.name == self._model and model.replicas and not self._index.done():
                self._index.set_result(model.index)

    def on_link_state(self, state: LinkState, reason: str) -> None:
        print(f"link: {state}, {reason}", file=sys.stderr)

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


async def _serve(gateway: str) -> None:
    others = _Others(gateway)
    commands: dict[str, Any] = {"start": others.start, "stop": others.stop}
    try:
        await answer(commands, {})
    finally:
        await others.stop()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
