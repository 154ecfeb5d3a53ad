"""The equality bench finds what it claims to find, and its judge is not the program it judges."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from bench import equality
from shared import zoo
from shared.graph.capture import capture


def test_the_json_names_every_network_and_holds_the_targets(tmp_path: Path) -> None:
    path = tmp_path / "equality.json"
    assert equality.main(["--model", "mnist", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    (row,) = document["rows"]
    assert row["network"] == "mnist"
    assert row["tried"] == row["bit_equal"] == row["cuts"] > 5
    assert all(target["met"] for target in document["targets"])


def test_a_network_that_changed_after_capture_is_found_unequal() -> None:
    network = zoo.build("senna-pos")
    captured = capture(network.module, network.args, network.kwargs, name="senna-pos")
    key, weight = [(key, item) for key, item in captured.weights.items() if "bias" in key][-1]
    nudged = weight.detach().clone()
    nudged += 1e-5  # on every logit
    found = equality.compare(
        network, dataclasses.replace(captured, weights={**captured.weights, key: nudged})
    )
    assert found.bit_equal < found.tried
    assert found.unequal


def test_float64_is_the_same_network() -> None:
    network = zoo.build("mnist")
    precise = equality.in_float64(capture(network.module, network.args, network.kwargs, name="mnist"))
    assert {weight.dtype for weight in precise.weights.values()} == {torch.float64}


def test_an_unknown_network_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as caught:
        equality.main(["--model", "nothing"])
    assert caught.value.code == 2
