"""What became of the demo's requests: a line each, a summary, a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

__all__ = ["Sent", "Step", "draw", "header", "line", "rate_label", "summary"]

_STYLE = {"cloud": "cyan", "split": "green", "device": "yellow", "device-fallback": "bold red"}
_COLOUR = {"cloud": "#2a7fba", "split": "#3a9a4b", "device": "#d99a1c", "device-fallback": "#c0392b"}
_WIDTHS = {"link": 8, "ran": 15, "cut after": 14, "codec": 11, "bytes": 7, "ms": 7, "top-1": 16, "": 1}
_WIDEST_CUT = 34
_RIGHT = {"bytes", "ms"}


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the walk: the link at this rate, or dead at 0."""

    mbps: float
    requests: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Sent:
    """One request as the application saw it.  ``policy`` is suture, device or cloud.

    ``cut`` units ran on the device; ``error`` is the largest of the scores' over the largest score.
    """

    policy: str
    step: int
    mbps: float
    at_s: float
    photo: str
    where: str
    cut: int
    cut_name: str
    codec: str
    uplink_bytes: int
    latency_ms: float
    predicted_ms: float | None
    top1: str
    right: bool
    error: float
    fallback: str | None


def rate_label(mbps: float) -> str:
    return f"{mbps:g} Mbps" if mbps else "dead"


def header(width: int) -> Text:
    return _columns({name: name for name in _WIDTHS}, "bold", width)


def line(sent: Sent, width: int) -> Text:
    """One request under the header of this width, coloured by where it ran."""
    cells = {
        "link": rate_label(sent.mbps),
        "ran": sent.where,
        "cut after": sent.cut_name,
        "codec": sent.codec or "-",
        "bytes": f"{sent.uplink_bytes:,}",
        "ms": f"{sent.latency_ms:.1f}",
        "top-1": sent.top1.partition(",")[0],
        "": "\N{CHECK MARK}" if sent.right else "\N{BALLOT X}",
    }
    return _columns(cells, _STYLE[sent.where], width)


def _columns(cells: dict[str, str], style: str, width: int) -> Text:
    """The name of the cut gets what room there is, because it says most."""
    spare = width - sum(_WIDTHS.values()) - len(_WIDTHS)
    widths = _WIDTHS | {
        "cut after": min(max(_WIDTHS["cut after"] + spare, _WIDTHS["cut after"]), _WIDEST_CUT)
    }
    text = Text()
    for name, cell_width in widths.items():
        cell = cells[name]
        if len(cell) > cell_width:
            cell = cell[: cell_width - 1] + "\N{HORIZONTAL ELLIPSIS}"
        text.append((cell.rjust(cell_width) if name in _RIGHT else cell.ljust(cell_width)) + " ", style)
    return text


def summary(sent: Sequence[Sent]) -> list[dict[str, Any]]:
    """For every rate the median of each policy; ``suture`` counts all requests, late to notice or not.

    The last row is the mean of the rates at which all three were measured.
    """
    rows: list[dict[str, Any]] = []
    for mbps in sorted({each.mbps for each in sent}, reverse=True):
        here = [each for each in sent if each.mbps == mbps]
        medians = {policy: _median(here, policy) for policy in ("suture", "device", "cloud")}
        walked = [each for each in here if each.policy == "suture"]
        alone = [ms for ms in (medians["device"], medians["cloud"]) if ms is not None]
        suture = medians["suture"]
        rows.append(
            {
                "link": rate_label(mbps),
                "suture": suture,
                "device only": medians["device"],
                "cloud only": medians["cloud"],
                "vs better": suture / min(alone) if suture is not None and alone else None,
                "mostly": _mode([each.where for each in walked]),
                "cut after": _mode([each.cut_name for each in walked]),
                "with": _mode([each.codec or "-" for each in walked]),
            }
        )
    columns = ("suture", "device only", "cloud only")
    complete = [row for row in rows if all(row[column] is not None for column in columns)]
    if complete:
        means = {column: statistics.fmean(row[column] for row in complete) for column in columns}
        better = means["suture"] / min(means["device only"], means["cloud only"])
        rows.append({"link": "mean", **means, "vs better": better})
    return rows


def _median(sent: Sequence[Sent], policy: str) -> float | None:
    # A cloud-only request that had to be finished on the device is no measurement of the cloud.
    times = [each.latency_ms for each in sent if each.policy == policy and _is_pure(each)]
    return statistics.median(times) if times else None


def _is_pure(sent: Sent) -> bool:
    return sent.policy == "suture" or sent.where == sent.policy


def _mode(values: Sequence[str]) -> str:
    return statistics.mode(values) if values else "-"


def draw(sent: Sequence[Sent], units: int, stretch: float, path: Path) -> None:
    """The walk over time: the link's rate, every request's latency, and how much ran on the device."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    walked = [each for each in sent if each.policy == "suture"]
    figure, (rate, latency, cut) = pyplot.subplots(
        3, 1, figsize=(11, 8), sharex=True, height_ratios=(1, 2, 1.4), layout="constrained"
    )
    end_s = walked[-1].at_s + walked[-1].latency_ms / 1000
    starts = [(each.at_s, each.mbps) for index, each in enumerate(walked) if _begins(walked, index)]
    for (start_s, mbps), stop_s in zip(starts, [at_s for at_s, _ in starts[1:]] + [end_s], strict=True):
        if mbps:
            rate.plot([start_s, stop_s], [mbps, mbps], color="#444444", linewidth=2)
            rate.annotate(
                f"{mbps:g}", ((start_s + stop_s) / 2, mbps), (0, 4), textcoords="offset points", ha="center"
            )
        else:
            for axis in (rate, latency, cut):
                axis.axvspan(start_s, stop_s, color="#c0392b", alpha=0.12, linewidth=0)
            rate.text((start_s + stop_s) / 2, 1, "dead", ha="center", color="#c0392b")
    rate.set(yscale="log", ylabel="link, Mbps", ylim=(0.2, 400))
    for place, colour in _COLOUR.items():
        here = [each for each in walked if each.where == place]
        if here:
            times = [each.at_s for each in here]
            latency.scatter(times, [each.latency_ms for each in here], s=18, color=colour, label=place)
            on_device = [units if place.startswith("device") else each.cut for each in here]
            cut.scatter(times, on_device, s=18, color=colour)
    latency.set(yscale="log", ylabel="latency, ms")
    for axis in (rate, latency):
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    latency.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(_COLOUR), frameon=False)
    cut.set(ylabel="units on the device", xlabel="seconds", ylim=(-3, units + 3))
    cut.set_yticks([0, units // 2, units], ["0 (cloud)", str(units // 2), f"{units} (device)"])
    for axis in (rate, latency, cut):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
    figure.suptitle(
        f"One network on two sides of a changing link (device stretched {stretch:g}x)", fontsize=12
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _begins(walked: Sequence[Sent], index: int) -> bool:
    return index == 0 or walked[index].step != walked[index - 1].step
