"""A request at a replica, from its arrival to its answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cloud_cluster.executor import BatchExecutor, Job, Outcome
from shared.errors import SutureError
from shared.wire import NO_BUDGET, Message

__all__ = ["Done", "Finished", "Request"]


@dataclass(frozen=True, slots=True)
class Done:
    """One finished request: its outcome or its error, and the ms it waited here.

    ``busy_ms`` is its share of the time for which the thread was occupied, ``batch_requests`` how many
    were finished in one batch.
    """

    outcome: Outcome | SutureError
    wait_ms: float
    busy_ms: float
    batch_requests: int = 1


@dataclass(slots=True, eq=False)
class Request:
    """One request at the replica.  ``arrived_s`` is on the schedule's clock.

    ``job`` is what became of the message, or what is wrong with it, once somebody has looked at it.
    """

    message: Message
    callback: Callable[[Done], None]
    arrived_s: float
    job: Job | SutureError | None = None
    decoded: bool = False
    decode_ms: float = 0.0
    compute_ms: float = 0.0
    expected_ms: float = 0.0
    busy_ms: float = 0.0

    @property
    def deadline_ms(self) -> float:
        budget_ms = self.message.budget_ms
        return math.inf if budget_ms == NO_BUDGET else self.arrived_s * 1e3 + budget_ms

    def accept(self, executor: BatchExecutor) -> Job | SutureError:
        """Compare it with the network, once; what is wrong with the request becomes its ``job``."""
        if self.job is None:
            try:
                self.job = executor.accept(self.message)
            except SutureError as error:
                self.job = error
        return self.job

    def decode(self, executor: BatchExecutor, clock: Callable[[], float]) -> None:
        """Make its payloads tensors, once; what is wrong with them becomes its ``job``."""
        if self.decoded or not isinstance(self.job, Job):
            return
        began = clock()
        try:
            executor.decode(self.job)
            self.decoded = True
            self.decode_ms = (clock() - began) * 1e3
        except SutureError as error:
            self.job = error


Finished = tuple[Callable[[Done], None], Done]
