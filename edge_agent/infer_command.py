"""``edge-agent infer``: files through a running agent, and what the network says of them.  No torch."""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edge_agent.client import Client
from edge_agent.input_files import read_input
from edge_agent.result import Result
from shared.errors import InputMismatchError, UnknownModelError

__all__ = ["infer_files"]

_WIDEST = 200


async def infer_files(
    client: Client,
    name: str,
    files: Sequence[Path],
    *,
    deadline_ms: float | None = None,
    objective: str | Mapping[str, Any] | None = None,
    best: int = 3,
    as_json: bool = False,
) -> str:
    """The text to print: for each file, in order, the ``best`` classes or the outputs' shapes, and where the
    time went.

    Raises UnknownModelError for a network that the agent has not, InputMismatchError for one that takes more
    than one tensor, ConfigError for a file, and what ``infer`` raises.
    """
    model = _known(await client.status(with_labels=True), name)
    if len(model["inputs"]) != 1:
        raise InputMismatchError(
            f"{name} takes {len(model['inputs'])} tensors, and a file is one; call it from a program"
        )
    (form,) = model["inputs"]
    found = []
    for path in files:
        result = await client.infer(
            name,
            read_input(path, form["dtype"], form["shape"]),
            deadline_ms=deadline_ms,
            objective=objective,
        )
        found.append(_described(path, result, model["labels"], best))
    return json.dumps(found) if as_json else _table(name, found)


def _known(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    models: dict[str, Mapping[str, Any]] = {model["name"]: model for model in status["models"]}
    if name not in models:
        near = difflib.get_close_matches(name, models, n=3) or list(models)
        raise UnknownModelError(f"the agent has no network {name!r}; did you mean {' or '.join(near)}?")
    return models[name]


def _described(path: Path, result: Result, labels: Sequence[str] | None, best: int) -> dict[str, Any]:
    scores = _scores(result.outputs)
    classes = None
    if scores is not None:
        ranked = np.argsort(-scores, kind="stable")[:best]
        classes = [
            {
                "class": int(index),
                "label": labels[index] if labels is not None and index < len(labels) else None,
                "share": float(scores[index]),
            }
            for index in ranked
        ]
    return {
        "file": str(path),
        "best": classes,
        "outputs": _shapes(result.outputs),
        "where": str(result.where),
        "cut": result.cut,
        "codec": result.codec,
        "uplink_bytes": result.uplink_bytes,
        "latency_ms": result.latency_ms,
        "breakdown": dict(result.breakdown),
        "fallback": result.fallback,
        "energy_mj": result.energy_mj,
        "meter": result.meter,
    }


def _scores(outputs: Any) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Softmax over what looks like one row of a classifier's logits; None for everything else."""
    if not isinstance(outputs, np.ndarray) or outputs.ndim != 2 or outputs.shape[0] != 1:
        return None
    if outputs.shape[1] < 2 or not np.issubdtype(outputs.dtype, np.floating):
        return None
    row = outputs[0].astype(np.float64)
    powers = np.exp(row - row.max())
    shares: np.ndarray[Any, np.dtype[np.float64]] = powers / powers.sum()
    return shares


def _shapes(outputs: Any) -> Any:
    if isinstance(outputs, np.ndarray):
        return f"{outputs.dtype} {' x '.join(map(str, outputs.shape))}"
    if isinstance(outputs, Mapping):
        return {key: _shapes(value) for key, value in outputs.items()}
    if isinstance(outputs, tuple | list):
        return [_shapes(value) for value in outputs]
    return outputs


def _table(name: str, found: Sequence[Mapping[str, Any]]) -> str:
    table = Table(title=name, title_justify="left")
    for column in ("file", "answer", "ran", "cut", "codec"):
        table.add_column(column)
    for column in ("sent kB", "ms"):
        table.add_column(column, justify="right")
    for each in found:
        table.add_row(
            each["file"],
            str(each["outputs"]) if each["best"] is None else "\n".join(map(_class, each["best"])),
            each["where"] + (f" ({each['fallback']})" if each["fallback"] else ""),
            each["cut"],
            each["codec"] or "-",
            f"{each['uplink_bytes'] / 1000:.1f}",
            f"{each['latency_ms']:.1f}",
        )
    console = Console(file=io.StringIO(), width=_WIDEST, highlight=False)
    console.print(table)
    printed = console.file
    assert isinstance(printed, io.StringIO)
    return printed.getvalue().rstrip()


def _class(each: Mapping[str, Any]) -> str:
    return f"{each['share']:6.1%}  {each['label'] or each['class']}"
