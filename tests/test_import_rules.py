"""The arrows of the architecture: who may import whom, and what an import may cost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_contracts_of_pyproject_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("imports", "forbidden"),
    [
        ("edge_agent", ["torch", "ray", "zmq", "numpy"]),
        ("edge_agent.client", ["torch", "ray"]),
        ("edge_agent.cli", ["torch", "ray"]),
        ("edge_agent.controller", ["torch", "ray", "zmq", "asyncio"]),
        ("edge_agent.requests", ["torch", "ray", "zmq", "asyncio"]),
        ("cloud_cluster", ["torch", "ray"]),
        ("cloud_cluster.gateway", ["torch", "ray"]),
        ("cloud_cluster.dispatch", ["torch", "ray", "zmq", "asyncio"]),
        ("shared.wire.protocol", ["torch", "ray", "zmq", "asyncio"]),
        ("shared.codec", ["torch", "ray", "zmq", "asyncio"]),
        ("shared.graph.ir", ["torch", "ray", "zmq", "asyncio"]),
        ("shared.plan.solve", ["torch", "ray", "zmq", "asyncio"]),
        ("shared.zoo", ["torch", "ray"]),
    ],
)
def test_an_import_costs_no_more_than_it_needs(imports: str, forbidden: list[str]) -> None:
    script = f"import {imports}, sys; print(sorted(set({forbidden!r}) & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"
