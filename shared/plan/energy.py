"""What a request costs the device in energy: its stages' times at what the device then draws.

``busy W * computing and coding + idle W * waiting + radio W * transfers`` in mJ: the sum of Neurosurgeon
(ASPLOS 2017, section 4.3) with what the device draws while it waits, as in
:class:`edge_agent.power.ModelMeter`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.plan.latency import Conditions
from shared.plan.radio import LinkType, power_mw
from shared.plan.rows import Rows
from shared.plan.stages import POSITION, STAGES, Stage

__all__ = ["BUSY", "Power", "energy_mj"]

BUSY = frozenset({Stage.DEVICE, Stage.ENCODE, Stage.RESULT_DECODE, Stage.OVERHEAD})
"""When the device computes; in every other stage it waits."""


@dataclass(frozen=True, slots=True)
class Power:
    """What the device draws in W while it computes and while it waits, and by what radio it sends."""

    busy_w: float
    idle_w: float
    link: LinkType = LinkType.WIRED

    def __post_init__(self) -> None:
        if not 0 <= self.idle_w <= self.busy_w:
            raise ValueError(f"idle {self.idle_w} W must lie between 0 and busy {self.busy_w} W")

    def by_stage(self, conditions: Conditions) -> NDArray[np.float64]:
        """W in each stage, in the order of ``STAGES``."""
        watts = np.array([self.busy_w if stage in BUSY else self.idle_w for stage in STAGES])
        watts[POSITION[Stage.UPLINK]] += power_mw(self.link, conditions.uplink_bps / 1e6) / 1e3
        watts[POSITION[Stage.DOWNLINK]] += power_mw(self.link, 0.0, conditions.downlink_bps / 1e6) / 1e3
        return watts


def energy_mj(rows: Rows, conditions: Conditions, power: Power) -> NDArray[np.float64]:
    """One energy per row, in mJ; ``inf`` for what needs a cloud that cannot be reached."""
    energy: NDArray[np.float64] = (conditions.weights() * power.by_stage(conditions)) @ rows.columns
    if not conditions.reachable:
        energy[rows.remote] = np.inf
    return energy
