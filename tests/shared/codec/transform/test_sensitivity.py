from __future__ import annotations

import pytest
import torch
from torch import nn

from shared.codec.transform import output_gradients
from shared.codec.transform.sensitivity import differentiable_tail
from shared.graph.capture import capture
from shared.graph.run import load


class Small(nn.Module):
    """A residual, so that two tensors cross some cuts, and an input of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.first(image.float() / 255).relu()
        x = x + self.second(x).relu()
        scores: torch.Tensor = self.last(x.mean((2, 3)))
        return scores * 4


@pytest.fixture(scope="module")
def network():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    captured = capture(Small().eval(), (torch.randint(256, (1, 3, 6, 6), dtype=torch.uint8),), name="small")
    return captured, load(captured)


IMAGES = torch.randint(256, (3, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_tail_is_the_network_at_every_cut(network) -> None:  # type: ignore[no-untyped-def]
    captured, program = network
    whole = program([IMAGES])[0]
    for cut in captured.graph.cuts[:-1]:
        state = program.start([IMAGES])
        program.run(state, cut.edge_units)
        (logits,) = differentiable_tail(captured, cut)(program.live(state, cut), state.batch)
        assert torch.allclose(logits, whole, atol=1e-5)


def test_squared_gradients_foretell_the_divergence(network) -> None:  # type: ignore[no-untyped-def]
    """Half of E (gradient . error)^2 is the KL divergence of a small error in any tensor that crosses."""
    captured, program = network
    generator = torch.Generator().manual_seed(2)
    before = program([IMAGES])[0].double().log_softmax(1)
    for cut in captured.graph.cuts[:-1:2]:
        gradients = output_gradients(captured, program, cut, [[IMAGES]], classifier=True, draws=60)
        state = program.start([IMAGES])
        program.run(state, cut.edge_units)
        live = [tensor.float() for tensor in program.live(state, cut)]
        tail = differentiable_tail(captured, cut)
        for position, gradient in enumerate(gradients):
            assert gradient.shape == (180, *live[position].shape[1:])
            error = torch.randn(live[position].shape, generator=generator) * 0.02 * live[position].std()
            moved = [each + error if index == position else each for index, each in enumerate(live)]
            after = tail(moved, 3)[0].double().log_softmax(1)
            divergence = (before.exp() * (before - after)).sum(1).mean()
            along = (gradient.view(60, *error.shape) * error).flatten(2).sum(2)
            assert float(along.square().mean()) / 2 == pytest.approx(float(divergence), rel=0.45)


def test_other_outputs_are_taken_relative_to_their_size(network) -> None:  # type: ignore[no-untyped-def]
    captured, program = network
    cut = captured.graph.cuts[2]
    (gradient,) = output_gradients(captured, program, cut, [[IMAGES]], classifier=False, draws=60)
    state = program.start([IMAGES])
    program.run(state, cut.edge_units)
    (live,) = program.live(state, cut)
    error = 0.01 * torch.randn(live.shape, generator=torch.Generator().manual_seed(3))
    tail = differentiable_tail(captured, cut)
    before, after = tail([live], 3)[0], tail([live + error], 3)[0]
    relative = ((after - before).norm(dim=1) / before.norm(dim=1)).square().mean()
    along = (gradient.view(60, *error.shape) * error).flatten(2).sum(2)
    assert float(along.square().mean()) == pytest.approx(float(relative), rel=0.45)


def test_the_same_seed_gives_the_same_gradients(network) -> None:  # type: ignore[no-untyped-def]
    captured, program = network
    cut = captured.graph.cuts[1]
    once, again, other = (
        output_gradients(captured, program, cut, [[IMAGES]], classifier=True, seed=seed)[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
