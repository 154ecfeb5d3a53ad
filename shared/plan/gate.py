"""The accuracy gate: what a lossy codec at a cut does to the network's answer, on calibration inputs.

Measured once for a network and its calibration inputs and kept in the cache directory.  Entropy stages
are lossless, so a gate speaks of forms: every codec of one form at one cut has the same fidelity.
How much some few inputs can show is reckoned in :mod:`shared.plan.evidence`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shared.codec import Codec, Form
from shared.plan.cache import keep
from shared.plan.evidence import Agreement, answers_needed, is_hopeless

__all__ = ["Agreement", "Fidelity", "Gate", "GateKey", "load_gate", "save_gate"]

_FORMAT = 2


class Fidelity(NamedTuple):
    """``agreement`` as seen on ``samples`` inputs, in the gate's measure, 1 for the same answer; ``error``
    is the worst relative error, largest difference over largest value of an output.

    The true agreement was shown to be between ``at_least`` and ``at_most``; where ``at_least`` is None it
    is ``agreement`` itself.
    """

    agreement: float
    error: float
    at_least: float | None = None
    at_most: float = 1.0
    samples: int = 0

    @property
    def shown(self) -> float:
        """The agreement that may be relied on."""
        return self.agreement if self.at_least is None else self.at_least

    def is_decided(self, agreement: Agreement, enough: float | None, most: int) -> bool:
        """Whether no more inputs are to be asked: ``most`` have been, or it is known whether ``enough`` is
        reached, or ``most`` would hardly show it.  None asks all; 1 cannot be shown by however many."""
        if self.at_least is None or self.samples >= most:
            return True
        if enough is None:
            return False
        return self.at_least >= enough or is_hopeless(agreement, self.at_least, self.samples, enough, most)

    def needed(self, agreement: Agreement, enough: float) -> int | None:
        """About how many inputs it would take to show ``enough``; None when no number would."""
        if self.at_least is None:
            return None
        return answers_needed(agreement, self.at_least, self.samples, enough)


_SAME = Fidelity(1.0, 0.0)


@dataclass(frozen=True, slots=True)
class GateKey:
    """What a gate depends on.  ``calibration`` names the inputs and their number."""

    digest: str
    calibration: str
    agreement: Agreement
    mode: str = "fused"

    @property
    def file_name(self) -> str:
        text = json.dumps([_FORMAT, *self.as_dict().values()])
        return f"gate-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

    def as_dict(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Gate:
    """Fidelities by what crosses a cut: ``measured[live slots][form]``; ``samples`` is how many inputs a
    pair was judged on at most.

    Cuts that send the same tensors share one entry.  A pair that was not measured has no fidelity, and is
    no candidate where agreement is asked for.
    """

    key: GateKey
    samples: int
    measured: Mapping[tuple[int, ...], Mapping[Form, Fidelity]]

    def fidelity(self, live: tuple[int, ...], *codecs: Codec) -> Fidelity | None:
        """That of sending ``live`` in one codec or in one for each; None when it was not measured.

        What was measured is all of ``live`` in one form.  A mix is taken to be as bad as the worst of its
        forms, each of which was then measured on more tensors than the mix has it for.
        """
        lossy = {codec.form for codec in codecs if codec.form is not Form.EXACT}
        if not lossy or not live:
            return _SAME
        measured = self.measured.get(live, {})
        if not lossy <= measured.keys():
            return None
        worst = min((measured[form] for form in lossy), key=lambda each: (each.shown, each.agreement))
        return worst._replace(error=max(measured[form].error for form in lossy))

    def to_json(self) -> str:
        return json.dumps(
            {
                "format": _FORMAT,
                "key": self.key.as_dict(),
                "samples": self.samples,
                "measured": [
                    [list(live), {form.name: list(fidelity) for form, fidelity in forms.items()}]
                    for live, forms in self.measured.items()
                ],
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Gate:
        """Raises ValueError when the text is not a gate of this format, whatever is wrong with it."""
        try:
            values = json.loads(text)
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']} instead of {_FORMAT}")
            measured = {
                tuple(int(slot) for slot in live): {
                    Form[name]: _fidelity(*numbers) for name, numbers in forms.items()
                }
                for live, forms in values["measured"]
            }
            return cls(GateKey(**values["key"]), int(values["samples"]), measured)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a gate: {type(error).__name__} {error}") from error


def _fidelity(agreement: Any, error: Any, at_least: Any, at_most: Any, samples: Any) -> Fidelity:
    least = None if at_least is None else _finite(at_least)
    return Fidelity(_finite(agreement), _finite(error), least, _finite(at_most), int(samples))


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"not a gate: {value!r} is no number")
    return number


def load_gate(cache_dir: Path, key: GateKey) -> tuple[Gate | None, str | None]:
    """The gate kept for this key, and a warning to show when a file is there but of no use."""
    path = cache_dir / key.file_name
    try:
        gate = Gate.from_json(path.read_bytes())
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError) as error:
        return None, f"ignored the accuracy gate in {path}, measuring again: {error}"
    if gate.key != key:
        return None, f"ignored the accuracy gate in {path}, measuring again: it is of {gate.key}"
    return gate, None


def save_gate(cache_dir: Path, gate: Gate) -> str | None:
    """Keep a gate; returns a warning when that is not possible (:func:`shared.plan.cache.keep`)."""
    return keep(cache_dir / gate.key.file_name, gate.to_json().encode(), "the accuracy gate")
