"""Run any units of a graph: a flat list of closures over slots, each letting go of what it read last.

Weights exist once whatever the cut, and a cut is two integers, so switching costs nothing.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from shared.errors import ConfigError, InputMismatchError
from shared.graph.calls import Call, SlotLayout, Step, call_of, depends_on_batch
from shared.graph.captured import CapturedModel
from shared.graph.fuse import fused_calls
from shared.graph.ir import Cut, Graph
from shared.tensor import DType

__all__ = ["Mode", "Program", "State", "load"]

Mode = Literal["fused", "exact"]

_ALIGNMENT = 64
_CACHED_BATCHES = 8
_CACHED_REPLAYS = 256


@dataclass(slots=True)
class State:
    """One request's values, by slot; ``None`` where not computed, or no longer needed by any unit.

    Belongs to one thread at a time.  ``done`` units have run: those before ``next`` and ``others``.
    """

    slots: list[Any]
    batch: int
    next: int = 0
    others: frozenset[int] = frozenset()

    def has_run(self, unit: int) -> bool:
        return unit < self.next or unit in self.others


def load(captured: CapturedModel, device: str = "cpu", mode: Mode = "fused") -> Program:
    """Make a captured network ready to run on ``device``.

    ``exact`` gives the very bits of the eager network.  ``fused`` folds and fuses for speed; its
    outputs stay within 1e-5 of the largest eager one.  Raises ConfigError when the device is not there.
    """
    if device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"device {device}: this torch finds no CUDA device; write device: cpu")
    return Program(captured, torch.device(device), mode)


class Program:
    """A loaded network.  Thread-safe: states are independent, the rest never changes after loading."""

    def __init__(self, captured: CapturedModel, device: torch.device, mode: Mode) -> None:
        self.graph: Graph = captured.graph
        self.mode: Mode = mode
        self.device = device
        self._lock = threading.Lock()
        self._templates: OrderedDict[int, list[Any]] = OrderedDict()
        self._replays: OrderedDict[tuple[tuple[int, ...], tuple[int, ...]], list[Step]] = OrderedDict()
        graph = self.graph
        weights = {slot: captured.weights[key].detach().to(device) for slot, key in graph.weights.items()}
        for slot in graph.grad_weights:
            weights[slot].requires_grad_()
        with torch.inference_mode():
            self._layout = SlotLayout(graph.slot_count)
            self._per_batch = self._folded_preamble(weights)
            if mode == "fused":
                units = fused_calls(graph, self._layout.constants, device)
            else:
                units = [[call_of(op, device) for op in unit.ops] for unit in graph.units]
            self._drop_unread(units)
            self._units = self._scheduled(units)
            self._views = {
                op.written[0]: self._layout.step(call_of(op, device, reshape=mode == "fused"))
                for op in graph.flow.views()
            }
        self._users = self._all_users()

    def start(self, leaves: Sequence[torch.Tensor]) -> State:
        """The state of a new request, given its inputs in the order of ``graph.inputs``.

        Raises InputMismatchError when they are not what the network takes.  Inputs are copied only
        where their memory is not aligned like torch's own.
        """
        batch = self.graph.check_inputs([(_dtype(leaf), tuple(leaf.shape)) for leaf in leaves])
        slots = self._template(batch).copy()
        for slot, leaf in zip(self.graph.inputs, leaves, strict=True):
            slots[slot] = _aligned(leaf).to(self.device)
        return State(slots, batch)

    def run(self, state: State, units: Sequence[int]) -> None:
        """Run ``units`` in the given order.

        Values that only units already run read are let go; outputs stay, and so does everything that
        any unit still to run reads, on whichever side it was meant to run.
        """
        if not units:
            return
        first, count = units[0], len(units)
        with torch.inference_mode():
            if first == state.next and not state.others and units[-1] == first + count - 1 and _rising(units):
                slots = state.slots
                for unit in self._units[first : first + count]:
                    for step, dead in unit:
                        step(slots)
                        for slot in dead:
                            slots[slot] = None
                state.next = first + count
            else:
                self._run_in_any_order(state, units)

    def live(self, state: State, cut: Cut) -> list[torch.Tensor]:
        """The tensors that travel at ``cut``, whose device units have run; they stay in the state."""
        return [state.slots[slot] for slot in cut.live]

    def resume(self, cut: Cut, tensors: Sequence[torch.Tensor], batch: int) -> State:
        """The state at ``cut`` from the tensors that travelled, in the order of ``cut.live``."""
        if len(tensors) != len(cut.live):
            raise InputMismatchError(f"cut {cut.name} needs {len(cut.live)} tensors, not {len(tensors)}")
        slots = self._template(batch).copy()
        for slot, tensor in zip(cut.live, tensors, strict=True):
            slots[slot] = self._placed(slot, tensor, batch)
        with torch.inference_mode():
            for step in self._replay(cut):
                step(slots)
        if cut.index >= 0:
            return State(slots, batch, next=cut.index)
        return State(slots, batch, others=frozenset(cut.edge_units))

    def outputs(self, state: State) -> dict[int, torch.Tensor]:
        """The outputs computed so far, by slot."""
        slots = state.slots
        return {slot: slots[slot].detach() for slot in self.graph.outputs if slots[slot] is not None}

    def __call__(self, leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The whole network here: its output leaves in the order of ``graph.outputs``."""
        state = self.start(leaves)
        self.run(state, range(len(self.graph.units)))
        outputs = self.outputs(state)
        return [outputs[slot] for slot in self.graph.outputs]

    def unit_times(
        self,
        leaves: Sequence[torch.Tensor],
        repeats: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> list[list[float]]:
        """Milliseconds of every unit in each of ``repeats`` whole runs: one list for each unit.

        ``clock`` gives seconds.
        """
        cuda = self.device.type == "cuda"
        times: list[list[float]] = [[] for _ in self.graph.units]
        for _ in range(repeats):
            state = self.start(leaves)
            with torch.inference_mode():
                for index, samples in enumerate(times):
                    began = clock()
                    self.run(state, range(index, index + 1))
                    if cuda:
                        torch.cuda.synchronize(self.device)
                    samples.append((clock() - began) * 1e3)
        return times

    def _folded_preamble(self, weights: dict[int, torch.Tensor]) -> list[Step]:
        """Evaluate what no batch size changes; the steps that remain are run once for each batch size."""
        self._layout.constants.update(weights)
        slots = self._layout.template(batch=self.graph.captured_batch)
        varying: set[int] = set()
        remaining: list[Step] = []
        for op in self.graph.preamble:
            step = self._layout.step(call_of(op, self.device))
            if depends_on_batch(op) or not varying.isdisjoint(op.reads):
                varying.update(op.written)
                remaining.append(step)
                continue
            slots.extend([None] * (self._layout.size - len(slots)))
            self._layout.fill(slots, self.graph.captured_batch)
            step(slots)
            self._layout.constants.update({slot: slots[slot] for slot in op.written})
        return remaining

    def _drop_unread(self, units: Sequence[Sequence[Call]]) -> None:
        """Let go of weights that are only held folded or packed now."""
        read = {slot for calls in units for call in calls for slot in call.reads}
        read.update(slot for op in self.graph.preamble for slot in op.reads if self._per_batch)
        read.update(self.graph.outputs)
        constants = self._layout.constants
        for slot in constants.keys() - read:
            del constants[slot]

    def _template(self, batch: int) -> list[Any]:
        """Slots with all that depends on weights and batch size filled in."""
        with self._lock:
            template = self._templates.get(batch)
            if template is not None:
                self._templates.move_to_end(batch)
                return template
        template = self._layout.template(batch)
        with torch.inference_mode():
            for step in self._per_batch:
                step(template)
        with self._lock:
            self._templates[batch] = template
            while len(self._templates) > _CACHED_BATCHES:
                self._templates.popitem(last=False)
        return template

    def _scheduled(self, units: Iterable[Sequence[Call]]) -> list[list[tuple[Step, tuple[int, ...]]]]:
        """Steps by unit, each with the slots that nothing reads after it in the canonical order."""
        last_user = self.graph.flow.last_users()
        scheduled = []
        for index, calls in enumerate(units):
            last_call: dict[int, int] = {}
            for position, call in enumerate(calls):
                for slot in (*call.reads, *call.written):
                    if last_user.get(slot) == index:
                        last_call[slot] = position
            for slot in (slot for slot, unit in last_user.items() if unit == index):
                last_call.setdefault(slot, len(calls) - 1)
            scheduled.append(
                [
                    (
                        self._layout.step(call),
                        tuple(slot for slot, last in last_call.items() if last == position),
                    )
                    for position, call in enumerate(calls)
                ]
            )
        return scheduled

    def _all_users(self) -> dict[int, frozenset[int]]:
        """For every value the units that read it or a view of it; outputs are never let go."""
        flow = self.graph.flow
        users = {slot: set(units) for slot, units in flow.users.items()}
        for slot in reversed(list(users)):
            if slot in flow.parent:
                users[flow.parent[slot]] |= users[slot]
        kept = {flow.root(slot) for slot in self.graph.outputs} | set(self.graph.outputs)
        return {slot: frozenset(units) for slot, units in users.items() if slot not in kept}

    def _run_in_any_order(self, state: State, units: Sequence[int]) -> None:
        slots = state.slots
        done = set(state.others) | set(range(state.next))
        for index in units:
            unit = self.graph.units[index]
            missing = [slot for slot in unit.reads if slots[slot] is None]
            if missing or index in done:
                why = "has run already" if index in done else f"needs {self.graph.values[missing[0]].name}"
                raise ValueError(f"unit {index} ({unit.name}) cannot run now: it {why}")
            for step, _ in self._units[index]:
                step(slots)
            done.add(index)
        for slot, users in self._users.items():
            if users <= done and self.graph.flow.producer[slot] in done:
                slots[slot] = None
        while state.next in done:
            done.discard(state.next)
            state.next += 1
        state.others = frozenset(unit for unit in done if unit > state.next)

    def _placed(self, slot: int, tensor: torch.Tensor, batch: int) -> torch.Tensor:
        """On this device, laid out in memory as the value would be had it been computed here."""
        tensor = _aligned(tensor).to(self.device)
        layout = self.graph.layouts.get(slot)
        if layout is None or self.mode == "fused" or self.device.type != "cpu" or not tensor.numel():
            return tensor
        offset, *strides = (per_batch * batch + fixed for per_batch, fixed in layout)
        if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, strides, strict=True)):
            return tensor
        skew = offset % (_ALIGNMENT // tensor.element_size())
        span = sum(stride * (size - 1) for size, stride in zip(tensor.shape, strides, strict=True))
        room = torch.empty(skew + span + 1, dtype=tensor.dtype)
        return room.as_strided(tensor.shape, strides, skew).copy_(tensor)

    def _replay(self, cut: Cut) -> list[Step]:
        key = (cut.live, cut.edge_units)
        with self._lock:
            steps = self._replays.get(key)
            if steps is not None:
                return steps
            ops = self.graph.flow.replay(cut.live, cut.edge_units)
            steps = [self._views[op.written[0]] for op in ops]
            self._replays[key] = steps
            while len(self._replays) > _CACHED_REPLAYS:
                self._replays.popitem(last=False)
            return steps


def _rising(units: Sequence[int]) -> bool:
    return isinstance(units, range) or all(unit == units[0] + i for i, unit in enumerate(units))


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Matrix kernels round differently on unaligned memory; what travels arrives aligned, so all is."""
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def _dtype(tensor: torch.Tensor) -> DType:
    try:
        return DType.from_label(str(tensor.dtype))
    except KeyError:
        raise InputMismatchError(f"tensors of {tensor.dtype} cannot be sent; convert them first") from None
