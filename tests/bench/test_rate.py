from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import rate
from bench.rate_judge import Point, bytes_at_agreement, bytes_at_divergence
from bench.rate_senders import by_codec, by_transform, fit_all, through_image
from bench.rate_subjects import Subject
from shared.codec import Codec
from shared.graph.capture import capture


class Narrowing(nn.Module):
    """Fewer elements after each convolution, and a residual across the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.last = nn.Linear(12, 6)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.first(image.float() / 64 - 2).relu()
        x = x + self.second(x)
        scores: torch.Tensor = self.last(self.third(x).relu().mean((2, 3)))
        return scores * 8


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(3)
    coarse = torch.rand(18, 3, 6, 6, generator=torch.Generator().manual_seed(4))
    images = (nn.functional.interpolate(coarse, (24, 24), mode="bilinear") * 255).to(torch.uint8)
    captured = capture(Narrowing().eval(), (images[:1],), name="narrowing")
    sources = [f"source {index // 2}" for index in range(18)]
    return Subject("narrowing", captured, images, sources, classifier=True, is_image=True)


def test_bytes_at_a_divergence_are_between_those_of_the_settings_around_it() -> None:
    points = [Point(0, 8000, 0.001, 1.0), Point(1, 4000, 0.01, 1.0), Point(2, 2000, 0.1, 0.9)]
    assert bytes_at_divergence(points, 0.01) == pytest.approx(4000)
    assert bytes_at_divergence(points, 0.01 * 10**0.5) == pytest.approx(4000 / 2**0.5)
    assert bytes_at_divergence(points, 0.5) == 2000
    assert bytes_at_divergence(points, 0.0001) is None
    assert bytes_at_divergence([Point(0, 900, 0.0, 1.0)], 0.01) == 900


def test_an_agreement_has_to_hold_for_all_larger_settings() -> None:
    points = [Point(0, 900, 0, 0.99), Point(1, 600, 0, 0.94), Point(2, 300, 0, 0.96)]
    assert bytes_at_agreement(points, 0.95) == 900
    assert bytes_at_agreement(points, 0.93) == 300
    assert bytes_at_agreement(points, 1.0) is None


def test_cuts_are_those_that_send_fewer_than_any_before_and_the_last_as_few(subject: Subject) -> None:
    graph = subject.captured.graph
    cuts = rate.hull_cuts(graph)
    sizes = [sum(spec.numel for spec in graph.live_specs(cut, 1)) for cut in cuts]
    assert cuts[0] is graph.cuts[0]
    assert sizes[1:] == sorted(sizes[1:], reverse=True)
    assert sizes[-1] <= 12 * 6 * 6
    assert graph.cuts[-1] not in cuts
    assert max(sizes[1:].count(size) for size in sizes[1:]) <= 2


def test_every_way_of_sending_gives_back_what_it_counts(subject: Subject) -> None:
    image = subject.inputs[:1]
    exact = by_codec([image], Codec.FLOAT32)
    assert exact.nbytes == image.numel()
    assert torch.equal(exact.tensors[0], image)
    file = through_image([image], "JPEG", {"quality": 95, "subsampling": "4:4:4"})
    assert (file.tensors[0].float() - image.float()).abs().mean() < 4
    tables = fit_all([subject.inputs, torch.zeros(18, 4, dtype=torch.int64)], None)
    assert tables[1] is None
    tokens = torch.arange(4)[None]
    fine, coarse = (by_transform([image, tokens], tables, step) for step in (0, 16))
    assert coarse.nbytes < fine.nbytes
    assert torch.equal(coarse.tensors[1], tokens)
    assert (fine.tensors[0].float() - image.float()).abs().mean() < 2


def test_the_bench_codes_no_input_by_tables_that_saw_its_source(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fitted: list[int] = []
    plain = rate.fit_all

    def watched(live, gradients, *rest):  # type: ignore[no-untyped-def]
        fitted.append(len(live[0]))
        if gradients is not None:
            assert len(gradients[0]) == 2 * len(live[0])
        return plain(live, gradients, *rest)

    monkeypatch.setattr(rate, "SUBJECTS", {"efficientnet-lite0": lambda *_: subject})
    monkeypatch.setattr(rate, "IMAGE_CODECS", {"JPEG 4:2:0": ("JPEG", (40, 95), lambda q: {"quality": q})})
    monkeypatch.setattr(rate, "measure_times", lambda bench: None)
    monkeypatch.setattr(rate, "fit_all", watched)
    path = tmp_path / "rate.json"
    assert rate.main(["--quick", "--cuts", "2", "--json", str(path)]) == 0
    assert fitted
    assert set(fitted) == {12}
    document = json.loads(path.read_text())
    rows = {(row["cut"], row["sent"]): row for row in document["rows"]}
    cut = next(row["cut"] for row in document["rows"] if row["sent"] == "transform")
    transform, bytewise = rows[cut, "transform"], rows[cut, "uint8+zstd"]
    assert len(transform["points"]) > 2
    assert transform["bytes_at_0.01"] < bytewise["points"][0]["nbytes"]
    assert [point["nbytes"] for point in transform["segments"]] == sorted(
        point["nbytes"] for point in transform["segments"]
    )
    assert transform["segments"][3]["divergence"] < transform["segments"][0]["divergence"]
    assert any(target["name"].startswith("coder above") for target in document["targets"])
