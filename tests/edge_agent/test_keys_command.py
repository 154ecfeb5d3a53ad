from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_agent.cli import app
from shared.errors import ConfigError
from shared.keys import read_public, read_secret


def test_a_new_pair_is_two_files_that_belong_together(tmp_path: Path) -> None:
    out = tmp_path / "keys"
    made = CliRunner().invoke(app, ["keys", "new", "jetson-1", "--out", str(out), "--json"])
    assert made.exit_code == 0, made.output
    public = json.loads(made.output)["public"]
    secret_path = out / "jetson-1.key_secret"
    assert stat.S_IMODE(secret_path.stat().st_mode) == 0o600
    pair = read_secret(secret_path)
    assert pair.public == public == read_public(out / "jetson-1.key").key
    assert pair.secret not in made.output
    for name in ("jetson-1.key", "jetson-1.key_secret"):
        shown = CliRunner().invoke(app, ["keys", "show", str(out / name)])
        assert shown.output.strip() == public


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    arguments = ["keys", "new", "jetson-1", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    before = (tmp_path / "jetson-1.key_secret").read_bytes()
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, ConfigError)
    assert (tmp_path / "jetson-1.key_secret").read_bytes() == before


def test_a_secret_that_others_can_read_is_not_shown(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["keys", "new", "jetson-1", "--out", str(tmp_path)])
    secret = tmp_path / "jetson-1.key_secret"
    secret.chmod(0o644)
    shown = CliRunner().invoke(app, ["keys", "show", str(secret)])
    assert isinstance(shown.exception, ConfigError)
    with pytest.raises(ConfigError, match="chmod"):
        raise shown.exception
