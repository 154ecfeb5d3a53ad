from __future__ import annotations

import io
import json
import re
import socket
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from bench.contract import Bench, commit, machine, spread, versions


def make(tmp_path: Path, *argv: str) -> tuple[Bench, io.StringIO]:
    out = io.StringIO()
    bench = Bench(
        "probe", ["--json", str(tmp_path / "deep" / "probe.json"), *argv], console=Console(file=out)
    )
    return bench, out


def written(tmp_path: Path) -> dict[str, object]:
    return json.loads((tmp_path / "deep" / "probe.json").read_text())  # type: ignore[no-any-return]


def test_the_document_has_every_key_of_the_contract(tmp_path: Path) -> None:
    bench, _ = make(tmp_path, "--quick", "--seed", "7")
    bench.config = {"sizes": [1, 2]}
    bench.row(size=1, **spread([1.0, 3.0, 2.0]))
    assert bench.finish() == 0
    document = written(tmp_path)
    assert {"bench", "commit", "machine", "versions", "seed", "config", "rows", "targets"} <= set(document)
    assert document["bench"] == "probe"
    assert document["quick"] is True
    assert document["seed"] == 7
    assert document["config"] == {"sizes": [1, 2]}
    assert document["rows"][0]["samples_ms"] == [1.0, 3.0, 2.0]  # type: ignore[index]
    assert document["rows"][0]["p50_ms"] == 2.0  # type: ignore[index]


@pytest.mark.parametrize(
    ("value", "direction", "met"),
    [
        (4.0, "at_most", True),
        (4.1, "at_most", False),
        (4.0, "at_least", True),
        (3.9, "at_least", False),
        (None, "at_most", False),
        (float("nan"), "at_least", False),
    ],
)
def test_a_target_is_met_up_to_and_including_its_bound(
    tmp_path: Path, value: float | None, direction: str, met: bool
) -> None:
    bench, _ = make(tmp_path)
    assert bench.target("ratio", value, "x", 4.0, direction) is met  # type: ignore[arg-type]
    assert bench.finish() == 0, "a missed target is a result, not a failure"
    [target] = written(tmp_path)["targets"]  # type: ignore[misc]
    assert target == {
        "name": "ratio",
        "value": value if value == value else None,
        "unit": "x",
        "target": 4.0,
        "direction": direction,
        "met": met,
    }


def test_an_unsound_measurement_exits_with_one_and_says_why(tmp_path: Path) -> None:
    bench, out = make(tmp_path)
    bench.target("ratio", 1.0, "x", 4.0, "at_most")
    bench.unsound("answer 3 was wrong")
    assert bench.finish() == 1
    assert "answer 3 was wrong" in out.getvalue()
    assert written(tmp_path)["sound"] is False
    assert written(tmp_path)["problems"] == ["answer 3 was wrong"]


def test_the_table_shows_scalars_and_keeps_samples_for_the_file(tmp_path: Path) -> None:
    bench, out = make(tmp_path)
    bench.row(path="handle", p50_ms=6.125, samples_ms=[987.0], bytes=150_000)
    bench.target("p50", 6.125, "ms", 7.0, "at_most")
    bench.finish()
    assert re.search(r"path .* p50_ms .* bytes", out.getvalue())
    assert re.search(r"handle .* 6.12 .* 150,000", out.getvalue())
    assert "987" not in out.getvalue()
    assert re.search(r"p50 .* 6.12 .* ms .* yes", out.getvalue())


def test_a_figure_that_is_not_finite_never_reaches_the_file(tmp_path: Path) -> None:
    bench, _ = make(tmp_path)
    bench.row(p50_ms=float("inf"))
    with pytest.raises(ValueError, match="JSON"):
        bench.finish()
    assert not (tmp_path / "deep").exists()


def test_options_of_a_bench_of_its_own(tmp_path: Path) -> None:
    bench = Bench("probe", ["--model", "alexnet"], arguments=lambda parser: parser.add_argument("--model"))
    assert bench.options.model == "alexnet"
    assert bench.quick is False
    with pytest.raises(SystemExit) as stopped:
        Bench("probe", ["--modle", "alexnet"])
    assert stopped.value.code == 2


def test_spread_needs_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        spread([])
    assert spread([5.0], "us")["p99_us"] == 5.0


def test_the_machine_is_described_without_naming_it() -> None:
    described = machine()
    assert described["cores"] >= 1
    assert described["memory_gib"] > 0
    assert described["cpu"]
    assert socket.gethostname() not in json.dumps(described).split('"')
    assert versions()["python"]
    assert versions()["pyzmq"]


def test_commit_flags_a_changed_checkout_and_needs_none(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    git = ("git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=n@example.org")
    subprocess.run((*git, "init", "-q"), check=True)
    (tmp_path / "file").write_text("one")
    subprocess.run((*git, "add", "file"), check=True)
    subprocess.run((*git, "commit", "-q", "-m", "one"), check=True)
    clean = commit(tmp_path)
    assert clean is not None
    assert re.fullmatch(r"[0-9a-f]{40}", clean)
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path) == f"{clean}-dirty"
    (tmp_path / "inner").mkdir()
    assert commit(tmp_path / "inner") is None
