"""Arithmetic and bytes of known operators and units, worked out by hand."""

from __future__ import annotations

import pytest

from shared.graph.ir import Arg, BatchInt, Graph, Op, Ref, Unit
from shared.plan.features import op_flops, unit_features
from shared.tensor import DType, SymbolicSpec, TensorSpec

Shape = tuple[int, ...]


def spec(shape: Shape, dtype: DType = DType.FLOAT32) -> TensorSpec:
    return TensorSpec("", dtype, shape, tuple(range(len(shape))))


def flops(target: str, inputs: list[Shape], out: Shape, *rest: Arg) -> float:
    """FLOPs of an operator whose first arguments are tensors of these shapes, the others ``rest``."""
    refs: tuple[Arg, ...] = tuple(Ref(slot) for slot in range(len(inputs)))
    specs = {slot: spec(shape) for slot, shape in enumerate([*inputs, out])}
    return op_flops(Op(target, refs + rest, (), (len(inputs),)), specs)


def test_a_3x3_convolution_64_to_128_at_56x56() -> None:
    got = flops("aten.conv2d.default", [(1, 64, 56, 56), (128, 64, 3, 3), (128,)], (1, 128, 56, 56))
    assert got == 2 * 3 * 3 * 64 * 128 * 56 * 56 == 462_422_016


@pytest.mark.parametrize(
    ("target", "inputs", "out", "rest", "expected"),
    [
        # depthwise 3x3, 32 channels, 112x112, stride 1
        ("aten.conv2d.default", [(1, 32, 112, 112), (32, 1, 3, 3)], (1, 32, 112, 112), (), 7_225_344),
        # AlexNet's second convolution: 5x5, 2 groups, 96 -> 256 at 27x27
        ("aten.conv2d.default", [(1, 96, 27, 27), (256, 48, 5, 5)], (1, 256, 27, 27), (), 447_897_600),
        # a batch of 4 costs four times as much
        ("aten.conv2d.default", [(4, 96, 27, 27), (256, 48, 5, 5)], (4, 256, 27, 27), (), 1_791_590_400),
        ("aten.conv1d.default", [(1, 16, 100), (8, 16, 3)], (1, 8, 98), (), 2 * 3 * 16 * 8 * 98),
        # up-convolution 2x2, 128 -> 64, 28x28 -> 56x56: each input element meets 2*2*64 weights
        (
            "aten.conv_transpose2d.input",
            [(1, 128, 28, 28), (128, 64, 2, 2)],
            (1, 64, 56, 56),
            (),
            2 * 128 * 28 * 28 * 64 * 4,
        ),
        ("aten.linear.default", [(1, 9216), (4096, 9216), (4096,)], (1, 4096), (), 75_497_472),
        ("aten.linear.default", [(1, 197, 192), (576, 192)], (1, 197, 576), (), 2 * 197 * 192 * 576),
        ("aten.bmm.default", [(3, 197, 64), (3, 64, 197)], (3, 197, 197), (), 2 * 3 * 197 * 197 * 64),
        ("aten.addmm.default", [(10,), (7, 20), (20, 10)], (7, 10), (), 2 * 7 * 10 * 20),
        ("aten.matmul.default", [(2, 5, 3), (3,)], (2, 5), (), 2 * 2 * 5 * 3),
        # scores 12 x 128 x 128, times 64 twice, and a softmax of 5 an element
        (
            "aten.scaled_dot_product_attention.default",
            [(1, 12, 128, 64)] * 3,
            (1, 12, 128, 64),
            (),
            12 * 128 * 128 * (2 * 64 + 5 + 2 * 64),
        ),
        ("aten.max_pool2d.default", [(1, 64, 112, 112)], (1, 64, 56, 56), ((3, 3), (2, 2)), 64 * 56 * 56 * 9),
        ("aten.avg_pool2d.default", [(1, 8, 8, 8)], (1, 8, 4, 4), ((2,),), 8 * 4 * 4 * 4),
        ("aten.adaptive_avg_pool2d.default", [(1, 512, 7, 7)], (1, 512, 1, 1), ((1, 1),), 512 * 49),
        ("aten.softmax.int", [(1, 1000)], (1, 1000), (-1,), 5000),
        ("aten.layer_norm.default", [(1, 197, 192)], (1, 197, 192), ((192,),), 5 * 197 * 192),
        ("aten.relu.default", [(1, 64, 56, 56)], (1, 64, 56, 56), (), 64 * 56 * 56),
        ("aten.add.Tensor", [(1, 64, 56, 56)] * 2, (1, 64, 56, 56), (), 64 * 56 * 56),
        ("aten.mean.dim", [(1, 64, 7, 7)], (1, 64), ((2, 3),), 64 * 49),
        ("aten.never_heard_of.default", [(3, 4)], (3, 5), (), 15),
        # what only moves
        ("aten.view.default", [(1, 512, 1, 1)], (1, 512), ((1, 512),), 0),
        ("aten.clone.default", [(1, 512)], (1, 512), (), 0),
        ("aten.pad.default", [(1, 3, 8, 8)], (1, 3, 10, 10), ((1, 1, 1, 1),), 0),
        ("aten.embedding.default", [(30_000, 384), (1, 128)], (1, 128, 384), (), 0),
    ],
)
def test_flops_of_an_operator(
    target: str, inputs: list[Shape], out: Shape, rest: tuple[Arg, ...], expected: float
) -> None:
    assert flops(target, inputs, out, *rest) == expected


def test_an_lstm_applies_every_matrix_once_a_step() -> None:
    """3 layers, 40 -> 256, 160 steps: 4*256*(40+256) + 2 * 4*256*(256+256) weights, twice a step."""
    shapes: list[Shape] = [(1, 160, 40), (3, 1, 256), (3, 1, 256)]
    for width in (40, 256, 256):
        shapes += [(1024, width), (1024, 256), (1024,), (1024,)]
    specs = {slot: spec(shape) for slot, shape in enumerate([*shapes, (1, 160, 256)])}
    parameters = tuple(Ref(slot) for slot in range(3, 15))
    op = Op(
        "aten.lstm.input",
        (Ref(0), (Ref(1), Ref(2)), parameters, True, 3, 0.0, False, False, True),
        (),
        (15, -1, -1),
    )
    assert op_flops(op, specs) == 2 * 160 * (1024 * 296 + 2 * 1024 * 512) == 432_537_600


@pytest.mark.parametrize(
    ("equation", "inputs", "out", "expected"),
    [
        # DeepFace's locally connected layer: every position has weights of its own
        ("bkp,pok->bop", [(1, 144, 625), (625, 16, 144)], (1, 16, 625), 2 * 144 * 625 * 16),
        ("...ij,...jk->...ik", [(2, 3, 4, 5), (3, 5, 6)], (2, 3, 4, 6), 2 * 2 * 3 * 4 * 5 * 6),
        ("ii->i", [(7, 7)], (7,), 7),
    ],
)
def test_einsum_costs_every_combination_of_its_indexes(
    equation: str, inputs: list[Shape], out: Shape, expected: float
) -> None:
    specs = {slot: spec(shape) for slot, shape in enumerate([*inputs, out])}
    operands = tuple(Ref(slot) for slot in range(len(inputs)))
    assert op_flops(Op("aten.einsum.default", (equation, operands), (), (len(inputs),)), specs) == expected


def test_a_tensor_that_may_not_travel_makes_its_reader_elementwise() -> None:
    op = Op("aten.matmul.default", (Ref(0), Ref(1)), (), (2,))
    assert op_flops(op, {0: spec((4, 4)), 2: spec((4, 4))}) == 16


def symbolic(shape: tuple[int | str, ...], dtype: DType = DType.FLOAT32) -> SymbolicSpec:
    dims = tuple((1, 0) if size == "batch" else (0, int(size)) for size in shape)
    return SymbolicSpec("", dtype, dims, tuple(range(len(shape))))


def small_graph() -> Graph:
    """uint8 image -> depthwise conv + relu, embedding lookup added to its mean, transposed product."""
    image, ids, kernel, bias, table, matrix, turned, conv, relu, pooled, rows, both, out = range(13)
    values = {
        image: symbolic(("batch", 8, 10, 10), DType.UINT8),
        ids: symbolic(("batch",), DType.INT64),
        kernel: symbolic((8, 1, 3, 3)),
        bias: symbolic((8,)),
        table: symbolic((1000, 8)),
        matrix: symbolic((5, 8)),
        turned: symbolic((8, 5)),
        conv: symbolic(("batch", 8, 8, 8)),
        relu: symbolic(("batch", 8, 8, 8)),
        pooled: symbolic(("batch", 8)),
        rows: symbolic(("batch", 8)),
        both: symbolic(("batch", 8)),
        out: symbolic(("batch", 5)),
    }
    units = (
        Unit(
            0,
            "conv2d+relu",
            "conv2d",
            (
                Op("aten.conv2d.default", (Ref(image), Ref(kernel), Ref(bias)), (), (conv,)),
                Op("aten.relu.default", (Ref(conv),), (), (relu,)),
            ),
            (image,),
            (relu,),
        ),
        Unit(
            1,
            "mean",
            "mean",
            (Op("aten.mean.dim", (Ref(relu), (2, 3)), (), (pooled,)),),
            (relu,),
            (pooled,),
        ),
        Unit(
            2,
            "embedding+add",
            "embedding",
            (
                Op("aten.embedding.default", (Ref(table), Ref(ids)), (), (rows,)),
                Op("aten.view.default", (Ref(rows), (BatchInt(1, 0), 8)), (), (both,)),
            ),
            (ids,),
            (both,),
        ),
        Unit(3, "mm", "mm", (Op("aten.mm.default", (Ref(both), Ref(turned)), (), (out,)),), (both,), (out,)),
    )
    preamble = (Op("aten.t.default", (Ref(matrix),), (), (turned,)),)
    weights = {kernel: "kernel", bias: "bias", table: "table", matrix: "matrix"}
    return Graph(
        name="small",
        inputs=(image, ids),
        outputs=(pooled, out),
        input_tree=None,  # type: ignore[arg-type]
        output_tree=None,  # type: ignore[arg-type]
        units=units,
        preamble=preamble,
        values=values,
        weights=weights,
        dynamic_batch=True,
        captured_batch=2,
    )


def test_a_unit_counts_what_crosses_its_border() -> None:
    conv, mean, lookup, product = unit_features(small_graph())
    assert (conv.kind, conv.type, conv.kernel) == ("conv2d", "conv2d depthwise", (3, 3))
    assert conv.flops == 2 * 9 * 8 * 64 + 8 * 64
    assert (conv.bytes_in, conv.bytes_out, conv.weight_bytes) == (800, 2048, 4 * (72 + 8))
    assert (conv.family, mean.family, lookup.family, product.family) == (
        "convolution",
        "reduction",
        "move",
        "product",
    )
    assert conv.calls == 2
    assert (mean.flops, mean.bytes_in, mean.bytes_out, mean.weight_bytes) == (512, 2048, 32, 0)
    # of the table of 1000 rows, one is read
    assert (lookup.flops, lookup.bytes_in, lookup.bytes_out, lookup.weight_bytes) == (0, 8, 32, 32)
    assert lookup.calls == 1
    assert (product.kind, product.type) == ("mm", "mm 1 row")
    # a weight that the preamble transposed is still a weight
    assert (product.flops, product.bytes_in, product.weight_bytes) == (80, 32, 160)


def test_at_a_larger_batch_activations_grow_and_weights_do_not() -> None:
    one = unit_features(small_graph(), batch=1)
    four = unit_features(small_graph(), batch=4)
    for single, batched in zip(one, four, strict=True):
        assert batched.flops == 4 * single.flops
        assert batched.bytes_in == 4 * single.bytes_in
        assert batched.bytes_out == 4 * single.bytes_out
    assert four[0].weight_bytes == one[0].weight_bytes
    assert four[3].weight_bytes == one[3].weight_bytes
    assert four[2].weight_bytes == 4 * one[2].weight_bytes
    assert four[3].type == "mm"
