"""The digest is the same for the same network, and another for any other one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shared.graph import CapturedModel, Op
from shared.graph.capture import capture
from shared.graph.digest import graph_digest
from tests.shared.graph import hard_networks


def captured(name: str, seed: int = 0, called: str = "network") -> CapturedModel:
    module, args, kwargs = hard_networks.build(name, seed)
    return capture(module, args, kwargs, name=called)


RESIDUAL = captured("residual")


@pytest.mark.parametrize("name", ["residual", "class-token", "recurrent", "cache-step"])
def test_two_captures_agree_whatever_the_name(name: str) -> None:
    one, other = captured(name), captured(name, called="another")
    assert one.graph.digest == other.graph.digest
    assert one.graph.units == other.graph.units
    assert one.graph.digest.startswith("sha256:")
    assert len(one.graph.digest) == 7 + 64


def test_other_weights_and_another_graph_have_other_digests() -> None:
    names = ("residual", "channels-last", "split", "tied")
    assert len({captured(name, seed).graph.digest for name in names for seed in (0, 1)}) == 8


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_bit_of_any_weight_counts(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(RESIDUAL.weights)))
    flipped = RESIDUAL.weights[key].detach().clone()
    raw = flipped.view(-1).view(torch.uint8)
    position = data.draw(st.integers(0, raw.numel() - 1))
    raw[position] ^= 1 << data.draw(st.integers(0, 7))
    assert graph_digest(RESIDUAL.graph, {**RESIDUAL.weights, key: flipped}) != RESIDUAL.graph.digest


def test_a_constant_in_the_graph_counts() -> None:
    unit = RESIDUAL.graph.units[0]
    for index, op in enumerate(unit.ops):
        changed = Op(op.target, (*op.args[:-1], 0.25), op.kwargs, op.outputs)
        ops = (*unit.ops[:index], changed, *unit.ops[index + 1 :])
        units = (dataclasses.replace(unit, ops=ops), *RESIDUAL.graph.units[1:])
        graph = dataclasses.replace(RESIDUAL.graph, units=units)
        assert graph_digest(graph, RESIDUAL.weights) != RESIDUAL.graph.digest


def test_memory_order_of_weights_counts() -> None:
    module = nn.Conv2d(4, 4, 3)
    plain = capture(module, (torch.randn(1, 4, 8, 8),), name="conv").graph.digest
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert capture(module, (torch.randn(1, 4, 8, 8),), name="conv").graph.digest != plain
