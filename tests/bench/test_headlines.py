"""Figures in the documents are those of the stored runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import report
from bench.headlines import END, START, measured_page, readme_table, with_table
from bench.stored import Stored, load_results
from tests.bench.test_report import document

ROOT = Path(report.__file__).parents[1]


def test_the_documents_show_what_is_stored() -> None:
    """If this fails: ``python -m bench.report --write``."""
    stored = load_results(ROOT / "bench/results")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == with_table(readme, stored)
    assert (ROOT / "docs/measured.md").read_text(encoding="utf-8") == measured_page(stored)


def test_a_missed_target_stands_out_in_both() -> None:
    stored = [Stored("hop", {**document(), "bench": "hop"})]
    assert "| **1 of 2** |" in readme_table(stored)
    page = measured_page(stored)
    assert "| 0.5 | ≤ 0.25 | x | **missed** |" in page
    assert "| - | ≥ 3 |  | met |" in page


def test_a_bench_without_a_headline_of_its_own_shows_its_first_targets() -> None:
    run = document(bench="new")
    assert "p50 <of> suture 0.5 x; answers - " in readme_table([Stored("new", run)])


def test_only_what_is_between_the_marks_is_written_anew() -> None:
    stored = [Stored("hop", document())]
    text = f"before\n{START}\nold\n{END}\nafter\n"
    written = with_table(text, stored)
    assert written.startswith(f"before\n{START}\n| `python")
    assert written.endswith(f"|\n{END}\nafter\n")
    assert "old" not in written
    assert with_table(written, stored) == written
    with pytest.raises(ValueError, match="README has no"):
        with_table("no marks", stored)


def test_an_unsound_run_is_said_to_be_so() -> None:
    page = measured_page([Stored("hop", document(problems=["an answer was wrong"]))])
    assert "**Not sound:** an answer was wrong" in page
