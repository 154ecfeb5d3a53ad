"""The device's link in virtual time: sessions over two wires, and the product's judge of silence."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from typing import Any

from edge_agent.cloud_side import CloudSide
from edge_agent.listener import LinkState
from edge_agent.silence import Silence
from shared.errors import SutureError
from shared.wire import SET_CUT, WireLimits, decode_message, encode_message
from shared.wire.messages import Card, Infer, Limits, ModelCard, Result, TailTimings, TensorHeader
from tests.virtual.cloud import Gateway, Ticket
from tests.virtual.network import Wire
from tests.virtual.worker import UNIT_MS, cloud_part, network

__all__ = ["VirtualLink"]

_HEARTBEAT_MS, _TIMEOUT_MS, _REDIAL_MS = 100.0, 300.0, 150.0
_SMALL = 60


class VirtualLink:
    """What the pipeline asks of a link; :meth:`run` dials whenever there is no session.

    ``reachable`` says whether dialling succeeds; :meth:`reset` ends the session as the other side would.
    """

    def __init__(self, device: str, gateway: Gateway, draw: random.Random, **wire: Any) -> None:
        self.device = device
        self.side: CloudSide
        self.reachable = True
        self.answered_twice = False
        self.sent = 0
        self._gateway = gateway
        self._draw = draw
        self.up, self.down = Wire(draw, **wire), Wire(draw, **wire)
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._pings = itertools.count(2**63)
        self._silence: Silence | None = None
        self._session = 0

    # what the pipeline asks

    @property
    def unconfirmed_bytes(self) -> int:
        return self._silence.unconfirmed_bytes if self._silence else 0

    def moves_in_ms(self) -> float | None:
        return None

    def want(self, index: int) -> None:
        return None

    def send_cancel(self, request_id: int) -> None:
        if self._silence is not None:
            self._silence.forget(request_id)
            self.up.send(_SMALL, lambda _: self._gateway.cancel(self.device, request_id))

    def send_infer(
        self,
        request_id: int,
        header: Infer,
        payloads: Sequence[Any],
        *,
        cut: int,
        budget_ms: float,
        result_bytes: int,
        **_: Any,
    ) -> bool:
        if self._silence is None:
            return False
        assert cut != SET_CUT
        at = network()[0].graph.cuts[cut]
        nbytes = sum(len(payload) for payload in payloads)
        self._silence.work_sent(request_id, nbytes, result_bytes, self._now_ms() + budget_ms)
        session = self._session
        ticket = Ticket(self.device, request_id, at, lambda outcome: self._reply(session, ticket, outcome))
        self.sent += 1
        self.up.send(nbytes + _SMALL, self._arrived, session, ticket, nbytes, budget_ms)
        return True

    # the session

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_REDIAL_MS / 1000.0 * self._draw.uniform(0.5, 1.0))
            if self.reachable:
                self._begin()
                while self._silence is not None:
                    silence = self._silence
                    now_ms = self._now_ms()
                    if now_ms >= silence.lost_ms():
                        self.reset("nothing heard")
                        break
                    silence.ping_sent(ping := next(self._pings), 0, now_ms, self.side.uplink_bps())
                    self.up.send(_SMALL, self._pinged, self._session, ping)
                    wait_ms = min(_HEARTBEAT_MS, silence.lost_ms() - now_ms)
                    self._changed.clear()
                    try:
                        async with asyncio.timeout(max(wait_ms, 0.0) / 1000.0):
                            await self._changed.wait()
                    except TimeoutError:
                        continue

    def reset(self, reason: str) -> None:
        """The session ends, with all that is under way in it."""
        if self._silence is None:
            return
        self._silence = None
        self._session += 1
        self.up.cut()
        self.down.cut()
        self._changed.set()
        self._gateway.device_gone(self.device)
        self.side.on_link_state(LinkState.OFFLINE, reason)

    def _begin(self) -> None:
        self._silence = Silence(_HEARTBEAT_MS, _TIMEOUT_MS, self._now_ms())
        graph = network()[0].graph
        unit_ms = [UNIT_MS / 10] * len(graph.units)
        offer = ModelCard(name="photos", digest=graph.digest, index=0, unit_ms=unit_ms, replicas=1)
        self.side.on_link_state(LinkState.ONLINE, "there")
        self.side.on_card(Card(gateway="virtual", software="test", limits=Limits(), models=[offer]))

    def _arrived(self, session: int, ticket: Ticket, nbytes: int, budget_ms: float, span_ms: float) -> None:
        self._gateway.infer(ticket, nbytes, budget_ms, span_ms)

    def _pinged(self, session: int, ping: int, _: float) -> None:
        self.down.send(_SMALL, self._ponged, session, ping)

    def _ponged(self, session: int, ping: int, _: float) -> None:
        silence = self._hear(session)
        if silence is not None and (rtt_ms := silence.ponged(ping)) is not None:
            self.side.on_rtt(rtt_ms)

    def _reply(self, session: int, ticket: Ticket, outcome: str | SutureError) -> None:
        """At the gateway: the answer leaves, if the device's session is still that one."""
        if session != self._session:
            return
        if isinstance(outcome, SutureError):
            self.down.send(_SMALL, self._refused, session, ticket.request_id, outcome)
            return
        reply = cloud_part(ticket.cut)
        headers, payloads = [header for header, _ in reply], [data for _, data in reply]
        if outcome == "garbage":
            headers = [_of_another_slot(header) for header in headers]
        timings = TailTimings(compute_ms=ticket.work_ms)
        frames = encode_message(
            Result(tensors=headers, timings=timings), payloads, request_id=ticket.request_id
        )
        for _ in range(2 if outcome == "twice" else 1):
            self.down.send(_SMALL + sum(map(len, payloads)), self._answered, session, frames)

    def _answered(self, session: int, frames: Sequence[Any], _: float) -> None:
        silence = self._hear(session)
        if silence is not None:
            message = decode_message([bytes(frame) for frame in frames], WireLimits())
            silence.answered(message.request_id)
            self.side.on_answer(message)

    def _refused(self, session: int, request_id: int, error: SutureError, _: float) -> None:
        silence = self._hear(session)
        if silence is not None:
            silence.answered(request_id)
            self.side.on_refusal(request_id, error)

    def _hear(self, session: int) -> Silence | None:
        if session != self._session or self._silence is None:
            return None
        self._silence.heard_ms = self._now_ms()
        return self._silence

    def _now_ms(self) -> float:
        return self._loop.time() * 1000.0


def _of_another_slot(header: TensorHeader) -> TensorHeader:
    return TensorHeader(
        slot=header.slot + 1,
        dtype=header.dtype,
        codec=header.codec,
        shape=header.shape,
        order=header.order,
        payload_bytes=header.payload_bytes,
    )
