"""The networks that a gateway serves, as its replicas describe them, and the cards for its devices.

The gateway holds no network itself.  A configured network has a label: its name, and its version where
several of one name are wanted.  Each digest that a label's replicas bring is served beside the others under
an index of its own, which is never used again; the newest is the label's current one.  Unit times are
medians over the replicas.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from msgspec import UNSET

from shared.errors import DigestMismatchError, ProtocolError, UnknownModelError
from shared.wire.frame import SET_CUT
from shared.wire.messages import ModelCard, ReplicaHello

__all__ = ["NOT_SERVED", "Registry", "ServedLabel", "Version"]

NOT_SERVED = 0xFFFF
"""The index on the card of a model that this gateway does not serve."""


@dataclass(frozen=True, slots=True)
class ServedLabel:
    """One configured network; devices know it by its name."""

    label: str
    name: str
    max_queue: int = 256


@dataclass(slots=True)
class Version:
    """One digest of a network; "" while no replica has brought one.

    ``current``: the label is still wanted, and no newer digest has taken its place.
    """

    index: int
    served: ServedLabel
    digest: str = ""
    current: bool = True
    unit_ms: list[float] = field(default_factory=list)
    # tail_ms[k]: units k and above on an idle replica.
    tail_ms: list[float] = field(default_factory=list)
    replicas: dict[bytes, list[float]] = field(default_factory=dict)
    precisions: dict[bytes, str] = field(default_factory=dict)
    tables: dict[bytes, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.served.name

    @property
    def label(self) -> str:
        return self.served.label

    @property
    def tables_digest(self) -> str:
        """Of the transform's tables that every replica holds; "" where they do not all hold the same."""
        held = set(self.tables.values())
        return held.pop() if len(held) == 1 else ""

    def work_ms(self, cut: int, tail_units: bytes) -> float:
        """Expected compute of one sample on an idle replica."""
        if not self.tail_ms:
            return 0.0
        if cut != SET_CUT:
            return self.tail_ms[min(cut, len(self.unit_ms))]
        mask = int.from_bytes(tail_units, "little")
        return sum(unit_ms for unit, unit_ms in enumerate(self.unit_ms) if mask >> unit & 1)

    def take_medians(self) -> None:
        self.unit_ms = [statistics.median(times) for times in zip(*self.replicas.values(), strict=True)]
        self.tail_ms = list(itertools.accumulate(reversed(self.unit_ms), initial=0.0))[::-1]


class Registry:
    """``served`` are the networks to begin with; :meth:`configure` names others."""

    def __init__(self, served: Iterable[ServedLabel]) -> None:
        self._next_index = 0
        self._versions: dict[int, Version] = {}
        self._version_of: dict[bytes, Version] = {}
        self._labels: dict[str, Version] = {}
        self.configure(served)

    def __iter__(self) -> Iterator[Version]:
        """Every version that is served or drains, by index."""
        return iter(self._versions.values())

    def configure(self, served: Iterable[ServedLabel]) -> None:
        """Serve these networks from now on.  Of the others the replicas finish what they have."""
        wanted = {each.label: each for each in served}
        for label in self._labels.keys() - wanted.keys():
            self._labels.pop(label).current = False
        for label, each in wanted.items():
            if label in self._labels:
                self._labels[label].served = each
            else:
                self._labels[label] = self._add(each)

    def join(self, replica: bytes, hello: ReplicaHello) -> Version:
        """Take a replica in and return its version.

        Raises UnknownModelError, or ProtocolError when its unit times are not as many as those of the other
        replicas of this digest.
        """
        label = f"{hello.model}@{hello.version}" if hello.version else hello.model
        current = self._labels.get(label)
        if current is None:
            raise UnknownModelError(self._not_served(label))
        self.leave(replica)
        version = self._version_with(current, hello.digest)
        if version.replicas and len(hello.unit_ms) != len(version.unit_ms):
            raise ProtocolError(
                f"{label} has {len(version.unit_ms)} units, the replica sent {len(hello.unit_ms)} times"
            )
        version.digest = hello.digest
        version.replicas[replica] = list(hello.unit_ms)
        version.precisions[replica] = hello.precision
        version.tables[replica] = hello.tables
        version.take_medians()
        self._version_of[replica] = version
        return version

    def leave(self, replica: bytes) -> Version | None:
        """Forget a replica and return its version; the last known digest and times stay."""
        version = self._version_of.pop(replica, None)
        if version is None:
            return None
        del version.replicas[replica], version.precisions[replica], version.tables[replica]
        if version.replicas:
            version.take_medians()
        return version

    def prune(self, offers: Iterable[Mapping[str, str]]) -> list[int]:
        """Forget the versions that are past and have neither replicas nor devices; their indexes.

        ``offers`` are those of all devices.
        """
        past = [each for each in self if not each.current and not each.replicas]
        if not past:
            return []
        held = self.count_devices(offers)
        gone = [
            version
            for version in past
            if version.label not in self._labels or not held[version.name, version.digest]
        ]
        for version in gone:
            del self._versions[version.index]
        return [version.index for version in gone]

    @staticmethod
    def count_devices(offers: Iterable[Mapping[str, str]]) -> Counter[tuple[str, str]]:
        """How many devices hold each (name, digest)."""
        return Counter(offer for each in offers for offer in each.items())

    def ready(self, label: str) -> int:
        """How many replicas of a label there are, in all its versions."""
        return sum(len(version.replicas) for version in self if version.label == label)

    def starved(self, index: int) -> list[str]:
        """The labels for which a replica would have to be started to serve what the index stands for."""
        version = self._versions.get(index)
        if version is None or version.replicas or not version.current:
            return []
        alike = [version] if version.digest else [each for each in self if each.name == version.name]
        return [each.label for each in alike if each.current and each.digest == version.digest]

    def version_for(self, index: int, offers: Mapping[str, str]) -> Version:
        """What a device with these offers (digest by name) asks for by the index.

        Raises UnknownModelError or DigestMismatchError, naming both digests, when it may not.
        """
        version = self._versions.get(index)
        if version is None:
            raise UnknownModelError(f"this gateway serves nothing under the index {index}")
        if version.label not in self._labels:
            raise UnknownModelError(self._not_served(version.name))
        held = offers.get(version.name)
        if held is None:
            raise UnknownModelError(f"the device's hello did not offer {version.name}")
        if (version.digest and held != version.digest) or self._is_superseded(version):
            raise DigestMismatchError(self._mismatch(version.name, held))
        return version

    def cards(self, offers: Mapping[str, str]) -> list[ModelCard]:
        """A card for every name served, and one with an error for each offer that is not."""
        names = dict.fromkeys(version.name for version in self._labels.values())
        cards = [self._card(name, offers.get(name)) for name in names]
        for name in offers:
            if name not in names:
                error = self._not_served(name)
                card = ModelCard(name=name, digest="", index=NOT_SERVED, unit_ms=[], replicas=0, error=error)
                cards.append(card)
        return cards

    def _add(self, served: ServedLabel, digest: str = "") -> Version:
        version = self._versions[self._next_index] = Version(self._next_index, served, digest)
        self._next_index += 1
        return version

    def _version_with(self, current: Version, digest: str) -> Version:
        """The label's version with this digest, one that there is or a new one.

        A new one is the current one from now on, and so is an old one that returns when nothing else is left.
        """
        known = [each for each in self if each.label == current.label and each.digest == digest]
        if not current.digest or (known and current.replicas):
            return known[0] if known else current
        current.current = False
        version = self._labels[current.label] = known[0] if known else self._add(current.served)
        version.current = True
        return version

    def _is_superseded(self, version: Version) -> bool:
        """Whether its replicas have left for good, and another one is served in its place."""
        return not version.current and not version.replicas

    def _alternatives(self, name: str) -> list[Version]:
        """What is served under a name, the best last: with replicas, and the newest of those."""
        served = [
            each
            for each in self
            if each.name == name and each.label in self._labels and not self._is_superseded(each)
        ]
        return sorted(served, key=lambda each: (bool(each.replicas), each.index))

    def _card(self, name: str, held: str | None) -> ModelCard:
        served = self._alternatives(name)
        matching = [each for each in served if each.digest == held]
        unknown = [each for each in served if not each.digest]
        version = (matching or (unknown if held is not None else []) or served)[-1]
        mismatch = held is not None and version.digest and held != version.digest
        return ModelCard(
            name=name,
            digest=version.digest,
            index=version.index,
            unit_ms=version.unit_ms,
            replicas=len(version.replicas),
            error=self._mismatch(name, held) if mismatch and held is not None else "",
            tables=version.tables_digest or UNSET,
        )

    def _mismatch(self, name: str, held: str) -> str:
        served = [each.digest for each in self._alternatives(name)]
        return (
            f"the device holds {held} under the name {name}, the cloud {' and '.join(filter(None, served))}; "
            "give both the same graph and weights"
        )

    def _not_served(self, name: str) -> str:
        return f"no model {name} is served here; there are {', '.join(self._labels) or 'none'}"
