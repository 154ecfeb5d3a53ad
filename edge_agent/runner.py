"""The device's compute: one thread that runs prefixes, encodes, finishes and decodes, in turn.

All torch work of an agent passes through :meth:`Runner._timed`, so that the measured times, the
profile's included, are what the planner predicts from.  Work that nobody wants any more stops between
two chunks of units.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from edge_agent.measuring import Question, gate_of, profile_of
from edge_agent.spares import Spares
from edge_agent.tensors import check_device, to_tensor
from edge_agent.worker import Stopped, Work, Worker
from shared.calibration import Calibration
from shared.codec import Codec, decode, encode
from shared.codec.threads import one_thread
from shared.errors import CodecError, InternalError
from shared.graph import CapturedModel, Cut, Graph, Program, State, load
from shared.plan.gate import Gate
from shared.plan.profile import Profile, ProfileKey
from shared.plan.steps import Progress, Steps, finish
from shared.wire import Buffer
from shared.wire.messages import TensorHeader

if TYPE_CHECKING:
    from shared.codec.network_tables import NetworkTables
    from shared.codec.transform import TransformTables

__all__ = ["UNMEASURED", "Answer", "Prefix", "Runner", "Stopped", "Work", "decode_outputs", "decodes_inline"]

T = TypeVar("T")

_UNITS_PER_CHUNK = 8
"""Unwanted work stops between two chunks: few units to free the worker soon, enough to cost nothing."""

UNMEASURED = (InternalError, torch.OutOfMemoryError, MemoryError)
"""What may keep the worker from measuring without being a defect: its thread died, or memory ran out."""

_DECODE_INLINE_BYTES = 65_536
"""Answers up to this size decode faster than a hop to the worker takes, however busy it is."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The device's part of a request, kept until its answer is there.

    ``live`` are the tensors that cross the cut, ``outputs`` those results of the network that the device
    has computed, by slot.  ``headers`` and ``payloads`` encode ``live``; both are empty after the last cut.
    """

    batch: int
    live: Sequence[torch.Tensor]
    outputs: Mapping[int, torch.Tensor]
    headers: Sequence[TensorHeader]
    payloads: Sequence[Buffer]
    wait_ms: float
    compute_ms: float
    encode_ms: float

    @property
    def payload_bytes(self) -> int:
        return sum(header.payload_bytes for header in self.headers)


@dataclass(frozen=True, slots=True)
class Answer:
    """Results of the network by slot, and how long they waited for the worker and took there."""

    outputs: Mapping[int, torch.Tensor]
    wait_ms: float
    compute_ms: float


class Runner:
    """Owns one program per network and the only thread that runs them.

    Raises StartupError when torch cannot use ``device``, a torch device name.  ``threads`` is the number
    of torch threads inside one operator, None for torch's own choice.
    """

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        check_device(device)
        self.device = device
        self.threads = threads
        self._programs: dict[str, Program] = {}
        self._tables: dict[str, Mapping[int, TransformTables]] = {}
        self._spares = Spares()
        self._worker = Worker("suture-torch", self._set_up_thread)

    def _set_up_thread(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    @property
    def profile_device(self) -> str:
        """Names this device in the cache of profiles."""
        return self.device

    def profile_clock(self) -> float:
        """Seconds, as the profile measures them."""
        return time.perf_counter()

    def _timed(self, section: str, body: Callable[[], T]) -> tuple[T, float]:
        """Run one section of compute in the worker thread; its result and its milliseconds."""
        start = time.perf_counter()
        value = body()
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)
        return value, (time.perf_counter() - start) * 1000.0

    def program(self, name: str) -> Program:
        return self._programs[name]

    def urgent_ms(self) -> float:
        """Expected time until the local completion of a request would start, if it were begun now."""
        return self._worker.urgent_ms()

    def queued_ms(self) -> float:
        """Expected time until a job submitted now would start."""
        return self._worker.queued_ms()

    async def load(self, name: str, captured: CapturedModel, tables: NetworkTables | None = None) -> Graph:
        """Make the network ready to run under ``name``, and to encode its tensors by ``tables``."""
        program = await self.call(lambda: load(captured, device=self.device))
        self._programs[name] = program
        self._tables[name] = {} if tables is None else tables.by_slot
        self._spares.add(name, captured)
        return program.graph

    async def profile(
        self,
        name: str,
        calibration: Calibration,
        *,
        cache_dir: Path,
        repeats: int,
        progress: Progress | None = None,
    ) -> Profile:
        """What the network costs here: as kept in ``cache_dir``, or measured now and kept there."""
        steps = self.profile_steps(name, calibration, cache_dir=cache_dir, repeats=repeats)
        return await self.call(partial(finish, steps, progress))

    def profile_steps(
        self, name: str, calibration: Calibration, *, cache_dir: Path, repeats: int
    ) -> Steps[Profile]:
        """As :meth:`profile`, to be advanced on the worker by :meth:`call`."""
        key = self.profile_key(name, calibration)
        program, clock = self._programs[name], self.profile_clock
        tables = self._tables[name]
        return (
            yield from profile_of(
                program, calibration, key, cache_dir, repeats=repeats, clock=clock, tables=tables
            )
        )

    def profile_key(self, name: str, calibration: Calibration) -> ProfileKey:
        """What a profile measured here now depends on.  To be asked on the worker, whose threads count."""
        program = self._programs[name]
        return ProfileKey(
            program.graph.digest,
            self.profile_device,
            torch.get_num_threads(),
            torch.__version__,
            mode=program.mode,
            calibration=calibration.name,
        )

    async def gate(
        self,
        name: str,
        calibration: Calibration,
        question: Question,
        *,
        cache_dir: Path,
        known: Gate | None = None,
        progress: Progress | None = None,
    ) -> Gate:
        """What lossy codecs do to the network's answer: as ``known``, as kept in ``cache_dir``, or measured
        now and kept there, as closely as the question asks."""
        steps = self.gate_steps(name, calibration, question, cache_dir=cache_dir, known=known)
        return await self.call(partial(finish, steps, progress))

    def gate_steps(
        self,
        name: str,
        calibration: Calibration,
        question: Question,
        *,
        cache_dir: Path,
        known: Gate | None = None,
    ) -> Steps[Gate]:
        """As :meth:`gate`, to be advanced on the worker by :meth:`call`."""
        program, tables = self._programs[name], self._tables[name]
        return gate_of(program, calibration, cache_dir, question, tables, known)

    async def call(self, body: Callable[[], T], *, expected_ms: float = 0.0) -> T:
        """Anything else that needs the worker, e.g. measuring.  Cancelling skips it if it has not begun."""
        value, _ = await self._worker.run(body, Work(), expected_ms)
        return value

    async def prefix(
        self,
        name: str,
        leaves: Sequence[object],
        cut: Cut,
        codecs: Sequence[Codec],
        work: Work,
        *,
        expected_ms: float = 0.0,
    ) -> Prefix:
        """Run the units below ``cut`` on arrays or tensors and encode what crosses it, in one hop.

        ``codecs`` has one codec for each tensor of ``cut.live``.

        Raises Stopped when ``work`` was stopped, RuntimeError when torch cannot compute it.
        """

        tables = self._tables[name]

        def body(program: Program) -> Prefix:
            tensors = [to_tensor(leaf, program.device) for leaf in leaves]
            state, compute_ms = self._timed("start", lambda: program.start(tensors))
            compute_ms += self._run(program, state, cut.edge_units, work)
            live = program.live(state, cut)
            encoded, encode_ms = self._timed("encode", lambda: _encode(live, cut, codecs, tables))
            return Prefix(
                batch=state.batch,
                live=live,
                outputs=dict(program.outputs(state)),
                headers=[header for header, _ in encoded],
                payloads=[payload for _, payload in encoded],
                wait_ms=0.0,
                compute_ms=compute_ms,
                encode_ms=encode_ms,
            )

        prefix, wait_ms = await self._worker.run(self._wherever_it_fits(name, body), work, expected_ms)
        return replace(prefix, wait_ms=wait_ms)

    async def finish(
        self, name: str, cut: Cut, prefix: Prefix, work: Work, *, expected_ms: float = 0.0
    ) -> Answer:
        """Run the units above ``cut`` on the device, from the tensors that ``prefix`` kept.

        Can be repeated.  Raises Stopped when ``work`` was stopped, RuntimeError when torch cannot.
        """

        def body(program: Program) -> tuple[dict[int, torch.Tensor], float]:
            state, compute_ms = self._timed("start", lambda: program.resume(cut, prefix.live, prefix.batch))
            compute_ms += self._run(program, state, cut.cloud_units, work)
            return {**prefix.outputs, **program.outputs(state)}, compute_ms

        fitting = self._wherever_it_fits(name, body)
        (outputs, compute_ms), wait_ms = await self._worker.run(fitting, work, expected_ms, urgent=True)
        return Answer(outputs, wait_ms, compute_ms)

    async def decode(
        self,
        name: str,
        cut: Cut,
        prefix: Prefix,
        headers: Sequence[TensorHeader],
        payloads: Sequence[Buffer],
        work: Work,
    ) -> Answer:
        """Decode the cloud's answer and add the outputs of the device.

        Raises CodecError when the answer is not what the network's outputs at this cut look like.
        """
        graph = self._programs[name].graph

        def body() -> tuple[dict[int, torch.Tensor], float]:
            decoded, ms = self._timed(
                "decode", lambda: decode_outputs(graph, cut, prefix.batch, headers, payloads)
            )
            return {**prefix.outputs, **decoded}, ms

        if decodes_inline(headers):
            outputs, ms = body()
            return Answer(outputs, 0.0, ms)
        (outputs, ms), wait_ms = await self._worker.run(body, work, 0.0, urgent=True)
        return Answer(outputs, wait_ms, ms)

    async def close(self, patience_s: float = 10.0) -> bool:
        """Skip what has not begun and wait for what has.  False when that has not ended in time."""
        return await self._worker.close(patience_s)

    def _wherever_it_fits(self, name: str, body: Callable[[Program], T]) -> Callable[[], T]:
        """``body`` with the network's program; where the device's memory is full, with that of the CPU."""

        def fitting() -> T:
            try:
                value = body(self._programs[name])
            except torch.OutOfMemoryError as error:
                spare = self._spares.take(name, error)
                return body(spare)
            self._spares.on_fitting(name)
            return value

        return fitting

    def _run(self, program: Program, state: State, units: Sequence[int], work: Work) -> float:
        total_ms = 0.0
        for first in range(0, len(units), _UNITS_PER_CHUNK):
            if work.stopped:
                raise Stopped
            chunk = units[first : first + _UNITS_PER_CHUNK]
            _, ms = self._timed("compute", partial(program.run, state, chunk))
            total_ms += ms
            self._worker.give_way()
        return total_ms


def _encode(
    live: Sequence[torch.Tensor],
    cut: Cut,
    codecs: Sequence[Codec],
    tables: Mapping[int, TransformTables],
) -> list[tuple[TensorHeader, Buffer]]:
    with one_thread():
        return [
            encode(tensor.cpu(), codec, slot, tables.get(slot))
            for tensor, slot, codec in zip(live, cut.live, codecs, strict=True)
        ]


def decodes_inline(headers: Sequence[TensorHeader]) -> bool:
    """Whether an answer is decoded on the event loop, whatever the worker is at."""
    return sum(header.payload_bytes for header in headers) <= _DECODE_INLINE_BYTES


def decode_outputs(
    graph: Graph, cut: Cut, batch: int, headers: Sequence[TensorHeader], payloads: Sequence[Buffer]
) -> dict[int, torch.Tensor]:
    """The cloud's answer by slot.  Raises CodecError when it is not what the outputs look like."""
    slots = graph.output_slots_of(cut)
    if sorted(header.slot for header in headers) != sorted(slots):
        raise CodecError(
            f"the answer holds the slots {[header.slot for header in headers]}, "
            f"but {graph.name} cut after {cut.name} is answered by {list(slots)}"
        )
    specs = dict(zip(slots, graph.specs(slots, batch), strict=True))
    with one_thread():
        return {
            header.slot: decode(header, payload, specs[header.slot])
            for header, payload in zip(headers, payloads, strict=True)
        }
