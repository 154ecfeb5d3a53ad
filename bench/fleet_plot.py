"""The picture of a simulated fleet: who computes what, over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["plot_fleet"]


def plot_fleet(path: Path, runs: list[dict[str, Any]]) -> None:
    """One row of pictures for each run of :mod:`bench.fleet`, as its JSON holds them; the kind of file is
    that of its suffix, SVG or PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(
        len(runs), 2, figsize=(12, 3.2 * len(runs)), squeeze=False, layout="constrained"
    )
    for (shares, cloud), run in zip(rows, runs, strict=True):
        series = run["series"]
        count = len(series["wait_ms"])
        seconds = [(index + 0.5) * series["step_s"] for index in range(count)]
        names = list(series["share"])
        shares.stackplot(seconds, *series["share"].values(), labels=names)
        shares.set(title=f"{run['name']}: requests by cut", xlabel="s", ylabel="share", ylim=(0, 1))
        shares.set_xlim(0, seconds[-1])
        shares.legend(loc="lower left", fontsize="x-small", ncols=2)
        cloud.plot(seconds, series["wait_ms"], label="wait, ms", color="tab:red")
        latency = [float("nan") if value is None else value for value in series["p99_ms"]]
        cloud.plot(seconds, latency, label="p99 latency, ms", color="tab:grey")
        cloud.set(title=f"{run['name']}: the cloud", xlabel="s", ylabel="ms", xlim=(0, seconds[-1]))
        replicas = cloud.twinx()
        replicas.step(seconds, series["ready"], where="mid", label="replicas", color="tab:blue")
        replicas.set(ylabel="replicas ready", ylim=(0, max(series["ready"]) * 1.2 + 1))
        for moment in run["moments"]:
            for axis in (shares, cloud):
                axis.axvline(moment["at_s"], color="black", linewidth=0.8, linestyle=":")
            cloud.text(
                moment["at_s"], cloud.get_ylim()[1], f" {moment['what']}", fontsize="x-small", va="top"
            )
        lines = [*cloud.get_lines()[:2], *replicas.get_lines()]
        cloud.legend(lines, [line.get_label() for line in lines], loc="center left", fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
