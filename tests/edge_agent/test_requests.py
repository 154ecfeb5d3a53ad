"""The request table: its transitions, the deadline guard, one outcome under any order of events."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from edge_agent.actions import (
    Complete,
    Decode,
    Fail,
    Fallback,
    FinishLocally,
    Phase,
    RunPrefix,
    Send,
    Source,
    StopLocal,
)
from edge_agent.guard import Guard
from edge_agent.requests import RequestTable
from shared.errors import (
    DeadlineError,
    DigestMismatchError,
    InternalError,
    OverloadedError,
    RefusedError,
)

GUARD = Guard(margin=1.0, hop_ms=0.0, slack_ms=0.0, overdue_factor=2.0, overdue_ms=0.0)


def online_table(max_in_flight: int = 4, max_bytes: int = 10_000, guard: Guard = GUARD) -> RequestTable:
    table = RequestTable(max_in_flight, max_bytes, guard)
    table.connected(0.0, max_in_flight=100, max_in_flight_bytes=100_000)
    return table


def submit(
    table: RequestTable,
    request_id: int = 1,
    *,
    now_ms: float = 0.0,
    deadline_ms: float = 1000.0,
    on_device: bool = False,
    rest_ms: float = 100.0,
    answer_ms: float = 50.0,
    held_bytes: int = 100,
    spread: float = 1.0,
) -> None:
    actions = table.submit(
        request_id,
        now_ms=now_ms,
        deadline_ms=deadline_ms,
        on_device=on_device,
        rest_ms=rest_ms,
        answer_ms=answer_ms,
        held_bytes=held_bytes,
        spread=spread,
    )
    assert actions == [RunPrefix(request_id)]


def send(table: RequestTable, request_id: int = 1, *, now_ms: float = 10.0, **submitted: float) -> None:
    submit(table, request_id, **submitted)  # type: ignore[arg-type]
    actions = table.prefix_done(request_id, now_ms=now_ms, payload_bytes=10)
    assert [type(action) for action in actions] == [Send]


def test_an_answered_request_is_sent_with_its_remaining_budget_and_decoded() -> None:
    table = online_table()
    submit(table, deadline_ms=200.0)
    assert table.prefix_done(1, now_ms=30.0, payload_bytes=50) == [Send(1, 170.0)]
    assert (table.held_bytes, table.outstanding_bytes) == (150, 50)
    assert table.answered(1) == [Decode(1)]
    assert table.decode_done(1) == [Complete(1, Source.CLOUD, None)]
    assert (len(table), table.held_bytes, table.outstanding, table.outstanding_bytes) == (0, 0, 0, 0)


def test_a_request_planned_for_the_device_ends_there_without_a_fallback() -> None:
    table = online_table()
    submit(table, on_device=True)
    assert table.prefix_done(1, now_ms=5.0, payload_bytes=0) == [Complete(1, Source.DEVICE, None)]


def test_without_a_link_the_device_finishes() -> None:
    table = RequestTable(4, 10_000)
    submit(table)
    assert table.prefix_done(1, now_ms=5.0, payload_bytes=10) == [FinishLocally(1)]
    assert table.outstanding == 0
    assert table.local_done(1) == [Complete(1, Source.DEVICE, Fallback.UNREACHABLE)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RefusedError("later"), Fallback.REFUSED),
        (OverloadedError("full"), Fallback.REFUSED),
        (DeadlineError("too late there"), Fallback.REFUSED),
        (InternalError("broken"), Fallback.CLOUD_ERROR),
        (DigestMismatchError("other network"), Fallback.CLOUD_ERROR),
    ],
)
def test_an_error_reply_makes_the_device_finish_at_once(error: Exception, reason: Fallback) -> None:
    table = online_table()
    send(table)
    assert table.refused(1, error) == [FinishLocally(1)]  # type: ignore[arg-type]
    assert table.local_done(1) == [Complete(1, Source.DEVICE, reason)]


def test_losing_the_link_finishes_everything_that_was_sent_and_nothing_else() -> None:
    table = online_table()
    submit(table, 1)
    send(table, 2)
    send(table, 3)
    table.answered(3)
    assert table.disconnected(0.0) == [FinishLocally(2)]
    assert (table.phase(1), table.phase(3)) == (Phase.PREFIX, Phase.DECODING)
    assert table.outstanding == 0
    assert table.decode_done(3) == [Complete(3, Source.CLOUD, None)]


def test_a_link_that_takes_no_more_makes_the_device_finish() -> None:
    table = online_table()
    send(table)
    assert table.send_failed(1) == [FinishLocally(1)]
    assert table.outstanding_bytes == 0
    assert table.local_done(1) == [Complete(1, Source.DEVICE, Fallback.LINK_FULL)]


def test_the_gateways_limits_are_kept_by_count_and_by_bytes() -> None:
    table = online_table()
    table.connected(0.0, max_in_flight=2, max_in_flight_bytes=100)
    submit(table, 1)
    submit(table, 2)
    submit(table, 3)
    assert table.prefix_done(1, now_ms=1.0, payload_bytes=90) == [Send(1, 999.0)]
    assert table.prefix_done(2, now_ms=1.0, payload_bytes=11) == [FinishLocally(2)]
    assert table.prefix_done(3, now_ms=1.0, payload_bytes=10) == [Send(3, 999.0)]
    submit(table, 4)
    assert table.prefix_done(4, now_ms=1.0, payload_bytes=0) == [FinishLocally(4)]


def test_a_request_that_ended_here_occupies_the_gateway_until_answer_or_expiry() -> None:
    table = online_table()
    send(table, 1, deadline_ms=500.0)
    send(table, 2, deadline_ms=900.0)
    assert table.cancelled(1)
    assert table.cancelled(2)
    assert (len(table), table.outstanding) == (0, 2)
    assert table.answered(1) == []
    assert (table.outstanding, table.counters.late_answers) == (1, 1)
    assert table.tick(900.0) == []
    assert table.outstanding == 0


def test_an_answer_that_does_not_decode_is_computed_on_the_device() -> None:
    table = online_table()
    send(table)
    table.answered(1)
    assert table.decode_failed(1) == [FinishLocally(1)]
    assert table.local_done(1) == [Complete(1, Source.DEVICE, Fallback.UNDECODABLE)]


def test_the_guard_starts_the_device_at_the_last_moment_and_the_device_may_win() -> None:
    table = online_table()
    send(table, deadline_ms=1000.0, rest_ms=300.0, answer_ms=1000.0)
    assert table.next_tick_ms(10.0) == 700.0
    assert table.next_tick_ms(10.0, worker_wait_ms=50.0) == 650.0
    assert table.tick(699.0) == []
    assert table.tick(700.0) == [FinishLocally(1)]
    assert table.phase(1) is Phase.RACING
    assert table.next_tick_ms(700.0) == 1000.0
    assert table.local_done(1) == [Complete(1, Source.DEVICE, Fallback.LATE)]
    assert table.answered(1) == []
    assert table.counters.late_answers == 1


def test_in_a_race_the_first_answer_wins_and_the_other_side_is_stopped() -> None:
    table = online_table()
    send(table, rest_ms=300.0)
    table.tick(700.0)
    assert table.answered(1) == [StopLocal(1), Decode(1)]
    assert table.decode_done(1) == [Complete(1, Source.CLOUD, None)]
    assert table.local_done(1) == []


def test_in_a_race_the_device_wins_if_it_ends_while_the_answer_is_decoded() -> None:
    table = online_table()
    send(table, rest_ms=300.0)
    table.tick(700.0)
    table.answered(1)
    assert table.local_done(1) == [Complete(1, Source.DEVICE, Fallback.LATE)]
    assert table.decode_done(1) == []


def test_in_a_race_an_answer_that_does_not_decode_costs_the_device_nothing_that_it_has_done() -> None:
    table = online_table()
    send(table, rest_ms=300.0)
    table.tick(700.0)
    assert table.answered(1, needs_worker=False) == [Decode(1)]
    assert table.decode_failed(1) == []
    assert table.phase(1) is Phase.LOCAL
    assert table.local_done(1) == [Complete(1, Source.DEVICE, Fallback.LATE)]

    table = online_table()
    send(table, rest_ms=300.0)
    table.tick(700.0)
    table.answered(1, needs_worker=False)
    assert table.local_failed(1, InternalError("out of memory")) == []
    assert table.decode_failed(1) == [FinishLocally(1)]


def test_a_race_survives_the_loss_of_either_side() -> None:
    table = online_table()
    send(table, 1, rest_ms=300.0)
    send(table, 2, rest_ms=300.0)
    assert table.tick(700.0) == [FinishLocally(1)]  # the worker is taken: 2 cannot make it any more
    assert table.disconnected(0.0) == [FinishLocally(2)]
    assert table.local_done(1) == [Complete(1, Source.DEVICE, Fallback.LATE)]

    table = online_table()
    send(table, rest_ms=300.0)
    table.tick(700.0)
    assert table.local_failed(1, InternalError("out of memory")) == []
    assert table.tick(750.0) == []  # not tried again
    assert table.answered(1) == [Decode(1)]
    assert table.decode_done(1) == [Complete(1, Source.CLOUD, None)]


def test_a_device_that_cannot_make_it_either_waits_for_the_cloud_until_the_deadline() -> None:
    table = online_table()
    send(table, now_ms=600.0, deadline_ms=1000.0, rest_ms=500.0)
    assert table.tick(601.0) == []
    assert table.next_tick_ms(601.0) == 1000.0
    (failed,) = table.tick(1000.0)
    assert isinstance(failed, Fail)
    assert isinstance(failed.error, DeadlineError)
    assert "deadline_ms" in str(failed.error)
    assert table.answered(1) == []


def test_overdue_requests_reserve_the_device_one_after_the_other() -> None:
    """Three stalled requests with one deadline: each starts early enough for all three to make it."""
    table = online_table(max_in_flight=8)
    for request_id in (1, 2, 3):
        send(table, request_id, deadline_ms=1000.0, rest_ms=200.0, answer_ms=50.0)
    assert table.next_tick_ms(10.0) == 110.0  # when they become overdue
    assert table.tick(110.0) == []
    assert table.next_tick_ms(110.0) == 400.0
    assert table.tick(400.0) == [FinishLocally(1)]
    # 1 occupies the worker for 200 ms from here
    assert table.tick(400.0, worker_wait_ms=200.0) == [FinishLocally(2)]
    assert table.tick(400.0, worker_wait_ms=400.0) == [FinishLocally(3)]


def test_overdue_requests_reserve_the_way_to_the_worker_too() -> None:
    """Thirty requests for a network of next to nothing take as long as the way there and back."""
    table = online_table(max_in_flight=30, guard=Guard(hop_ms=1.0, slack_ms=10.0))
    for request_id in range(1, 31):
        send(table, request_id, deadline_ms=1000.0, rest_ms=0.0, answer_ms=1.0)
    assert table.tick(500.0) == []
    assert table.next_tick_ms(500.0) == 960.0


def test_a_request_that_the_cloud_refuses_early_makes_way_for_one_that_could_not_wait_for_it() -> None:
    table = online_table()
    send(table, 1, deadline_ms=218.0, rest_ms=70.0)
    send(table, 2, deadline_ms=310.0, rest_ms=70.0)
    send(table, 3, deadline_ms=400.0, rest_ms=70.0)
    assert table.refused(2, OverloadedError("full")) == [FinishLocally(2)]
    assert table.make_way(2, 50.0) == []  # 1 has time enough behind it
    assert table.make_way(2, 110.0) == [FinishLocally(1)]
    assert table.phase(1) is Phase.RACING
    assert table.phase(3) is Phase.SENT
    assert table.make_way(2, 110.0, worker_wait_ms=70.0) == []


def test_no_request_makes_way_where_it_would_then_be_late_itself() -> None:
    table = online_table()
    send(table, 1, deadline_ms=200.0, rest_ms=70.0)
    send(table, 2, deadline_ms=210.0, rest_ms=70.0)
    table.refused(2, OverloadedError("full"))
    assert table.make_way(2, 100.0) == []


def test_an_unsteady_device_is_begun_earlier_and_not_given_up_earlier() -> None:
    table = online_table()
    submit(table, rest_ms=100.0, answer_ms=400.0, spread=3.0)
    table.prefix_done(1, now_ms=10.0, payload_bytes=10)
    assert table.next_tick_ms(10.0) == 700.0
    # Late, but as steady as usual it still makes it.
    assert table.tick(850.0) == [FinishLocally(1)]


def test_requests_that_are_not_overdue_do_not_reserve_the_device() -> None:
    table = online_table(max_in_flight=8)
    for request_id in (1, 2, 3):
        send(table, request_id, deadline_ms=1000.0, rest_ms=200.0, answer_ms=600.0)
    assert table.next_tick_ms(10.0) == 800.0


def test_admission_is_bounded_by_count_and_by_bytes() -> None:
    table = online_table(max_in_flight=2, max_bytes=1000)
    submit(table, 1, held_bytes=5000)  # alone, any size is admitted
    with pytest.raises(OverloadedError, match="max_in_flight_bytes"):
        submit(table, 2, held_bytes=1)
    table.cancelled(1)
    submit(table, 3, held_bytes=500)
    submit(table, 4, held_bytes=500)
    with pytest.raises(OverloadedError, match="2 requests are in flight"):
        submit(table, 5, held_bytes=0)
    assert table.counters.overloaded == 2
    assert table.held_bytes == 1000


def test_a_deadline_in_the_past_and_a_stopping_agent_admit_nothing() -> None:
    table = online_table()
    with pytest.raises(DeadlineError):
        submit(table, now_ms=10.0, deadline_ms=10.0)
    table.drain()
    with pytest.raises(RefusedError, match="stopping"):
        submit(table)
    assert len(table) == 0


def test_a_prefix_that_ends_after_the_deadline_sends_nothing() -> None:
    table = online_table()
    submit(table, deadline_ms=100.0)
    (failed,) = table.prefix_done(1, now_ms=100.0, payload_bytes=10)
    assert isinstance(failed, Fail)
    assert table.outstanding == 0


def test_what_another_gateway_answers_sooner_is_sent_again_and_the_rest_is_finished_here() -> None:
    table = online_table()
    send(table, 1, rest_ms=500.0, answer_ms=50.0)
    send(table, 2, rest_ms=100.0, answer_ms=50.0)
    send(table, 3, rest_ms=100.0, answer_ms=50.0)
    send(table, 4, rest_ms=500.0, answer_ms=950.0)
    actions = table.disconnected(20.0, moves_in_ms=100.0)
    # In 150 ms elsewhere: sooner than the 500 of the first, and than the third, which waits for the second.
    assert actions == [FinishLocally(2), FinishLocally(4)]
    assert (table.phase(1), table.phase(3)) == (Phase.MOVING, Phase.MOVING)
    assert table.connected(90.0, max_in_flight=1, max_in_flight_bytes=100) == [
        Send(1, 910.0),
        FinishLocally(3),  # one more than the new gateway allows
    ]
    assert table.answered(1) == [Decode(1)]
    assert table.decode_done(1) == [Complete(1, Source.CLOUD, None)]
    assert table.local_done(2) == [Complete(2, Source.DEVICE, Fallback.UNREACHABLE)]


def test_a_request_waits_for_another_gateway_only_for_so_long() -> None:
    table = online_table()
    send(table, rest_ms=500.0, answer_ms=50.0)
    assert table.disconnected(20.0, moves_in_ms=50.0) == []
    assert table.next_tick_ms(160.0) == 170.0
    assert table.tick(169.0) == []
    assert table.tick(170.0) == [FinishLocally(1)]
    assert table.connected(171.0, max_in_flight=9, max_in_flight_bytes=100) == []
    assert table.local_done(1) == [Complete(1, Source.DEVICE, Fallback.UNREACHABLE)]


def test_the_guard_watches_over_what_waits_for_another_gateway() -> None:
    table = online_table()
    send(table, rest_ms=600.0, answer_ms=50.0)
    assert table.disconnected(300.0, moves_in_ms=400.0) == []
    assert table.tick(399.0) == []
    assert table.tick(400.0) == [FinishLocally(1)]
    assert table.phase(1) is Phase.LOCAL


class Life(RuleBasedStateMachine):
    """Any order of events: nothing ends twice, everything ends by its deadline, nothing is left behind."""

    live = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        self.table = RequestTable(6, 5_000)
        self.now_ms = 0.0
        self.next_id = 0
        self.deadlines: dict[int, float] = {}
        self.outcomes: dict[int, int] = {}
        self.running: dict[int, set[str]] = {}

    def perform(self, actions: list) -> None:
        for action in actions:
            request_id = action.request_id
            assert request_id in self.deadlines
            assert request_id not in self.outcomes, f"{action} after the end"
            if isinstance(action, Complete | Fail):
                self.outcomes[request_id] = self.outcomes.get(request_id, 0) + 1
                self.running.pop(request_id)
            elif isinstance(action, StopLocal):
                self.running[request_id].discard("local")
            else:
                if isinstance(action, FinishLocally):
                    self.perform(self.table.make_way(request_id, self.now_ms))
                work = {RunPrefix: "prefix", FinishLocally: "local", Decode: "decode", Send: "cloud"}
                self.running[request_id].add(work[type(action)])

    @rule(
        target=live,
        budget_ms=st.floats(1.0, 2000.0),
        on_device=st.booleans(),
        rest_ms=st.floats(0.0, 500.0),
        answer_ms=st.floats(0.0, 500.0),
        held_bytes=st.integers(0, 3000),
    )
    def submit(
        self, budget_ms: float, on_device: bool, rest_ms: float, answer_ms: float, held_bytes: int
    ) -> int:
        self.next_id += 1
        try:
            actions = self.table.submit(
                self.next_id,
                now_ms=self.now_ms,
                deadline_ms=self.now_ms + budget_ms,
                on_device=on_device,
                rest_ms=rest_ms,
                answer_ms=answer_ms,
                held_bytes=held_bytes,
            )
        except OverloadedError:
            return self.next_id
        self.deadlines[self.next_id] = self.now_ms + budget_ms
        self.running[self.next_id] = set()
        self.perform(actions)
        return self.next_id

    @rule(request_id=live, payload_bytes=st.integers(0, 3000))
    def prefix_done(self, request_id: int, payload_bytes: int) -> None:
        self.perform(self.table.prefix_done(request_id, now_ms=self.now_ms, payload_bytes=payload_bytes))

    @rule(request_id=live)
    def prefix_failed(self, request_id: int) -> None:
        if self.table.phase(request_id) is Phase.PREFIX:
            self.perform(self.table.prefix_failed(request_id, InternalError("no")))

    @rule(request_id=live, needs_worker=st.booleans())
    def answered(self, request_id: int, needs_worker: bool) -> None:
        self.perform(self.table.answered(request_id, needs_worker=needs_worker))

    @rule(request_id=live, retryable=st.booleans())
    def refused(self, request_id: int, retryable: bool) -> None:
        error = OverloadedError("full") if retryable else InternalError("no")
        self.perform(self.table.refused(request_id, error))

    @rule(request_id=live)
    def send_failed(self, request_id: int) -> None:
        self.perform(self.table.send_failed(request_id))

    @rule(request_id=live)
    def local_done(self, request_id: int) -> None:
        if "local" in self.running.get(request_id, ()):
            self.perform(self.table.local_done(request_id))

    @rule(request_id=live)
    def local_failed(self, request_id: int) -> None:
        if "local" in self.running.get(request_id, ()):
            self.running[request_id].discard("local")
            self.perform(self.table.local_failed(request_id, InternalError("no")))

    @rule(request_id=live, well=st.booleans())
    def decoded(self, request_id: int, well: bool) -> None:
        self.perform(self.table.decode_done(request_id) if well else self.table.decode_failed(request_id))

    @rule(request_id=consumes(live))
    def cancel(self, request_id: int) -> None:
        alive = request_id in self.running
        assert self.table.cancelled(request_id) == alive
        if alive:
            self.outcomes[request_id] = 1
            self.running.pop(request_id)

    @rule(max_in_flight=st.integers(1, 4), max_bytes=st.integers(0, 5000))
    def connect(self, max_in_flight: int, max_bytes: int) -> None:
        before = self.table.outstanding, self.table.outstanding_bytes
        self.perform(
            self.table.connected(self.now_ms, max_in_flight=max_in_flight, max_in_flight_bytes=max_bytes)
        )
        assert self.table.outstanding <= max(max_in_flight, before[0])
        assert self.table.outstanding_bytes <= max(max_bytes, before[1])
        assert Phase.MOVING not in map(self.table.phase, self.running), "sent again, or finished here"

    @rule(moves_in_ms=st.none() | st.floats(0.0, 300.0), worker_wait_ms=st.floats(0.0, 300.0))
    def disconnect(self, moves_in_ms: float | None, worker_wait_ms: float) -> None:
        self.perform(self.table.disconnected(self.now_ms, moves_in_ms, worker_wait_ms))
        assert self.table.outstanding == self.table.outstanding_bytes == 0
        phases = {self.table.phase(request_id) for request_id in self.running}
        assert not phases & {Phase.SENT, Phase.RACING}
        assert moves_in_ms is not None or Phase.MOVING not in phases

    @rule(ms=st.floats(0.0, 400.0), worker_wait_ms=st.floats(0.0, 300.0))
    def time_passes(self, ms: float, worker_wait_ms: float) -> None:
        self.now_ms += ms
        self.perform(self.table.tick(self.now_ms, worker_wait_ms))
        due_ms = self.table.next_tick_ms(self.now_ms, worker_wait_ms)
        assert due_ms is None or due_ms > self.now_ms, "a tick leaves nothing due, or the shell would spin"
        assert all(self.deadlines[request_id] > self.now_ms for request_id in self.running)
        assert due_ms is not None or not self.running

    @precondition(lambda self: self.running)
    @rule()
    def time_runs_out(self) -> None:
        self.now_ms = max(self.deadlines[request_id] for request_id in self.running)
        self.perform(self.table.tick(self.now_ms))
        assert not self.running
        assert len(self.table) == 0
        assert self.table.outstanding == 0

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.table) == len(self.running)
        assert all(count == 1 for count in self.outcomes.values())
        assert set(self.outcomes) | set(self.running) == set(self.deadlines)
        assert all(self.running.values()), "a request that nothing works on would wait for its deadline"
        assert len(self.table) <= 6
        assert self.table.held_bytes >= 0
        assert self.table.outstanding_bytes >= 0
        assert self.table.outstanding or not self.table.outstanding_bytes
        if not self.running:
            assert self.table.held_bytes == 0
        counters = self.table.counters
        ended = (
            counters.completed_by_cloud + counters.completed_by_device + counters.failed + counters.cancelled
        )
        assert counters.submitted == ended + len(self.table)


TestLife = Life.TestCase
