"""Which of the waiting requests of one network run now, and which of them together.

A request that was cut early runs up to where another one was cut, and from there on both go on in one
batch; so do further ones.  Whether that pays is a matter of the replica's batch curves.  Everything in a
batch is finished when the batch is, so a batch may be quicker in all and yet later for its first request:
what is minimised is, after the number of deadlines missed, the sum of all waiting times.

Pure: no clock, no threads, no torch.  Times are milliseconds of the caller's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cloud_cluster.curves import BatchCurves
from cloud_cluster.grouping import EXACT, Group, Pending, Waiting, by_cut

__all__ = ["Batch", "Pending", "Plan", "Step", "plan", "plan_of"]


@dataclass(frozen=True, slots=True)
class Step:
    """Run ``units`` for the requests ``ids`` as one batch."""

    ids: tuple[int, ...]
    units: Sequence[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that finish together, in the order in which they join, and what to do for that.

    ``ends_ms`` is when, by the curves.
    """

    ids: tuple[int, ...]
    steps: tuple[Step, ...]
    ends_ms: float


@dataclass(frozen=True, slots=True)
class Plan:
    """``batches`` one after the other.  ``missed`` requests will be late; ``cost_ms`` was minimised."""

    batches: tuple[Batch, ...]
    missed: int
    cost_ms: float

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(step for batch in self.batches for step in batch.steps)


def plan(
    pending: Iterable[Pending],
    curves: BatchCurves,
    now_ms: float,
    max_batch: int = 8,
    *,
    behind: float = 0.0,
    margin: float = 0.05,
) -> Plan:
    """What to run, the first step at once.

    Batches are run in the order of their most urgent request: the one whose deadline is next; without a
    deadline, the one that has waited longest; last, those that would be late even if run now.  So nothing
    waits for ever, and what remains to be chosen is who runs together.  That minimises first the requests
    that are late, then the sum over all requests of the time from now to their end, plus ``behind`` times
    the time for all: ``behind`` is how many more wait elsewhere for this replica.  Requests are only run
    together

    - in batches of at most ``max_batch`` samples (a larger request runs alone),
    - when that takes at most ``1 - margin`` of the time that they take one by one,
    - when every request that is in time one by one stays so.

    Exact for up to EXACT requests.  For more it is the best of four: one by one; those of the same cut
    together; the best grouping of neighbours in order of urgency; and the quickest grouping of neighbours in
    order of cuts, which is the quickest of all where units take ``a + c b`` and requests are of one size,
    because each batch then costs what its earliest cut says.  It is never worse than the first two.
    """
    return plan_of(Waiting(pending, curves, now_ms, max_batch, behind, margin))


def plan_of(waiting: Waiting) -> Plan:
    """:func:`plan`, of requests and rules as they are in ``waiting``."""
    if len(waiting.items) < 2 or waiting.curves.best_saving(waiting.max_batch) < waiting.margin:
        groups = waiting.one_by_one
    elif len(waiting.items) <= EXACT:
        groups = waiting.exact()
    else:
        groups = waiting.best_of_neighbours()
    return _as_plan(waiting, groups)


def _as_plan(waiting: Waiting, groups: Sequence[Group]) -> Plan:
    found = waiting.score(groups)
    assert found is not None, "a plan keeps every deadline that one by one keeps"
    end = waiting.now_ms
    batches = []
    for group in groups:
        end += waiting.group_ms(group)
        members = sorted((waiting.items[index] for index in group), key=by_cut)
        ids = tuple(member.id for member in members)
        batches.append(Batch(ids, tuple(_steps(members, waiting.curves.units)), end))
    return Plan(tuple(batches), *found)


def _steps(members: Sequence[Pending], units: int) -> Iterable[Step]:
    joined: tuple[int, ...] = ()
    for member, following in zip(members, [*members[1:], None], strict=True):
        if member.lead:
            yield Step((member.id,), member.lead)
        joined = (*joined, member.id)
        until = units if following is None else following.cut
        if until > member.cut or following is None:
            yield Step(joined, range(member.cut, until))
