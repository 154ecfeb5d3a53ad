"""Which candidates to try in one cell, and what their samples say.  Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.codec import Codec
from shared.plan.energy import Power, energy_mj
from shared.plan.latency import Conditions, latency_ms
from shared.plan.radio import power_mw
from shared.plan.rows import Rows
from shared.plan.solve import uplink_segments

__all__ = [
    "cheapest_cloud",
    "cloud_only",
    "codecs_in",
    "label",
    "noise",
    "oracle_regret",
    "papers_choice",
    "papers_energy_choice",
    "regret",
    "to_try",
]

Samples = Mapping[int, Sequence[float]]
"""Measured ms by row; the samples at one position are of one round."""


def label(rows: Rows, row: int) -> str:
    """Short, for a table: units on the device of all, and the codec; or ``device``."""
    if row == rows.local:
        return "device"
    cut = rows.cut_of(row)
    place = (
        f"{len(cut.edge_units)}/{len(cut.edge_units) + len(cut.cloud_units)}" if cut.edge_units else "cloud"
    )
    return f"{place} {rows.label_of(row)}"


def codecs_in(label: str) -> list[str]:
    """The labels in that of a row, which has several where its tensors travel in different codecs."""
    return [part.partition("x ")[2] or part for part in label.split(", ")]


def to_try(rows: Rows, conditions: Conditions) -> list[int]:
    """The lower hull over all uplinks under these conditions, both extremes, and the best in prediction."""
    hull = {segment.row for segment in uplink_segments(rows, conditions)}
    return sorted(hull | {rows.local, cloud_only(rows, conditions), _best(rows, conditions)})


def cloud_only(rows: Rows, conditions: Conditions) -> int:
    """Everything in the cloud, in the codec that is predicted to be the fastest."""
    senders = _senders(rows)
    return int(senders[np.argmin(latency_ms(rows, conditions)[senders])])


def papers_choice(rows: Rows, conditions: Conditions) -> int:
    """Neurosurgeon's policy (ASPLOS 2017, section 4.3) on the same profiles and the same bandwidth.

    A chain of cuts, tensors as float32 (an input of bytes as bytes), no round trip, nothing for
    (de)serialising, queueing and the way back; the server's load is one factor on all of its units.
    That factor is what the reported wait and slow-down come to for the whole network.
    """
    whole_ms = float(rows.cloud_ms.max())
    load = conditions.slowdown + conditions.wait_ms / whole_ms
    believed = rows.edge_ms + rows.payload_bytes * 8000.0 / conditions.uplink_bps + load * rows.cloud_ms
    return int(np.argmin(np.where(_plain_chain(rows), believed, np.inf)))


def cheapest_cloud(rows: Rows, conditions: Conditions, power: Power) -> int:
    """Everything in the cloud, in the codec that is predicted to take the least energy."""
    senders = _senders(rows)
    return int(senders[np.argmin(energy_mj(rows, conditions, power)[senders])])


def papers_energy_choice(rows: Rows, conditions: Conditions, power: Power) -> int:
    """Neurosurgeon's policy for energy (ASPLOS 2017, section 4.3) on the same profiles and bandwidth: the
    least sum of ``busy W * device ms + radio W * upload ms``.

    A chain of cuts, tensors as float32, nothing for waiting, coding and the way back.
    """
    radio_w = power_mw(power.link, conditions.uplink_bps / 1e6) / 1e3
    upload_ms = rows.payload_bytes * 8000.0 / conditions.uplink_bps
    believed = power.busy_w * rows.edge_ms + radio_w * upload_ms
    return int(np.argmin(np.where(_plain_chain(rows), believed, np.inf)))


def regret(chosen_ms: Sequence[float], measured: Samples) -> float:
    """How much longer the chosen took than the best candidate of the same rounds, as a share; by medians.

    The best of several noisy medians is a little too good, so that this is too high rather than too low.
    """
    return statistics.median(chosen_ms) / _best_ms(measured) - 1


def oracle_regret(measured: Samples) -> float | None:
    """The regret by the same measure of an oracle that knows all candidates but not the noise.

    It takes the best of the even rounds and is held against the best of the odd rounds, then the other way
    round.  None of fewer than four rounds.
    """
    if min(len(samples) for samples in measured.values()) < 4:
        return None
    even, odd = ({row: samples[start::2] for row, samples in measured.items()} for start in (0, 1))
    seen = [(odd[_best_row(even)], odd), (even[_best_row(odd)], even)]
    return statistics.mean(regret(samples, half) for samples, half in seen)


def noise(measured: Samples) -> float | None:
    """By how much the medians of even and odd rounds of the same candidate differ; median of candidates.

    None of fewer than four rounds.
    """
    apart = [
        abs(statistics.median(samples[::2]) / statistics.median(samples[1::2]) - 1)
        for samples in measured.values()
        if len(samples) >= 4
    ]
    return statistics.median(apart) if apart else None


def _senders(rows: Rows) -> NDArray[np.int64]:
    """The rows that compute nothing on the device."""
    return np.flatnonzero(rows.edge_ms + ~rows.remote == 0)


def _plain_chain(rows: Rows) -> NDArray[np.bool_]:
    """All that the paper knows: topological cuts, tensors as they are."""
    chain = np.array([rows.cut_of(row).index >= 0 for row in range(len(rows))])
    plain: NDArray[np.bool_] = chain & (rows.codec == int(Codec.FLOAT32)) & (rows.mix < 0)
    return plain


def _best(rows: Rows, conditions: Conditions) -> int:
    return int(np.argmin(latency_ms(rows, conditions)))


def _best_row(measured: Samples) -> int:
    return min(measured, key=lambda row: statistics.median(measured[row]))


def _best_ms(measured: Samples) -> float:
    return statistics.median(measured[_best_row(measured)])
