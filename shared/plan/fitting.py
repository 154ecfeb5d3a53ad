"""Fit the transform's tables of every tensor that a cut may send, to calibration inputs.

Like :mod:`shared.plan.measure` this needs torch.  Nothing is judged here: what a step of the transform does
to the answer is for the accuracy gate to measure, on other inputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from shared.calibration import fingerprint
from shared.codec.network_tables import NetworkTables
from shared.codec.threads import one_thread
from shared.codec.transform import TransformTables, fit, is_fitted, output_gradients
from shared.errors import CodecError
from shared.graph.captured import CapturedModel
from shared.graph.ir import Cut, Graph
from shared.graph.run import Program
from shared.plan.fidelity import agreement_of
from shared.plan.steps import Steps

__all__ = ["fitting_steps"]

Leaves = Sequence[torch.Tensor]

_TOGETHER = 4
"""Samples that run as one batch: more are no faster, and need more memory."""

_MOST_BYTES = 64 * 2**20
_LEAST_SAMPLES = 8
"""A large tensor is fitted to fewer samples, of which each has more to learn from."""

_DRAWS = 2


def fitting_steps(
    captured: CapturedModel, program: Program, samples: Sequence[Leaves]
) -> Steps[NetworkTables]:
    """Tables for every tensor of floats that a topological cut sends and that the transform can code.

    ``program`` is of ``captured``; ``samples`` are input leaves in the order of ``graph.inputs``, batch 1
    where the batch is free, at least two in all.  Every tensor costs a run of the network forward and two
    backward through what follows it, per sample, and a second or so for the fit.  Raises ValueError for
    fewer samples.
    """
    graph = program.graph
    batches = _batched(graph, samples)
    if sum(len(batch[0]) for batch in batches) < 2:
        raise ValueError("the transform is fitted to at least two samples")
    classifier = agreement_of(graph) == "top1"
    first_cuts = _first_cuts(graph)
    states = [program.start(batch) for batch in batches]
    reached = 0
    by_slot: dict[int, TransformTables] = {}
    for done, (slot, cut) in enumerate(first_cuts.items(), start=1):
        for state in states:
            program.run(state, range(reached, cut.index))
        reached = cut.index
        place = cut.live.index(slot)
        used = _used(graph, slot, len(batches))
        values = [program.live(state, cut)[place].cpu() for state in states[:used]]
        gradients = output_gradients(
            captured, program, cut, batches[:used], classifier=classifier, draws=_DRAWS
        )
        # What is not finite, or all alike, has none: such a tensor is sent in other codecs.
        with contextlib.suppress(CodecError), one_thread():
            by_slot[slot] = fit(torch.cat(values), gradients[place])
        yield done, len(first_cuts)
    fitted_to = frozenset(fingerprint(sample) for sample in samples)
    return NetworkTables(graph.digest, by_slot, fitted_to)


def _first_cuts(graph: Graph) -> dict[int, Cut]:
    """By slot the first cut that sends it, where all of its consumers are still to come; in their order."""
    found: dict[int, Cut] = {}
    for cut in graph.cuts:
        for slot in cut.live if cut.cloud_units else ():
            value = graph.values[slot]
            per_batch = [per for per, _ in value.dims]
            batch_first = not graph.dynamic_batch or (per_batch[:1] != [0] and not any(per_batch[1:]))
            if value.dtype.is_float and batch_first and is_fitted(value.dtype, value.at(2).shape):
                found.setdefault(slot, cut)
    return found


def _used(graph: Graph, slot: int, batches: int) -> int:
    """How many of the batches a tensor is fitted to."""
    together = _TOGETHER if graph.dynamic_batch else graph.captured_batch
    nbytes = graph.values[slot].at(1).numel * 4
    return min(batches, -(-max(_LEAST_SAMPLES, _MOST_BYTES // nbytes) // together))


def _batched(graph: Graph, samples: Sequence[Leaves]) -> list[Leaves]:
    if not graph.dynamic_batch:
        return list(samples)
    batches: list[Leaves] = []
    for start in range(0, len(samples), _TOGETHER):
        chunk = samples[start : start + _TOGETHER]
        per_batch = [any(per for per, _ in graph.values[slot].dims) for slot in graph.inputs]
        batches.append(
            [
                torch.cat([sample[position] for sample in chunk]) if per else chunk[0][position]
                for position, per in enumerate(per_batch)
            ]
        )
    return batches
