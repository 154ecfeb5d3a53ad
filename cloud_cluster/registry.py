"""The models that a gateway serves, as its replicas describe them, and the cards for its devices.

The gateway holds no network itself.  A model's digest is that of its first replica; a replica with
another one is refused while the first kind is there.  Unit times are medians over the replicas.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shared.errors import DigestMismatchError, ProtocolError, SutureError, UnknownModelError
from shared.wire.frame import SET_CUT
from shared.wire.messages import ModelCard, ReplicaHello

__all__ = ["NOT_SERVED", "Registry"]

NOT_SERVED = 0xFFFF
"""The index on the card of a model that this gateway does not serve."""


@dataclass(slots=True)
class _Served:
    name: str
    digest: str = ""
    unit_ms: list[float] = field(default_factory=list)
    # tail_ms[k]: units k and above on an idle replica.
    tail_ms: list[float] = field(default_factory=list)
    replicas: dict[bytes, list[float]] = field(default_factory=dict)


class Registry:
    """``names`` are the models by index."""

    def __init__(self, names: Sequence[str]) -> None:
        self._models = [_Served(name) for name in names]
        self._index = {name: index for index, name in enumerate(names)}
        self._model_of: dict[bytes, _Served] = {}

    @property
    def names(self) -> list[str]:
        return [model.name for model in self._models]

    def join(self, replica: bytes, hello: ReplicaHello) -> int:
        """Take a replica in and return its model's index.

        Raises UnknownModelError, DigestMismatchError, or ProtocolError when its unit times are not as
        many as the other replicas'.
        """
        index = self._index.get(hello.model)
        if index is None:
            raise UnknownModelError(self._not_served(hello.model))
        self.leave(replica)
        model = self._models[index]
        if model.replicas and hello.digest != model.digest:
            raise DigestMismatchError(
                f"the replicas of {model.name} hold {model.digest}, this one {hello.digest}; "
                "stop the old ones, or serve the new network under another name"
            )
        if model.replicas and len(hello.unit_ms) != len(model.unit_ms):
            raise ProtocolError(
                f"{model.name} has {len(model.unit_ms)} units, the replica sent {len(hello.unit_ms)} times"
            )
        model.digest = hello.digest
        model.replicas[replica] = list(hello.unit_ms)
        self._model_of[replica] = model
        _take_medians(model)
        return index

    def leave(self, replica: bytes) -> int | None:
        """Forget a replica and return its model's index; the last known digest and times stay."""
        model = self._model_of.pop(replica, None)
        if model is None:
            return None
        del model.replicas[replica]
        if model.replicas:
            _take_medians(model)
        return self._index[model.name]

    def ready(self, index: int) -> int:
        return len(self._models[index].replicas)

    def work_ms(self, index: int, cut: int) -> float:
        """Expected compute of a request on an idle replica at batch 1.

        Without reading its header, a cut that is no prefix of the unit list counts as the whole network.
        """
        tail_ms = self._models[index].tail_ms
        if not tail_ms:
            return 0.0
        return tail_ms[0 if cut == SET_CUT else min(cut, len(tail_ms) - 1)]

    def refusal(self, index: int, offers: Mapping[str, str]) -> SutureError | None:
        """Why a device with these offers (digest by name) may not use the model; None when it may."""
        if index >= len(self._models):
            return UnknownModelError(
                f"this gateway serves {len(self._models)} models; {index} is not an index"
            )
        model = self._models[index]
        held = offers.get(model.name)
        if held is None:
            return UnknownModelError(f"the device's hello did not offer {model.name}")
        if model.digest and held != model.digest:
            return DigestMismatchError(self._mismatch(model, held))
        return None

    def cards(self, offers: Mapping[str, str]) -> list[ModelCard]:
        """A card for every model served, and one with an error for each offer that is not."""
        cards = [self._card(index, offers.get(model.name)) for index, model in enumerate(self._models)]
        for name in offers:
            if name not in self._index:
                cards.append(
                    ModelCard(
                        name=name,
                        digest="",
                        index=NOT_SERVED,
                        unit_ms=[],
                        replicas=0,
                        error=self._not_served(name),
                    )
                )
        return cards

    def _card(self, index: int, held: str | None) -> ModelCard:
        model = self._models[index]
        mismatch = held is not None and model.digest and held != model.digest
        return ModelCard(
            name=model.name,
            digest=model.digest,
            index=index,
            unit_ms=model.unit_ms,
            replicas=len(model.replicas),
            error=self._mismatch(model, held) if mismatch and held is not None else "",
        )

    def _mismatch(self, model: _Served, held: str) -> str:
        return (
            f"the device holds {held} under the name {model.name}, the cloud {model.digest}; "
            "give both the same graph and weights"
        )

    def _not_served(self, name: str) -> str:
        return f"no model {name} is served here; there are {', '.join(self._index)}"


def _take_medians(model: _Served) -> None:
    model.unit_ms = [statistics.median(times) for times in zip(*model.replicas.values(), strict=True)]
    sums = list(itertools.accumulate(reversed(model.unit_ms), initial=0.0))
    model.tail_ms = sums[::-1]
