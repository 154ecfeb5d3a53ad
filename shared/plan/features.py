"""What a unit costs in arithmetic and in memory, read off the graph: the predictors' regressors.

A multiply-accumulate is two FLOPs, as everywhere in the literature; biases are left out.  Elementwise work
counts one FLOP an element, softmax and normalisation five: beside a convolution they vanish, alone they
are bound by memory, which the bytes describe.  Nothing here runs or imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shared.graph.ir import Arg, Graph, Op, Ref, Unit
from shared.graph.operators import base_name, is_identity, is_view
from shared.tensor import TensorSpec

__all__ = ["UnitFeatures", "op_flops", "unit_features"]

Specs = Mapping[int, TensorSpec]


@dataclass(frozen=True, slots=True)
class UnitFeatures:
    """One unit at one batch size.

    ``type`` is what the predictors regress by: the unit's kind, with convolutions and linear layers told
    apart by how they use memory (``conv2d``, ``conv2d 1x1``, ``conv2d depthwise``, ``conv2d grouped``;
    ``linear``, ``linear 1 row``).  ``family`` is what a rare type falls back on: types that are bound by
    the same thing.  ``bytes_in`` and ``bytes_out`` are activations that cross the unit's border,
    ``weight_bytes`` the parameters that it reads (of an embedding the rows that it looks up), ``calls`` the
    operators that do work of their own, ``kernel`` that of a convolution or pooling, () elsewhere.
    """

    index: int
    kind: str
    type: str
    family: str
    flops: float
    bytes_in: int
    bytes_out: int
    weight_bytes: int
    calls: int
    kernel: tuple[int, ...]


def unit_features(graph: Graph, batch: int = 1) -> tuple[UnitFeatures, ...]:
    """The features of every unit of ``graph``, in order."""
    specs = {slot: spec.at(batch) for slot, spec in graph.values.items()}
    # What the preamble makes of weights alone (a transposed matrix, say) is a weight to whoever reads it.
    constants = set(graph.weights)
    for op in graph.preamble:
        constants.update(slot for slot in op.written if _is_fixed(graph, slot))
    return tuple(_features_of(unit, specs, constants) for unit in graph.units)


def _is_fixed(graph: Graph, slot: int) -> bool:
    spec = graph.values.get(slot)
    return spec is not None and all(per_batch == 0 for per_batch, _ in spec.dims)


def _features_of(unit: Unit, specs: Specs, constants: set[int]) -> UnitFeatures:
    written = {slot for op in unit.ops for slot in op.written}
    read: set[int] = set()
    weight_bytes = 0
    weights_seen: set[int] = set()
    for op in unit.ops:
        for slot in op.reads:
            if slot in constants and slot not in weights_seen:
                weights_seen.add(slot)
                weight_bytes += _bytes(op.written[0] if _looks_up(op, slot) else slot, specs)
            elif slot not in constants and slot not in written:
                read.add(slot)
    heaviest = max(unit.ops, key=lambda op: (base_name(op.target) == unit.kind, op_flops(op, specs)))
    return UnitFeatures(
        index=unit.index,
        kind=unit.kind,
        type=_type(unit, heaviest, specs),
        family=_FAMILIES.get(base_name(heaviest.target), "elementwise"),
        flops=sum(op_flops(op, specs) for op in unit.ops),
        bytes_in=sum(_bytes(slot, specs) for slot in read),
        bytes_out=sum(_bytes(slot, specs) for slot in unit.writes),
        weight_bytes=weight_bytes,
        calls=max(1, sum(not is_view(op.target) and not is_identity(op.target) for op in unit.ops)),
        kernel=_kernel(heaviest, specs),
    )


def _bytes(slot: int, specs: Specs) -> int:
    return specs[slot].nbytes if slot in specs else 0


def _looks_up(op: Op, slot: int) -> bool:
    return base_name(op.target) == "embedding" and op.args[0] == Ref(slot) and bool(op.written)


def _type(unit: Unit, op: Op, specs: Specs) -> str:
    if base_name(op.target) in ("linear", "addmm", "mm") and op.written and op.written[0] in specs:
        result = specs[op.written[0]]
        return f"{unit.kind} 1 row" if result.numel == result.shape[-1] else unit.kind
    if not unit.kind.startswith("conv"):
        return unit.kind
    channels, groups = _channels_and_groups(op, specs)
    if groups > 1:
        return f"{unit.kind} {'depthwise' if groups == channels else 'grouped'}"
    return f"{unit.kind} 1x1" if math.prod(_kernel(op, specs)) == 1 else unit.kind


def _channels_and_groups(op: Op, specs: Specs) -> tuple[int, int]:
    """From the shapes, which every overload of convolution has in common; a batch is optional."""
    weight = _spec(op, 1, specs).shape
    channels = _spec(op, 0, specs).shape[1 - len(weight)]
    return channels, 1 if _is_transposed(op) else channels // weight[1]


def _is_transposed(op: Op) -> bool:
    name = base_name(op.target)
    return name.startswith("conv_transpose") or (name == "convolution" and op.args[6] is True)


def _kernel(op: Op, specs: Specs) -> tuple[int, ...]:
    name = base_name(op.target)
    if name.startswith("conv"):
        return _spec(op, 1, specs).shape[2:]
    return _window(op, specs) if name.startswith(("max_pool", "avg_pool")) else ()


def _window(op: Op, specs: Specs) -> tuple[int, ...]:
    """The window of a pooling in full: torch lets one number stand for all dimensions."""
    size = op.args[1]
    sizes = tuple(item for item in (size if isinstance(size, tuple) else (size,)) if isinstance(item, int))
    rank = int(base_name(op.target).partition("pool")[2][0])
    return sizes * rank if len(sizes) == 1 else sizes


def _spec(op: Op, position: int, specs: Specs) -> TensorSpec:
    """The spec of a tensor argument.  Raises TypeError when the argument is something else."""
    arg = op.args[position]
    if not isinstance(arg, Ref):
        raise TypeError(f"argument {position} of {op.target} is not a tensor but {arg!r}")
    return specs[arg.slot]


def op_flops(op: Op, specs: Specs) -> float:
    """FLOPs of one operator; ``specs`` holds the specs of what it reads and writes, at one batch size.

    Operators that move data and compute nothing cost 0; one that this module does not know costs one FLOP
    for each element of its result.
    """
    if is_view(op.target) or is_identity(op.target):
        return 0.0
    rule = _RULES.get(base_name(op.target))
    # A tensor of a dtype that may not travel (complex, say) has no spec.
    if rule is None or any(slot not in specs for slot in op.reads):
        return _elementwise(op, specs)
    return rule(op, specs)


def _out(op: Op, specs: Specs) -> int:
    """Elements of the first result; of an operator whose results are all unused, 0."""
    return specs[op.written[0]].numel if op.written and op.written[0] in specs else 0


def _elementwise(op: Op, specs: Specs) -> float:
    return float(_out(op, specs))


def _nothing(op: Op, specs: Specs) -> float:
    return 0.0


def _per_input_element(cost: float) -> Callable[[Op, Specs], float]:
    return lambda op, specs: cost * _spec(op, 0, specs).numel


def _convolution(op: Op, specs: Specs) -> float:
    weight = _spec(op, 1, specs)
    # Each output element sums over the kernel and the input channels of its group; transposed, each
    # input element is spread over the kernel and the output channels of its group.
    elements = _spec(op, 0, specs).numel if _is_transposed(op) else _out(op, specs)
    return 2.0 * elements * math.prod(weight.shape[1:])


def _product(position: int) -> Callable[[Op, Specs], float]:
    """Matrix products whose left factor is the argument at ``position``."""
    return lambda op, specs: 2.0 * _out(op, specs) * _spec(op, position, specs).shape[-1]


def _bilinear(op: Op, specs: Specs) -> float:
    return 2.0 * _out(op, specs) * _spec(op, 0, specs).shape[-1] * _spec(op, 1, specs).shape[-1]


def _attention(op: Op, specs: Specs) -> float:
    """Scores, softmax and the weighted sum of ``softmax(q k^T) v``."""
    query, key, value = (_spec(op, position, specs) for position in range(3))
    scores = query.numel // query.shape[-1] * key.shape[-2]
    return scores * (2.0 * query.shape[-1] + 5.0 + 2.0 * value.shape[-1])


def _recurrent(op: Op, specs: Specs) -> float:
    """Every weight matrix is applied once for each step of each sequence."""
    sequence = _spec(op, 0, specs)
    steps = sequence.numel // sequence.shape[-1]
    parameters = op.args[2]
    matrices = sum(
        specs[ref.slot].numel
        for ref in (parameters if isinstance(parameters, tuple) else ())
        if isinstance(ref, Ref) and len(specs[ref.slot].shape) == 2
    )
    return 2.0 * steps * matrices


def _pool(op: Op, specs: Specs) -> float:
    return float(_out(op, specs) * math.prod(_window(op, specs)))


def _einsum(op: Op, specs: Specs) -> float:
    """Every combination of all indexes costs a product for each factor and a sum."""
    equation, operands = op.args[0], op.args[1]
    if not isinstance(equation, str) or not isinstance(operands, tuple):
        raise TypeError(f"not an equation and its operands: {op.args}")
    sizes: dict[str, int] = {}
    for term, operand in zip(equation.replace(" ", "").split("->")[0].split(","), operands, strict=True):
        for label, size in zip(
            _labels(term, _shape_of(operand, specs)), _shape_of(operand, specs), strict=True
        ):
            sizes[label] = max(size, sizes.get(label, 1))
    return float(len(operands) * math.prod(sizes.values()))


def _shape_of(arg: Arg, specs: Specs) -> tuple[int, ...]:
    if not isinstance(arg, Ref):
        raise TypeError(f"not a tensor: {arg!r}")
    return specs[arg.slot].shape


def _labels(term: str, shape: tuple[int, ...]) -> list[str]:
    """One label a dimension; an ellipsis stands for as many as are left, aligned to the right."""
    before, dots, after = term.partition("...")
    if not dots:
        return list(term)
    wide = len(shape) - len(before) - len(after)
    return [*before, *(f"...{wide - place}" for place in range(wide)), *after]


_TABLE: tuple[tuple[str, str, Callable[[Op, Specs], float]], ...] = (
    (
        "convolution",
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution",
        _convolution,
    ),
    ("product", "linear matmul mm bmm", _product(0)),
    ("product", "addmm baddbmm", _product(1)),
    ("product", "bilinear", _bilinear),
    ("product", "einsum", _einsum),
    ("attention", "scaled_dot_product_attention", _attention),
    ("recurrent", "lstm gru rnn_relu rnn_tanh", _recurrent),
    ("pool", "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d", _pool),
    ("reduction", "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d", _per_input_element(1.0)),
    ("reduction", "sum mean amax amin max min argmax argmin var std cumsum", _per_input_element(1.0)),
    ("reduction", "norm linalg_vector_norm", _per_input_element(2.0)),
    ("normalisation", "softmax _softmax log_softmax _log_softmax", _per_input_element(5.0)),
    ("normalisation", "batch_norm _native_batch_norm_legit_no_training", _per_input_element(5.0)),
    ("normalisation", "native_batch_norm layer_norm native_layer_norm", _per_input_element(5.0)),
    ("normalisation", "group_norm native_group_norm", _per_input_element(5.0)),
    ("move", "arange cat constant_pad_nd copy embedding fill flip full full_like gather im2col", _nothing),
    ("move", "index index_select ones ones_like pad pixel_shuffle repeat repeat_interleave", _nothing),
    ("move", "roll stack tril triu zeros zeros_like", _nothing),
)

_RULES = {name: rule for _, names, rule in _TABLE for name in names.split()}
_FAMILIES = {name: family for family, names, _ in _TABLE for name in names.split()}
