"""Measure the accuracy gate: send every cut's tensors through every lossy form, and compare the answers.

Like :mod:`shared.plan.measure` this needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from shared.codec import Codec, Form, decode, encode
from shared.graph.ir import Cut, Graph
from shared.graph.run import Program, State
from shared.plan.gate import Agreement, Fidelity, Gate, GateKey

__all__ = ["LOSSY", "agreement_of", "measure_gate", "missing"]

Progress = Callable[[int, int], None]

LOSSY = tuple(form for form in Form if form is not Form.EXACT)
_PLAIN_STAGE = Codec.FLOAT32.stage


def agreement_of(graph: Graph) -> Agreement:
    """``top1`` for what looks like a classifier: one float output of shape batch x classes."""
    if len(graph.outputs) == 1:
        spec = graph.values[graph.outputs[0]]
        if spec.dtype.is_float and len(spec.dims) == 2 and spec.dims[1][1] > 1:
            return "top1"
    return "cosine"


def measure_gate(
    program: Program,
    samples: Sequence[Sequence[torch.Tensor]],
    key: GateKey,
    *,
    forms: Sequence[Form] = LOSSY,
    cuts: Sequence[Cut] | None = None,
    known: Gate | None = None,
    progress: Progress | None = None,
) -> Gate:
    """Fidelity of ``cuts`` (all topological ones when None) in each of ``forms`` against the whole network.

    ``samples`` are input leaves in the order of ``graph.inputs``, batch 1 where the batch is free; they
    then run as one batch.  What ``known`` holds is not measured again, and is part of the answer.  Costs
    about half a run of the batch per cut and form.
    """
    graph = program.graph
    wanted = missing(graph, graph.cuts if cuts is None else cuts, forms, known)
    batches = _batched(graph, samples) if wanted else []
    steps = len(wanted) * len(batches)
    done = 0
    found: dict[tuple[int, ...], dict[Form, list[Fidelity]]] = {
        cut.live: {form: [] for form in lacking} for cut, lacking in wanted
    }
    for leaves in batches:
        whole = program(leaves)
        state = program.start(leaves)
        for cut, lacking in wanted:
            if cut.index < 0:
                state = program.start(leaves)
            program.run(state, [unit for unit in cut.edge_units if not state.has_run(unit)])
            kept = program.outputs(state)
            for form, sent in _as_sent(program, state, cut, lacking):
                tail = program.resume(cut, sent, state.batch)
                program.run(tail, cut.cloud_units)
                outputs = {**kept, **program.outputs(tail)}
                answer = [outputs[slot] for slot in graph.outputs]
                found[cut.live][form].append(_compare(whole, answer, key.agreement))
            done += 1
            if progress is not None:
                progress(done, steps)
    measured = dict(known.measured) if known is not None else {}
    for live, by_form in found.items():
        measured[live] = {**measured.get(live, {}), **{form: _mean(all_) for form, all_ in by_form.items()}}
    return Gate(key, len(samples), measured)


def missing(
    graph: Graph, cuts: Sequence[Cut], forms: Sequence[Form], known: Gate | None
) -> list[tuple[Cut, list[Form]]]:
    """What is to be measured: one cut for every set of tensors that crosses, in the order of ``cuts``, each
    with the forms that ``known`` does not hold.  Forms change floats only, and cuts without any need none."""
    wanted: dict[tuple[int, ...], tuple[Cut, list[Form]]] = {}
    for cut in cuts:
        if any(graph.values[slot].dtype.is_float for slot in cut.live):
            measured = {} if known is None else known.measured.get(cut.live, {})
            lacking = [form for form in forms if form not in measured]
            if lacking:
                wanted.setdefault(cut.live, (cut, lacking))
    # Topological cuts go on from one another, each of the others starts anew.
    return sorted(wanted.values(), key=lambda each: each[0].index if each[0].index >= 0 else len(graph.cuts))


def _as_sent(
    program: Program, state: State, cut: Cut, forms: Sequence[Form]
) -> Iterator[tuple[Form, list[torch.Tensor]]]:
    """The cut's tensors as they arrive in each of ``forms``."""
    tensors = program.live(state, cut)
    specs = program.graph.live_specs(cut, state.batch)
    for form in forms:
        codec = Codec.of(form, _PLAIN_STAGE)
        sent = []
        for slot, tensor, spec in zip(cut.live, tensors, specs, strict=True):
            header, payload = encode(tensor.cpu(), codec, slot)
            sent.append(decode(header, payload, spec))
        yield form, sent


def _mean(batches: Sequence[Fidelity]) -> Fidelity:
    return Fidelity(
        sum(each.agreement for each in batches) / len(batches), max(each.error for each in batches)
    )


def _batched(graph: Graph, samples: Sequence[Sequence[torch.Tensor]]) -> list[list[torch.Tensor]]:
    if not graph.dynamic_batch:
        return [list(sample) for sample in samples]
    stacked = []
    for position, slot in enumerate(graph.inputs):
        per_batch = any(per for per, _ in graph.values[slot].dims)
        leaves = [sample[position] for sample in samples]
        stacked.append(torch.cat(leaves) if per_batch else leaves[0])
    return [stacked]


def _compare(whole: Sequence[torch.Tensor], answer: Sequence[torch.Tensor], agreement: Agreement) -> Fidelity:
    error = 0.0
    cosine = 1.0
    for expected, got in zip(whole, answer, strict=True):
        left, right = _by_sample(expected), _by_sample(got)
        scale = float(left.abs().max()) if left.numel() else 0.0
        if scale > 0:
            error = max(error, float((left - right).abs().max()) / scale)
            similarity = torch.nn.functional.cosine_similarity(left, right, dim=1, eps=1e-12)
            similarity[(left == right).all(dim=1)] = 1.0
            cosine = min(cosine, float(similarity.mean()))
    if agreement == "top1":
        same = whole[0].argmax(dim=1) == answer[0].argmax(dim=1)
        return Fidelity(float(same.double().mean()), error)
    return Fidelity(cosine, error)


def _by_sample(tensor: torch.Tensor) -> torch.Tensor:
    """One row of float64 per sample; what has no batch dimension is one sample."""
    return tensor.double().reshape(tensor.shape[0] if tensor.dim() > 1 else 1, -1)
