"""What the gateway knows of each device: its offers, when it was last heard, and what it announced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cloud_cluster.connections import Connection
from shared.errors import OverloadedError
from shared.wire.messages import Hello

__all__ = ["DeviceSession", "Sessions"]

# An announced payload may be minutes on a slow link, and nothing else can pass it meanwhile.
_ANNOUNCED_SILENCE_FACTOR = 12.0
# Of one key: the agent, `edge-agent plan` beside it, and what an outage has left behind of both.
_SESSIONS_PER_KEY = 4


@dataclass(slots=True)
class DeviceSession:
    """From HELLO until GOODBYE or silence.

    ``offers`` is digest by model name; ``requests`` the gateway's id by the device's own, for what is
    in flight.  ``key`` is the public key that the session belongs to, "" without keys.
    """

    identity: bytes
    agent: str
    offers: Mapping[str, str]
    heard_ms: float
    max_announced: int
    announced: dict[int, float] = field(default_factory=dict)
    requests: dict[int, int] = field(default_factory=dict)
    key: str = ""
    connection: Connection | None = None

    def on_announce(self, request_id: int, now_ms: float) -> None:
        """The payload of this id follows; of too many open announcements the oldest is forgotten."""
        if len(self.announced) >= self.max_announced:
            del self.announced[next(iter(self.announced))]
        self.announced[request_id] = now_ms

    def take_span_ms(self, request_id: int, now_ms: float) -> float | None:
        """Milliseconds since the announcement of this id, once; None when there was none."""
        announced_ms = self.announced.pop(request_id, None)
        return None if announced_ms is None else now_ms - announced_ms


class Sessions:
    """All devices with a session, at most ``max_devices``; silent ones end after ``silence_ms``."""

    def __init__(self, max_devices: int, max_announced: int, silence_ms: float) -> None:
        self._sessions: dict[bytes, DeviceSession] = {}
        self.limit(max_devices, max_announced, silence_ms)

    def limit(self, max_devices: int, max_announced: int, silence_ms: float) -> None:
        """Other limits from now on; nobody who is here is sent away."""
        self._max_devices = max_devices
        self._max_announced = max_announced
        self._silence_ms = silence_ms
        for session in self._sessions.values():
            session.max_announced = max_announced

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[DeviceSession]:
        return iter(list(self._sessions.values()))

    def get(self, identity: bytes) -> DeviceSession | None:
        return self._sessions.get(identity)

    def open(
        self,
        identity: bytes,
        hello: Hello,
        now_ms: float,
        key: str = "",
        connection: Connection | None = None,
    ) -> DeviceSession:
        """Start, or start anew, the session of a device.  Raises OverloadedError when there are too many."""
        if identity not in self._sessions and len(self._sessions) >= self._max_devices:
            raise OverloadedError(
                f"this gateway has {self._max_devices} devices, the most it takes; raise gateway.max_devices",
                self._silence_ms,
            )
        offers = {offer.name: offer.digest for offer in hello.models}
        session = DeviceSession(
            identity, hello.agent, offers, now_ms, self._max_announced, key=key, connection=connection
        )
        earlier = self._sessions.get(identity)
        if earlier is not None:
            session.requests = earlier.requests
        self._sessions[identity] = session
        return session

    def offers(self) -> Iterator[Mapping[str, str]]:
        """Of every device."""
        return (session.offers for session in self._sessions.values())

    def of_key(self, key: str) -> list[DeviceSession]:
        return [session for session in self._sessions.values() if session.key == key]

    def surplus(self, key: str) -> DeviceSession | None:
        """The one of a key's sessions that was silent for longest, when the key has more than it may."""
        own = self.of_key(key)
        return min(own, key=lambda session: session.heard_ms) if len(own) > _SESSIONS_PER_KEY else None

    def close(self, identity: bytes) -> DeviceSession | None:
        return self._sessions.pop(identity, None)

    def silent(self, now_ms: float) -> list[DeviceSession]:
        """Those that were not heard for too long, with patience for a payload on its way."""
        return [
            session
            for session in self._sessions.values()
            if now_ms - session.heard_ms
            > self._silence_ms * (_ANNOUNCED_SILENCE_FACTOR if session.announced else 1.0)
        ]
