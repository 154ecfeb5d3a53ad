"""How much memory processes hold, and whether that grows."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Sequence
from pathlib import Path

__all__ = ["growth", "resident_mb"]

_WARM_UP, _ENDS = 0.25, 3


def resident_mb(pid: int) -> float | None:
    """None when there is no such process any more."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return None
    # One that has ended and was not waited for yet holds nothing.
    return pages * resource.getpagesize() / 2**20 or None


def growth(samples_mb: Sequence[float]) -> float:
    """How much more than at its start, as a share, a process held at the end: the medians of the last and the
    first third of what follows the first quarter, which is warming up.  Raises ValueError for few samples."""
    settled = samples_mb[int(len(samples_mb) * _WARM_UP) :]
    third = len(settled) // _ENDS
    if third < 1:
        raise ValueError(f"{len(samples_mb)} samples say nothing of growth")
    return statistics.median(settled[-third:]) / statistics.median(settled[:third]) - 1.0
