"""The map of winners: which cut and codec is best over the uplink's rate and the cloud's load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.plan_table import candidate_name
from shared.errors import ConfigError
from shared.plan.explain import QUANTITIES, Explanation, Problem
from shared.plan.latency import Conditions

__all__ = ["Load", "check_map_file", "draw_map", "winner_grid"]

Load = Literal["wait_ms", "slowdown"]

_SUFFIXES = (".svg", ".png", ".pdf")
_UPLINKS_MBPS = np.geomspace(0.1, 200.0, 181)
_LOAD_STEPS = 111
_MARGIN = 1.2
_LABELS = {"wait_ms": "queue wait in the cloud (ms)", "slowdown": "slowdown of the cloud (x)"}


def check_map_file(path: Path) -> None:
    """Raises ConfigError when no map can be drawn there, before any time is spent on it."""
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"--map draws {', '.join(_SUFFIXES)} files, not {path.name}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--map: there is no directory {path.absolute().parent}")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError("--map needs matplotlib; install suture[demo]") from error


def winner_grid(
    problem: Problem,
    conditions: Conditions,
    uplinks_mbps: Sequence[float] | NDArray[np.float64],
    loads: Sequence[float] | NDArray[np.float64],
    load: Load = "wait_ms",
) -> NDArray[np.int64]:
    """``[load, uplink]``: the row that wins there, everything else as in ``conditions``."""
    _, with_uplink = QUANTITIES["uplink_mbps"]
    _, with_load = QUANTITIES[load]
    return np.array(
        [
            [
                problem.winner(with_load(with_uplink(conditions, float(uplink)), float(value)))
                for uplink in uplinks_mbps
            ]
            for value in loads
        ],
        dtype=np.int64,
    )


def draw_map(problem: Problem, explanation: Explanation, path: Path, load: Load = "wait_ms") -> None:
    """Write the map; the cross marks the conditions that ``explanation`` is of."""
    from matplotlib.figure import Figure

    conditions = explanation.conditions
    loads = _loads(explanation, load)
    grid = winner_grid(problem, conditions, _UPLINKS_MBPS, loads, load)
    rows = _by_position(grid)
    place = {row: index for index, row in enumerate(rows)}
    colours = _colours(len(rows))
    figure = Figure(figsize=(10.0, 6.0), layout="constrained")
    axes = figure.subplots()
    picture = np.array([[colours[place[row]] for row in line] for line in grid.tolist()])
    axes.pcolormesh(_UPLINKS_MBPS, loads, picture, shading="nearest")
    axes.set_xscale("log")
    if load == "slowdown":
        axes.set_yscale("log")
    axes.set_xlabel("uplink (Mbps)")
    axes.set_ylabel(_LABELS[load])
    axes.set_title(f"{explanation.model}: least {explanation.objective}")
    here = (conditions.uplink_bps / 1e6, getattr(conditions, load))
    axes.plot(*here, "X", color="white", markeredgecolor="black", markersize=11, clip_on=False)
    for row in rows:
        axes.plot([], [], "s", color=colours[place[row]], label=candidate_name(explanation.candidates[row]))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=8, ncols=2, frameon=False)
    axes.set_xlim(_UPLINKS_MBPS[0], _UPLINKS_MBPS[-1])
    axes.set_ylim(loads[0], loads[-1])
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"--map: cannot write {path}: {error.strerror}") from error


def _loads(explanation: Explanation, load: Load) -> NDArray[np.float64]:
    """As far as it can matter: a wait that is longer than the device takes alone decides everything."""
    now = float(getattr(explanation.conditions, load))
    if load == "slowdown":
        return np.geomspace(min(0.5, now), max(50.0, now * _MARGIN), _LOAD_STEPS)
    local = next(each for each in explanation.candidates if each.place == "device")
    return np.linspace(0.0, max(local.latency_ms, now, 1.0) * _MARGIN, _LOAD_STEPS)


def _by_position(grid: NDArray[np.int64]) -> list[int]:
    """The rows on the map in order of their cuts, which is the order of rows."""
    return sorted(set(grid.ravel().tolist()))


def _colours(count: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"](np.linspace(0.0, 0.95, max(count, 2)))[:, :3]
