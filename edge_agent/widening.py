"""Cuts beyond the topological ones, looked for whenever unit times are new, the cloud's or the device's.

Finding them takes too long for the event loop and would keep requests from the worker, so it happens in a
thread of its own, and requests go on with the cuts there are.  What is found is used in lossless codecs at
first; what lossy ones do there is then judged while nobody waits (:mod:`edge_agent.catching_up`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from edge_agent.controller import Controller
from edge_agent.registration import Registered
from shared.graph import Cut
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
    """:meth:`run` is its only task; ``judge`` is told of the cuts that were found for a network."""

    def __init__(
        self,
        controller: Controller,
        now_ms: Callable[[], float],
        judge: Callable[[str, Sequence[Cut]], None],
    ) -> None:
        self._controller = controller
        self._now_ms = now_ms
        self._judge = judge
        self._networks: dict[str, _Network] = {}
        self._pending: asyncio.Queue[str] = asyncio.Queue()
        self._stopped = False

    def add(self, name: str, registered: Registered, constraints: Constraints) -> None:
        """A pinned cut leaves nothing to look for."""
        if constraints.cut is None:
            self._networks[name] = _Network(registered, constraints)

    def on_measured(self, name: str, registered: Registered) -> None:
        """More is known of a network: where it is its times, what was found is looked for again."""
        network = self._networks.get(name)
        if network is None:
            return
        timed, network.registered = network.registered.profile, registered
        if network.unit_ms and registered.profile is not timed:
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
        known, codecs, unit_ms = network.registered, network.constraints.codecs or FAITHFUL, network.unit_ms
        cuts = await asyncio.to_thread(
            widened_cuts, known.graph, known.profile, unit_ms, codecs, self._grid()
        )
        if network.unit_ms != unit_ms or network.registered.profile is not known.profile:
            return  # what is newer is pending
        self._controller.on_measured(name, self._now_ms(), wide_cuts=cuts)
        if cuts:
            log.info("%s: %d cuts beyond the order of its units are worth considering", name, len(cuts))
            self._judge(name, cuts)

    def _grid(self) -> Iterator[Conditions]:
        for at in GRID:
            if self._stopped:
                return
            yield at
