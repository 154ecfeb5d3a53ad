"""A running agent on a terminal: its link, and for each network its cut, its time and its answers.

Made of what :func:`edge_agent.status.agent_status` says, so that it can be drawn anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

__all__ = ["status_view"]

_BAR = 40
"""Characters of a bar."""

_ON_DEVICE, _IN_CLOUD, _ON_LINK = "green", "blue", "yellow"

_STAGES = {
    "device": (("queue", "device", "encode", "result_decode", "overhead"), _ON_DEVICE),
    "link": (("uplink", "network", "downlink"), _ON_LINK),
    "cloud": (("wait", "decode", "cloud", "result_encode"), _IN_CLOUD),
    "gave up after": (("gave_up_after",), "red"),
}
"""Where a stage of a result's breakdown is drawn; what is not listed is drawn as ``other``."""


def status_view(status: Mapping[str, Any], rates_per_s: Mapping[str, float] | None = None) -> RenderableType:
    """``rates_per_s`` are answers a second by network, where the caller saw two states."""
    parts: list[RenderableType] = [_head(status)]
    for model in status["models"]:
        rate = None if rates_per_s is None else rates_per_s.get(model["name"])
        parts.append(_model(model, rate))
    return Group(*parts)


def _head(status: Mapping[str, Any]) -> RenderableType:
    link = status["link"]
    lines = Text()
    lines.append(f"{status['software']}  agent {status['agent']} on {status['device']}, up ", "bold")
    lines.append(f"{_duration(status['up_s'])}, {status['in_flight']} requests in flight\n", "bold")
    lines.append(f"cloud   {link['state']}", "green" if link["state"] == "online" else "red")
    lines.append(f": {link['reason']}\n")
    if status["models"]:
        lines.append(_conditions(status["models"][0]["plan"]))
    return lines


def _conditions(plan: Mapping[str, Any]) -> str:
    now = plan["conditions"]
    if not plan["uplink_measured"]:
        uplink = f"uplink {now['uplink_bps'] / 1e6:.3g} Mbps (assumed)"
    else:
        spread = plan["uplink_spread"]
        uplink = f"uplink {'at most ' if plan['uplink_bounded'] else ''}{now['uplink_bps'] / 1e6:.3g} Mbps"
        uplink += f" ±{spread:.0%}" if spread is not None and spread < 1 else " (unsure)"
        uplink += f", {_age(plan['uplink_age_ms'])}"
    return (
        f"link    {uplink}; round trip {now['rtt_ms']:.1f} ms, {_age(plan['rtt_age_ms'])}\n"
        f"load    wait {now['wait_ms']:.1f} ms, slowdown {now['slowdown']:.2f}, {_age(plan['load_age_ms'])}"
    )


def _model(model: Mapping[str, Any], rate_per_s: float | None) -> RenderableType:
    plan = model["plan"]
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim")
    table.add_column()
    table.add_row("plan", _plan(plan))
    table.add_row("layers", _layers(model["units"], plan))
    table.add_row("why", plan["reason"])
    if model["latency_p50_ms"] is not None:
        table.add_row("time", _times(model["stages_ms"]))
        table.add_row("latency", _latency(model))
    table.add_row("answers", _answers(model, rate_per_s))
    title = f"[bold]{model['name']}[/]  [dim]{model['digest'][:15]}[/]  least {plan['objective']}"
    return Panel(table, title=title, title_align="left")


def _plan(plan: Mapping[str, Any]) -> str:
    error = f", {plan['predicted_ms']:.1f} ms predicted" if plan["predicted_ms"] is not None else ""
    if plan["place"] == "device":
        return f"all on the device{error}"
    where = "all in the cloud" if plan["place"] == "cloud" else f"split after {plan['cut_name']}"
    return f"{where}, {plan['codec']}, {plan['payload_bytes'] / 1000:.1f} kB{error}"


def _layers(units: Sequence[str], plan: Mapping[str, Any]) -> Text:
    """The network from input to output: what runs here, what runs there."""
    total = len(units)
    if plan["cut"] < 0:  # not a place in the order of units, but a set of them
        return Text(f"{total} units, cut across branches: {plan['cut_name']}")
    here = round(_BAR * plan["cut"] / total)
    bar = Text("█" * here, _ON_DEVICE)
    bar.append("█" * (_BAR - here), _IN_CLOUD)
    bar.append(f"  {plan['cut']} of {total} units here", "default")
    return bar


def _times(stages_ms: Mapping[str, float]) -> Text:
    """The mean latency, drawn to scale by where it passes."""
    total = sum(stages_ms.values()) or 1.0
    listed = {stage for stages, _ in _STAGES.values() for stage in stages}
    parts = [
        (name, sum(stages_ms.get(stage, 0.0) for stage in stages), colour)
        for name, (stages, colour) in _STAGES.items()
    ]
    parts.append(("other", sum(ms for stage, ms in stages_ms.items() if stage not in listed), "white"))
    bar = Text()
    for _, ms, colour in parts:
        bar.append("█" * round(_BAR * ms / total), colour)
    for name, ms, colour in parts:
        if ms >= 0.05:
            bar.append(f"  {name} {ms:.1f}", colour)
    return bar


def _latency(model: Mapping[str, Any]) -> str:
    error = model["prediction_error"]
    return (
        f"p50 {model['latency_p50_ms']:.1f} ms, p95 {model['latency_p95_ms']:.1f} ms"
        + ("" if error is None else f"; predictions off by {error:.0%}")
        + f"; {model['energy_mj'] / max(sum(model['where'].values()), 1):.0f} mJ each"
    )


def _answers(model: Mapping[str, Any], rate_per_s: float | None) -> Text:
    where, total = model["where"], max(sum(model["where"].values()), 1)
    text = Text(f"{model['requests']:,} request{'' if model['requests'] == 1 else 's'}")
    if rate_per_s is not None:
        text.append(f", {rate_per_s:.1f} a second")
    for name, count in where.items():
        if count:
            text.append(f"; {name} {count / total:.0%}")
    text.append(f"; {model['switches']} switches; {model['uplink_bytes'] / 1e6:.1f} MB sent")
    for name, count in model["errors"].items():
        text.append(f"; {name} {count}", "red")
    return text


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    )


def _age(age_ms: float | None) -> str:
    if age_ms is None:
        return "never measured"
    return f"{age_ms:.0f} ms ago" if age_ms < 1000 else f"{age_ms / 1000:.0f} s ago"
