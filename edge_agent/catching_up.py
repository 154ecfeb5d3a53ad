"""Measuring, while nobody waits, what a start left to be measured.

On a calibrated machine a network that has no profile yet is planned on predicted times at once, and profiled
afterwards.  The accuracy gate of any network has judged, at its start, only what a plan was likely to choose;
the rest follows, and so do cuts that are found later.  All of it happens on the worker step by step, each
step only while no request is in flight, so that a request waits for one step at most: a run of the network on
a few samples, or the codecs of one of its tensors.  What was measured replaces what was assumed at once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from edge_agent.goals import objective_of, power_of
from edge_agent.judging import first_question, later_questions, lossy_forms
from edge_agent.measuring import Question
from edge_agent.registration import Registered
from edge_agent.runner import UNMEASURED, Runner
from shared.config import AgentConfig
from shared.graph import Cut
from shared.plan.constraints import Constraints
from shared.plan.profile import Profile
from shared.plan.steps import Steps, advance

__all__ = ["CatchingUp", "Idle"]

log = logging.getLogger("suture.agent")

T = TypeVar("T")

OnMeasured = Callable[[str, Registered], None]

_SOON, _LATER = 0, 1

_PAUSE_S = 0.02
"""Requests that follow one another as soon as this are not held up by a step in between."""


class Idle(Protocol):
    def __call__(self, for_s: float) -> Coroutine[Any, Any, None]:
        """Returns once no request has been in flight for so long."""


@dataclass(order=True, slots=True)
class _Job:
    priority: int
    number: int
    name: str = field(compare=False)
    question: Question | None = field(compare=False)
    """None: profile it first, if need be, and ask what follows."""


class CatchingUp:
    """:meth:`run` is its only task; ``on_measured`` is told of a network when more is known of it."""

    def __init__(self, runner: Runner, config: AgentConfig, idle: Idle, on_measured: OnMeasured) -> None:
        self._runner = runner
        self._config = config
        self._objectives = {model.name: model.objective for model in config.models}
        self._idle = idle
        self._on_measured = on_measured
        self._known: dict[str, Registered] = {}
        self._constraints: dict[str, Constraints] = {}
        self._numbers = itertools.count()
        self._pending: asyncio.PriorityQueue[_Job] = asyncio.PriorityQueue()

    def add(self, name: str, registered: Registered, constraints: Constraints) -> None:
        self._known[name], self._constraints[name] = registered, constraints
        if registered.profile.predicted or registered.gate is not None:
            self._ask(_SOON, name, None)

    def judge(self, name: str, cuts: Sequence[Cut]) -> None:
        """These cuts too, and before what is not urgent."""
        if self._known[name].gate is not None:
            constraints = self._constraints[name]
            self._ask(_SOON, name, Question(lossy_forms(constraints), constraints.min_agreement, cuts))

    async def run(self) -> None:
        """Until cancelled; a step that is under way then still ends.  What cannot be measured now is left as
        it is until the next start."""
        while True:
            job = await self._pending.get()
            try:
                if job.question is None:
                    await self._begin(job.name)
                else:
                    await self._judge(job.name, job.question)
            except UNMEASURED as error:
                log.warning("%s: not measured, planned as before until the next start: %r", job.name, error)
            finally:
                self._pending.task_done()

    async def done(self) -> None:
        """Returns once there is nothing left to measure, as far as is known by then."""
        await self._pending.join()

    def _ask(self, priority: int, name: str, question: Question | None) -> None:
        self._pending.put_nowait(_Job(priority, next(self._numbers), name, question))

    async def _begin(self, name: str) -> None:
        known = self._known[name]
        if known.profile.predicted:
            await self._profile(name)
            known = self._known[name]
        if known.gate is None:
            return
        objective = objective_of(self._objectives[name], power_of(self._config.power))
        first = first_question(known.graph, known.profile, self._constraints[name], objective)
        await self._judge(name, first)
        for question in later_questions(first, objective):
            self._ask(_LATER, name, question)

    async def _profile(self, name: str) -> None:
        known, config = self._known[name], self._config
        predicted_ms = known.profile.whole_ms
        profile: Profile = await self._steps(
            self._runner.profile_steps(
                name, known.calibration, cache_dir=config.cache_dir, repeats=config.profile_repeats
            )
        )
        self._learned(name, replace(known, profile=profile))
        log.info(
            "%s: measured, %.1f ms for the whole network where %.1f were predicted",
            name,
            profile.whole_ms,
            predicted_ms,
        )

    async def _judge(self, name: str, question: Question) -> None:
        known = self._known[name]
        gate = await self._steps(
            self._runner.gate_steps(
                name, known.calibration, question, cache_dir=self._config.cache_dir, known=known.gate
            )
        )
        if gate != known.gate:
            self._learned(name, replace(known, gate=gate))

    def _learned(self, name: str, known: Registered) -> None:
        self._known[name] = known
        self._on_measured(name, known)

    async def _steps(self, steps: Steps[T]) -> T:
        step_s = 0.0
        while True:
            await self._idle(min(step_s, _PAUSE_S))
            began_s = time.perf_counter()
            done = await self._runner.call(partial(advance, steps), expected_ms=step_s * 1e3)
            step_s = time.perf_counter() - began_s
            if done is not None:
                return done.value
