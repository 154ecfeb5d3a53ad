"""What the link tells whoever listens to it."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from shared.errors import SutureError
from shared.wire import Message
from shared.wire.messages import Card, LoadReport

__all__ = ["LinkListener", "LinkState"]


class LinkState(StrEnum):
    CONNECTING = "connecting"
    ONLINE = "online"
    OFFLINE = "offline"
    REFUSED = "refused"
    CLOSED = "closed"


class LinkListener(Protocol):
    """What the link reports, in the order of events, from its own task.  Nothing here may block."""

    def on_link_state(self, state: LinkState, reason: str) -> None: ...

    def on_card(self, card: Card) -> None: ...

    def on_answer(self, message: Message) -> None:
        """A RESULT; the payloads are views that may be kept."""

    def on_refusal(self, request_id: int, error: SutureError) -> None: ...

    def on_span(self, span_bytes: int, span_ms: float) -> None:
        """An announced transfer arrived at the gateway in this time."""

    def on_rtt(self, rtt_ms: float) -> None:
        """A heartbeat's round trip with nothing of ours in its way."""

    def on_load(self, report: LoadReport) -> None: ...

    def uplink_bps(self) -> float:
        """The present estimate: a transfer in progress excuses silence for as long as it should take."""

    def probe_bytes(self) -> int:
        """The size of the probe that is wanted with the next heartbeat, else 0."""

    def on_probe_sent(self, probe_bytes: int) -> None: ...
