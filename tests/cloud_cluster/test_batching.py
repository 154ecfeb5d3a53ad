from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_cluster.batching import Pending, Plan, plan
from cloud_cluster.curves import BatchCurves
from cloud_cluster.grouping import EXACT

NOW = 1000.0
MARGIN = 0.05


def affine(fixed: Sequence[float], each: Sequence[float]) -> BatchCurves:
    """Units that take ``fixed + each * batch`` ms."""
    sizes = (1, 2, 16)
    return BatchCurves(
        sizes, tuple(tuple(a + c * size for a, c in zip(fixed, each, strict=True)) for size in sizes)
    )


STEEP = affine([9.0, 9.0, 9.0, 9.0], [1.0, 1.0, 1.0, 1.0])
FLAT = affine([0.0] * 4, [10.0] * 4)


def groups(made: Plan) -> list[set[int]]:
    return [set(batch.ids) for batch in made.batches]


# The judge: every partition, timed unit by unit


def partitions(items: list[Pending]) -> Iterator[list[list[Pending]]]:
    if not items:
        yield []
        return
    first, *rest = items
    for size in range(len(rest) + 1):
        for others in itertools.combinations(rest, size):
            left = [item for item in rest if item not in others]
            for further in partitions(left):
                yield [[first, *others], *further]


def together_ms(members: Sequence[Pending], curves: BatchCurves) -> float:
    total = 0.0
    for unit in range(curves.units):
        samples = sum(member.batch for member in members if member.cut <= unit)
        if samples:
            total += curves.ms(unit, unit + 1, samples)
        total += sum(curves.ms(unit, unit + 1, member.batch) for member in members if unit in member.lead)
    return total


def urgency(item: Pending, curves: BatchCurves) -> tuple[bool, float, float, int]:
    due = item.deadline_ms if item.deadline_ms < math.inf else item.arrived_ms + 1000
    return NOW + together_ms([item], curves) > item.deadline_ms, due, item.arrived_ms, item.id


def judged(
    partition: Sequence[Sequence[Pending]], curves: BatchCurves, behind: float
) -> tuple[set[int], float, float]:
    """Who is late, what is to be minimised, and when all is done."""
    late, cost, end = set(), 0.0, NOW
    for group in partition:
        end += together_ms(group, curves)
        for member in group:
            cost += member.requests * (end - NOW)
            if end > member.deadline_ms:
                late.add(member.id)
    return late, cost + behind * (end - NOW), end


def allowed(group: Sequence[Pending], curves: BatchCurves, max_batch: int) -> bool:
    separate = sum(together_ms([member], curves) for member in group)
    return len(group) == 1 or (
        sum(member.batch for member in group) <= max_batch
        and together_ms(group, curves) <= (1 - MARGIN) * separate
        and together_ms(group, curves) < separate
    )


def requests_late(late: set[int], items: Sequence[Pending]) -> int:
    return sum(item.requests for item in items if item.id in late)


@st.composite
def situations(draw: st.DrawFn, most: int) -> tuple[list[Pending], BatchCurves, int, float]:
    units = draw(st.integers(1, 5))
    whole = st.integers(0, 8).map(float)
    fixed = draw(st.lists(whole, min_size=units, max_size=units))
    each = draw(st.lists(st.integers(1, 6).map(float), min_size=units, max_size=units))
    curves = affine(fixed, each)
    items = []
    for number in range(draw(st.integers(1, most))):
        cut = draw(st.integers(0, units))
        items.append(
            Pending(
                id=number,
                cut=cut,
                batch=draw(st.integers(1, 3)),
                arrived_ms=NOW - draw(st.integers(0, 50)),
                deadline_ms=draw(st.one_of(st.just(math.inf), st.integers(0, 150).map(lambda ms: NOW + ms))),
                lead=tuple(draw(st.sets(st.integers(0, cut - 1)))) if cut else (),
                requests=draw(st.integers(1, 2)),
            )
        )
    return items, curves, draw(st.integers(1, 8)), draw(st.sampled_from([0.0, 0.0, 3.0]))


@given(situations(most=5))
def test_no_way_to_group_a_few_requests_is_better(
    situation: tuple[list[Pending], BatchCurves, int, float],
) -> None:
    items, curves, max_batch, behind = situation
    made = plan(items, curves, NOW, max_batch, behind=behind, margin=MARGIN)
    ordered = sorted(items, key=lambda item: urgency(item, curves))
    late_alone, _, _ = judged([[item] for item in ordered], curves, behind)
    scores = []
    for partition in partitions(ordered):
        late, cost, _ = judged(partition, curves, behind)
        if late <= late_alone and all(allowed(group, curves, max_batch) for group in partition):
            scores.append((requests_late(late, items), cost))
    missed, cost = min(scores)
    assert made.missed == missed
    assert made.cost_ms == pytest.approx(cost)


@given(situations(most=14))
def test_a_plan_runs_everything_once_in_order_and_saves_every_deadline(
    situation: tuple[list[Pending], BatchCurves, int, float],
) -> None:
    items, curves, max_batch, behind = situation
    made = plan(items, curves, NOW, max_batch, behind=behind, margin=MARGIN)
    by_id = {item.id: item for item in items}
    assert sorted(id for batch in made.batches for id in batch.ids) == sorted(by_id)
    for item in items:
        units = [unit for step in made.steps if item.id in step.ids for unit in step.units]
        assert units == [*item.lead, *range(item.cut, curves.units)]
    partition = [[by_id[id] for id in batch.ids] for batch in made.batches]
    late, cost, end = judged(partition, curves, behind)
    assert made.cost_ms == pytest.approx(cost)
    assert made.batches[-1].ends_ms == pytest.approx(end)
    assert all(allowed(group, curves, max_batch) for group in partition)
    ordered = sorted(items, key=lambda item: urgency(item, curves))
    firsts = [min(ordered.index(member) for member in group) for group in partition]
    assert firsts == sorted(firsts)
    late_alone, cost_alone, _ = judged([[item] for item in ordered], curves, behind)
    assert late <= late_alone
    assert made.missed == requests_late(late, items)
    assert (made.missed, made.cost_ms) <= (requests_late(late_alone, items), cost_alone + 1e-9)


@given(situations(most=14))
def test_a_step_of_several_begins_where_all_of_them_are(
    situation: tuple[list[Pending], BatchCurves, int, float],
) -> None:
    """Each request has run, when a step with it begins, exactly what lies before that step."""
    items, curves, max_batch, behind = situation
    made = plan(items, curves, NOW, max_batch, behind=behind)
    at = {item.id: item.cut for item in items}
    led: set[int] = set()
    for step in made.steps:
        if isinstance(step.units, range):
            assert {at[id] for id in step.ids} == {step.units.start}
            at.update(dict.fromkeys(step.ids, step.units.stop))
            assert all(id in led or not items[id].lead for id in step.ids)
        else:
            assert len(step.ids) == 1
            led.update(step.ids)
    assert set(at.values()) == {curves.units}


# What that means


def test_a_steep_replica_takes_an_earlier_cut_up_to_the_next_and_joins() -> None:
    made = plan([Pending(1, cut=2), Pending(2, cut=0), Pending(3, cut=3)], STEEP, NOW, behind=10)
    assert [(step.ids, step.units) for step in made.steps] == [
        ((2,), range(2)),
        ((2, 1), range(2, 3)),
        ((2, 1, 3), range(3, 4)),
    ]
    assert made.batches[0].ends_ms == NOW + 10 + 10 + 11 + 12


def test_a_flat_replica_runs_one_by_one_by_deadline() -> None:
    pending = [Pending(1, cut=0, deadline_ms=NOW + 500), Pending(2, cut=0, deadline_ms=NOW + 100)]
    assert groups(plan(pending, FLAT, NOW)) == [{2}, {1}]
    assert groups(plan(pending, BatchCurves.flat([10.0] * 4), NOW)) == [{2}, {1}]


def test_a_deadline_that_joining_would_miss_is_kept_by_not_joining() -> None:
    tight = Pending(1, cut=2, deadline_ms=NOW + 25)
    early = Pending(2, cut=0, arrived_ms=NOW)
    assert groups(plan([tight, early], STEEP, NOW, behind=5)) == [{1}, {2}]
    relaxed = Pending(1, cut=2, deadline_ms=NOW + 42)
    assert groups(plan([relaxed, early], STEEP, NOW, behind=5)) == [{1, 2}]


def test_joining_saves_a_deadline_that_is_missed_one_by_one() -> None:
    pending = [Pending(1, 0, deadline_ms=NOW + 45), Pending(2, 0, deadline_ms=NOW + 46)]
    made = plan(pending, STEEP, NOW)
    assert (groups(made), made.missed) == ([{1, 2}], 0)


def test_what_is_late_anyway_comes_last() -> None:
    hopeless, fresh = Pending(1, 0, deadline_ms=NOW + 5), Pending(2, 0, deadline_ms=NOW + 90)
    made = plan([hopeless, fresh], FLAT, NOW)
    assert (groups(made), made.missed) == ([{2}, {1}], 1)


def test_what_has_no_deadline_becomes_urgent_by_waiting() -> None:
    patient = Pending(1, 0, arrived_ms=NOW - 950)
    assert groups(plan([Pending(2, 0, deadline_ms=NOW + 60), patient], FLAT, NOW))[0] == {1}
    recent = Pending(1, 0, arrived_ms=NOW)
    assert groups(plan([Pending(2, 0, deadline_ms=NOW + 60), recent], FLAT, NOW))[0] == {2}


def test_a_batch_holds_no_more_samples_than_it_may_and_a_larger_request_runs_alone() -> None:
    made = plan([Pending(number, 0, batch=2) for number in range(4)], STEEP, NOW, max_batch=5)
    assert sorted(len(batch.ids) for batch in made.batches) == [2, 2]
    assert groups(plan([Pending(1, 0, batch=9), Pending(2, 0)], STEEP, NOW)) == [{1}, {2}]


def test_what_cannot_be_joined_before_the_end_shares_nothing() -> None:
    pending = [Pending(number, cut=4, lead=range(4)) for number in range(3)]
    assert len(plan(pending, STEEP, NOW).batches) == 3


def test_what_waits_elsewhere_makes_the_time_for_all_count_more() -> None:
    pending = [Pending(number, 0) for number in range(2)]
    gentle = affine([1.0], [3.0])
    assert len(plan(pending, gentle, NOW).batches) == 2
    assert len(plan(pending, gentle, NOW, behind=8.0).batches) == 1


def test_many_requests_of_one_cut_fill_batches() -> None:
    made = plan([Pending(number, 0, arrived_ms=number) for number in range(16)], STEEP, NOW)
    assert len(made.batches) == 2
    assert {len(batch.ids) for batch in made.batches} == {8}


@given(situations(most=14))
def test_more_than_a_few_are_never_worse_off_than_in_batches_of_the_same_cut(
    situation: tuple[list[Pending], BatchCurves, int, float],
) -> None:
    items, curves, max_batch, behind = situation
    if len(items) <= EXACT:
        return
    ordered = sorted(items, key=lambda item: urgency(item, curves))
    batches: list[list[Pending]] = []
    filling: dict[int, list[Pending]] = {}
    for item in ordered:
        group = filling.get(item.cut)
        if group is None or not allowed([*group, item], curves, max_batch):
            group = filling[item.cut] = []
            batches.append(group)
        group.append(item)
    late_alone, _, _ = judged([[item] for item in ordered], curves, behind)
    late, cost, _ = judged(batches, curves, behind)
    made = plan(items, curves, NOW, max_batch, behind=behind, margin=MARGIN)
    if late <= late_alone:
        assert (made.missed, made.cost_ms) <= (requests_late(late, items), cost + 1e-9)


# Curves


def test_times_between_measured_sizes_are_interpolated_and_beyond_them_proportional() -> None:
    curves = BatchCurves((1, 4), ((2.0, 1.0), (5.0, 4.0)))
    assert [curves.ms(0, 2, batch) for batch in (1, 2, 3, 4, 8)] == [3.0, 5.0, 7.0, 9.0, 18.0]
    assert curves.ms(1, 2, 2) == 2.0
    assert curves.units_ms([1], 2) == curves.units_ms(range(1, 2), 2) == 2.0
    assert curves.units_ms(range(1, 1), 2) == 0.0


def test_noise_does_not_make_a_larger_batch_quicker() -> None:
    curves = BatchCurves((1, 2), ((2.0, 1.0), (1.5, 2.0)))
    assert curves.ms(0, 1, 2) == 2.0


@pytest.mark.parametrize(
    ("batches", "rows"),
    [
        ((), ()),
        ((2,), ((1.0,),)),
        ((1, 1), ((1.0,), (1.0,))),
        ((1, 2), ((1.0,),)),
        ((1, 2), ((1.0,), (1.0, 2.0))),
        ((1,), ((math.nan,),)),
    ],
)
def test_curves_that_do_not_fit_together_are_refused(
    batches: tuple[int, ...], rows: tuple[tuple[float, ...], ...]
) -> None:
    with pytest.raises(ValueError, match=r"batch sizes|row|finite"):
        BatchCurves(batches, rows)


def test_the_useful_batch_is_one_where_curves_are_flat() -> None:
    assert FLAT.useful_batch(8) == 1
    assert STEEP.useful_batch(8) == 8
    assert affine([1.0], [9.0]).useful_batch(8) == 2


@given(situations(most=6))
def test_no_batch_saves_more_than_the_stated_share(
    situation: tuple[list[Pending], BatchCurves, int, float],
) -> None:
    items, curves, _, _ = situation
    samples = sum(item.batch for item in items)
    separate = sum(together_ms([item], curves) for item in items)
    if samples > 1:
        assert together_ms(items, curves) >= (1 - curves.best_saving(samples)) * separate - 1e-9
