"""One short visit to the gateway: what it serves, how busy it is and what the link is like right now."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from edge_agent.estimate import LinkEstimate, LinkEstimator
from edge_agent.link import CloudLink
from edge_agent.listener import LinkState
from shared.config import CloudLinkConfig
from shared.errors import SutureError
from shared.wire import Message
from shared.wire.messages import Card, Hello, LoadReport, ModelCard, ModelLoad, ModelOffer

__all__ = ["Visit", "visit_gateway"]

_CARD_S, _MEASURE_S = 1.5, 0.8
_ENOUGH = 3
"""Pings and probes that make an estimate worth quoting."""


@dataclass(frozen=True, slots=True)
class Visit:
    """``card`` is None, and ``problem`` says why, when no gateway could be talked to.

    ``link`` rests on what was seen during the visit; ``uplink_measured`` and ``rtt_measured`` tell whether
    anything was.
    """

    card: Card | None
    problem: str
    link: LinkEstimate
    uplink_measured: bool
    rtt_measured: bool
    loads: dict[str, ModelLoad] = field(default_factory=dict)

    def model(self, name: str) -> ModelCard | None:
        """The card of one network; None where the gateway has none."""
        return next((each for each in self.card.models if each.name == name), None) if self.card else None


async def visit_gateway(
    config: CloudLinkConfig, name: str, offers: Sequence[ModelOffer], timeout_s: float = _CARD_S
) -> Visit:
    """Say hello, ping and probe for a moment, and leave.

    Takes ``timeout_s`` at most without a gateway, and less than a second more with one.
    """
    scout = _Scout(config)
    hello = Hello(agent=name, software=f"suture {version('suture')}", models=list(offers))
    link = CloudLink(config, hello, scout)
    task = asyncio.create_task(link.run(), name="scout")
    settled = asyncio.create_task(scout.settled.wait(), name="scout settled")
    seen = asyncio.create_task(scout.seen_enough.wait(), name="scout seen enough")
    try:
        await asyncio.wait({task, settled}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if scout.card is not None:
            await asyncio.wait({task, seen}, timeout=_MEASURE_S, return_when=asyncio.FIRST_COMPLETED)
        link.close()
    finally:
        for each in (settled, seen, task):
            each.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await each  # a defect of the link is raised here
    return scout.report(link.reason if scout.card is None and not scout.problem else scout.problem)


class _Scout:
    """Listens to one link."""

    def __init__(self, config: CloudLinkConfig) -> None:
        self.card: Card | None = None
        self.problem = ""
        self.settled = asyncio.Event()
        """There is a card, or it is known why there is none."""
        self.seen_enough = asyncio.Event()
        self._config = config
        self._estimator = LinkEstimator(config.assumed_uplink_mbps * 1e6, config.assumed_rtt_ms)
        self._loads: dict[str, ModelLoad] = {}
        self._spans = self._pings = 0

    def report(self, problem: str) -> Visit:
        return Visit(
            card=self.card,
            problem="" if self.card is not None else problem,
            link=self._estimator.estimate(self._now_ms()),
            uplink_measured=self._spans > 0,
            rtt_measured=self._pings > 0,
            loads=self._loads,
        )

    def on_link_state(self, state: LinkState, reason: str) -> None:
        if state in (LinkState.OFFLINE, LinkState.REFUSED) and self.card is None:
            self.problem = reason
            self.settled.set()

    def on_card(self, card: Card) -> None:
        self.card = card
        self.settled.set()

    def on_answer(self, message: Message) -> None:
        """Nothing was asked."""

    def on_refusal(self, request_id: int, error: SutureError) -> None:
        """Nothing was asked."""

    def on_span(self, span_bytes: int, span_ms: float) -> None:
        self._spans += self._estimator.on_span(span_bytes, span_ms, self._now_ms())
        self._look()

    def on_rtt(self, rtt_ms: float) -> None:
        self._estimator.on_rtt(rtt_ms, self._now_ms())
        self._pings += 1
        self._look()

    def on_load(self, report: LoadReport) -> None:
        self._loads = {load.name: load for load in report.models}
        self._look()

    def uplink_bps(self) -> float:
        return self._estimator.uplink_bps

    def probe_bytes(self) -> int:
        """Pings and probes in turn: a ping behind a probe measures the probe."""
        return self._config.probe_bytes if self._pings > self._spans and self._spans < _ENOUGH else 0

    def on_probe_sent(self, probe_bytes: int) -> None:
        """The answer tells."""

    def _look(self) -> None:
        probed = self._spans >= _ENOUGH or not self._config.probe_bytes
        if probed and self._pings >= _ENOUGH and self._loads:
            self.seen_enough.set()

    @staticmethod
    def _now_ms() -> float:
        return asyncio.get_running_loop().time() * 1000.0
