"""Between numpy, torch and the device that computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared.errors import StartupError

__all__ = ["check_device", "to_numpy", "to_tensor"]


def to_tensor(leaf: object, device: str | torch.device) -> torch.Tensor:
    """An input as a tensor on ``device``, without a copy where numpy and torch can share memory."""
    if isinstance(leaf, torch.Tensor):
        return leaf.detach().to(device)
    array = np.asarray(leaf)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array).to(device)


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Shares memory where it can; bfloat16, which numpy lacks, becomes float32."""
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    return tensor.cpu().numpy()


def check_device(device: str) -> None:
    """Raises StartupError when torch cannot compute on ``device``, saying what is missing."""
    if device == "cpu":
        return
    where = f"the configuration names device: {device}, but"
    instead = "or compute on the CPU: device: cpu in the file, or SUTURE_DEVICE=cpu in the environment"
    if torch.version.cuda is None:
        raise StartupError(
            f"{where} this torch ({torch.__version__}) is built without CUDA; install a build with "
            f"CUDA for this machine (on a Jetson that of its JetPack), {instead}"
        )
    if not torch.cuda.is_available():
        raise StartupError(
            f"{where} torch {torch.__version__} (CUDA {torch.version.cuda}) finds no usable GPU; check that "
            f"nvidia-smi or tegrastats sees it and that the driver fits, {instead}"
        )
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        raise StartupError(
            f"{where} torch finds {torch.cuda.device_count()} GPU(s), counted from cuda:0; name one of "
            f"them, {instead}"
        )
