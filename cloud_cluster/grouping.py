"""Ways to group waiting requests into batches, and the search for the best one.

What is searched and why is said at :func:`cloud_cluster.batching.plan`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cloud_cluster.curves import BatchCurves

__all__ = ["EXACT", "Group", "Pending", "Waiting", "by_cut"]

EXACT = 6
"""Up to so many requests every possible way to group them is looked at: 203 for six."""

_PATIENCE_MS = 1000.0
"""A request without a deadline is as urgent as one that had this much time."""

_LABELS = 6


@dataclass(frozen=True, slots=True)
class Pending:
    """One request, or several that have been joined already (``requests``) and are on their way.

    From ``cut`` on it runs every unit in order, and there it may be joined with others.  ``lead`` are the
    units that it has to run by itself before: those that a cut which is no prefix leaves out, or those
    before the first place where its tensors can be joined.  ``batch`` counts samples.
    """

    id: int
    cut: int
    batch: int = 1
    arrived_ms: float = 0.0
    deadline_ms: float = math.inf
    lead: Sequence[int] = ()
    requests: int = 1


Group = tuple[int, ...]
"""Indices into the requests in order of urgency, the most urgent first."""

Score = tuple[int, float]


class Waiting:
    """The requests in order of urgency, and what one by one comes to."""

    def __init__(
        self,
        pending: Iterable[Pending],
        curves: BatchCurves,
        now_ms: float,
        max_batch: int,
        behind: float,
        margin: float,
    ) -> None:
        self.curves = curves
        self.now_ms = now_ms
        self.max_batch = max_batch
        self.behind = behind
        self.margin = margin
        alone = [(item, self._alone_ms(item)) for item in pending]
        alone.sort(key=lambda pair: self._urgency(*pair))
        self.items = [item for item, _ in alone]
        self.alone = [ms for _, ms in alone]
        self.left = [item.deadline_ms - now_ms for item in self.items]
        self.one_by_one: list[Group] = [(index,) for index in range(len(self.items))]
        # A request that is late one by one anyway does not bind the others.
        self.binding = [math.inf] * len(self.items)
        end = 0.0
        for index, ms in enumerate(self.alone):
            end += ms
            if end <= self.left[index]:
                self.binding[index] = self.left[index]

    def _alone_ms(self, item: Pending) -> float:
        lead = self.curves.units_ms(item.lead, item.batch) if item.lead else 0.0
        return lead + self.curves.ms(item.cut, self.curves.units, item.batch)

    def _urgency(self, item: Pending, alone_ms: float) -> tuple[bool, float, float, int]:
        due = item.deadline_ms if item.deadline_ms < math.inf else item.arrived_ms + _PATIENCE_MS
        return self.now_ms + alone_ms > item.deadline_ms, due, item.arrived_ms, item.id

    def group_ms(self, group: Sequence[int]) -> float:
        """How long the requests take together; infinite when they may not run together."""
        if len(group) == 1:
            return self.alone[group[0]]
        members = sorted([self.items[index] for index in group], key=by_cut)
        units, curves = self.curves.units, self.curves
        total, batch = 0.0, 0
        for member, following in zip(members, [*members[1:], None], strict=True):
            batch += member.batch
            until = units if following is None else following.cut
            if until > member.cut:
                total += curves.ms(member.cut, until, batch)
            if member.lead:
                total += curves.units_ms(member.lead, member.batch)
        separate = 0.0
        for index in group:
            separate += self.alone[index]
        saves = total < separate and total <= (1 - self.margin) * separate
        return total if saves and batch <= self.max_batch else math.inf

    def score(self, groups: Sequence[Group]) -> Score | None:
        """Requests late and the sum to minimise; None when a deadline is lost that need not be."""
        missed, cost, end = 0, 0.0, 0.0
        for group in groups:
            end += self.group_ms(group)
            for index in group:
                if end > self.binding[index]:
                    return None
                requests = self.items[index].requests
                missed += requests if end > self.left[index] else 0
                cost += requests * end
        return missed, cost + self.behind * end

    def exact(self) -> list[Group]:
        """Over all partitions, depth first; each batch has the most urgent request that is left."""
        count = len(self.items)
        weights = [item.requests for item in self.items]
        found = self.score(self.one_by_one)
        assert found is not None, "one by one keeps every deadline that one by one keeps"
        best: Score = found
        chosen = self.one_by_one
        members = [tuple(i for i in range(count) if mask >> i & 1) for mask in range(1 << count)]
        known: dict[int, float] = {}

        def descend(rest: int, end: float, missed: int, cost: float, groups: list[Group]) -> None:
            nonlocal best, chosen
            if not rest:
                if (missed, cost) < best:
                    best, chosen = (missed, cost), groups
                return
            waiting = self.behind
            # Nothing that is left takes less than alone, nor ends before it.
            bound = cost + self.behind * max(self.alone[index] for index in members[rest])
            for index in members[rest]:
                if end + self.alone[index] > self.binding[index]:
                    return
                waiting += weights[index]
                bound += weights[index] * self.alone[index]
            if (missed, bound) >= best:
                return
            seed = rest & -rest
            others = rest ^ seed
            subset = others
            while True:
                mask = seed | subset
                ms = known.get(mask)
                if ms is None:
                    ms = known[mask] = self.group_ms(members[mask])
                if ms < math.inf and all(end + ms <= self.binding[index] for index in members[mask]):
                    late = sum(weights[index] for index in members[mask] if end + ms > self.left[index])
                    descend(
                        rest ^ mask, end + ms, missed + late, cost + waiting * ms, [*groups, members[mask]]
                    )
                if not subset:
                    return
                subset = (subset - 1) & others

        descend((1 << count) - 1, 0.0, 0, 0.0, [])
        return chosen

    def best_of_neighbours(self) -> list[Group]:
        in_order = sorted(range(len(self.items)), key=lambda index: by_cut(self.items[index]))
        candidates = [self.one_by_one, self._same_cut(), self._urgent_neighbours(), self._quickest(in_order)]
        scored = [(score, groups) for groups in candidates if (score := self.score(groups)) is not None]
        return min(scored, key=lambda pair: pair[0])[1]

    def _same_cut(self) -> list[Group]:
        """Batches of requests that were cut at the same place, most urgent first, as full as may be."""
        groups: list[list[int]] = []
        filling: dict[int, list[int]] = {}
        for index, item in enumerate(self.items):
            group = filling.get(item.cut)
            if group is None or math.isinf(self.group_ms([*group, index])):
                group = filling[item.cut] = []
                groups.append(group)
            group.append(index)
        return [tuple(group) for group in groups]

    def _urgent_neighbours(self) -> list[Group]:
        """The best grouping of neighbours in order of urgency, by dynamic programming.

        Where deadlines make it matter which of several ways to the same request took less time, at most
        ``_LABELS`` of them are remembered.
        """
        items = self.items
        after = self.behind + sum(item.requests for item in items)
        # Of the ways to have run the first k requests, by k.
        labels = [[_Way(0, 0.0, 0.0, [])]]
        waiting = [after]
        for item in items:
            waiting.append(waiting[-1] - item.requests)
        for last in range(1, len(items) + 1):
            ways = []
            for first in self._starts(range(len(items)), last):
                group = tuple(range(first, last))
                ms = self.group_ms(group)
                if math.isinf(ms):
                    continue
                for missed, cost, end, groups in labels[first]:
                    if any(end + ms > self.binding[index] for index in group):
                        continue
                    late = sum(items[index].requests for index in group if end + ms > self.left[index])
                    way = _Way(missed + late, cost + waiting[first] * ms, end + ms, [*groups, group])
                    ways.append(way)
            labels.append(_undominated(ways))
        return labels[-1][0].groups if labels[-1] else self.one_by_one

    def _quickest(self, order: Sequence[int]) -> list[Group]:
        """The grouping of neighbours in ``order`` that takes least in all, then by urgency."""
        total = [0.0]
        origin = [0]
        for last in range(1, len(order) + 1):
            ms, first = min(
                (total[first] + self.group_ms(order[first:last]), first)
                for first in self._starts(order, last)
            )
            total.append(ms)
            origin.append(first)
        groups, last = [], len(order)
        while last:
            groups.append(tuple(sorted(order[origin[last] : last])))
            last = origin[last]
        return sorted(groups)

    def _starts(self, order: Sequence[int], last: int) -> Iterable[int]:
        """Where a batch that ends before ``last`` may begin without holding too many samples."""
        samples = 0
        for first in reversed(range(last)):
            samples += self.items[order[first]].batch
            if samples > self.max_batch and first < last - 1:
                return
            yield first


def by_cut(item: Pending) -> tuple[int, int]:
    return item.cut, item.id


class _Way(NamedTuple):
    """To have run the most urgent requests, and what it came to."""

    missed: int
    cost: float
    end: float
    groups: list[Group]


def _undominated(ways: Iterable[_Way]) -> list[_Way]:
    """Those that no other beats both in lateness and sum and in time used; the best by the former first."""
    kept: list[_Way] = []
    for way in sorted(ways, key=lambda way: way[:3]):
        if not kept or way.end < kept[-1].end:
            kept.append(way)
    return kept[:_LABELS]
