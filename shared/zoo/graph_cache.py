"""Graphs of zoo networks, kept between starts.

Capturing a deep network takes seconds, on a small device tens of them; reading its graph back takes
milliseconds, and the weights are built from their seed either way.  Measured with efficientnet-lite0
in a fresh process: 3.6 s to resolve without the cache, 0.6 s with it.

A file is used only if its digest is that of its graph over the weights just built, and its name holds
torch's version and the sources of the zoo and of capturing, so that a change of any of them captures
anew.  Reading one runs no code from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path

import torch

import shared.graph
from shared.errors import BundleError
from shared.graph.capture import capture
from shared.graph.captured import CapturedModel
from shared.graph.digest import graph_digest
from shared.graph.document import graph_document
from shared.graph.ir import Graph
from shared.graph.parse import parse_graph
from shared.zoo import Network

__all__ = ["cached_capture"]

_log = logging.getLogger(__name__)


def cached_capture(network: Network, cache_dir: Path) -> CapturedModel:
    """Like :func:`shared.graph.capture.capture` under the network's own name.

    A cache that cannot be read or written costs time and a warning, nothing else.  Raises CaptureError
    as capturing does.
    """
    path = cache_dir / "graphs" / f"{network.name}-{_sources_digest()}.json"
    weights = network.module.state_dict()
    kept = _read(path, weights)
    if kept is not None:
        return kept
    captured = capture(network.module, network.args, network.kwargs, name=network.name)
    _write(path, captured.graph)
    return captured


def _read(path: Path, weights: dict[str, torch.Tensor]) -> CapturedModel | None:
    try:
        graph = parse_graph(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, BundleError) as error:
        _log.warning("the graph kept in %s is of no use, capturing again: %s", path, error)
        return None
    used = {key: weights[key] for key in graph.weights.values() if key in weights}
    if len(used) < len(graph.weights) or graph_digest(graph, used) != graph.digest:
        _log.warning("the graph kept in %s is not this network's, capturing again", path)
        return None
    return CapturedModel(graph, used)


def _write(path: Path, graph: Graph) -> None:
    document = {**graph_document(graph), "name": graph.name, "digest": graph.digest}
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(document), encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)  # on a full disk, what there is of it
        _log.warning("cannot keep the graph of %s in %s: %s", graph.name, path, error)


def _sources_digest() -> str:
    """Of everything that decides what capturing a zoo network gives."""
    total = hashlib.sha256(torch.__version__.encode())
    for package in (Path(__file__).parent, Path(shared.graph.__file__).parent):
        for source in sorted(package.glob("*.py")):
            total.update(f"\n{source.name}\n".encode())
            total.update(source.read_bytes())
    return total.hexdigest()[:16]
