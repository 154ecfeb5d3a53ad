"""What the commands beside the agent itself do; each returns the text to print."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from edge_agent.calibrate import run_calibration
from edge_agent.checks import Verdict, render
from edge_agent.doctor import examine
from edge_agent.fit_command import write_tables
from edge_agent.progress import TerminalProgress
from edge_agent.runner import Runner
from edge_agent.tensors import check_device
from shared.calibration import calibrate
from shared.config import AgentConfig, ModelConfig, ModelSource
from shared.errors import UnknownModelError
from shared.graph import Graph, save_bundle
from shared.models import TABLES_FILE, resolve
from shared.plan.predict import Predictor
from shared.plan.profile import Profile

__all__ = ["calibrate_device", "doctor_device", "profile_models", "write_bundle"]

_TABLE_WIDTH = 120


def write_bundle(source: ModelSource, directory: Path) -> str:
    """Resolve a network and write it.  Raises what resolving raises, BundleError when writing fails."""
    model = resolve(source)
    save_bundle(
        model.captured,
        directory,
        labels=model.labels,
        example=model.example,
        input_form=model.input_form,
    )
    if model.tables is not None:
        write_tables(model.tables, directory / TABLES_FILE)
    graph = model.captured.graph
    megabytes = graph.weight_bytes / 1e6
    return (
        f"{directory}: {graph.name}, {len(graph.units)} units, {megabytes:.1f} MB of weights, {graph.digest}"
    )


def doctor_device(config: AgentConfig, *, as_json: bool = False) -> bool:
    """Print every check as soon as it is done, or all of them as JSON; whether none failed."""
    console = Console(highlight=False, soft_wrap=True)
    checks = []
    for check in examine(config):
        checks.append(check)
        if not as_json:
            console.print(render(check))
    if as_json:
        print(json.dumps([asdict(check) for check in checks]))
    return all(check.verdict is not Verdict.FAILURE for check in checks)


def profile_models(config: AgentConfig, names: list[str], *, as_json: bool = False) -> str:
    """The profiles of the configured networks, all of them when ``names`` is empty."""
    known = {model.name: model for model in config.models}
    for name in names:
        if name not in known:
            raise UnknownModelError(
                f"the configuration lists no network {name!r}; it lists {', '.join(known)}"
            )
    profiles = asyncio.run(_profiles(config, [known[name] for name in names or known]))
    if as_json:
        return json.dumps({graph.name: json.loads(profile.to_json()) for graph, profile in profiles})
    return "\n\n".join(_table(graph, profile) for graph, profile in profiles)


def calibrate_device(config: AgentConfig, *, as_json: bool = False, share: float = 1.0) -> str:
    """Sweep, fit and keep this device's predictor; what it learned by type of unit.

    ``share`` of the sweep's networks are run.  Raises ConfigError when the device is not there,
    StartupError when the cache directory cannot be written.
    """
    check_device(config.device)
    with TerminalProgress() as progress:
        path = run_calibration(
            config.cache_dir,
            config.device,
            config.threads,
            lambda done, total, name: progress("networks", "sweep", done, total),
            share=share,
        )
    predictor = Predictor.from_json(path.read_bytes())
    if as_json:
        return json.dumps({"file": str(path), "predictor": json.loads(predictor.to_json())})
    table = Table(
        title=f"{predictor.key.device}, {predictor.key.threads} threads: {predictor.overall.samples} units",
        title_justify="left",
    )
    for heading in ("type of unit", "units", "median error"):
        table.add_column(heading, justify="left" if heading == "type of unit" else "right")
    for name, regression in [*predictor.by_type.items(), ("all others", predictor.overall)]:
        table.add_row(name, str(regression.samples), f"{regression.median_error:.0%}")
    return f"{_printed(table)}\nkept in {path}"


async def _profiles(config: AgentConfig, sources: list[ModelConfig]) -> list[tuple[Graph, Profile]]:
    runner = Runner(config.device, config.threads)
    profiles = []
    try:
        with TerminalProgress() as progress:
            for source in sources:
                model = await runner.call(partial(resolve, source, config.cache_dir))
                graph = await runner.load(source.name, model.captured, model.tables)
                calibration = await runner.call(partial(calibrate, model, source.calibration))
                profile = await runner.profile(
                    source.name,
                    calibration,
                    cache_dir=config.cache_dir,
                    repeats=config.profile_repeats,
                    progress=partial(progress, source.name, "profile"),
                )
                profiles.append((graph, profile))
    finally:
        await runner.close()
    return profiles


def _table(graph: Graph, profile: Profile) -> str:
    table = Table(
        title=f"{graph.name} on {profile.key.device}, {profile.key.threads} threads: "
        f"{profile.whole_ms:.2f} ms (sum of units {sum(profile.unit_ms):.2f} ms, {profile.repeats} repeats)",
        title_justify="left",
    )
    for heading in ("unit", "ms", "+-", "share", "leaves as (kB)"):
        table.add_column(heading, justify="left" if heading == "unit" else "right")
    total_ms = sum(profile.unit_ms) or 1.0
    for unit, cut, ms, spread_ms in zip(
        graph.units, graph.cuts[1:], profile.unit_ms, profile.unit_spread_ms, strict=True
    ):
        leaving = sum(spec.nbytes for spec in graph.live_specs(cut, 1)) / 1e3
        table.add_row(
            f"{unit.index} {unit.name}",
            f"{ms:.3f}",
            f"{spread_ms:.3f}",
            f"{ms / total_ms:.0%}",
            f"{leaving:,.1f}" if cut.cloud_units else "",
        )
    return _printed(table)


def _printed(table: Table) -> str:
    console = Console(file=io.StringIO(), width=_TABLE_WIDTH)
    console.print(table)
    printed = console.file
    assert isinstance(printed, io.StringIO)
    return printed.getvalue().rstrip()
