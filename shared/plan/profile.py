"""What one network costs on one machine, as measured there; kept as JSON in the cache directory.

A profile is the truth that plans start from.  It holds the time of every unit, and for every tensor that
can cross a cut the bytes and the codec times, per codec, as measured on real activations.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from shared.codec import Codec
from shared.plan.cache import keep

__all__ = ["CodecCost", "Profile", "ProfileKey", "load_profile", "save_profile", "this_machine"]

_FORMAT = 2


def this_machine() -> str:
    """The machine's name, architecture and core count: what a profile may not be carried across."""
    return f"{platform.node()}/{platform.machine()}/{os.cpu_count()}"


@dataclass(frozen=True, slots=True)
class ProfileKey:
    """What a profile depends on.  Two equal keys mean that the profile may be used again.

    ``calibration`` names the inputs that the payloads were measured on (``example`` for the network's own
    example input); ``mode`` is that of :func:`shared.graph.load`.
    """

    digest: str
    device: str
    threads: int
    torch_version: str
    machine: str = field(default_factory=this_machine)
    mode: str = "fused"
    calibration: str = "example"

    @property
    def file_name(self) -> str:
        text = json.dumps([_FORMAT, *self.as_dict().values()])
        return f"profile-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

    def as_dict(self) -> dict[str, str | int]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class CodecCost(NamedTuple):
    """One tensor through one codec: bytes on the wire and ms on the machine that was profiled."""

    payload_bytes: float
    encode_ms: float
    decode_ms: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Medians at batch 1 and their spreads (half the interquartile range), in ms.

    ``payloads[slot][codec]`` covers every slot that some cut sends and every output.  ``whole_ms`` is the
    whole network in one run; the units' sum should be near it (:attr:`sum_over_whole`).  ``predicted`` says
    that the units were never run, which is never kept.
    """

    key: ProfileKey
    unit_ms: tuple[float, ...]
    unit_spread_ms: tuple[float, ...]
    whole_ms: float
    whole_spread_ms: float
    repeats: int
    payloads: Mapping[int, Mapping[Codec, CodecCost]]
    predicted: bool = False

    @property
    def digest(self) -> str:
        return self.key.digest

    @property
    def sum_over_whole(self) -> float:
        """The sum of the units' medians over the whole run's median; nan when nothing was measured."""
        return sum(self.unit_ms) / self.whole_ms if self.whole_ms > 0 else math.nan

    def stretched(self, factor: float) -> Profile:
        """The profile of a device that is ``factor`` times slower, in every unit and codec."""
        if not factor > 0:
            raise ValueError(f"a device cannot be {factor} times slower")
        return replace(
            self,
            unit_ms=tuple(ms * factor for ms in self.unit_ms),
            unit_spread_ms=tuple(ms * factor for ms in self.unit_spread_ms),
            whole_ms=self.whole_ms * factor,
            whole_spread_ms=self.whole_spread_ms * factor,
            payloads={
                slot: {
                    codec: CodecCost(cost.payload_bytes, cost.encode_ms * factor, cost.decode_ms * factor)
                    for codec, cost in costs.items()
                }
                for slot, costs in self.payloads.items()
            },
        )

    def to_json(self) -> str:
        values: dict[str, Any] = {
            "format": _FORMAT,
            "key": self.key.as_dict(),
            "unit_ms": self.unit_ms,
            "unit_spread_ms": self.unit_spread_ms,
            "whole_ms": self.whole_ms,
            "whole_spread_ms": self.whole_spread_ms,
            "repeats": self.repeats,
            "payloads": {
                str(slot): {codec.label: list(cost) for codec, cost in costs.items()}
                for slot, costs in self.payloads.items()
            },
        }
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str | bytes) -> Profile:
        """Raises ValueError when the text is not a profile of this format, whatever is wrong with it."""
        try:
            values = json.loads(text)
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']} instead of {_FORMAT}")
            profile = cls(
                key=ProfileKey(**values["key"]),
                unit_ms=_durations(values["unit_ms"]),
                unit_spread_ms=_durations(values["unit_spread_ms"]),
                whole_ms=_amount(values["whole_ms"]),
                whole_spread_ms=_amount(values["whole_spread_ms"]),
                repeats=int(values["repeats"]),
                payloads={
                    int(slot): {
                        Codec.from_label(label): CodecCost(*_durations(cost)) for label, cost in costs.items()
                    }
                    for slot, costs in values["payloads"].items()
                },
            )
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a profile: {type(error).__name__} {error}") from error
        if len(profile.unit_ms) != len(profile.unit_spread_ms):
            raise ValueError("not a profile: as many spreads as units are needed")
        return profile


def _amount(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"not a profile: {value!r} is not a duration or a size")
    return number


def _durations(values: Any) -> tuple[float, ...]:
    return tuple(_amount(value) for value in values)


def load_profile(
    cache_dir: Path, key: ProfileKey, unit_count: int | None = None
) -> tuple[Profile | None, str | None]:
    """The profile kept for this key, and a warning to show when a file is there but of no use.

    ``(None, None)`` when none is kept.  Never raises for what the cache holds: a damaged or foreign file
    is one that will be written again.
    """
    path = cache_dir / key.file_name
    try:
        profile = Profile.from_json(path.read_bytes())
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError) as error:
        return None, f"ignored the profile in {path}, measuring again: {error}"
    if profile.key != key:
        return None, f"ignored the profile in {path}, measuring again: it is of {profile.key}"
    if unit_count is not None and len(profile.unit_ms) != unit_count:
        return None, (
            f"ignored the profile in {path}, measuring again: "
            f"it has {len(profile.unit_ms)} units, the network has {unit_count}"
        )
    return profile, None


def save_profile(cache_dir: Path, profile: Profile) -> str | None:
    """Keep a profile; returns a warning when that is not possible (:func:`shared.plan.cache.keep`)."""
    return keep(cache_dir / profile.key.file_name, profile.to_json().encode(), "the profile")
