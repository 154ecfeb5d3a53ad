"""A slower device than this machine: the same compute, followed by a sleep.

Device and cloud of a demo or bench run on one machine, where no sensible plan would ever leave the
device.  Every section of compute of a :class:`StretchedRunner` takes ``factor`` times as long as it was
measured to take, encoding and decoding included, and so does the profile that the planner rests on.
Nothing else is slower: not the agent's own bookkeeping, and not the link.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from edge_agent.agent import RunnerFactory
from edge_agent.runner import Runner, Work
from shared.graph import Program, State
from shared.plan.profile import Profile

__all__ = ["RepeatingRunner", "SteadyRunner", "StretchedRunner", "longer_by_cpu_time", "stretched"]

T = TypeVar("T")


class StretchedRunner(Runner):
    """A :class:`edge_agent.runner.Runner` whose compute takes ``factor`` times as long, at least 1.

    The sleep leaves the processor to the cloud's replica, as a device's own processor would.
    """

    def __init__(self, factor: float, device: str = "cpu", threads: int | None = None) -> None:
        if not factor >= 1:
            raise ValueError(f"compute can be stretched, not shortened: the factor is {factor}")
        self.factor = factor
        super().__init__(device, threads)

    @property
    def profile_device(self) -> str:
        # Its own name: a stretched profile must never be taken for one of the real device.
        return f"{super().profile_device} stretched {self.factor:g}x"

    def profile_clock(self) -> float:
        return super().profile_clock() * self.factor

    def _timed(self, section: str, body: Callable[[], T]) -> tuple[T, float]:
        value, ms = super()._timed(section, body)
        started = time.perf_counter()
        time.sleep(ms * (self.factor - 1) / 1000.0)
        # As it came to be, with what the sleep took too long: the breakdown has to sum up.
        return value, ms + (time.perf_counter() - started) * 1000.0


@contextlib.contextmanager
def longer_by_cpu_time(factor: float) -> Iterator[None]:
    """Makes the body take ``factor`` times the processor's time that this thread spends on it, at least.

    Several devices and replicas share this machine's cores, where each would have its own: what one has to
    wait for the others must not be multiplied.
    """
    began_s, cpu_s = time.perf_counter(), time.thread_time()
    yield
    wanted_s = factor * (time.thread_time() - cpu_s)
    time.sleep(max(wanted_s - (time.perf_counter() - began_s), 0.0))


class SteadyRunner(StretchedRunner):
    """As :class:`StretchedRunner`, but by :func:`longer_by_cpu_time`, where several share the machine."""

    def _timed(self, section: str, body: Callable[[], T]) -> tuple[T, float]:
        began_s = time.perf_counter()
        with longer_by_cpu_time(self.factor):
            value, _ = Runner._timed(self, section, body)
        return value, (time.perf_counter() - began_s) * 1000.0


def stretched(factor: float) -> RunnerFactory:
    """What makes the agent's compute ``factor`` times as long."""
    return partial(StretchedRunner, factor)


class RepeatingRunner(Runner):
    """A :class:`edge_agent.runner.Runner` that does all of its compute ``factor`` times over.

    Where a sleep multiplies whatever happened to one short run, cold caches after the sleep before it
    included, repeated work takes ``factor`` ordinary runs: it suits measurements that ask how well a
    profile predicts.  It occupies a processor, however.  ``factor`` may change between requests;
    ``profiles`` are those that were measured or kept, of ``factor`` as it was then.
    """

    def __init__(self, factor: int, device: str = "cpu", threads: int | None = None) -> None:
        if factor < 1:
            raise ValueError(f"compute cannot be repeated {factor} times")
        self.factor = factor
        self.profiles: dict[str, Profile] = {}
        super().__init__(device, threads)

    @property
    def profile_device(self) -> str:
        return f"{super().profile_device} repeated {self.factor}x"

    def profile_clock(self) -> float:
        return super().profile_clock() * self.factor

    async def profile(self, name: str, *args: Any, **kwargs: Any) -> Profile:
        self.profiles[name] = await super().profile(name, *args, **kwargs)
        return self.profiles[name]

    def _timed(self, section: str, body: Callable[[], T]) -> tuple[T, float]:
        value, total_ms = super()._timed(section, body)
        # What computes lets go of what it has used, so that it is repeated where there is a copy.
        for _ in range(0 if section == "compute" else self.factor - 1):
            total_ms += super()._timed(section, body)[1]
        return value, total_ms

    def _run(self, program: Program, state: State, units: Sequence[int], work: Work) -> float:
        total_ms = 0.0
        for _ in range(self.factor - 1):
            total_ms += super()._run(program, replace(state, slots=state.slots.copy()), units, work)
        return total_ms + super()._run(program, state, units, work)
