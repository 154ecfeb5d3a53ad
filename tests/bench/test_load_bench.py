from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_loads_are_carried_and_overload_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    # In a process of its own, as the processors that it pins its children to are this one's as well.
    subprocess.run(
        [sys.executable, "-m", "bench.load", "--quick", "--without-serve", "--json", str(path)], check=True
    )
    document = json.loads(path.read_text())
    assert document["quick"] is True
    rows = {row["load"]: row for row in document["rows"]}
    assert all(row["answers_per_s"] > 0 and row["gateway_mb"] > 0 for row in rows.values())
    assert rows["closed loop, 16 devices"]["refused"] == 0
    assert rows["open loop, 300% of capacity"]["refused"] > 0.3
    alone = rows["closed loop, 1 devices"]["answers_per_s"]
    assert rows["nothing to compute, 16 devices"]["answers_per_s"] > alone
    assert len(document["targets"]) == 5
    assert all(speed > 0 for speed in document["config"]["torch_per_s"])
