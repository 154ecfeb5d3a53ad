"""Measuring, while nobody waits, what a start with a predictor left to be measured.

A network that has no profile yet is planned on predicted times at once.  Its profile and its accuracy gate
are then measured on the worker step by step, each step only while no request is in flight, so that a request
waits for one step at most: a run of the network, or the codecs of one of its tensors.  Each replaces what
was assumed as soon as it is there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from edge_agent.registration import Registered, lossy_forms
from edge_agent.runner import Runner
from shared.config import AgentConfig
from shared.plan.constraints import Constraints
from shared.plan.gate import Gate
from shared.plan.profile import Profile
from shared.plan.steps import Steps, advance

__all__ = ["CatchingUp"]

log = logging.getLogger("suture.agent")

T = TypeVar("T")

OnMeasured = Callable[[str, Registered], None]


class CatchingUp:
    """:meth:`run` is its only task.

    ``idle`` returns once no request is in flight; ``on_measured`` is told of a network when more is known of
    it.
    """

    def __init__(
        self,
        runner: Runner,
        config: AgentConfig,
        idle: Callable[[], Awaitable[None]],
        on_measured: OnMeasured,
    ) -> None:
        self._runner = runner
        self._config = config
        self._idle = idle
        self._on_measured = on_measured
        self._pending: asyncio.Queue[tuple[str, Registered, Constraints]] = asyncio.Queue()

    def add(self, name: str, registered: Registered, constraints: Constraints) -> None:
        """What was measured at the start leaves nothing to do."""
        if registered.profile.predicted:
            self._pending.put_nowait((name, registered, constraints))

    async def run(self) -> None:
        """Until cancelled; a step that is under way then still ends."""
        while True:
            await self._measure(*await self._pending.get())

    async def _measure(self, name: str, known: Registered, constraints: Constraints) -> None:
        config, runner = self._config, self._runner
        predicted_ms = known.profile.whole_ms
        profile: Profile = await self._steps(
            runner.profile_steps(
                name, known.calibration, cache_dir=config.cache_dir, repeats=config.profile_repeats
            )
        )
        known = replace(known, profile=profile)
        self._on_measured(name, known)
        log.info(
            "%s: measured, %.1f ms for the whole network where %.1f were predicted",
            name,
            profile.whole_ms,
            predicted_ms,
        )
        forms = lossy_forms(constraints)
        if forms:
            gate: Gate = await self._steps(
                runner.gate_steps(
                    name,
                    known.calibration,
                    cache_dir=config.cache_dir,
                    forms=forms,
                    enough=constraints.min_agreement,
                )
            )
            self._on_measured(name, replace(known, gate=gate))

    async def _steps(self, steps: Steps[T]) -> T:
        expected_ms = 0.0
        while True:
            await self._idle()
            began_s = time.perf_counter()
            done = await self._runner.call(partial(advance, steps), expected_ms=expected_ms)
            expected_ms = (time.perf_counter() - began_s) * 1e3
            if done is not None:
                return done.value
