"""Every bench in turn, each in a process of its own; figures go to ``bench/results``.

``python -m bench [--quick] [NAME ...]``.  The exit code is 1 when a measurement is not sound.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

_BENCHES = {
    "link": 1.0,
    "equality": 1.0,
    "hop": 1.0,
    "overhead": 3.5,
    "load": 5.0,
    "batching": 4.0,
    "scale": 3.5,
    "decode_ahead": 1.0,
    "fleet": 4.0,
    "solver": 2.0,
    "predict": 2.0,
    "regret": 7.5,
    "energy": 6.0,
    "paper": 1.0,
    "chaos": 4.0,
    "attack": 3.0,
    "trace": 6.0,
    "rate": 20.0,
}
"""Minutes that each took on two cores of an AMD EPYC."""

_RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"All of them take about {sum(_BENCHES.values()):.0f} minutes on two cores.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {_with_minutes()}")
    parser.add_argument("--quick", action="store_true", help="a smoke test of each")
    parser.add_argument("--results", type=Path, default=_RESULTS, metavar="FOLDER")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.names) - set(_BENCHES))
    if unknown:
        parser.error(f"no bench {', '.join(unknown)}; there are {', '.join(_BENCHES)}")
    console = Console()
    names = options.names or list(_BENCHES)
    summary = Table(title="all targets", title_justify="left")
    for column in ("bench", "target", "measured", "", "unit", "met"):
        summary.add_column(column)
    unsound = []
    for number, name in enumerate(names, start=1):
        console.rule(f"{number} of {len(names)}: bench.{name}")
        began_s = time.monotonic()
        path = options.results / f"{name}.json"
        command = [sys.executable, "-m", f"bench.{name}", "--json", str(path)]
        code = subprocess.run([*command, "--quick"] if options.quick else command).returncode
        console.print(f"bench.{name}: {time.monotonic() - began_s:.0f} s, exit code {code}", style="dim")
        if code:
            unsound.append(name)
            continue
        for target in json.loads(path.read_text(encoding="utf-8"))["targets"]:
            summary.add_row(
                name,
                target["name"],
                "-" if target["value"] is None else f"{target['value']:.3g}",
                f"{'≤' if target['direction'] == 'at_most' else '≥'} {target['target']:g}",
                target["unit"],
                "yes" if target["met"] else "[bold red]no",
            )
    console.print(summary)
    if unsound:
        console.print(f"[bold red]not sound, or failed:[/] {', '.join(unsound)}")
    return 1 if unsound else 0


def _with_minutes() -> str:
    """The names, each with the time that it takes."""
    return ", ".join(f"{name} ({minutes:g} min)" for name, minutes in _BENCHES.items())


if __name__ == "__main__":
    raise SystemExit(main())
