"""A network of two layers as a graph, written out by hand: the fuzzer's good bundle needs no capture."""

from __future__ import annotations

import torch

from shared.graph.captured import CapturedModel
from shared.graph.digest import graph_digest
from shared.graph.ir import BatchInt, Graph, Op, Ref, Unit
from shared.graph.tree import Tree
from shared.tensor import DType, SymbolicSpec

__all__ = ["small_network"]


def small_network() -> CapturedModel:
    """``linear(relu(linear(x)))`` and a reshape, 4 to 3 to 2."""
    generator = torch.Generator().manual_seed(1)
    weights = {
        "first.weight": torch.randn(3, 4, generator=generator),
        "first.bias": torch.randn(3, generator=generator),
        "second.weight": torch.randn(2, 3, generator=generator),
    }
    keys = dict(enumerate(weights, start=1))

    def spec(name: str, *dims: tuple[int, int]) -> SymbolicSpec:
        return SymbolicSpec(name, DType.FLOAT32, dims, tuple(range(len(dims))))

    values = {
        0: spec("x", (1, 0), (0, 4)),
        1: spec("w1", (0, 3), (0, 4)),
        2: spec("b1", (0, 3)),
        3: spec("w2", (0, 2), (0, 3)),
        4: spec("h", (1, 0), (0, 3)),
        5: spec("r", (1, 0), (0, 3)),
        6: spec("y", (1, 0), (0, 2)),
        7: spec("flat", (1, 0), (0, 2), (0, 1)),
    }
    first = Op("aten.linear.default", (Ref(0), Ref(1), Ref(2)), (), (4,))
    relu = Op("aten.relu.default", (Ref(4),), (), (5,))
    second = Op("aten.linear.default", (Ref(5), Ref(3)), (), (6,))
    view = Op("aten.view.default", (Ref(6), (BatchInt(1, 0), 2, 1)), (), (7,))
    graph = Graph(
        name="small",
        inputs=(0,),
        outputs=(7,),
        input_tree=Tree("tuple", (Tree("tuple", (Tree("leaf"),)), Tree("dict"))),
        output_tree=Tree("leaf"),
        units=(
            Unit(0, "first linear+relu", "linear", (first, relu), (0,), (5,)),
            Unit(1, "second linear", "linear", (second, view), (5,), (7,)),
        ),
        preamble=(),
        values=values,
        weights=keys,
        dynamic_batch=True,
        captured_batch=2,
    )
    return CapturedModel(graph.with_digest(graph_digest(graph, weights)), weights)
