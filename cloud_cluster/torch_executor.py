"""The executor that runs the real network: decode, resume at the cut, run the tail, encode."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from cloud_cluster.executor import Outcome
from shared.codec import Codec, decode, encode
from shared.config import ServedModelConfig
from shared.errors import CodecError, InputMismatchError, ProtocolError, RefusedError
from shared.graph import Cut, Graph, Program, load
from shared.models import Model, resolve
from shared.plan.profile import Profile, ProfileKey, load_profile, save_profile
from shared.tensor import TensorSpec
from shared.wire import SET_CUT, Buffer, Message
from shared.wire.messages import Infer, TensorHeader

__all__ = ["TorchExecutor"]

log = logging.getLogger("suture.tail")


class TorchExecutor:
    """See :class:`cloud_cluster.executor.Executor`."""

    def __init__(self, program: Program, unit_ms: Sequence[float], device: str = "cpu") -> None:
        self._program = program
        self._graph: Graph = program.graph
        self._unit_ms = tuple(unit_ms)
        self._device = torch.device(device)

    @classmethod
    def load(cls, source: ServedModelConfig, cache_dir: Path | None, repeats: int) -> TorchExecutor:
        """Resolve, fuse and profile; see :func:`cloud_cluster.executor.load_executor`."""
        # Ray sets OMP_NUM_THREADS from the reserved cpus; the configured number is what counts.
        torch.set_num_threads(source.threads)
        model = resolve(source, cache_dir)
        program = load(model.captured, device=source.device, mode="fused")
        return cls(program, _unit_ms(model, program, source, cache_dir, repeats), source.device)

    @property
    def digest(self) -> str:
        return self._graph.digest

    @property
    def unit_ms(self) -> Sequence[float]:
        return self._unit_ms

    def execute(self, message: Message) -> Outcome:
        infer: Infer = message.header
        cut = self._cut(message.cut, infer)
        specs = self._checked_specs(cut, infer)
        try:
            reply_codec = Codec(infer.reply_codec)
        except ValueError as error:
            raise CodecError(f"reply codec {infer.reply_codec:#04x} is not known here") from error

        started = time.perf_counter()
        tensors = [
            decode(header, payload, spec).to(self._device)
            for header, payload, spec in zip(infer.tensors, message.payloads, specs, strict=True)
        ]
        decoded = time.perf_counter()
        outputs = self._run(cut, tensors, infer.batch)
        computed = time.perf_counter()
        encoded: list[tuple[TensorHeader, Buffer]] = [
            encode(outputs[slot], reply_codec, slot) for slot in self._graph.output_slots_of(cut)
        ]
        return Outcome(
            tensors=[header for header, _ in encoded],
            payloads=[payload for _, payload in encoded],
            decode_ms=(decoded - started) * 1e3,
            compute_ms=(computed - decoded) * 1e3,
            encode_ms=(time.perf_counter() - computed) * 1e3,
            expected_ms=sum(self._unit_ms[unit] for unit in cut.cloud_units) * infer.batch,
        )

    def _cut(self, index: int, infer: Infer) -> Cut:
        if index == SET_CUT:
            return self._graph.cut_for_tail_units(infer.tail_units)
        if index >= len(self._graph.cuts):
            raise ProtocolError(f"{self._graph.name} has cuts 0 to {len(self._graph.cuts) - 1}, not {index}")
        return self._graph.cuts[index]

    def _checked_specs(self, cut: Cut, infer: Infer) -> tuple[TensorSpec, ...]:
        """What must arrive at this cut, after comparing it with what did; nothing is decoded yet."""
        graph = self._graph
        if not graph.dynamic_batch and infer.batch != graph.captured_batch:
            raise InputMismatchError(
                f"{graph.name} runs at batch {graph.captured_batch} only, not {infer.batch}"
            )
        specs = graph.live_specs(cut, infer.batch)
        slots = [header.slot for header in infer.tensors]
        if slots != list(cut.live):
            raise InputMismatchError(f"cut {cut.name} takes slots {list(cut.live)}, not {slots}")
        for header, spec in zip(infer.tensors, specs, strict=True):
            if header.dtype != spec.dtype or tuple(header.shape) != spec.shape:
                raise InputMismatchError(
                    f"cut {cut.name}: {spec.name} must be dtype {int(spec.dtype)} {list(spec.shape)}, "
                    f"not dtype {header.dtype} {header.shape}"
                )
        return specs

    def _run(self, cut: Cut, tensors: list[torch.Tensor], batch: int) -> dict[int, torch.Tensor]:
        try:
            state = self._program.resume(cut, tensors, batch)
            self._program.run(state, cut.cloud_units)
            outputs = dict(self._program.outputs(state))
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        except torch.OutOfMemoryError as error:
            raise RefusedError(f"no memory on {self._device} for this request: {error}") from error
        except (RuntimeError, IndexError) as error:
            # Shapes and dtypes were right, so it is the values: a token that the vocabulary does not have.
            raise InputMismatchError(f"{self._graph.name} cannot run on these values: {error}") from error
        return outputs


def _unit_ms(
    model: Model, program: Program, source: ServedModelConfig, cache_dir: Path | None, repeats: int
) -> tuple[float, ...]:
    """The median time of every unit at batch 1, from the cache or measured now."""
    graph = program.graph
    key = ProfileKey(graph.digest, source.device, source.threads, torch.__version__, calibration="units")
    if cache_dir is not None:
        kept, warning = load_profile(cache_dir, key, len(graph.units))
        if warning is not None:
            log.warning("%s", warning)
        if kept is not None:
            return kept.unit_ms
    args, kwargs = model.example
    leaves = [
        _first_sample(graph, slot, leaf)
        for slot, leaf in zip(graph.inputs, graph.flatten(args, kwargs), strict=True)
    ]
    times = program.unit_times(leaves, repeats, time.perf_counter)
    medians = tuple(statistics.median(unit) for unit in times)
    if cache_dir is not None:
        spreads = tuple(_half_quartiles(unit) for unit in times)
        profile = Profile(key, medians, spreads, sum(medians), sum(spreads), repeats, {})
        warning = save_profile(cache_dir, profile)
        if warning is not None:
            log.warning("%s", warning)
    return medians


def _first_sample(graph: Graph, slot: int, leaf: torch.Tensor) -> torch.Tensor:
    dims = graph.values[slot].dims
    if not graph.dynamic_batch or not dims or dims[0][0] == 0:
        return leaf
    per_batch, fixed = dims[0]
    return leaf[: per_batch + fixed]


def _half_quartiles(samples: Sequence[float]) -> float:
    low, _, high = statistics.quantiles(samples, n=4)
    return (high - low) / 2
