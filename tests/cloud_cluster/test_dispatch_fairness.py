from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_cluster.dispatch import Action, DeviceLimits, Dispatcher, Fail, Request, Send
from cloud_cluster.fairness import FairQueue
from shared.errors import OverloadedError

QUANTUM_MS = 50.0
_ids = itertools.count(1)


def request(
    account: str, work_ms: float = 10.0, deadline_ms: float = math.inf, weight: float = 1.0
) -> Request:
    name = account.encode()
    return Request(next(_ids), name, name, 0, 1, 0.0, deadline_ms, work_ms, weight, None)


def pushed(queue: FairQueue, *requests: Request) -> None:
    for each in requests:
        queue.push(each)


def order(queue: FairQueue) -> list[Request]:
    return [queue.pop() for _ in range(len(queue))]


def test_within_a_turn_the_earliest_deadline_runs_first_whoever_sent_it() -> None:
    queue = FairQueue(QUANTUM_MS)
    late, never, early = request("a", deadline_ms=900.0), request("b"), request("c", deadline_ms=500.0)
    pushed(queue, late, never, early)
    assert order(queue) == [early, late, never]


def test_a_greedy_account_waits_for_the_next_turn_and_a_newcomer_does_not_wait_for_it() -> None:
    queue = FairQueue(QUANTUM_MS)
    greedy = [request("greedy", work_ms=20.0, deadline_ms=float(number)) for number in range(9)]
    pushed(queue, *greedy)
    modest = request("modest", deadline_ms=10_000.0)
    # Those of the greedy one that begin in its first 50 ms.
    assert queue.ahead_ms(modest) == queue.ahead_of_newcomer_ms() == 60.0
    queue.push(modest)
    assert order(queue).index(modest) == 3


def test_the_queue_of_one_account_is_by_deadline_also_across_turns() -> None:
    queue = FairQueue(QUANTUM_MS)
    patient = [request("a", work_ms=40.0) for _ in range(5)]
    pushed(queue, *patient)
    urgent = request("a", work_ms=40.0, deadline_ms=100.0)
    assert queue.ahead_ms(urgent) == 0.0
    queue.push(urgent)
    assert [queue.ahead_ms(each) for each in patient] == [40.0, 80.0, 120.0, 160.0, 200.0]
    assert order(queue) == [urgent, *patient]


def test_weight_is_the_share_while_both_wait() -> None:
    queue = FairQueue(QUANTUM_MS)
    pushed(queue, *(request("a", weight=3.0) for _ in range(60)), *(request("b") for _ in range(60)))
    first = [queue.pop().account for _ in range(40)]
    assert first.count(b"a") == pytest.approx(30, abs=5)


def test_what_is_taken_out_unserved_gives_its_place_back() -> None:
    queue = FairQueue(QUANTUM_MS)
    mine = [request("a", work_ms=50.0) for _ in range(4)]
    theirs = [request("b", work_ms=50.0) for _ in range(4)]
    pushed(queue, *mine, *theirs)
    for each in mine[:3]:
        queue.remove(each)
    assert order(queue)[0] is mine[3]


def test_a_debt_is_remembered_while_others_wait_and_forgotten_when_nobody_does() -> None:
    queue = FairQueue(QUANTUM_MS)
    pushed(queue, request("a", work_ms=120.0, deadline_ms=1.0), request("b"), request("b"))
    assert queue.pop().account == b"a"
    # Its first took it into the third turn: an early deadline does not bring it back into this one.
    pushed(queue, request("a", deadline_ms=2.0), request("c"))
    assert [each.account for each in order(queue)] == [b"b", b"b", b"c", b"a"]
    pushed(queue, request("a", deadline_ms=2.0), request("c"))
    assert [each.account for each in order(queue)] == [b"a", b"c"]


ACCOUNTS = "abcd"
WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 0.5}

steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"),
            st.sampled_from(ACCOUNTS),
            st.floats(0.5, 120.0),
            st.one_of(st.just(math.inf), st.floats(0.0, 1000.0)),
        ),
        st.tuples(st.just("remove"), st.integers(0, 10**6)),
        st.tuples(st.just("pop")),
        st.tuples(st.just("pop")),
    ),
    max_size=150,
)


@given(steps)
@settings(max_examples=300, deadline=None)
def test_no_account_gets_further_ahead_of_another_that_waits_than_the_bound(
    todo: list[tuple[object, ...]],
) -> None:
    """The bound of the module, for every pair and every stretch of time in which both wait."""
    queue = FairQueue(QUANTUM_MS)
    longest = dict.fromkeys(ACCOUNTS, 0.0)
    # For each pair the work of one less that of the other, by weight, since both began to wait: its range.
    gaps: dict[tuple[str, str], tuple[float, float, float]] = {}
    for step in todo:
        if step[0] == "push":
            _, account, work_ms, deadline_ms = step
            assert isinstance(account, str)
            assert isinstance(work_ms, float)
            assert isinstance(deadline_ms, float)
            longest[account] = max(longest[account], work_ms)
            queue.push(request(account, work_ms, deadline_ms, WEIGHTS[account]))
        elif step[0] == "remove" and len(queue):
            assert isinstance(step[1], int)
            queue.remove(list(queue)[step[1] % len(queue)])
        elif step[0] == "pop" and len(queue):
            first = queue.first
            assert queue.ahead_ms(first) == 0.0
            served = queue.pop()
            assert served is first
            name = served.account.decode()
            for (one, other), (gap, low, high) in gaps.items():
                if name in (one, other):
                    gap += (1 if name == one else -1) * served.work_ms / WEIGHTS[name]
                    low, high = min(low, gap), max(high, gap)
                    bound = 2 * QUANTUM_MS + sum(longest[each] / WEIGHTS[each] for each in (one, other))
                    assert high - low < bound + 1e-6
                    gaps[one, other] = gap, low, high
        waiting = {each.account.decode() for each in queue}
        for pair in itertools.combinations(ACCOUNTS, 2):
            if waiting.issuperset(pair):
                gaps.setdefault(pair, (0.0, 0.0, 0.0))
            else:
                gaps.pop(pair, None)
        # Everything is still there, once, and each account's own by deadline.
        assert queue.work_ms == pytest.approx(sum(each.work_ms for each in queue))
        for account in waiting:
            own = [(each.deadline_ms, each.id) for each in queue if each.account == account.encode()]
            assert own == sorted(own)


# In the dispatcher


def admitted(core: Dispatcher, device: bytes, **changes: object) -> tuple[Request, list[Action]]:
    fields: dict[str, object] = {"nbytes": 1, "deadline_ms": math.inf, "work_ms": 20.0, "now_ms": 0.0}
    return core.admit(device, 0, body=None, **(fields | changes))  # type: ignore[arg-type]


def test_a_full_queue_pushes_out_whoever_is_furthest_ahead_of_its_share() -> None:
    core = Dispatcher([6], 100, 10**6)
    core.replica_ready(b"r", 0, 1, 0.0)
    greedy = [admitted(core, b"greedy")[0] for _ in range(7)]
    _, actions = admitted(core, b"greedy")
    assert isinstance(actions[0], Fail)
    modest, actions = admitted(core, b"modest")
    (action,) = actions
    assert isinstance(action, Fail)
    assert isinstance(action.error, OverloadedError)
    assert action.error.retry_after_ms > 0
    assert action.request is greedy[-1]
    assert modest.queued
    assert core.admitted_now == 7
    assert core.model_state(0, 0.0).queued == 6


def test_devices_of_one_account_share_its_limits_and_its_turns() -> None:
    core = Dispatcher([20], 2, 10**6)
    core.replica_ready(b"r", 0, 1, 0.0)
    limits = DeviceLimits(max_in_flight=5, max_in_flight_bytes=100, weight=1.0)
    first, _ = admitted(core, b"d0", account=b"key", limits=limits)
    for number in range(1, 5):
        admitted(core, b"d%d" % number, account=b"key", limits=limits)
    _, actions = admitted(core, b"d9", account=b"key", limits=limits)
    assert isinstance(actions[0], Fail)
    assert "5 requests in flight" in str(actions[0].error)
    # Three of the account's four that wait begin in the turn that it shares with others.
    other, _ = admitted(core, b"other", deadline_ms=500.0)
    _, actions = core.finished(b"r", first.id, 1.0)
    (action,) = actions
    assert isinstance(action, Send)
    assert action.request is other
    _, actions = admitted(core, b"d9", nbytes=97, account=b"key", limits=limits)
    assert isinstance(actions[0], Fail)
    assert "more than 100 bytes" in str(actions[0].error)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_a_weight_is_a_positive_number(weight: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        DeviceLimits(1, 1, weight)
