"""A progress bar for the slow steps of a start, on a terminal and only when they are slow."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["TerminalProgress"]

_QUIET_S = 2.0


class TerminalProgress:
    """Takes the reports of :class:`edge_agent.agent.Progress`, from any thread.

    The bar appears once the steps together have taken two seconds; without a terminal it never does.
    """

    def __init__(self, console: Console | None = None, quiet_s: float = _QUIET_S) -> None:
        self._console = console or Console(file=sys.stderr)
        self._quiet_s = quiet_s
        self._began_s = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._shown = False

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __call__(self, model: str, step: str, done: int, total: int) -> None:
        if not self._console.is_terminal:
            return
        if not self._shown:
            if time.monotonic() - self._began_s < self._quiet_s:
                return
            self._bar.start()
            self._shown = True
        for task in self._bar.tasks:
            if task.description == f"{step} {model}":
                self._bar.update(task.id, completed=done, total=total)
                return
            self._bar.update(task.id, visible=False)
        self._bar.add_task(f"{step} {model}", completed=done, total=total)

    def stop(self) -> None:
        """Remove the bar.  Idempotent."""
        if self._shown:
            self._bar.stop()
            self._shown = False
