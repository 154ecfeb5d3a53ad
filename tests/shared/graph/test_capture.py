"""What is captured, under which names and sizes, and what is refused, with the user's line."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.errors import CaptureError, InputMismatchError
from shared.graph import load
from shared.graph.capture import capture
from tests.shared.graph import hard_networks
from tests.shared.graph.shipping import eager, same_bits, through


def line_of(module: nn.Module, text: str) -> str:
    """``file:line`` of the one line of forward that holds ``text``."""
    lines, first = inspect.getsourcelines(type(module).forward)
    (offset,) = [index for index, line in enumerate(lines) if text in line]
    return f"{inspect.getsourcefile(type(module))}:{first + offset}"


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        self.calls += y.mean()
        return y + 1


class InPlaceInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x[:, 1:]
        y.add_(1)
        return x * 2


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        return x + torch.randn_like(x)


class AlwaysDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        return F.dropout(y, 0.5)


class DroppedAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return x * 2


class Item(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        scale = x.max().item()
        return x * scale


class Selected(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x[x > 0]
        return y * 2


class Cond(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda t: t * 2, lambda t: t * 3, (x,))


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.rfft(x)
        return y.abs()


class Strided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        return torch.as_strided(y, (2, 2), (1, 1)) * 2


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(3, 3)


REFUSALS: list[tuple[nn.Module, str, str]] = [
    (Counter(), "self.calls +=", r"changes its own state \(calls\)"),
    (InPlaceInput(), "y.add_(1)", "changes one of its inputs in place"),
    (Noise(), "randn_like", "randn_like.default draws random numbers"),
    (AlwaysDropout(), "F.dropout", "dropout.default draws random numbers"),
    (DroppedAttention(), "scaled_dot", "attention.default draws random numbers"),
    (Branch(), "if x.sum()", "depends on the data"),
    (Item(), ".item()", "reads a number out of a tensor"),
    (Selected(), "x[x > 0]", "size of a tensor depends on the data"),
    (Cond(), "torch.cond", "control flow"),
    (Spectrum(), "rfft", "dtype that cannot be sent"),
    (Strided(), "as_strided", "reads memory outside of the tensor"),
    (Broken(), "x @", "fails on its example inputs"),
]


@pytest.mark.parametrize(("module", "line", "reason"), REFUSALS, ids=lambda item: type(item).__name__)
def test_a_refusal_gives_the_reason_and_the_line(module: nn.Module, line: str, reason: str) -> None:
    example = torch.arange(8.0).reshape(1, 8)
    with pytest.raises(CaptureError, match=reason) as caught:
        capture(module, (example,), name="refused")
    assert f"{line_of(module, line)}: " in str(caught.value)
    assert line in str(caught.value)
    assert torch.equal(example, torch.arange(8.0).reshape(1, 8))


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ((), "give example inputs"),
        ((object(),), "neither a tensor nor a tuple"),
        (({1: 2},), "keys of a dict"),
    ],
)
def test_examples_must_hold_tensors(args: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(CaptureError, match=reason):
        capture(nn.Identity(), args, name="refused")


def test_a_network_that_computes_nothing_is_refused() -> None:
    with pytest.raises(CaptureError, match="computes nothing"):
        capture(nn.Flatten(0), (torch.ones(1, 3),), name="nothing")


class AloneOrNot(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] == 1 else x * 3


class Squeezes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 2).squeeze().softmax(-1)


class LayersFirst(nn.Module):
    """Dimension 0 of the state is not the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return self.gru(x, state)[0]


class Quadratic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * x[None]).flatten(0, 1)


@pytest.mark.parametrize(
    ("module", "args"),
    [
        (AloneOrNot(), (torch.randn(1, 5),)),
        (Squeezes(), (torch.randn(1, 5),)),
        (LayersFirst(), (torch.randn(1, 2, 3), torch.randn(1, 1, 4))),
        (Quadratic(), (torch.randn(1, 5),)),
    ],
    ids=lambda item: type(item).__name__,
)
def test_what_has_no_symbolic_batch_keeps_its_example_s(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    captured = capture(module, args, name="static")
    assert not captured.graph.dynamic_batch
    assert captured.graph.captured_batch == 1
    program = load(captured, mode="exact")
    for cut in program.graph.cuts:
        assert all(map(same_bits, through(program, cut, args), eager(module, args, {})))
    with pytest.raises(InputMismatchError, match=r"must be float32 \[1, "):
        program.start([torch.cat([arg, arg]) for arg in args])


def test_an_example_of_another_batch_is_captured_with_a_symbolic_one() -> None:
    captured = capture(nn.Linear(4, 2), (torch.randn(6, 4),), name="six")
    assert captured.graph.dynamic_batch
    assert load(captured).start([torch.randn(1, 4)]).batch == 1


def test_inputs_without_a_batch_stay_as_they_are() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, table: Tensor, scale: Tensor) -> Tensor:
            return (x @ table) * scale

    captured = capture(Scaled(), (torch.randn(1, 4), torch.randn(4, 4), torch.tensor(2.0)), name="scaled")
    assert captured.graph.dynamic_batch
    assert captured.graph.describe_inputs() == "x float32 [batch, 4], table float32 [4, 4], scale float32 []"


def test_training_mode_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3).eval())
    before = [part.training for part in module.modules()]
    captured = capture(module, (torch.randn(1, 3),), name="training")
    assert [part.training for part in module.modules()] == before
    assert all("dropout" not in op.target for op in captured.graph.ops())


def test_grad_mode_inside_of_forward_is_no_obstacle() -> None:
    class NoGrad(nn.Module):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = x * 2
            return y + 1

    assert len(capture(NoGrad(), (torch.randn(1, 3),), name="no-grad").graph.units) == 2


def test_weights_are_shared_with_the_module_and_tied_ones_exist_once() -> None:
    module, args, _ = hard_networks.build("tied")
    captured = capture(module, args, name="tied")
    assert set(captured.weights) == {"embed.weight", "mix.weight", "mix.bias"}
    assert captured.weights["embed.weight"].data_ptr() == module.embed.weight.data_ptr()  # type: ignore[union-attr]
    assert captured.graph.weight_bytes == 4 * (30 * 8 + 8 * 8 + 8)


def test_constants_of_weights_and_batch_are_preamble_and_never_cross() -> None:
    module, args, _ = hard_networks.build("batch-facts")
    graph = capture(module, args, name="batch-facts").graph
    crossing = {slot for cut in graph.cuts for slot in cut.live}
    assert crossing.isdisjoint(slot for op in graph.preamble for slot in op.written)
    targets = {op.target.split(".")[1] for op in graph.preamble}
    assert targets >= {"repeat", "arange", "mean", "_weight_norm", "full"}
    assert {unit.kind for unit in graph.units} == {"linear", "add", "gt", "where", "mul"}


def test_units_are_fused_groups_with_readable_names() -> None:
    module, args, _ = hard_networks.build("residual")
    graph = capture(module, args, name="residual").graph
    assert [unit.name for unit in graph.units] == [
        "stem.0 conv2d+batch_norm+relu",
        "one.0 conv2d+batch_norm+relu6",
        "two.0 conv2d+batch_norm",
        "skip.0 conv2d+batch_norm+add+relu",
        "adaptive_avg_pool2d",
        "head linear",
    ]
    assert [cut.name for cut in graph.cuts][::6] == ["input", "output"]
    assert [len(cut.live) for cut in graph.cuts] == [1, 1, 2, 2, 1, 1, 0]


@pytest.mark.parametrize("name", hard_networks.NAMES)
def test_no_unit_is_only_views_or_copies(name: str) -> None:
    module, args, kwargs = hard_networks.build(name)
    for unit in capture(module, args, kwargs, name=name).graph.units:
        assert unit.kind not in ("view", "clone", "copy", "permute", "transpose", "slice", "select", "expand")


def test_the_raw_image_travels_at_cut_0_and_normalisation_is_units() -> None:
    module, args, _ = hard_networks.build("photograph")
    graph = capture(module, args, name="photograph").graph
    (image,) = graph.live_specs(graph.cuts[0], 1)
    assert (image.name, image.dtype.label, image.shape) == ("image", "uint8", (1, 16, 16, 3))
    assert [unit.name for unit in graph.units[:4]] == ["to_float32", "div #1", "sub", "div #2"]


def test_one_tensor_seen_straight_and_transposed_travels_once() -> None:
    module, args, _ = hard_networks.build("post-norm")
    graph = capture(module, args, name="post-norm").graph
    size = graph.values[graph.inputs[0]].at(1).nbytes
    norms = [index for index, unit in enumerate(graph.units) if unit.kind == "layer_norm"]
    for index in norms[:-1]:
        assert sum(spec.nbytes for spec in graph.live_specs(graph.cuts[index + 1], 1)) == size


def test_outputs_ready_on_the_device_do_not_travel() -> None:
    module, args, _ = hard_networks.build("early-exit")
    graph = capture(module, args, name="early-exit").graph
    names = {spec.name for cut in graph.cuts[-2:] for spec in graph.live_specs(cut, 1)}
    assert names == {"late", "relu"}
    early, late = graph.outputs[0], graph.outputs[1]
    assert graph.output_slots_of(graph.cuts[-2]) == (late,)
    assert early in graph.output_slots_of(graph.cuts[0])
    assert graph.inputs[0] not in graph.output_slots_of(graph.cuts[0])


def test_a_dataclass_result_is_a_dict_without_its_empty_fields() -> None:
    module, args, kwargs = hard_networks.build("dataclass")
    program = load(capture(module, args, kwargs, name="dataclass"), mode="exact")
    result = program.graph.unflatten(program(program.graph.flatten(args, kwargs)))
    assert list(result) == ["logits", "hidden"]
    assert torch.equal(result["logits"], module(*args, **kwargs).logits)


def test_arguments_of_another_form_are_named() -> None:
    module, args, kwargs = hard_networks.build("dataclass")
    graph = capture(module, args, kwargs, name="dataclass").graph
    for wrong_args, wrong_kwargs, reason in (
        (args, {**kwargs, "flag": False}, "argument 'flag' is True in the captured network"),
        (args, {"flag": True}, "argument 'mask' is missing"),
        (args, {**kwargs, "more": 1}, "argument 'more' is not an argument"),
        ((), kwargs, "positional arguments must hold 1 values"),
        ((None,), kwargs, "argument 0 must be a tensor, not None"),
    ):
        with pytest.raises(InputMismatchError, match=reason):
            graph.flatten(wrong_args, wrong_kwargs)
