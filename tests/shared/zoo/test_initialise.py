from __future__ import annotations

import torch
from torch import nn

from shared.zoo.initialise import RELU_GAIN, LocallyConnected2d, make


def test_locally_connected_applies_its_own_filters_at_every_location() -> None:
    layer = make(lambda: LocallyConnected2d(3, 5, size=9, kernel=3, stride=2), seed=1)
    assert isinstance(layer, LocallyConnected2d)
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(2))
    expected = torch.empty(2, 5, 4, 4)
    for row in range(4):
        for column in range(4):
            patch = x[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].reshape(2, -1)
            expected[:, :, row, column] = patch @ layer.weight[4 * row + column].T
    torch.testing.assert_close(layer(x), expected + layer.bias)


def test_layers_behind_the_first_sum_to_zero_and_have_the_variance_asked_for() -> None:
    layer = make(lambda: nn.Linear(400, 300), seed=3)
    assert isinstance(layer, nn.Linear)
    assert layer.weight.sum(1).abs().max() < 1e-4
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
