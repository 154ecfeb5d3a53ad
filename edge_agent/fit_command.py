"""``edge-agent fit``: make the tables that the transform codecs need on the device and in the cloud."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.progress import TerminalProgress
from shared.calibration import Calibration, calibrate
from shared.config import ModelConfig
from shared.errors import ConfigError, StartupError
from shared.graph import load
from shared.models import TABLES_FILE, resolve
from shared.plan.fitting import fitting_steps
from shared.plan.steps import finish

if TYPE_CHECKING:
    import torch

    from shared.codec.network_tables import NetworkTables

__all__ = ["fit_tables", "fitted_samples", "write_tables"]

_LEAST = 4
_APART = 2**20
"""From here on inputs are made up to fit to, far from those that are made up to judge on."""


def fit_tables(source: ModelConfig, out: Path, cache_dir: Path) -> str:
    """Fit and write; what to print.  ``out`` is a file, or the directory of a bundle.

    Raises what resolving and calibrating raise, ConfigError where there are too few calibration inputs, and
    StartupError when the file cannot be written.
    """
    with TerminalProgress() as progress:
        progress(source.name, "capture", 0, 1)
        model = resolve(source, cache_dir, with_tables=False)
        calibration = calibrate(model, source.calibration)
        samples = fitted_samples(source.name, calibration)
        program = load(model.captured)
        tables = finish(
            fitting_steps(model.captured, program, samples), partial(progress, source.name, "transform")
        )
    path = out / TABLES_FILE if out.is_dir() else out
    nbytes = write_tables(tables, path)
    kind = calibration.name.partition(" ")[0]
    lines = [
        f"{path}: {source.name}, {len(tables.by_slot)} tensors fitted to {len(samples)} inputs ({kind}), "
        f"{nbytes / 1e6:.1f} MB, {tables.digest}",
        f"name it in the configuration of the agents and of the cloud: transform_tables: {path.name}"
        if path is out
        else "it is part of the bundle: hand that to the agents and to the cloud",
    ]
    if calibration.synthetic:
        lines.append("the inputs were made up: name typical ones under calibration: to fit to those")
    return "\n".join(lines)


def fitted_samples(name: str, calibration: Calibration) -> list[Sequence[torch.Tensor]]:
    """Every other calibration input, so that the rest remain to judge on; or such as are made up for it."""
    count = len(calibration.samples)
    if calibration.make_up is not None:
        return [calibration.make_up(_APART + number) for number in range(max(count, _LEAST))]
    if count < _LEAST:
        raise ConfigError(
            f"model {name}: {count} calibration inputs are too few to fit to one half of them and "
            f"to judge on the other; give at least {_LEAST}, better some dozens"
        )
    return list(calibration.samples[1::2])


def write_tables(tables: NetworkTables, path: Path) -> int:
    """At once or not at all; how many bytes.  Raises StartupError."""
    data = tables.to_bytes()
    unfinished = path.with_name(f"{path.name}.part")
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    except OSError as error:
        raise StartupError(f"cannot write {path}: {error.strerror}") from error
    return len(data)
