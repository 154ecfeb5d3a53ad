"""Long measurements in steps, so that whoever runs them may do other work in between.

A measurement is a generator that yields the steps done and the steps in all, and returns what it measured.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Done", "Progress", "Steps", "advance", "finish"]

T = TypeVar("T")

Steps = Generator[tuple[int, int], None, T]
Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all, from the thread that measures."""


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What a measurement gave."""

    value: T


def advance(steps: Steps[T]) -> Done[T] | None:
    """One step further; None unless that was the end."""
    try:
        next(steps)
    except StopIteration as end:
        return Done(end.value)
    return None


def finish(steps: Steps[T], progress: Progress | None = None) -> T:
    """All steps at once."""
    while True:
        try:
            done, total = next(steps)
        except StopIteration as end:
            value: T = end.value
            return value
        if progress is not None:
            progress(done, total)
