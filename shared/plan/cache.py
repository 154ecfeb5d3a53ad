"""Files of the cache directory: what was measured once and is read again at the next start."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["keep", "write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, and its directory if need be; a reader sees the old content or the new one, never a
    part.  Raises OSError when it cannot be written, and leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.stem}-", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.close()
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def keep(path: Path, content: bytes, what: str) -> str | None:
    """As :func:`write_whole`, but returns a warning that names ``what`` when that is not possible: it then
    serves this run only."""
    try:
        write_whole(path, content)
    except OSError as error:
        return f"{what} is not kept: cannot write {path.parent} ({error.strerror or error})"
    return None
