"""A plan for people: a table of candidates stage by stage, and the sentences around it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from shared.plan.explain import Candidate, Explanation, Switch
from shared.plan.stages import Stage

__all__ = ["candidate_name", "render"]

_WIDEST = 400
"""Tables take the width they need, whatever the terminal's: a cut-off number is worse than a wrapped line."""

_COLUMNS: dict[str, tuple[Stage, ...]] = {
    "device": (Stage.QUEUE, Stage.DEVICE),
    "encode": (Stage.ENCODE,),
    "uplink": (Stage.UPLINK,),
    "net": (Stage.NETWORK,),
    "wait": (Stage.WAIT,),
    "decode": (Stage.DECODE,),
    "cloud": (Stage.CLOUD,),
    "back": (Stage.RESULT_ENCODE, Stage.DOWNLINK, Stage.RESULT_DECODE, Stage.OVERHEAD),
}
"""The stages of a request in ms; ``net`` is the round trip, ``back`` the result's way and bookkeeping.
Beyond them, ``agree`` is the share of answers that stayed the same, ``of`` so many, and ``shown`` the share
of all answers that this shows."""

_WORDS = {
    "uplink_mbps": ("the uplink", "Mbps"),
    "rtt_ms": ("the round trip", "ms"),
    "wait_ms": ("the queue wait", "ms"),
    "slowdown": ("the cloud's slowdown", "x"),
    "device": ("the device's time over its profile", "x"),
}


def candidate_name(candidate: Candidate) -> str:
    """E.g. ``split after 12 features.3 conv2d, uint8+zstd``."""
    if candidate.place == "device":
        return "all on the device"
    if candidate.place == "cloud":
        return f"all in the cloud, input as {candidate.codec}"
    index = f"{candidate.cut} " if candidate.cut >= 0 else ""
    return f"split after {index}{candidate.cut_name}, {candidate.codec}"


def render(explanation: Explanation, facts: Iterable[str], *, show_all: bool = False) -> str:
    """The whole text; ``facts`` are lines about where the numbers come from."""
    console = Console(file=io.StringIO(), width=_WIDEST, highlight=False)
    console.print(f"[bold]{explanation.model}[/bold]: least {explanation.objective}", soft_wrap=True)
    for fact in facts:
        console.print(f"  {fact}", soft_wrap=True, markup=False)
    console.print(_table(explanation, show_all))
    for line in _verdict(explanation):
        console.print(line, soft_wrap=True, markup=False)
    printed = console.file
    assert isinstance(printed, io.StringIO)
    return printed.getvalue().rstrip()


def _shown(explanation: Explanation, show_all: bool) -> list[Candidate]:
    if show_all:
        return list(explanation.candidates)
    wanted = {*explanation.hull, explanation.winner, *(switch.row for switch in explanation.switches)}
    wanted.add(next(each.row for each in explanation.candidates if each.place == "device"))
    if explanation.runner_up is not None:
        wanted.add(explanation.runner_up)
    return [explanation.candidates[row] for row in sorted(wanted)]


def _table(explanation: Explanation, show_all: bool) -> Table:
    shown = _shown(explanation, show_all)
    with_energy = any(each.energy_mj is not None for each in shown)
    with_agreement = any(each.agreement is not None for each in shown)
    with_cost = explanation.unit != "ms" or explanation.objective != "latency"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("cut", overflow="ellipsis", no_wrap=True, max_width=36)
    table.add_column("codec", no_wrap=True)
    numbers = ["kB up", *_COLUMNS, "ms"]
    numbers += ["mJ"] if with_energy else []
    numbers += ["agree", "shown", "of"] if with_agreement else []
    numbers += [explanation.unit if explanation.unit == "points" else "cost"] if with_cost else []
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True, style="bold" if name == "ms" else None)
    table.add_column("", no_wrap=True, overflow="ellipsis")
    for each in shown:
        cells = [
            f"{each.cut} {each.cut_name}" if each.cut >= 0 else each.cut_name,
            each.codec,
            f"{each.payload_bytes / 1e3:,.1f}" if each.codec else "",
        ]
        for stages in _COLUMNS.values():
            ms = sum(each.stages[stage] for stage in stages)
            cells.append(f"{ms:.1f}" if ms else "")
        cells.append(f"{each.latency_ms:.1f}")
        if with_energy:
            cells.append("" if each.energy_mj is None else f"{each.energy_mj:.1f}")
        if with_agreement:
            cells.append("" if each.agreement is None else f"{each.agreement:.3f}")
            cells.append("" if each.agreement_shown is None else _rounded_down(each.agreement_shown))
            cells.append("" if each.inputs is None else str(each.inputs))
        if with_cost:
            cells.append("" if each.cost is None else f"{each.cost:.4g}")
        table.add_row(*cells, _mark(explanation, each, show_all), style="dim" if each.excluded else None)
    return table


def _rounded_down(agreement: float) -> str:
    """What is below a limit must not read as if it reached it."""
    return f"{math.floor(agreement * 1000 + 1e-9) / 1000:.3f}"


def _mark(explanation: Explanation, candidate: Candidate, in_full: bool) -> str:
    if candidate.row == explanation.winner:
        return "<- winner"
    if candidate.row == explanation.runner_up:
        return "runner-up"
    return candidate.excluded if in_full else candidate.excluded.partition(":")[0]


def _verdict(explanation: Explanation) -> list[str]:
    lines = [f"winner     {_priced(explanation, explanation.winner)}"]
    if explanation.unmet:
        lines.append(f"           but {explanation.unmet}")
    if explanation.runner_up is not None:
        lines.append(
            f"runner-up  {_priced(explanation, explanation.runner_up)}, "
            f"{explanation.margin:.4g} {explanation.unit} more"
        )
    excluded = explanation.exclusions
    if excluded:
        reasons = ", ".join(f"{count} by {reason}" for reason, count in excluded.items())
        lines.append(
            f"excluded   {sum(excluded.values())} of {len(explanation.candidates)} candidates: {reasons} "
            "(--all shows them)"
        )
    else:
        lines.append(f"excluded   none of {len(explanation.candidates)} candidates")
    needed = [each.inputs_needed for each in explanation.candidates if each.inputs_needed is not None]
    if needed:
        lines.append(
            f"           {len(needed)} of them on too few inputs: {min(needed)} might do for the first; "
            "name more under calibration:"
        )
    for index, switch in enumerate(explanation.switches):
        lines.append(f"{'' if index else 'switches':<10} {_switch(explanation, switch)}")
    if not explanation.switches:
        lines.append("switches   none: this wins whatever the link and the load")
    return lines


def _priced(explanation: Explanation, row: int) -> str:
    candidate = explanation.candidates[row]
    cost = "" if candidate.cost is None else f"{candidate.cost:.4g} {explanation.unit}"
    return f"{candidate_name(candidate)}: {cost}"


def _switch(explanation: Explanation, switch: Switch) -> str:
    quantity, unit = _WORDS[switch.quantity]
    name = candidate_name(explanation.candidates[switch.row])
    return f"with {quantity} {switch.direction} {switch.value:.4g} {unit}: {name}"
