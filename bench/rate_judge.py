"""What an answer is worth that was computed from tensors that did not arrive quite as they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from bench.rate_subjects import Subject
from shared.graph.ir import Cut
from shared.graph.run import Program

__all__ = ["Judge", "Point", "bytes_at_agreement", "bytes_at_divergence"]

_BATCH = 15


class Point(NamedTuple):
    """Of one setting: mean bytes of an input, the divergence from the whole network's answers and the share
    of answers that are the same.  The divergence is KL in nats of a classifier, else 1 - cosine."""

    setting: float
    nbytes: float
    divergence: float
    agreement: float


class Judge:
    """Holds the whole network's answers to all inputs, and what crosses any cut."""

    def __init__(self, subject: Subject, program: Program) -> None:
        self.subject = subject
        self.program = program
        with torch.inference_mode():
            self.whole = torch.cat([program([part])[0] for part in subject.inputs.split(_BATCH)])

    def live(self, cut: Cut) -> list[torch.Tensor]:
        """The tensors that cross ``cut``, of all inputs; copies that gradients may be taken of."""
        parts = []
        for inputs in self.subject.inputs.split(_BATCH):
            state = self.program.start([inputs])
            self.program.run(state, cut.edge_units)
            parts.append([tensor.clone() for tensor in self.program.live(state, cut)])
        return [torch.cat(tensors).clone() for tensors in zip(*parts, strict=True)]

    def answers(self, cut: Cut, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The outputs from what arrived at ``cut``, one row for each sample in ``tensors``."""
        found = []
        for parts in zip(*(tensor.split(_BATCH) for tensor in tensors), strict=True):
            state = self.program.resume(cut, list(parts), len(parts[0]))
            self.program.run(state, cut.cloud_units)
            found.append(self.program.outputs(state)[self.program.graph.outputs[0]])
        return torch.cat(found)

    def divergence(self, answers: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Of each answer from the whole network's to the inputs ``rows``."""
        whole = self.whole[list(rows)]
        if self.subject.classifier:
            before, after = whole.double().log_softmax(1), answers.double().log_softmax(1)
            return (before.exp() * (before - after)).sum(1)
        return 1 - torch.nn.functional.cosine_similarity(whole.double(), answers.double(), dim=1)

    def agrees(self, answers: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Whether the largest output is the same."""
        return self.whole[list(rows)].argmax(1) == answers.argmax(1)


def bytes_at_divergence(points: Sequence[Point], target: float) -> float | None:
    """Interpolated between settings, in logarithms; None where no setting is as good.

    A codec that is always better has its smallest setting taken.
    """
    ordered = sorted(points, key=lambda point: point.nbytes)
    good = [index for index, point in enumerate(ordered) if point.divergence <= target]
    if not good:
        return None
    first = good[0]
    if first == 0 or ordered[first].divergence <= 0:
        return ordered[first].nbytes
    ends = ordered[first - 1], ordered[first]
    logs = [np.log(max(point.divergence, 1e-12)) for point in ends]
    share = (np.log(target) - logs[0]) / (logs[1] - logs[0])
    return float(ends[0].nbytes ** (1 - share) * ends[1].nbytes ** share)


def bytes_at_agreement(points: Sequence[Point], target: float) -> float | None:
    """Of the smallest setting that reaches it with all larger ones; None where the largest does not."""
    best = None
    for point in sorted(points, key=lambda point: -point.nbytes):
        if point.agreement < target:
            break
        best = point.nbytes
    return best
