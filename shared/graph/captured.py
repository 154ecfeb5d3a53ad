"""A graph with its weights: what capture and a bundle give, and what is loaded to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from shared.graph.ir import Graph

__all__ = ["CapturedModel"]


@dataclass(frozen=True, slots=True)
class CapturedModel:
    """``weights`` are by key; captured ones share memory with the module they come from.

    ``sources`` names the user's line for the operator whose first output is that slot; it is empty
    for a network that was not captured here.
    """

    graph: Graph
    weights: Mapping[str, torch.Tensor]
    sources: Mapping[int, str] = field(default_factory=dict)
