"""What the commands write is what the agent reads."""

from __future__ import annotations

from pathlib import Path

from edge_agent.commands import write_bundle
from shared.config import ModelSource
from shared.models import resolve


def test_a_bundle_keeps_what_is_known_about_using_the_network(tmp_path: Path) -> None:
    source = ModelSource(name="digits", factory="tests.edge_agent.edge_networks:digits")
    assert str(tmp_path / "out") in write_bundle(source, tmp_path / "out")
    original, kept = resolve(source), resolve(ModelSource(name="digits", bundle=tmp_path / "out"))
    assert kept.captured.graph.digest == original.captured.graph.digest
    assert (kept.labels, kept.input_form) == (original.labels, original.input_form)
    assert (kept.labels, kept.input_form) == (("zero", "one", "two", "three", "four"), "image")
    assert (kept.example[0][0] == original.example[0][0]).all()
