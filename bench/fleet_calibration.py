"""What the simulated cloud takes from live runs: the results that other benches last kept here.

Where a result is not there, a figure of the same kind that was measured before stands in, and the source
says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Calibration", "stored_hop_ms"]

_HOP_MS, _OF_TORCH, _START_S = 0.7, 0.94, 8.0
_BUILT_IN = "built in, there is no result"


@dataclass(frozen=True, slots=True)
class Calibration:
    """``hop_ms`` is what gateway and replica add to a request on its way, ``of_torch`` the share of torch's
    own speed that a saturated replica reaches, ``start_ms`` how long a replica that is asked for takes to
    come.  ``sources`` say where each is from.
    """

    hop_ms: float
    of_torch: float
    start_ms: float
    sources: dict[str, str]

    @classmethod
    def stored(cls, results: Path) -> Calibration:
        hop, hop_from = _kept(_hop(results), _HOP_MS, "hop.json, 150 kB from the gateway on, p50")
        share, share_from = _kept(
            _target(results / "load.json", "throughput at saturation over torch alone"),
            _OF_TORCH,
            "load.json, throughput at saturation over torch alone",
        )
        start_s, start_from = _kept(
            _config(results / "scale.json", "replica_start_s"),
            _START_S,
            "scale.json, from a higher target to a replica more",
        )
        sources = {"hop_ms": hop_from, "of_torch": share_from, "start_ms": start_from}
        return cls(hop, min(share, 1.0), start_s * 1e3, sources)


def stored_hop_ms(results: Path) -> float:
    return Calibration.stored(results).hop_ms


def _kept(found: float | None, otherwise: float, source: str) -> tuple[float, str]:
    return (otherwise, _BUILT_IN) if found is None else (found, source)


def _document(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return document


def _hop(results: Path) -> float | None:
    for row in _document(results / "hop.json").get("rows", []):
        if row["activation"] == "150 kB" and row["path"].endswith("from the gateway on"):
            return float(row["p50_ms"])
    return None


def _target(path: Path, name: str) -> float | None:
    for target in _document(path).get("targets", []):
        if target["name"] == name and target["value"] is not None:
            return float(target["value"])
    return None


def _config(path: Path, name: str) -> float | None:
    value = _document(path).get("config", {}).get(name)
    return None if value is None else float(value)
