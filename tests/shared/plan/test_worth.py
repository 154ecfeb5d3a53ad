"""Only what a plan could choose is worth judging, and nothing that it could choose is left out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.codec import Codec, Form
from shared.plan.constraints import Constraints, constrain
from shared.plan.gate import Fidelity, Gate, GateKey
from shared.plan.latency import Conditions
from shared.plan.objective import Latency, Throughput
from shared.plan.rows import build_rows
from shared.plan.solve import choose
from shared.plan.worth import EVERYWHERE, Pair, Worth, pairs_of
from shared.tensor import DType
from tests.shared.plan.builders import DIGEST, chain, profile_of

SIZES = (300, 40_000, 9_000, 12_000, 1_500, 10)
GRAPH = chain(SIZES, DType.FLOAT32)
PROFILE = profile_of(GRAPH, [1.0, 20.0, 8.0, 15.0, 30.0])
ROWS = build_rows(GRAPH, PROFILE, PROFILE.unit_ms, tuple(Codec))
KEY = GateKey(DIGEST, "inputs 4", "top1")
NOTHING = Gate(KEY, 0, {})
ALL: set[Pair] = set().union(*(pairs_of(ROWS, row) for row in range(len(ROWS))))


def verdicts(good: set[Pair], judged: set[Pair]) -> Gate:
    measured: dict[tuple[int, ...], dict[Form, Fidelity]] = {}
    for live, form in judged:
        measured.setdefault(live, {})[form] = Fidelity(1.0 if (live, form) in good else 0.5, 0.0)
    return Gate(KEY, 4, measured)


def test_a_lossless_row_needs_no_verdict_and_a_lossy_one_that_of_its_form() -> None:
    for row in range(len(ROWS)):
        form, live = ROWS.codec_of(row).form, ROWS.cut_of(row).live
        lossy = ROWS.remote[row] and form is not Form.EXACT
        assert pairs_of(ROWS, row) == ({(live, form)} if lossy else frozenset())


def test_what_would_win_nowhere_is_not_worth_it() -> None:
    worth = Worth(ROWS, Latency()).pairs(NOTHING, 0.99, ALL)
    assert worth < ALL
    larger_and_later = GRAPH.cuts[1].live  # 40,000 elements, where the input has 300
    assert not any(live == larger_and_later for live, _ in worth)


def test_a_stream_is_another_matter() -> None:
    assert Worth(ROWS, Throughput()).pairs(NOTHING, 0.99, ALL) != Worth(ROWS, Latency()).pairs(
        NOTHING, 0.99, ALL
    )


@given(st.sets(st.sampled_from(sorted(ALL))), st.randoms(use_true_random=False))
def test_no_plan_is_worse_for_what_was_not_judged(good: set[Pair], order) -> None:
    """Whatever the verdicts are, and in whichever order they come."""
    worth, judged = Worth(ROWS, Latency()), set()
    named = worth.pairs(NOTHING, 0.99, ALL)
    while named:
        judged |= set(order.sample(sorted(named), order.randint(1, len(named))))
        fewer = worth.pairs(verdicts(good, judged), 0.99, ALL - judged)
        assert fewer <= named - judged  # never more
        named = fewer
    lazily, _ = constrain(ROWS, GRAPH, Constraints(), verdicts(good, judged))
    in_full, _ = constrain(ROWS, GRAPH, Constraints(), verdicts(good, ALL))
    for at in EVERYWHERE[::7]:
        assert choose(Latency().score(lazily, at)).cost == choose(Latency().score(in_full, at)).cost


def test_nothing_is_worth_it_once_all_is_known_and_cuts_are_those_with_something_lossy() -> None:
    worth = Worth(ROWS, Latency(), [Conditions(uplink_bps=1e6, rtt_ms=1.0)])
    assert worth.pairs(verdicts(ALL, ALL), 0.99, set()) == set()
    assert [cut.index for cut in worth.cuts] == [0, 1, 2, 3, 4]
