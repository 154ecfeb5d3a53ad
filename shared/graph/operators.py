"""What kind of operator a target is: a view, a copy, an activation, something heavy.

Targets are the full names of functional ATen overloads, e.g. ``aten.conv2d.default``.
"""

from __future__ import annotations

__all__ = [
    "base_name",
    "is_activation",
    "is_batch_norm",
    "is_fusable",
    "is_heavy",
    "is_identity",
    "is_residual",
    "is_view",
]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_VIEWS = _names(
    """_unsafe_view alias chunk detach diagonal expand expand_as flatten movedim narrow permute reshape
    select slice split split_with_sizes squeeze swapaxes t transpose unbind unflatten unsqueeze view
    view_as"""
)
_IDENTITIES = _names("alias clone contiguous detach dropout lift_fresh_copy _to_copy")
_ACTIVATIONS = _names(
    """celu elu gelu hardsigmoid hardswish hardtanh leaky_relu log_sigmoid mish relu relu6 selu sigmoid
    silu softplus tanh"""
)
_HEAVY = _names(
    """addmm baddbmm bilinear bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    convolution einsum gru linear lstm matmul mm rnn_relu rnn_tanh scaled_dot_product_attention"""
)
_FUSABLE = _names(
    """addmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution linear
    mm"""
)
_BATCH_NORMS = _names("_native_batch_norm_legit_no_training batch_norm native_batch_norm")


def base_name(target: str) -> str:
    """``aten.conv2d.default`` -> ``conv2d``."""
    return target.split(".")[1] if target.count(".") >= 2 else target


def is_view(target: str) -> bool:
    """Whether the result shares its argument's memory, so that taking it again is free."""
    return base_name(target) in _VIEWS


def is_identity(target: str) -> bool:
    """Whether the operator, given no change of dtype, copies at most: never a reason to cut after it."""
    return base_name(target) in _IDENTITIES


def is_activation(target: str) -> bool:
    return base_name(target) in _ACTIVATIONS


def is_batch_norm(target: str) -> bool:
    return base_name(target) in _BATCH_NORMS


def is_residual(target: str) -> bool:
    """Whether the operator can be the elementwise sum of two branches."""
    return target == "aten.add.Tensor"


def is_fusable(target: str) -> bool:
    """Whether normalisation, a residual and an activation may run in one unit with it."""
    return base_name(target) in _FUSABLE


def is_heavy(target: str) -> bool:
    """Whether its arithmetic dominates what else is in its unit."""
    return base_name(target) in _HEAVY
