"""Every parser meets a fixed number of inputs from a fixed seed; ``make fuzz`` goes on where this stops."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import targets
from tests.fuzz.targets import SEEDS, TARGETS

pytest.importorskip("atheris", reason="atheris is made for Linux only")

RUNS = {"header": 20_000, "message": 10_000, "payload": 5_000, "transform": 600, "tables": 400,
        "bundle": 1_000, "config": 1_500}  # fmt: skip


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments], capture_output=True, text=True, cwd=targets.ROOT
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_input_makes_a_parser_do_what_it_does_not_promise(target: str, tmp_path: Path) -> None:
    done = fuzz(target, "--runs", str(RUNS[target]), "--seed", "7", "--corpus", str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"number_of_executed_units: {RUNS[target]}" in done.stderr
    assert not list(tmp_path.glob("crash-*"))
    # Inputs that reach new code were found: the fuzzer sees into the parser.
    assert len(list(tmp_path.iterdir())) > len(set(SEEDS[target]()))


@pytest.mark.parametrize("target", TARGETS)
def test_every_seed_is_handled_as_promised(target: str) -> None:
    seeds = SEEDS[target]()
    assert seeds
    for seed in seeds:
        TARGETS[target](seed)


def test_a_target_lets_out_what_the_parser_did_not_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(targets, "decode_message", broken)
    with pytest.raises(KeyError):
        targets.message(SEEDS["message"]()[0])


def test_a_damaged_bundle_is_really_damaged() -> None:
    good = dict(targets._good_bundle())
    damaged = 0
    for first in range(256):
        files = dict(good)
        targets._damage(files, bytes([first, 3, 7, 50, 11]))
        damaged += files != good
        json.loads(files["graph.json"])
    assert damaged > 200


@pytest.mark.slow
def test_a_finding_is_kept_and_can_be_run_again(tmp_path: Path) -> None:
    """The fuzzer finds a planted defect and prints the command that shows it again."""
    code = (
        "import sys, runpy; from shared.wire import frame; frame.ProtocolError = None;"
        "sys.argv = ['tests.fuzz', 'header', '--runs', '500', '--seed', '1', '--corpus', sys.argv[1]];"
        "runpy.run_module('tests.fuzz', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=targets.ROOT
    )
    assert done.returncode != 0
    (finding,) = tmp_path.glob("crash-*")
    assert f"again: python -m tests.fuzz header --replay {finding}" in done.stderr
    again = fuzz("header", "--replay", str(finding))
    assert again.returncode == 0  # without the planted defect
    assert "handled as promised" in again.stdout
