"""What every section of a configuration has in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

__all__ = ["KeyPath", "Section", "default_cache", "require_unique"]


class Section(BaseModel):
    """Unknown keys are errors, and values stay as they were read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _absolute(path: Path) -> Path:
    # Ray's workers have another working directory than whoever wrote the path.
    return path.expanduser().absolute()


KeyPath = Annotated[Path, AfterValidator(_absolute)]


def default_cache() -> Path:
    """Where profiles and the like are kept unless something else is configured."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "suture"


def require_unique(names: list[str]) -> None:
    """Raises ValueError that lists the names given more than once."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"models named more than once: {', '.join(repeated)}")
