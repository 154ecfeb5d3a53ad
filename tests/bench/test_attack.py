from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from bench import attack
from bench.attack_parsers import attacks, damages, peak_rss_bytes, reset_peak_rss, tried
from tests.fuzz.targets import SEEDS, TARGETS


def test_damaged_inputs_are_damaged_and_the_same_for_a_seed() -> None:
    for parser in ("header", "message", "payload", "config"):
        first = list(islice(damages(parser, 7), 50))
        assert first == list(islice(damages(parser, 7), 50))
        assert first != list(islice(damages(parser, 8), 50))
        seeds = SEEDS[parser]()
        assert sum(data not in seeds for data in first) > 25


def test_every_attack_on_a_parser_has_its_inputs() -> None:
    names = [(each.name, each.target) for each in attacks()]
    assert len(set(names)) == len(names) >= 11
    assert all(next(each.inputs(1)) is not None for each in attacks())


def test_a_crash_is_counted_with_what_made_it_and_growth_is_seen() -> None:
    held = []

    def target(data: bytes) -> None:
        if data == b"100":
            held.append(bytearray(64 * 2**20))
            held.clear()
        if data[-1:] == b"7":
            raise KeyError("a defect")

    def inputs() -> Iterator[bytes]:
        return (b"%d" % number for number in range(200))

    outcome = tried(target, inputs())
    assert (outcome.inputs, outcome.crashes) == (200, 20)
    assert "KeyError: 'a defect' from 37" in outcome.findings[0]
    assert 60 * 2**20 < outcome.peak_bytes < 100 * 2**20
    assert tried(lambda data: None, inputs()).crashes == 0


def test_the_peak_begins_anew() -> None:
    reset_peak_rss(os.getpid())
    before = peak_rss_bytes(os.getpid())
    held = bytearray(b"x" * (64 * 2**20))
    assert peak_rss_bytes(os.getpid()) - before > 50 * 2**20
    del held
    reset_peak_rss(os.getpid())
    assert peak_rss_bytes(os.getpid()) - before < 30 * 2**20


@pytest.mark.slow
def test_a_flooded_gateway_serves_and_nothing_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floods = {name: attack.FLOODS[name] for name in ("MORE frames after HELLO", "malformed messages")}
    monkeypatch.setattr(attack, "FLOODS", floods)
    path = tmp_path / "attack.json"
    assert attack.main(["--quick", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    parsers = [row for row in document["rows"] if "parser" in row]
    assert {row["parser"] for row in parsers} == set(TARGETS)
    assert all(row["inputs"] > 0 and row["crashes"] == 0 for row in parsers)
    flooded = [row for row in document["rows"] if "flood" in row]
    assert [row["flood"] for row in flooded] == list(floods)
    assert all(row["answered"] == row["asked"] > 50 for row in flooded)
    assert all(row["cut_off"] > 0 for row in flooded)
    assert [target["met"] for target in document["targets"][:3]] == [True, True, True]
    assert len(document["targets"]) == 4
