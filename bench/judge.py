"""Whether an answer is right: against eager PyTorch, which shares no code with the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.candidates import codecs_in
from edge_agent.result import Result
from shared import zoo
from shared.codec import Codec, Form

__all__ = ["BOUND", "Judge"]

BOUND = {Form.EXACT: 1e-4, Form.HALF: 1e-2, Form.UINT8: 0.15, Form.INT4: 0.5} | {
    form: 1.0 for form in Form if form.is_transform
}
"""Greatest error of an answer over its greatest value, by what the codec keeps."""


class Judge:
    """What eager PyTorch says of the example of each of these networks of the zoo."""

    def __init__(self, networks: Sequence[str]) -> None:
        import torch

        self._expected: dict[str, list[np.ndarray[Any, Any]]] = {}
        self._labelled: dict[str, bool] = {}
        with torch.inference_mode():
            for name in networks:
                network = zoo.build(name)
                self._expected[name] = _leaves(network.module(*network.args, **network.kwargs))
                self._labelled[name] = network.labels is not None

    def complaint(self, name: str, result: Result) -> str:
        """What is wrong with an answer; '' when nothing is."""
        known = {codec.label: codec.form for codec in Codec}
        forms = {known.get(label, Form.EXACT) for label in codecs_in(result.codec)}  # raw, or nothing sent
        bound = max(BOUND.values() if result.codec.startswith("mixed") else map(BOUND.__getitem__, forms))
        pairs = list(zip(_leaves(result.outputs), self._expected[name], strict=True))
        error = max(float(np.abs(ours - true).max() / np.abs(true).max()) for ours, true in pairs)
        where = f"{name} cut at {result.cut} in {result.codec or 'no codec'}"
        if not error <= bound:
            return f"{where}: an answer is off by {error:.2g} of its greatest value"
        if self._labelled[name] and any(ours.argmax() != true.argmax() for ours, true in pairs):
            return f"{where}: another class than the whole network's"
        return ""


def _leaves(tree: Any) -> list[np.ndarray[Any, Any]]:
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in _leaves(tree[key])]
    if isinstance(tree, list | tuple):
        return [leaf for each in tree for leaf in _leaves(each)]
    return [np.asarray(tree)]
