"""Measure the accuracy gate: send every cut's tensors through every lossy form, and compare the answers.

Like :mod:`shared.plan.measure` this needs torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import torch

from shared.codec import Codec, Form, decode, encode
from shared.graph.ir import Cut, Graph
from shared.graph.run import Program, State
from shared.plan.compare import Compared
from shared.plan.evidence import Agreement
from shared.plan.gate import Gate, GateKey
from shared.plan.steps import Progress, Steps, finish
from shared.plan.worth import Pair, Worth

if TYPE_CHECKING:
    from shared.codec.transform import TransformTables

__all__ = ["LOSSY", "MOST_SAMPLES", "Wanted", "agreement_of", "gate_steps", "measure_gate", "missing"]

Wanted = tuple[Cut, list[Form]]

MOST_SAMPLES = 64
_FIRST = 4
_TOGETHER = 4
"""Samples that run as one batch: more would not be faster per sample, need more memory, and keep whoever
waits for the next step waiting."""

LOSSY = tuple(form for form in Form if form is not Form.EXACT)


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
    tables: Mapping[int, TransformTables] | None = None,
    enough: float | None = None,
    most: int = MOST_SAMPLES,
    worth: Worth | None = None,
    progress: Progress | None = None,
) -> Gate:
    """The gate, as of :func:`gate_steps`."""
    steps = gate_steps(
        program,
        samples,
        key,
        forms=forms,
        cuts=cuts,
        known=known,
        tables=tables,
        enough=enough,
        most=most,
        worth=worth,
    )
    return finish(steps, progress)


def gate_steps(
    program: Program,
    samples: Iterable[Sequence[torch.Tensor]],
    key: GateKey,
    *,
    forms: Sequence[Form] = LOSSY,
    cuts: Sequence[Cut] | None = None,
    known: Gate | None = None,
    tables: Mapping[int, TransformTables] | None = None,
    enough: float | None = None,
    most: int = MOST_SAMPLES,
    worth: Worth | None = None,
) -> Steps[Gate]:
    """Measure the fidelity of ``cuts`` (all topological ones when None) in each of ``forms`` against the
    whole network.

    ``samples`` are input leaves in the order of ``graph.inputs``, batch 1 where the batch is free.  They are
    taken in growing portions, four first and ``most`` in all, as long as there is a pair of which they do
    not show yet whether its agreement is ``enough``; all for all pairs when that is None.  With ``worth``
    only those are judged that it names, which is asked again after each portion.  What ``known`` holds and
    is decided is not measured again, and is part of the answer.

    The transform is judged where all that crosses has ``tables``, by slot; the samples should not be those
    that they were fitted to.

    Costs a run of the network per sample, up to another, and about half of one per sample and pair.  A step
    takes four samples at most; how many steps are left is the most that there can be.  Raises ValueError
    without any sample.
    """
    graph = program.graph
    coders = tables or {}
    wanted = missing(graph, graph.cuts if cuts is None else cuts, forms, known, enough, most, coders)
    gate = Gate(key, 0, {}) if known is None else replace(known, key=key)
    source = islice(samples, most)
    compared: dict[Pair, Compared] = {}
    count = done = 0
    while wanted := _worthwhile(wanted, gate, enough, worth):
        portion = list(islice(source, max(_FIRST, count)))
        if not portion:
            break
        total = done + sum(len(forms) for _, forms in wanted) * (most - count)
        for batch, leaves in _batched(graph, portion):
            whole = program(leaves)
            yield done, total
            for pair, answer in _answers(program, leaves, whole, wanted, coders):
                compared.setdefault(pair, Compared()).add(whole, answer, key.agreement)
                done += batch
                yield done, total
        count += len(portion)
        gate = _with(gate, count, wanted, compared)
        wanted = _undecided(wanted, gate, enough, most)
    if wanted and not count:
        raise ValueError("no sample to measure the accuracy gate on")
    if done:
        yield done, done
    return gate


def missing(
    graph: Graph,
    cuts: Sequence[Cut],
    forms: Sequence[Form],
    known: Gate | None,
    enough: float | None = None,
    most: int = MOST_SAMPLES,
    coded: Collection[int] = (),
) -> list[Wanted]:
    """What is to be measured: one cut for every set of tensors that crosses, in the order of ``cuts``, each
    with the forms that ``known`` does not hold, or on too few of ``most`` samples to say whether they are
    good ``enough``.  Forms change floats only, and cuts without any need none; the transform needs all of
    them to be among the ``coded`` slots."""
    lossy = {
        cut.live: cut for cut in reversed(cuts) if any(graph.values[slot].dtype.is_float for slot in cut.live)
    }
    floats = {live: {slot for slot in live if graph.values[slot].dtype.is_float} for live in lossy}
    wanted = [
        (lossy[live], [form for form in forms if not form.is_transform or floats[live].issubset(coded)])
        for live in dict.fromkeys(cut.live for cut in cuts)
        if live in lossy
    ]
    wanted = [(cut, some) for cut, some in wanted if some]
    return wanted if known is None else _undecided(wanted, known, enough, most)


def _undecided(pairs: Sequence[Wanted], gate: Gate, enough: float | None, most: int) -> list[Wanted]:
    """The pairs of which it is not known yet whether they are good enough."""

    def is_open(live: tuple[int, ...], form: Form) -> bool:
        fidelity = gate.measured.get(live, {}).get(form)
        return fidelity is None or not fidelity.is_decided(gate.key.agreement, enough, most)

    return _only(pairs, is_open)


def _worthwhile(
    pairs: Sequence[Wanted], gate: Gate, enough: float | None, worth: Worth | None
) -> list[Wanted]:
    if worth is None or enough is None:
        return list(pairs)
    named = worth.pairs(gate, enough, [(cut.live, form) for cut, forms in pairs for form in forms])
    return _only(pairs, lambda live, form: (live, form) in named)


def _only(pairs: Sequence[Wanted], is_wanted: Callable[[tuple[int, ...], Form], bool]) -> list[Wanted]:
    left = [(cut, [form for form in forms if is_wanted(cut.live, form)]) for cut, forms in pairs]
    return [(cut, forms) for cut, forms in left if forms]


def _with(gate: Gate, count: int, pairs: Sequence[Wanted], compared: Mapping[Pair, Compared]) -> Gate:
    """The gate with what ``count`` samples show of these pairs."""
    measured = dict(gate.measured)
    for cut, forms in pairs:
        found = {form: compared[cut.live, form].fidelity(gate.key.agreement) for form in forms}
        measured[cut.live] = {**measured.get(cut.live, {}), **found}
    return Gate(gate.key, max(count, gate.samples), measured)


def _answers(
    program: Program,
    leaves: Sequence[torch.Tensor],
    whole: Sequence[torch.Tensor],
    pairs: Sequence[Wanted],
    tables: Mapping[int, TransformTables],
) -> Iterator[tuple[Pair, list[torch.Tensor]]]:
    """For every pair the network's outputs with the cut's tensors as they arrive; ``whole`` are the outputs
    with the tensors as they are.

    The network runs once, up to the last tensor that is sent, and holds each from where it is computed to
    the last cut that sends it: also for cuts that are no prefix of it.
    """
    computed = {slot: program.graph.flow.producer[slot] + 1 for cut, _ in pairs for slot in cut.live}
    uses = Counter(slot for cut, _ in pairs for slot in cut.live)
    held: dict[int, torch.Tensor] = {}
    state = program.start(leaves)
    for position in sorted(set(computed.values())):
        program.run(state, range(state.next, position))
        held |= {slot: state.slots[slot] for slot, at in computed.items() if at == position}
        for cut, forms in pairs:
            if max(computed[slot] for slot in cut.live) == position:
                tensors = [held[slot] for slot in cut.live]
                for form in forms:
                    sent = _as_sent(program.graph, cut, tensors, form, state.batch, tables)
                    tail = program.resume(cut, sent, state.batch)
                    program.run(tail, cut.cloud_units)
                    yield (cut.live, form), _outputs(program, cut, tail, whole)
                uses.subtract(cut.live)
        held = {slot: tensor for slot, tensor in held.items() if uses[slot]}


def _as_sent(
    graph: Graph,
    cut: Cut,
    tensors: Sequence[torch.Tensor],
    form: Form,
    batch: int,
    tables: Mapping[int, TransformTables],
) -> list[torch.Tensor]:
    """The cut's tensors as they arrive."""
    codec = Codec.of_form(form)
    sent = []
    for slot, tensor, spec in zip(cut.live, tensors, graph.live_specs(cut, batch), strict=True):
        table = tables.get(slot)
        header, payload = encode(tensor.cpu(), codec, slot, table)
        sent.append(decode(header, payload, spec, table))
    return sent


def _outputs(program: Program, cut: Cut, tail: State, whole: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The network's outputs: the cloud's, and those that the device has computed itself."""
    graph, answered = program.graph, program.outputs(tail)
    from_cloud = frozenset(graph.output_slots_of(cut))
    return [
        answered[slot] if slot in from_cloud else kept
        for slot, kept in zip(graph.outputs, whole, strict=True)
    ]


def _batched(
    graph: Graph, samples: Sequence[Sequence[torch.Tensor]]
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Batches of samples, each with how many it holds."""
    together = _TOGETHER if graph.dynamic_batch else 1
    for first in range(0, len(samples), together):
        group = samples[first : first + together]
        yield (
            len(group),
            [
                torch.cat(leaves)
                if len(group) > 1 and any(per for per, _ in graph.values[slot].dims)
                else leaves[0]
                for slot, *leaves in zip(graph.inputs, *group, strict=True)
            ],
        )
