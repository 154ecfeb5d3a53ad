"""Capture, cut and run networks.

What needs torch is imported when it is first asked for, so that reading a graph costs no torch.
Capturing, which needs torch.export, is in :mod:`shared.graph.capture`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shared.graph.ir import BatchInt, Cut, EnumArg, Graph, Op, Ref, Unit

if TYPE_CHECKING:
    from shared.graph.bundle import Bundle, load_bundle, read_bundle, save_bundle
    from shared.graph.captured import CapturedModel
    from shared.graph.run import Mode, Program, State, load

__all__ = [
    "BatchInt",
    "Bundle",
    "CapturedModel",
    "Cut",
    "EnumArg",
    "Graph",
    "Mode",
    "Op",
    "Program",
    "Ref",
    "State",
    "Unit",
    "load",
    "load_bundle",
    "read_bundle",
    "save_bundle",
]

_NEEDS_TORCH = {
    "Bundle": "bundle",
    "load_bundle": "bundle",
    "read_bundle": "bundle",
    "save_bundle": "bundle",
    "CapturedModel": "captured",
    "load": "run",
    "Mode": "run",
    "Program": "run",
    "State": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)
