"""One request after another through plan, prefix, link and answer.

The decisions are the controller's and the request table's; this performs the table's actions and reports
what became of them.  It is what the link reports to.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edge_agent.accounting import Request, cloud_stages
from edge_agent.actions import (
    Action,
    Complete,
    Decode,
    Fail,
    FinishLocally,
    Phase,
    RunPrefix,
    Send,
    StopLocal,
)
from edge_agent.controller import Controller
from edge_agent.decision import Decision
from edge_agent.link import CloudLink, LinkState
from edge_agent.power import PowerMeter
from edge_agent.requests import RequestTable
from edge_agent.result import Result
from edge_agent.runner import Runner, Stopped, Work
from edge_agent.served import Served
from shared.codec import Codec
from shared.errors import (
    CodecError,
    InputMismatchError,
    InternalError,
    RefusedError,
    SutureError,
    UnavailableError,
)
from shared.plan.objective import Objective
from shared.plan.stages import Stage
from shared.wire import SET_CUT, Message
from shared.wire.messages import Card, Infer, Limits, LoadReport, ModelCard

__all__ = ["Pipeline"]

log = logging.getLogger("suture.agent")

_REPLY_CODEC = Codec.FLOAT32
_LATE_KEPT = 64


class Spawn(Protocol):
    """Runs a coroutine as a task of the agent; what it raises ends the agent."""

    def __call__(self, coroutine: Coroutine[Any, Any, None]) -> object: ...


@dataclass(frozen=True, slots=True)
class _Late:
    """What is kept of a request that ended without its answer, to learn from the answer when it comes."""

    decision: Decision
    sent_ms: float


class Pipeline:
    """The running state of an agent.  Everything here happens on the event loop, except compute."""

    def __init__(
        self,
        runner: Runner,
        controller: Controller,
        table: RequestTable,
        spawn: Spawn,
        meter: PowerMeter,
    ) -> None:
        self.controller = controller
        self.table = table
        self.on_offer: Callable[[ModelCard], None] = lambda offer: None
        """Told of every network on a card of the gateway, after the controller."""
        self.models: dict[str, Served] = {}
        self.limits = Limits()
        self.link: CloudLink | None = None
        self.measured = asyncio.Event()
        """Set once the gateway has measured the uplink."""
        self.timed = asyncio.Event()
        """Set once a round trip was measured."""
        self.loaded = asyncio.Event()
        """Set once the cloud's load is known."""
        self.load_endpoint = ""
        """Where the gateway says that its load feed is."""
        self._runner = runner
        self._spawn = spawn
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._requests: dict[int, Request] = {}
        self._late: dict[int, _Late] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._online = False

    def now_ms(self) -> float:
        return self._loop.time() * 1000.0

    async def infer(
        self,
        served: Served,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        deadline_ms: float | None,
        objective: Objective | None = None,
    ) -> Result:
        """The answer, or a SutureError, by the deadline.  Cancelling withdraws the work everywhere."""
        started_ms = self.now_ms()
        leaves, batch, input_bytes = served.check(args, kwargs)
        budget_ms = served.deadline_ms if deadline_ms is None else deadline_ms
        decision = self.controller.decide(
            served.name, started_ms, budget_ms - self._runner.queued_ms(), batch, objective
        )
        request = Request(
            next(self._ids),
            served,
            decision,
            leaves,
            batch,
            started_ms,
            self._loop.create_future(),
            self._meter.start(),
        )
        actions = self.table.submit(
            request.request_id,
            now_ms=started_ms,
            deadline_ms=started_ms + budget_ms,
            on_device=decision.is_local,
            rest_ms=_rest_ms(decision),
            answer_ms=decision.remote_ms,
            held_bytes=input_bytes,
        )
        self._requests[request.request_id] = request
        self._idle.clear()
        try:
            self._perform(actions)
            complete = await request.ended
            return self._result(request, complete)
        finally:
            self._release(request)

    async def run_timers(self) -> None:
        """Deadlines and guards, until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            self._perform(self.table.tick(self.now_ms(), self._runner.queued_ms()))

    async def drain(self, patience_s: float) -> None:
        """Admit nothing more, let requests end for this long, then end the rest with UnavailableError."""
        self.table.drain()
        try:
            await asyncio.wait_for(self._idle.wait(), patience_s)
        except TimeoutError:
            self.abandon(UnavailableError("the agent stopped before this request ended; send it again later"))
            await self._idle.wait()

    async def idle(self) -> None:
        """Returns once no request is in flight."""
        await self._idle.wait()

    def abandon(self, error: SutureError) -> None:
        """End every request that is in flight with this error."""
        for request in self._requests.values():
            if not request.ended.done():
                request.ended.set_exception(error)

    # actions of the table

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            request = self._requests[action.request_id]
            if isinstance(action, RunPrefix):
                self._spawn(self._run_prefix(request))
            elif isinstance(action, Send):
                self._send(request, action.budget_ms)
            elif isinstance(action, Decode):
                self._spawn(self._decode(request))
            elif isinstance(action, FinishLocally):
                self._finish_locally(request)
            elif isinstance(action, StopLocal):
                request.work.stop()
            elif not request.ended.done():
                if isinstance(action, Fail):
                    self._note_overdue(request)
                    request.ended.set_exception(action.error)
                else:
                    request.ended.set_result(action)
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due_ms = self.table.next_tick_ms(self.now_ms(), self._runner.queued_ms())
        self._timer = None if due_ms is None else self._loop.call_at(due_ms / 1000.0, self._due.set)

    async def _run_prefix(self, request: Request) -> None:
        decision = request.decision
        predicted = decision.predicted
        leaves, request.leaves = request.leaves or (), None
        try:
            request.prefix = await self._runner.prefix(
                request.served.name,
                leaves,
                decision.cut,
                decision.codecs,
                request.work,
                expected_ms=predicted[Stage.DEVICE] + predicted[Stage.ENCODE],
            )
        except Stopped:
            return
        except (RuntimeError, IndexError, SutureError) as error:
            self._perform(self.table.prefix_failed(request.request_id, _as_suture_error(request, error)))
            return
        self._perform(
            self.table.prefix_done(
                request.request_id,
                now_ms=self.now_ms(),
                payload_bytes=request.prefix.payload_bytes,
            )
        )

    def _send(self, request: Request, budget_ms: float) -> None:
        decision, prefix, served = request.decision, request.prefix, request.served
        assert prefix is not None
        assert self.link is not None
        cut = decision.cut
        payload_bytes = prefix.payload_bytes
        queued_bytes = self.link.unconfirmed_bytes
        sent_ms = self.now_ms()
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
            request.sent_ms, request.sent_bytes = sent_ms, payload_bytes
            request.queued_bytes = queued_bytes
        else:
            self._perform(self.table.send_failed(request.request_id))

    def _finish_locally(self, request: Request) -> None:
        self._note_overdue(request)
        request.work = Work()
        self._spawn(self._finish(request, request.work))

    async def _finish(self, request: Request, work: Work) -> None:
        assert request.prefix is not None
        request.finish_began_ms = self.now_ms()
        try:
            request.finished = await self._runner.finish(
                request.served.name,
                request.decision.cut,
                request.prefix,
                work,
                expected_ms=_rest_ms(request.decision),
            )
        except Stopped:
            return
        except (RuntimeError, IndexError) as error:
            self._perform(self.table.local_failed(request.request_id, _as_suture_error(request, error)))
            return
        self._perform(self.table.local_done(request.request_id))

    async def _decode(self, request: Request) -> None:
        assert request.prefix is not None
        assert request.message is not None
        message = request.message
        try:
            request.decoded = await self._runner.decode(
                request.served.name,
                request.decision.cut,
                request.prefix,
                message.header.tensors,
                message.payloads,
                Work(),
            )
        except CodecError as error:
            log.warning("an answer for %s does not decode: %s", request.served.name, error)
            self.controller.on_refused(request.served.name, 0.0, self.now_ms())
            self._perform(self.table.decode_failed(request.request_id))
            return
        self._perform(self.table.decode_done(request.request_id))

    # the end of a request

    def _release(self, request: Request) -> None:
        """Whatever way it ended: nothing of it runs or is held any more."""
        request_id = request.request_id
        phase = self.table.phase(request_id)
        if self.table.cancelled(request_id) and phase in (Phase.SENT, Phase.RACING):
            self._note_overdue(request)
            if self.link is not None:
                self.link.send_cancel(request_id)
        elif request.sent_ms and not request.answered_ms:
            self._late[request_id] = _Late(request.decision, request.sent_ms)
            if len(self._late) > _LATE_KEPT:
                del self._late[next(iter(self._late))]
        request.work.stop()
        if request.ended.done() and not request.ended.cancelled():
            request.ended.exception()  # seen, also where a cancellation overtook it
        del self._requests[request_id]
        if not self._requests:
            self._idle.set()
        self._set_timer()

    def _note_overdue(self, request: Request) -> None:
        """Tell the planner of a request that was sent and has no answer yet."""
        if request.sent_ms and not request.answered_ms:
            now_ms = self.now_ms()
            elapsed_ms = now_ms - request.sent_ms
            self.controller.on_overdue(request.decision, elapsed_ms, now_ms, request.queued_bytes)

    def _result(self, request: Request, complete: Complete) -> Result:
        now_ms = self.now_ms()
        result = request.result(complete, now_ms, self._meter)
        if complete.fallback is None:
            measured = {Stage(name): ms for name, ms in result.breakdown.items()}
            self.controller.on_timings(request.decision, measured, now_ms)
        return result

    # what the link reports

    def on_link_state(self, state: LinkState, reason: str) -> None:
        was_online, self._online = self._online, state is LinkState.ONLINE
        if self._online:
            log.info("cloud: online, %s", reason)
            self.controller.on_connected(self.now_ms())
            return
        if was_online:
            # Before the controller forgets the link: requests in flight go on here at once.
            self._perform(self.table.disconnected())
            self.controller.on_disconnected(self.now_ms())
        if state is not LinkState.CLOSED:
            log.warning("cloud: %s, %s; answers are computed on the device", state, reason)

    def on_card(self, card: Card) -> None:
        now_ms = self.now_ms()
        self.limits, self.load_endpoint = card.limits, card.load_endpoint
        self.controller.on_limits(card.limits, now_ms)
        offers = {model.name: model for model in card.models}
        for served in self.models.values():
            offer = offers.get(served.name)
            served.on_offer(offer)
            if offer is not None:
                self.controller.on_card(offer, now_ms)
                self.on_offer(offer)
        self.table.connected(
            max_in_flight=card.limits.max_in_flight, max_in_flight_bytes=card.limits.max_in_flight_bytes
        )

    def on_answer(self, message: Message) -> None:
        now_ms = self.now_ms()
        request_id = message.request_id
        actions = self.table.answered(request_id)
        request = self._requests.get(request_id)
        late = self._late.pop(request_id, None)
        if request is not None and actions:
            request.answered_ms, request.message = now_ms, message
        elif late is not None:
            stages = cloud_stages(message, now_ms - late.sent_ms)
            measured = {Stage(name): ms for name, ms in stages.items()}
            self.controller.on_timings(late.decision, measured, now_ms)
        self._perform(actions)

    def on_refusal(self, request_id: int, error: SutureError) -> None:
        request = self._requests.get(request_id)
        self._late.pop(request_id, None)
        if request is not None:
            log.info("the cloud did not answer for %s: %s", request.served.name, error)
            request.answered_ms = self.now_ms()
            retry_after_ms = error.retry_after_ms if isinstance(error, RefusedError) else 0.0
            self.controller.on_refused(request.served.name, retry_after_ms, self.now_ms())
        self._perform(self.table.refused(request_id, error))

    def on_span(self, span_bytes: int, span_ms: float) -> None:
        self.controller.on_span(span_bytes, span_ms, self.now_ms())
        if self.controller.link(self.now_ms()).measured:
            self.measured.set()

    def on_rtt(self, rtt_ms: float) -> None:
        self.controller.on_rtt(rtt_ms, self.now_ms())
        self.timed.set()

    def on_load(self, report: LoadReport) -> None:
        self.controller.on_load(report, self.now_ms())
        self.loaded.set()

    def uplink_bps(self) -> float:
        return self.controller.link(self.now_ms()).uplink_bps

    def probe_bytes(self) -> int:
        return self.controller.wants_probe(self.now_ms())

    def on_probe_sent(self, probe_bytes: int) -> None:
        self.controller.on_probe_sent(probe_bytes, self.now_ms())


def _rest_ms(decision: Decision) -> float:
    """Predicted device time of the units above the cut."""
    rows, conditions = decision.rows, decision.conditions
    units_ms = float(rows.edge_ms[rows.local] - rows.edge_ms[decision.row])
    return max(units_ms, 0.0) * conditions.device * conditions.batch


def _as_suture_error(request: Request, error: Exception) -> SutureError:
    if isinstance(error, SutureError):
        return error
    if isinstance(error, IndexError):
        # Shapes and dtypes were right, so it is the values: a token that the vocabulary does not have.
        return InputMismatchError(f"{request.served.name} cannot run on these values: {error}")
    log.error("torch could not compute %s: %s", request.served.name, error)
    return InternalError(f"torch could not compute {request.served.name} on this device: {error}")
