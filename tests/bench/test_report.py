"""The report: what it shows of a run, that it is whole in itself, and that the stored runs make one."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.report import main, page
from bench.report_plots import plots_of
from bench.stored import Stored, load_results

RESULTS = Path(report.__file__).parent / "results"


def document(**changes: Any) -> dict[str, Any]:
    return {
        "bench": "hop",
        "date": "2026-11-24T10:52:33+00:00",
        "quick": False,
        "problems": [],
        "commit": "5676f3f75e7bfe2b",
        "machine": {"cpu": "AMD EPYC", "cores": 2, "memory_gib": 7.8},
        "targets": [
            {"name": "p50 <of> suture", "value": 0.5, "unit": "x", "target": 0.25, "direction": "at_most",
             "met": False},
            {"name": "answers", "value": None, "unit": "", "target": 3, "direction": "at_least", "met": True},
        ],
        "rows": [
            {"activation": "1 kB", "path": "suture", "p50_ms": 1234.5, "samples_ms": [1.0]},
            {"activation": "1 kB", "path": "handle", "p50_ms": 3.0, "sound": True},
        ],
        **changes,
    }  # fmt: skip


class Checked(HTMLParser):
    """Collects what a browser would fetch, and the text of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#"):
                self.fetched.append(value)

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


def test_a_run_is_shown_with_its_origin_targets_and_rows() -> None:
    text = page([Stored("hop", document())])
    shown = Checked(text)
    assert "1 of 2" in shown.text
    assert "p50 <of> suture" in shown.text  # escaped, so that it is text again
    assert "missed" in shown.text
    assert "1,234" in shown.text or "1,235" in shown.text
    assert "-" in shown.text  # what was not measured
    assert any("2 cores of AMD EPYC" in part and "5676f3f75e7b" in part for part in shown.text)
    first_line = (Path(report.__file__).parent / "hop.py").read_text().splitlines()[0].strip('"')
    assert first_line in shown.text


def test_the_page_fetches_nothing() -> None:
    assert Checked(page([Stored("hop", document())])).fetched == []


def test_an_unsound_run_and_a_smoke_test_say_so() -> None:
    text = page([Stored("hop", document(problems=["an <answer> was wrong"], quick=True))])
    assert "not sound: an &lt;answer&gt; was wrong" in text
    assert "smoke test" in text


def test_a_bench_without_rows_or_plots_is_a_section_all_the_same() -> None:
    text = page([Stored("new", document(bench="new", rows=[], targets=[]))])
    assert '<h2 id="new">' in text
    assert "<figure>" not in text


def test_what_is_stored_in_this_tree_makes_a_page_with_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = load_results(RESULTS)
    assert {each.name for each in stored} >= {"equality", "hop", "overhead", "load", "regret"}
    assert main(["--out", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text()
    assert Checked(text).fetched == []
    targets = [target for each in stored for target in each.document["targets"]]
    met = sum(target["met"] for target in targets)
    assert f"{met} of {len(targets)} targets met" in capsys.readouterr().out
    assert len(re.findall("<figure>", text)) == sum(
        len(plots_of(each.name, each.document)) for each in stored
    )
    assert plots_of("regret", next(each.document for each in stored if each.name == "regret"))


def test_the_plots_of_a_trace_are_drawn_from_its_frames() -> None:
    frames = {"at_s": [0.0, 0.5], "ms": [10.0, 200.0], "place": ["a", "b"]}
    plots = plots_of("trace", document(rows=[{"policy": "suture", "frames": frames}]))
    assert len(plots) == 2
    assert all(plot.svg.startswith("<svg") and "suture" in plot.svg for plot in plots)


@pytest.mark.parametrize(("content", "said"), [("{", "is no JSON"), ('{"bench": "x"}', "it lacks date")])
def test_a_file_that_is_no_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    (tmp_path / "odd.json").write_text(content)
    assert main(["--results", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 2
    assert said in capsys.readouterr().err


def test_nothing_stored_is_said_with_the_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--results", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 1
    assert "make bench" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_stored_document_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "hop.json").write_text(json.dumps(document()))
    assert load_results(tmp_path) == [Stored("hop", document())]
