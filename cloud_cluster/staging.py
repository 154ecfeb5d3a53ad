"""Decoded tensors on their way to where the network computes, beside the computation that runs meanwhile.

To a CUDA device they go through page-locked memory on a stream of their own: the copy of the next request
overlaps the kernels of the present one.  On the host there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

__all__ = ["Sent", "Staging", "staging_for"]


class Sent:
    """Tensors that are there, or will be once ``arrived`` has returned."""

    def __init__(self, tensors: Sequence[torch.Tensor], arrived: Callable[[], None] | None = None) -> None:
        self._tensors = tensors
        self._arrived = arrived

    def take(self) -> Sequence[torch.Tensor]:
        """The tensors, for whatever this thread computes from here on; may be called again."""
        if self._arrived is not None:
            self._arrived()
        return self._tensors


class Staging(Protocol):
    def send(self, tensors: Sequence[torch.Tensor]) -> Sent:
        """Start to bring host tensors there; what they are views of is read until then.  In any thread."""
        ...


def staging_for(device: torch.device) -> Staging:
    return _ToCuda(device) if device.type == "cuda" else _OnHost()


class _OnHost:
    def send(self, tensors: Sequence[torch.Tensor]) -> Sent:
        return Sent(tensors)


class _ToCuda:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, tensors: Sequence[torch.Tensor]) -> Sent:
        with torch.cuda.stream(self._stream):
            # torch keeps page-locked memory for the next one, and gives none away before its copy is done.
            moved = [tensor.pin_memory().to(self._device, non_blocking=True) for tensor in tensors]
            event = self._stream.record_event()

        def arrived() -> None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(event)
            for tensor in moved:
                # It was made on the other stream: its memory is not to be reused before this one has read it.
                tensor.record_stream(computing)

        return Sent(moved, arrived)
