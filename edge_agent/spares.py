"""The networks once more, on the CPU, for when the memory of the device that computes is full."""

from __future__ import annotations

import logging

import torch

from shared.graph import CapturedModel, Program, load

__all__ = ["Spares"]

log = logging.getLogger("suture.agent")


class Spares:
    """Programs for the CPU, each made when it is first needed; used in the worker thread alone.

    The CPU is slower, which the planner sees in the measured times: it moves work to the cloud where there
    is one.
    """

    def __init__(self) -> None:
        self._captured: dict[str, CapturedModel] = {}
        self._programs: dict[str, Program] = {}
        self._in_use: set[str] = set()

    def add(self, name: str, captured: CapturedModel) -> None:
        self._captured[name] = captured

    def take(self, name: str, error: torch.OutOfMemoryError) -> Program:
        """The program for the CPU, because of ``error``, which is said once until there is room again."""
        if name not in self._in_use:
            self._in_use.add(name)
            log.warning(
                "the device has no memory left for %s, which runs on the CPU until it has: %s", name, error
            )
        if name not in self._programs:
            self._programs[name] = load(self._captured[name], device="cpu")
        return self._programs[name]

    def on_fitting(self, name: str) -> None:
        """The device computed this network."""
        if name in self._in_use:
            self._in_use.remove(name)
            log.warning("%s fits into the device's memory again", name)
