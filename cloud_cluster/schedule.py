"""What the computing thread does next, and with which requests: the planner's decisions carried out.

Belongs to one thread.  :meth:`Schedule.add` takes requests, :meth:`Schedule.turn` runs one step of the
plan and returns who is finished.  Between two steps newcomers are taken in, and the plan is made anew: a
request that arrives while others run may catch up with them, or wait where they will come by.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from cloud_cluster.batching import Pending, Plan, Step, plan
from cloud_cluster.curves import BatchCurves
from cloud_cluster.executor import BatchExecutor, Job, Outcome, Work
from cloud_cluster.replica_request import Done, Finished, Request
from shared.errors import DeadlineError, RefusedError, SutureError

__all__ = ["Planner", "Schedule"]

log = logging.getLogger("suture.tail")

_SLICES = 4
"""Where batches pay, a run is interrupted so often to see who has come."""

_MIN_SLICE_MS = 0.5
_MARGIN = 0.05
_PACE_WEIGHT = 0.2


@dataclass(slots=True, eq=False)
class _Group:
    """Requests that run as one from here on; ``work`` is None before they have begun."""

    requests: list[Request]
    cut: int
    lead: Sequence[int]
    batch: int
    work: Work | None = None

    @classmethod
    def of(cls, request: Request, job: Job) -> _Group:
        return cls([request], job.cut, job.lead, job.batch)

    @property
    def jobs(self) -> list[Job]:
        return [request.job for request in self.requests if isinstance(request.job, Job)]


@dataclass(slots=True)
class _Ahead:
    """The rest of the plan: steps, and whom their ids mean."""

    steps: deque[Step] = field(default_factory=deque)
    groups: dict[int, _Group] = field(default_factory=dict)


class Planner(Protocol):
    """:func:`cloud_cluster.batching.plan`, or another one to compare it with."""

    def __call__(
        self,
        pending: Iterable[Pending],
        curves: BatchCurves,
        now_ms: float,
        max_batch: int,
        *,
        behind: float,
        margin: float,
    ) -> Plan: ...


class Schedule:
    """See the module.  ``clock`` gives seconds and never goes back."""

    def __init__(
        self,
        executor: BatchExecutor,
        clock: Callable[[], float] = time.perf_counter,
        planner: Planner = plan,
    ) -> None:
        self._executor = executor
        self._clock = clock
        self._planner = planner
        self._groups: list[_Group] = []
        self._ahead = _Ahead()
        self._joins = executor.curves.best_saving(executor.max_batch) >= _MARGIN
        curves = executor.curves
        self._slice_ms = max(curves.ms(0, curves.units, 1) / _SLICES, _MIN_SLICE_MS)
        self._arrived = 0
        self._behind = 0
        self._pace = 1.0
        self._most = executor.max_batch

    @property
    def idle(self) -> bool:
        return not self._groups

    def add(self, request: Request) -> list[Finished]:
        """Take a request in; it is finished at once when something is wrong with it."""
        job = request.accept(self._executor)
        self._arrived = self._arrived + 1 if self._groups else 0
        if isinstance(job, Job):
            self._groups.append(_Group.of(request, job))
            self._ahead.steps.clear()
            return []
        return [self._failed(request, job)]

    def turn(self) -> list[Finished]:
        """Run the next step; returns who is finished by it, maybe nobody."""
        finished = self._expired()
        if not self._groups:
            return finished
        if not self._ahead.steps:
            self._plan()
        step = self._next_step()
        groups = list(dict.fromkeys(self._ahead.groups[id] for id in step.ids))
        groups, refused = self._decoded(groups)
        finished += refused
        if refused:
            # Others may have been waiting for this one at their place.
            self._ahead.steps.clear()
            return finished
        return finished + self._run(groups, step)

    def _plan(self) -> None:
        if all(group.work is None for group in self._groups):
            # As many as came during the last batch are about to come during this one.
            self._behind, self._arrived = self._arrived, 0
        now_ms = self._clock() * 1e3
        pending = [self._pending(number, group, now_ms) for number, group in enumerate(self._groups)]
        made = self._planner(
            pending, self._executor.curves, now_ms, self._most, behind=float(self._behind), margin=_MARGIN
        )
        self._ahead = _Ahead(deque(made.batches[0].steps), dict(enumerate(self._groups)))

    def _pending(self, number: int, group: _Group, now_ms: float) -> Pending:
        curves = self._executor.curves
        left_ms = curves.units_ms(group.lead, group.batch) + curves.ms(group.cut, curves.units, group.batch)
        # On the scale of the curves; a replica that is twice as slow has half the time.
        deadlines = [
            now_ms + (request.deadline_ms - now_ms) / max(self._pace, 1.0)
            for request in group.requests
            if request.deadline_ms < math.inf
        ]
        kept = [deadline for deadline in deadlines if deadline >= now_ms + left_ms]
        return Pending(
            id=number,
            cut=group.cut,
            batch=group.batch,
            arrived_ms=min(request.arrived_s for request in group.requests) * 1e3,
            deadline_ms=min(kept or deadlines, default=math.inf),
            lead=group.lead,
            requests=len(group.requests),
        )

    def _next_step(self) -> Step:
        """The next one, or its first slice where somebody may come who could join."""
        step = self._ahead.steps.popleft()
        units, curves = step.units, self._executor.curves
        if not self._joins or not isinstance(units, range):
            return step
        batch = sum(group.batch for group in dict.fromkeys(self._ahead.groups[id] for id in step.ids))
        until = units.start + 1
        while until < units.stop and curves.ms(units.start, until, batch) < self._slice_ms:
            until += 1
        until = self._executor.place_from(until)
        if until >= units.stop:
            return step
        self._ahead.steps.appendleft(Step(step.ids, range(until, units.stop)))
        return Step(step.ids, range(units.start, until))

    def _decoded(self, groups: list[_Group]) -> tuple[list[_Group], list[Finished]]:
        ready, refused = [], []
        for group in groups:
            request = group.requests[0]
            if group.work is None:
                began = self._clock()
                request.decode(self._executor, self._clock)
                request.busy_ms += (self._clock() - began) * 1e3
            if isinstance(request.job, SutureError):
                self._groups.remove(group)
                refused.append(self._failed(request, request.job))
            else:
                ready.append(group)
        return ready, refused

    def _run(self, groups: list[_Group], step: Step) -> list[Finished]:
        parts = [group.jobs[0] if group.work is None else group.work for group in groups]
        requests = [request for group in groups for request in group.requests]
        batch = sum(group.batch for group in groups)
        began = self._clock()
        try:
            work, compute_ms = self._executor.run(parts, step.units)
        except SutureError as error:
            return self._apart(groups, requests, error)
        expected_ms = self._executor.curves.units_ms(step.units, batch)
        busy_ms = (self._clock() - began) * 1e3
        self._note_pace(compute_ms, expected_ms)
        for request in requests:
            request.compute_ms += compute_ms
            request.expected_ms += expected_ms
            request.busy_ms += busy_ms / len(requests)
        group = self._joined(groups, requests, batch, work, step)
        if group.cut < self._executor.curves.units or group.lead:
            return []
        self._groups.remove(group)
        # What may be left of the plan is for requests that share nothing with these.
        self._ahead.steps.clear()
        return self._finish(group)

    def _joined(
        self, groups: list[_Group], requests: list[Request], batch: int, work: Work, step: Step
    ) -> _Group:
        group = groups[0]
        for other in groups[1:]:
            self._groups.remove(other)
        group.requests, group.batch, group.work = requests, batch, work
        if isinstance(step.units, range) and step.units is not group.lead:
            group.cut = step.units.stop
        group.lead = ()
        for id in step.ids:
            self._ahead.groups[id] = group
        return group

    def _finish(self, group: _Group) -> list[Finished]:
        began = self._clock()
        try:
            outcomes = self._executor.finish(group.work, group.jobs)
        except SutureError as error:
            return self._apart([group], group.requests, error)
        ended = self._clock()
        share_ms = (ended - began) * 1e3 / len(group.requests)
        return [
            self._answered(request, outcome, ended, share_ms, len(group.requests))
            for request, outcome in zip(group.requests, outcomes, strict=True)
        ]

    def _answered(
        self, request: Request, outcome: Outcome, ended: float, share_ms: float, together: int
    ) -> Finished:
        outcome = replace(
            outcome,
            decode_ms=outcome.decode_ms + request.decode_ms,
            compute_ms=outcome.compute_ms + request.compute_ms,
            expected_ms=outcome.expected_ms or request.expected_ms,
        )
        worked_ms = outcome.decode_ms + outcome.compute_ms + outcome.encode_ms
        wait_ms = max((ended - request.arrived_s) * 1e3 - worked_ms, 0.0)
        return request.callback, Done(outcome, wait_ms, request.busy_ms + share_ms, together)

    def _apart(self, groups: list[_Group], requests: list[Request], error: SutureError) -> list[Finished]:
        """One of several was wrong, or all were too much at once: each begins again, by itself."""
        self._ahead.steps.clear()
        self._groups = [group for group in self._groups if group not in groups]
        if len(requests) == 1:
            return [self._failed(requests[0], error)]
        if isinstance(error, RefusedError):
            self._most = max(sum(group.batch for group in groups) // 2, 1)
            log.warning("batches of at most %d samples from now on: %s", self._most, error)
        end = self._executor.curves.units
        for request in requests:
            job = request.job
            assert isinstance(job, Job), "only jobs run"
            alone = [*job.lead, *range(job.cut, end)]
            self._groups.append(_Group([request], end, alone, job.batch))
        return []

    def _expired(self) -> list[Finished]:
        """Answer what nobody waits for any more; what runs in a batch goes on for the others."""
        now_ms = self._clock() * 1e3
        gone = [
            group
            for group in self._groups
            if all(request.deadline_ms <= now_ms for request in group.requests)
        ]
        finished = []
        for group in gone:
            self._groups.remove(group)
            self._ahead.steps.clear()
            for request in group.requests:
                waited_ms = now_ms - request.arrived_s * 1e3
                error = DeadlineError(f"the time ran out after {waited_ms:.0f} ms at the replica")
                finished.append(self._failed(request, error))
        return finished

    def _failed(self, request: Request, error: SutureError) -> Finished:
        waited_ms = (self._clock() - request.arrived_s) * 1e3
        return request.callback, Done(error, max(waited_ms - request.compute_ms, 0.0), request.busy_ms)

    def _note_pace(self, compute_ms: float, expected_ms: float) -> None:
        if compute_ms > 0 and expected_ms >= _MIN_SLICE_MS:
            self._pace += _PACE_WEIGHT * (compute_ms / expected_ms - self._pace)
