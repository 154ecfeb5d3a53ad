"""A decision: where one network is cut now, in which codec, and everything that led to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge_agent.estimate import LinkEstimate
from shared.codec import Codec
from shared.plan.energy import Power
from shared.plan.latency import Conditions, stage_ms
from shared.plan.objective import bottleneck_ms, in_flight
from shared.plan.rows import Rows
from shared.plan.stages import POSITION, Stage

if TYPE_CHECKING:
    from shared.graph.ir import Cut

__all__ = ["Decision", "place_of", "why_switched"]

_BETWEEN = (
    Stage.UPLINK,
    Stage.NETWORK,
    Stage.WAIT,
    Stage.DECODE,
    Stage.CLOUD,
    Stage.RESULT_ENCODE,
    Stage.DOWNLINK,
)


@dataclass(frozen=True, slots=True)
class Decision:
    """One plan for one network.

    ``codecs`` holds one codec per tensor of ``cut.live``; ``codec`` is the row's, for names and frame 0.
    ``predicted_ms`` is the latency, ``cost`` what the objective minimised; ``margin`` is what the
    runner-up would cost more, negative while hysteresis holds this row; ``gain`` is the share of ``cost``
    that the best row would save.  ``unmet`` names a limit of the objective that no row keeps now; it is
    empty while one does.  ``reason`` says why this row took over from the one before it.
    ``previous`` and ``threshold`` are the row and the hysteresis that went into
    :func:`shared.plan.solve.choose`.  ``load_wait_ms`` is the wait as reported, before corrections.
    ``objective`` is for people; ``calibration`` says on what kind of inputs payloads and agreement were
    measured: ``folder``, ``factory``, ``synthetic``, or ``example``; ``profile`` whether the device's times
    were ``measured`` or only ``predicted``.
    """

    model: str
    cut: Cut
    codec: Codec
    codecs: tuple[Codec, ...]
    place: str
    predicted_ms: float
    cost: float
    unit: str
    unmet: str
    objective: str
    calibration: str
    profile: str
    power: Power | None
    runner_up: int | None
    margin: float
    gain: float
    reason: str
    decided_ms: float
    conditions: Conditions
    link: LinkEstimate
    load_age_ms: float
    load_wait_ms: float
    row: int
    previous: int | None
    threshold: float
    rows: Rows = field(repr=False)

    @property
    def is_local(self) -> bool:
        """Whether nothing is sent."""
        return not self.cut.cloud_units

    @property
    def codec_label(self) -> str:
        """How the tensors travel, as in :meth:`shared.plan.rows.Rows.label_of`."""
        return self.rows.label_of(self.row)

    @property
    def payload_bytes(self) -> int:
        """Predicted bytes on the uplink; 0 when nothing is sent."""
        return round(float(self.rows.payload_bytes[self.row]) * self.conditions.batch)

    @property
    def predicted(self) -> dict[Stage, float]:
        """Predicted ms of every stage, in order; they sum to ``predicted_ms``."""
        return stage_ms(self.rows, self.row, self.conditions)

    @property
    def remote_ms(self) -> float:
        """Predicted ms from handing the message to the link to having the answer's bytes; 0 when local."""
        predicted = self.predicted
        return sum(predicted[stage] for stage in _BETWEEN)

    @property
    def energy_mj(self) -> float | None:
        """Predicted energy of the device; None when it is not known what the device draws."""
        if self.power is None:
            return None
        spent = self.conditions.weights() * self.power.by_stage(self.conditions)
        return float(spent @ self.rows.columns[:, self.row])

    @property
    def period_ms(self) -> float:
        """Predicted least distance between the answers of a pipelined stream."""
        return float(bottleneck_ms(self.rows, self.conditions)[self.row])

    @property
    def in_flight(self) -> int:
        """How many requests of such a stream are under way at once."""
        return in_flight(self.predicted_ms, self.period_ms)

    @property
    def switch_uplink_mbps(self) -> float | None:
        """The uplink at which the runner-up would be as fast, all else the same; None when at none, or when
        it is not the latency that is minimised."""
        if self.runner_up is None or self.objective != "latency":
            return None
        weights, columns = self.conditions.weights(), self.rows.columns
        apart = weights * (columns[:, self.row] - columns[:, self.runner_up])
        uplink = float(apart[POSITION[Stage.UPLINK]])
        rest = float(apart.sum()) - uplink
        share = -uplink / rest if rest else 0.0
        return self.conditions.uplink_bps / 1e6 * share if share > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: the decision, its stages, the runner-up, and the inputs with their ages."""
        runner_up = None
        if self.runner_up is not None:
            cut = self.rows.cut_of(self.runner_up)
            runner_up = {
                "place": place_of(cut),
                "cut": cut.index,
                "cut_name": cut.name,
                "codec": self.rows.label_of(self.runner_up),
                "cost": _plain(self.cost + self.margin),
            }
        return {
            "model": self.model,
            "place": self.place,
            "cut": self.cut.index,
            "cut_name": self.cut.name,
            "codec": self.codec_label,
            "payload_bytes": self.payload_bytes,
            "predicted_ms": _plain(self.predicted_ms),
            "predicted": {stage.value: _plain(ms) for stage, ms in self.predicted.items()},
            "cost": _plain(self.cost),
            "unit": self.unit,
            "unmet": self.unmet,
            "objective": self.objective,
            "calibration": self.calibration,
            "profile": self.profile,
            "energy_mj": None if self.power is None else _plain(self.energy_mj or 0.0),
            "runner_up": runner_up,
            "margin": _plain(self.margin),
            "switch_uplink_mbps": self.switch_uplink_mbps,
            "reason": self.reason,
            "decided_ms": _plain(self.decided_ms),
            "conditions": {name: _plain(value) for name, value in self.conditions.as_dict().items()},
            "uplink_measured": self.link.measured,
            "uplink_bounded": self.link.bounded,
            "uplink_age_ms": _plain(self.link.uplink_age_ms),
            "uplink_spread": _plain(self.link.uplink_spread),
            "rtt_age_ms": _plain(self.link.rtt_age_ms),
            "load_age_ms": _plain(self.load_age_ms),
        }

    def __str__(self) -> str:
        where = "device" if self.is_local else f"{self.place} at {self.cut.name}, {self.codec_label}"
        return f"{self.model}: {where}, {self.predicted_ms:.1f} ms ({self.reason})"


def place_of(cut: Cut) -> str:
    """``device``, ``cloud`` or ``split``: who computes at this cut."""
    if not cut.cloud_units:
        return "device"
    return "split" if cut.edge_units else "cloud"


def why_switched(rows: Rows, old: int, new: int, before: Conditions, now: Conditions, otherwise: str) -> str:
    """The change of conditions that did most for row ``new`` against row ``old``, in words, or what else it
    must have been where none did."""
    if before.reachable != now.reachable:
        return "the cloud can be reached" if now.reachable else "the cloud cannot be reached"
    shift = (now.weights() - before.weights()) * (rows.columns[:, old] - rows.columns[:, new])
    if now.downlink_bps == now.uplink_bps:  # not measured, but taken from the uplink
        shift[POSITION[Stage.UPLINK]] += shift[POSITION[Stage.DOWNLINK]]
        shift[POSITION[Stage.DOWNLINK]] = 0.0
    changes = {
        Stage.DEVICE: f"device {before.device:.2f} -> {now.device:.2f} of its profile",
        Stage.ENCODE: f"encoding {before.encode:.2f} -> {now.encode:.2f} of its profile",
        Stage.UPLINK: f"uplink {before.uplink_bps / 1e6:.3g} -> {now.uplink_bps / 1e6:.3g} Mbps",
        Stage.NETWORK: (
            f"round trip {before.rtt_ms + before.network_ms:.1f} -> {now.rtt_ms + now.network_ms:.1f} ms"
        ),
        Stage.WAIT: f"queue wait {before.wait_ms:.1f} -> {now.wait_ms:.1f} ms",
        Stage.DECODE: f"decoding {before.decode:.2f} -> {now.decode:.2f} of its profile",
        Stage.CLOUD: (
            f"cloud {before.slowdown * before.cloud:.2f} -> {now.slowdown * now.cloud:.2f} of its profile"
        ),
        Stage.DOWNLINK: f"downlink {before.downlink_bps / 1e6:.3g} -> {now.downlink_bps / 1e6:.3g} Mbps",
    }
    strongest = max(changes, key=lambda stage: shift[POSITION[stage]])
    return changes[strongest] if shift[POSITION[strongest]] > 0 else otherwise


def _plain(value: float) -> float | None:
    """JSON has no infinity: None instead."""
    return value if math.isfinite(value) else None
