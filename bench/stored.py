"""Runs that were kept: the documents of benches, and what each says of itself."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "Stored", "load_results", "origin", "question"]

_HERE = Path(__file__).parent
RESULTS = _HERE / "results"


@dataclass(frozen=True, slots=True)
class Stored:
    """One run: the document that :meth:`bench.contract.Bench.document` wrote."""

    name: str
    document: Mapping[str, Any]


def load_results(folder: Path) -> list[Stored]:
    """Every run in a folder, by name.  Raises ValueError for a file that is no bench's."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        missing = {"bench", "date", "machine", "targets", "rows"} - set(document)
        if missing:
            raise ValueError(f"{path} is no bench's: it lacks {', '.join(sorted(missing))}")
        found.append(Stored(document["bench"], document))
    return found


def question(name: str) -> str:
    """What a bench asks: the first line of the bench's own docstring."""
    path = _HERE / f"{name}.py"
    if not path.is_file():
        return ""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].partition("  ``")[0].replace("  ", " ")


def origin(document: Mapping[str, Any]) -> str:
    """When and on what it ran, and of which commit."""
    machine = document["machine"]
    quick = ", a smoke test only" if document.get("quick") else ""
    commit = (document.get("commit") or "unknown")[:12]
    return (
        f"{document['date'][:10]} on {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['memory_gib']} GiB, commit {commit}{quick}"
    )
