"""Bundles come back with the same digest and the same bits; damaged and hostile ones are refused."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.errors import BundleError
from shared.graph import CapturedModel, load, load_bundle, read_bundle, save_bundle
from shared.graph.allowed import ALLOWED_OPERATORS
from shared.graph.calls import overload
from shared.graph.capture import capture
from shared.graph.digest import graph_digest
from shared.graph.operators import is_view
from shared.graph.parse import parse_graph
from tests.shared.graph import hard_networks
from tests.shared.graph.shipping import eager, same_bits


@functools.cache
def captured(name: str) -> CapturedModel:
    module, args, kwargs = hard_networks.build(name)
    return capture(module, args, kwargs, name=name)


@pytest.mark.parametrize("name", hard_networks.NAMES)
def test_a_bundle_comes_back_the_same(name: str, tmp_path: Path) -> None:
    module, args, kwargs = hard_networks.build(name)
    save_bundle(captured(name), tmp_path, example=(args, kwargs))
    bundle = read_bundle(tmp_path)
    assert bundle.captured.graph == captured(name).graph
    assert bundle.example is not None
    program = load(bundle.captured, mode="exact")
    leaves = program.graph.flatten(*bundle.example)
    assert all(map(same_bits, program(leaves), eager(module, args, kwargs)))


def test_labels_and_input_form_come_back(tmp_path: Path) -> None:
    save_bundle(captured("split"), tmp_path, labels=["cat", "dog", "a\nb", "ü"], input_form="image")
    bundle = read_bundle(tmp_path)
    assert (bundle.labels, bundle.input_form, bundle.example) == (("cat", "dog", "a\nb", "ü"), "image", None)


def test_saving_again_replaces_the_bundle(tmp_path: Path) -> None:
    save_bundle(captured("split"), tmp_path)
    save_bundle(captured("tied"), tmp_path)
    assert load_bundle(tmp_path).graph == captured("tied").graph


def test_loading_imports_no_export_machinery(tmp_path: Path) -> None:
    save_bundle(captured("residual"), tmp_path)
    code = (
        "import sys; from shared.graph import load_bundle, load; load(load_bundle(sys.argv[1]));"
        "print('shared.graph.capture' in sys.modules, 'shared.graph.run' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]


class Special(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        return torch.special.bessel_j0(y)


def test_an_operator_outside_of_the_list_is_captured_but_not_saved(tmp_path: Path) -> None:
    special = capture(Special(), (torch.randn(1, 3),), name="special")
    with pytest.raises(
        BundleError, match=r"special_bessel_j0.*not allowed in a bundle\n.*test_bundle.py:\d+: return"
    ):
        save_bundle(special, tmp_path)
    assert not (tmp_path / "graph.json").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot write"):
        save_bundle(captured("split"), tmp_path / "file" / "below")


def test_every_allowed_operator_exists_and_is_functional() -> None:
    for target in sorted(ALLOWED_OPERATORS):
        schema = overload(target)._schema
        assert not schema.is_mutable, target
        aliasing = any(argument.alias_info is not None for argument in schema.arguments)
        assert not aliasing or is_view(target) or target in MAY_ALIAS, target


# These return their argument itself when there is nothing to do; that is no way to write to it.
MAY_ALIAS = {
    "aten.contiguous.default", "aten.movedim.int", "aten.movedim.intlist", "aten.swapaxes.default",
    "aten.unfold.default", "aten.view.dtype",
}  # fmt: skip


Change = Callable[[dict[str, Any]], object]


def _op(graph: dict[str, Any], target: str) -> dict[str, Any]:
    ops = [*graph["preamble"], *(op for unit in graph["units"] for op in unit["ops"])]
    found: dict[str, Any] = next(op for op in ops if target in op["target"])
    return found


def _set(path: list[Any], value: Any) -> Change:
    def change(graph: dict[str, Any]) -> None:
        for key in path[:-1]:
            graph = graph[key]
        graph[path[-1]] = value

    return change


ATTACKS: dict[str, tuple[Change, str]] = {
    "another format": (_set(["format"], "suture-graph-99"), "format 'suture-graph-99'"),
    "an unknown field": (_set(["hook"], "os.system"), "unknown field"),
    "a missing field": (lambda graph: graph.pop("outputs"), "missing required field"),
    "a field of another type": (_set(["inputs"], "0"), "Expected `array`"),
    "an operator that writes files": (
        _set(["units", 0, "ops", 0, "target"], "aten.save.default"),
        "not allowed",
    ),
    "an operator that changes its argument": (
        lambda graph: _op(graph, "relu").update(target="aten.relu_.default"),
        "not allowed",
    ),
    "an operator of another library": (
        _set(["units", 0, "ops", 0, "target"], "os.system.default"),
        "operator 'os.system.default' is not allowed",
    ),
    "dunder names": (_set(["units", 0, "ops", 0, "target"], "aten.__class__.default"), "not allowed"),
    "an overload that does not exist": (
        _set(["units", 0, "ops", 0, "target"], "aten.conv2d.evil"),
        "not allowed",
    ),
    "a dtype by another name": (
        lambda graph: _op(graph, "conv2d")["args"].append({"dtype": "serialization"}),
        "an argument of aten.conv2d.default is",
    ),
    "an argument with two tags": (
        lambda graph: _op(graph, "conv2d")["args"].append({"slot": 0, "batch": [1, 1]}),
        "an argument of aten.conv2d.default is",
    ),
    "a slot that is not there": (
        lambda graph: _op(graph, "conv2d")["args"].__setitem__(0, {"slot": 99_999}),
        "reads slot 99999 before it is written",
    ),
    "a negative slot": (
        lambda graph: _op(graph, "conv2d")["args"].__setitem__(0, {"slot": -2}),
        "an argument of aten.conv2d.default is",
    ),
    "a slot that is read before it is written": (
        lambda graph: graph["units"].insert(0, graph["units"].pop()),
        "before it is written",
    ),
    "a slot that is written twice": (
        lambda graph: graph["units"][-1]["ops"][-1].update(outputs=_op(graph, "conv2d")["outputs"]),
        "with each written once",
    ),
    "an operator without outputs": (lambda graph: _op(graph, "relu").update(outputs=[]), "writes nothing"),
    "more outputs than results": (
        lambda graph: graph["units"][-1]["ops"][-1]["outputs"].append(-1),
        "cannot run on what the graph gives it",
    ),
    "an output that nothing writes": (_set(["outputs", 0], 7_777), "an output is a slot that nothing writes"),
    "a batch of nothing": (_set(["captured_batch"], 0), "captured batch of 0"),
    "no units": (_set(["units"], []), "without units"),
    "an empty unit": (_set(["units", 2, "ops"], []), "before it is written|does not read and write"),
    "a unit that reads otherwise": (_set(["units", 1, "reads"], []), "unit 1 .* does not read and write"),
    "a weight listed twice": (lambda graph: graph["weights"].append(graph["weights"][0]), "listed twice"),
    "two slots of one key": (
        lambda graph: graph["weights"][1].__setitem__(1, graph["weights"][0][1]),
        "listed twice",
    ),
    "a gradient of nothing": (_set(["grad_weights"], [0]), "names slots that are no weights"),
    "a size that is wrong": (
        lambda graph: graph["values"][-1].__setitem__(3, [[1, 0], [0, 6]]),
        "where the graph says",
    ),
    "a negative size": (lambda graph: graph["values"][0].__setitem__(3, [[-1, 0]] * 4), "negative size"),
    "an enormous size": (
        lambda graph: graph["values"][0].__setitem__(3, [[1, 0], [0, 2**20], [0, 2**20], [0, 3]]),
        "larger than",
    ),
    "an order that is none": (lambda graph: graph["values"][0].__setitem__(4, [0, 0, 1, 2]), "in order"),
    "a dtype that cannot travel": (
        lambda graph: graph["values"][0].__setitem__(2, "complex64"),
        "dtype 'complex64'",
    ),
    "a value described twice": (lambda graph: graph["values"].append(graph["values"][0]), "described twice"),
    "a value not described": (lambda graph: graph["values"].pop(), "has no entry in values"),
    "a layout of another rank": (_set(["layouts"], [[0, [[0, 1]]]]), "slot 0 has a layout of 1 numbers"),
    "a layout over all of memory": (
        _set(["layouts"], [[0, [[0, 0], [0, 1], [0, 2**38], [0, 1], [0, 1]]]]),
        "negative or too large",
    ),
    "a layout that goes backwards": (
        _set(["layouts"], [[0, [[0, 0], [0, 1], [0, -1], [0, 1], [0, 1]]]]),
        "negative or too large",
    ),
    "a tree with another number of leaves": (_set(["output_tree"], {"kind": "tuple"}), "number of leaves"),
    "a tree of no arguments": (_set(["input_tree"], {"kind": "leaf"}), "positional and keyword arguments"),
    "arguments nested without end": (
        lambda graph: _op(graph, "conv2d")["args"].append([[[[[[1]]]]]]),
        "nested too deeply",
    ),
    "a number beyond 64 bits": (
        lambda graph: _op(graph, "conv2d")["args"].append(2**70),
        "64 bits|not a graph",
    ),
    "an argument of another type": (
        lambda graph: _op(graph, "conv2d")["args"].__setitem__(3, "stride"),
        "aten.conv2d.default cannot run on what the graph gives it",
    ),
    "a keyword that is none": (
        lambda graph: _op(graph, "relu")["kwargs"].update(out=1),
        "aten.relu.default cannot run",
    ),
    "another digest": (_set(["digest"], "sha256:" + "0" * 64), "the digest is sha256:"),
    "another constant under the old digest": (
        lambda graph: _op(graph, "batch_norm")["args"].__setitem__(6, 0.5),
        "the digest is sha256:",
    ),
    "another name of a unit under the old digest": (_set(["units", 0, "name"], "x"), "the digest is sha256:"),
}


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("residual")
    _, args, kwargs = hard_networks.build("residual")
    save_bundle(captured("residual"), path, example=(args, kwargs))
    return path


@pytest.fixture
def bundle(residual: Path, tmp_path: Path) -> Path:
    for item in residual.iterdir():
        (tmp_path / item.name).write_bytes(item.read_bytes())
    load_bundle(tmp_path)
    return tmp_path


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_changed_graph_is_refused(attack: str, bundle: Path) -> None:
    change, reason = ATTACKS[attack]
    path = bundle / "graph.json"
    graph = json.loads(path.read_text())
    change(graph)
    path.write_text(json.dumps(graph))
    with pytest.raises(BundleError, match=reason) as caught:
        load_bundle(bundle)
    assert str(bundle) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a graph"),
        ("[]", "not a graph"),
        ("{" * 100_000, "not a graph"),
        ('{"input_tree":' + '{"kind":"tuple","children":[' * 5_000, "not a graph"),
        ("\0\xff", "not a graph"),
    ],
    ids=["empty", "list", "braces", "deep", "bytes"],
)
def test_what_is_not_a_graph_is_refused(text: str, reason: str, bundle: Path) -> None:
    (bundle / "graph.json").write_text(text, encoding="latin-1")
    with pytest.raises(BundleError, match=reason):
        load_bundle(bundle)


def test_memory_is_not_allocated_for_what_a_graph_only_claims(bundle: Path) -> None:
    graph = json.loads((bundle / "graph.json").read_text())
    pad = {"target": "aten.zeros.default", "args": [[2**31, 2**10]], "kwargs": {}}
    slot = 1 + max(entry[0] for entry in graph["values"])
    graph["preamble"].append({**pad, "outputs": [slot]})
    (bundle / "graph.json").write_text(json.dumps(graph))
    with pytest.raises(BundleError, match=r"aten.zeros.default makes a tensor of 2199023255552 elements"):
        load_bundle(bundle)


def test_random_operators_are_refused_even_where_they_are_allowed_in_evaluation(bundle: Path) -> None:
    graph = json.loads((bundle / "graph.json").read_text())
    relu = _op(graph, "relu")
    relu.update(target="aten.dropout.default", args=[*relu["args"], 0.5, True])
    (bundle / "graph.json").write_text(json.dumps(graph))
    with pytest.raises(BundleError, match="draws random numbers"):
        load_bundle(bundle)


def _drop(weights: dict[str, Tensor]) -> None:
    weights.pop("head.weight")


def _add(weights: dict[str, Tensor]) -> None:
    weights["more"] = torch.zeros(3)


def _reshape(weights: dict[str, Tensor]) -> None:
    weights["head.weight"] = weights["head.weight"].reshape(-1)


def _double(weights: dict[str, Tensor]) -> None:
    weights["head.weight"] = weights["head.weight"].double()


def _nudge(weights: dict[str, Tensor]) -> None:
    weights["head.weight"].view(-1)[3] += 1e-6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_drop, "lacks, or should not have, 'head.weight'"),
        (_add, "lacks, or should not have, 'more'"),
        (_reshape, r"'head.weight' is not float32 \(5, 16\)"),
        (_double, r"'head.weight' is not float32 \(5, 16\)"),
        (_nudge, "the digest is sha256:"),
    ],
)
def test_changed_weights_are_refused(
    change: Callable[[dict[str, Tensor]], None], reason: str, bundle: Path
) -> None:
    path = bundle / "weights.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(BundleError, match=reason):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["graph.json", "weights.safetensors"])
def test_a_missing_file_is_named(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"cannot read {name}: No such file"):
        load_bundle(bundle)


@pytest.mark.parametrize("size", [0, 7, 8, 200, -1])
def test_truncated_weights_are_refused(size: int, bundle: Path) -> None:
    path = bundle / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BundleError, match="not a safetensors file"):
        load_bundle(bundle)


def test_a_changed_example_is_refused(bundle: Path) -> None:
    save_file({"0": torch.zeros(2, 3, 12, 12)}, bundle / "example.safetensors")
    with pytest.raises(BundleError, match=r"example.safetensors: '0' is not float32 \(1, 3, 12, 12\)"):
        load_bundle(bundle)


def test_unknown_facts_beside_the_network_are_refused(bundle: Path) -> None:
    (bundle / "about.json").write_text('{"input_form": "image", "run": "rm"}')
    with pytest.raises(BundleError, match=r"about.json: .*unknown field"):
        load_bundle(bundle)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_graph_is_an_error_or_another_digest(data: st.DataObject, residual: Path) -> None:
    """Replace or remove anything anywhere: only BundleError leaves the parser."""
    original = json.loads((residual / "graph.json").read_text())
    document = copy.deepcopy(original)
    place: Any = document
    while True:
        keys = list(range(len(place))) if isinstance(place, list) else sorted(place)
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (list, dict)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    if data.draw(st.booleans()):
        del place[key]
    else:
        scalars = st.none() | st.booleans() | st.integers(-3, 2**65) | st.floats() | st.text(max_size=5)
        place[key] = data.draw(scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(), scalars))
    try:
        graph = parse_graph(json.dumps(document).encode())
    except BundleError:
        return
    if document != original and graph.name == original["name"] and graph.digest == original["digest"]:
        assert graph.units != captured("residual").graph.units or graph != captured("residual").graph
        weights = captured("residual").weights
        if set(graph.weights.values()) <= set(weights):
            assert graph_digest(graph, weights) != graph.digest
