"""The shipped files name and explain every key there is, and what they say of its default is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from cloud_cluster.upgrades import gateway_user_config, replica_user_config
from shared.config import AutoscaleConfig, CloudConfig, GatewayConfig, ServedModelConfig, parse_config

CONFIGS = Path(__file__).parents[2] / "configs"
TEXT = (CONFIGS / "cloud.yaml").read_text()
MODEL_OF_ITS_OWN = {"name", "zoo", "factory", "bundle"}


def keys(section: type[BaseModel], prefix: str = "") -> set[str]:
    """Every key of a section and of those in it, with dots."""
    found = set()
    for name, field in section.model_fields.items():
        inner = [each for each in (field.annotation, *get_args(field.annotation)) if isinstance(each, type)]
        sections = [each for each in inner if issubclass(each, BaseModel)]
        found.add(prefix + name)
        for each in sections:
            if each.__name__ != "GatewayKeysConfig":
                found |= keys(each, f"{prefix}{name}.")
    return found


def written(values: Any, prefix: str = "") -> set[str]:
    if isinstance(values, list):
        return set().union(*(written(each, prefix) for each in values))
    if not isinstance(values, dict):
        return set()
    return {prefix + key for key in values} | set().union(
        set(), *(written(value, f"{prefix}{key}.") for key, value in values.items())
    )


def test_every_key_is_in_cloud_yaml_or_in_its_list_of_what_is_left_out() -> None:
    shown = written(yaml.safe_load(TEXT))
    # The commented examples: with their # taken off they are YAML too.
    autoscale = re.findall(r"^    #   (\w+):", TEXT, re.MULTILINE)
    shown |= {"models.autoscale", *(f"models.autoscale.{key}" for key in autoscale)}
    shown |= {f"models.{key}" for key in re.findall(r"^  #     (\w+):", TEXT, re.MULTILINE)}
    left_out = TEXT.partition("# Left out here")[2]
    shown |= set(re.findall(r"^# (\w+):", left_out, re.MULTILINE))
    shown |= {".".join(pair) for pair in re.findall(r"^# (\w+): (\w+):", left_out, re.MULTILINE)}
    assert shown == keys(CloudConfig)


def test_every_key_has_a_comment() -> None:
    lines = TEXT.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s*(- )?\w+: ?\S", line) and "#" not in line:
            assert line.strip() == "- name: efficientnet-lite0", f"line {number + 1} says nothing: {line}"


@pytest.mark.parametrize("name", ["cloud.yaml", "serve.yaml"])
def test_a_shipped_file_is_valid(name: str) -> None:
    values = yaml.safe_load((CONFIGS / name).read_text())
    if name == "serve.yaml":
        (application,) = values["applications"]
        assert application["import_path"] == "cloud_cluster:app"
        values = application["args"]
    config = parse_config(CloudConfig, values, name, environ={})
    assert [model.name for model in config.models] == ["efficientnet-lite0"]


def test_what_cloud_yaml_shows_are_the_defaults() -> None:
    config = parse_config(CloudConfig, yaml.safe_load(TEXT), "cloud.yaml", environ={})
    assert config.gateway == GatewayConfig()
    (model,) = config.models
    # With half a CPU, one thread is what null comes to.
    assert model.torch_threads == ServedModelConfig(name=model.name).torch_threads
    assert model.model_copy(update={"threads": None}) == ServedModelConfig(name=model.name)
    example = re.findall(r"^    #   (\w+): *([\d.]+)", TEXT, re.MULTILINE)
    shown = {key: float(value) for key, value in example}
    defaults = AutoscaleConfig(max_replicas=4).model_dump()
    assert {key: value for key, value in shown.items() if value != defaults[key]} == {"min_replicas": 0}


def test_what_is_marked_as_live_reaches_the_parts_as_they_run_and_nothing_else_does() -> None:
    marked = set(re.findall(r"^ *#? *(\w+):.*# \[live\]", TEXT, re.MULTILINE))
    config = CloudConfig(models=[ServedModelConfig(name="net")])
    told = gateway_user_config(config)
    live = set(told["limits"]) | set(replica_user_config(config.models[0], config)) | {"log"}
    serves_own = {"replicas", "autoscale", "surge_percent", "max_queue"}
    assert marked == live | serves_own
