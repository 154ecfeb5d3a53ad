"""The executor that runs the real network: decode, resume at the cut or join others there, run, encode."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cloud_cluster.curves import BatchCurves
from cloud_cluster.executor import Job, Outcome
from cloud_cluster.joining import Arrived, Places, Running, advance, begin, find_places, join, outputs_of
from cloud_cluster.measuring import first_samples, measured_curves
from cloud_cluster.precision import FLOAT32, Precision, choose_precision, computed_in
from cloud_cluster.staging import Sent, Staging, staging_for
from shared.calibration import calibrate
from shared.codec import Codec, decode, encode
from shared.codec.network_tables import NetworkTables
from shared.codec.threads import one_thread
from shared.config import ServedModelConfig
from shared.errors import CodecError, InputMismatchError, ProtocolError, RefusedError
from shared.graph import Cut, Graph, Program, load
from shared.models import resolve
from shared.tensor import TensorSpec
from shared.wire import SET_CUT, Buffer, Message
from shared.wire.messages import Infer

__all__ = ["TorchExecutor"]

log = logging.getLogger("suture.tail")


@dataclass(slots=True, eq=False)
class _Body:
    """``tensors`` once decoded; they are kept until the answer, in case the request has to begin again.

    They may be views of the payloads: none is copied but where the network computes on it.
    """

    cut: Cut
    infer: Infer
    payloads: Sequence[Buffer]
    specs: tuple[TensorSpec, ...]
    reply_codec: Codec
    tensors: Sent = field(default_factory=lambda: Sent(()))


class TorchExecutor:
    """See :class:`cloud_cluster.executor.BatchExecutor`."""

    def __init__(
        self,
        program: Program,
        curves: BatchCurves,
        places: Places | None = None,
        max_batch: int = 1,
        precision: Precision = FLOAT32,
        staging: Staging | None = None,
        tables: NetworkTables | None = None,
    ) -> None:
        self._program = program
        self._graph: Graph = program.graph
        self._places = places or Places((False,) * len(program.graph.cuts))
        self._device = program.device
        self._staging = staging or staging_for(program.device)
        self._precision = precision
        self._tables = tables
        self.decodes_ahead = program.device.type == "cuda"
        self.curves = curves
        self.max_batch = max_batch

    @classmethod
    def load(cls, source: ServedModelConfig, cache_dir: Path | None, repeats: int) -> TorchExecutor:
        """Resolve, fuse and measure; see :func:`cloud_cluster.loading.load_executor`."""
        # Ray sets OMP_NUM_THREADS from the reserved cpus; the configured number is what counts.
        torch.set_num_threads(source.torch_threads)
        model = resolve(source, cache_dir)
        program = load(model.captured, device=source.device, mode="fused")
        sample = first_samples(program.graph, model.example)
        places = find_places(program, sample) if source.max_batch > 1 else None
        precision = FLOAT32
        if source.precision != "float32" and program.device.type != "cpu":
            samples = calibrate(model, source.calibration).stream()
            precision = choose_precision(program, source, samples)
        most = source.max_batch if places else 1
        with computed_in(precision, program.device):
            curves = measured_curves(program, sample, source, cache_dir, repeats, most, precision.name)
        most = min(most, curves.batches[-1])
        executor = cls(program, curves, places, most, precision, tables=model.tables)
        # Where torch has all that is reserved, the second thread would take a core from somebody else.
        executor.decodes_ahead |= source.num_cpus >= source.torch_threads + 1
        return executor

    @property
    def digest(self) -> str:
        return self._graph.digest

    @property
    def precision(self) -> str:
        return str(self._precision)

    @property
    def tables_digest(self) -> str:
        return "" if self._tables is None else self._tables.digest

    @property
    def unit_ms(self) -> Sequence[float]:
        return self.curves.unit_ms[0]

    def place_from(self, unit: int) -> int:
        return self._places.following(unit)

    def accept(self, message: Message) -> Job:
        infer: Infer = message.header
        cut = self._cut(message.cut, infer)
        specs = self._checked_specs(cut, infer)
        try:
            reply_codec = Codec(infer.reply_codec)
        except ValueError as error:
            raise CodecError(f"reply codec {infer.reply_codec:#04x} is not known here") from error
        reached = cut.index if cut.index >= 0 else cut.edge_units[-1] + 1
        place = self._places.following(reached)
        lead: Sequence[int] = range(reached, place)
        if cut.index < 0:
            lead = tuple(unit for unit in cut.cloud_units if unit < place)
        return Job(place, lead, infer.batch, _Body(cut, infer, message.payloads, specs, reply_codec))

    def decode(self, job: Job) -> None:
        body: _Body = job.body
        tables = {} if self._tables is None else self._tables.by_slot
        with one_thread():
            tensors = [
                decode(header, payload, spec, tables.get(header.slot), share=True)
                for header, payload, spec in zip(body.infer.tensors, body.payloads, body.specs, strict=True)
            ]
        body.tensors = self._staging.send(tensors)
        body.payloads = ()

    def run(self, parts: Sequence[Job | Any], units: Sequence[int]) -> tuple[Running, float]:
        began = time.perf_counter()
        try:
            with computed_in(self._precision, self._device):
                running = self._together(parts, units)
                advance(self._program, running, units)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        except torch.OutOfMemoryError as error:
            raise RefusedError(f"no memory on {self._device} for this request: {error}") from error
        except (RuntimeError, IndexError) as error:
            # Shapes and dtypes were right, so it is the values: a token that the vocabulary does not have.
            raise InputMismatchError(f"{self._graph.name} cannot run on these values: {error}") from error
        return running, (time.perf_counter() - began) * 1e3

    def finish(self, work: Running, jobs: Sequence[Job]) -> list[Outcome]:
        return [
            self._encoded(job.body, outputs)
            for job, outputs in zip(jobs, outputs_of(self._program, work), strict=True)
        ]

    def _together(self, parts: Sequence[Job | Running], units: Sequence[int]) -> Running:
        standing = [
            Arrived(part.body.cut, part.body.tensors.take(), part.batch) if isinstance(part, Job) else part
            for part in parts
        ]
        if len(standing) > 1:
            return join(self._program, self._graph.cuts[units[0]], standing)
        (only,) = standing
        return begin(self._program, only) if isinstance(only, Arrived) else only

    def _encoded(self, body: _Body, outputs: dict[int, torch.Tensor]) -> Outcome:
        began = time.perf_counter()
        slots = self._graph.output_slots_of(body.cut)
        with one_thread():
            encoded = [
                encode(self._as_promised(outputs[slot], slot), body.reply_codec, slot) for slot in slots
            ]
        return Outcome(
            tensors=[header for header, _ in encoded],
            payloads=[payload for _, payload in encoded],
            encode_ms=(time.perf_counter() - began) * 1e3,
        )

    def _as_promised(self, output: torch.Tensor, slot: int) -> torch.Tensor:
        """In the dtype of the card, whatever the network was computed in."""
        return output.to(getattr(torch, self._graph.values[slot].dtype.label))

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
