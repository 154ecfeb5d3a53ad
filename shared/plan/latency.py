"""The latency of every candidate under given conditions, stage by stage.

Every stage of every candidate is a fixed quantity (ms, bytes, or 1 for "once") times a rate that the
conditions give, so the latency of all candidates is one product of a vector and a matrix.  Beyond the sum
of Neurosurgeon (ASPLOS 2017, section 4.3) it counts the codecs, the round trip, the queue and the result's
way back.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shared.plan.stages import STAGES, Stage

if TYPE_CHECKING:
    from shared.plan.rows import Rows

__all__ = ["Conditions", "latency_ms", "stage_ms"]

_BITS_PER_BYTE_AND_MS_PER_S = 8000.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """The world as a plan sees it.

    ``device``, ``encode``, ``decode`` and ``cloud`` are measured over profiled times (1 when the profile
    is right), ``slowdown`` is what the cloud reports of itself, and both multiply the cloud's units.
    ``network_ms`` and ``overhead_ms`` are added: to requests that cross the link, and to all.
    """

    uplink_bps: float
    rtt_ms: float
    wait_ms: float = 0.0
    slowdown: float = 1.0
    reachable: bool = True
    downlink_bps: float = 1e9
    device: float = 1.0
    encode: float = 1.0
    decode: float = 1.0
    cloud: float = 1.0
    network_ms: float = 0.0
    queue_ms: float = 0.0
    overhead_ms: float = 0.0
    batch: int = 1
    replicas: int = 1

    def weights(self) -> NDArray[np.float64]:
        """What one unit of each stage's column costs in ms, in the order of ``STAGES``."""
        batch = self.batch
        return np.array(
            [
                self.queue_ms,
                self.device * batch,
                self.encode * batch,
                _BITS_PER_BYTE_AND_MS_PER_S * batch / max(self.uplink_bps, 1.0),
                self.rtt_ms + self.network_ms,
                self.wait_ms,
                self.decode * batch,
                self.slowdown * self.cloud * batch,
                self.decode * batch,
                _BITS_PER_BYTE_AND_MS_PER_S * batch / max(self.downlink_bps, 1.0),
                self.encode * batch,
                self.overhead_ms,
            ]
        )

    def as_dict(self) -> dict[str, float | int | bool]:
        """Plain values, for JSON."""
        return asdict(self)


def latency_ms(rows: Rows, conditions: Conditions) -> NDArray[np.float64]:
    """One latency per row; ``inf`` for what needs a cloud that cannot be reached.

    At batch ``n`` every compute, codec and transfer time counts ``n`` times: an upper bound, since units
    run a batch at least as fast as one after the other.
    """
    latency: NDArray[np.float64] = conditions.weights() @ rows.columns
    if not conditions.reachable:
        latency[rows.remote] = np.inf
    return latency


def stage_ms(rows: Rows, row: int, conditions: Conditions) -> dict[Stage, float]:
    """The stages of one row, in order; they sum to its :func:`latency_ms` while the cloud is reachable."""
    return dict(zip(STAGES, (conditions.weights() * rows.columns[:, row]).tolist(), strict=True))
