from __future__ import annotations

import torch
from torch import nn

from shared.zoo.initialise import RELU_GAIN, make


def test_layers_behind_the_first_lose_a_share_of_their_mean_and_have_the_variance_asked_for() -> None:
    layer = make(lambda: nn.Linear(400, 300), seed=3)
    assert isinstance(layer, nn.Linear)
    assert 0.35 < layer.weight.sum(1).std() / RELU_GAIN**0.5 < 0.55, "0.55 of the mean is taken off"
    torch.testing.assert_close(layer.weight.var() * 400, torch.tensor(RELU_GAIN), rtol=0.02, atol=0)
    first = make(lambda: nn.Conv2d(3, 64, 5), seed=3)
    assert isinstance(first, nn.Conv2d)
    assert first.weight.sum((1, 2, 3)).abs().max() > 0.5


def test_seeds_differ() -> None:
    one, two = (make(lambda: nn.Linear(8, 8), seed=seed) for seed in (1, 2))
    assert not torch.equal(next(one.parameters()), next(two.parameters()))


def test_every_parameter_and_buffer_is_filled() -> None:
    """Memory that was never written would hold whatever was there before."""
    module = make(
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3),
            nn.BatchNorm2d(8),
            nn.ConvTranspose2d(8, 4, 2),
            nn.LayerNorm(6),
            nn.Embedding(9, 6),
        ),
        seed=4,
    )
    for key, value in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            assert int(value) == 0
        else:
            assert torch.isfinite(value).all(), key
            assert 0 < value.abs().max() < 3, key
            assert value.unique().numel() > 1, key
