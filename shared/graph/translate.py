"""From torch's exported program to traced operators: sizes made linear in the batch, refusals located."""

from __future__ import annotations

import operator
from typing import Any, NoReturn

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from shared.errors import CaptureError
from shared.graph.calls import draws_random_numbers
from shared.graph.ir import UNUSED, Arg, BatchInt, EnumArg, Op, Ref
from shared.graph.operators import base_name, is_view
from shared.graph.source_lines import module_path, network_path, user_line
from shared.graph.units import TracedGraph, TracedOp
from shared.tensor import DType, SymbolicSpec, order_from_strides, strides_from_order

__all__ = ["NonlinearSizeError", "translate"]

_BATCH = sympy.Symbol("batch", integer=True, positive=True)
_SAMPLE_BATCH = 7
_FILLS = {"zeros_like": 0, "ones_like": 1, "new_zeros": 0, "new_ones": 1}
_IGNORED = {"pin_memory"}
_IDENTITIES = frozenset(("alias", "clone", "detach", "dropout", "lift_fresh_copy", "_to_copy", "contiguous"))


class NonlinearSizeError(CaptureError):
    """A size is no linear function of the batch size; at one fixed batch size it is a number."""


def translate(
    program: ExportedProgram, input_names: list[str]
) -> tuple[TracedGraph, dict[str, torch.Tensor]]:
    """The operators of a decomposed program and the weights that it reads.

    Raises CaptureError, with the reason and the user's line, for what cannot be cut.
    """
    return _Translation(program, input_names).run()


class _Translation:
    def __init__(self, program: ExportedProgram, input_names: list[str]) -> None:
        self.program = program
        self.input_names = input_names
        self.slots: dict[fx.Node, int] = {}
        self.lists: dict[fx.Node, list[int]] = {}
        self.values: dict[int, SymbolicSpec] = {}
        self.weights: dict[int, str] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.symbols: dict[sympy.Symbol, sympy.Symbol] = {}
        self.sizes: dict[Any, tuple[int, int] | None] = {}
        self.traced: list[TracedOp] = []
        self.inputs: list[int] = []
        self.layouts: dict[int, tuple[tuple[int, int], ...]] = {}
        self.count = 0

    def run(self) -> tuple[TracedGraph, dict[str, torch.Tensor]]:
        self._refuse_mutation()
        signature = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        outputs: list[int] = []
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, signature[node.name])
            elif node.op == "output":
                outputs = [self._output(node, value) for value in node.args[0]]
            elif node.op == "call_function":
                self._call(node)
            else:
                _refuse(node, "control flow or a nested graph cannot be cut")
        needs_grad = {slot for slot, key in self.weights.items() if self.tensors[key].requires_grad}
        traced = TracedGraph(
            self.inputs, outputs, self.traced, self.values, self.weights, needs_grad, self.layouts
        )
        return traced, self.tensors

    def _refuse_mutation(self) -> None:
        signature = self.program.graph_signature
        nodes = {node.name: node for node in self.program.graph.nodes}
        for spec in signature.output_specs:
            if spec.kind in (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT):
                continue
            node = nodes[spec.arg.name]
            if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
                name = network_path(spec.target or "")
                _refuse(
                    node,
                    f"it changes its own state ({name}); pass the state in as an input and return it instead",
                )
            _refuse(node, "it changes one of its inputs in place; work on a copy, such as x = x.clone()")

    def _slot(self) -> int:
        self.count += 1
        return self.count - 1

    def _placeholder(self, node: fx.Node, spec: Any) -> None:
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            _refuse(node, f"an argument of type {type(value).__name__} cannot be captured")
        slot = self.slots[node] = self._slot()
        if spec.kind == InputKind.USER_INPUT:
            if value.dim() and isinstance(value.shape[0], torch.SymInt):
                for symbol in value.shape[0].node.expr.free_symbols:
                    self.symbols[symbol] = _BATCH
            name = self.input_names[len(self.inputs)]
            self.inputs.append(slot)
            self._describe(slot, value, name, node)
            return
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            _refuse(node, f"an input of kind {spec.kind.name.lower()} cannot be captured")
        tensor = self.program.state_dict.get(spec.target)
        if tensor is None:
            tensor = self.program.constants[spec.target]
        key = network_path(spec.target) or spec.target
        self.slots[node] = self._weight(slot, key, tensor, node)

    def _weight(self, slot: int, key: str, tensor: torch.Tensor, node: fx.Node) -> int:
        for other, known_key in self.weights.items():
            known = self.tensors[known_key]
            if _same_memory(known, tensor):
                return other
        if not _is_dense(tensor):
            tensor = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        self.weights[slot] = key
        self.tensors[key] = tensor
        self._describe(slot, tensor, key, node)
        return slot

    def _call(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if node.target is operator.getitem and node.args[0] in self.lists:
            self.slots[node] = self.lists[node.args[0]][node.args[1]]  # type: ignore[index]
            return
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            _refuse(node, f"{node.target.name()} (control flow or a region with other rules) cannot be cut")
        tensors = value if isinstance(value, (tuple, list)) else [value]
        if not any(isinstance(item, torch.Tensor) for item in tensors):
            if str(node.target) in ("aten.item.default", "aten._local_scalar_dense.default"):
                _refuse(node, "it reads a number out of a tensor, so what follows would depend on the data")
            return  # integers are functions of the batch size, assertions hold for every capture
        if not isinstance(node.target, torch._ops.OpOverload):
            _refuse(node, f"{node.target} is not an operator")
        self._refuse_operator(node, node.target)
        same = self._identity(node, value)
        if same is not None:
            self.slots[node] = same
            return
        outputs = []
        for item in tensors:
            slot = UNUSED
            if isinstance(item, torch.Tensor):
                slot = self._slot()
                self._describe(slot, item, f"{module_path(node)} {base_name(str(node.target))}".strip(), node)
                if is_view(str(node.target)):
                    self._note_layout(slot, item)
            outputs.append(slot)
        if isinstance(value, torch.Tensor):
            self.slots[node] = outputs[0]
        else:
            self.lists[node] = outputs
        op = (
            self._filled(node, value, outputs)
            or self._copied(node, outputs)
            or Op(
                str(node.target),
                tuple(self._arg(arg, node) for arg in node.args),
                tuple(
                    (key, self._arg(node.kwargs[key], node)) for key in sorted(node.kwargs.keys() - _IGNORED)
                ),
                tuple(outputs),
            )
        )
        if draws_random_numbers(op):
            _refuse(node, f"{op.target} draws random numbers, so device and cloud would differ")
        self.traced.append(TracedOp(op, module_path(node), user_line(node)))

    def _refuse_operator(self, node: fx.Node, target: torch._ops.OpOverload) -> None:
        if target._schema.is_mutable:
            _refuse(node, f"{target} changes a tensor in place")
        if "as_strided" in str(target):
            _refuse(node, f"{target} reads memory outside of the tensor that it is given")

    def _identity(self, node: fx.Node, value: Any) -> int | None:
        """The slot that ``node`` merely repeats: same dtype, same strides, no arithmetic."""
        if base_name(str(node.target)) not in _IDENTITIES or not isinstance(value, torch.Tensor):
            return None
        source = node.args[0]
        if not isinstance(source, fx.Node) or source not in self.slots:
            return None
        before = source.meta["val"]
        same = (
            before.dtype == value.dtype
            and tuple(map(self._linear, before.shape)) == tuple(map(self._linear, value.shape))
            and tuple(map(self._linear, before.stride())) == tuple(map(self._linear, value.stride()))
        )
        return self.slots[source] if same else None

    def _filled(self, node: fx.Node, value: Any, outputs: list[int]) -> Op | None:
        """``zeros_like(x)`` and its kind need x's size only, which is known without x."""
        name = base_name(str(node.target))
        if name not in (*_FILLS, "full_like", "new_full") or not isinstance(value, torch.Tensor):
            return None
        spec = self.values.get(outputs[0])
        if spec is None or spec.order != tuple(range(len(spec.order))):
            return None
        fill = _FILLS.get(name)
        if fill is None:
            fill = node.args[1 if name == "full_like" else 2]  # type: ignore[assignment]
        size = tuple(_integer(*dim) for dim in spec.dims)
        dtype = EnumArg("dtype", spec.dtype.label)
        kwargs = (("device", EnumArg("device", value.device.type)), ("dtype", dtype))
        return Op("aten.full.default", (size, self._arg(fill, node)), kwargs, tuple(outputs))

    def _copied(self, node: fx.Node, outputs: list[int]) -> Op | None:
        """``copy(x, y)``, what writing y into a view becomes, needs x for its size only."""
        source = node.args[1] if str(node.target) == "aten.copy.default" else None
        if not isinstance(source, fx.Node) or source not in self.slots:
            return None
        before, after = self.values.get(self.slots[source]), self.values.get(outputs[0])
        if before is None or after is None or (before.dims, before.dtype) != (after.dims, after.dtype):
            return None
        if after.order != tuple(range(len(after.order))):
            return None
        kwargs = (("memory_format", EnumArg("memory_format", "contiguous_format")),)
        return Op("aten.clone.default", (Ref(self.slots[source]),), kwargs, tuple(outputs))

    def _arg(self, arg: Any, node: fx.Node) -> Arg:
        if isinstance(arg, fx.Node):
            if arg in self.slots:
                return Ref(self.slots[arg])
            if arg in self.lists:
                return tuple(Ref(slot) for slot in self.lists[arg])
            return self._arg(arg.meta.get("val"), node)
        if isinstance(arg, torch.SymInt):
            return _integer(*self._size(arg, node))
        if isinstance(arg, (torch.SymFloat, torch.SymBool)):
            raise NonlinearSizeError(_reason(node, f"an argument is computed from the batch size ({arg})"))
        if isinstance(arg, (bool, int, float, str)) or arg is None:
            return arg
        if isinstance(arg, (tuple, list)):
            return tuple(self._arg(item, node) for item in arg)
        for kind, cls in (
            ("dtype", torch.dtype),
            ("memory_format", torch.memory_format),
            ("layout", torch.layout),
        ):
            if isinstance(arg, cls):
                return EnumArg(kind, str(arg).removeprefix("torch."))  # type: ignore[arg-type]
        if isinstance(arg, torch.device):
            return EnumArg("device", arg.type)
        _refuse(node, f"an argument of type {type(arg).__name__} cannot be captured")

    def _output(self, node: fx.Node, value: Any) -> int:
        if isinstance(value, fx.Node) and value in self.slots:
            return self.slots[value]
        where = value if isinstance(value, fx.Node) else node
        _refuse(where, "a result that is not a tensor cannot be captured")

    def _describe(self, slot: int, value: torch.Tensor, name: str, node: fx.Node) -> None:
        dims = tuple(self._size(size, node) for size in value.shape)
        strides = tuple(self._at_sample(stride) for stride in value.stride())
        try:
            dtype = DType.from_label(str(value.dtype))
        except KeyError:
            return  # no wire dtype: allowed in the preamble, checked where it would cross a cut
        self.values[slot] = SymbolicSpec(name, dtype, dims, order_from_strides(strides))

    def _note_layout(self, slot: int, value: torch.Tensor) -> None:
        """Offset and strides of a view that is not dense from the start of its memory."""
        numbers = (value.storage_offset(), *value.stride())
        offset, *strides = map(self._at_sample, numbers)
        shape = tuple(map(self._at_sample, value.shape))
        dense = strides_from_order(shape, order_from_strides(tuple(strides)))
        if offset == 0 and all(size == 1 or a == b for size, a, b in zip(shape, strides, dense, strict=True)):
            return
        pairs = [self._pair(number) for number in numbers]
        if all(pair is not None for pair in pairs):
            self.layouts[slot] = tuple(pair for pair in pairs if pair is not None)

    def _linear(self, size: int | torch.SymInt) -> Any:
        return size.node.expr.xreplace(self.symbols) if isinstance(size, torch.SymInt) else size

    def _at_sample(self, stride: int | torch.SymInt) -> int:
        """Strides need not be linear: only their order is kept, which no batch size above 1 changes."""
        if not isinstance(stride, torch.SymInt):
            return int(stride)
        return int(stride.node.expr.xreplace(self.symbols).subs(_BATCH, _SAMPLE_BATCH))

    def _size(self, size: int | torch.SymInt, node: fx.Node) -> tuple[int, int]:
        pair = self._pair(size)
        if pair is None:
            assert isinstance(size, torch.SymInt)
            if size.node.expr.free_symbols - self.symbols.keys():
                _refuse(node, "the size of a tensor depends on the data, so no plan can know it")
            raise NonlinearSizeError(_reason(node, f"a size is not linear in the batch size ({size})"))
        return pair

    def _pair(self, size: int | torch.SymInt) -> tuple[int, int] | None:
        """``(per_batch, fixed)``, or None for what is not linear in the batch size."""
        if not isinstance(size, torch.SymInt):
            return 0, int(size)
        expression = size.node.expr
        if expression not in self.sizes:
            linear = sympy.expand(expression.xreplace(self.symbols))
            per_batch, fixed = linear.coeff(_BATCH, 1), linear.coeff(_BATCH, 0)
            whole = per_batch.is_Integer and fixed.is_Integer and linear == per_batch * _BATCH + fixed
            self.sizes[expression] = (int(per_batch), int(fixed)) if whole else None
        return self.sizes[expression]


def _integer(per_batch: int, fixed: int) -> BatchInt | int:
    return BatchInt(per_batch, fixed) if per_batch else fixed


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.data_ptr() == other.data_ptr()
        and one.numel() > 0
        and (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
    )


def _is_dense(tensor: torch.Tensor) -> bool:
    step = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[::-1]):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _reason(node: fx.Node, reason: str) -> str:
    return f"cannot capture the network: {reason}\n  {user_line(node)}"


def _refuse(node: fx.Node, reason: str) -> NoReturn:
    raise CaptureError(_reason(node, reason))
