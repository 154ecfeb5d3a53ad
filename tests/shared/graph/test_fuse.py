"""Fused programs stay within 1e-5 of eager at every cut, with and without oneDNN."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from shared.graph import CapturedModel, Program, fuse, load
from shared.graph.capture import capture
from tests.shared.graph import hard_networks
from tests.shared.graph.shipping import eager, through

_WITHIN = 1e-5


@functools.cache
def captured(name: str) -> CapturedModel:
    module, args, kwargs = hard_networks.build(name)
    return capture(module, args, kwargs, name=name)


def relative_error(got: Tensor, want: Tensor) -> float:
    if not want.is_floating_point():
        return float(not torch.equal(got, want))
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-30))


def assert_close_at_every_cut(program: Program, module: nn.Module, args: tuple, kwargs: dict) -> None:  # type: ignore[type-arg]
    leaves = program.graph.flatten(args, kwargs)
    expected = eager(module, args, kwargs)
    for cut in program.graph.cuts:
        for got, want in zip(through(program, cut, leaves), expected, strict=True):
            assert relative_error(got, want) < _WITHIN, f"cut {cut.index} after {cut.name}"


@pytest.mark.parametrize("name", hard_networks.NAMES)
def test_every_cut_is_within_the_bound(name: str) -> None:
    assert_close_at_every_cut(load(captured(name)), *hard_networks.build(name))


@pytest.mark.parametrize("name", ["residual", "channels-last", "dense", "photograph"])
def test_without_onednn_every_cut_is_within_the_bound(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse, "onednn_works", lambda: False)
    assert_close_at_every_cut(load(captured(name)), *hard_networks.build(name))


@pytest.mark.parametrize("always", [True, False])
def test_onednn_linear_layers_are_within_the_bound(always: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse, "_onednn_linear_is_faster", lambda *_: always)
    for name in ("class-token", "post-norm", "split", "early-exit", "tied"):
        assert_close_at_every_cut(load(captured(name)), *hard_networks.build(name))


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.7), nn.Hardswish(), nn.SiLU(), nn.Sigmoid(), nn.Tanh(),
     nn.GELU(), nn.GELU(approximate="tanh"), nn.LeakyReLU(0.3), nn.LeakyReLU(), nn.ELU()],
    ids=str,
)  # fmt: skip
def test_every_activation_behind_a_convolution_and_a_linear_layer(
    activation: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuse, "_onednn_linear_is_faster", lambda *_: True)
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), activation, nn.Flatten(2), nn.Linear(36, 9), activation
    ).eval()
    image = torch.randn(1, 3, 8, 8)
    program = load(capture(module, (image,), name="activation"))
    assert [unit.kind for unit in program.graph.units] == ["conv2d", "linear"]
    assert_close_at_every_cut(program, module, (image,), {})


class _Odd(nn.Module):
    """Convolutions that must not be taken for ordinary ones."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(3, 4, 3, padding="same", bias=False)
        self.precise = nn.Conv2d(4, 4, 3, dtype=torch.float64)
        self.unbatched = nn.Conv2d(4, 4, 3, bias=False)
        self.line = nn.Sequential(nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6, affine=False), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, stride=2), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.precise(self.same(x).double()).float()
        x = self.up(x)
        x = self.unbatched(x.flatten(0, 1).view(4, 12, 12)).unsqueeze(0)
        weight = x.mean((0, 2, 3)).view(4, 1, 1, 1).expand(4, 4, 1, 1)
        x = torch.nn.functional.conv2d(x, weight)
        y = self.line(x.flatten(2))
        return y + torch.add(y, y, alpha=2)


def test_what_cannot_be_fused_still_runs() -> None:
    torch.manual_seed(0)
    module = _Odd().eval()
    image = torch.randn(1, 3, 8, 8)
    program = load(capture(module, (image,), name="odd"))
    assert not program.graph.dynamic_batch
    assert_close_at_every_cut(program, module, (image,), {})


def test_a_fused_unit_is_one_call_and_drops_its_unpacked_weights() -> None:
    assert fuse.onednn_works()
    model = captured("residual")
    graph = model.graph
    weights = {slot: model.weights[key].detach() for slot, key in graph.weights.items()}
    calls = fuse.fused_calls(graph, weights, torch.device("cpu"))
    assert [len(unit) for unit in calls] == [1, 1, 1, 1, 2, 1]  # the fifth is the pooling and its view
    assert [len(unit.ops) for unit in graph.units] == [3, 3, 2, 4, 2, 1]
    _, args, _ = hard_networks.build("residual")
    program = load(model)
    held = [item for item in program.start(args).slots if isinstance(item, Tensor) and item.dim() == 4]
    unpacked = [item for item in held if item.layout == torch.strided and item is not args[0]]
    assert unpacked == []
