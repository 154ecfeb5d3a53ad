"""Requests for a torch executor without a wire or a thread, and small networks that are hard to batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from cloud_cluster.curves import BatchCurves
from cloud_cluster.joining import find_places
from cloud_cluster.measuring import first_samples
from cloud_cluster.replica_request import Done, Request
from cloud_cluster.schedule import Schedule
from cloud_cluster.torch_executor import TorchExecutor
from shared.codec import Codec, decode, encode
from shared.config import ModelSource
from shared.graph import Cut, Graph, Program, load
from shared.graph.capture import capture
from shared.models import resolve
from shared.wire import SET_CUT, Message, decode_message, encode_message
from shared.wire.frame import NO_BUDGET
from shared.wire.limits import WireLimits
from shared.wire.messages import Infer


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


@dataclass(slots=True)
class Served:
    """A network behind an executor on which a batch of eight takes hardly longer than one sample."""

    program: Program
    sample: list[torch.Tensor]
    executor: TorchExecutor

    @property
    def graph(self) -> Graph:
        return self.program.graph

    def leaves(self, batch: int, seed: int) -> list[torch.Tensor]:
        """Inputs like the example's, others for every seed."""
        generator = torch.Generator().manual_seed(seed)
        made = []
        for leaf in self.sample:
            rows = leaf.expand(batch, *leaf.shape[1:])
            shuffled = rows.flatten(1)[:, torch.randperm(rows[0].numel(), generator=generator)].view(
                rows.shape
            )
            noise = torch.rand(rows.shape, generator=generator)
            made.append(shuffled + 0.1 * noise if leaf.is_floating_point() else shuffled.contiguous())
        return made

    def message(self, cut: Cut, batch: int = 1, seed: int = 0, budget_ms: int = NO_BUDGET) -> Message:
        state = self.program.start(self.leaves(batch, seed))
        self.program.run(state, cut.edge_units)
        live = self.program.live(state, cut)
        encoded = [encode(tensor, Codec.FLOAT32, slot) for tensor, slot in zip(live, cut.live, strict=True)]
        infer = Infer(
            batch=batch,
            tensors=[header for header, _ in encoded],
            reply_codec=Codec.FLOAT32,
            tail_units=self.graph.tail_units_mask(cut) if cut.index < 0 else b"",
        )
        index = SET_CUT if cut.index < 0 else cut.index
        payloads = [payload for _, payload in encoded]
        frames = encode_message(infer, payloads, request_id=seed, cut=index, budget_ms=budget_ms)
        return decode_message([bytes(frame) for frame in frames], WireLimits())

    def alone(self, cut: Cut, batch: int, seed: int) -> list[torch.Tensor]:
        """What the cloud's half gives for that message without any executor."""
        state = self.program.start(self.leaves(batch, seed))
        self.program.run(state, cut.edge_units)
        resumed = self.program.resume(cut, self.program.live(state, cut), batch)
        self.program.run(resumed, cut.cloud_units)
        outputs = self.program.outputs(resumed)
        return [outputs[slot] for slot in self.graph.output_slots_of(cut)]

    def tensors(self, done: Done, cut: Cut, batch: int) -> list[torch.Tensor]:
        outcome = done.outcome
        assert not isinstance(outcome, Exception), outcome
        specs = self.graph.specs(self.graph.output_slots_of(cut), batch)
        triples = zip(outcome.tensors, outcome.payloads, specs, strict=True)
        return [decode(header, payload, spec) for header, payload, spec in triples]


def served(program: Program, sample: list[torch.Tensor]) -> Served:
    with torch.inference_mode():
        places = find_places(program, sample)
    units = len(program.graph.units)
    curves = BatchCurves((1, 64), ((1.0,) * units, (1.5,) * units))
    return Served(program, sample, TorchExecutor(program, curves, places, max_batch=64))


def from_zoo(name: str) -> Served:
    return from_source(ModelSource(name=name))


@cache
def from_source(source: ModelSource) -> Served:
    model = resolve(source)
    program = load(model.captured)
    return served(program, first_samples(program.graph, model.example))


@cache
def from_module(make: type[torch.nn.Module], *shape: int) -> Served:
    torch.manual_seed(3)
    module = make().eval()
    sample = torch.randn(1, *shape)
    program = load(capture(module, (sample,), name=make.__name__))
    return served(program, [sample])


def run(
    served: Served, messages: Sequence[Message], clock: Any = None, schedule: Schedule | None = None
) -> list[Done]:
    """All of them at once, to the end; the answers in the order of the messages."""
    schedule = schedule or Schedule(served.executor, clock or Clock())
    answers: dict[int, Done] = {}
    for number, message in enumerate(messages):
        request = Request(message, lambda done, number=number: answers.update({number: done}), 100.0)  # type: ignore[misc]
        for callback, done in schedule.add(request):
            callback(done)
    while not schedule.idle:
        for callback, done in schedule.turn():
            callback(done)
    return [answers[number] for number in range(len(messages))]


class EarlyAndLate(torch.nn.Module):
    """One output is finished long before the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.second = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.third = torch.nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        first = torch.relu(self.first(image))
        second = torch.relu(self.second(first)) + first
        return {"early": first.mean((2, 3)), "late": self.third(second).amax((2, 3))}


class Comparing(torch.nn.Module):
    """In its middle, every sample is compared with the others."""

    def __init__(self) -> None:
        super().__init__()
        self.before = torch.nn.Linear(6, 6)
        self.after = torch.nn.Linear(6, 6)
        self.last = torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.before(x))
        x = x - x.mean(0, keepdim=True)
        return self.last(torch.tanh(self.after(x)))


class TimeMajor(torch.nn.Module):
    """Between two layers its samples are interleaved: time step by time step in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 5)
        self.second = torch.nn.Linear(5, 5)
        self.third = torch.nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.relu(self.first(x)).transpose(0, 1)
        flat = steps.reshape(-1, 5)
        flat = torch.tanh(self.second(flat))
        return self.third(flat.view(steps.shape).transpose(0, 1))


class Recurrent(torch.nn.Module):
    """The batch is dimension 1 of what crosses some of its cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(6, 4, num_layers=2)
        self.last = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(x.transpose(0, 1))
        return self.last(torch.relu(states) + 0.5 * states)[-1]
