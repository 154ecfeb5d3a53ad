"""A graph from JSON that nobody vouches for: every field is checked before any of it is used.

What passes is a graph in the form that capture gives: operators from the allow-list, slots written once
and before they are read, units that read from earlier ones only.  Sizes are bounded here; that they are
the true ones is for :mod:`shared.graph.bundle` to check, which has torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from shared.errors import BundleError
from shared.graph.allowed import ALLOWED_OPERATORS
from shared.graph.document import FORMAT
from shared.graph.ir import UNUSED, Arg, BatchInt, EnumArg, Graph, Op, Ref, Unit
from shared.graph.operators import is_view
from shared.graph.tree import Tree
from shared.graph.units import unit_flow
from shared.tensor import DType, SymbolicSpec

__all__ = ["MAX_DOCUMENT_BYTES", "parse_graph"]

MAX_DOCUMENT_BYTES = 64 * 2**20
_MAX_OPERATORS = 200_000
_MAX_RANK = 16
_MAX_DEPTH = 4
_MAX_ITEMS = 65_536
_MAX_TREE_DEPTH = 32
_MAX_TENSOR_BYTES = 8 * 2**30
_MAX_BATCH = 65_536
_MAX_SIZE = 2**40
_INT64 = 2**63
_MAX_LIVE = 2_000_000
_MAX_VIEWS_OF_VIEWS = 256

_ENUMS = {
    "dtype": frozenset(dtype.label for dtype in DType),
    "memory_format": frozenset(("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")),
    "layout": frozenset(("strided",)),
    "device": frozenset(("cpu", "cuda")),
}


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that this version does not know is an error: it could change what the graph computes."""


class _Tree(_Strict, frozen=True):
    kind: Literal["leaf", "constant", "tuple", "list", "dict"]
    children: list[_Tree] = []
    keys: list[str] = []
    value: Any = None


class _Op(_Strict, frozen=True):
    target: str
    args: list[Any]
    kwargs: dict[str, Any]
    outputs: list[int]


class _Unit(_Strict, frozen=True):
    name: str
    kind: str
    ops: list[_Op]
    reads: list[int]
    writes: list[int]


class _Document(_Strict, frozen=True):
    format: str
    name: str
    digest: str
    inputs: list[int]
    outputs: list[int]
    input_tree: _Tree
    output_tree: _Tree
    dynamic_batch: bool
    captured_batch: int
    preamble: list[_Op]
    units: list[_Unit]
    values: list[tuple[int, str, str, list[tuple[int, int]], list[int]]]
    layouts: list[tuple[int, list[tuple[int, int]]]]
    grad_weights: list[int]
    weights: list[tuple[int, str]]


def parse_graph(data: bytes) -> Graph:
    """The graph of a bundle's ``graph.json``, with the digest that it claims.

    Raises BundleError naming what is wrong.  Takes time and memory proportional to ``data``.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise BundleError(f"a graph of {len(data)} bytes; {MAX_DOCUMENT_BYTES} is the most there may be")
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"not a graph: {error}") from None
    if document.format != FORMAT:
        raise BundleError(f"a graph in format {document.format!r}; this software reads {FORMAT!r}")
    if not 1 <= document.captured_batch <= _MAX_BATCH:
        raise BundleError(f"a captured batch of {document.captured_batch}")
    if not document.units:
        raise BundleError("a graph without units")
    total = len(document.preamble) + sum(len(unit.ops) for unit in document.units)
    if total > _MAX_OPERATORS:
        raise BundleError(f"{total} operators; {_MAX_OPERATORS} is the most there may be")
    return _assembled(document)


def _assembled(document: _Document) -> Graph:
    weights = dict(document.weights)
    if len(weights) != len(document.weights) or len(set(weights.values())) != len(weights):
        raise BundleError("a weight is listed twice")
    if not set(document.grad_weights) <= weights.keys():
        raise BundleError("grad_weights names slots that are no weights")
    values = _values(document)
    layouts = _layouts(document, values)
    preamble = tuple(_op(op) for op in document.preamble)
    unit_ops = [tuple(_op(op) for op in unit.ops) for unit in document.units]
    _require_order(document, weights, preamble, unit_ops)
    flowing = {*document.inputs, *(slot for ops in unit_ops for op in ops for slot in op.written)}
    missing = sorted((flowing | weights.keys()) - values.keys())
    if missing:
        raise BundleError(f"slot {missing[0]} has no entry in values")
    reads, writes = unit_flow(unit_ops, document.inputs, document.outputs)
    units = []
    for index, unit in enumerate(document.units):
        if not unit.ops or tuple(unit.reads) != reads[index] or tuple(unit.writes) != writes[index]:
            raise BundleError(f"unit {index} ({_shown(unit.name)}) does not read and write what it says")
        units.append(Unit(index, unit.name, unit.kind, unit_ops[index], reads[index], writes[index]))
    _require_bounded_cuts(document.inputs, document.outputs, unit_ops)
    input_tree, output_tree = _tree(document.input_tree), _tree(document.output_tree)
    if input_tree.leaf_count != len(document.inputs) or output_tree.leaf_count != len(document.outputs):
        raise BundleError("a tree has another number of leaves than the graph has inputs or outputs")
    if [child.kind for child in input_tree.children] != ["tuple", "dict"]:
        raise BundleError("input_tree is not a pair of positional and keyword arguments")
    return Graph(
        name=document.name,
        inputs=tuple(document.inputs),
        outputs=tuple(document.outputs),
        input_tree=input_tree,
        output_tree=output_tree,
        units=tuple(units),
        preamble=preamble,
        values=values,
        weights=weights,
        dynamic_batch=document.dynamic_batch,
        captured_batch=document.captured_batch,
        grad_weights=tuple(document.grad_weights),
        layouts=layouts,
        digest=document.digest,
    )


def _values(document: _Document) -> dict[int, SymbolicSpec]:
    values = {}
    for slot, name, label, dims, order in document.values:
        if label not in _ENUMS["dtype"]:
            raise BundleError(f"slot {slot} has the dtype {_shown(label)}")
        if len(dims) > _MAX_RANK or sorted(order) != list(range(len(dims))):
            raise BundleError(f"slot {slot} has {len(dims)} dimensions in order {order[:_MAX_RANK]}")
        spec = SymbolicSpec(name, DType.from_label(label), tuple(dims), tuple(order))
        for batch in {document.captured_batch, 2 if document.dynamic_batch else document.captured_batch}:
            sizes = [per * batch + fixed for per, fixed in dims]
            if any(per < 0 or size < 0 for (per, _), size in zip(dims, sizes, strict=True)):
                raise BundleError(f"slot {slot} has a negative size")
            # An empty tensor counts by its other dimensions: strides are computed from them.
            if math.prod(size or 1 for size in sizes) * spec.dtype.itemsize > _MAX_TENSOR_BYTES:
                raise BundleError(f"slot {slot} is larger than {_MAX_TENSOR_BYTES} bytes")
        if not document.dynamic_batch and any(per for per, _ in dims):
            raise BundleError(f"slot {slot} depends on the batch size, which is fixed")
        if slot in values:
            raise BundleError(f"slot {slot} is described twice")
        values[slot] = spec
    return values


def _layouts(
    document: _Document, values: Mapping[int, SymbolicSpec]
) -> dict[int, tuple[tuple[int, int], ...]]:
    """Offsets and strides; what they span is memory, so it is bounded like a tensor."""
    for slot, pairs in document.layouts:
        spec = values.get(slot)
        if spec is None or len(pairs) != len(spec.dims) + 1:
            raise BundleError(f"slot {slot} has a layout of {len(pairs)} numbers")
        sizes = spec.at(document.captured_batch).shape
        steps = [per * document.captured_batch + fixed for per, fixed in pairs[1:]]
        span = sum(step * (size - 1) for step, size in zip(steps, sizes, strict=True))
        if min(min(pair) for pair in pairs) < 0 or span * spec.dtype.itemsize > _MAX_TENSOR_BYTES:
            raise BundleError(f"slot {slot} has a layout that is negative or too large")
    return {slot: tuple(pairs) for slot, pairs in document.layouts}


def _require_order(
    document: _Document,
    weights: Iterable[int],
    preamble: Sequence[Op],
    unit_ops: Sequence[Sequence[Op]],
) -> None:
    """Slots are 0, 1, 2, ..., each written once, and before it is read."""
    constant = set(weights)
    written = [*document.inputs, *constant]
    for op in preamble:
        _require_known(op, constant)
        constant.update(op.written)
        written.extend(op.written)
    known = constant | set(document.inputs)
    for ops in unit_ops:
        for op in ops:
            _require_known(op, known)
            known.update(op.written)
            written.extend(op.written)
    if sorted(written) != list(range(len(written))):
        raise BundleError("slots are not numbered 0, 1, 2, ... with each written once")
    if not set(document.outputs) <= known:
        raise BundleError("an output is a slot that nothing writes")


def _require_bounded_cuts(
    inputs: Iterable[int], outputs: Iterable[int], unit_ops: Sequence[Sequence[Op]]
) -> None:
    """Every cut lists what is alive there, and a view keeps alive what it is a view of.

    So the lists may grow with the square of the document, and the search for what to send goes as deep as
    views are taken of views.  Both are far below these bounds in any network.
    """
    born = dict.fromkeys(inputs, 0)
    root = {slot: slot for slot in born}
    depth = dict.fromkeys(born, 0)
    last = dict(born)
    for index, ops in enumerate(unit_ops):
        for op in ops:
            reads = [slot for slot in op.reads if slot in born]
            for slot in reads:
                last[slot] = last[root[slot]] = index
            view = is_view(op.target) and len(reads) == 1
            for slot in op.written:
                born[slot] = last[slot] = index
                root[slot] = root[reads[0]] if view else slot
                depth[slot] = depth[reads[0]] + 1 if view else 0
                if depth[slot] > _MAX_VIEWS_OF_VIEWS:
                    raise BundleError(f"views of views, more than {_MAX_VIEWS_OF_VIEWS} deep")
    for slot in set(outputs) & born.keys():
        last[slot] = last[root[slot]] = len(unit_ops)
    live = sum(max(last[slot], last[root[slot]]) - first for slot, first in born.items())
    if live > _MAX_LIVE:
        raise BundleError(f"{live} values are alive over all cuts; {_MAX_LIVE} is the most there may be")


def _require_known(op: Op, known: set[int]) -> None:
    unknown = [slot for slot in op.reads if slot not in known]
    if unknown:
        raise BundleError(f"{op.target} reads slot {unknown[0]} before it is written")
    if not op.written:
        raise BundleError(f"{op.target} writes nothing")


def _op(op: _Op) -> Op:
    if op.target not in ALLOWED_OPERATORS:
        raise BundleError(f"operator {_shown(op.target)} is not allowed in a bundle")
    if any(slot < UNUSED for slot in op.outputs) or len(op.outputs) > _MAX_ITEMS:
        raise BundleError(f"{op.target} has outputs {op.outputs[:8]}")
    return Op(
        op.target,
        tuple(_arg(arg, op.target) for arg in op.args),
        tuple((key, _arg(op.kwargs[key], op.target)) for key in sorted(op.kwargs)),
        tuple(op.outputs),
    )


def _arg(arg: Any, target: str, depth: int = 0) -> Arg:
    if isinstance(arg, dict):
        return _tagged(arg, target)
    if isinstance(arg, list):
        if depth >= _MAX_DEPTH or len(arg) > _MAX_ITEMS:
            raise BundleError(f"an argument of {target} is nested too deeply or too long")
        return tuple(_arg(item, target, depth + 1) for item in arg)
    if isinstance(arg, int) and not -_INT64 <= arg < _INT64:
        raise BundleError(f"an argument of {target} is beyond 64 bits")
    if isinstance(arg, str) and len(arg) > 64:
        raise BundleError(f"an argument of {target} is a string of {len(arg)} characters")
    return arg  # type: ignore[no-any-return]  # JSON has no other types


def _tagged(arg: dict[str, Any], target: str) -> Arg:
    match arg:
        case {"slot": int(slot), **rest} if not rest and type(slot) is int and slot >= 0:
            return Ref(slot)
        case {"batch": [int(per), int(fixed)], **rest} if not rest and max(abs(per), abs(fixed)) < _MAX_SIZE:
            return BatchInt(per, fixed)
        case {"float": "inf" | "-inf" | "nan" as text, **rest} if not rest:
            return float(text)
        case {**rest} if len(rest) == 1:
            ((kind, name),) = rest.items()
            if kind in _ENUMS and isinstance(name, str) and name in _ENUMS[kind]:
                return EnumArg(kind, name)  # type: ignore[arg-type]
    raise BundleError(f"an argument of {target} is {_shown(arg)}")


def _tree(tree: _Tree, depth: int = 0) -> Tree:
    if depth > _MAX_TREE_DEPTH:
        raise BundleError("a tree is nested too deeply")
    if len(tree.keys) != (len(tree.children) if tree.kind == "dict" else 0):
        raise BundleError(f"a {tree.kind} has {len(tree.keys)} keys and {len(tree.children)} children")
    if len(set(tree.keys)) != len(tree.keys) or (tree.kind in ("leaf", "constant") and tree.children):
        raise BundleError(f"a {tree.kind} has repeated keys or children that it cannot have")
    value = _arg(tree.value, "a tree")
    if not isinstance(value, (bool, int, float, str, type(None))):
        raise BundleError(f"a constant in a tree is {_shown(tree.value)}")
    return Tree(tree.kind, tuple(_tree(child, depth + 1) for child in tree.children), tuple(tree.keys), value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
