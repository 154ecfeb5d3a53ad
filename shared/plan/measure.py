"""Measure a network on this machine: every unit's time, and every tensor's size and time in every codec.

This is the one module of plans that needs torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import count
from statistics import fmean, median, quantiles, stdev
from typing import TYPE_CHECKING

import torch

from shared.codec import Codec, decode, encode
from shared.codec.threads import one_thread
from shared.graph.ir import Graph
from shared.graph.run import Program
from shared.plan.profile import CodecCost, Profile, ProfileKey
from shared.plan.steps import Progress, Steps, finish
from shared.tensor import DType, TensorSpec

if TYPE_CHECKING:
    from shared.codec.transform import TransformTables

__all__ = ["Progress", "measure_profile", "plain_profile", "profile_steps"]

Clock = Callable[[], float]

_WARM_UP_RUNS = 2
_SAMPLES, _FEW_SAMPLES = 5, 3
_LONG_MS = 1.0
_LEAST_SIZES, _SIZE_ERROR = 4, 0.01


def measure_profile(
    program: Program,
    examples: Sequence[Sequence[torch.Tensor]],
    key: ProfileKey,
    *,
    repeats: int = 10,
    codecs: Sequence[Codec] = tuple(Codec),
    tables: Mapping[int, TransformTables] | None = None,
    fitted: Collection[int] = (),
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> Profile:
    """The profile of ``program``, as of :func:`profile_steps`."""
    steps = profile_steps(
        program, examples, key, repeats=repeats, codecs=codecs, tables=tables, fitted=fitted, clock=clock
    )
    return finish(steps, progress)


def profile_steps(
    program: Program,
    examples: Sequence[Sequence[torch.Tensor]],
    key: ProfileKey,
    *,
    repeats: int = 10,
    codecs: Sequence[Codec] = tuple(Codec),
    tables: Mapping[int, TransformTables] | None = None,
    fitted: Collection[int] = (),
    clock: Clock = time.perf_counter,
) -> Steps[Profile]:
    """Measure the profile of ``program`` under the torch threads of the calling thread.

    ``examples`` are input leaves in the order of ``graph.inputs``, at batch 1 where the network's batch is
    free.  Times are taken on the first; payload sizes are means over all, on their real activations, or over
    as many as it takes for the mean's standard error to be below 1%, four at least.
    A tensor that is not of floats is the same under every form, and is measured once for each entropy stage.
    The transform is measured of tensors that have ``tables``, by slot, on all examples but those numbered in
    ``fitted``, which the tables were fitted to.
    ``clock`` gives seconds.  Takes about ``repeats`` runs of the network twice over, and for every tensor
    that can cross a cut a few encodings and decodings in each codec.
    """
    graph = program.graph
    slots = _sendable_slots(graph)
    steps_in_all = 2 * repeats + len(slots) * len(examples)
    numbers = count(1)
    leaves = examples[0]
    for _ in range(_WARM_UP_RUNS):
        program(leaves)
    unit_samples: list[list[float]] = [[] for _ in graph.units]
    whole_samples: list[float] = []
    for _ in range(repeats):  # interleaved, so that both see the same clock rates and neighbours
        for samples, one in zip(unit_samples, program.unit_times(leaves, 1, clock), strict=True):
            samples.extend(one)
        yield next(numbers), steps_in_all
        whole_samples.append(_median_ms(lambda: program(leaves), program.device, clock, 1))
        yield next(numbers), steps_in_all

    coders = tables or {}
    floats = {slot for slot in slots if graph.values[slot].dtype.is_float}
    sent_as = {
        slot: {
            codec: _as_sent(codec, graph.values[slot].dtype)
            for codec in codecs
            if not codec.form.is_transform or slot in coders or (coders and slot not in floats)
        }
        for slot in slots
    }
    sizes: dict[int, dict[Codec, list[float]]] = {
        slot: {codec: [] for codec in sent_as[slot].values()} for slot in slots
    }
    times: dict[int, dict[Codec, tuple[float, float]]] = {slot: {} for slot in slots}
    for number, example in enumerate(examples):
        batch = program.start(example).batch
        for slot, tensor in _activations(program, example, slots):
            spec, table = graph.values[slot].at(batch), coders.get(slot)
            seen = [codec for codec in sizes[slot] if not (codec.form.is_transform and number in fitted)]
            for codec in seen:
                if codec not in times[slot]:
                    times[slot][codec] = _codec_ms(tensor, codec, slot, spec, table, program.device, clock)
            with one_thread():
                for codec in seen:
                    if not _is_settled(sizes[slot][codec], codec):
                        nbytes = encode(tensor, codec, slot, table)[0].payload_bytes
                        sizes[slot][codec].append(float(nbytes))
            yield next(numbers), steps_in_all
    return Profile(
        key=key,
        unit_ms=tuple(median(samples) for samples in unit_samples),
        unit_spread_ms=tuple(_half_quartiles(samples) for samples in unit_samples),
        whole_ms=median(whole_samples),
        whole_spread_ms=_half_quartiles(whole_samples),
        repeats=repeats,
        payloads={
            slot: {
                codec: CodecCost(fmean(sizes[slot][sent]), *times[slot][sent])
                for codec, sent in sent_as[slot].items()
                if sizes[slot][sent]
            }
            for slot in slots
        },
    )


def plain_profile(
    program: Program,
    unit_ms: Sequence[float],
    key: ProfileKey,
    clock: Clock = time.perf_counter,
) -> Profile:
    """A profile of which the units' times are predicted, in a fraction of a second.

    It holds the codecs without an entropy stage: their payloads have the same size whatever the values,
    and are timed on noise of the tensors' shapes.  Those with one need the network's activations.
    """
    graph = program.graph
    batch = 1 if graph.dynamic_batch else graph.captured_batch
    generator = torch.Generator().manual_seed(0)
    payloads = {}
    for slot in _sendable_slots(graph):
        spec = graph.values[slot].at(batch)
        noise = torch.rand(spec.shape, generator=generator).to(getattr(torch, spec.dtype.label))
        menu = (codec for codec in Codec if codec is codec.plain)
        payloads[slot] = {
            codec: _plain_cost(noise, _as_sent(codec, spec.dtype), slot, spec, program.device, clock)
            for codec in menu
        }
    return Profile(
        key=key,
        unit_ms=tuple(unit_ms),
        unit_spread_ms=(0.0,) * len(unit_ms),
        whole_ms=sum(unit_ms),
        whole_spread_ms=0.0,
        repeats=0,
        payloads=payloads,
        predicted=True,
    )


def _plain_cost(
    tensor: torch.Tensor, codec: Codec, slot: int, spec: TensorSpec, device: torch.device, clock: Clock
) -> CodecCost:
    header, payload = encode(tensor, codec, slot)
    return CodecCost(
        float(header.payload_bytes),
        _median_ms(lambda: encode(tensor, codec, slot), device, clock, 1),
        _median_ms(lambda: decode(header, payload, spec), device, clock, 1),
    )


def _as_sent(codec: Codec, dtype: DType) -> Codec:
    """The lossless codec with the same entropy stage where the form changes nothing."""
    return codec if dtype.is_float else codec.lossless


def _sendable_slots(graph: Graph) -> tuple[int, ...]:
    """Every slot that some cut sends, then the outputs that no cut does."""
    crossing = [slot for cut in graph.cuts for slot in cut.live]
    produced = [slot for slot in graph.outputs if slot in graph.flow.producer]
    return tuple(dict.fromkeys([*crossing, *produced]))


def _activations(
    program: Program, example: Sequence[torch.Tensor], slots: Sequence[int]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Each of ``slots`` with its tensor, while the network runs unit by unit."""
    graph = program.graph
    wanted = set(slots)
    state = program.start(example)
    for cut in graph.cuts:
        if cut.index:
            program.run(state, range(cut.index - 1, cut.index))
        for slot, tensor in zip(cut.live, program.live(state, cut), strict=True):
            if slot in wanted:
                wanted.remove(slot)
                yield slot, tensor
    for slot, tensor in program.outputs(state).items():
        if slot in wanted:
            wanted.remove(slot)
            yield slot, tensor


def _codec_ms(
    tensor: torch.Tensor,
    codec: Codec,
    slot: int,
    spec: TensorSpec,
    table: TransformTables | None,
    device: torch.device,
    clock: Clock,
) -> tuple[float, float]:
    """Milliseconds to encode and to decode one tensor here, on one thread."""
    with one_thread():
        header, payload = encode(tensor, codec, slot, table)
        return (
            _median_ms(lambda: encode(tensor, codec, slot, table), device, clock),
            _median_ms(lambda: decode(header, payload, spec, table), device, clock),
        )


def _median_ms(
    body: Callable[[], object], device: torch.device, clock: Clock, most_samples: int = _SAMPLES
) -> float:
    """The median of some runs; fewer where one takes long."""
    samples: list[float] = []
    while len(samples) < most_samples and not (len(samples) >= _FEW_SAMPLES and samples[0] > _LONG_MS):
        began = clock()
        body()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        samples.append((clock() - began) * 1e3)
    return median(samples)


def _is_settled(sizes: Sequence[float], codec: Codec) -> bool:
    """Whether the mean size is known: without an entropy stage all are as large as the first."""
    if len(sizes) < _LEAST_SIZES:
        return bool(sizes) and codec is codec.plain
    return stdev(sizes) < _SIZE_ERROR * fmean(sizes) * math.sqrt(len(sizes))


def _half_quartiles(samples: Sequence[float]) -> float:
    """Half of the interquartile range; 0 for a single sample."""
    if len(samples) < 2:
        return 0.0
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return (high - low) / 2
