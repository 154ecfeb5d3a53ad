"""What the device's requests occupy at the gateway, as far as the device knows.  Pure.

Counted apart from a request's life on the device: one that ended here is outstanding there until its late
answer, the loss of the link or the end of its budget.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Outstanding"]


@dataclass(slots=True)
class _Sent:
    payload_bytes: int
    expires_ms: float


@dataclass(slots=True)
class Outstanding:
    """Requests at the gateway, and the limits that it sets for one device."""

    max_count: int = 0
    max_bytes: int = 0
    nbytes: int = 0
    _sent: dict[int, _Sent] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._sent)

    def has_room(self, payload_bytes: int, now_ms: float) -> bool:
        self.expire(now_ms)
        return len(self._sent) < self.max_count and self.nbytes + payload_bytes <= self.max_bytes

    def add(self, request_id: int, payload_bytes: int, expires_ms: float) -> None:
        self._sent[request_id] = _Sent(payload_bytes, expires_ms)
        self.nbytes += payload_bytes

    def settle(self, request_id: int) -> None:
        """The gateway is done with this request, if it had it at all."""
        settled = self._sent.pop(request_id, None)
        if settled is not None:
            self.nbytes -= settled.payload_bytes

    def expire(self, now_ms: float) -> None:
        """The gateway drops what has no budget left."""
        for request_id in [key for key, sent in self._sent.items() if sent.expires_ms <= now_ms]:
            self.settle(request_id)

    def clear(self) -> None:
        self._sent.clear()
        self.nbytes = 0
