"""What the documents show works: every YAML block is a valid configuration, every Python block compiles."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from edge_agent.goals import constraints_of, objective_of, power_of
from shared.config import AgentConfig, CloudConfig, parse_config
from shared.errors import ConfigError
from shared.zoo import names

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```(?P<language>\w+)(?P<mark>[^\n]*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    where: str
    language: str
    mark: str
    text: str


def blocks(language: str, mark: str = "") -> list[Any]:
    """Of one language; with ``mark``, only those that have it behind the language."""
    return [
        pytest.param(each, id=each.where)
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
        for each in blocks_of(path)
        if each.language == language and mark in each.mark
    ]


def blocks_of(path: Path) -> Iterator[Block]:
    text = path.read_text("utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(f"{path.name}:{line}", found["language"], found["mark"].strip(), found["text"])


def checked(text: str) -> AgentConfig | CloudConfig | None:
    """The configuration of a device or of a cloud that a block is, with a network where it names none; None
    where it is for another program.  Raises ConfigError for what is neither."""
    values = yaml.safe_load(text)
    if not isinstance(values, dict) or {"apiVersion", "scrape_configs", "services"} & values.keys():
        return None
    values = {"models": [{"name": "mnist"}], **values}
    said = []
    for kind in (AgentConfig, CloudConfig):
        try:
            return parse_config(kind, values, kind.__name__, {})
        except ConfigError as error:
            said.append(str(error))
    raise ConfigError("\n".join(said))


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_yaml_block_is_a_configuration(block: Block) -> None:
    config = checked(block.text)
    if isinstance(config, AgentConfig):
        for model in config.models:
            constraints_of(model)
            objective_of(model.objective, power_of(config.power))


def test_a_block_with_a_mistake_is_found() -> None:
    with pytest.raises(ConfigError, match="min_agremeent"):
        checked("models:\n  - name: mnist\n    min_agremeent: 0.9\n")
    with pytest.raises(ConfigError, match="objective"):
        checked("models:\n  - name: mnist\n    objective: {minimise: energy, rate_hz: 3}\n")


def test_the_concepts_name_networks_of_the_zoo_and_every_objective() -> None:
    configs = [checked(each.text) for each in blocks_of(ROOT / "docs/concepts.md") if each.language == "yaml"]
    models = [model for config in configs if isinstance(config, AgentConfig) for model in config.models]
    assert {model.zoo or model.name for model in models} <= set(names())
    objectives = [model.objective for model in models]
    assert {each.minimise for each in objectives} == {"latency", "energy", "throughput", "weighted"}
    assert any(each.deadline_ms for each in objectives)
    assert any(each.energy_mj for each in objectives)


@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_compiles(block: Block) -> None:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT  # as in a notebook
    compile(block.text, block.where, "exec", flags=flags, dont_inherit=True)


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("python", "run"))
def test_a_python_block_that_is_marked_runs(block: Block, tmp_path: Path) -> None:
    (tmp_path / "device.yaml").write_text("{models: [{name: mnist}], profile_repeats: 3, log: error}")
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        cwd=tmp_path,
        env={**os.environ, "SUTURE_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "energy within 5000 ms" in done.stdout
