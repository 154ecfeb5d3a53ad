"""What a replica computes: tensors of a cut in, outputs of the network out.

:class:`BatchExecutor` is what :mod:`cloud_cluster.schedule` asks for; it knows no torch, so that the path
around the computation can be driven with another one.  An :class:`Executor` is the least that will do: it
takes one request at a time.  :func:`cloud_cluster.loading.load_executor` makes the real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from cloud_cluster.curves import BatchCurves
from shared.wire import Buffer, Message
from shared.wire.messages import TensorHeader

if TYPE_CHECKING:
    pass

__all__ = ["BatchExecutor", "Executor", "Job", "Outcome", "Work", "batching"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outputs, each with its payload, and how long every stage took.

    ``expected_ms`` is what the profile says for the units that ran; 0 when it says nothing.
    """

    tensors: list[TensorHeader]
    payloads: list[Buffer]
    decode_ms: float = 0.0
    compute_ms: float = 0.0
    encode_ms: float = 0.0
    expected_ms: float = 0.0


@runtime_checkable
class Executor(Protocol):
    """One network on one replica.  ``unit_ms`` are the times of its units on the idle replica."""

    @property
    def digest(self) -> str: ...

    @property
    def unit_ms(self) -> Sequence[float]: ...

    def execute(self, message: Message) -> Outcome:
        """Run what an INFER asks for; called from one thread only.

        Raises a SutureError for whatever is wrong with the request; anything else is a defect and
        ends the replica.
        """
        ...


@dataclass(slots=True, eq=False)
class Job:
    """What an INFER asks for, found to fit the network.

    ``cut``, ``lead`` and ``batch`` as in :class:`cloud_cluster.batching.Pending`; ``body`` is the
    executor's own.
    """

    cut: int
    lead: Sequence[int]
    batch: int
    body: Any


Work = Any
"""One or more requests on their way through the network: the executor's own."""


class BatchExecutor(Protocol):
    """One network on one replica, run in steps, several requests at a time.

    Every method raises a SutureError for whatever is wrong with a request; anything else is a defect
    and ends the replica.  With ``decodes_ahead``, ``accept`` and ``decode`` may be called in a second thread;
    all the rest in one.
    """

    @property
    def digest(self) -> str: ...

    @property
    def unit_ms(self) -> Sequence[float]: ...

    @property
    def precision(self) -> str:
        """In which it computes, for people."""
        ...

    @property
    def tables_digest(self) -> str:
        """Of the transform's tables that it decodes with; "" without any."""
        ...

    @property
    def decodes_ahead(self) -> bool:
        """Whether requests had better be decoded while others compute."""
        ...

    @property
    def curves(self) -> BatchCurves:
        """What the units take; at batch 1 that is ``unit_ms``."""
        ...

    @property
    def max_batch(self) -> int:
        """Samples that may run together."""
        ...

    def place_from(self, unit: int) -> int:
        """The first place, not before ``unit``, at which requests may be joined; else the network's end."""
        ...

    def accept(self, message: Message) -> Job:
        """Compare a request with the network; nothing is decoded yet."""
        ...

    def decode(self, job: Job) -> None:
        """Make the job's payloads tensors."""
        ...

    def run(self, parts: Sequence[Job | Work], units: Sequence[int]) -> tuple[Work, float]:
        """Run ``units`` for all ``parts`` as one, and how many ms it took.

        A job is decoded and begins here.  Several parts stand at ``units[0]``, a place to join; they
        cannot be used any more, also when this raises, but the jobs that they began with can.
        """
        ...

    def finish(self, work: Work, jobs: Sequence[Job]) -> list[Outcome]:
        """The outputs of every job, in the order in which they were joined; with ``encode_ms`` only."""
        ...


def batching(executor: Executor | BatchExecutor) -> BatchExecutor:
    """The executor itself, or one that has it take its requests one at a time."""
    return _OneByOne(executor) if isinstance(executor, Executor) else executor


class _OneByOne:
    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.digest = executor.digest
        self.unit_ms = executor.unit_ms
        self.curves = BatchCurves.flat(executor.unit_ms)
        self.max_batch = 1
        self.precision = ""
        self.tables_digest = ""
        self.decodes_ahead = False

    def place_from(self, unit: int) -> int:
        return self.curves.units

    def accept(self, message: Message) -> Job:
        units = self.curves.units
        return Job(units, range(min(message.cut, units), units), 1, message)

    def decode(self, job: Job) -> None:
        """The executor decodes."""

    def run(self, parts: Sequence[Job | Work], units: Sequence[int]) -> tuple[Work, float]:
        (part,) = parts
        return part, 0.0

    def finish(self, work: Work, jobs: Sequence[Job]) -> list[Outcome]:
        return [self._executor.execute(job.body) for job in jobs]
