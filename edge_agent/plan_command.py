"""``edge-agent plan``: what the agent would do under given conditions, and why.

The device's side is what the agent itself uses: its profile, its accuracy gate, its objective and its
constraints.  The cloud's side comes from the gateway where one answers, else from an assumption that is
stated as such.  Whatever is given on the command line replaces what was measured.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from edge_agent.goals import constraints_of, objective_of, power_of, requested_objective
from edge_agent.judging import first_question
from edge_agent.plan_map import Load, check_map_file, draw_map
from edge_agent.plan_table import render
from edge_agent.progress import TerminalProgress
from edge_agent.registration import Registered, register
from edge_agent.runner import Runner
from edge_agent.scout import Visit, visit_gateway
from shared.codec import TRANSFORMS, Codec
from shared.config import AgentConfig, ModelConfig
from shared.errors import ConfigError, PlanError, UnknownModelError
from shared.graph import Cut
from shared.plan.explain import Explanation, Problem, explain, pose
from shared.plan.gate import Gate
from shared.plan.latency import Conditions
from shared.plan.objective import Objective
from shared.plan.rows import FAITHFUL, build_rows
from shared.plan.wide import widened_cuts
from shared.wire.messages import ModelOffer

__all__ = ["Planned", "WhatIf", "make_plans", "plan_models"]

_ASSUMED_CLOUD_FACTOR = 10.0


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What was given on the command line; None leaves it to the gateway or the configuration.

    ``cloud_factor`` is how many times faster than this device the cloud is taken to be; given, no gateway
    is asked.  ``objective`` is a name or a YAML mapping, as in the configuration.
    """

    uplink_mbps: float | None = None
    rtt_ms: float | None = None
    wait_ms: float | None = None
    slowdown: float | None = None
    cloud_factor: float | None = None
    objective: str | None = None

    def check(self) -> None:
        """Raises ConfigError for what no link and no cloud can be."""
        for name in ("uplink_mbps", "slowdown", "cloud_factor"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0, not {value:g}")
        for name in ("rtt_ms", "wait_ms"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"--{name.replace('_', '-')} cannot be negative: {value:g}")


@dataclass(frozen=True, slots=True)
class Planned:
    """One network's plan; ``facts`` say where its numbers come from, by subject."""

    explanation: Explanation
    problem: Problem
    facts: Mapping[str, str]
    wide_cuts: int

    def as_dict(self) -> dict[str, Any]:
        return {**self.explanation.as_dict(), "wide_cuts": self.wide_cuts, "sources": dict(self.facts)}


def plan_models(
    config: AgentConfig,
    names: list[str],
    asked: WhatIf,
    *,
    show_all: bool = False,
    as_json: bool = False,
    map_file: Path | None = None,
    map_load: Load = "wait_ms",
) -> str:
    """The text to print: the plans of the named networks, of all in the configuration without a name.

    ``map_file`` draws the map of winners of one network.  Raises ConfigError, UnknownModelError, PlanError
    for constraints that are impossible, and what resolving a network raises.
    """
    asked.check()
    known = {model.name: model for model in config.models}
    for name in names:
        if name not in known:
            raise UnknownModelError(
                f"the configuration lists no network {name!r}; it lists {', '.join(known)}"
            )
    sources = [known[name] for name in dict.fromkeys(names or known)]
    if map_file is not None:
        check_map_file(map_file)
        if len(sources) > 1:
            raise ConfigError(f"--map draws one network; choose with --model from {', '.join(known)}")
    planned = asyncio.run(make_plans(config, sources, asked))
    if map_file is not None:
        draw_map(planned[0].problem, planned[0].explanation, map_file, map_load)
    if as_json:
        return json.dumps({"models": [each.as_dict() for each in planned]}, allow_nan=False)
    texts = [
        render(
            each.explanation,
            (f"{subject + ':':<12} {fact}" for subject, fact in each.facts.items()),
            show_all=show_all,
        )
        for each in planned
    ]
    if map_file is not None:
        texts.append(f"the map is in {map_file}")
    return "\n\n".join(texts)


def _objective(config: AgentConfig, asked: WhatIf) -> Objective | None:
    """That of the command line, for all networks; None leaves each its own."""
    if asked.objective is None:
        return None
    try:
        return requested_objective(yaml.safe_load(asked.objective), power_of(config.power))
    except (PlanError, yaml.YAMLError) as error:
        raise ConfigError(
            f"--objective: {error}; give e.g. energy, or '{{minimise: energy, deadline_ms: 200}}'"
        ) from None


async def make_plans(config: AgentConfig, sources: Sequence[ModelConfig], asked: WhatIf) -> list[Planned]:
    """Register the networks as the agent does, visit the gateway, and explain.  Raises as
    :func:`plan_models` does."""
    objective = _objective(config, asked)
    runner = Runner(config.device, config.threads)
    try:
        with TerminalProgress() as progress:
            registered = [await register(runner, source, config, progress) for source in sources]
        visit = None
        if asked.cloud_factor is None:
            offers = [
                ModelOffer(name=source.name, digest=known.graph.digest)
                for source, known in zip(sources, registered, strict=True)
            ]
            visit = await visit_gateway(config.cloud, config.name, offers)
        return [
            await _plan(runner, config, source, known, visit, asked, objective)
            for source, known in zip(sources, registered, strict=True)
        ]
    finally:
        await runner.close()


async def _plan(
    runner: Runner,
    config: AgentConfig,
    source: ModelConfig,
    known: Registered,
    visit: Visit | None,
    asked: WhatIf,
    objective: Objective | None,
) -> Planned:
    power = power_of(config.power)
    constraints = constraints_of(source)
    cloud_unit_ms, cloud_fact = _cloud(config, source.name, known, visit, asked)
    conditions, facts = _conditions(config, source.name, visit, asked)
    wanted = objective or objective_of(source.objective, power)
    cuts: tuple[Cut, ...] = ()
    if constraints.cut is None:
        menu = constraints.codecs or FAITHFUL
        cuts = await asyncio.to_thread(widened_cuts, known.graph, known.profile, cloud_unit_ms, menu)
    gate = await _judged(runner, config, source, known, wanted, cloud_unit_ms, cuts)
    # All that was measured, so that what is not allowed is in the table with the reason.
    codecs = tuple(codec for codec in Codec if _decodes(source.name, known, visit) or codec not in TRANSFORMS)
    rows = build_rows(known.graph, known.profile, cloud_unit_ms, codecs, (*known.graph.cuts, *cuts))
    largest = visit.card.limits.max_message_bytes if visit is not None and visit.card else float("inf")
    explanation = explain(
        rows,
        known.graph,
        conditions,
        objective=wanted,
        constraints=constraints,
        gate=gate,
        power=power,
        largest_message_bytes=largest,
    )
    problem, _ = pose(rows, known.graph, wanted, constraints, gate, largest)
    about = {
        "device": _device(config, known),
        "cloud": cloud_fact,
        **facts,
        "calibration": "synthetic: made-up inputs, name typical ones in the configuration"
        if known.calibration.synthetic
        else known.calibration.name.partition(" ")[0],
    }
    return Planned(explanation, problem, about, len(cuts))


def _device(config: AgentConfig, known: Registered) -> str:
    whole_ms, threads = known.profile.whole_ms, known.profile.key.threads
    where = f"{config.device}, {threads} threads"
    if not known.profile.predicted:
        return f"measured: {whole_ms:.1f} ms for the whole network on {where}"
    return (
        f"predicted: {whole_ms:.1f} ms for the whole network on {where}, in codecs of known sizes; "
        "`edge-agent profile` measures"
    )


async def _judged(
    runner: Runner,
    config: AgentConfig,
    source: ModelConfig,
    known: Registered,
    objective: Objective,
    cloud_unit_ms: Sequence[float],
    wide_cuts: tuple[Cut, ...],
) -> Gate | None:
    """The gate, with what could be the best for this objective and this cloud."""
    if known.gate is None or known.profile.predicted:
        return known.gate
    question = first_question(
        known.graph,
        known.profile,
        constraints_of(source),
        objective,
        cloud_unit_ms=cloud_unit_ms,
        wide_cuts=wide_cuts,
    )
    with TerminalProgress() as progress:
        return await runner.gate(
            source.name,
            known.calibration,
            question,
            cache_dir=config.cache_dir,
            known=known.gate,
            progress=partial(progress, source.name, "accuracy"),
        )


def _decodes(name: str, known: Registered, visit: Visit | None) -> bool:
    """Whether the cloud holds the tables of the transform that the device does, or may be assumed to."""
    card = None if visit is None else visit.model(name)
    tables = known.model.tables
    return tables is not None and (card is None or not card.replicas or card.tables == tables.digest)


def _cloud(
    config: AgentConfig, name: str, known: Registered, visit: Visit | None, asked: WhatIf
) -> tuple[tuple[float, ...], str]:
    """The cloud's unit times, and where they come from."""
    units = len(known.graph.units)
    factor = asked.cloud_factor or _ASSUMED_CLOUD_FACTOR
    assumed = tuple(ms / factor for ms in known.profile.unit_ms)
    if visit is None:
        return assumed, f"assumed: {factor:g} times as fast as this device (--cloud-factor)"
    card = visit.model(name)
    if card is not None and not card.error and len(card.unit_ms) == units:
        replicas = "1 replica" if card.replicas == 1 else f"{card.replicas} replicas"
        whole_ms = sum(card.unit_ms)
        return tuple(card.unit_ms), (
            f"measured: {whole_ms:.1f} ms for the whole network, {replicas} behind {config.cloud.gateway}"
        )
    if visit.card is None:
        why = visit.problem
    elif card is None:
        why = f"{config.cloud.gateway} does not serve this network"
    else:
        why = card.error or f"{config.cloud.gateway} has no profile of this network yet"
    return assumed, f"assumed: {factor:g} times as fast as this device, for {why}"


def _conditions(
    config: AgentConfig, name: str, visit: Visit | None, asked: WhatIf
) -> tuple[Conditions, dict[str, str]]:
    """Link and load, and where each comes from: given, measured now, or assumed."""
    load = None if visit is None else visit.loads.get(name)
    measured_mbps = visit.link.uplink_bps / 1e6 if visit is not None and visit.uplink_measured else None
    measured_rtt = visit.link.rtt_ms if visit is not None and visit.rtt_measured else None
    uplink, uplink_from = _pick(asked.uplink_mbps, measured_mbps, config.cloud.assumed_uplink_mbps)
    rtt, rtt_from = _pick(asked.rtt_ms, measured_rtt, config.cloud.assumed_rtt_ms)
    wait, wait_from = _pick(asked.wait_ms, None if load is None else load.wait_ms, 0.0)
    slowdown, slowdown_from = _pick(asked.slowdown, None if load is None else load.slowdown, 1.0)
    conditions = Conditions(
        uplink_bps=uplink * 1e6,
        rtt_ms=rtt,
        wait_ms=wait,
        slowdown=max(slowdown, 1e-3),
        downlink_bps=uplink * 1e6,
        replicas=1 if load is None else max(1, load.ready),
    )
    return conditions, {
        "link": f"uplink {uplink:.4g} Mbps ({uplink_from}), round trip {rtt:.4g} ms ({rtt_from}), "
        "downlink taken to be like the uplink",
        "load": f"wait {wait:.4g} ms ({wait_from}), slowdown {slowdown:.3g} ({slowdown_from})",
    }


def _pick(given: float | None, measured: float | None, assumed: float) -> tuple[float, str]:
    if given is not None:
        return given, "given"
    return (assumed, "assumed") if measured is None else (measured, "measured now")
