from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.overhead import main


@pytest.mark.slow
def test_the_parts_and_the_rest_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "overhead.json"
    assert main(["--quick", "--network", "mnist", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document["quick"] is True
    rows = {(row["link"], row["ran"]): row for row in document["rows"]}
    assert {ran for _, ran in rows} == {"device", "split", "cloud"}
    assert len(document["targets"]) == len(rows) == 6
    for (link, ran), row in rows.items():
        assert 0 < row["rest_ms"] < row["latency_ms"]
        assert row["bytes"] == 0 if ran == "device" else row["bytes"] > 0
        if link != "loopback" and ran != "device":
            assert row["rtt_ms"] >= 10.0, "the delay of the link belongs to what had to be"
    assert [row["ran"] for row in document["config"]["where_the_rest_goes"]] == [
        row["ran"] for row in document["rows"]
    ]
