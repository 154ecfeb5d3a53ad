from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import bench.__main__ as runner


@pytest.fixture
def benches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two benches: one that misses a target, one that is not sound."""
    package = tmp_path / "bench"
    package.mkdir()
    (package / "__init__.py").touch()
    root = Path(runner.__file__).parent
    (package / "contract.py").write_text((root / "contract.py").read_text())
    body = """
from bench.contract import Bench
bench = Bench({name!r})
bench.target("speed", 3.0, "x", 4.0, "at_least")
{extra}
raise SystemExit(bench.finish())
"""
    (package / "good.py").write_text(body.format(name="good", extra=""))
    (package / "bad.py").write_text(body.format(name="bad", extra="bench.unsound('a wrong answer')"))
    monkeypatch.setattr(runner, "_BENCHES", {"good": 1.0, "bad": 2.5})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_benches_run_and_a_missed_target_is_shown(
    benches: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert runner.main(["good", "--results", "out", "--quick"]) == 0
    document = json.loads((benches / "out" / "good.json").read_text())
    assert document["quick"] is True
    shown = capfd.readouterr().out
    assert "1 of 1: bench.good" in shown
    assert "≥ 4" in shown


def test_one_unsound_bench_does_not_stop_the_others_and_fails_the_run(
    benches: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert runner.main(["bad", "good", "--results", "out"]) == 1
    assert (benches / "out" / "good.json").exists()
    assert "not sound, or failed: bad" in capfd.readouterr().out


def test_help_says_how_long_each_takes_and_all_together(
    benches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        runner.main(["--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "good (1 min), bad (2.5 min)" in shown
    assert "about 4 minutes" in shown


def test_every_name_is_a_module_with_a_row_in_the_methodology() -> None:
    folder = Path(runner.__file__).parent
    described = (folder / "METHODOLOGY.md").read_text(encoding="utf-8")
    for name in runner._BENCHES:
        assert (folder / f"{name}.py").exists(), name
        assert f"| `{name}` |" in described, name


def test_a_name_that_is_no_bench_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        runner.main(["hopp"])
    assert stopped.value.code == 2
    assert "no bench hopp; there are link, equality, hop, overhead" in capsys.readouterr().err
    assert sys.modules["bench.__main__"] is runner
