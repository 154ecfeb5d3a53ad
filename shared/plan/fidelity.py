"""Measure the accuracy gate: send every cut's tensors through every lossy form, and compare the answers.

Like :mod:`shared.plan.measure` this needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import torch

from shared.codec import Codec, Form, decode, encode
from shared.graph.ir import Cut, Graph
from shared.graph.run import Program, State
from shared.plan.evidence import agreement_bounds, similarity_bounds
from shared.plan.gate import Agreement, Fidelity, Gate, GateKey
from shared.plan.steps import Progress, Steps, finish

__all__ = ["LOSSY", "MOST_SAMPLES", "Wanted", "agreement_of", "gate_steps", "measure_gate", "missing"]

Wanted = tuple[Cut, list[Form]]

MOST_SAMPLES = 64
_FIRST = 4
_WORST_ERROR = 1e9

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
    samples: Iterable[Sequence[torch.Tensor]],
    key: GateKey,
    *,
    forms: Sequence[Form] = LOSSY,
    cuts: Sequence[Cut] | None = None,
    known: Gate | None = None,
    enough: float | None = None,
    most: int = MOST_SAMPLES,
    progress: Progress | None = None,
) -> Gate:
    """The gate, as of :func:`gate_steps`."""
    steps = gate_steps(program, samples, key, forms=forms, cuts=cuts, known=known, enough=enough, most=most)
    return finish(steps, progress)


def gate_steps(
    program: Program,
    samples: Iterable[Sequence[torch.Tensor]],
    key: GateKey,
    *,
    forms: Sequence[Form] = LOSSY,
    cuts: Sequence[Cut] | None = None,
    known: Gate | None = None,
    enough: float | None = None,
    most: int = MOST_SAMPLES,
) -> Steps[Gate]:
    """Measure the fidelity of ``cuts`` (all topological ones when None) in each of ``forms`` against the
    whole network.

    ``samples`` are input leaves in the order of ``graph.inputs``, batch 1 where the batch is free.  They are
    taken in growing portions, four first and ``most`` in all, as long as there is a pair of which they do
    not show yet whether its agreement is ``enough``; all for all pairs when that is None.  What
    ``known`` holds and is decided is not measured again, and is part of the answer.  Costs about half a run
    of the network per sample and pair.  Raises ValueError without any sample.
    """
    graph = program.graph
    wanted = missing(graph, graph.cuts if cuts is None else cuts, forms, known, enough, most)
    source = islice(samples, most) if wanted else iter(())
    found = {cut.live: {form: _Seen() for form in lacking} for cut, lacking in wanted}
    judged: dict[tuple[int, ...], dict[Form, Fidelity]] = {cut.live: {} for cut, _ in wanted}
    count = done = 0
    steps = len(wanted) * _portions(most)
    open_pairs = wanted
    while open_pairs and (portion := list(islice(source, max(_FIRST, count)))):
        count += len(portion)
        batches = _batched(graph, portion)
        for number, leaves in enumerate(batches, start=1):
            for cut, whole, answers in _answers(program, leaves, open_pairs):
                for form, answer in answers.items():
                    found[cut.live][form].add(whole, answer, key.agreement)
                if number == len(batches):
                    seen = found[cut.live]
                    judged[cut.live].update((form, seen[form].fidelity(key.agreement)) for form in answers)
                    done += 1
                    yield done, steps
        open_pairs = _open(open_pairs, judged, enough, most)
    if wanted and not count:
        raise ValueError("no sample to measure the accuracy gate on")
    if done < steps:
        yield steps, steps
    measured = dict(known.measured) if known is not None else {}
    for live, by_form in judged.items():
        measured[live] = {**measured.get(live, {}), **by_form}
    return Gate(key, max(count, known.samples if known is not None else 0), measured)


def missing(
    graph: Graph,
    cuts: Sequence[Cut],
    forms: Sequence[Form],
    known: Gate | None,
    enough: float | None = None,
    most: int = MOST_SAMPLES,
) -> list[Wanted]:
    """What is to be measured: one cut for every set of tensors that crosses, in the order of ``cuts``, each
    with the forms that ``known`` does not hold, or on too few of ``most`` samples to say whether they are
    good ``enough``.  Forms change floats only, and cuts without any need none."""
    wanted: dict[tuple[int, ...], Wanted] = {}
    for cut in cuts:
        if any(graph.values[slot].dtype.is_float for slot in cut.live):
            measured = {} if known is None else known.measured.get(cut.live, {})
            lacking = [
                form for form in forms if form not in measured or not measured[form].is_decided(enough, most)
            ]
            if lacking:
                wanted.setdefault(cut.live, (cut, lacking))
    # Topological cuts go on from one another, each of the others starts anew.
    return sorted(wanted.values(), key=lambda each: each[0].index if each[0].index >= 0 else len(graph.cuts))


def _portions(most: int) -> int:
    """How many portions ``most`` samples come in, each as large as all before it."""
    count, portions = _FIRST, 1
    while count < most:
        count, portions = 2 * count, portions + 1
    return portions


def _open(
    pairs: Sequence[Wanted],
    judged: Mapping[tuple[int, ...], Mapping[Form, Fidelity]],
    enough: float | None,
    most: int,
) -> list[Wanted]:
    """The pairs of which it is not known yet whether they are good enough."""
    left = [
        (cut, [form for form in forms if not judged[cut.live][form].is_decided(enough, most)])
        for cut, forms in pairs
    ]
    return [(cut, forms) for cut, forms in left if forms]


def _answers(
    program: Program, leaves: Sequence[torch.Tensor], pairs: Sequence[Wanted]
) -> Iterator[tuple[Cut, Sequence[torch.Tensor], dict[Form, list[torch.Tensor]]]]:
    """For every cut the whole network's outputs, and by form those with the cut's tensors as they arrive."""
    graph = program.graph
    whole = program(leaves)
    state = program.start(leaves)
    for cut, forms in pairs:
        if cut.index < 0:
            state = program.start(leaves)
        program.run(state, [unit for unit in cut.edge_units if not state.has_run(unit)])
        kept = program.outputs(state)
        answers = {}
        for form, sent in _as_sent(program, state, cut, forms):
            tail = program.resume(cut, sent, state.batch)
            program.run(tail, cut.cloud_units)
            outputs = {**kept, **program.outputs(tail)}
            answers[form] = [outputs[slot] for slot in graph.outputs]
        yield cut, whole, answers


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


def _batched(graph: Graph, samples: Sequence[Sequence[torch.Tensor]]) -> list[list[torch.Tensor]]:
    if not graph.dynamic_batch:
        return [list(sample) for sample in samples]
    stacked = []
    for position, slot in enumerate(graph.inputs):
        per_batch = any(per for per, _ in graph.values[slot].dims)
        leaves = [sample[position] for sample in samples]
        stacked.append(torch.cat(leaves) if per_batch else leaves[0])
    return [stacked]


class _Seen:
    """What the answers so far say of one pair: of classifiers every answer's headroom, of others the
    cosines of every output's answers."""

    def __init__(self) -> None:
        self._largest: list[float] = []
        self._furthest: list[float] = []
        self._agreed: list[bool] = []
        self._headrooms: list[float] = []
        self._cosines: list[list[float]] = []

    def add(
        self, whole: Sequence[torch.Tensor], answer: Sequence[torch.Tensor], agreement: Agreement
    ) -> None:
        if not self._cosines:
            self._cosines = [[] for _ in whole]
            self._largest, self._furthest = [0.0] * len(whole), [0.0] * len(whole)
        for index, (expected, got) in enumerate(zip(whole, answer, strict=True)):
            left, right = _by_sample(expected), _by_sample(got)
            if not left.numel():
                continue
            apart = float(torch.nan_to_num((left - right).abs(), nan=_WORST_ERROR).max())
            self._largest[index] = max(self._largest[index], float(left.abs().max()))
            self._furthest[index] = max(self._furthest[index], apart)
            cosine = torch.nn.functional.cosine_similarity(left, right, dim=1, eps=1e-12)
            cosine[(left == right).all(dim=1)] = 1.0
            self._cosines[index] += torch.nan_to_num(cosine, nan=-1.0).tolist()
        if agreement == "top1":
            self._agreed += (whole[0].argmax(dim=1) == answer[0].argmax(dim=1)).tolist()
            self._headrooms += _headrooms(whole[0].double(), answer[0].double())

    def fidelity(self, agreement: Agreement) -> Fidelity:
        if agreement == "top1":
            least, most = agreement_bounds(self._headrooms)
            share = sum(self._agreed) / len(self._agreed)
            return Fidelity(share, self._error, least, most, len(self._agreed))
        judged = [
            cosines for cosines, largest in zip(self._cosines, self._largest, strict=True) if largest > 0
        ]
        if not judged:  # nothing but zeros
            return Fidelity(1.0, self._error)
        worst = min(judged, key=lambda cosines: similarity_bounds(cosines)[0])
        least, most = similarity_bounds(worst)
        return Fidelity(sum(worst) / len(worst), self._error, least, most, len(worst))

    @property
    def _error(self) -> float:
        return max(
            min(furthest / largest, _WORST_ERROR) if largest else 0.0
            for furthest, largest in zip(self._furthest, self._largest, strict=True)
        )


def _headrooms(whole: torch.Tensor, answer: torch.Tensor) -> list[float]:
    """For every answer how many times larger its error would have to be for another class to win; 0 for one
    that is no number, ``inf`` where the error favours no other class."""
    rows = torch.arange(len(whole))
    winner = whole.argmax(dim=1)
    error = answer - whole
    ahead = whole[rows, winner][:, None] - whole
    lost = error - error[rows, winner][:, None]
    times = torch.where(lost > 0, ahead / lost, math.inf)
    times[rows, winner] = math.inf
    least = times.min(dim=1).values
    least[~torch.isfinite(error).all(dim=1)] = 0.0
    return least.tolist()


def _by_sample(tensor: torch.Tensor) -> torch.Tensor:
    """One row of float64 per sample; what has no batch dimension is one sample."""
    return tensor.double().reshape(tensor.shape[0] if tensor.dim() > 1 else 1, -1)
