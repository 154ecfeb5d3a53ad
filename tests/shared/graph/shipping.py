"""What a cut does to tensors: they lose everything but shape, dtype, memory order and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shared.graph import Cut, Program
from shared.graph.tree import tree_of
from shared.tensor import order_from_strides, strides_from_order


def shipped(tensor: Tensor) -> Tensor:
    order = order_from_strides(tuple(tensor.stride()))
    dense = torch.empty_strided(
        tuple(tensor.shape), strides_from_order(tuple(tensor.shape), order), dtype=tensor.dtype
    )
    return dense.copy_(tensor)


def eager(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The leaves of the module's own result, by torch's ordinary kernels."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            return tree_of(module(*args, **kwargs), Tensor)[1]
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8)
    )


def through(program: Program, cut: Cut, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Both halves of a cut with everything that travels shipped, merged like the device does."""
    state = program.start(leaves)
    program.run(state, cut.edge_units)
    outputs = program.outputs(state)
    tail = program.resume(cut, [shipped(tensor) for tensor in program.live(state, cut)], state.batch)
    program.run(tail, cut.cloud_units)
    computed = program.outputs(tail)
    for slot in program.graph.output_slots_of(cut):
        outputs[slot] = shipped(computed[slot])
    return [outputs[slot] for slot in program.graph.outputs]
