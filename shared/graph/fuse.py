"""Fold and fuse for speed, unit by unit, after loading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from shared.graph.calls import Call, call_of
from shared.graph.ir import Graph

__all__ = ["fused_calls"]


def fused_calls(graph: Graph, constants: Mapping[int, Any], device: torch.device) -> list[list[Call]]:
    """The calls of every unit."""
    return [[call_of(op, device) for op in unit.ops] for unit in graph.units]
