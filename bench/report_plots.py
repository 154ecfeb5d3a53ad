"""The plots of the report: from a bench's rows to SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

__all__ = ["Plot", "plots_of"]

Rows = Sequence[Mapping[str, Any]]

_LIMIT_COLOUR = "#cd2b31"


@dataclass(frozen=True, slots=True)
class Plot:
    svg: str
    caption: str


def plots_of(name: str, document: Mapping[str, Any]) -> list[Plot]:
    """What there is to draw of a bench; nothing for one whose table says it all."""
    maker = _PLOTS.get(name)
    return [] if maker is None or not document["rows"] else list(maker(document))


def _plot(figure: Figure, caption: str) -> Plot:
    figure.tight_layout()
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return Plot(svg[svg.index("<svg") :], caption)


def _by(rows: Rows, key: str) -> dict[Any, list[Mapping[str, Any]]]:
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _hop(document: Mapping[str, Any]) -> Iterator[Plot]:
    figure = Figure((8, 3.2))
    axes = figure.subplots()
    sizes = _by(document["rows"], "activation")
    paths = list(dict.fromkeys(row["path"] for row in document["rows"]))
    width = 0.8 / len(paths)
    for number, path in enumerate(paths):
        found = [next((row["p50_ms"] for row in rows if row["path"] == path), 0.0) for rows in sizes.values()]
        axes.bar([place + number * width for place in range(len(sizes))], found, width, label=path)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(sizes))], list(sizes))
    axes.set_yscale("log")
    axes.set_ylabel("ms, median")
    axes.legend(fontsize=7, ncols=2)
    yield _plot(figure, "An activation to a replica that computes nothing, and back.")


def _overhead(document: Mapping[str, Any]) -> Iterator[Plot]:
    targets = document["targets"]
    figure = Figure((8, 0.28 * len(targets) + 1))
    axes = figure.subplots()
    names = [target["name"].partition(":")[0] for target in targets]
    axes.barh(names, [target["value"] or 0.0 for target in targets])
    axes.axvline(1.0, color=_LIMIT_COLOUR)
    axes.invert_yaxis()
    axes.set_xlabel("what is neither compute, codec nor link, over what is allowed")
    yield _plot(figure, "Overhead by network, link and place; right of the line is missed.")


def _regret(document: Mapping[str, Any]) -> Iterator[Plot]:
    figure = Figure((8, 4))
    axes = figure.subplots()
    for network, rows in _by(document["rows"], "network").items():
        axes.scatter(
            [row["best_ms"] for row in rows], [row["chosen_ms"] for row in rows], s=18, label=network
        )
    low, high = min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])
    low = max(low, min(row["best_ms"] for row in document["rows"]) / 2)
    axes.plot((low, high), (low, high), color="#888", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("best that was measured, ms")
    axes.set_ylabel("chosen, ms")
    axes.legend(fontsize=7)
    yield _plot(figure, "What the controller chose against the best of all candidates, cell by cell.")


def _trace(document: Mapping[str, Any]) -> Iterator[Plot]:
    rows = document["rows"]
    figure = Figure((8, 4))
    axes = figure.subplots()
    for row in rows:
        axes.plot(row["frames"]["at_s"], row["frames"]["ms"], label=row["policy"], linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("seconds into the trace")
    axes.set_ylabel("ms from a frame to its answer")
    axes.legend(fontsize=7, ncols=2)
    yield _plot(figure, "Every frame's latency over the trace.")
    figure = Figure((8, 3.2))
    axes = figure.subplots()
    for row in rows:
        ranked = sorted(row["frames"]["ms"])
        shares = [(place + 1) / len(ranked) for place in range(len(ranked))]
        axes.plot(ranked, shares, label=row["policy"], linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("ms from a frame to its answer")
    axes.set_ylabel("share of frames")
    axes.legend(fontsize=7)
    yield _plot(figure, "How many frames were answered within how long.")


_PLOTS: dict[str, Callable[[Mapping[str, Any]], Iterator[Plot]]] = {
    "hop": _hop,
    "overhead": _overhead,
    "regret": _regret,
    "trace": _trace,
}
