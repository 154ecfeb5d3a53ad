"""One request after another through plan, prefix, link and answer.

The decisions are the controller's and the request table's; this performs the table's actions and reports
what became of them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Protocol

from edge_agent.accounting import Request
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
from edge_agent.cloud_side import CloudSide
from edge_agent.controller import Controller
from edge_agent.decision import Decision
from edge_agent.power import PowerMeter
from edge_agent.requests import RequestTable
from edge_agent.result import Result
from edge_agent.runner import Runner, Stopped, Work
from edge_agent.served import Served
from edge_agent.spread import Spread
from shared.errors import (
    CodecError,
    InputMismatchError,
    InternalError,
    SutureError,
    UnavailableError,
)
from shared.plan.objective import Objective
from shared.plan.stages import Stage

__all__ = ["Pipeline"]

log = logging.getLogger("suture.agent")

_FAILURES = (RuntimeError, IndexError, MemoryError, SutureError)
"""What computing a request may raise without being a defect of the agent: the network's own errors on these
values, memory that ran out, and a worker thread that died."""


class Spawn(Protocol):
    """Runs a coroutine as a task of the agent; what it raises ends the agent."""

    def __call__(self, coroutine: Coroutine[Any, Any, None]) -> object: ...


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
        self.models: dict[str, Served] = {}
        self._runner = runner
        self._spawn = spawn
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._requests: dict[int, Request] = {}
        self._spreads: defaultdict[str, Spread] = defaultdict(Spread)
        self.cloud = CloudSide(
            controller,
            table,
            self.models,
            self._requests,
            self._perform,
            self.now_ms,
            self._runner.urgent_ms,
        )
        self._idle = asyncio.Event()
        self._idle.set()
        self._newest = 0
        self._defect: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None

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
        backlog_ms = self._runner.queued_ms()
        decision = self.controller.decide(
            served.name, started_ms, budget_ms - backlog_ms, batch, objective, backlog_ms
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
            spread=self._spreads[served.name].factor,
            answer_ms=decision.remote_ms,
            held_bytes=input_bytes,
        )
        self._requests[request.request_id] = request
        self._newest = request.request_id
        self._idle.clear()
        self.cloud.wake(served)
        try:
            self._perform(actions)
            complete = await request.ended
            return self._result(request, complete)
        finally:
            self._release(request)

    async def run_timers(self) -> None:
        """Raises what a timer of the deadlines and guards raised, which is a defect; until cancelled."""
        try:
            await self._defect
        finally:
            if self._timer is not None:
                self._timer.cancel()

    async def drain(self, patience_s: float) -> None:
        """Admit nothing more, let requests end for this long, then end the rest with UnavailableError."""
        self.table.drain(back_in_ms=patience_s * 1000.0)
        try:
            await asyncio.wait_for(self._idle.wait(), patience_s)
        except TimeoutError:
            self.abandon(UnavailableError("the agent stopped before this request ended; send it again later"))
            await self._idle.wait()

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    async def idle(self, for_s: float = 0.0) -> None:
        """Returns once no request has been in flight for so long."""
        newest = -1
        while newest != self._newest or not self._idle.is_set():
            await self._idle.wait()
            newest = self._newest
            await asyncio.sleep(for_s)

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
                self.cloud.send(request, action.budget_ms)
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
        """A timer that is early finds nothing to do and sets the next one; only a late one would matter."""
        due_ms = self.table.next_tick_ms(self.now_ms(), self._runner.urgent_ms())
        if due_ms is None or (self._timer is not None and self._timer.when() <= due_ms / 1000.0):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due_ms / 1000.0, self._on_timer, due_ms)

    def _on_timer(self, due_ms: float) -> None:
        # Straight from the loop: a task would get its turn only after all that is ready before it.
        self._timer = None
        # The loop's clock, in seconds, may come to a hair less than what is due now.
        now_ms = max(self.now_ms(), due_ms)
        try:
            self._perform(self.table.tick(now_ms, self._runner.urgent_ms()))
        except Exception as error:  # noqa: BLE001 - a defect, raised by the task that awaits it
            if not self._defect.done():
                self._defect.set_exception(error)

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
        except _FAILURES as error:
            self._perform(self.table.prefix_failed(request.request_id, _as_suture_error(request, error)))
            return
        self._spreads[request.served.name].add(request.prefix.compute_ms, predicted[Stage.DEVICE])
        self._perform(
            self.table.prefix_done(
                request.request_id,
                now_ms=self.now_ms(),
                payload_bytes=request.prefix.payload_bytes,
            )
        )

    def _finish_locally(self, request: Request) -> None:
        self._perform(self.table.make_way(request.request_id, self.now_ms(), self._runner.urgent_ms()))
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
        except _FAILURES as error:
            self._perform(self.table.local_failed(request.request_id, _as_suture_error(request, error)))
            return
        self._spreads[request.served.name].add(request.finished.compute_ms, _rest_ms(request.decision))
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
        except (InternalError, MemoryError) as error:
            log.error("an answer for %s could not be decoded: %s", request.served.name, error)
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
            self.cloud.withdraw(request_id)
        else:
            self.cloud.keep_in_mind(request)
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
        if complete.fallback is None and not request.lost_ms:
            measured = {Stage(name): ms for name, ms in result.breakdown.items()}
            self.controller.on_timings(request.decision, measured, now_ms)
        return result


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
    log.error("torch could not compute %s: %r", request.served.name, error)
    return InternalError(f"torch could not compute {request.served.name} on this device: {error!r}")
