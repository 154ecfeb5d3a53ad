"""A network in a directory: ``graph.json``, ``weights.safetensors`` and what helps to use it.

Loading runs no code from the directory.  The graph is checked field by field, its operators are from an
allow-list, every size is confirmed by running the graph on tensors without memory, and the digest is
computed again from what was read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shared.errors import BundleError, InputMismatchError
from shared.graph.allowed import ALLOWED_OPERATORS
from shared.graph.calls import SlotLayout, call_of, draws_random_numbers
from shared.graph.captured import CapturedModel
from shared.graph.digest import graph_digest
from shared.graph.document import graph_document
from shared.graph.ir import Graph, Op
from shared.graph.operators import is_view
from shared.graph.parse import MAX_DOCUMENT_BYTES, parse_graph
from shared.tensor import SymbolicSpec

__all__ = ["Bundle", "load_bundle", "read_bundle", "save_bundle"]

_GRAPH, _WEIGHTS, _EXAMPLE, _ABOUT = "graph.json", "weights.safetensors", "example.safetensors", "about.json"
_HEADER_BYTES = 100 * 2**20  # what safetensors itself allows for its header
_MAX_PREAMBLE_BYTES = 2 * 2**30


class _About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    input_form: str = "tensor"
    labels: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """``example`` holds positional and keyword arguments of one call."""

    captured: CapturedModel
    labels: tuple[str, ...] | None
    input_form: str
    example: tuple[tuple[Any, ...], dict[str, Any]] | None


def save_bundle(
    captured: CapturedModel,
    directory: str | Path,
    labels: Sequence[str] | None = None,
    example: tuple[Sequence[Any], Mapping[str, Any]] | None = None,
    input_form: str = "tensor",
) -> None:
    """Write a network that :func:`load_bundle` reads back with the same digest and the same bits.

    Raises BundleError naming an operator that bundles may not hold and the line of the user's code
    that made it, or a directory that cannot be written.
    """
    graph = captured.graph
    for op in graph.ops():
        if op.target not in ALLOWED_OPERATORS:
            source = captured.sources.get(op.written[0], "its source line is not known")
            raise BundleError(f"{graph.name}: operator {op.target} is not allowed in a bundle\n  {source}")
    document = {**graph_document(graph), "name": graph.name, "digest": graph.digest}
    stored = {
        key: captured.weights[key].detach().cpu().permute(graph.values[slot].order).contiguous()
        for slot, key in graph.weights.items()
    }
    about = _About(input_form, None if labels is None else list(labels))
    root = Path(directory)
    try:
        root.mkdir(parents=True, exist_ok=True)
        save_file(stored, root / _WEIGHTS)
        if example is not None:
            leaves = graph.flatten(*example)
            save_file({f"{i}": leaf.detach().contiguous() for i, leaf in enumerate(leaves)}, root / _EXAMPLE)
        (root / _ABOUT).write_bytes(msgspec.json.encode(about))
        # Last, and at once: a directory without a graph is no bundle.
        unfinished = root / f"{_GRAPH}.part"
        unfinished.write_text(json.dumps(document, sort_keys=True, separators=(",", ":")), encoding="utf-8")
        os.replace(unfinished, root / _GRAPH)
    except OSError as error:
        raise BundleError(f"cannot write {error.filename or root}: {error.strerror}") from error
    except SafetensorError as error:
        raise BundleError(f"cannot write {root / _WEIGHTS}: {error}") from error


def load_bundle(directory: str | Path) -> CapturedModel:
    """Read and check a bundle.  Raises BundleError naming what is damaged, missing or not allowed."""
    return read_bundle(directory).captured


def read_bundle(directory: str | Path) -> Bundle:
    """Like :func:`load_bundle`, with the labels and the example that were saved beside the network."""
    root = Path(directory)
    try:
        graph = parse_graph(_read(root / _GRAPH))
        _confirm_sizes(graph)
        weights = _read_weights(root / _WEIGHTS, graph)
        digest = graph_digest(graph, weights)
        if digest != graph.digest:
            raise BundleError(
                f"it is damaged: the digest is {digest}, not {_shown(graph.digest)} as the bundle says; copy "
                "it again, or write it again with `edge-agent bundle`"
            )
        about = _read_about(root / _ABOUT)
        example = _read_example(root / _EXAMPLE, graph)
    except BundleError as error:
        raise BundleError(f"bundle {root}: {error}") from error
    labels = None if about.labels is None else tuple(about.labels)
    return Bundle(CapturedModel(graph, weights), labels, about.input_form, example)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise BundleError(f"{path.name} is larger than {MAX_DOCUMENT_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path.name}: {error.strerror}") from error


def _read_about(path: Path) -> _About:
    if not path.exists():
        return _About()
    try:
        return msgspec.json.decode(_read(path), type=_About)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path.name}: {error}") from None


def _read_tensors(path: Path, expected: Mapping[str, SymbolicSpec], batch: int) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, which must be the expected ones, in memory order."""
    limit = sum(spec.at(batch).nbytes for spec in expected.values()) + _HEADER_BYTES
    try:
        if path.stat().st_size > limit:
            raise BundleError(f"{path.name} is larger than its {len(expected)} tensors can be")
        tensors: dict[str, torch.Tensor] = load_file(path)
    except OSError as error:
        raise BundleError(f"cannot read {path.name}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise BundleError(f"{path.name} is not a safetensors file: {error}") from error
    if tensors.keys() != expected.keys():
        different = sorted(tensors.keys() ^ expected.keys())
        raise BundleError(f"{path.name} lacks, or should not have, {_shown(different[0])}")
    for key, spec in expected.items():
        wanted = tuple(spec.at(batch).shape[dim] for dim in spec.order)
        if tuple(tensors[key].shape) != wanted or tensors[key].dtype != getattr(torch, spec.dtype.label):
            raise BundleError(f"{path.name}: {_shown(key)} is not {spec.dtype.label} {wanted}")
    return tensors


def _read_weights(path: Path, graph: Graph) -> dict[str, torch.Tensor]:
    expected = {key: graph.values[slot] for slot, key in graph.weights.items()}
    # Cloned because safetensors puts tensors at any multiple of 8 bytes, and matrix kernels round
    # differently on memory that is not aligned like torch's own.
    weights = {
        key: tensor.clone().permute(sorted(range(tensor.dim()), key=expected[key].order.__getitem__))
        for key, tensor in _read_tensors(path, expected, graph.captured_batch).items()
    }
    for slot in graph.grad_weights:
        key = graph.weights[slot]
        if not weights[key].is_floating_point():
            raise BundleError(f"grad_weights names {_shown(key)}, which is not of a float dtype")
        weights[key].requires_grad_()
    return weights


def _read_example(path: Path, graph: Graph) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if not path.exists():
        return None
    stored = [SymbolicSpec(spec.name, spec.dtype, spec.dims, tuple(range(len(spec.dims)))) for spec in
              (graph.values[slot] for slot in graph.inputs)]  # fmt: skip
    tensors = _read_tensors(path, {str(i): spec for i, spec in enumerate(stored)}, graph.captured_batch)
    leaves = [tensors[str(i)] for i in range(len(stored))]
    try:
        graph.check_inputs([(spec.dtype, spec.at(graph.captured_batch).shape) for spec in stored])
    except InputMismatchError as error:
        raise BundleError(f"{path.name}: {error}") from error
    args, kwargs = graph.input_tree.unflatten(leaves)
    return args, kwargs


def _confirm_sizes(graph: Graph) -> None:
    """Run the graph on tensors without memory: every result must have the size that the graph says."""
    meta = torch.device("meta")
    layout = SlotLayout(graph.slot_count)
    batches = {graph.captured_batch, 2} if graph.dynamic_batch else {graph.captured_batch}
    steps = []
    for op in graph.ops():
        with _naming(op):
            if draws_random_numbers(op):
                raise BundleError(f"{op.target} draws random numbers")
            steps.append((op, layout.step(call_of(op, meta, reshape=True))))
    for batch in sorted(batches):
        slots = layout.template(batch)
        for slot in (*graph.inputs, *graph.weights):
            spec = graph.values[slot].at(batch)
            dtype = getattr(torch, spec.dtype.label)
            slots[slot] = torch.empty_strided(spec.shape, spec.strides, dtype=dtype, device=meta)
        made = 0
        with torch.inference_mode():
            for index, (op, step) in enumerate(steps):
                with _naming(op):
                    step(slots)
                _confirm(op, graph, slots, batch)
                if index < len(graph.preamble) and not is_view(op.target):
                    made += sum(slots[slot].numel() * slots[slot].element_size() for slot in op.written)
        # What loading computes and keeps, before any request asks for it.
        if made > _MAX_PREAMBLE_BYTES:
            raise BundleError(
                f"the preamble makes {made} bytes; {_MAX_PREAMBLE_BYTES} is the most there may be"
            )


def _confirm(op: Op, graph: Graph, slots: Sequence[Any], batch: int) -> None:
    for slot in op.written:
        value = slots[slot]
        if not isinstance(value, torch.Tensor):
            raise BundleError(f"{op.target} gives no tensor")
        if value.numel() * value.element_size() > 8 * 2**30:
            raise BundleError(f"{op.target} makes a tensor of {value.numel()} elements")
        spec = graph.values.get(slot)
        if spec is None:
            continue
        declared = spec.at(batch)
        if tuple(value.shape) != declared.shape or str(value.dtype) != f"torch.{declared.dtype.label}":
            raise BundleError(
                f"{op.target} makes {value.dtype} {tuple(value.shape)} where the graph says "
                f"{declared.dtype.label} {declared.shape}"
            )


class _naming:
    """Any failure of an operator on the arguments that a bundle gives it is the bundle's."""

    def __init__(self, op: Op) -> None:
        self.op = op

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, BundleError):
            first = str(error).strip().partition("\n")[0]
            raise BundleError(f"{self.op.target} cannot run on what the graph gives it: {first}") from error


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
