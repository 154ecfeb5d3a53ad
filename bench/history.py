"""What was asked, what became of it, and whether that keeps the promises: a file, and its checker.  Pure.

A history is a list of events, one JSON object a line.  All of them are times of one machine's monotonic
clock, in seconds::

    {"event": "issued", "id": "a-1", "source": "a", "guard": true, "at_s": 1.0, "deadline_ms": 350}
    {"event": "completed", "id": "a-1", "at_s": 1.1, "outcome": "split", "error": 1e-7}
    {"event": "lag", "source": "a", "at_s": 1.1, "ms": 25.0}

``outcome`` is where an answer was computed, or the name of a typed error; ``error`` is the answer's largest
difference to the whole network's, relative to that's largest score.  A lag is a turn of ``source``'s event
loop that came so much too late: what it issued or completed then was late because of the machine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["PLACES", "Request", "Verdict", "check", "read_history"]

PLACES = ("split", "cloud", "device", "device-fallback")
GRACE_MS = 50.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request that was issued and ended, once."""

    id: str
    source: str
    guard: bool
    issued_s: float
    deadline_ms: float
    ended_s: float
    outcome: str
    error: float

    @property
    def answered(self) -> bool:
        return self.outcome in PLACES

    @property
    def took_ms(self) -> float:
        return (self.ended_s - self.issued_s) * 1e3

    @property
    def overran(self) -> bool:
        """Its end, whichever, came more than the grace after its deadline."""
        return self.took_ms > self.deadline_ms + GRACE_MS

    @property
    def missed(self) -> bool:
        """No answer came by then."""
        return not self.answered or self.overran


@dataclass(slots=True)
class Verdict:
    """``unanswered``, ``unasked`` and ``repeated`` are ids of what was issued and never ended, ended and was
    never issued, and was issued or ended more than once.  ``requests`` are all others, by their start.

    ``wrong`` are answers that differ from the whole network's by more than the tolerance.
    ``avoidable`` are those that missed although the device alone would have made it; ``excused`` are those
    of them during whose life the event loop of who asked was late itself.
    """

    unanswered: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    wrong: list[Request] = field(default_factory=list)
    avoidable: list[Request] = field(default_factory=list)
    excused: list[Request] = field(default_factory=list)

    def of(self, guard: bool) -> dict[str, Any]:
        """The figures of the requests that ran with, or without, the deadline guard; places are shares, and
        ``worst_ms`` is the latest end after a deadline."""
        asked = [each for each in self.requests if each.guard is guard]
        outcomes = Counter(each.outcome for each in asked)
        errors = sum(count for outcome, count in outcomes.items() if outcome not in PLACES)
        avoidable = [each for each in self.avoidable if each.guard is guard]
        excused = [each for each in self.excused if each.guard is guard]
        return {
            "guard": guard,
            "requests": len(asked),
            **{place: outcomes[place] / max(len(asked), 1) for place in PLACES},
            "error": errors / max(len(asked), 1),
            "errors": {outcome: n for outcome, n in sorted(outcomes.items()) if outcome not in PLACES},
            "missed": sum(each.missed for each in asked),
            "avoidable": len(avoidable),
            "excused": len(excused),
            "overran": sum(each.overran for each in asked),
            "worst_ms": max((each.took_ms - each.deadline_ms for each in asked), default=0.0),
        }


def read_history(*paths: Path) -> list[dict[str, Any]]:
    """The events of several files, by time.  A line that a killed process left unfinished is an error."""
    events = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(events, key=lambda event: event["at_s"])


def check(
    events: Iterable[Mapping[str, Any]], *, device_ms: float, tolerance: float, late_ms: float = 20.0
) -> Verdict:
    """Hold a history against what is promised.

    ``device_ms`` is what the device takes for one request, alone; the loop of who asked was late when one of
    its turns was late by ``late_ms``.
    """
    issued: dict[str, Mapping[str, Any]] = {}
    ended: dict[str, Mapping[str, Any]] = {}
    lags: list[tuple[str, float, float]] = []
    verdict = Verdict()
    repeated: dict[str, None] = {}
    for event in events:
        kind = event["event"]
        if kind == "lag":
            if event["ms"] >= late_ms:
                lags.append((event["source"], event["at_s"] - event["ms"] / 1e3, event["at_s"]))
            continue
        seen = issued if kind == "issued" else ended
        if event["id"] in seen:
            repeated[event["id"]] = None
        seen[event["id"]] = event
    verdict.repeated = list(repeated)
    verdict.unanswered = [request_id for request_id in issued if request_id not in ended]
    verdict.unasked = [request_id for request_id in ended if request_id not in issued]
    verdict.requests = [
        _request(start, ended[request_id]) for request_id, start in issued.items() if request_id in ended
    ]
    verdict.requests.sort(key=lambda each: each.issued_s)
    verdict.wrong = [each for each in verdict.requests if each.answered and not each.error <= tolerance]
    alone = made_alone(verdict.requests, device_ms)
    verdict.avoidable = [each for each in verdict.requests if each.missed and each.id in alone]
    verdict.excused = [each for each in verdict.avoidable if _was_late(each, lags)]
    return verdict


def made_alone(requests: Sequence[Request], device_ms: float) -> set[str]:
    """Which of these the device alone would have answered in time: one after the other, first come first
    served, ``device_ms`` each."""
    free_s = 0.0
    made = set()
    for each in requests:
        end_s = max(free_s, each.issued_s) + device_ms / 1e3
        if end_s <= each.issued_s + each.deadline_ms / 1e3:
            made.add(each.id)
            free_s = end_s
    return made


def _request(start: Mapping[str, Any], end: Mapping[str, Any]) -> Request:
    return Request(
        id=start["id"],
        source=start["source"],
        guard=start["guard"],
        issued_s=start["at_s"],
        deadline_ms=start["deadline_ms"],
        ended_s=end["at_s"],
        outcome=end["outcome"],
        error=end.get("error", 0.0),
    )


def _was_late(request: Request, lags: Iterable[tuple[str, float, float]]) -> bool:
    return any(
        source == request.source and from_s < request.ended_s and to_s > request.issued_s
        for source, from_s, to_s in lags
    )
