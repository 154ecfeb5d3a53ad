"""In which precision a replica computes: float16 only on a GPU, and only where the answers stay the same.

What stays the same is judged as codecs are (:mod:`shared.plan.gate`): on calibration inputs, by what so few
inputs can show.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice

import torch

from shared.config import ServedModelConfig
from shared.errors import ConfigError
from shared.graph import Program
from shared.plan.compare import Compared
from shared.plan.fidelity import MOST_SAMPLES, agreement_of
from shared.plan.gate import Fidelity

__all__ = [
    "FLOAT16",
    "FLOAT32",
    "Precision",
    "choose_precision",
    "computed_in",
    "decided",
    "measured_fidelity",
]

log = logging.getLogger("suture.tail")


@dataclass(frozen=True, slots=True)
class Precision:
    """``fidelity`` is that of float16 against float32, None where it was not asked for."""

    dtype: torch.dtype
    fidelity: Fidelity | None = None

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        if self.fidelity is None:
            return self.name
        seen = self.fidelity
        return (
            f"{self.name}; float16 agrees on {seen.agreement:.3f} of {seen.samples} inputs, "
            f"{seen.shown:.3f} is shown"
        )


FLOAT32 = Precision(torch.float32)
FLOAT16 = Precision(torch.float16)


def computed_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """What runs within it, in this thread, runs in that precision where torch holds it to be safe.

    Matrix products and convolutions are computed in float16, sums and exponentials in float32.
    """
    if precision.dtype is torch.float32:
        return nullcontext()
    return torch.autocast(device.type, precision.dtype)


def choose_precision(
    program: Program, model: ServedModelConfig, samples: Iterable[Sequence[torch.Tensor]]
) -> Precision:
    """What ``model.precision`` comes to on this device.

    ``auto`` takes float16 on a GPU where the agreement that ``samples`` show reaches ``min_agreement``.
    Raises ConfigError for ``float16`` where it does not.
    """
    if model.precision == "float32" or program.device.type == "cpu":
        return FLOAT32
    return decided(model, measured_fidelity(program, islice(samples, MOST_SAMPLES)))


def decided(model: ServedModelConfig, fidelity: Fidelity) -> Precision:
    """What ``model.precision`` comes to when float16 is so faithful.  Raises as :func:`choose_precision`."""
    enough = fidelity.shown >= model.min_agreement
    log.info(
        "%s in float16: agreement %.3f, of which %.3f is shown by %d inputs; %.3f is asked for",
        model.label,
        fidelity.agreement,
        fidelity.shown,
        fidelity.samples,
        model.min_agreement,
    )
    if not enough and model.precision == "float16":
        raise ConfigError(
            f"{model.label}: float16 was shown to agree with float32 on {fidelity.shown:.3f} of its inputs "
            f"only, and min_agreement is {model.min_agreement}; write precision: auto or float32"
        )
    return Precision(torch.float16 if enough else torch.float32, fidelity)


def measured_fidelity(
    program: Program, samples: Iterable[Sequence[torch.Tensor]], half: Precision = FLOAT16
) -> Fidelity:
    """Of the network in half precision against itself in float32."""

    agreement, compared = agreement_of(program.graph), Compared()
    for leaves in samples:
        whole = [output.cpu() for output in program(leaves)]
        with computed_in(half, program.device):
            answer = [output.cpu() for output in program(leaves)]
        compared.add(whole, answer, agreement)
    return compared.fidelity(agreement)
