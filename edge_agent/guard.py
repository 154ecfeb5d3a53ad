"""The deadline guard: the last moments at which the device alone can still answer in time.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

__all__ = ["Guard"]


class _Sent(Protocol):
    """A request whose answer is awaited.  ``rest_ms`` predicts the device's time above the cut,
    which may be ``spread`` times as long, ``answer_ms`` the time from sending to the answer."""

    deadline_ms: float
    sent_ms: float
    rest_ms: float
    spread: float
    answer_ms: float


_SentT = TypeVar("_SentT", bound=_Sent)


@dataclass(frozen=True, slots=True)
class Guard:
    """When the device stops to wait for the cloud.

    The local completion starts when this is left: ``predicted * spread * margin + hop_ms + slack_ms``;
    ``hop_ms`` is what the way to the worker's thread and back takes for each, beside the compute.  A request
    is overdue at ``overdue_factor`` times its predicted answer time plus ``overdue_ms``; overdue requests
    reserve the device one after the other, so that all of them make it, not only the first.  Others do
    not: while the cloud answers as predicted, many requests in flight must not wake the device early.
    """

    margin: float = 1.2
    hop_ms: float = 1.0
    slack_ms: float = 10.0
    overdue_factor: float = 2.0
    overdue_ms: float = 50.0

    def overdue_at_ms(self, sent: _Sent) -> float:
        """When an answer counts as overdue."""
        return sent.sent_ms + sent.answer_ms * self.overdue_factor + self.overdue_ms

    def latest_starts(
        self, sent: Iterable[_SentT], now_ms: float, worker_wait_ms: float
    ) -> list[tuple[float, _SentT]]:
        """Per request the last moment to start on the device, in the order of their deadlines.

        Overdue ones are laid back to back before their deadlines, the latest deadline first.
        """
        starts: list[tuple[float, _SentT]] = []
        occupied_from = float("inf")
        for each in reversed(sorted(sent, key=lambda each: each.deadline_ms)):
            end_ms = each.deadline_ms - self.slack_ms
            overdue = self.overdue_at_ms(each) <= now_ms
            if overdue:
                end_ms = min(end_ms, occupied_from)
            start_ms = end_ms - each.rest_ms * each.spread * self.margin - self.hop_ms
            if overdue:
                occupied_from = start_ms
            starts.append((start_ms - worker_wait_ms, each))
        starts.reverse()
        return starts
