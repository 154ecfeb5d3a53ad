"""What the gateway serves right now: every version with its queue, its load, and what is wanted of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cloud_cluster.dispatch import Dispatcher
from cloud_cluster.load import VersionLoad
from cloud_cluster.model_queue import ModelState
from cloud_cluster.registry import Registry, ServedLabel, Version
from shared.config import ServedModelConfig
from shared.wire.messages import ReplicaHello

__all__ = ["Serving"]


@dataclass(slots=True)
class _Target:
    """Of one label; ``starting`` is None where nobody tells how many replicas are on their way."""

    replicas: int
    starting: int | None = None


class Serving:
    """Keeps the dispatcher's queues in step with the registry's versions.

    The label of a network is its name, and its version where there is one: ``ServedModelConfig.label``.
    """

    def __init__(self, models: Sequence[ServedModelConfig], dispatcher: Dispatcher) -> None:
        self.registry = Registry([])
        self._dispatcher = dispatcher
        self._targets: dict[str, _Target] = {}
        self._wanted: dict[str, None] = {}
        self._unserved: dict[int, int] = {}
        self.configure(models)

    def configure(self, models: Sequence[ServedModelConfig]) -> None:
        """Serve these from now on.  The replicas of others finish what they have."""
        self._targets = {
            model.label: self._targets.get(model.label, _Target(model.first_replicas)) for model in models
        }
        self.registry.configure(ServedLabel(model.label, model.name, model.max_queue) for model in models)
        for version in self.registry:
            self._dispatcher.add_model(version.index, version.served.max_queue)

    def set_target(self, label: str, replicas: int, starting: int) -> None:
        """How many replicas there are to be, and how many are on their way; unknown labels are ignored."""
        if label in self._targets:
            self._targets[label] = _Target(replicas, starting)

    def join(self, replica: bytes, hello: ReplicaHello) -> Version:
        """Take a replica in.  Raises what :meth:`Registry.join` raises."""
        version = self.registry.join(replica, hello)
        self._dispatcher.add_model(version.index, version.served.max_queue)
        return version

    def prune(self, offers: Iterable[Mapping[str, str]]) -> None:
        """Forget past versions without replicas and devices; ``offers`` are those of all devices."""
        for index in self.registry.prune(offers):
            self._dispatcher.remove_model(index)
            self._unserved.pop(index, None)

    def want(self, index: int) -> None:
        """A device would have used this version, had there been a replica."""
        self._wanted.update(dict.fromkeys(self.registry.starved(index)))

    def take_wanted(self, now_ms: float) -> list[str]:
        """The labels that were asked for since the last call and had no replica."""
        for version in self.registry:
            unserved = self._dispatcher.model_state(version.index, now_ms).unserved
            if unserved > self._unserved.get(version.index, 0):
                self.want(version.index)
            self._unserved[version.index] = unserved
        wanted, self._wanted = list(self._wanted), {}
        return wanted

    def loads(self, now_ms: float) -> list[VersionLoad]:
        """Of every version, by index.

        What is wanted of a label counts for its current version, less what its past ones still have.
        """
        return [
            VersionLoad(version.index, version.name, state, *self._wanted_of(version, state.ready))
            for version in self.registry
            for state in (self._dispatcher.model_state(version.index, now_ms),)
        ]

    def status(self, offers: Iterable[Mapping[str, str]], now_ms: float) -> dict[str, Any]:
        """For people and for Serve: by label the sums over its versions, and each version by itself.

        ``devices`` are those that hold a version's digest.
        """
        devices = self.registry.count_devices(offers)
        status: dict[str, Any] = {}
        for label in dict.fromkeys(version.label for version in self.registry):
            versions = [version for version in self.registry if version.label == label]
            states = [self._dispatcher.model_state(version.index, now_ms) for version in versions]
            target = self._targets.get(label, _Target(0))
            status[label] = {
                **_total(states),
                "target": target.replicas,
                "versions": [
                    {
                        "index": version.index,
                        "digest": version.digest,
                        "current": version.current,
                        "replicas": len(version.replicas),
                        "devices": devices[version.name, version.digest],
                        "precision": sorted(set(version.precisions.values())),
                        **asdict(state),
                    }
                    for version, state in zip(versions, states, strict=True)
                ],
            }
        return status

    def _wanted_of(self, version: Version, ready: int) -> tuple[int, int]:
        """Target and starting."""
        if not version.current:
            return ready, 0
        target = self._targets[version.label]
        others = self.registry.ready(version.label) - len(version.replicas)
        replicas = max(target.replicas - others, 0)
        starting = max(replicas - ready, 0) if target.starting is None else target.starting
        return replicas, starting


def _total(states: Sequence[ModelState]) -> dict[str, Any]:
    """Counts and work summed, times and slowdown of the worst."""
    each = [asdict(state) for state in states]
    worst = {"wait_ms", "slowdown", "age_ms"}
    return {key: (max if key in worst else sum)(state[key] for state in each) for key in each[0]}
