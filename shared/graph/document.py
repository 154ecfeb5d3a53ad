"""A graph as JSON: plain lists and maps, the same bytes for the same graph, checked when read.

Constants are written as themselves; what JSON has no form for is a map with one key: ``{"slot": 3}``,
``{"batch": [per_batch, fixed]}``, ``{"dtype": "float32"}`` (or memory_format, layout, device) and
``{"float": "-inf"}``.
"""

from __future__ import annotations

import json
import math
from typing import Any

from shared.graph.ir import Arg, BatchInt, EnumArg, Graph, Op, Ref
from shared.graph.tree import Tree
from shared.tensor import SymbolicSpec

__all__ = ["FORMAT", "canonical_json", "graph_document"]

FORMAT = "suture-graph-1"


def graph_document(graph: Graph) -> dict[str, Any]:
    """Everything in ``graph`` but its name and digest, which are not part of what it computes."""
    return {
        "format": FORMAT,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "input_tree": _tree(graph.input_tree),
        "output_tree": _tree(graph.output_tree),
        "dynamic_batch": graph.dynamic_batch,
        "captured_batch": graph.captured_batch,
        "preamble": [_op(op) for op in graph.preamble],
        "units": [
            {
                "name": unit.name,
                "kind": unit.kind,
                "ops": [_op(op) for op in unit.ops],
                "reads": list(unit.reads),
                "writes": list(unit.writes),
            }
            for unit in graph.units
        ],
        "values": [[slot, *_spec(spec)] for slot, spec in sorted(graph.values.items())],
        "layouts": [[slot, [list(pair) for pair in pairs]] for slot, pairs in sorted(graph.layouts.items())],
        "grad_weights": list(graph.grad_weights),
        "weights": [[slot, key] for slot, key in sorted(graph.weights.items())],
    }


def canonical_json(document: object) -> bytes:
    """Sorted keys, no spaces, ASCII; the digest is over these bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _op(op: Op) -> dict[str, Any]:
    return {
        "target": op.target,
        "args": [_arg(arg) for arg in op.args],
        "kwargs": {key: _arg(arg) for key, arg in op.kwargs},
        "outputs": list(op.outputs),
    }


def _arg(arg: Arg) -> Any:
    if isinstance(arg, Ref):
        return {"slot": arg.slot}
    if isinstance(arg, BatchInt):
        return {"batch": [arg.per_batch, arg.fixed]}
    if isinstance(arg, EnumArg):
        return {arg.kind: arg.name}
    if isinstance(arg, tuple):
        return [_arg(item) for item in arg]
    if isinstance(arg, float) and not math.isfinite(arg):
        return {"float": repr(arg)}
    return arg


def _tree(tree: Tree) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": tree.kind}
    if tree.children:
        document["children"] = [_tree(child) for child in tree.children]
    if tree.keys:
        document["keys"] = list(tree.keys)
    if tree.kind == "constant":
        document["value"] = _arg(tree.value)
    return document


def _spec(spec: SymbolicSpec) -> list[Any]:
    return [spec.name, spec.dtype.label, [list(dim) for dim in spec.dims], list(spec.order)]
