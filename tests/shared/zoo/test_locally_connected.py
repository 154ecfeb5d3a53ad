from __future__ import annotations

import torch

from shared.zoo.initialise import make
from shared.zoo.locally_connected import LocallyConnected2d


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
