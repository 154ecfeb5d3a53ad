from __future__ import annotations

from pathlib import Path

import pytest

from cloud_cluster.arguments import DEFAULT_MODELS, config_from_arguments
from shared.errors import ConfigError


def test_without_arguments_the_demos_networks_are_served_on_the_default_ports() -> None:
    config = config_from_arguments({})
    assert [model.name for model in config.models] == list(DEFAULT_MODELS)
    gateway = config.gateway
    assert (gateway.device_port, gateway.replica_port, gateway.load_port) == (5555, 5556, 5557)


def test_models_may_be_names_with_commas_names_in_a_list_or_whole_entries() -> None:
    def names(models: object) -> list[str]:
        return [model.name for model in config_from_arguments({"models": models}).models]

    assert names("alexnet, efficientnet-lite0,") == ["alexnet", "efficientnet-lite0"]
    assert names(["alexnet", {"name": "mine", "factory": "a:b"}]) == ["alexnet", "mine"]


def test_keys_of_the_gateway_and_numbers_as_text_are_understood() -> None:
    config = config_from_arguments({"gateway": {"device_port": "7555"}, "profile_repeats": "5"})
    assert (config.gateway.device_port, config.profile_repeats) == (7555, 5)


def test_a_file_is_read_and_cannot_be_mixed_with_other_arguments(tmp_path: Path) -> None:
    path = tmp_path / "cloud.yaml"
    path.write_text("models: [{name: alexnet, replicas: 2}]")
    assert config_from_arguments({"config": str(path)}).models[0].replicas == 2
    with pytest.raises(ConfigError, match="cannot be mixed with models"):
        config_from_arguments({"config": str(path), "models": "alexnet"})
    with pytest.raises(ConfigError, match="cannot read"):
        config_from_arguments({"config": str(tmp_path / "none.yaml")})


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"modles": "alexnet"}, "modles: unknown key"),
        ({"models": ""}, "models"),
        ({"models": 3}, "models"),
        ({"models": "a,a"}, "more than once: a"),
        ({"gateway": {"device_port": 99999}}, "gateway.device_port"),
    ],
)
def test_mistakes_are_named(args: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_from_arguments(args)
