"""What a replica computes: tensors of a cut in, outputs of the network out.

:class:`Executor` is all that :class:`cloud_cluster.tail.Tail` asks for, and knows no torch, so that the
path around the computation can be driven with another one.  :func:`load_executor` makes the real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from shared.wire import Buffer, Message
from shared.wire.messages import TensorHeader

if TYPE_CHECKING:
    from shared.config import ServedModelConfig

__all__ = ["Executor", "Outcome", "load_executor"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outputs, each with its payload, and how long every stage took.

    ``expected_ms`` is what the profile says for the units that ran; 0 when it says nothing.
    """

    tensors: list[TensorHeader]
    payloads: list[Buffer]
    decode_ms: float = 0.0
    compute_ms: float = 0.0
    encode_ms: float = 0.0
    expected_ms: float = 0.0


class Executor(Protocol):
    """One network on one replica.  ``unit_ms`` are the times of its units on the idle replica."""

    @property
    def digest(self) -> str: ...

    @property
    def unit_ms(self) -> Sequence[float]: ...

    def execute(self, message: Message) -> Outcome:
        """Run what an INFER asks for; called from one thread only.

        Raises a SutureError for whatever is wrong with the request; anything else is a defect and
        ends the replica.
        """
        ...


def load_executor(model: ServedModelConfig, cache_dir: Path | None, repeats: int) -> Executor:
    """Load the network, fuse it, and measure its units.  Takes seconds; imports torch.

    To be called in the thread that will execute.  Raises UnknownModelError, CaptureError, BundleError, or
    ConfigError, also for a device that torch does not have.
    """
    from cloud_cluster.torch_executor import TorchExecutor

    return TorchExecutor.load(model, cache_dir, repeats)
