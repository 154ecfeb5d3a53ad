from __future__ import annotations

import math
import weakref

import pytest

from cloud_cluster.dispatch import Action, Dispatcher, Fail, Released, Request, Send
from shared.errors import DeadlineError, OverloadedError, UnavailableError

DEVICE, OTHER = b"device", b"other"
R1, R2, R3 = b"r1", b"r2", b"r3"


def dispatcher(max_queue: int = 10, max_in_flight: int = 100, max_bytes: int = 10_000) -> Dispatcher:
    return Dispatcher([max_queue], max_in_flight, max_bytes)


def admit(
    core: Dispatcher,
    now_ms: float = 0.0,
    deadline_ms: float = math.inf,
    device: bytes = DEVICE,
    nbytes: int = 100,
    work_ms: float = 10.0,
) -> tuple[Request, list[Action]]:
    return core.admit(
        device, 0, nbytes=nbytes, deadline_ms=deadline_ms, work_ms=work_ms, body=None, now_ms=now_ms
    )


def refusal(actions: list[Action]) -> Exception:
    (action,) = actions
    assert isinstance(action, Fail)
    return action.error


def sent(actions: list[Action]) -> list[tuple[int, bytes]]:
    return [(action.request.id, action.replica) for action in actions if isinstance(action, Send)]


def test_a_request_goes_to_a_replica_with_a_credit_and_its_answer_gives_the_credit_back() -> None:
    core = dispatcher()
    assert core.replica_ready(R1, 0, 1, 0.0) == []
    first, actions = admit(core)
    assert sent(actions) == [(first.id, R1)]
    second, actions = admit(core)
    assert actions == []
    assert second.queued
    answered, actions = core.finished(R1, first.id, 5.0)
    assert answered is first
    assert sent(actions) == [(second.id, R1)]


def test_the_idle_replica_is_preferred_to_a_second_credit_of_a_busy_one() -> None:
    core = dispatcher()
    core.replica_ready(R1, 0, 2, 0.0)
    core.replica_ready(R2, 0, 2, 0.0)
    replicas = [sent(admit(core)[1])[0][1] for _ in range(4)]
    assert set(replicas[:2]) == {R1, R2}
    assert sorted(replicas) == [R1, R1, R2, R2]


def test_the_queue_is_ordered_by_deadline_not_by_arrival() -> None:
    core = dispatcher()
    core.replica_ready(R1, 0, 1, 0.0)
    running, _ = admit(core)
    late, _ = admit(core, deadline_ms=900.0)
    never, _ = admit(core)
    early, _ = admit(core, deadline_ms=500.0)
    order = []
    current = running
    for _ in range(3):
        _, actions = core.finished(R1, current.id, 1.0)
        assert isinstance(actions[0], Send)
        current = actions[0].request
        order.append(current.id)
    assert order == [early.id, late.id, never.id]


def test_expired_work_is_answered_and_never_sent() -> None:
    core = dispatcher()
    core.replica_ready(R1, 0, 1, 0.0)
    running, _ = admit(core)
    waiting, _ = admit(core, deadline_ms=50.0)
    kept, _ = admit(core, deadline_ms=500.0)
    assert core.next_deadline_ms() == 50.0
    assert core.expire(49.9) == []
    (action,) = core.expire(50.0)
    assert isinstance(action, Fail)
    assert action.request is waiting
    assert isinstance(action.error, DeadlineError)
    assert core.next_deadline_ms() == 500.0
    assert sent(core.finished(R1, running.id, 60.0)[1]) == [(kept.id, R1)]


def test_work_whose_time_ran_out_unnoticed_is_not_sent_to_a_replica() -> None:
    core = dispatcher()
    core.replica_ready(R1, 0, 1, 0.0)
    running, _ = admit(core)
    admit(core, deadline_ms=50.0)
    _, actions = core.finished(R1, running.id, 60.0)
    assert isinstance(refusal(actions), DeadlineError)
    assert core.admitted_now == 0


def test_what_arrives_too_late_or_finds_no_replica_is_refused_at_once() -> None:
    core = dispatcher()
    assert isinstance(refusal(admit(core)[1]), UnavailableError)
    core.replica_ready(R1, 0, 1, 0.0)
    assert isinstance(refusal(admit(core, now_ms=10.0, deadline_ms=10.0)[1]), DeadlineError)
    assert core.admitted_now == 0


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_in_flight": 2}, "2 requests in flight"),
        ({"max_bytes": 250}, "more than 250 bytes"),
        ({"max_queue": 1}, "1 requests already wait"),
    ],
)
def test_every_limit_is_refused_at_once_with_a_time_to_try_again(limits: dict[str, int], words: str) -> None:
    core = dispatcher(**limits)
    core.replica_ready(R1, 0, 1, 0.0)
    admit(core)
    admit(core)
    error = refusal(admit(core, now_ms=4.0)[1])
    assert isinstance(error, OverloadedError)
    assert words in str(error)
    # 10 ms of work queued, 6 left of the one that runs.
    assert error.retry_after_ms == pytest.approx(16.0)
    assert core.model_state(0, 4.0).refused == 1


def test_one_devices_limit_is_not_anothers() -> None:
    core = dispatcher(max_in_flight=1)
    core.replica_ready(R1, 0, 4, 0.0)
    first, _ = admit(core)
    assert isinstance(refusal(admit(core)[1]), OverloadedError)
    assert len(sent(admit(core, device=OTHER)[1])) == 1
    core.finished(R1, first.id, 1.0)
    assert len(sent(admit(core)[1])) == 1


def test_a_lost_replicas_work_runs_once_more_elsewhere() -> None:
    core = dispatcher()
    core.replica_ready(R1, 0, 2, 0.0)
    request, _ = admit(core)
    core.replica_ready(R2, 0, 2, 0.0)
    assert sent(core.replica_gone(R1, 1.0)) == [(request.id, R2)]
    # The answer of the lost one comes after all: too late.
    assert core.finished(R1, request.id, 2.0) == (None, [])
    core.replica_ready(R3, 0, 2, 2.0)
    assert isinstance(refusal(core.replica_gone(R2, 3.0)), UnavailableError)
    assert core.admitted_now == 0


def test_a_lost_replicas_work_without_time_or_without_another_replica_is_answered() -> None:
    core = dispatcher()
    core.replica_ready(R1, 0, 2, 0.0)
    short, _ = admit(core, deadline_ms=15.0)
    long, _ = admit(core)
    actions = core.replica_gone(R1, 16.0)
    errors = {action.request.id: type(action.error) for action in actions if isinstance(action, Fail)}
    assert errors == {short.id: DeadlineError, long.id: UnavailableError}
    assert core.admitted_now == 0


def test_when_the_last_replica_leaves_nobody_waits_for_another() -> None:
    core = dispatcher()
    core.replica_ready(R1, 0, 1, 0.0)
    running, _ = admit(core)
    waiting, _ = admit(core)
    (action,) = core.replica_draining(R1, 1.0)
    assert isinstance(action, Fail)
    assert action.request is waiting
    answered, actions = core.finished(R1, running.id, 2.0)
    assert answered is running
    assert actions == [Released(R1)]


def test_a_draining_replica_gets_nothing_and_is_released_when_empty() -> None:
    core = dispatcher()
    core.replica_ready(R1, 0, 4, 0.0)
    core.replica_ready(R2, 0, 1, 0.0)
    assert core.replica_draining(R1, 0.0) == [Released(R1)]
    admit(core)
    waiting, actions = admit(core)
    assert actions == []
    assert waiting.queued


def test_a_draining_replica_that_still_computes_gets_nothing_more() -> None:
    core = dispatcher()
    core.replica_ready(R1, 0, 4, 0.0)
    running, _ = admit(core)
    core.replica_ready(R2, 0, 1, 0.0)
    assert core.replica_draining(R1, 0.0) == []
    assert sent(admit(core)[1])[0][1] == R2
    waiting, actions = admit(core)
    assert actions == []
    assert waiting.queued
    assert core.finished(R1, running.id, 1.0) == (running, [Released(R1)])


def test_what_has_left_no_longer_counts_against_its_device() -> None:
    core = dispatcher(max_bytes=300)
    core.replica_ready(R1, 0, 9, 0.0)
    first, _ = admit(core, nbytes=100)
    admit(core, nbytes=200)
    assert isinstance(refusal(admit(core, nbytes=100)[1]), OverloadedError)
    core.finished(R1, first.id, 1.0)
    assert len(sent(admit(core, nbytes=100)[1])) == 1


def test_abandoned_work_leaves_with_its_replica_and_is_not_run_again() -> None:
    core = dispatcher()
    core.replica_ready(R1, 0, 1, 0.0)
    core.replica_ready(R2, 0, 1, 0.0)
    admit(core)
    core.device_gone(DEVICE)
    assert core.replica_gone(R1, 1.0) == []
    assert core.replica_gone(R2, 1.0) == []
    assert core.admitted_now == 0


def test_cancelled_work_does_not_pile_up_behind_the_queue() -> None:
    class Body:
        pass

    core = dispatcher(max_queue=1000)
    core.replica_ready(R1, 0, 1, 0.0)
    admit(core)
    bodies = []
    for _ in range(300):
        body = Body()
        bodies.append(weakref.ref(body))
        request, _ = core.admit(DEVICE, 0, nbytes=1, deadline_ms=math.inf, work_ms=1.0, body=body, now_ms=0.0)
        core.cancel(request.id)
    del body, request
    assert sum(body() is not None for body in bodies) <= 65


def test_a_gone_devices_queued_work_is_dropped_and_its_running_work_answers_nobody() -> None:
    core = dispatcher()
    core.replica_ready(R1, 0, 1, 0.0)
    running, _ = admit(core)
    admit(core)
    theirs, _ = admit(core, device=OTHER)
    core.device_gone(DEVICE)
    assert core.model_state(0, 0.0).queued == 1
    answered, actions = core.finished(R1, running.id, 1.0)
    assert answered is running
    assert running.abandoned
    assert sent(actions) == [(theirs.id, R1)]


def test_a_replica_that_greets_again_has_lost_its_work() -> None:
    core = dispatcher()
    core.replica_ready(R1, 0, 1, 0.0)
    core.replica_ready(R2, 0, 1, 0.0)
    first, _ = admit(core)
    second, _ = admit(core)
    actions = core.replica_ready(R1, 0, 1, 1.0)
    assert sent(actions) == [(first.id, R1)]
    assert core.finished(R2, second.id, 2.0)[0] is second


def test_credit_widens_the_window() -> None:
    core = dispatcher()
    core.replica_ready(R1, 0, 1, 0.0)
    admit(core)
    waiting, _ = admit(core)
    assert sent(core.credit(R1, 1, 2.0, 0.0)) == [(waiting.id, R1)]
    assert core.model_state(0, 0.0).slowdown == 2.0


def test_wait_counts_what_runs_what_is_queued_and_how_slow_the_replicas_are() -> None:
    core = dispatcher()
    core.replica_ready(R1, 0, 1, 0.0)
    core.replica_ready(R2, 0, 1, 0.0)
    assert core.wait_ms(0, 0.0) == 0.0
    admit(core, work_ms=10.0)
    assert core.wait_ms(0, 0.0) == 0.0
    admit(core, work_ms=30.0)
    assert core.wait_ms(0, 4.0) == pytest.approx(6.0)
    admit(core, work_ms=20.0)
    state = core.model_state(0, 4.0)
    assert state.queue_ms == pytest.approx(20.0)
    # The first replica takes it 6 ms from now, and is free again when the other one is as well.
    assert state.wait_ms == pytest.approx(26.0)
    admit(core, work_ms=20.0)
    assert core.wait_ms(0, 4.0) == pytest.approx(26.0 + 20.0 / 2)
    core.credit(R1, 0, 3.0, 4.0)
    core.credit(R2, 0, 3.0, 4.0)
    # 120 ms queued; the first replica is busy for 26 ms, the second for 86.
    assert core.wait_ms(0, 4.0) == pytest.approx(86.0 + (120.0 - 60.0) / 2)
    # Longer than expected: nothing is known to be left.
    assert core.wait_ms(0, 1000.0) == pytest.approx(120.0 / 2)
