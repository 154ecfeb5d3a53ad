from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from shared import zoo
from shared.config import ModelSource
from shared.graph import load
from shared.graph.captured import CapturedModel
from shared.models import resolve
from shared.zoo import graph_cache
from shared.zoo.graph_cache import cached_capture


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the networks that were really captured."""
    names: list[str] = []
    real = graph_cache.capture

    def counted(module: torch.nn.Module, args: object, kwargs: object, *, name: str) -> CapturedModel:
        names.append(name)
        return real(module, args, kwargs, name=name)  # type: ignore[arg-type]

    monkeypatch.setattr(graph_cache, "capture", counted)
    return names


def _kept(cache_dir: Path) -> Path:
    (path,) = cache_dir.glob("graphs/*")
    return path


def test_the_second_time_nothing_is_captured_and_the_answer_is_the_same(
    tmp_path: Path, captures: list[str]
) -> None:
    first = resolve(ModelSource(name="tagger", zoo="senna-ner"), tmp_path)
    assert captures == ["senna-ner"]
    second = resolve(ModelSource(name="other", zoo="senna-ner"), tmp_path)
    assert captures == ["senna-ner"]
    assert second.captured.graph.digest == first.captured.graph.digest
    assert (first.captured.graph.name, second.captured.graph.name) == ("tagger", "other")
    answers = []
    for model in (first, second):
        program = load(model.captured)
        state = program.start(program.graph.flatten(*model.example))
        program.run(state, range(len(program.graph.units)))
        answers.append(*program.outputs(state).values())
    assert torch.equal(*answers)


@pytest.mark.parametrize("damage", ["not JSON", "another weight", "another operator", "unknown weight"])
def test_a_kept_graph_that_is_not_the_networks_is_captured_again(
    tmp_path: Path, captures: list[str], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    network = zoo.build("senna-pos")
    good = cached_capture(network, tmp_path)
    path = _kept(tmp_path)
    document = path.read_text()
    if damage == "not JSON":
        path.write_text(document[:-10])
    elif damage == "another operator":
        path.write_text(document.replace("aten.hardtanh.default", "aten.relu.default"))
    elif damage == "unknown weight":
        path.write_text(document.replace('"tags.bias"', '"no.bias"'))
    else:
        network.module.get_parameter("tags.bias").add_(1)
    with caplog.at_level(logging.WARNING):
        again = cached_capture(network, tmp_path)
    assert captures == ["senna-pos", "senna-pos"]
    assert "capturing again" in caplog.text
    assert (again.graph.digest == good.graph.digest) == (damage != "another weight")
    assert json.loads(_kept(tmp_path).read_text())["digest"] == again.graph.digest


def test_other_sources_or_another_torch_capture_anew(
    tmp_path: Path, captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = zoo.build("senna-pos")
    cached_capture(network, tmp_path)
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    cached_capture(network, tmp_path)
    assert captures == ["senna-pos", "senna-pos"]
    assert len(list(tmp_path.glob("graphs/*.json"))) == 2


def test_a_cache_that_cannot_be_written_is_only_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "graphs").write_text("a file where the directory should be")
    with caplog.at_level(logging.WARNING):
        captured = cached_capture(zoo.build("senna-pos"), tmp_path)
    assert captured.graph.name == "senna-pos"
    assert "cannot keep the graph" in caplog.text
