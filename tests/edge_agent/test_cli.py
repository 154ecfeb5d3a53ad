"""The command: help, mistakes, exit codes.  Real processes, since imports and exit codes are the point."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from edge_agent.logs import set_up_logs
from edge_agent.progress import TerminalProgress
from shared.config import AgentConfig, CalibrationConfig, CloudLinkConfig, ModelConfig, load_config

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("edge-agent")


def edge_agent(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.yaml"
    values = {
        "models": [
            {"name": "photos", "factory": "tests.edge_agent.edge_networks:photos"},
            {"name": "trees", "factory": "tests.edge_agent.edge_networks:trees"},
        ],
        "threads": 1,
        "profile_repeats": 3,
        "cache_dir": str(tmp_path),
        "socket": f"ipc://{tmp_path}/agent.sock",
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_help_teaches() -> None:
    run = edge_agent("--help")
    assert run.returncode == 0
    for word in ("--config", "profile", "bundle", "version", "Exit codes", "Without a cloud", "Client"):
        assert word in run.stdout


def test_help_imports_neither_torch_nor_ray_nor_zmq() -> None:
    script = (
        "import sys; from edge_agent.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'zmq', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_version_names_what_is_installed() -> None:
    versions = json.loads(edge_agent("version", "--json").stdout)
    assert {"suture", "python", "torch", "pyzmq"} <= versions.keys()
    assert f"suture {versions['suture']}" in edge_agent("version").stdout


def test_a_configuration_is_checked_with_what_the_environment_overrides(config: Path) -> None:
    run = edge_agent("config", "check", "--config", config, SUTURE_CLOUD__GATEWAY="tcp://10.0.0.5:5555")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"{config} is valid: photos, trees on cpu, cloud at tcp://10.0.0.5:5555\n"
    values = json.loads(
        edge_agent("config", "check", "--config", config, "--json", SUTURE_THREADS="3").stdout
    )
    assert (values["threads"], values["drain_s"], values["socket_mode"]) == (3, 5.0, 0o600)
    for overridden, words in [
        ({"SUTURE_DEVICE": "tpu"}, "device"),
        ({"SUTURE_CLOUD__KEYS": "{secret: /nowhere.key_secret, server: x}"}, "/nowhere.key_secret"),
    ]:
        run = edge_agent("config", "check", "--config", config, **overridden)
        assert run.returncode == 2
        assert words in run.stderr
        assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "--config FILE"),
        (["--config", "missing.yaml"], 2, "cannot read missing.yaml"),
        (["--config", "pyproject.toml"], 2, "pyproject.toml"),
        (["--config", "configs/laptop.yaml", "version"], 2, "goes after the command"),
        (["nonsense"], 2, "nonsense"),
        (["profile"], 2, "--config FILE"),
        (["profile", "--config", "configs/laptop.yaml", "--model", "zebra"], 2, "efficientnet-lite0"),
        (["fit", "zebra", "--out", "z", "--config", "configs/laptop.yaml"], 2, "efficientnet-lite0"),
        (["bundle", "alexnett", "/nowhere"], 2, "did you mean alexnet"),
    ],
)
def test_a_mistake_is_one_message_and_an_exit_code(arguments: list[str], status: int, words: str) -> None:
    run = edge_agent(*arguments)
    assert run.returncode == status, run.stderr
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


@pytest.mark.slow
def test_a_mistake_in_the_file_names_the_key(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    for text, words in [
        ("models: [{name: mnist}]\ndevise: cpu\n", "devise: unknown key"),
        ("models: [{name: mnist, codecs: [uint9]}]\n", "uint9"),
        ("models: [{name: mnist}]\nsocket: tcp://0.0.0.0:5000\n", "other machines"),
        ("models: [\n", "is not YAML"),
        ("models: [{name: zebranet}]\n", "zebranet"),
        ("models: [{name: mine, factory: 'no_such_module:net'}]\n", "no_such_module"),
    ]:
        path.write_text(text)
        run = edge_agent("--config", path, SUTURE_CACHE_DIR=str(tmp_path))
        assert run.returncode == 2, run.stderr
        assert words in run.stderr
        assert "Traceback" not in run.stderr


def test_a_jetsons_configuration_is_refused_without_cuda_and_runs_with_the_override() -> None:
    import torch

    if torch.version.cuda is None:
        run = edge_agent("--config", "configs/jetson.yaml")
        assert run.returncode == 3
        assert "device: cuda:0" in run.stderr
        assert "SUTURE_DEVICE=cpu" in run.stderr
        assert "Traceback" not in run.stderr
    settings = load_config(AgentConfig, ROOT / "configs/jetson.yaml", {"SUTURE_DEVICE": "cpu"})
    assert settings.device == "cpu"


@pytest.mark.parametrize("name", ["laptop", "jetson"])
def test_a_shipped_configuration_is_valid_and_names_every_key(name: str) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    settings = load_config(AgentConfig, path, {})
    assert settings.models[0].name == "efficientnet-lite0"
    text = path.read_text()
    sections = [AgentConfig, ModelConfig, CalibrationConfig, CloudLinkConfig]
    missing = {key for section in sections for key in section.model_fields if f"{key}:" not in text} - {"zoo"}
    assert not missing
    uncommented = [line for line in text.splitlines() if re.match(r"[\w -]+: \S", line) and "#" not in line]
    assert uncommented == []


@pytest.mark.slow
def test_a_profile_is_shown_as_a_table_and_as_json(config: Path) -> None:
    table = edge_agent("profile", "--config", config, "--model", "photos")
    assert table.returncode == 0, table.stderr
    assert "first conv2d+relu" in table.stdout
    assert "trees" not in table.stdout
    profiles = json.loads(edge_agent("profile", "--config", config, "--json").stdout)
    assert profiles.keys() == {"photos", "trees"}
    assert len(profiles["photos"]["unit_ms"]) == 7


@pytest.mark.slow
def test_a_bundle_runs_as_the_factory_that_it_was_made_from(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    made = edge_agent("bundle", "photos", out, "--config", config)
    assert made.returncode == 0, made.stderr
    assert "sha256:" in made.stdout
    again = edge_agent("bundle", "tests.edge_agent.edge_networks:photos", tmp_path / "again")
    assert made.stdout.split()[-1] == again.stdout.split()[-1]
    config.write_text(yaml.safe_dump({"models": [{"name": "photos", "bundle": str(out)}], "threads": 1}))
    profiled = edge_agent("profile", "--config", config, "--json", SUTURE_CACHE_DIR=str(tmp_path))
    assert json.loads(profiled.stdout)["photos"]["key"]["digest"] == made.stdout.split()[-1]


def test_logs_are_json_away_from_a_terminal_and_lines_on_one(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    try:
        stream = StringIO()
        set_up_logs("info", stream)
        logging.getLogger("suture.test").info("online at %s", "here", extra={"rtt_ms": 3})
        logging.getLogger("suture.test").debug("unseen")
        (line,) = stream.getvalue().splitlines()
        values = json.loads(line)
        assert (values["event"], values["level"], values["rtt_ms"]) == ("online at here", "info", 3)
        stream = StringIO()
        set_up_logs("debug", stream, as_json=False)
        logging.getLogger("suture.test").debug("online", extra={"rtt_ms": 3})
        assert "online" in stream.getvalue()
        assert "rtt_ms=3" in stream.getvalue()
    finally:
        root.handlers, root.level = handlers, level


def test_a_progress_bar_appears_on_a_terminal_when_a_start_is_slow() -> None:
    for terminal, quiet_s, shown in [(True, 0.0, True), (True, 100.0, False), (False, 0.0, False)]:
        out = StringIO()
        console = Console(file=out, force_terminal=terminal, width=100)
        with TerminalProgress(console, quiet_s) as progress:
            progress("alexnet", "profile", 1, 4)
            progress("alexnet", "profile", 3, 4)
            progress("vgg19", "capture", 0, 1)
        assert ("profile alexnet" in out.getvalue()) == shown
        assert ("capture vgg19" in out.getvalue()) == shown
