"""From a traced list of operators to the canonical graph: preamble, units, slots.

Units are fixed by the graph alone, whatever a machine later fuses, so that both sides cut at the same
places.  A unit is one operator with what follows from it for free: its views and copies, and, behind a
convolution or a linear layer, the batch norm, the residual sum and the activation that run in the same
pass.  The residual sum joins the later of its two branches, so every unit reads from earlier ones only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from shared.errors import CaptureError
from shared.graph.ir import UNUSED, Arg, EnumArg, Graph, Op, Ref, Unit
from shared.graph.operators import (
    base_name,
    is_activation,
    is_batch_norm,
    is_fusable,
    is_heavy,
    is_identity,
    is_residual,
    is_view,
)
from shared.graph.tree import Tree
from shared.tensor import SymbolicSpec

__all__ = ["TracedGraph", "TracedOp", "assemble", "unit_flow"]


@dataclass(frozen=True, slots=True)
class TracedOp:
    """``path`` is the module that called it, ``source`` the user's line as ``file:line: text``."""

    op: Op
    path: str
    source: str


@dataclass(slots=True)
class TracedGraph:
    """What translation found, in order of execution, slots in any numbering."""

    inputs: list[int]
    outputs: list[int]
    ops: list[TracedOp]
    values: dict[int, SymbolicSpec]
    weights: dict[int, str]
    grad_weights: set[int]
    layouts: dict[int, tuple[tuple[int, int], ...]]


@dataclass(slots=True)
class _Group:
    ops: list[TracedOp] = field(default_factory=list)
    stage: int = 0
    tail: int = UNUSED


_ANCHOR, _NORM, _SUM, _ACTIVATION, _CLOSED = range(5)


def assemble(
    traced: TracedGraph,
    *,
    name: str,
    input_tree: Tree,
    output_tree: Tree,
    dynamic_batch: bool,
    captured_batch: int,
) -> tuple[Graph, dict[int, str]]:
    """The canonical graph, and for the first output slot of every operator the user's line.

    Raises CaptureError where a value that may have to travel has no wire dtype.
    """
    ops = _without_dead(traced.ops, traced.outputs)
    preamble, rest = _split_preamble(ops, traced.weights)
    _require_wire_types(name, rest, traced)
    groups = _grouped(rest, traced)
    if not any(_works(item.op, traced.values) for group in groups for item in group):
        raise CaptureError(f"cannot capture {name}: it computes nothing from its inputs")
    ordered = [*preamble, *(op for group in groups for op in group)]
    slots = _numbering(traced.inputs, [item.op for item in ordered], traced.weights, traced.outputs)
    renumbered = {id(item): _renumbered(item.op, slots) for item in ordered}
    outputs = tuple(slots[slot] for slot in traced.outputs)
    graph = Graph(
        name=name,
        inputs=tuple(slots[slot] for slot in traced.inputs),
        outputs=outputs,
        input_tree=input_tree,
        output_tree=output_tree,
        units=_units(groups, renumbered, slots, traced, outputs),
        preamble=tuple(renumbered[id(item)] for item in preamble),
        values={new: traced.values[old] for old, new in slots.items() if old in traced.values},
        weights={slots[old]: key for old, key in traced.weights.items() if old in slots},
        dynamic_batch=dynamic_batch,
        captured_batch=captured_batch,
        layouts={slots[old]: layout for old, layout in traced.layouts.items() if old in slots},
        grad_weights=tuple(sorted(slots[old] for old in traced.grad_weights if old in slots)),
    )
    sources = {renumbered[id(item)].written[0]: item.source for item in ordered}
    return graph, sources


def _require_wire_types(name: str, ops: Sequence[TracedOp], traced: TracedGraph) -> None:
    for slot in (*traced.inputs, *traced.weights):
        if slot not in traced.values:
            what = traced.weights.get(slot, "an input")
            raise CaptureError(f"cannot capture {name}: {what} has a dtype that cannot be sent")
    for item in ops:
        if any(slot not in traced.values for slot in item.op.written):
            raise CaptureError(
                f"cannot capture {name}: {item.op.target} makes a tensor of a dtype that cannot be sent "
                f"(complex numbers, 8-bit floats)\n  {item.source}"
            )


def _without_dead(ops: Sequence[TracedOp], outputs: Sequence[int]) -> list[TracedOp]:
    needed = set(outputs)
    kept = []
    for item in reversed(ops):
        if needed.intersection(item.op.written):
            needed.update(item.op.reads)
            kept.append(item)
    alive = []
    for item in reversed(kept):
        outs = tuple(slot if slot in needed else UNUSED for slot in item.op.outputs)
        alive.append(replace(item, op=replace(item.op, outputs=outs)))
    return alive


def _split_preamble(
    ops: Sequence[TracedOp], weights: Mapping[int, str]
) -> tuple[list[TracedOp], list[TracedOp]]:
    known = set(weights)
    preamble, rest = [], []
    for item in ops:
        if known.issuperset(item.op.reads):
            known.update(item.op.written)
            preamble.append(item)
        else:
            rest.append(item)
    return preamble, rest


def _grouped(ops: Sequence[TracedOp], traced: TracedGraph) -> list[list[TracedOp]]:
    """Operators by unit, units in order, everything read before it is written excluded by construction."""
    uses = Counter(slot for item in ops for slot in item.op.reads)
    uses.update(traced.outputs)
    made = {slot for item in ops for slot in item.op.written}
    inputs = set(traced.inputs)
    groups: list[_Group] = []
    owner: dict[int, int] = {}
    floating: dict[int, TracedOp] = {}

    def place(item: TracedOp, index: int) -> None:
        for slot in item.op.reads:  # views of inputs come in with their first reader
            if slot in floating:
                place(floating[slot], index)
        groups[index].ops.append(item)
        for slot in item.op.written:
            owner[slot] = index
            floating.pop(slot, None)

    for item in ops:
        data = [slot for slot in item.op.reads if slot in made or slot in inputs]
        free = len(data) == 1 and (is_view(item.op.target) or _only_copies(item.op, traced.values))
        if free and data[0] in owner:
            place(item, owner[data[0]])
            continue
        if free:
            floating.update(dict.fromkeys(item.op.written, item))
            continue
        joined = _host(item.op, data, groups, owner, uses, traced.values)
        if joined is None:
            joined = len(groups)
            groups.append(_Group(stage=_CLOSED))
        place(item, joined)
        group = groups[joined]
        group.stage = _stage(item.op)
        group.tail = item.op.outputs[0]
    while floating:  # outputs that are views of inputs
        if not groups:
            groups.append(_Group())
        place(next(iter(floating.values())), 0)
    return [group.ops for group in groups]


def _only_copies(op: Op, values: Mapping[int, SymbolicSpec]) -> bool:
    source, result = values.get(op.reads[0]), values.get(op.outputs[0])
    if source is None or result is None:
        return False
    return is_identity(op.target) and source.dtype == result.dtype


def _works(op: Op, values: Mapping[int, SymbolicSpec]) -> bool:
    """Whether it is more than a view or a copy."""
    return not is_view(op.target) and not _only_copies(op, values)


def _stage(op: Op) -> int:
    if is_fusable(op.target):
        return _ANCHOR
    if is_batch_norm(op.target):
        return _NORM
    if is_residual(op.target):
        return _SUM
    return _ACTIVATION if is_activation(op.target) else _CLOSED


def _host(
    op: Op,
    data: Sequence[int],
    groups: Sequence[_Group],
    owner: Mapping[int, int],
    uses: Mapping[int, int],
    values: Mapping[int, SymbolicSpec],
) -> int | None:
    """The unit that ``op`` ends, or None when it starts one of its own."""
    stage = _stage(op)
    if stage not in (_NORM, _SUM, _ACTIVATION) or not isinstance(op.args[0], Ref):
        return None
    if stage == _SUM and not isinstance(op.args[1], Ref):
        return None
    owned = [slot for slot in data if slot in owner]
    if not owned:
        return None
    slot = max(owned, key=lambda item: owner[item])
    group = groups[owner[slot]]
    latest = sum(owner[item] == owner[slot] for item in owned) == 1
    same_size = slot in values and values[slot].dims == values[op.outputs[0]].dims
    if latest and same_size and group.tail == slot and uses[slot] == 1 and group.stage < stage:
        return owner[slot]
    return None


def _numbering(
    inputs: Sequence[int], ops: Sequence[Op], weights: Mapping[int, str], outputs: Sequence[int]
) -> dict[int, int]:
    read = [slot for op in ops for slot in op.reads if slot in weights]
    direct = [slot for slot in outputs if slot in weights]
    written = [slot for op in ops for slot in op.written]
    return {old: new for new, old in enumerate(dict.fromkeys([*inputs, *read, *direct, *written]))}


def _renumbered(op: Op, slots: Mapping[int, int]) -> Op:
    def convert(arg: Arg) -> Arg:
        if isinstance(arg, Ref):
            return Ref(slots[arg.slot])
        return tuple(convert(item) for item in arg) if isinstance(arg, tuple) else arg

    return Op(
        op.target,
        tuple(convert(arg) for arg in op.args),
        tuple((key, convert(arg)) for key, arg in op.kwargs),
        tuple(slots.get(slot, UNUSED) for slot in op.outputs),
    )


def _units(
    groups: Sequence[Sequence[TracedOp]],
    renumbered: Mapping[int, Op],
    slots: Mapping[int, int],
    traced: TracedGraph,
    outputs: Sequence[int],
) -> tuple[Unit, ...]:
    parts = [tuple(renumbered[id(item)] for item in group) for group in groups]
    reads, writes = unit_flow(parts, [slots[slot] for slot in traced.inputs], outputs)
    names = _unique([_name(group) for group in groups])
    return tuple(
        Unit(
            index=index,
            name=names[index],
            kind=_label(_heaviest(groups[index])),
            ops=ops,
            reads=reads[index],
            writes=writes[index],
        )
        for index, ops in enumerate(parts)
    )


def unit_flow(
    unit_ops: Sequence[Sequence[Op]], inputs: Sequence[int], outputs: Sequence[int]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """What each unit reads of inputs and other units, and what it writes for others or the caller."""
    flowing = {*inputs, *(slot for ops in unit_ops for op in ops for slot in op.written)}
    reads = []
    for ops in unit_ops:
        own = {slot for op in ops for slot in op.written}
        reads.append(
            tuple(
                dict.fromkeys(slot for op in ops for slot in op.reads if slot in flowing and slot not in own)
            )
        )
    wanted = {*outputs, *(slot for read in reads for slot in read)}
    writes = [tuple(slot for op in ops for slot in op.written if slot in wanted) for ops in unit_ops]
    return reads, writes


def _heaviest(group: Sequence[TracedOp]) -> TracedOp:
    working = [item for item in group if not is_view(item.op.target)] or list(group)
    return next((item for item in working if is_heavy(item.op.target)), working[0])


def _name(group: Sequence[TracedOp]) -> str:
    heaviest = _heaviest(group)
    free = [item for item in group if is_view(item.op.target) or is_identity(item.op.target)]
    labels = dict.fromkeys(_label(item) for item in group if item is heaviest or item not in free)
    return f"{heaviest.path} {'+'.join(labels)}".strip()


def _label(item: TracedOp) -> str:
    op = item.op
    if is_batch_norm(op.target):
        return "batch_norm"
    if op.target == "aten.hardtanh.default" and op.args[1:] == (0.0, 6.0):
        return "relu6"
    if base_name(op.target) == "_to_copy":
        dtype = dict(op.kwargs).get("dtype")
        return f"to_{dtype.name}" if isinstance(dtype, EnumArg) else "copy"
    return base_name(op.target).strip("_")


def _unique(names: Sequence[str]) -> list[str]:
    total = Counter(names)
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if total[name] == 1 else f"{name} #{seen[name]}")
    return result
