"""From a network's place in the configuration to all that is known of it before the first request."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from edge_agent.calibrate import kept_predictor
from edge_agent.goals import constraints_of, objective_of, power_of
from edge_agent.judging import first_question, lossy_forms
from edge_agent.measuring import kept_gate, kept_profile
from edge_agent.runner import Runner
from shared.calibration import Calibration, calibrate
from shared.codec import TRANSFORMS
from shared.config import AgentConfig, ModelConfig
from shared.errors import ConfigError, PlanError
from shared.graph import Graph
from shared.models import Model, resolve
from shared.plan.gate import Gate
from shared.plan.measure import plain_profile
from shared.plan.predict import predict_profile
from shared.plan.profile import Profile

__all__ = ["Progress", "Registered", "register"]

log = logging.getLogger("suture.agent")


class Progress(Protocol):
    """Told of slow steps while starting: ``done`` of ``total`` parts of ``step`` for ``model``."""

    def __call__(self, model: str, step: str, done: int, total: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Registered:
    """A network that the runner can run, and what was measured of it here.

    ``gate`` is None where the configuration allows no lossy codec, so that nothing is to be judged.  Else it
    has judged what a plan could choose (:func:`edge_agent.judging.first_question`) and what an earlier start
    did.  Where ``profile.predicted``, both are what is to be replaced by measurement, and the gate passes
    only the latter.
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

    Where it has no profile but ``edge-agent calibrate`` kept a predictor for this device, the profile is
    predicted, which takes no time, and nothing is judged.

    Raises what these raise, UnknownModelError, CaptureError or BundleError, and ConfigError, also for
    constraints that are impossible together.
    """

    def report(step: str, done: int, total: int) -> None:
        if progress is not None:
            progress(source.name, step, done, total)

    report("capture", 0, 1)
    model = await runner.call(partial(resolve, source, config.cache_dir))
    graph = await runner.load(source.name, model.captured, model.tables)
    calibration = await runner.call(partial(calibrate, model, source.calibration))
    if calibration.synthetic:
        log.warning(
            "%s: calibration: synthetic; what its plans say of payloads and agreement was measured on "
            "made-up inputs, so name typical ones under calibration: in its configuration",
            source.name,
        )
    if model.tables is not None and len(calibration.fitted) == len(calibration.samples):
        log.warning(
            "%s: its transform tables were fitted to all of its calibration inputs, so that nothing says how "
            "well they do on others: the transform is not used; name more inputs under calibration:",
            source.name,
        )
    constraints = constraints_of(source)
    if model.tables is None and constraints.codecs and set(TRANSFORMS).intersection(constraints.codecs):
        log.warning(
            "%s: its codecs name the transform, which is not used without tables: make them with "
            "`edge-agent fit` and name them as transform_tables:",
            source.name,
        )
    forms = lossy_forms(constraints)
    predicted = await runner.call(
        partial(_predicted, runner, source.name, calibration, config.cache_dir, bool(forms))
    )
    if predicted is not None:
        return Registered(model, graph, calibration, *predicted)
    profile = await runner.profile(
        source.name,
        calibration,
        cache_dir=config.cache_dir,
        repeats=config.profile_repeats,
        progress=partial(report, "profile"),
    )
    objective = objective_of(source.objective, power_of(config.power))
    try:
        question = first_question(graph, profile, constraints, objective)
    except PlanError as error:
        raise ConfigError(f"model {source.name}: {error}") from error
    gate = None
    if forms:
        gate = await runner.gate(
            source.name,
            calibration,
            question,
            cache_dir=config.cache_dir,
            progress=partial(report, "accuracy"),
        )
    return Registered(model, graph, calibration, profile, gate)


def _predicted(
    runner: Runner, name: str, calibration: Calibration, cache_dir: Path, judged: bool
) -> tuple[Profile, Gate | None] | None:
    """A predicted profile and what is known of the codecs; None where there is a measured profile, or no
    predictor.  On the worker."""
    program, key = runner.program(name), runner.profile_key(name, calibration)
    predictor, warning = kept_predictor(cache_dir, key.device, key.threads)
    if warning is not None:
        log.warning("%s", warning)
    if predictor is None or kept_profile(program, key, cache_dir) is not None:
        return None
    profile = plain_profile(program, predict_profile(program.graph, predictor), key, runner.profile_clock)
    log.info("%s: planned on predicted times until it is measured", name)
    return profile, kept_gate(program, calibration, cache_dir) if judged else None
