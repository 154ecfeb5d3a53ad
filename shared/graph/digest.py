"""The digest that device and cloud compare: over the graph and every bit of every weight.

Two networks have the same digest exactly if they compute the same thing in the same units.  The
model's name is not part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from shared.graph.document import canonical_json, graph_document
from shared.graph.ir import Graph

if TYPE_CHECKING:
    import torch

__all__ = ["graph_digest"]


def graph_digest(graph: Graph, weights: Mapping[str, torch.Tensor]) -> str:
    """``sha256:`` and 64 hexadecimal digits."""
    total = hashlib.sha256(canonical_json(graph_document(graph)))
    for slot, key in sorted(graph.weights.items()):
        order = graph.values[slot].order
        total.update(_tensor_digest(weights[key].detach().permute(order)))
    return f"sha256:{total.hexdigest()}"


def _tensor_digest(dense: torch.Tensor) -> bytes:
    """Over dtype, sizes and bytes in memory order."""
    import torch

    total = hashlib.sha256(f"{dense.dtype} {tuple(dense.shape)} ".encode())
    data = dense.contiguous().cpu()
    total.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return total.digest()
