"""What an application gets back from ``infer``: the outputs, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

__all__ = ["Result", "Where", "breakdown"]


class Where(StrEnum):
    """Who computed the answer."""

    DEVICE = "device"
    SPLIT = "split"
    CLOUD = "cloud"
    DEVICE_FALLBACK = "device-fallback"


@dataclass(frozen=True, slots=True)
class Result:
    """An answer.  ``outputs`` is numpy arrays in the tree that the network returns.

    ``cut_index`` units ran on the device, or all of them after a fallback; ``cut`` is the readable name
    of the place, ``codec`` the label of the encoding, ``uplink_bytes`` what was handed to the link.
    ``breakdown`` maps stages to milliseconds in the order in which they happened and sums to
    ``latency_ms``, both on the clock of the caller; stages that the cloud reports are durations on its
    clock, and ``network`` is what is left of the time between sending and answer.  ``decision`` holds the
    planner's inputs, what it predicted for every stage and what was measured, the runner-up, the margin to
    it and the reason; ``fallback`` says why the device finished a request that was planned for the cloud,
    else None.

    ``energy_mj`` is the device's by ``meter``: ``model`` reckons this request's own stages at the watts that
    plans assume; ``ina3221`` and ``rapl`` measured the whole device from the request's start to its end,
    whatever else ran on it, so that of requests that overlap each holds the energy of both.  None when the
    hardware had no reading.
    """

    outputs: Any
    where: Where
    cut_index: int
    cut: str
    codec: str
    uplink_bytes: int
    latency_ms: float
    breakdown: Mapping[str, float]
    decision: Mapping[str, Any] = field(repr=False)
    fallback: str | None = None
    energy_mj: float | None = None
    meter: str = ""

    def seen_after(self, latency_ms: float, stage: str) -> Result:
        """The same answer as seen by a caller for whom it took longer; the difference goes to ``stage``."""
        extra_ms = latency_ms - self.latency_ms
        return replace(self, latency_ms=latency_ms, breakdown={**self.breakdown, stage: extra_ms})


def breakdown(latency_ms: float, stages: Mapping[str, float]) -> dict[str, float]:
    """Stages that took any time, in their order, and ``overhead`` so that all sum to ``latency_ms``.

    The stages must be apart from each other in time, so that they do not sum to more.
    """
    kept = {str(name): ms for name, ms in stages.items() if ms != 0.0}
    kept["overhead"] = max(latency_ms - sum(kept.values()), 0.0)
    return kept
