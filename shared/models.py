"""From what a person wrote in YAML to a captured network: zoo name, factory or bundle directory.

Device and cloud both resolve their models here, so that one source gives one digest.  Importing this
module costs no torch; resolving does.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared import zoo
from shared.config import ModelSource
from shared.errors import ConfigError, SutureError

if TYPE_CHECKING:
    from shared.graph import CapturedModel

__all__ = ["Example", "Model", "resolve"]

Example = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Model:
    """A captured network, and what is known about using it.

    ``example`` is one call, positional and keyword arguments: of batch 1 from the zoo and from bundles,
    as it was given from a factory.  ``labels`` names the classes of a classifier.
    """

    captured: CapturedModel
    labels: tuple[str, ...] | None
    example: Example
    input_form: zoo.InputForm


def resolve(source: ModelSource, cache_dir: Path | None = None) -> Model:
    """Build or load the network that ``source`` names, and capture it under ``source.name``.

    A factory takes no arguments and returns ``(module, args)``, ``(module, args, kwargs)`` or a
    :class:`shared.zoo.Network`, where args and kwargs are an example call; its module is put in eval
    mode.

    Raises UnknownModelError for a name that is not in the zoo, ConfigError for a factory that is not
    there or fails (naming the line), CaptureError for a network that cannot be cut, BundleError for a
    bundle that is damaged.  Takes seconds for a large network.
    """
    if source.factory is not None:
        network = _from_factory(source.name, source.factory)
    else:
        network = zoo.build(source.zoo or source.name)
    from shared.graph.capture import capture

    captured = capture(network.module, network.args, network.kwargs, name=source.name)
    return Model(captured, network.labels, (network.args, network.kwargs), network.input_form)


def _from_factory(name: str, path: str) -> zoo.Network:
    from torch import nn

    factory = _find_factory(name, path)
    try:
        made = factory()
    except SutureError:
        raise
    except Exception as error:
        raise ConfigError(f"model {name}: factory {path} failed: {_where(error, factory)}") from error
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


def _find_factory(name: str, path: str) -> Callable[[], object]:
    module_name, _, attribute = path.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"model {name}: importing {module_name} for factory {path} failed: {_where(error)}"
            ) from error
        raise ConfigError(
            f"model {name}: there is no module {error.name!r} for factory {path}; install it, or add its "
            "directory to PYTHONPATH"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"model {name}: importing {module_name} for factory {path} failed: {_where(error)}"
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
            f"model {name}: {path} is {_describe(found)}, which cannot be called; name a function that "
            "returns (module, args)"
        )
    return found


def _public_callables(owner: object) -> list[str]:
    home = getattr(owner, "__name__", None)
    return [
        name
        for name, value in vars(owner).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == home
    ]


def _describe(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(item).__name__ for item in value)})"
    return f"a value of type {type(value).__name__}"


def _where(error: Exception, factory: object = None) -> str:
    """The error and the line to look at: the innermost one in the factory's own file, if it has any."""
    frames = traceback.extract_tb(error.__traceback__)
    own_file = getattr(getattr(factory, "__code__", None), "co_filename", None)
    theirs = [frame for frame in frames if frame.filename == own_file]
    outside = [frame for frame in frames if "importlib" not in frame.filename]
    frame = (theirs or outside or list(frames))[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno}: {frame.line})"
