"""What was seen, in Markdown: the README's table and docs/measured.md, written from stored runs.

Nobody types these figures: ``python -m bench.report --write`` does, and a test holds both to what is stored.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.contract import cell
from bench.stored import Stored, origin, question

__all__ = ["END", "START", "measured_page", "readme_table", "with_table"]

START, END = "<!-- figures: written by python -m bench.report --write -->", "<!-- end of figures -->"


def readme_table(stored: Sequence[Stored]) -> str:
    """A line for each bench: its question, what was seen, and how many of its targets were met."""
    lines = ["| `python -m bench.…` | asks | and saw | targets met |", "| --- | --- | --- | --- |"]
    for each in _ordered(stored):
        targets = each.document["targets"]
        met = sum(target["met"] for target in targets)
        verdict = f"{met} of {len(targets)}" if met == len(targets) else f"**{met} of {len(targets)}**"
        lines.append(f"| `{each.name}` | {question(each.name)} | {_headline(each)} | {verdict} |")
    return "\n".join(lines)


def with_table(readme: str, stored: Sequence[Stored]) -> str:
    """The README with its table made anew.  Raises ValueError where it has no place for one."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the README has no {START} ... {END}")
    return f"{before}{START}\n{readme_table(stored)}\n{END}{after}"


def measured_page(stored: Sequence[Stored]) -> str:
    """Every target of every stored run."""
    parts = [
        "# What was measured",
        "Written by `python -m bench.report --write` from `bench/results`, where rows and samples are. How:\n"
        "[bench/METHODOLOGY.md](../bench/METHODOLOGY.md). A missed target is a result.",
    ]
    for each in _ordered(stored):
        parts.append(f"## {each.name}")
        parts.append(f"{question(each.name)}\n\n`python -m bench.{each.name}`: {origin(each.document)}.")
        parts.extend(f"**Not sound:** {problem}" for problem in each.document.get("problems", ()))
        rows = ["| target | measured | wanted | unit | |", "| --- | --- | --- | --- | --- |"]
        for target in each.document["targets"]:
            sign = "≤" if target["direction"] == "at_most" else "≥"
            verdict = "met" if target["met"] else "**missed**"
            name = target["name"].replace("|", "\\|")
            figures = f"{cell(target['value'])} | {sign} {cell(target['target'])} | {target['unit']}"
            rows.append(f"| {name} | {figures} | {verdict} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _ordered(stored: Sequence[Stored]) -> list[Stored]:
    """As in ``_HEADLINES``, then the others."""
    places = {name: place for place, name in enumerate(_HEADLINES)}
    return sorted(stored, key=lambda each: (places.get(each.name, len(places)), each.name))


def _headline(stored: Stored) -> str:
    maker = _HEADLINES.get(stored.name, _first_targets)
    return maker(stored.document)


def _first_targets(document: Mapping[str, Any]) -> str:
    """Of a bench that has nothing better: its first targets."""
    return "; ".join(
        f"{target['name']} {cell(target['value'])} {target['unit']}" for target in document["targets"][:2]
    ).replace("|", "\\|")


def _value(document: Mapping[str, Any], start: str) -> float:
    """Of the target whose name starts so."""
    (value,) = [target["value"] for target in document["targets"] if target["name"].startswith(start)]
    return float(value)


def _equality(document: Mapping[str, Any]) -> str:
    tried, equal = (sum(row[key] for row in document["rows"]) for key in ("tried", "bit_equal"))
    return f"{equal} of {tried} cuts equal bit for bit; fused within {_value(document, 'worst error'):.1e}"


def _hop(document: Mapping[str, Any]) -> str:
    ms = {(row["activation"], row["path"]): row["p50_ms"] for row in document["rows"]}
    sizes = list(dict.fromkeys(activation for activation, _ in ms))
    paths = {path for _, path in ms}

    def line(path: str) -> str:
        return " / ".join(f"{ms[size, path]:.2f}" for size in sizes)

    named = [("suture", "Suture"), ("gateway + handle", "a gateway and `DeploymentHandle`"),
             ("http proxy", "Serve's HTTP proxy"), ("pyzmq echo", "a bare pyzmq echo")]  # fmt: skip
    seen = "; ".join(f"{name} {line(path)}" for path, name in named if path in paths)
    return f"median ms at {' / '.join(sizes)}: {seen}"


def _overhead(document: Mapping[str, Any]) -> str:
    values = [target["value"] for target in document["targets"]]
    middle = statistics.median(values)
    return f"{min(values):.2f} to {max(values):.2f} of what is allowed (2 ms or 3 %), median {middle:.2f}"


def _regret(document: Mapping[str, Any]) -> str:
    summary = document["config"]["summary"]
    return (
        f"{summary['mean regret, %']:.2f} % above the best measured, mean of {len(document['rows'])} cells; "
        f"predictions off by {_value(document, 'median'):.1f} % (median); "
        f"{summary['mean speed-up over device only']:.2f}x over the device alone, "
        f"{summary['mean speed-up over cloud only']:.2f}x over the cloud alone"
    )


def _load(document: Mapping[str, Any]) -> str:
    seen = (
        f"{100 * _value(document, 'throughput at saturation over torch'):.0f} % of torch's own rate at "
        "saturation; at three times the capacity p99 of what is accepted "
        f"{_value(document, '300% of capacity: p99'):.0f} ms"
    )
    late = "300% of capacity: answers in time over those behind "
    behind = {target["name"].removeprefix(late): target["value"] for target in document["targets"]}
    if "handle" in behind and "http" in behind:
        seen += (
            f", and {behind['handle']:.1f}x the answers in time of the same tail behind a `DeploymentHandle`"
            f", {behind['http']:.1f}x behind Serve's HTTP proxy"
        )
    return seen


def _batching(document: Mapping[str, Any]) -> str:
    gains = {target["name"]: target["value"] for target in document["targets"]}
    over_none, over_same = (
        [value for name, value in gains.items() if name.endswith(f"throughput over {way}")]
        for way in ("none", "same cut")
    )
    live = [1 - value for name, value in gains.items() if "real torch" in name]
    return (
        f"on recorded GPU curves {min(over_none):.1f} to {max(over_none):.1f}x the requests in time of no "
        f"batching, {min(over_same):.2f} to {max(over_same):.2f}x of batching one cut only; with torch on "
        f"this processor {min(live):.2f} to {max(live):.2f}x"
    )


def _scale(document: Mapping[str, Any]) -> str:
    rows = {row["load"]: row for row in document["rows"]}
    meanwhile = rows["4x, before a replica more"]["on_device"]
    return (
        f"4x the load: a replica more after {_value(document, 'first new replica'):.1f} s, "
        f"{_value(document, 'requests lost'):.0f} requests lost, {100 * meanwhile:.0f} % answered on the "
        "devices meanwhile"
    )


def _fleet(document: Mapping[str, Any]) -> str:
    rows = {(row["fleet"], row["since"]): row for row in document["rows"]}
    damped, undamped = (rows[name, "all start"]["deviation"] for name in ("all alike", "all alike, undamped"))
    return (
        f"{document['config']['devices']:,} simulated devices, all alike: the offloaded share sways by "
        f"{damped:.3f}, undamped by {undamped:.3f} ([picture](docs/fleet.png))"
    )


def _solver(document: Mapping[str, Any]) -> str:
    zoo, wide = _value(document, "worst gap"), _value(document, "mean gap to the exact optimum, nas-1500")
    return (
        f"p99 {_value(document, 're-solve p99'):.0f} µs; {zoo:.2g} % above the exact optimum on the zoo, "
        f"{wide:.2g} % on graphs of 1,500 units"
    )


def _predict(document: Mapping[str, Any]) -> str:
    others, sweep = (100 * _value(document, f"error of a unit, {by}, median") for by in ("others", "sweep"))
    return f"a unit within {others:.1f} % from other networks, {sweep:.1f} % from `calibrate` alone (median)"


def _energy(document: Mapping[str, Any]) -> str:
    return (
        f"metered energy predicted within {_value(document, 'median'):.1f} %; worst cell "
        f"{_value(document, 'energy objective'):.1f} % beyond the noise"
    )


def _paper(document: Mapping[str, Any]) -> str:
    return (
        f"modelled: {_value(document, 'mean speed-up over the status quo'):.1f}x over the status quo "
        "(the paper: 3.1x), "
        f"{_value(document, 'mean energy saved'):.0f} % energy saved (59.5 %), "
        f"{_value(document, 'share of the optimum'):.1f} % of the optimum (98.5 %)"
    )


def _trace(document: Mapping[str, Any]) -> str:
    rows = {row["policy"]: row for row in document["rows"]}
    seen = "; ".join(f"{name} {rows[name]['mean_ms']:.0f} / {rows[name]['p99_ms']:.0f}" for name in rows)
    return f"mean / p99 ms on {document['config']['trace']}: {seen}"


def _chaos(document: Mapping[str, Any]) -> str:
    rows = {row["guard"]: row for row in document["rows"]}
    asked = sum(row["requests"] for row in rows.values())
    missed = ", ".join(
        f"{rows[guard]['avoidable']} {words}"
        for guard, words in ((True, "with the deadline guard"), (False, "without it"))
        if guard in rows
    )
    return (
        f"{asked:,} requests under {len(document['config']['faults'])} faults: "
        f"{_value(document, 'requests without'):.0f} without an outcome, "
        f"{_value(document, 'wrong'):.0f} wrong; missed though the device alone would have made it: {missed}"
    )


def _attack(document: Mapping[str, Any]) -> str:
    parsers = [row for row in document["rows"] if "parser" in row]
    floods = [row for row in document["rows"] if "flood" in row]
    asked, answered = (sum(row[key] for row in floods) for key in ("asked", "answered"))
    return (
        f"{sum(row['inputs'] for row in parsers):,} hostile inputs: {sum(row['crashes'] for row in parsers)} "
        f"crashes; under {len(floods)} floods {answered:,} of a device's {asked:,} requests answered, "
        f"p99 at worst {max(row['p99_ms'] for row in floods):.0f} ms; the gateway grows by "
        f"{max(row['grown_mib'] for row in floods):.0f} MiB"
    )


_HEADLINES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "equality": _equality,
    "regret": _regret,
    "solver": _solver,
    "predict": _predict,
    "energy": _energy,
    "trace": _trace,
    "paper": _paper,
    "hop": _hop,
    "overhead": _overhead,
    "load": _load,
    "chaos": _chaos,
    "attack": _attack,
    "batching": _batching,
    "scale": _scale,
    "fleet": _fleet,
}
