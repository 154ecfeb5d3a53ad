"""What a check of ``edge-agent doctor`` found, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Check", "Verdict", "render"]

_NAME = 24


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """The agent starts, but not as it was meant to run."""
    FAILURE = "failure"
    """What the configuration asks for is not to be had."""


@dataclass(frozen=True, slots=True)
class Check:
    """``remedy`` is '' where none is needed."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def render(check: Check) -> str:
    """One check for a person, with rich's markup."""
    colour = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILURE: "bold red"}[check.verdict]
    line = f"[{colour}]{check.verdict:<8}[/] {check.name:<{_NAME}} {_escaped(check.found)}"
    return line if not check.remedy else f"{line}\n{'':{10 + _NAME}} [bold]→[/] {_escaped(check.remedy)}"


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
