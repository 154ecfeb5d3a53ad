"""What a unit takes on a machine that is not here: a roofline, fitted to one measured network.

A unit takes ``per_op_ms`` for every operator that does work, and the longer of its arithmetic at the peak
rate and its bytes at the peak bandwidth, both divided by ``efficiency``: the share of its peaks that a
machine reaches with the software of its time (after Williams, Waterman and Patterson, CACM 2009).  The
efficiency is the only thing that is fitted, so that one measured time determines it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shared.plan.features import UnitFeatures

__all__ = ["Roofline"]


@dataclass(frozen=True, slots=True)
class Roofline:
    """Peaks in GFLOPS of float32 (a multiply-accumulate is two) and in GB/s."""

    name: str
    peak_gflops: float
    peak_gb_s: float
    per_op_ms: float
    efficiency: float = 1.0

    def unit_ms(self, unit: UnitFeatures) -> float:
        return unit.calls * self.per_op_ms + self._peak_ms(unit) / self.efficiency

    def calibrated(self, units: Sequence[UnitFeatures], whole_ms: float) -> Roofline:
        """With the efficiency at which these units take ``whole_ms`` together.

        Raises ValueError where not even the peaks would do, or the operators' own cost takes all.
        """
        rest_ms = whole_ms - sum(unit.calls for unit in units) * self.per_op_ms
        at_peak_ms = sum(self._peak_ms(unit) for unit in units)
        if not rest_ms >= at_peak_ms:
            raise ValueError(f"{self.name} takes {at_peak_ms:.3g} ms at its peaks, not {rest_ms:.3g} ms")
        return replace(self, efficiency=at_peak_ms / rest_ms)

    def _peak_ms(self, unit: UnitFeatures) -> float:
        moved = unit.bytes_in + unit.bytes_out + unit.weight_bytes
        return max(unit.flops / (self.peak_gflops * 1e6), moved / (self.peak_gb_s * 1e6))

    def as_dict(self) -> dict[str, float | str]:
        """For a table: what it was told, what was fitted, and what comes of the two."""
        return {
            "machine": self.name,
            "peak GFLOPS": self.peak_gflops,
            "peak GB/s": self.peak_gb_s,
            "ms per op": self.per_op_ms,
            "efficiency": self.efficiency,
            "GFLOPS": self.peak_gflops * self.efficiency,
            "GB/s": self.peak_gb_s * self.efficiency,
        }
