"""When a silent gateway counts as lost: what is under way to it, and how long that may take.  Pure.

Times are ms of one steady clock.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

__all__ = ["Silence"]

_TRANSFER_MARGIN = 2.0
"""How much longer than estimated a transfer may take before a silent gateway counts as lost."""

_SLOWER_THAN_THOUGHT_MS = 5_000.0
"""How long a gateway whose load feed goes on may be silent while bytes of ours are under way."""

_FEED_GAPS, _FEED_GAP_FADE = 3.0, 0.9
"""After how many of its gaps the load feed counts as silent; and how fast a long gap is forgotten."""


class _Heartbeat(NamedTuple):
    """A PING without its PONG.  ``idle``: nothing of ours was under way before it."""

    sent_ms: float
    due_ms: float
    idle: bool


class Silence:
    """What one session knows of the gateway's silence: told of all that is sent and heard."""

    def __init__(self, heartbeat_ms: float, heartbeat_timeout_ms: float, now_ms: float) -> None:
        self.heard_ms = now_ms
        self.rtt_ms = 0.0
        self.unconfirmed_bytes = 0
        """Bytes sent that the gateway is not yet known to have."""
        self._timeout_ms = heartbeat_timeout_ms
        # How much longer than the round trip an answer to a heartbeat may take.
        self._patience_ms = max(heartbeat_timeout_ms - heartbeat_ms, 0.0)
        self._pings: dict[int, _Heartbeat] = {}
        self._unconfirmed: deque[tuple[int, int]] = deque()
        self._expected_results: dict[int, tuple[int, float]] = {}
        self._feed_heard_ms = -math.inf
        self._feed_gap_ms = 0.0

    # what was sent, and what of it has arrived

    def work_sent(self, request_id: int, payload_bytes: int, result_bytes: int, end_ms: float) -> None:
        """Nothing is owed any more after ``end_ms``."""
        self._track(request_id, payload_bytes)
        self._expected_results[request_id] = (result_bytes, end_ms)

    def ping_sent(self, request_id: int, probe_bytes: int, now_ms: float, uplink_bps: float) -> None:
        idle = not self.unconfirmed_bytes and not probe_bytes
        self._track(request_id, probe_bytes)
        due_ms = now_ms + self.rtt_ms + max(self._patience_ms, self._transfer_ms(now_ms, uplink_bps))
        self._pings[request_id] = _Heartbeat(now_ms, due_ms, idle)

    def answered(self, request_id: int) -> None:
        """An answer has come, so that the request must have arrived."""
        self._confirm(request_id)
        self.forget(request_id)

    def ponged(self, request_id: int) -> float | None:
        """A PONG has come: the round trip, if nothing of ours was in its way."""
        self._confirm(request_id)
        heartbeat = self._pings.pop(request_id, None)
        if heartbeat is None or not heartbeat.idle:
            return None
        self.rtt_ms = self.heard_ms - heartbeat.sent_ms
        return self.rtt_ms

    def forget(self, request_id: int) -> None:
        """No answer is expected for this request."""
        self._expected_results.pop(request_id, None)

    def feed_heard(self, now_ms: float) -> None:
        """The gateway's load feed brought a report."""
        if math.isfinite(self._feed_heard_ms):
            self._feed_gap_ms = max(now_ms - self._feed_heard_ms, self._feed_gap_ms * _FEED_GAP_FADE)
        self._feed_heard_ms = now_ms

    # the verdict

    def lost_ms(self) -> float:
        """When the gateway will count as lost, unless it says a word before.

        Silent for the timeout, and the oldest heartbeat without an answer is overdue: that allows for the
        round trip, and for what the heartbeat was sent behind where that takes longer than the patience.

        The load feed has a connection of its own, which no payload of ours blocks.  When it falls silent
        together with the gateway, nothing is excused.  While it goes on and bytes of ours are under way,
        the uplink has become slower than estimated: to let them arrive is how that gets measured.
        """
        if not self._pings:
            return math.inf
        oldest = next(iter(self._pings.values()))
        silent_ms = self.heard_ms + self._timeout_ms
        lost_ms = max(oldest.due_ms, silent_ms)
        feed_ms = max(self._timeout_ms, _FEED_GAPS * self._feed_gap_ms)
        if self._feed_gap_ms and self._feed_heard_ms >= oldest.sent_ms - feed_ms:
            unexcused_ms = oldest.sent_ms + self.rtt_ms + self._patience_ms
            feed_lost_ms = self._feed_heard_ms + feed_ms
            if self.unconfirmed_bytes:
                lost_ms = max(lost_ms, oldest.sent_ms + _SLOWER_THAN_THOUGHT_MS)
            lost_ms = min(lost_ms, max(silent_ms, unexcused_ms, feed_lost_ms))
        return lost_ms

    def _transfer_ms(self, now_ms: float, uplink_bps: float) -> float:
        """How long what is under way may take, both ways."""
        for request_id in [key for key, (_, end_ms) in self._expected_results.items() if end_ms <= now_ms]:
            del self._expected_results[request_id]  # the gateway owes no answer after the budget
        total = self.unconfirmed_bytes + sum(nbytes for nbytes, _ in self._expected_results.values())
        return total * 8000.0 / max(uplink_bps, 1.0) * _TRANSFER_MARGIN

    def _track(self, request_id: int, nbytes: int) -> None:
        self._unconfirmed.append((request_id, nbytes))
        self.unconfirmed_bytes += nbytes

    def _confirm(self, request_id: int) -> None:
        """TCP keeps order: whatever was sent up to this request has arrived."""
        if not any(sent_id == request_id for sent_id, _ in self._unconfirmed):
            return
        while True:
            sent_id, nbytes = self._unconfirmed.popleft()
            self.unconfirmed_bytes -= nbytes
            if sent_id == request_id:
                return
