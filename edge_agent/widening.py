"""Cuts beyond the topological ones, looked for whenever unit times are new, the cloud's or the device's.

Finding them takes too long for the event loop and would keep requests from the worker, so it happens in a
thread of its own, and requests go on with the cuts there are.  What is found is used in lossless codecs at
first.  What lossy ones do there is measured on the worker, cut by cut and only while no request is in
flight; then they become candidates too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.controller import Controller
from edge_agent.registration import Registered, lossy_forms
from edge_agent.runner import Runner
from shared.plan.constraints import Constraints
from shared.plan.latency import Conditions
from shared.plan.rows import FAITHFUL
from shared.plan.wide import GRID, widened_cuts
from shared.wire.messages import ModelCard

__all__ = ["Widening"]

log = logging.getLogger("suture.agent")


@dataclass(slots=True)
class _Network:
    registered: Registered
    constraints: Constraints
    unit_ms: tuple[float, ...] = ()


class Widening:
    """:meth:`run` is its only task; ``idle`` returns once no request is in flight."""

    def __init__(
        self,
        controller: Controller,
        runner: Runner,
        cache_dir: Path,
        now_ms: Callable[[], float],
        idle: Callable[[], Awaitable[None]],
    ) -> None:
        self._controller = controller
        self._runner = runner
        self._cache_dir = cache_dir
        self._now_ms = now_ms
        self._idle = idle
        self._networks: dict[str, _Network] = {}
        self._pending: asyncio.Queue[str] = asyncio.Queue()
        self._stopped = False

    def add(self, name: str, registered: Registered, constraints: Constraints) -> None:
        """A pinned cut leaves nothing to look for."""
        if constraints.cut is None:
            self._networks[name] = _Network(registered, constraints)

    def on_measured(self, name: str, registered: Registered) -> None:
        """More is known of a network: what was found for it is looked for again."""
        network = self._networks.get(name)
        if network is None:
            return
        network.registered = registered
        if network.unit_ms:
            self._pending.put_nowait(name)

    def on_card(self, card: ModelCard) -> None:
        network = self._networks.get(card.name)
        if network is None or card.error or card.digest != network.registered.graph.digest:
            return
        unit_ms = tuple(card.unit_ms)
        if len(unit_ms) == len(network.registered.graph.units) and unit_ms != network.unit_ms:
            network.unit_ms = unit_ms
            self._pending.put_nowait(card.name)

    async def run(self) -> None:
        """Until cancelled; a search that is under way then ends at its next step."""
        try:
            while True:
                name = await self._pending.get()
                await self._widen(name, self._networks[name])
        finally:
            self._stopped = True

    async def _widen(self, name: str, network: _Network) -> None:
        known, constraints, unit_ms = network.registered, network.constraints, network.unit_ms
        cuts = await asyncio.to_thread(
            widened_cuts, known.graph, known.profile, unit_ms, constraints.codecs or FAITHFUL, self._grid()
        )
        if network.unit_ms != unit_ms or network.registered is not known:
            return  # what is newer is pending
        self._controller.on_measured(name, self._now_ms(), wide_cuts=cuts)
        if not cuts:
            return
        log.info("%s: %d cuts beyond the order of its units are worth considering", name, len(cuts))
        gate = known.gate
        if gate is None or known.profile.predicted:
            return  # there is nothing to judge, or it waits for what is measured of all cuts
        for cut in cuts:
            await self._idle()
            if network.registered is not known:
                return
            gate = await self._runner.gate(
                name,
                known.calibration,
                cache_dir=self._cache_dir,
                forms=lossy_forms(constraints),
                enough=constraints.min_agreement,
                cuts=[cut],
                known=gate,
            )
        self._controller.on_measured(name, self._now_ms(), gate=gate)

    def _grid(self) -> Iterator[Conditions]:
        for at in GRID:
            if self._stopped:
                return
            yield at
