"""From what a person wrote in YAML to a captured network: zoo name, factory or bundle directory.

Device and cloud both resolve their models here, so that one source gives one digest.  Importing this
module costs no torch; resolving does.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any, get_args

from shared import zoo
from shared.config import ModelSource
from shared.errors import BundleError, CodecError, ConfigError, SutureError
from shared.tensor import DType

if TYPE_CHECKING:
    import torch

    from shared.codec.network_tables import NetworkTables
    from shared.graph import CapturedModel, Graph

__all__ = ["TABLES_FILE", "Example", "Model", "find_factory", "resolve", "where_it_failed"]

Example = tuple[tuple[Any, ...], dict[str, Any]]

TABLES_FILE = "transform.safetensors"
"""In a bundle."""


@dataclass(frozen=True, slots=True)
class Model:
    """A captured network, and what is known about using it.

    ``example`` is one call, positional and keyword arguments, of batch 1 from the zoo and otherwise of
    the batch that the network was captured with.  ``labels`` names the classes of a classifier.
    ``tables`` are what the transform codecs need, None where they are not to be used.
    """

    captured: CapturedModel
    labels: tuple[str, ...] | None
    example: Example
    input_form: zoo.InputForm
    tables: NetworkTables | None = None


def resolve(source: ModelSource, cache_dir: Path | None = None, *, with_tables: bool = True) -> Model:
    """Build or load the network that ``source`` names, as a model named ``source.name``.

    A factory takes no arguments and returns ``(module, args)``, ``(module, args, kwargs)`` or a
    :class:`shared.zoo.Network`, where args and kwargs are an example call; its module is put in eval
    mode.  A bundle is a directory that ``edge-agent bundle`` wrote; loading it runs no code from it.
    With ``cache_dir``, the graphs of zoo networks are kept there between starts.  Without ``with_tables``
    the transform's are left alone, whatever they are.

    Raises UnknownModelError for a name that is not in the zoo, ConfigError for a factory that is not
    there or fails (naming the line) and for transform tables that are not of the network, CaptureError for
    a network that cannot be cut, BundleError for a bundle that is damaged.  Takes seconds for a large
    network.
    """
    model = _resolved(source, cache_dir)
    if not with_tables:
        return model
    path = source.transform_tables
    if path is None and source.bundle is not None and (source.bundle / TABLES_FILE).exists():
        path = source.bundle / TABLES_FILE
    return model if path is None else replace(model, tables=_tables(path, model.captured.graph))


def _resolved(source: ModelSource, cache_dir: Path | None) -> Model:
    if source.bundle is not None:
        return _from_bundle(source.name, source.bundle)
    if source.factory is not None:
        return _captured(source.name, _from_factory(source.name, source.factory))
    network = zoo.build(source.zoo or source.name)
    return _captured(source.name, network, cache_dir)


def _captured(name: str, network: zoo.Network, cache_dir: Path | None = None) -> Model:
    if cache_dir is not None:
        from shared.zoo.graph_cache import cached_capture

        captured = cached_capture(network, cache_dir)
    else:
        from shared.graph.capture import capture

        captured = capture(network.module, network.args, network.kwargs, name=network.name)
    return Model(_renamed(captured, name), network.labels, (network.args, network.kwargs), network.input_form)


def _from_bundle(name: str, directory: Path) -> Model:
    from shared.graph.bundle import read_bundle

    bundle = read_bundle(directory)
    form = next((form for form in get_args(zoo.InputForm) if form == bundle.input_form), None)
    if form is None:
        known = ", ".join(get_args(zoo.InputForm))
        raise BundleError(f"bundle {directory}: input form {bundle.input_form!r} is none of {known}")
    example = bundle.example or _example_for(bundle.captured.graph)
    captured = replace(bundle.captured, weights=_aligned(bundle.captured.weights))
    return Model(_renamed(captured, name), bundle.labels, example, form)


def _tables(path: Path, graph: Graph) -> NetworkTables:
    from shared.codec.network_tables import MAX_FILE_BYTES, NetworkTables

    batch = 1 if graph.dynamic_batch else graph.captured_batch
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CodecError(f"larger than {MAX_FILE_BYTES} bytes")
        tables = NetworkTables.from_bytes(path.read_bytes())
        tables.check(graph.digest, {slot: value.at(batch) for slot, value in graph.values.items()})
    except OSError as error:
        raise ConfigError(f"cannot read the transform tables {path}: {error.strerror}") from error
    except CodecError as error:
        raise ConfigError(
            f"the transform tables {path} are of no use for {graph.name}: {error}; fit them again with "
            "`edge-agent fit`"
        ) from error
    return tables


def _aligned(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights where torch's own allocator would put them.

    Matrix kernels take other paths, and give other last bits, on weights at odd addresses within a
    file; a device with a bundle would then differ from a cloud that built the same network.  A copy
    also outlives a change of the file.
    """
    return {
        key: weight.detach().clone().requires_grad_(weight.requires_grad) for key, weight in weights.items()
    }


def _renamed(captured: CapturedModel, name: str) -> CapturedModel:
    """The name is no part of what a network computes, nor of its digest."""
    return replace(captured, graph=replace(captured.graph, name=name))


def _example_for(graph: Graph) -> Example:
    """Inputs of the right shapes for a bundle that holds none: noise, and zero where it may be an index."""
    import torch

    generator = torch.Generator().manual_seed(0)
    leaves = []
    for spec in graph.specs(graph.inputs, graph.captured_batch):
        dtype = getattr(torch, spec.dtype.label)
        if spec.dtype is DType.UINT8:
            leaves.append(torch.randint(256, spec.shape, dtype=dtype, generator=generator))
        elif spec.dtype.is_float:
            leaves.append(torch.randn(spec.shape, generator=generator).to(dtype))
        else:
            leaves.append(torch.zeros(spec.shape, dtype=dtype))
    args, kwargs = graph.input_tree.unflatten(leaves)
    return args, kwargs


def _from_factory(name: str, path: str) -> zoo.Network:
    from torch import nn

    factory = find_factory(name, path)
    try:
        made = factory()
    except SutureError:
        raise
    except Exception as error:
        raise ConfigError(
            f"model {name}: factory {path} failed: {where_it_failed(error, factory)}"
        ) from error
    if isinstance(made, zoo.Network):
        made.module.eval()
        return made
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not isinstance(made[0], nn.Module):
        raise ConfigError(
            f"model {name}: factory {path} must return (module, args), (module, args, kwargs) or a "
            f"shared.zoo.Network, not {_describe(made)}"
        )
    module, args, *rest = made
    kwargs = rest[0] if rest else {}
    if not isinstance(args, tuple):
        raise ConfigError(
            f"model {name}: factory {path} returned {_describe(args)} as example arguments; "
            "they must be a tuple: (x,) for one input"
        )
    if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
        raise ConfigError(
            f"model {name}: factory {path} returned {_describe(kwargs)} as example keyword arguments; "
            "they must be a dict with names as keys"
        )
    return zoo.Network(name, module.eval(), args, kwargs)


def find_factory(name: str, path: str) -> Callable[[], object]:
    """What ``path``, as in ``package.module:function``, names.

    Raises ConfigError, of the model ``name``, for a module that is not there or fails on import and for
    an attribute that is not there or cannot be called.
    """
    module_name, _, attribute = path.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"model {name}: importing {module_name} for factory {path} failed: {where_it_failed(error)}"
            ) from error
        raise ConfigError(
            f"model {name}: there is no module {error.name!r} for factory {path}; install it, or add its "
            "directory to PYTHONPATH"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"model {name}: importing {module_name} for factory {path} failed: {where_it_failed(error)}"
        ) from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ConfigError(
                f"model {name}: module {module_name} has no {attribute!r}; "
                f"it has {', '.join(_public_callables(found)) or 'nothing that can be called'}"
            ) from error
    if not callable(found):
        raise ConfigError(
            f"model {name}: {path} is {_describe(found)}, which cannot be called; name a function there"
        )
    return found


def _public_callables(owner: object) -> list[str]:
    home = getattr(owner, "__name__", None)
    return [
        name
        for name, value in getattr(owner, "__dict__", {}).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == home
    ]


def _describe(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(item).__name__ for item in value)})"
    return f"a value of type {type(value).__name__}"


def where_it_failed(error: Exception, factory: object = None) -> str:
    """The error and the line to look at.

    That is the innermost line in the factory's own file; where there is none, because the call itself
    failed, the factory's first line; and for a module that failed on import the innermost line of it.
    """
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    place = ""
    code = getattr(factory, "__code__", None)
    if isinstance(code, CodeType):
        frames = [frame for frame in frames if frame.filename == code.co_filename]
        place = f" ({code.co_filename}:{code.co_firstlineno})"
    if frames:
        place = f" ({frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})"
    return f"{type(error).__name__}: {error}{place}"
