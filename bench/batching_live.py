"""Ways of batching with real torch: one network on this machine, its curves, and a replica's schedule on it.

No wire and no gateway: encoded requests are at hand, so that what is compared is what the replica's thread
does with them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.batching_replica import Policy
from cloud_cluster.curves import BatchCurves
from cloud_cluster.joining import Places, find_places
from cloud_cluster.measuring import first_samples, measured_curves
from cloud_cluster.replica_request import Done, Request
from cloud_cluster.schedule import Schedule
from cloud_cluster.torch_executor import TorchExecutor
from shared.codec import Codec, decode, encode
from shared.config import ServedModelConfig
from shared.errors import SutureError
from shared.graph import Cut, Program, load
from shared.models import resolve
from shared.wire import Message
from shared.wire.frame import Frame0
from shared.wire.messages import Infer, MessageType

__all__ = ["LiveNetwork", "spread_cuts"]

_PARTS = 5


@dataclass(slots=True, eq=False)
class LiveNetwork:
    """``cuts`` are where its requests come from, the first of them the input."""

    name: str
    program: Program
    sample: list[torch.Tensor]
    places: Places
    curves: BatchCurves
    cuts: list[int]

    @classmethod
    def measure(cls, name: str, max_batch: int, repeats: int, cache_dir: Path) -> LiveNetwork:
        """Load and measure it as a replica with one thread does."""
        torch.set_num_threads(1)
        source = ServedModelConfig(name=name, threads=1, max_batch=max_batch)
        model = resolve(source, cache_dir)
        program = load(model.captured, mode="fused")
        sample = first_samples(program.graph, model.example)
        places = find_places(program, sample)
        curves = measured_curves(program, sample, source, cache_dir, repeats, max_batch)
        return cls(name, program, sample, places, curves, spread_cuts(program, curves))

    def rates(
        self, policies: Sequence[Policy], rounds: int, requests: int, waiting: int
    ) -> tuple[dict[str, list[float]], dict[str, float], float]:
        """Answers per second of each policy in each round, in turns, while ``waiting`` requests are there,
        and by policy how many requests shared a batch on average.

        Also the worst difference between an answer and that of the network as a whole, as a share of the
        largest value.  Raises SutureError where a request is not answered.
        """
        messages = [self._message(cut) for cut in self.cuts]
        whole = self._whole()
        rates: dict[str, list[float]] = {policy.name: [] for policy in policies}
        together = dict.fromkeys(rates, 0.0)
        worst = 0.0
        for number in range(rounds + 1):
            for policy in policies:
                answers: list[Done] = []
                per_s = self._rate(policy, messages, requests, waiting, answers)
                worst = max(worst, *(self._difference(done, whole) for done in answers))
                if number:  # the first warms up
                    rates[policy.name].append(per_s)
                    together[policy.name] += (
                        statistics.fmean(done.batch_requests for done in answers) / rounds
                    )
        return rates, together, worst

    def _rate(
        self, policy: Policy, messages: Sequence[Message], requests: int, waiting: int, answers: list[Done]
    ) -> float:
        most = min(policy.max_batch, self.curves.batches[-1])
        executor = TorchExecutor(self.program, self.curves, self.places, most)
        if not policy.joins_under_way:
            executor.place_from = lambda unit: self.curves.units  # type: ignore[method-assign]
        schedule = Schedule(executor, planner=policy.planner)
        asked, began_s = 0, time.perf_counter()
        while len(answers) < requests:
            while asked < requests and asked - len(answers) < waiting:
                request = Request(messages[asked % len(messages)], answers.append, time.perf_counter())
                finished = schedule.add(request)
                asked += 1
                for callback, done in finished:
                    callback(done)
            for callback, done in schedule.turn():
                callback(done)
        return requests / (time.perf_counter() - began_s)

    def _message(self, index: int) -> Message:
        cut = self.program.graph.cuts[index]
        state = self.program.start(self.sample)
        self.program.run(state, cut.edge_units)
        live = self.program.live(state, cut)
        encoded = [encode(tensor, Codec.FLOAT32, slot) for tensor, slot in zip(live, cut.live, strict=True)]
        infer = Infer(batch=1, tensors=[header for header, _ in encoded], reply_codec=Codec.FLOAT32)
        payloads = tuple(memoryview(payload) for _, payload in encoded)
        return Message(Frame0(MessageType.INFER, cut=index), infer, payloads)

    def _whole(self) -> list[torch.Tensor]:
        state = self.program.start(self.sample)
        self.program.run(state, range(len(self.program.graph.units)))
        outputs = self.program.outputs(state)
        return [outputs[slot] for slot in self._output_slots()]

    def _output_slots(self) -> tuple[int, ...]:
        graph = self.program.graph
        return tuple(graph.output_slots_of(graph.cuts[0]))

    def _difference(self, done: Done, whole: Sequence[torch.Tensor]) -> float:
        if isinstance(done.outcome, SutureError):
            raise done.outcome
        specs = self.program.graph.specs(self._output_slots(), 1)
        outputs = [
            decode(header, payload, spec)
            for header, payload, spec in zip(done.outcome.tensors, done.outcome.payloads, specs, strict=True)
        ]
        return max(
            float((output - expected).abs().max() / expected.abs().max())
            for output, expected in zip(outputs, whole, strict=True)
        )


def spread_cuts(program: Program, curves: BatchCurves) -> list[int]:
    """The input, and of every fifth of the work but the first and the last the cut that sends least."""
    graph = program.graph
    whole_ms = curves.ms(0, curves.units, 1)
    chosen = [0]
    for part in range(1, _PARTS - 1):
        within = [
            cut
            for cut in graph.cuts
            if part / _PARTS <= curves.ms(0, min(cut.index, curves.units), 1) / whole_ms < (part + 1) / _PARTS
            and _all_outputs_are_later(program, cut)
        ]
        if within:
            chosen.append(
                min(within, key=lambda cut: sum(spec.nbytes for spec in graph.live_specs(cut, 1))).index
            )
    return chosen


def _all_outputs_are_later(program: Program, cut: Cut) -> bool:
    graph = program.graph
    return bool(np.array_equal(graph.output_slots_of(cut), graph.output_slots_of(graph.cuts[0])))
