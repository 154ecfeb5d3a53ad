"""The executor that a replica really computes with, without importing torch before it is loaded."""

from __future__ import annotations

from pathlib import Path

from cloud_cluster.executor import BatchExecutor
from shared.config import ServedModelConfig

__all__ = ["load_executor"]


def load_executor(model: ServedModelConfig, cache_dir: Path | None, repeats: int) -> BatchExecutor:
    """Load the network, fuse it, and measure its units.  Takes seconds; imports torch.

    To be called in the thread that will execute.  Raises UnknownModelError, CaptureError, BundleError, or
    ConfigError, also for a device that torch does not have.
    """
    from cloud_cluster.torch_executor import TorchExecutor

    return TorchExecutor.load(model, cache_dir, repeats)
