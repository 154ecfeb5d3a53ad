"""What the accuracy gate is asked first, and what later."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_agent.judging import first_question, later_questions, lossy_forms
from shared.codec import Codec, Form
from shared.errors import PlanError
from shared.plan.constraints import Constraints
from shared.plan.gate import Gate, GateKey
from shared.plan.objective import Latency
from shared.tensor import DType
from tests.shared.plan.builders import DIGEST, chain, profile_of

GRAPH = chain((3_000, 400_000, *(900 + 10 * step for step in range(18)), 10), DType.UINT8)
PROFILE = profile_of(GRAPH, [20.0] * len(GRAPH.units))
NOTHING = Gate(GateKey(DIGEST, "none", "top1"), 0, {})


def test_only_forms_that_may_be_used_are_judged() -> None:
    assert lossy_forms(Constraints()) == tuple(form for form in Form if form is not Form.EXACT)
    codecs = (Codec.FLOAT32_ZSTD, Codec.UINT8, Codec.UINT8_LZ4)
    assert lossy_forms(Constraints(codecs=codecs)) == (Form.UINT8,)
    assert lossy_forms(Constraints(codecs=(Codec.FLOAT32,))) == ()


def test_first_what_may_win_and_then_every_cut_once() -> None:
    first = first_question(GRAPH, PROFILE, Constraints(), Latency())
    assert first.worth is not None
    assert first.cuts is not None
    sending = [cut for cut in GRAPH.cuts if cut.cloud_units and cut.index]
    assert list(first.cuts) == sending  # cut 0 sends an image of bytes, which no form changes
    pairs = {(cut.live, form) for cut in first.cuts for form in first.forms}
    named = first.worth.pairs(NOTHING, first.enough or 0.0, pairs)
    assert 0 < len(named) < len(pairs) / 3
    assert not any(live == GRAPH.cuts[1].live for live, _ in named)  # larger than the input
    later = list(later_questions(first, Latency()))
    assert [cut for each in later for cut in each.cuts or ()] == sending
    assert all(each.worth is None and each.forms == first.forms for each in later)
    assert len(later) > 1


def test_only_the_proportions_of_the_clouds_times_matter() -> None:
    pairs = {(cut.live, form) for cut in GRAPH.cuts for form in (Form.UINT8, Form.INT4)}

    def named(*cloud_unit_ms: float) -> object:
        asked = first_question(GRAPH, PROFILE, Constraints(), Latency(), cloud_unit_ms=cloud_unit_ms or None)
        assert asked.worth is not None
        return asked.worth.pairs(NOTHING, 0.99, pairs)

    assert named() == named(*[1.0] * len(GRAPH.units)) == named(*[300.0] * len(GRAPH.units))


def test_at_a_pinned_cut_all_is_judged_and_nothing_elsewhere() -> None:
    pinned = first_question(GRAPH, PROFILE, Constraints(cut=4), Latency())
    assert (pinned.worth, list(pinned.cuts or ())) == (None, [GRAPH.cuts[4]])
    alone = first_question(GRAPH, PROFILE, Constraints(cut=len(GRAPH.units)), Latency())
    assert list(later_questions(alone, Latency())) == []


def test_what_is_impossible_whatever_the_gate_says_is_said_before_it_is_measured() -> None:
    with pytest.raises(PlanError, match="cut 99 is pinned"):
        first_question(GRAPH, PROFILE, Constraints(cut=99), Latency())
    with pytest.raises(PlanError, match="input_never_leaves forbids it"):
        first_question(GRAPH, PROFILE, Constraints(cut=0, input_never_leaves=True), Latency())
    metered = Constraints(max_uplink_bytes=500)
    asked = first_question(GRAPH, replace(PROFILE), metered, Latency())
    assert asked.cuts is not None
    assert GRAPH.cuts[1] not in asked.cuts
