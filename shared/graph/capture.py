"""Capture an eval-mode module as a canonical graph, or refuse with the reason and the user's line.

The batch is made symbolic by exporting at batch 2; where that cannot be, the graph keeps the example's
batch size.  Either way the captured graph has to reproduce the module's own result bit for bit before
it is handed out.  The module is run without torch's fast path for nn.MultiheadAttention and
nn.TransformerEncoderLayer (``torch.backends.mha``), which rounds differently by about 1e-6.
"""

from __future__ import annotations

import inspect
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, export

from shared.errors import CaptureError
from shared.graph.captured import CapturedModel
from shared.graph.digest import graph_digest
from shared.graph.run import load
from shared.graph.source_lines import is_user_file
from shared.graph.translate import NonlinearSizeError, translate
from shared.graph.tree import Tree, tree_of
from shared.graph.units import assemble

__all__ = ["capture"]


class _Rejected(Exception):
    """One way to capture did not work out; ``reason`` is for the user should none."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Flat(nn.Module):
    """The user's module from tensor leaves to tensor leaves; notes what its result looks like."""

    def __init__(self, network: nn.Module, input_tree: Tree) -> None:
        super().__init__()
        self.network = network
        self.input_tree = input_tree
        self.output_tree: Tree | None = None

    def forward(self, leaves: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        args, kwargs = self.input_tree.unflatten(leaves)
        self.output_tree, results = tree_of(self.network(*args, **kwargs), torch.Tensor)
        return tuple(results)


def capture(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    name: str,
) -> CapturedModel:
    """Capture ``module`` as it answers in eval mode, from example inputs at batch 1 (or any other).

    Arguments and results may nest tuples, lists and dicts of tensors; other results (dataclasses, any
    mapping) become dicts.  Dimension 0 of every input that shares the first input's is the batch.

    Raises CaptureError for what cannot be cut: state changed in place, random operators, sizes or
    control flow that depend on the data.
    """
    training = [part for part in module.modules() if part.training]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # a kernel of its own that no exported graph contains
    try:
        with torch.no_grad():
            return _capture(module, tuple(args), dict(kwargs or {}), name)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for part in training:
            part.training = True


def _capture(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> CapturedModel:
    try:
        input_tree, leaves = tree_of((args, kwargs), torch.Tensor)
    except TypeError as error:
        raise CaptureError(f"cannot capture {name}: an argument is not made of tensors: {error}") from None
    if not leaves:
        raise CaptureError(f"cannot capture {name}: give example inputs, at least one tensor")
    leaves = [leaf.detach().clone() for leaf in leaves]  # aligned, and whole whatever the module does
    flat = _Flat(module, input_tree).eval()
    expected = _eager(flat, leaves, name)
    attempt = _Attempt(flat, leaves, _input_names(module, args, kwargs), expected, name)
    reasons = []
    for strict, dynamic in ((False, True), (False, False), (True, True), (True, False)):
        if dynamic and not attempt.has_batch:
            continue
        try:
            return attempt.capture(strict=strict, dynamic=dynamic)
        except _Rejected as rejected:
            reasons.append((dynamic, rejected.reason))
    raise CaptureError(next(reason for dynamic, reason in reasons if not dynamic))


def _eager(flat: _Flat, leaves: Sequence[torch.Tensor], name: str) -> list[torch.Tensor]:
    try:
        expected = [result.clone() for result in flat(tuple(leaf.clone() for leaf in leaves))]
    except Exception as error:
        raise CaptureError(
            f"cannot capture {name}: the module fails on its example inputs: {_told(error)}"
        ) from error
    if not expected:
        raise CaptureError(f"cannot capture {name}: its result holds no tensor")
    return expected


@dataclass(slots=True)
class _Attempt:
    flat: _Flat
    leaves: list[torch.Tensor]
    names: list[str]
    expected: list[torch.Tensor]
    name: str

    @property
    def has_batch(self) -> bool:
        return self.batch_size > 0

    @property
    def batch_size(self) -> int:
        return next((leaf.shape[0] for leaf in self.leaves if leaf.dim()), 0)

    def capture(self, *, strict: bool, dynamic: bool) -> CapturedModel:
        program = self._export(strict=strict, dynamic=dynamic)
        try:
            traced, weights = translate(program, self.names)
        except NonlinearSizeError as error:
            raise _Rejected(str(error)) from error
        if self.flat.output_tree is None:
            raise CaptureError(f"cannot capture {self.name}: torch.export did not run the module")
        graph, sources = assemble(
            traced,
            name=self.name,
            input_tree=self.flat.input_tree,
            output_tree=self.flat.output_tree,
            dynamic_batch=dynamic,
            captured_batch=max(self.batch_size, 1),
        )
        used = {key: weights[key] for key in graph.weights.values()}
        graph = graph.with_digest(graph_digest(graph, used))
        captured = CapturedModel(graph, used, sources)
        self._require_same_bits(captured)
        return captured

    def _export(self, *, strict: bool, dynamic: bool) -> ExportedProgram:
        leaves = tuple(self.leaves)
        shapes: Any = None
        if dynamic:
            batched = [leaf.dim() > 0 and leaf.shape[0] == self.batch_size for leaf in leaves]
            if self.batch_size == 1:
                leaves = tuple(
                    torch.cat([leaf, leaf]) if twice else leaf
                    for leaf, twice in zip(leaves, batched, strict=True)
                )
            shapes = (tuple({0: Dim.DYNAMIC} if is_batch else None for is_batch in batched),)
        try:
            with _quiet():
                program = export(self.flat, (leaves,), dynamic_shapes=shapes, strict=strict)
                functional: ExportedProgram = program.run_decompositions({})
                return functional
        except Exception as error:
            raise _Rejected(f"cannot capture {self.name}: {_told(error)}") from error

    def _require_same_bits(self, captured: CapturedModel) -> None:
        """A graph that branches on its batch size, or that torch traced wrongly, must not get out."""
        program = load(captured, mode="exact")
        graph = captured.graph
        try:
            state = program.start(self.leaves)
            for unit in graph.units:
                program.run(state, [unit.index])
                for slot in unit.writes:
                    value = state.slots[slot]
                    if value is not None and tuple(value.shape) != graph.values[slot].at(state.batch).shape:
                        raise _Rejected(self._differs(f"in the size of {graph.values[slot].name}"))
        except RuntimeError as error:
            raise _Rejected(self._differs(f"at batch {self.batch_size}: {error}")) from error
        for slot, expected in zip(graph.outputs, self.expected, strict=True):
            if not torch.equal(_bits(state.slots[slot]), _bits(expected)):
                raise _Rejected(self._differs("in its result"))

    def _differs(self, where: str) -> str:
        return (
            f"cannot capture {self.name}: the traced graph and the module differ {where}; does it branch on "
            "the size of its input, or change state?"
        )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """So that NaN equals itself."""
    tensor = tensor.contiguous()
    return tensor.reshape(-1).view(torch.uint8) if tensor.dtype != torch.bool else tensor.reshape(-1)


def _input_names(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """A readable name for every leaf: the parameter of ``forward``, then the way down to the leaf."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    plain = [item.name for item in parameters if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)]
    named = [(plain[i] if i < len(plain) else f"argument{i}", value) for i, value in enumerate(args)]
    named += list(kwargs.items())
    return [leaf for name, value in named for leaf in _leaf_names(name, value)]


def _leaf_names(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, torch.Tensor):
        yield name
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaf_names(f"{name}.{key}", item)
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _leaf_names(f"{name}.{index}", item)


def _told(error: Exception) -> str:
    """What went wrong and where: the message's first paragraph and the deepest line of the user's code."""
    reason = str(error).strip().split("\n\n")[0] or type(error).__name__
    kind = type(error).__name__
    if "DataDependent" in kind or "data-dependent" in reason.lower():
        reason = f"control flow or a size depends on the data, which no plan can know ({reason})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_user_file(frame.filename)]
    if not frames:
        return reason
    return f"{reason}\n  {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Export without torch's advice on its own internals; what matters comes back as an exception."""
    loggers = [logging.getLogger(name) for name in ("torch.fx", "torch.export", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
