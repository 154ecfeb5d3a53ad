"""The pipeline's half that faces the cloud: what is sent there, and what the link reports from there.

The decisions are the controller's and the request table's; this tells them and performs what they say.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edge_agent.accounting import Request, cloud_stages
from edge_agent.actions import Action
from edge_agent.controller import Controller
from edge_agent.decision import Decision
from edge_agent.link import CloudLink
from edge_agent.listener import LinkState
from edge_agent.requests import RequestTable
from edge_agent.runner import decodes_inline
from edge_agent.served import Served
from shared.codec import Codec
from shared.errors import RefusedError, SutureError
from shared.plan.stages import Stage
from shared.wire import SET_CUT, Message
from shared.wire.messages import Card, Infer, Limits, LoadReport, ModelCard

__all__ = ["CloudSide"]

log = logging.getLogger("suture.agent")

_REPLY_CODEC = Codec.FLOAT32
_LATE_KEPT = 64


@dataclass(frozen=True, slots=True)
class _Late:
    """What is kept of a request that ended without its answer, to learn from the answer when it comes."""

    decision: Decision
    sent_ms: float


class CloudSide:
    """What the link reports to.  ``perform`` takes the table's actions; ``requests`` are those that live."""

    def __init__(
        self,
        controller: Controller,
        table: RequestTable,
        models: Mapping[str, Served],
        requests: Mapping[int, Request],
        perform: Callable[[Sequence[Action]], None],
        now_ms: Callable[[], float],
        worker_wait_ms: Callable[[], float],
    ) -> None:
        self.link: CloudLink | None = None
        self.limits = Limits()
        self.on_offer: Callable[[ModelCard], None] = lambda offer: None
        """Told of every network on a card of the gateway, after the controller."""
        self.measured = asyncio.Event()
        """Set once the gateway has measured the uplink."""
        self.timed = asyncio.Event()
        """Set once a round trip was measured."""
        self.loaded = asyncio.Event()
        """Set once the cloud's load is known."""
        self.load_endpoint = ""
        """Where the gateway says that its load feed is."""
        self._controller = controller
        self._table = table
        self._models = models
        self._requests = requests
        self._perform = perform
        self._now_ms = now_ms
        self._worker_wait_ms = worker_wait_ms
        self._late: dict[int, _Late] = {}
        self._online = False

    # what is sent

    def send(self, request: Request, budget_ms: float) -> None:
        decision, prefix, served = request.decision, request.prefix, request.served
        assert prefix is not None
        assert self.link is not None
        cut = decision.cut
        payload_bytes = prefix.payload_bytes
        queued_bytes = self.link.unconfirmed_bytes
        sent_ms = self._now_ms()
        sent = (
            served.index is not None
            and request.batch <= self.limits.max_batch
            and payload_bytes <= self.limits.max_message_bytes
            and self.link.send_infer(
                request.request_id,
                Infer(
                    batch=prefix.batch,
                    tensors=list(prefix.headers),
                    reply_codec=_REPLY_CODEC,
                    tail_units=served.graph.tail_units_mask(cut) if cut.index < 0 else b"",
                ),
                prefix.payloads,
                model=served.index,
                cut=SET_CUT if cut.index < 0 else cut.index,
                codec=decision.codec,
                budget_ms=budget_ms,
                result_bytes=round(float(decision.rows.result_bytes[decision.row]) * prefix.batch),
            )
        )
        if sent:
            if request.sent_ms:  # before, to a gateway that was lost
                request.lost_ms += sent_ms - request.sent_ms
            request.sent_ms, request.sent_bytes = sent_ms, payload_bytes
            request.queued_bytes = queued_bytes
        else:
            self._perform(self._table.send_failed(request.request_id))

    def wake(self, served: Served) -> None:
        """A request for this network begins: if it lacks a replica, the cloud is told that it wants one."""
        if served.asleep_index is not None and self.link is not None:
            self.link.want(served.asleep_index)

    def withdraw(self, request_id: int) -> None:
        """Nobody waits for this answer any more."""
        if self.link is not None:
            self.link.send_cancel(request_id)

    def keep_in_mind(self, request: Request) -> None:
        """A request has ended; if its answer is still to come, something can be learned from it."""
        if request.sent_ms and not request.answered_ms:
            self._late[request.request_id] = _Late(request.decision, request.sent_ms)
            if len(self._late) > _LATE_KEPT:
                del self._late[next(iter(self._late))]

    # what the link reports

    def on_link_state(self, state: LinkState, reason: str) -> None:
        was_online, self._online = self._online, state is LinkState.ONLINE
        if self._online:
            log.info("cloud: online, %s", reason)
            self._controller.on_connected(self._now_ms())
            return
        if was_online:
            # Before the controller forgets the link: requests in flight go on at once.
            moves_in_ms = self.link.moves_in_ms() if self.link is not None else None
            self._perform(self._table.disconnected(self._now_ms(), moves_in_ms, self._worker_wait_ms()))
            self._controller.on_disconnected(self._now_ms())
        if state is not LinkState.CLOSED:
            log.warning("cloud: %s, %s; answers are computed on the device", state, reason)

    def on_card(self, card: Card) -> None:
        now_ms = self._now_ms()
        self.limits, self.load_endpoint = card.limits, card.load_endpoint
        self._controller.on_gateway(card.gateway, now_ms)
        self._controller.on_limits(card.limits, now_ms)
        offers = {model.name: model for model in card.models}
        for served in self._models.values():
            offer = offers.get(served.name)
            served.on_offer(offer)
            if offer is not None:
                self._controller.on_card(offer, now_ms)
                self.on_offer(offer)
        self._perform(
            self._table.connected(
                now_ms,
                max_in_flight=card.limits.max_in_flight,
                max_in_flight_bytes=card.limits.max_in_flight_bytes,
            )
        )

    def on_answer(self, message: Message) -> None:
        now_ms = self._now_ms()
        request_id = message.request_id
        needs_worker = not decodes_inline(message.header.tensors)
        actions = self._table.answered(request_id, needs_worker=needs_worker)
        request = self._requests.get(request_id)
        late = self._late.pop(request_id, None)
        if request is not None and actions:
            request.answered_ms, request.message = now_ms, message
        elif late is not None:
            stages = cloud_stages(message, now_ms - late.sent_ms)
            measured = {Stage(name): ms for name, ms in stages.items()}
            self._controller.on_timings(late.decision, measured, now_ms)
        self._perform(actions)

    def on_refusal(self, request_id: int, error: SutureError) -> None:
        request = self._requests.get(request_id)
        self._late.pop(request_id, None)
        if request is not None:
            log.info("the cloud did not answer for %s: %s", request.served.name, error)
            request.answered_ms = self._now_ms()
            retry_after_ms = error.retry_after_ms if isinstance(error, RefusedError) else 0.0
            self._controller.on_refused(request.served.name, retry_after_ms, self._now_ms())
        self._perform(self._table.refused(request_id, error))

    def on_span(self, span_bytes: int, span_ms: float) -> None:
        self._controller.on_span(span_bytes, span_ms, self._now_ms())
        if self._controller.link(self._now_ms()).measured:
            self.measured.set()

    def on_rtt(self, rtt_ms: float) -> None:
        self._controller.on_rtt(rtt_ms, self._now_ms())
        self.timed.set()

    def on_load(self, report: LoadReport) -> None:
        self._controller.on_load(report, self._now_ms())
        self.loaded.set()

    def uplink_bps(self) -> float:
        return self._controller.link(self._now_ms()).uplink_bps

    def probe_bytes(self) -> int:
        return self._controller.wants_probe(self._now_ms())

    def on_probe_sent(self, probe_bytes: int) -> None:
        self._controller.on_probe_sent(probe_bytes, self._now_ms())
