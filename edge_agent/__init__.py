"""The device's side.  Importing it costs no torch: what needs torch is loaded when it is asked for.

``Client`` talks to an agent in another process, ``EdgeAgent`` is the agent in this one; both give
``Result``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_agent.agent import EdgeAgent
    from edge_agent.client import Client
    from edge_agent.result import Result

__all__ = ["Client", "EdgeAgent", "Result"]

_HOMES = {"Client": "client", "EdgeAgent": "agent", "Result": "result"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
