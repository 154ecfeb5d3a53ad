"""What the devices are told of the load, and when: pure, with the time passed in.

A report is periodic, numbered and of one frame, so that a lost one does no harm and a stale one is
recognised.  Between two periods an early one is due when what a device would decide by has moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cloud_cluster.dispatch import ModelState
from shared.wire.messages import LoadReport, ModelLoad

__all__ = ["LoadMeter", "has_moved"]

# A change of the wait below this share, or below this many milliseconds, changes no device's mind.
_MOVED_SHARE = 0.2
_MOVED_MS = 5.0
_RATE_WINDOW_MS = 1000.0
_EARLY_SHARE = 0.2
_BATCH_WEIGHT = 0.2


@dataclass(slots=True)
class _Rate:
    """Events per second, averaged with exponentially fading weight over about a second."""

    total: int = 0
    per_s: float = 0.0
    at_ms: float = -math.inf

    def update(self, total: int, now_ms: float) -> float:
        span_ms = now_ms - self.at_ms
        if span_ms > 0 and math.isfinite(span_ms):
            fading = math.exp(-span_ms / _RATE_WINDOW_MS)
            self.per_s = self.per_s * fading + (total - self.total) / span_ms * 1e3 * (1 - fading)
        self.total, self.at_ms = total, now_ms
        return self.per_s


class LoadMeter:
    """Builds the numbered reports of one gateway.

    ``names`` are the models by index, ``targets`` how many replicas each is meant to have.
    """

    def __init__(self, gateway: str, names: list[str], targets: list[int], period_ms: float) -> None:
        self._gateway = gateway
        self._names = names
        self._targets = targets
        self._period_ms = period_ms
        self._admitted = [_Rate() for _ in names]
        self._refused = [_Rate() for _ in names]
        self._batch = [1.0 for _ in names]
        self._sequence = 0
        self._reported: list[ModelState] = []
        self._reported_ms = -math.inf

    def on_answer(self, model: int, batch_requests: int) -> None:
        """Note how many requests shared the work of one answer."""
        self._batch[model] += _BATCH_WEIGHT * (batch_requests - self._batch[model])

    def due_ms(self, states: list[ModelState]) -> float:
        """When the next report is due, given what there is to say; may lie in the past."""
        early = any(has_moved(old, new) for old, new in zip(self._reported, states, strict=False))
        return self._reported_ms + self._period_ms * (_EARLY_SHARE if early else 1.0)

    def report(self, states: list[ModelState], now_ms: float) -> LoadReport:
        """The report of these states, by model index, numbered one above the last."""
        self._sequence += 1
        self._reported, self._reported_ms = states, now_ms
        return LoadReport(
            gateway=self._gateway,
            sequence=self._sequence,
            models=[self._model_load(index, state, now_ms) for index, state in enumerate(states)],
        )

    def _model_load(self, index: int, state: ModelState, now_ms: float) -> ModelLoad:
        target = self._targets[index]
        return ModelLoad(
            name=self._names[index],
            ready=state.ready,
            starting=max(target - state.ready, 0),
            target=target,
            queue_ms=state.queue_ms,
            wait_ms=state.wait_ms,
            slowdown=state.slowdown,
            queued=state.queued,
            in_flight=state.in_flight,
            batch_requests=self._batch[index],
            admitted_per_s=self._admitted[index].update(state.admitted, now_ms),
            refused_per_s=self._refused[index].update(state.refused, now_ms),
        )


def has_moved(old: ModelState, new: ModelState) -> bool:
    """Whether a device might decide otherwise by the new state than by the old."""
    if old.ready != new.ready:
        return True
    if abs(new.slowdown - old.slowdown) > _MOVED_SHARE * old.slowdown:
        return True
    moved_ms = abs(new.wait_ms - old.wait_ms)
    return moved_ms > _MOVED_MS and moved_ms > _MOVED_SHARE * max(old.wait_ms, new.wait_ms)
