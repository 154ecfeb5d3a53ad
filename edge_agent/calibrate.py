"""``edge-agent calibrate``: learn once what units cost on this machine, and keep it.

With a predictor an agent plans at once for a network that it has not profiled; without one it has to
profile first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shared.errors import StartupError
from shared.plan.predict import Predictor, PredictorKey, load_predictor, save_predictor

__all__ = ["calibration_key", "kept_predictor", "run_calibration"]


def calibration_key(device: str, threads: int | None) -> PredictorKey:
    """The key of this machine's predictor; ``threads`` None takes torch's own choice.  Imports torch."""
    import torch

    return PredictorKey(device, threads or torch.get_num_threads(), str(torch.__version__))


def kept_predictor(cache_dir: Path, device: str, threads: int | None) -> tuple[Predictor | None, str | None]:
    """What an earlier calibration kept for this device and number of threads, and a warning to show."""
    return load_predictor(cache_dir, calibration_key(device, threads))


def run_calibration(
    cache_dir: Path,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    *,
    share: float = 1.0,
    seed: int = 0,
) -> Path:
    """Sweep, fit, and keep the predictor; the path of its file.

    ``threads`` None takes torch's own choice; torch's setting is put back afterwards.  ``progress`` is
    called with networks done, networks in all, and the next one's name.  Takes a minute or two, during
    which nothing else should run on the device.  Blocks; raises ConfigError when the device is not there
    and StartupError when the cache directory cannot be written.
    """
    import torch

    from shared.plan.predict import fit_predictor
    from shared.plan.sweep import run_sweep

    key = calibration_key(device, threads)
    before = torch.get_num_threads()
    torch.set_num_threads(key.threads)
    try:
        samples = run_sweep(device, seed=seed, share=share, progress=progress)
    finally:
        torch.set_num_threads(before)
    try:
        return save_predictor(cache_dir, fit_predictor(samples, key))
    except OSError as error:
        raise StartupError(
            f"cannot keep the calibration in {cache_dir}: {error.strerror}; set cache_dir to a directory "
            "that you can write"
        ) from error
