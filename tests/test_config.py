"""Configuration is checked where it is read, and its errors say which key and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.config import AgentConfig, CloudConfig, load_config, parse_config
from shared.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = [{"name": "mnist"}]


def test_defaults_make_a_working_agent() -> None:
    config = parse_config(AgentConfig, {"models": MODELS}, "here", environ={})
    assert config.device == "cpu"
    assert config.cloud.gateway == "tcp://127.0.0.1:5555"
    assert config.models[0].deadline_ms == 2000.0


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"models": MODELS, "devize": "cpu"}, "devize: unknown key"),
        ({"models": MODELS, "cloud": {"gatway": "x"}}, "cloud.gatway: unknown key"),
        ({}, "models: is required"),
        ({"models": []}, "models"),
        ({"models": MODELS, "device": "tpu"}, "device"),
        ({"models": MODELS + MODELS}, "named more than once: mnist"),
        ({"models": [{"name": "a", "zoo": "mnist", "bundle": "x"}]}, "one of zoo, factory and bundle"),
        ({"models": [{"name": "a", "factory": "no colon"}]}, "models.0.factory"),
        ([1, 2], "mapping"),
    ],
)
def test_a_mistake_is_named(values: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_config(AgentConfig, values, "here", environ={})


def test_the_environment_overrides_the_file() -> None:
    environ = {
        "SUTURE_CLOUD__GATEWAY": "tcp://10.0.0.5:5555",
        "SUTURE_DEVICE": "cuda:0",
        "SUTURE_THREADS": "3",
        "SUTURE_UNRELATED": "ignored",
        "HOME": "/nowhere",
    }
    values = {"models": MODELS, "device": "cpu", "cloud": {"heartbeat_ms": 50}}
    config = parse_config(AgentConfig, values, "here", environ)
    assert (config.cloud.gateway, config.cloud.heartbeat_ms) == ("tcp://10.0.0.5:5555", 50)
    assert (config.device, config.threads) == ("cuda:0", 3)
    assert values == {"models": MODELS, "device": "cpu", "cloud": {"heartbeat_ms": 50}}


def test_the_environment_is_checked_like_the_file() -> None:
    with pytest.raises(ConfigError, match="threads"):
        parse_config(AgentConfig, {"models": MODELS}, "here", {"SUTURE_THREADS": "many"})


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"models: [", "is not YAML"), (b"\xff\xfe\x00", "not UTF-8"), (b"", "models: is required")],
)
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=named) as caught:
        load_config(AgentConfig, path, environ={})
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_config(AgentConfig, tmp_path / "none.yaml", environ={})


def test_every_shipped_agent_config_is_valid() -> None:
    for name in ("jetson.yaml", "laptop.yaml"):
        assert load_config(AgentConfig, CONFIGS / name, environ={}).models


def test_the_shipped_cloud_config_is_valid() -> None:
    assert load_config(CloudConfig, CONFIGS / "cloud.yaml", environ={}).models


def test_two_versions_of_a_network_may_be_served_but_not_one_twice() -> None:
    def cloud(*models: dict[str, object]) -> CloudConfig:
        return parse_config(CloudConfig, {"models": list(models)}, "here", environ={})

    served = cloud({"name": "a"}, {"name": "a", "version": "2"}, {"name": "b", "version": "2"})
    assert [(model.name, model.version) for model in served.models] == [("a", ""), ("a", "2"), ("b", "2")]
    with pytest.raises(ConfigError, match="named more than once: a@2"):
        cloud({"name": "a", "version": "2"}, {"name": "a", "version": "2"})


def test_replicas_are_fixed_or_autoscaled() -> None:
    def model(**values: object) -> CloudConfig:
        return parse_config(CloudConfig, {"models": [{"name": "a", **values}]}, "here", environ={})

    assert model().models[0].first_replicas == 1
    assert model(replicas=3).models[0].first_replicas == 3
    scaled = model(autoscale={"min_replicas": 0, "max_replicas": 4})
    assert scaled.models[0].first_replicas == 0
    # What a process hands to another is read again there.
    assert CloudConfig.model_validate(scaled.model_dump(mode="json", exclude_unset=True)) == scaled
    with pytest.raises(ConfigError, match="replicas or autoscale, not both"):
        model(replicas=1, autoscale={"max_replicas": 2})
    with pytest.raises(ConfigError, match="min_replicas 3 is more than max_replicas 2"):
        model(autoscale={"min_replicas": 3, "max_replicas": 2})


def test_the_paths_of_keys_do_not_depend_on_where_a_worker_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    keys = {"secret": "~/gateway.key_secret", "devices": "devices", "replicas": "/etc/replica.key_secret"}
    config = parse_config(CloudConfig, {"models": MODELS, "gateway": {"keys": keys}}, "here", environ={})
    assert config.gateway.keys is not None
    assert config.gateway.keys.secret == Path("/home/someone/gateway.key_secret")
    assert config.gateway.keys.devices == Path.cwd() / "devices"


@pytest.mark.parametrize("written", ["0660", "0o660", '"0660"', "432"])
def test_who_may_use_the_socket_is_written_as_chmod_takes_it(tmp_path: Path, written: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(f"models: [{{name: mnist}}]\nsocket_mode: {written}\n")
    assert load_config(AgentConfig, path, {}).socket_mode == 0o660


@pytest.mark.parametrize("written", ["660", "0777", "0400", "rw", "-1"])
def test_other_modes_than_three_are_refused(tmp_path: Path, written: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(f"models: [{{name: mnist}}]\nsocket_mode: {written}\n")
    with pytest.raises(ConfigError, match="socket_mode"):
        load_config(AgentConfig, path, {})


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"codecs": []}, "models.0.codecs: List should have at least 1 item"),
        ({"objective": "weighted"}, "models.0.objective: weighted needs a price above 0"),
        ({"objective": {"minimise": "energy", "rate_hz": 3}}, "energy takes deadline_ms, not rate_hz"),
    ],
)
def test_what_plans_cannot_be_asked_is_said_in_plain_words(model: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse_config(AgentConfig, {"models": [{"name": "mnist", **model}]}, "here", environ={})
    assert "Value error" not in str(caught.value)
