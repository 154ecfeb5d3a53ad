"""The device's worker in virtual time: right answers, after as long as the profile says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from edge_agent.runner import Answer, Prefix, decode_outputs
from edge_agent.worker import Stopped, Work
from shared.codec import Codec, encode
from shared.graph import Cut, Program, load
from shared.graph.capture import capture
from shared.plan.measure import measure_profile
from shared.plan.profile import Profile, ProfileKey
from shared.wire.messages import TensorHeader
from tests.edge_agent import edge_networks as networks

__all__ = ["UNIT_MS", "VirtualWorker", "cloud_part", "network"]

UNIT_MS = 10.0
"""What every unit of the network takes on the device; a tenth of it in the cloud."""

_STEP_MS = 10.0


@cache
def network() -> tuple[Program, Profile]:
    module, args = networks.photos()
    program = load(capture(module, args, name="photos"))
    measured = measure_profile(
        program, [list(args)], ProfileKey(program.graph.digest, "virtual", 1, ""), repeats=3
    )
    units = len(program.graph.units)
    return program, replace(measured, unit_ms=(UNIT_MS,) * units, whole_ms=UNIT_MS * units)


@cache
def _device_part(cut: Cut, codecs: tuple[Codec, ...]) -> Prefix:
    program, _ = network()
    state = program.start([networks.BATCH_ONE])
    program.run(state, cut.edge_units)
    live = program.live(state, cut)
    encoded = [encode(each, codec, slot) for each, codec, slot in zip(live, codecs, cut.live, strict=True)]
    headers, payloads = [header for header, _ in encoded], [bytes(payload) for _, payload in encoded]
    return Prefix(state.batch, live, dict(program.outputs(state)), headers, payloads, 0.0, 0.0, 0.0)


@cache
def _whole(cut: Cut) -> dict[int, torch.Tensor]:
    program, _ = network()
    prefix = _device_part(cut, (Codec.FLOAT32,) * len(cut.live))
    state = program.resume(cut, prefix.live, prefix.batch)
    program.run(state, cut.cloud_units)
    return {**prefix.outputs, **program.outputs(state)}


@cache
def cloud_part(cut: Cut) -> list[tuple[TensorHeader, bytes]]:
    """What a replica answers to that cut."""
    program, _ = network()
    outputs = _whole(cut)
    slots = program.graph.output_slots_of(cut)
    return [(header, bytes(data)) for header, data in (encode(outputs[s], Codec.FLOAT32, s) for s in slots)]


@dataclass
class _Job:
    urgent: bool
    left_ms: float
    work: Work
    done: asyncio.Future[None]


class VirtualWorker:
    """What the pipeline asks of a runner, for the one image of these tests.

    Everything takes ``factor`` times what the profile says; ``hold_ms`` delays the next step, as one operator
    that takes long would.
    """

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.hold_ms = 0.0
        self._jobs: list[_Job] = []
        self._changed = asyncio.Event()

    def queued_ms(self) -> float:
        return sum(job.left_ms for job in self._jobs) / self.factor

    def urgent_ms(self) -> float:
        return sum(job.left_ms for job in self._jobs if job.urgent) / self.factor

    async def prefix(
        self, name: str, leaves: Sequence[Any], cut: Cut, codecs: Sequence[Codec], work: Work, **_: Any
    ) -> Prefix:
        ms = await self._take(len(cut.edge_units) * UNIT_MS, work, urgent=False)
        return replace(_device_part(cut, tuple(codecs)), compute_ms=ms)

    async def finish(self, name: str, cut: Cut, prefix: Prefix, work: Work, **_: Any) -> Answer:
        ms = await self._take(len(cut.cloud_units) * UNIT_MS, work, urgent=True)
        return Answer(_whole(cut), 0.0, ms)

    async def decode(
        self,
        name: str,
        cut: Cut,
        prefix: Prefix,
        headers: Sequence[TensorHeader],
        payloads: Sequence[Any],
        work: Work,
    ) -> Answer:
        outputs = decode_outputs(network()[0].graph, cut, prefix.batch, headers, payloads)
        return Answer({**prefix.outputs, **outputs}, 0.0, 0.0)

    async def run(self) -> None:
        """The thread: urgent jobs first, and between two steps of others."""
        while True:
            while not self._jobs:
                self._changed.clear()
                await self._changed.wait()
            job = next((job for job in self._jobs if job.urgent), self._jobs[0])
            step_ms, hold_ms, self.hold_ms = min(job.left_ms, _STEP_MS), self.hold_ms, 0.0
            await asyncio.sleep((step_ms + hold_ms) / 1000.0)
            job.left_ms -= step_ms
            if job.work.stopped or job.left_ms <= 1e-9:
                self._jobs.remove(job)
                if not job.done.done():
                    job.done.set_result(None)

    async def _take(self, expected_ms: float, work: Work, *, urgent: bool) -> float:
        ms = expected_ms * self.factor
        job = _Job(urgent, ms, work, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._changed.set()
        await job.done
        if work.stopped:
            raise Stopped
        return ms
