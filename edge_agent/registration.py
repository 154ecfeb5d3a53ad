"""From a network's place in the configuration to all that is known of it before the first request."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from edge_agent.goals import constraints_of
from edge_agent.runner import Runner
from shared.calibration import Calibration, calibrate
from shared.codec import Codec, Form
from shared.config import AgentConfig, ModelConfig
from shared.graph import Graph
from shared.models import Model, resolve
from shared.plan.constraints import Constraints
from shared.plan.gate import Gate
from shared.plan.profile import Profile

__all__ = ["Progress", "Registered", "lossy_forms", "register"]

log = logging.getLogger("suture.agent")


class Progress(Protocol):
    """Told of slow steps while starting: ``done`` of ``total`` parts of ``step`` for ``model``."""

    def __call__(self, model: str, step: str, done: int, total: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Registered:
    """A network that the runner can run, and what was measured of it here.

    ``gate`` is None where the configuration allows no lossy codec, so that nothing is to be judged.
    """

    model: Model
    graph: Graph
    calibration: Calibration
    profile: Profile
    gate: Gate | None


async def register(
    runner: Runner, source: ModelConfig, config: AgentConfig, progress: Progress | None = None
) -> Registered:
    """Resolve, load, calibrate, profile and judge one network; the last two from the cache where it has
    them.

    Raises what these raise: ConfigError, UnknownModelError, CaptureError or BundleError.
    """

    def report(step: str, done: int, total: int) -> None:
        if progress is not None:
            progress(source.name, step, done, total)

    report("capture", 0, 1)
    model = await runner.call(partial(resolve, source, config.cache_dir))
    graph = await runner.load(source.name, model.captured)
    calibration = await runner.call(partial(calibrate, model, source.calibration))
    if calibration.synthetic:
        log.warning(
            "%s: calibration: synthetic; what its plans say of payloads and agreement was measured on "
            "made-up inputs, so name typical ones under calibration: in its configuration",
            source.name,
        )
    profile = await runner.profile(
        source.name,
        calibration,
        cache_dir=config.cache_dir,
        repeats=config.profile_repeats,
        progress=partial(report, "profile"),
    )
    forms = lossy_forms(constraints_of(source))
    gate = None
    if forms:
        gate = await runner.gate(
            source.name,
            calibration,
            cache_dir=config.cache_dir,
            forms=forms,
            enough=source.min_agreement,
            progress=partial(report, "accuracy"),
        )
    return Registered(model, graph, calibration, profile, gate)


def lossy_forms(constraints: Constraints) -> tuple[Form, ...]:
    """Those of the codecs that may be used: what the accuracy gate is about."""
    codecs = constraints.codecs or tuple(Codec)
    return tuple(form for form in Form if form is not Form.EXACT and any(c.form is form for c in codecs))
