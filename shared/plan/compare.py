"""How alike two answers of a network are: what the accuracy gate counts.

Like :mod:`shared.plan.measure` this needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from shared.plan.evidence import Agreement, agreement_bounds, similarity_bounds
from shared.plan.gate import Fidelity

__all__ = ["Compared"]

_WORST_ERROR = 1e9


class Compared:
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
        """What the answers so far show.  Raises ValueError before the first."""
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
