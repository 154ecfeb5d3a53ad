"""Read a configuration, override it from the environment, and check it."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from shared.errors import ConfigError

__all__ = ["load_config", "parse_config"]

_ENV_PREFIX = "SUTURE_"
_MAX_FILE_BYTES = 2**20
_MAX_ERRORS = 20
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(cls: type[ConfigT], path: str | Path, environ: Mapping[str, str] = os.environ) -> ConfigT:
    """Read, override from the environment and check a YAML file.

    Raises ConfigError naming the file, the key and the next step.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {_MAX_FILE_BYTES} bytes, which no configuration is")
        text = data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    values = _from_yaml(text, str(path))
    return parse_config(cls, {} if values is None else values, str(path), environ)


def parse_config(
    cls: type[ConfigT], values: Any, origin: str, environ: Mapping[str, str] = os.environ
) -> ConfigT:
    """Check plain values as read from YAML; ``origin`` names them in errors.  Raises ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError(f"{origin} must hold a mapping of keys to values, not a {type(values).__name__}")
    try:
        return cls.model_validate(_overridden(cls, values, environ))
    except ValidationError as error:
        found = error.errors()
        lines = [f"  {_dotted(item['loc'])}: {_plainly(item)}" for item in found[:_MAX_ERRORS]]
        if len(found) > _MAX_ERRORS:
            lines.append(f"  and {len(found) - _MAX_ERRORS} more")
        raise ConfigError(f"{origin} is not valid:\n" + "\n".join(lines)) from error


def _from_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not YAML: {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        # What PyYAML's constructors raise on a tag with a value that it does not fit, or on deep nesting.
        raise ConfigError(f"{origin} has a value that YAML cannot read: {error!r}") from error


def _overridden(cls: type[BaseModel], values: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    merged = dict(values)
    for variable in sorted(environ):
        path = variable.removeprefix(_ENV_PREFIX).lower().split("__")
        if not variable.startswith(_ENV_PREFIX) or path[0] not in cls.model_fields:
            continue
        section = merged
        for key in path[:-1]:
            inner = section.get(key) or {}
            if not isinstance(inner, dict):
                raise ConfigError(f"{variable} overrides a key of {key}, which is a {type(inner).__name__}")
            section[key] = dict(inner)
            section = section[key]
        section[path[-1]] = _from_yaml(environ[variable], f"the environment variable {variable}")
    return merged


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part)[:80] for part in location) or "(top level)"


def _plainly(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "unknown key; remove it, or compare with the commented files in configs/"
    if item["type"] == "missing":
        return "is required"
    # Aliases make a few lines of YAML stand for billions of values: never all of them in one text.
    return f"{item['msg'].removeprefix('Value error, ')} (got {_SHORT.repr(item['input'])})"
