"""Every zoo network, cut everywhere, through real wire bytes, with eager torch as the judge."""

from __future__ import annotations

import pytest

from bench.equality import FUSED_BOUND, MAX_CUTS, compare
from shared import zoo
from shared.graph.capture import capture


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_both_halves_equal_eager_at_every_cut(name: str) -> None:
    network = zoo.build(name)
    captured = capture(network.module, network.args, network.kwargs, name=name)
    found = compare(network, captured)
    assert captured.graph.dynamic_batch
    assert found.unequal == ()
    assert found.bit_equal == found.tried == min(len(captured.graph.cuts), MAX_CUTS)
    assert found.fused_error < FUSED_BOUND
