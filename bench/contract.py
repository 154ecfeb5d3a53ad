"""What every bench promises: a readable table, JSON with targets, and an exit code that means soundness.

A bench is a module with ``main(argv) -> int`` that makes one :class:`Bench`, adds rows and targets to it
and returns :meth:`Bench.finish`.  A missed target is reported and leaves the exit code at 0: it is a
result.  Exit code 1 says that the measurement itself cannot be trusted, for example because an answer
was wrong, see :meth:`Bench.unsound`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

__all__ = ["Bench", "Direction", "Target", "cell", "commit", "machine", "spread", "versions"]

Direction = Literal["at_most", "at_least"]
ItemT = TypeVar("ItemT")

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("suture", "torch", "ray", "pyzmq", "numpy")


@dataclass(frozen=True, slots=True)
class Target:
    """A promise and what was measured for it; ``value`` is None where nothing could be measured."""

    name: str
    value: float | None
    unit: str
    target: float
    direction: Direction
    met: bool


class Bench:
    """One run of one bench: command line in, table and JSON out.

    ``arguments`` may add options of the bench's own to the parser; all are then in ``options``.
    ``rows`` and ``targets`` are what :meth:`finish` prints and writes.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str] | None = None,
        *,
        description: str = "",
        arguments: Callable[[argparse.ArgumentParser], object] | None = None,
        console: Console | None = None,
    ) -> None:
        parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=description or None)
        parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and targets here")
        parser.add_argument("--quick", action="store_true", help="a smoke test of less than a minute")
        parser.add_argument("--seed", type=int, default=0)
        if arguments is not None:
            arguments(parser)
        self.name = name
        self.options = parser.parse_args(argv)
        self.quick: bool = self.options.quick
        self.seed: int = self.options.seed
        # Into a file or a pipe, tables keep the width of a roomy terminal instead of 80 columns.
        self.console = console or Console(width=None if sys.stdout.isatty() else 120)
        self.config: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.targets: list[Target] = []
        self.problems: list[str] = []
        self._started = datetime.datetime.now(datetime.UTC)

    def row(self, **figures: Any) -> None:
        """Add one row.  Numbers, strings and booleans are printed; lists and maps are only in the JSON."""
        self.rows.append(figures)

    def target(self, name: str, value: float | None, unit: str, target: float, direction: Direction) -> bool:
        """Hold ``value`` against a promise; the answer is whether it is kept.  NaN counts as not measured."""
        if value is not None and math.isnan(value):
            value = None
        met = value is not None and (value <= target if direction == "at_most" else value >= target)
        self.targets.append(Target(name, value, unit, target, direction, met))
        return met

    def unsound(self, problem: str) -> None:
        """Say why this measurement must not be believed; the exit code becomes 1."""
        self.problems.append(problem)

    def track(self, items: Iterable[ItemT], description: str, total: int | None = None) -> Iterable[ItemT]:
        """The same items, with a progress bar on the way."""
        return track(items, description, total=total, console=self.console, transient=True)

    def show(self, title: str, rows: Sequence[dict[str, Any]]) -> None:
        """Print any rows as a table; the columns are the scalar keys in order of first appearance."""
        columns = list(dict.fromkeys(key for row in rows for key in row if _is_scalar(row[key])))
        if not columns:
            return
        table = Table(title=title, title_justify="left", header_style="bold")
        for column in columns:
            numeric = all(_is_number(row.get(column, 0)) for row in rows)
            table.add_column(column, justify="right" if numeric else "left")
        for row in rows:
            table.add_row(*(cell(row.get(column)) for column in columns))
        self.console.print(table)

    def finish(self, show_rows: bool = True) -> int:
        """Print, write the JSON where asked, and return the exit code."""
        if show_rows:
            self.show(f"bench.{self.name}{' (quick)' if self.quick else ''}", self.rows)
        self.show(
            "targets",
            [
                {
                    "target": item.name,
                    "measured": item.value,
                    "at most" if item.direction == "at_most" else "at least": item.target,
                    "unit": item.unit,
                    "met": item.met,
                }
                for item in self.targets
            ],
        )
        for problem in self.problems:
            self.console.print(f"[bold red]not sound:[/] {problem}", highlight=False)
        if self.options.json is not None:
            _write(self.options.json, self.document())
        return 1 if self.problems else 0

    def document(self) -> dict[str, Any]:
        """What is written as JSON.  Raises ValueError where a figure is not finite."""
        return {
            "bench": self.name,
            "date": self._started.isoformat(timespec="seconds"),
            "quick": self.quick,
            "sound": not self.problems,
            "problems": self.problems,
            "commit": commit(),
            "machine": machine(),
            "versions": versions(),
            "seed": self.seed,
            "config": self.config,
            "targets": [asdict(item) for item in self.targets],
            "rows": self.rows,
        }


def spread(samples: Sequence[float], unit: str = "ms") -> dict[str, Any]:
    """Median, tails and every sample, under keys that end in the unit.

    Raises ValueError without samples.
    """
    if not len(samples):
        raise ValueError("no samples were taken")
    p10, p50, p90, p99 = np.percentile(np.asarray(samples, dtype=np.float64), (10, 50, 90, 99))
    return {
        f"p50_{unit}": float(p50),
        f"p10_{unit}": float(p10),
        f"p90_{unit}": float(p90),
        f"p99_{unit}": float(p99),
        "repeats": len(samples),
        f"samples_{unit}": [round(float(sample), 4) for sample in samples],
    }


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system; nothing that tells one person's machine from another's."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, str | None]:
    """Of Python and of the packages whose speed matters; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit(root: Path = _ROOT) -> str | None:
    """The commit that ``root`` is a checkout of, with ``-dirty`` where files differ from it.

    None without git, or where ``root`` is not the top of a checkout (an unpacked archive).
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    head = _git(root, "rev-parse", "HEAD")
    if top is None or head is None or Path(top).resolve() != root.resolve():
        return None
    return head + ("-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ("git", "-C", str(root), *arguments), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()


def _write(path: Path, document: dict[str, Any]) -> None:
    # Rendered before the file is touched, and moved into place: a reader never sees half a document.
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def cell(value: Any) -> str:
    """A figure for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
