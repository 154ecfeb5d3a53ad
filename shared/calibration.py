"""Typical inputs of a network: what payload sizes and the accuracy gate are measured on.

They come from the application, as a folder of files or a factory; without either they are made up, and
everything that rests on them says so.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.config import CalibrationConfig
from shared.errors import ConfigError, InputMismatchError
from shared.images import IMAGE_SUFFIXES, load_image
from shared.models import Model, find_factory, where_it_failed
from shared.tensor import DType

if TYPE_CHECKING:
    import torch

    from shared.graph.ir import Graph

__all__ = ["Calibration", "calibrate", "fingerprint"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """``samples`` are input leaves in the order of the graph's inputs, at batch 1 where it is free.

    ``name`` tells apart two sets of inputs by their content; ``synthetic`` says that they were made up.
    ``make_up`` then makes the one of any number, of which ``samples`` are the first.  ``fitted`` numbers the
    samples that the network's transform tables were fitted to, on which the transform is not judged.
    """

    name: str
    samples: Sequence[Sequence[torch.Tensor]]
    synthetic: bool
    make_up: Callable[[int], Sequence[torch.Tensor]] | None = None
    fitted: frozenset[int] = frozenset()

    def stream(self) -> Iterator[Sequence[torch.Tensor]]:
        """The samples, and without end those that can be made up beyond them."""
        yield from self.samples
        if self.make_up is not None:
            yield from map(self.make_up, itertools.count(len(self.samples)))

    def unfitted(self) -> Iterator[Sequence[torch.Tensor]]:
        """As :meth:`stream`, without those that the transform's tables were fitted to."""
        return (sample for number, sample in enumerate(self.stream()) if number not in self.fitted)


def calibrate(model: Model, config: CalibrationConfig) -> Calibration:
    """Load or make up at most ``config.samples`` inputs.

    Raises ConfigError when the folder or the factory gives nothing that the network takes, naming the
    file or the call and what the network takes instead.
    """
    graph = model.captured.graph
    make_up = None
    samples: list[Sequence[torch.Tensor]]
    if config.folder is not None:
        samples, kind = _from_folder(graph, config.folder, config.samples), "folder"
    elif config.factory is not None:
        samples, kind = _from_factory(graph, config.factory, config.samples), "factory"
    else:
        make_up = _maker(model)
        samples, kind = [make_up(seed) for seed in range(config.samples)], "synthetic"
    name, fitted = f"{kind} {len(samples)} {_fingerprint(samples)}", frozenset[int]()
    if model.tables is not None:
        # What is measured with tables is of no use without them, or with others.
        name += f" transform {model.tables.digest[:16]}"
        known = model.tables.fitted_to
        fitted = frozenset(number for number, sample in enumerate(samples) if fingerprint(sample) in known)
    return Calibration(name, samples, make_up is not None, make_up, fitted)


def fingerprint(sample: Sequence[torch.Tensor]) -> str:
    """Names one input by its content."""
    return _fingerprint([sample])


def _from_folder(graph: Graph, folder: Path, limit: int) -> list[Sequence[torch.Tensor]]:
    if not folder.is_dir():
        raise ConfigError(f"calibration folder {folder} of {graph.name} is not a directory")
    if len(graph.inputs) != 1:
        raise ConfigError(
            f"{graph.name} takes {len(graph.inputs)} tensors; give calibration: factory instead of a folder"
        )
    suffixes = {".npy"} | (IMAGE_SUFFIXES if _takes_images(graph) else set())
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)[:limit]
    if not files:
        raise ConfigError(
            f"calibration folder {folder} of {graph.name} holds no file of {', '.join(sorted(suffixes))}"
        )
    return [_checked(graph, [_read(graph, path)], str(path)) for path in files]


def _read(graph: Graph, path: Path) -> torch.Tensor:
    import torch

    spec = graph.values[graph.inputs[0]].at(1)
    if path.suffix.lower() != ".npy":
        channels, height, width = spec.shape[1:]
        return torch.from_numpy(load_image(path, height, width, grey=channels == 1)[np.newaxis])
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read calibration input {path}: {error}") from error
    if array.ndim == len(spec.shape) - 1:
        array = array[np.newaxis]
    try:
        return torch.from_numpy(np.ascontiguousarray(array))
    except TypeError as error:
        raise ConfigError(f"calibration input {path} is no tensor: {error}") from error


def _from_factory(graph: Graph, path: str, limit: int) -> list[Sequence[torch.Tensor]]:
    factory = find_factory(graph.name, path)
    try:
        made: Any = factory()
        calls = list(made)
    except Exception as error:
        raise ConfigError(
            f"calibration factory {path} of {graph.name} failed: {where_it_failed(error, factory)}"
        ) from error
    if not calls:
        raise ConfigError(f"calibration factory {path} of {graph.name} returned no call")
    samples: list[Sequence[torch.Tensor]] = []
    for index, call in enumerate(calls[:limit]):
        origin = f"call {index} of calibration factory {path}"
        if not isinstance(call, tuple):
            raise ConfigError(f"{origin} must be a tuple of arguments, not {type(call).__name__}")
        try:
            leaves = graph.flatten(call)
        except InputMismatchError as error:
            raise ConfigError(f"{origin}: {error}") from error
        samples.append(_checked(graph, leaves, origin))
    return samples


def _checked(graph: Graph, leaves: Sequence[Any], origin: str) -> list[torch.Tensor]:
    import torch

    tensors = [torch.as_tensor(leaf) for leaf in leaves]
    try:
        batch = graph.check_inputs(
            [(DType.from_label(str(tensor.dtype)), tuple(tensor.shape)) for tensor in tensors]
        )
    except (InputMismatchError, KeyError) as error:
        raise ConfigError(f"{origin} does not fit: {error}") from error
    if graph.dynamic_batch and batch != 1:
        raise ConfigError(f"{origin} has batch size {batch}; calibration inputs are single samples")
    return tensors


def _takes_images(graph: Graph) -> bool:
    spec = graph.values[graph.inputs[0]].at(1)
    return spec.dtype is DType.UINT8 and len(spec.shape) == 4 and spec.shape[1] in (1, 3)


def _maker(model: Model) -> Callable[[int], Sequence[torch.Tensor]]:
    """The example with other values: photographs' statistics for images, the example's own elsewhere."""
    import torch

    from shared.zoo.image_input import synthetic_photo

    graph = model.captured.graph
    args, kwargs = model.example
    example = []
    for slot, leaf in zip(graph.inputs, graph.flatten(args, kwargs), strict=True):
        rows = graph.values[slot].at(1 if graph.dynamic_batch else graph.captured_batch).shape[:1]
        example.append(torch.as_tensor(leaf)[slice(*rows)] if rows else torch.as_tensor(leaf))
    images = len(example) == 1 and _takes_images(graph)

    def make_up(seed: int) -> Sequence[torch.Tensor]:
        if images:
            channels, height, width = example[0].shape[1:]
            return [synthetic_photo(channels, height, width, seed)]
        generator = torch.Generator().manual_seed(seed)
        return [_alike(leaf, generator) for leaf in example]

    return make_up


def _alike(leaf: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    import torch

    if not leaf.numel():
        return leaf
    if leaf.dtype.is_floating_point:
        spread = leaf.double().std(correction=0)
        noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        return (leaf.double().mean() + spread * noise).to(leaf.dtype)
    picks = torch.randint(leaf.numel(), leaf.shape, generator=generator)
    return leaf.flatten()[picks]


def _fingerprint(samples: Sequence[Sequence[torch.Tensor]]) -> str:
    import torch

    digest = hashlib.sha256()
    for leaf in (leaf for sample in samples for leaf in sample):
        digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
        digest.update(leaf.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
