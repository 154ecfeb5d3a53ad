from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_cluster.backlog import Replica, drained_ms
from cloud_cluster.dispatch import Action, Dispatcher, Fail, Request, Send
from shared.errors import DeadlineError, OverloadedError, RefusedError, SutureError, UnavailableError

R1, R2 = b"r1", b"r2"


def dispatcher(*windows: int) -> Dispatcher:
    core = Dispatcher([100], 1000, 10**9)
    for number, window in enumerate(windows):
        core.replica_ready(b"r%d" % (number + 1), 0, window, 0.0)
    return core


def admit(
    core: Dispatcher,
    deadline_ms: float = math.inf,
    work_ms: float = 10.0,
    now_ms: float = 0.0,
    device: bytes = b"d",
) -> tuple[Request, list[Action]]:
    return core.admit(device, 0, nbytes=1, deadline_ms=deadline_ms, work_ms=work_ms, body=None, now_ms=now_ms)


def refusal(actions: list[Action]) -> SutureError | None:
    return next((action.error for action in actions if isinstance(action, Fail)), None)


def test_what_cannot_be_answered_in_time_is_refused_with_the_time_after_which_it_could() -> None:
    core = dispatcher(1)
    admit(core, work_ms=30.0)
    admit(core, work_ms=20.0)
    # 30 ms of what runs and 10 of its own; what waits has no deadline and lets it pass.
    error = refusal(admit(core, deadline_ms=39.0)[1])
    assert isinstance(error, OverloadedError)
    assert error.retry_after_ms == pytest.approx(1.0)
    assert refusal(admit(core, deadline_ms=41.0)[1]) is None


def test_the_wait_is_that_of_the_place_where_it_would_stand() -> None:
    core = dispatcher(1)
    admit(core, work_ms=10.0)
    for _ in range(5):
        admit(core, work_ms=20.0, device=b"patient")
    # 100 ms wait, but they have no deadline and run after it.
    assert refusal(admit(core, deadline_ms=25.0)[1]) is None
    # Now it does stand behind one with an earlier deadline.
    error = refusal(admit(core, deadline_ms=28.0)[1])
    assert isinstance(error, OverloadedError)
    assert error.retry_after_ms == pytest.approx(2.0)


def test_work_that_is_too_long_in_itself_is_refused_without_a_time() -> None:
    core = dispatcher(1)
    core.credit(R1, 0, 4.0, 0.0)
    error = refusal(admit(core, deadline_ms=30.0)[1])
    assert type(error) is RefusedError
    assert error.retry_after_ms == 0.0
    assert refusal(admit(core, deadline_ms=50.0)[1]) is None


def test_what_would_be_late_by_the_time_its_turn_comes_is_answered_and_not_sent() -> None:
    core = dispatcher(1)
    running, _ = admit(core, work_ms=10.0)
    waiting, _ = admit(core, deadline_ms=25.0, work_ms=10.0)
    assert waiting.queued
    # The one before it took longer than it should have.
    _, actions = core.finished(R1, running.id, 18.0)
    assert isinstance(refusal(actions), DeadlineError)
    assert core.admitted_now == 0


def test_a_replicas_pace_is_learned_from_its_answers_and_forgotten() -> None:
    core = dispatcher(4)
    now_ms = 0.0
    for _ in range(100):
        batch = [admit(core, now_ms=now_ms)[0] for _ in range(4)]
        now_ms += 16.0
        for request in batch:
            core.finished(R1, request.id, now_ms, busy_ms=4.0, batch_requests=4)
    for _ in range(8):
        admit(core, now_ms=now_ms)
    # 40 ms of work at the replica, 40 more queued, at 0.4 busy ms each.
    assert core.model_state(0, now_ms).queue_ms == pytest.approx(40.0)
    assert core.wait_ms(0, now_ms) == pytest.approx(0.4 * 80.0, rel=0.05)
    # Computed together, all have made progress.
    assert core.wait_ms(0, now_ms + 10.0) == pytest.approx(0.4 * 80.0 - 10.0, rel=0.05)
    assert core.wait_ms(0, now_ms + 20_000.0) == pytest.approx(40.0, rel=0.05)


def test_alone_only_the_first_of_what_a_replica_holds_makes_progress() -> None:
    core = dispatcher(2)
    admit(core)
    admit(core)
    assert core.wait_ms(0, 8.0) == pytest.approx(12.0)
    assert core.wait_ms(0, 500.0) == pytest.approx(10.0)


def test_work_of_other_gateways_is_waited_for_until_it_should_have_drained() -> None:
    core = dispatcher(2)
    core.credit(R1, 0, 1.0, 0.0, elsewhere_ms=300.0)
    assert core.wait_ms(0, 100.0) == pytest.approx(300.0)
    assert isinstance(refusal(admit(core, deadline_ms=200.0)[1]), OverloadedError)
    assert core.wait_ms(0, 400.0) == pytest.approx(100.0)
    core.credit(R1, 0, 1.0, 400.0, elsewhere_ms=0.0)
    assert core.wait_ms(0, 400.0) == 0.0


def test_a_replica_shared_with_another_gateway_drains_this_ones_queue_more_slowly() -> None:
    core = dispatcher(1)
    for _ in range(5):
        admit(core)
    assert core.wait_ms(0, 0.0) == pytest.approx(50.0)
    core.credit(R1, 0, 1.0, 0.0, elsewhere_ms=10.0)
    # 10 of its own and 10 of the other's are there; of what follows every second is the other's.
    assert core.wait_ms(0, 0.0) == pytest.approx(20.0 + 2 * 40.0)


def test_a_window_can_be_set_and_without_one_a_replica_is_not_ready() -> None:
    core = dispatcher(4)
    for _ in range(3):
        admit(core)
    core.credit(R1, 0, 1.0, 0.0, window=2)
    waiting, _ = admit(core)
    assert waiting.queued
    error = refusal(core.credit(R1, 0, 1.0, 0.0, window=0))
    assert isinstance(error, UnavailableError)
    assert core.model_state(0, 0.0).ready == 0
    assert isinstance(refusal(admit(core)[1]), UnavailableError)
    assert core.model_state(0, 0.0).unserved == 1
    # An addition without a window widens the one there is.
    core.credit(R1, 4, 1.0, 0.0)
    assert [type(action) for action in admit(core)[1]] == [Send]


def test_how_long_ago_the_quietest_replica_was_heard_is_told() -> None:
    core = dispatcher(1, 1)
    core.replica_heard(R1, 90.0)
    core.credit(R2, 0, 1.0, 40.0)
    assert core.model_state(0, 100.0).age_ms == 60.0


def test_a_removed_model_is_forgotten_when_its_last_replica_has_left() -> None:
    core = dispatcher(1)
    request, _ = admit(core)
    core.remove_model(0)
    assert core.finished(R1, request.id, 1.0)[0] is request
    core.replica_draining(R1, 2.0)
    with pytest.raises(KeyError):
        core.model_state(0, 2.0)


@given(
    backlogs=st.lists(st.floats(0.0, 200.0), min_size=1, max_size=6),
    works=st.lists(st.floats(0.1, 30.0), max_size=20),
)
@settings(deadline=None)
def test_the_wait_is_where_equal_replicas_would_be_filled_to(
    backlogs: list[float], works: list[float]
) -> None:
    """Against handing out the work piece by piece; a piece cannot be divided, so by one piece at most."""
    replicas = []
    for number, backlog_ms in enumerate(backlogs):
        replica = Replica(0, 1, heard_ms=0.0)
        replica.on_send(Request(number, b"", b"", 0, 0, 0.0, math.inf, backlog_ms, 1.0, None), 0.0)
        replicas.append(replica)
    free_at = list(backlogs)
    for work_ms in works:
        soonest = free_at.index(min(free_at))
        free_at[soonest] += work_ms
    assert drained_ms(sum(works), replicas, 0.0) >= min(free_at) - 1e-6
    assert drained_ms(sum(works), replicas, 0.0) <= min(free_at) + max(works, default=0.0) + 1e-6


def test_without_replicas_nothing_is_ever_drained() -> None:
    assert math.isinf(drained_ms(0.0, [], 0.0))


@given(
    arrivals=st.lists(
        st.tuples(st.floats(0.0, 30.0), st.integers(0, 3), st.floats(1.0, 40.0), st.floats(1.0, 400.0)),
        max_size=60,
    ),
    replicas=st.integers(1, 3),
)
@settings(max_examples=150, deadline=None)
def test_in_a_world_as_predicted_whoever_is_admitted_and_sent_is_in_time(
    arrivals: list[tuple[float, int, float, float]], replicas: int
) -> None:
    """Replicas that take exactly as long as they should, one request at a time, with a window of one."""
    core = dispatcher(*[1] * replicas)
    now_ms, running = 0.0, {}
    pending = sorted(
        (sum(gap for gap, *_ in arrivals[: number + 1]), device, work_ms, budget_ms)
        for number, (_, device, work_ms, budget_ms) in enumerate(arrivals)
    )
    left: list[int] = []
    admitted: set[int] = set()

    def take(actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                end_ms = now_ms + action.request.work_ms
                assert end_ms <= action.request.deadline_ms + 1e-6
                running[action.replica] = end_ms, action.request
            elif isinstance(action, Fail):
                left.append(action.request.id)

    while pending or running:
        ends = [(end_ms, name) for name, (end_ms, _) in running.items()]
        if not ends or (pending and pending[0][0] <= min(ends)[0]):
            now_ms, device, work_ms, budget_ms = pending.pop(0)
            request, actions = admit(core, now_ms + budget_ms, work_ms, now_ms, b"d%d" % device)
            admitted.add(request.id)
            take(actions)
        else:
            now_ms, name = min(ends)
            _, request = running.pop(name)
            done, actions = core.finished(name, request.id, now_ms, busy_ms=request.work_ms)
            assert done is request
            left.append(request.id)
            take(actions)
        take(core.expire(now_ms))
    assert sorted(left) == sorted(admitted)
    assert core.admitted_now == 0
