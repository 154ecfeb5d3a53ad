"""How long every unit of a network takes at every batch size on one replica, from a few measured sizes.

On a GPU a unit at batch 8 often takes hardly longer than at batch 1; on a CPU mostly eight times as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

__all__ = ["BatchCurves"]

_NEAR_BEST = 1.05


@dataclass(frozen=True, slots=True)
class BatchCurves:
    """``unit_ms[i][u]`` is what unit ``u`` takes at ``batches[i]`` samples, in ms.

    ``batches`` rise and start with 1.  Between two sizes times are interpolated; beyond the largest they
    grow in proportion.  A larger batch never counts as quicker than a smaller one: that would be noise.

    Raises ValueError when sizes and rows do not fit together.
    """

    batches: tuple[int, ...]
    unit_ms: tuple[tuple[float, ...], ...]
    _rows: tuple[tuple[float, ...], ...] = field(init=False, compare=False, repr=False)
    _sums: dict[int, list[float]] = field(init=False, compare=False, repr=False, default_factory=dict)
    _savings: dict[int, float] = field(init=False, compare=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.batches or self.batches[0] != 1 or list(self.batches) != sorted(set(self.batches)):
            raise ValueError(f"batch sizes must rise from 1, not {self.batches}")
        if len(self.unit_ms) != len(self.batches) or len({len(row) for row in self.unit_ms}) != 1:
            raise ValueError("there must be one row for each batch size, all of the same units")
        if not all(math.isfinite(ms) and ms >= 0 for row in self.unit_ms for ms in row):
            raise ValueError("times must be finite and not negative")
        rows = accumulate(
            self.unit_ms, lambda above, row: tuple(max(pair) for pair in zip(above, row, strict=True))
        )
        object.__setattr__(self, "_rows", tuple(rows))

    @classmethod
    def flat(cls, unit_ms: Sequence[float]) -> BatchCurves:
        """Of a replica on which every sample takes its full time, whatever runs with it."""
        return cls((1,), (tuple(unit_ms),))

    @property
    def units(self) -> int:
        return len(self._rows[0])

    def ms(self, first_unit: int, last_unit: int, batch: int) -> float:
        """The units from ``first_unit`` up to, without, ``last_unit`` at a batch of so many samples."""
        sums = self._sums.get(batch)
        if sums is None:
            sums = self._sums[batch] = [0.0, *accumulate(self._row(batch))]
        return sums[last_unit] - sums[first_unit]

    def units_ms(self, units: Sequence[int], batch: int) -> float:
        """Any units."""
        if isinstance(units, range) and units.step == 1:
            return self.ms(units.start, units.stop, batch) if units else 0.0
        return sum(self.ms(unit, unit + 1, batch) for unit in units)

    def useful_batch(self, limit: int) -> int:
        """The smallest batch up to ``limit`` whose time per sample is within 5% of the least there is."""
        per_sample = [self.ms(0, self.units, batch) / batch for batch in range(1, limit + 1)]
        return next(
            batch for batch, ms in enumerate(per_sample, start=1) if ms <= _NEAR_BEST * min(per_sample)
        )

    def best_saving(self, limit: int) -> float:
        """No batch of up to ``limit`` samples saves a larger share than this of the time of its requests.

        Unit ``u`` saves at most ``s_u = max_b 1 - ms_u(b) / (b ms_u(1))``.  Requests that run together
        all run the last units and fewer of them the earlier ones, so the samples that a unit is run for
        rise along the network: they are a sum of suffixes with weights that are not negative, and the
        share saved is at most that of the best suffix.
        """
        if limit not in self._savings:
            self._savings[limit] = self._best_saving(limit)
        return self._savings[limit]

    def _best_saving(self, limit: int) -> float:
        best = total = saved = 0.0
        rows = [(batch, self._row(batch)) for batch in range(2, limit + 1)]
        for unit in reversed(range(self.units)):
            alone = self._rows[0][unit]
            total += alone
            saved += max((alone - row[unit] / batch for batch, row in rows), default=0.0)
            if total > 0:
                best = max(best, saved / total)
        return best

    def _row(self, batch: int) -> Sequence[float]:
        if batch < 1:
            raise ValueError(f"a batch holds at least one sample, not {batch}")
        for index, size in enumerate(self.batches):
            if size == batch:
                return self._rows[index]
            if size > batch:
                low, high = self._rows[index - 1], self._rows[index]
                part = (batch - self.batches[index - 1]) / (size - self.batches[index - 1])
                return [a + part * (b - a) for a, b in zip(low, high, strict=True)]
        return [ms * batch / self.batches[-1] for ms in self._rows[-1]]
