"""Requests of one network in one batch: where they may be joined, joining them, and taking results apart.

At a cut everything that later units read follows from the live tensors and the batch size.  So requests
are joined by putting their live tensors together along the dimension that is the batch, and resuming
there.  Sizes alone do not say that this is right: a tensor may have its samples interleaved, a network
may compare samples with each other.  :func:`find_places` therefore tries it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shared.graph import Cut, Graph, Program
from shared.graph.run import State
from shared.tensor import SymbolicSpec

__all__ = ["Arrived", "Places", "Running", "advance", "begin", "find_places", "join", "outputs_of"]

log = logging.getLogger("suture.tail")

TOLERANCE = 1e-5
"""How far results in a batch may be from those alone, as a share of the largest."""

_INSIDE_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Places:
    """``at[k]``: whether requests that stand at cut ``k`` may be joined there."""

    at: tuple[bool, ...]

    def following(self, cut: int) -> int:
        """The first such cut that is not before ``cut``; the cut at the network's end when there is none."""
        end = len(self.at) - 1
        return next((index for index in range(cut, end) if self.at[index]), end)

    def __bool__(self) -> bool:
        return any(self.at)


@dataclass(frozen=True, slots=True, eq=False)
class Arrived:
    """A request that stands at a cut: its live tensors, in the order of ``cut.live``."""

    cut: Cut
    tensors: Sequence[torch.Tensor]
    batch: int


@dataclass(slots=True, eq=False)
class Running:
    """One or more requests on their way.

    ``batches`` are the samples of each, ``outputs`` what each had computed of the network's outputs before
    it was joined with others.
    """

    state: State
    batches: tuple[int, ...]
    outputs: tuple[dict[int, torch.Tensor], ...]

    @property
    def batch(self) -> int:
        return sum(self.batches)


def begin(program: Program, arrived: Arrived) -> Running:
    state = program.resume(arrived.cut, arrived.tensors, arrived.batch)
    return Running(state, (arrived.batch,), ({},))


def advance(program: Program, running: Running, units: Sequence[int]) -> None:
    program.run(running.state, units)


def join(program: Program, cut: Cut, parts: Sequence[Running | Arrived]) -> Running:
    """One batch of all ``parts``, which stand at ``cut``, one of the network's :class:`Places`."""
    lives: list[Sequence[torch.Tensor]] = []
    batches: list[int] = []
    outputs: list[dict[int, torch.Tensor]] = []
    for part in parts:
        if isinstance(part, Running):
            lives.append(program.live(part.state, cut))
            batches += part.batches
            outputs += outputs_of(program, part)
        else:
            lives.append(part.tensors)
            batches.append(part.batch)
            outputs.append({})
    tensors = [
        torch.cat([live[index].to(program.device) for live in lives], _dim(program.graph, slot))
        for index, slot in enumerate(cut.live)
    ]
    return Running(program.resume(cut, tensors, sum(batches)), tuple(batches), tuple(outputs))


def outputs_of(program: Program, running: Running) -> list[dict[int, torch.Tensor]]:
    """The outputs computed so far, by slot, for each request."""
    computed = program.outputs(running.state)
    if len(running.batches) == 1:
        return [running.outputs[0] | computed]
    split = {slot: _split(program.graph, slot, each, running.batches) for slot, each in computed.items()}
    return [
        earlier | {slot: parts[index] for slot, parts in split.items()}
        for index, earlier in enumerate(running.outputs)
    ]


def find_places(program: Program, sample: Sequence[torch.Tensor]) -> Places:
    """Where requests can be joined so that the results of each stay the same to within TOLERANCE.

    ``sample`` is one call at batch 1.  A cut is no such place when a tensor that is alive there does not
    grow with the batch, in one dimension and in proportion; nor when a trial says otherwise: of the sample
    and of two more made of it, some or all of the live tensors joined and the outputs of the joined run
    are compared with those of the separate ones.  Takes a few runs of the network.
    """
    graph = program.graph
    nowhere = Places((False,) * len(graph.cuts))
    candidates = [cut.index for cut in graph.cuts[:-1] if cut.live and _grow_with_batch(graph, cut.live)]
    if not graph.dynamic_batch or not candidates or not _grow_with_batch(graph, graph.outputs):
        return nowhere
    others = _variants(graph, sample)
    if others is None:
        log.info("%s: requests are not joined: its example input does not tell samples apart", graph.name)
        return nowhere
    trial = _Trial(program, candidates, [sample, others])
    first = trial.first_sound()
    if first is None:
        log.info("%s: requests are not joined: a joined run gives other results", graph.name)
        return nowhere
    right = trial.same_live(first)
    return Places(tuple(index in right for index in range(len(graph.cuts))))


class _Trial:
    """Separate runs, kept at every candidate cut, to compare joined runs with."""

    def __init__(
        self, program: Program, candidates: Sequence[int], calls: Sequence[Sequence[torch.Tensor]]
    ) -> None:
        self._program = program
        self._candidates = candidates
        self._separate = []
        self._outputs = []
        for leaves in calls:
            state = program.start(leaves)
            kept: dict[int, torch.Tensor] = {}
            for index in candidates:
                cut = program.graph.cuts[index]
                program.run(state, range(state.next, index))
                kept.update(zip(cut.live, program.live(state, cut), strict=True))
            program.run(state, range(state.next, len(program.graph.units)))
            self._separate.append((kept, state.batch))
            self._outputs.append(program.outputs(state))

    def first_sound(self) -> int | None:
        """The first candidate from which a joined run gives the outputs of the separate ones.

        What compares samples is a unit; a joined run is sound from every place behind the last such unit.
        """
        if self._sound(self._candidates[0]):
            return self._candidates[0]
        low, high = 0, len(self._candidates)
        while high - low > 1:
            middle = (low + high) // 2
            if self._sound(self._candidates[middle]):
                high = middle
            else:
                low = middle
        return self._candidates[high] if high < len(self._candidates) else None

    def same_live(self, first: int) -> set[int]:
        """The candidates from ``first`` on at which the joined run holds what the separate ones do."""
        running = self._joined(first)
        alike: dict[int, bool] = {}
        right = set()
        for index in self._candidates:
            if index < first:
                continue
            cut = self._program.graph.cuts[index]
            advance(self._program, running, range(running.state.next, index))
            for slot, tensor in zip(cut.live, self._program.live(running.state, cut), strict=True):
                if slot not in alike:
                    alike[slot] = _alike(tensor, self._expected(slot), _INSIDE_TOLERANCE)
            if all(alike[slot] for slot in cut.live):
                right.add(index)
        return right

    def _sound(self, index: int) -> bool:
        running = self._joined(index)
        advance(self._program, running, range(index, len(self._program.graph.units)))
        return all(
            _alike(tensor, separate[slot], TOLERANCE)
            for outputs, separate in zip(outputs_of(self._program, running), self._outputs, strict=True)
            for slot, tensor in outputs.items()
        )

    def _joined(self, index: int) -> Running:
        cut = self._program.graph.cuts[index]
        parts = [Arrived(cut, [kept[slot] for slot in cut.live], batch) for kept, batch in self._separate]
        return join(self._program, cut, parts)

    def _expected(self, slot: int) -> torch.Tensor:
        return torch.cat([kept[slot] for kept, _ in self._separate], _dim(self._program.graph, slot))


def batch_dim(spec: SymbolicSpec) -> int | None:
    """The one dimension that grows with the batch, in proportion; None where there is no such one."""
    growing = [dim for dim, (per_batch, _) in enumerate(spec.dims) if per_batch]
    if len(growing) != 1 or spec.dims[growing[0]][1]:
        return None
    return growing[0]


def _grow_with_batch(graph: Graph, slots: Sequence[int]) -> bool:
    return all(slot in graph.values and batch_dim(graph.values[slot]) is not None for slot in slots)


def _dim(graph: Graph, slot: int) -> int:
    dim = batch_dim(graph.values[slot])
    assert dim is not None, "only places where all live tensors have one are used"
    return dim


def _split(graph: Graph, slot: int, tensor: torch.Tensor, batches: Sequence[int]) -> Sequence[torch.Tensor]:
    dim = _dim(graph, slot)
    per_batch = graph.values[slot].dims[dim][0]
    return torch.split_with_sizes(tensor, [per_batch * batch for batch in batches], dim)


def _variants(graph: Graph, sample: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
    """A call at batch 2 whose samples differ from the given one and from each other; None if they cannot."""
    leaves = []
    differ = False
    for slot, leaf in zip(graph.inputs, sample, strict=True):
        dim = batch_dim(graph.values[slot])
        if dim is None:
            if any(per_batch for per_batch, _ in graph.values[slot].dims):
                return None
            leaves.append(leaf)
            continue
        flat = leaf.flatten()
        one, other = flat.flip(0).view(leaf.shape), flat.roll(max(flat.numel() // 3, 1)).view(leaf.shape)
        if leaf.is_floating_point():
            one, other = one * 0.75 + 0.25, other * 0.5 - 0.25
        differ |= not (torch.equal(one, leaf) or torch.equal(other, leaf) or torch.equal(one, other))
        leaves.append(torch.cat([one, other], dim))
    return leaves if differ else None


def _alike(tensor: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    if tensor.shape != expected.shape:
        return False
    if not tensor.is_floating_point():
        return torch.equal(tensor, expected)
    if not expected.numel() or torch.equal(tensor, expected):
        return True
    # NaN, and the difference of infinities, is not at most anything.
    return float((tensor - expected).abs().max()) <= tolerance * float(expected.abs().max())
