"""The canonical graph: what a captured network computes, as plain data.

Every tensor has a slot, a small integer in order of first appearance: inputs, then weights, then what
the preamble and the units compute.  Nothing in a graph is changed in place, so running it is writing
slots in order.  The preamble depends on the weights and the batch size alone (a class token expanded
to the batch, a causal mask, the zeros an LSTM starts from): both sides evaluate it, it never crosses a
cut.  Sizes are linear in the batch size, never data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shared.errors import InputMismatchError, ProtocolError
from shared.graph.cuts import Dataflow
from shared.graph.nodes import UNUSED, Arg, BatchInt, Cut, EnumArg, Op, Ref, Unit
from shared.graph.tree import Tree
from shared.tensor import DType, Shape, SymbolicSpec, TensorSpec

__all__ = ["UNUSED", "Arg", "BatchInt", "Cut", "EnumArg", "Graph", "Op", "Ref", "Unit"]


@dataclass(frozen=True, slots=True)
class Graph:
    """A network, its units and its cuts.  ``cuts[k]`` gives the units before ``k`` to the device.

    ``values`` describes every slot that has a wire dtype; ``weights`` maps a slot to its tensor's key.
    ``batch_inputs`` are sizes of dimension 0 where ``dynamic_batch``; otherwise the network runs at
    ``captured_batch`` only.  ``grad_weights`` are the weights that require grad in the module: torch
    chooses kernels by it (``at::matmul`` folds or batches), so the same bits need the same flag.
    ``layouts`` has the views that are not dense from the start of their memory: offset, then strides, in
    elements, each as (per batch, fixed).  Kernels also round by these, so they are restored after a cut.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_tree: Tree
    output_tree: Tree
    units: tuple[Unit, ...]
    preamble: tuple[Op, ...]
    values: Mapping[int, SymbolicSpec]
    weights: Mapping[int, str]
    dynamic_batch: bool
    captured_batch: int
    grad_weights: tuple[int, ...] = ()
    layouts: Mapping[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    digest: str = ""
    cuts: tuple[Cut, ...] = field(init=False, compare=False, repr=False)
    flow: Dataflow = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        flow = Dataflow(self.inputs, self.outputs, self.units, self.values)
        object.__setattr__(self, "flow", flow)
        order = tuple(range(len(self.units)))
        object.__setattr__(
            self,
            "cuts",
            tuple(
                Cut(index, self._cut_name(index), live, order[:index], order[index:])
                for index, live in enumerate(flow.topological_lives())
            ),
        )

    def _cut_name(self, index: int) -> str:
        if index == 0:
            return "input"
        return "output" if index == len(self.units) else self.units[index - 1].name

    def with_digest(self, digest: str) -> Graph:
        return replace(self, digest=digest)

    @property
    def weight_bytes(self) -> int:
        return sum(self.values[slot].at(1).nbytes for slot in self.weights)

    @property
    def slot_count(self) -> int:
        """One more than the largest slot."""
        slots = [*self.inputs, *self.weights]
        for op in self.ops():
            slots.extend(op.written)
        return max(slots, default=-1) + 1

    def ops(self) -> Iterator[Op]:
        """Every operator in the order in which it runs, the preamble first."""
        yield from self.preamble
        for unit in self.units:
            yield from unit.ops

    def specs(self, slots: Sequence[int], batch: int) -> tuple[TensorSpec, ...]:
        return tuple(self.values[slot].at(batch) for slot in slots)

    def live_specs(self, cut: Cut, batch: int) -> tuple[TensorSpec, ...]:
        """What travels at ``cut``, in the order of ``cut.live``."""
        return self.specs(cut.live, batch)

    def output_slots_of(self, cut: Cut) -> tuple[int, ...]:
        """The outputs that the cloud computes, each once, in the order of the network's outputs."""
        producer = self.flow.producer
        cloud = frozenset(cut.cloud_units)
        return tuple(dict.fromkeys(slot for slot in self.outputs if producer.get(slot) in cloud))

    def set_cut(self, edge_units: Sequence[int]) -> Cut:
        """The cut that gives exactly ``edge_units`` to the device.

        Raises ProtocolError when one of them needs a unit that is not among them.
        """
        edge = sorted(set(edge_units))
        if edge and (edge[0] < 0 or edge[-1] >= len(self.units)):
            raise ProtocolError(f"{self.name} has units 0 to {len(self.units) - 1}, not {edge[-1]}")
        if edge == list(range(len(edge))):
            return self.cuts[len(edge)]
        if not self.flow.is_closed(edge):
            raise ProtocolError(
                f"not a cut of {self.name}: a unit on the device reads what a unit in the cloud computes"
            )
        held = frozenset(edge)
        cloud = tuple(unit.index for unit in self.units if unit.index not in held)
        name = f"{len(edge)} of {len(self.units)} units, last {self.units[edge[-1]].name}"
        return Cut(-1, name, self.flow.live(edge), tuple(edge), cloud)

    def cut_for_tail_units(self, mask: bytes) -> Cut:
        """The cut of a little-endian bit mask of the units that the cloud runs.

        Raises ProtocolError when the mask names units that do not exist or is no cut.
        """
        bits = int.from_bytes(mask, "little")
        if bits >> len(self.units):
            raise ProtocolError(f"the mask names tail units beyond the {len(self.units)} there are")
        return self.set_cut([unit.index for unit in self.units if not bits >> unit.index & 1])

    def tail_units_mask(self, cut: Cut) -> bytes:
        """The inverse of :meth:`cut_for_tail_units`."""
        bits = sum(1 << index for index in cut.cloud_units)
        return bits.to_bytes((len(self.units) + 7) // 8, "little")

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> list[Any]:
        """The leaves of a call's arguments in the order of ``inputs``.

        Raises InputMismatchError naming the argument that is missing, unexpected or of another form.
        """
        try:
            return self.input_tree.flatten((tuple(args), dict(kwargs or {})))
        except InputMismatchError as error:
            raise InputMismatchError(f"{self.name} takes {self.describe_inputs()}: {error}") from None

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """The network's result from its output leaves, in the order of ``outputs``."""
        return self.output_tree.unflatten(leaves)

    def check_inputs(self, leaves: Sequence[tuple[DType, Shape]]) -> int:
        """The batch size of a call.  Raises InputMismatchError naming the input and what it should be."""
        if len(leaves) != len(self.inputs):
            raise InputMismatchError(f"{self.name} takes {len(self.inputs)} tensors, not {len(leaves)}")
        batch = self._batch_of([shape for _, shape in leaves])
        for slot, (dtype, shape) in zip(self.inputs, leaves, strict=True):
            spec = self.values[slot].at(batch)
            if spec.dtype != dtype or spec.shape != tuple(shape):
                got = f"{dtype.label} {list(shape)}"
                raise InputMismatchError(
                    f"input {spec.name} of {self.name} must be {self._describe(slot)}, not {got}"
                    + (f" (the batch size is {batch})" if self.dynamic_batch else "")
                )
        return batch

    def describe_inputs(self) -> str:
        """E.g. ``image uint8 [batch, 224, 224, 3]``."""
        return ", ".join(f"{self.values[slot].name} {self._describe(slot)}" for slot in self.inputs)

    def _describe(self, slot: int) -> str:
        spec = self.values[slot]
        sizes = ", ".join(str(fixed) if not per else "batch" for per, fixed in spec.dims)
        return f"{spec.dtype.label} [{sizes}]"

    def _batch_of(self, shapes: Sequence[Shape]) -> int:
        if self.dynamic_batch:
            for slot, shape in zip(self.inputs, shapes, strict=True):
                dims = self.values[slot].dims
                if dims and dims[0] == (1, 0) and len(shape) == len(dims) and shape[0] >= 1:
                    return int(shape[0])
        return self.captured_batch
