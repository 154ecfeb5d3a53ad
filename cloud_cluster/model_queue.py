"""One model at the gateway: what waits for it, who may take it, and how long that will take."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_cluster.backlog import Replica, drained_ms
from cloud_cluster.fairness import FairQueue
from cloud_cluster.work import Request

__all__ = ["ModelQueue", "ModelState"]


@dataclass(frozen=True, slots=True)
class ModelState:
    """What the load report of one model is made from; totals count since the start.

    ``queue_ms`` is the work of all that waits, ``wait_ms`` what a device that has nothing waiting would wait.
    ``unserved`` counts the refusals for want of a replica; they are also among ``refused``.  ``age_ms`` is
    how long ago the replica that has been silent longest was heard.
    """

    ready: int
    queued: int
    in_flight: int
    queue_ms: float
    wait_ms: float
    slowdown: float
    admitted: int
    refused: int
    unserved: int = 0
    age_ms: float = 0.0


class ModelQueue:
    """Tell :meth:`update` of every change to a replica: it keeps track of who is ready and who is free."""

    def __init__(self, max_queue: int, quantum_ms: float) -> None:
        self.max_queue = max_queue
        self.waiting = FairQueue(quantum_ms)
        self.replicas: dict[bytes, Replica] = {}
        self.ready: dict[bytes, Replica] = {}
        self.admitted = 0
        self.refused = 0
        self.unserved = 0
        self.retired = False
        self._free: dict[bytes, Replica] = {}

    def update(self, name: bytes) -> None:
        replica = self.replicas[name]
        for group, belongs in ((self.ready, replica.is_ready), (self._free, replica.is_free)):
            if belongs:
                group[name] = replica
            else:
                group.pop(name, None)

    def drop(self, name: bytes) -> None:
        del self.replicas[name]
        self.ready.pop(name, None)
        self._free.pop(name, None)

    def best(self, now_ms: float) -> bytes | None:
        """Of the replicas with a free credit the one that will be done first; None when all are full."""
        if len(self._free) < 2:
            return next(iter(self._free), None)
        return min(self._free, key=lambda name: self._free[name].load(now_ms))

    def predict_ms(self, request: Request, now_ms: float) -> tuple[float, float]:
        """How long a request that is not queued yet would wait, and then compute.

        Without replicas that are ready, the wait is infinite.
        """
        best = self.best(now_ms)
        if best is not None and not self.waiting:
            replica = self._free[best]
            return replica.backlog_ms(now_ms), request.work_ms * replica.slowdown
        ahead_ms = self.waiting.ahead_ms(request)
        return drained_ms(ahead_ms, self.ready.values(), now_ms), request.work_ms * self.slowdown

    def wait_ms(self, now_ms: float) -> float:
        """What a device that has nothing waiting would wait for a request without a budget.

        Zero without replicas that are ready: nobody waits for those.
        """
        if not self.ready:
            return 0.0
        candidates = self._free if self._free and not self.waiting else self.ready
        return drained_ms(self.waiting.ahead_of_newcomer_ms(), candidates.values(), now_ms)

    @property
    def slowdown(self) -> float:
        """Mean of the replicas that are ready."""
        return sum(each.slowdown for each in self.ready.values()) / len(self.ready) if self.ready else 1.0

    def state(self, now_ms: float) -> ModelState:
        return ModelState(
            ready=len(self.ready),
            queued=len(self.waiting),
            in_flight=sum(len(replica.in_flight) for replica in self.replicas.values()),
            queue_ms=self.waiting.work_ms,
            wait_ms=self.wait_ms(now_ms),
            slowdown=self.slowdown,
            admitted=self.admitted,
            refused=self.refused,
            unserved=self.unserved,
            age_ms=max((now_ms - replica.heard_ms for replica in self.ready.values()), default=0.0),
        )
