"""One request after another through plan, prefix, link and answer.

The decisions are the controller's and the request table's; this performs the table's actions and reports
what became of them.  It is what the link reports to.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edge_agent.controller import Controller
from edge_agent.decision import Decision
from edge_agent.link import CloudLink, LinkState
from edge_agent.requests import (
    Action,
    Complete,
    Decode,
    Fail,
    FinishLocally,
    Phase,
    RequestTable,
    RunPrefix,
    Send,
    Source,
    StopLocal,
)
from edge_agent.result import Result, Where, breakdown
from edge_agent.runner import Answer, Prefix, Runner, Stopped, Work, to_numpy
from shared.codec import Codec
from shared.errors import (
    CodecError,
    InputMismatchError,
    InternalError,
    RefusedError,
    SutureError,
    UnavailableError,
)
from shared.graph import Graph
from shared.plan.stages import Stage
from shared.tensor import DType, Shape
from shared.wire import SET_CUT, Message
from shared.wire.messages import Card, Infer, Limits, LoadReport, ModelCard

__all__ = ["Pipeline", "Served"]

log = logging.getLogger("suture.agent")

_REPLY_CODEC = Codec.FLOAT32
_LATE_KEPT = 64


class Spawn(Protocol):
    """Runs a coroutine as a task of the agent; what it raises ends the agent."""

    def __call__(self, coroutine: Coroutine[Any, Any, None]) -> object: ...


@dataclass(slots=True)
class Served:
    """One network on this device.  ``index`` is its number at the gateway, None while it is not offered."""

    name: str
    graph: Graph
    deadline_ms: float
    index: int | None = None
    complaint: str = ""


@dataclass(slots=True, eq=False)
class _Request:
    request_id: int
    served: Served
    decision: Decision
    leaves: Sequence[Any] | None
    batch: int
    started_ms: float
    ended: asyncio.Future[Complete]
    work: Work = field(default_factory=Work)
    prefix: Prefix | None = None
    sent_bytes: int = 0
    queued_bytes: int = 0
    sent_ms: float = 0.0
    answered_ms: float = 0.0
    message: Message | None = None
    decoded: Answer | None = None
    finish_began_ms: float = 0.0
    finished: Answer | None = None


@dataclass(frozen=True, slots=True)
class _Late:
    """What is kept of a request that ended without its answer, to learn from the answer when it comes."""

    decision: Decision
    sent_ms: float


class Pipeline:
    """The running state of an agent.  Everything here happens on the event loop, except compute."""

    def __init__(self, runner: Runner, controller: Controller, table: RequestTable, spawn: Spawn) -> None:
        self.controller = controller
        self.table = table
        self.models: dict[str, Served] = {}
        self.limits = Limits()
        self.link: CloudLink | None = None
        self._runner = runner
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._requests: dict[int, _Request] = {}
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
    ) -> Result:
        """The answer, or a SutureError, by the deadline.  Cancelling withdraws the work everywhere."""
        started_ms = self.now_ms()
        leaves = served.graph.flatten(args, kwargs)
        shapes = [_form_of(leaf) for leaf in leaves]
        batch = served.graph.check_inputs(shapes)
        budget_ms = served.deadline_ms if deadline_ms is None else deadline_ms
        decision = self.controller.decide(
            served.name, started_ms, budget_ms - self._runner.queued_ms(), batch
        )
        request = _Request(
            next(self._ids), served, decision, leaves, batch, started_ms, self._loop.create_future()
        )
        actions = self.table.submit(
            request.request_id,
            now_ms=started_ms,
            deadline_ms=started_ms + budget_ms,
            on_device=decision.is_local,
            rest_ms=_rest_ms(decision),
            answer_ms=decision.remote_ms,
            held_bytes=sum(_nbytes(form) for form in shapes),
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

    async def _run_prefix(self, request: _Request) -> None:
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

    def _send(self, request: _Request, budget_ms: float) -> None:
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

    def _finish_locally(self, request: _Request) -> None:
        self._note_overdue(request)
        request.work = Work()
        self._spawn(self._finish(request, request.work))

    async def _finish(self, request: _Request, work: Work) -> None:
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

    async def _decode(self, request: _Request) -> None:
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

    def _release(self, request: _Request) -> None:
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

    def _note_overdue(self, request: _Request) -> None:
        """Tell the planner of a request that was sent and has no answer yet."""
        if request.sent_ms and not request.answered_ms:
            now_ms = self.now_ms()
            elapsed_ms = now_ms - request.sent_ms
            self.controller.on_overdue(request.decision, elapsed_ms, now_ms, request.queued_bytes)

    def _result(self, request: _Request, complete: Complete) -> Result:
        served, decision, prefix = request.served, request.decision, request.prefix
        assert prefix is not None
        stages: dict[str, float] = {
            Stage.QUEUE: prefix.wait_ms,
            Stage.DEVICE: prefix.compute_ms,
            Stage.ENCODE: prefix.encode_ms,
        }
        outputs = prefix.outputs
        where = Where.DEVICE
        if complete.source is Source.CLOUD:
            assert request.decoded is not None
            where = Where.SPLIT if decision.cut.edge_units else Where.CLOUD
            outputs = request.decoded.outputs
            stages |= _cloud_stages(request.message, request.answered_ms - request.sent_ms)
            stages[Stage.RESULT_DECODE] = request.decoded.wait_ms + request.decoded.compute_ms
        elif complete.fallback is not None:
            assert request.finished is not None
            where = Where.DEVICE_FALLBACK
            outputs = request.finished.outputs
            if request.sent_ms:
                stages["gave_up_after"] = request.finish_began_ms - request.sent_ms
            stages[Stage.QUEUE] += request.finished.wait_ms
            stages[Stage.DEVICE] += request.finished.compute_ms
        arrays = [to_numpy(outputs[slot]) for slot in served.graph.outputs]
        now_ms = self.now_ms()
        kept = breakdown(now_ms - request.started_ms, stages)
        if complete.fallback is None:
            measured = {Stage(name): ms for name, ms in kept.items()}
            self.controller.on_timings(decision, measured, now_ms)
        return Result(
            outputs=served.graph.unflatten(arrays),
            where=where,
            cut_index=decision.cut.index,
            cut=decision.cut.name,
            codec="" if decision.is_local else decision.codec.label,
            uplink_bytes=request.sent_bytes,
            latency_ms=now_ms - request.started_ms,
            breakdown=kept,
            decision=decision.as_dict(),
            fallback=complete.fallback,
        )

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
        self.limits = card.limits
        self.controller.on_limits(card.limits, now_ms)
        offers = {model.name: model for model in card.models}
        for served in self.models.values():
            offer = offers.get(served.name)
            complaint = _complaint(served, offer)
            # A card without a digest: no replica has loaded the network yet, another card will follow.
            served.index = offer.index if offer and offer.digest and not complaint else None
            if complaint and complaint != served.complaint:
                log.error("%s", complaint)
            served.complaint = complaint
            if offer is not None:
                self.controller.on_card(offer, now_ms)
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
            stages = _cloud_stages(message, now_ms - late.sent_ms)
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

    def on_rtt(self, rtt_ms: float) -> None:
        self.controller.on_rtt(rtt_ms, self.now_ms())

    def on_load(self, report: LoadReport) -> None:
        self.controller.on_load(report, self.now_ms())

    def uplink_bps(self) -> float:
        return self.controller.link(self.now_ms()).uplink_bps

    def probe_bytes(self) -> int:
        return self.controller.wants_probe(self.now_ms())

    def on_probe_sent(self, probe_bytes: int) -> None:
        self.controller.on_probe_sent(probe_bytes, self.now_ms())


def _cloud_stages(message: Message | None, elapsed_ms: float) -> dict[str, float]:
    """From sending to the answer, as the cloud reports it; what it does not account for is the network.

    The cloud's clock may run a little fast: its durations are scaled down rather than sum to more.
    """
    assert message is not None
    header = message.header
    timings = header.timings
    stages: dict[str, float] = {
        Stage.UPLINK: header.span_ms,
        Stage.NETWORK: 0.0,
        Stage.WAIT: header.queue_ms + timings.wait_ms,
        Stage.DECODE: timings.decode_ms,
        Stage.CLOUD: timings.compute_ms,
        Stage.RESULT_ENCODE: timings.encode_ms,
    }
    told_ms = sum(stages.values())
    if told_ms > elapsed_ms:
        return {stage: ms * elapsed_ms / told_ms for stage, ms in stages.items()}
    stages[Stage.NETWORK] = elapsed_ms - told_ms
    return stages


def _rest_ms(decision: Decision) -> float:
    """Predicted device time of the units above the cut."""
    rows, conditions = decision.rows, decision.conditions
    units_ms = float(rows.edge_ms[rows.local] - rows.edge_ms[decision.row])
    return max(units_ms, 0.0) * conditions.device * conditions.batch


def _form_of(leaf: Any) -> tuple[DType, Shape]:
    """The dtype and shape of a numpy array, a torch tensor or a number, without converting it."""
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise InputMismatchError(f"inputs are numpy arrays or torch tensors, not {type(leaf).__name__}")
    try:
        return DType.from_label(str(leaf.dtype)), tuple(leaf.shape)
    except KeyError:
        known = ", ".join(dtype.label for dtype in DType)
        raise InputMismatchError(f"tensors of {leaf.dtype} are not supported; those are: {known}") from None


def _nbytes(form: tuple[DType, Shape]) -> int:
    dtype, shape = form
    return int(dtype.itemsize * np.prod(shape, dtype=np.int64))


def _complaint(served: Served, offer: ModelCard | None) -> str:
    """Why the cloud is not to be used for this network, for a person; '' when it may be."""
    name, here = served.name, served.graph.digest
    if offer is None:
        return f"the gateway does not serve {name}; it runs on the device alone"
    if offer.digest and offer.digest != here:
        return (
            f"device and cloud hold different networks under the name {name}: {here} here, {offer.digest} "
            "there; it runs on the device alone until both are given the same graph and weights"
        )
    return f"{name} runs on the device alone: {offer.error}" if offer.error else ""


def _as_suture_error(request: _Request, error: Exception) -> SutureError:
    if isinstance(error, SutureError):
        return error
    if isinstance(error, IndexError):
        # Shapes and dtypes were right, so it is the values: a token that the vocabulary does not have.
        return InputMismatchError(f"{request.served.name} cannot run on these values: {error}")
    log.error("torch could not compute %s: %s", request.served.name, error)
    return InternalError(f"torch could not compute {request.served.name} on this device: {error}")
