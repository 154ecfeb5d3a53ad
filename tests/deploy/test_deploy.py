"""What deploy/ names exists: commands, keys of the configuration, files, ports, versions."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from edge_agent.counters import BOUNDS_MS
from edge_agent.metrics import metrics_of
from shared.config import AgentConfig, CloudConfig, load_config, parse_config

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line and not line.startswith("#")
)


# systemd


def unit() -> dict[str, dict[str, list[str]]]:
    """Sections of directives, each with all its values."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in (ROOT / "deploy/systemd/edge-agent.service").read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), defaultdict(list))
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            section[name].append(value)
    return sections


def test_the_unit_starts_the_command_that_is_installed() -> None:
    (command,) = unit()["Service"]["ExecStart"]
    program, *arguments = shlex.split(command)
    assert Path(program).name in PROJECT["scripts"]
    assert arguments == ["--config", "/etc/suture/agent.yaml"]


def test_the_unit_says_what_the_agent_does_with_systemd() -> None:
    service = unit()["Service"]
    assert service["Type"] == ["notify"]
    assert service["NotifyAccess"] == ["main"]
    assert float(service["WatchdogSec"][0]) > 1
    assert service["RestartPreventExitStatus"] == ["2"]
    assert float(service["TimeoutStopSec"][0]) > AgentConfig.model_fields["drain_s"].default


def test_the_units_environment_is_taken_by_the_configuration(tmp_path: Path) -> None:
    environment = dict(each.split("=", 1) for each in unit()["Service"]["Environment"])
    assert all(name.startswith("SUTURE_") for name in environment)
    credential = unit()["Service"]["LoadCredential"][0].partition(":")[0]
    assert environment["SUTURE_CLOUD__KEYS__SECRET"] == f"%d/{credential}"
    environment["SUTURE_CLOUD__KEYS__SECRET"] = f"/run/credentials/edge-agent.service/{credential}"
    environment["SUTURE_CLOUD__KEYS__SERVER"] = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
    settings = load_config(AgentConfig, ROOT / "configs/jetson.yaml", environment)
    assert settings.socket == "ipc:///run/suture/agent.sock"
    assert settings.socket_mode == 0o660
    assert settings.cache_dir == Path("/var/cache/suture")
    assert settings.cloud.keys is not None


def test_what_the_agent_writes_is_where_systemd_lets_it() -> None:
    service = unit()["Service"]
    environment = dict(each.split("=", 1) for each in service["Environment"])
    assert service["ProtectSystem"] == ["strict"]
    assert environment["SUTURE_CACHE_DIR"] == f"/var/cache/{service['CacheDirectory'][0]}"
    assert environment["SUTURE_SOCKET"].startswith(f"ipc:///run/{service['RuntimeDirectory'][0]}/")


# Docker


def instructions(name: str) -> list[tuple[str, str]]:
    text = (ROOT / "deploy/docker" / name).read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def sent_to_docker(path: str) -> bool:
    sent = False
    for rule in (ROOT / ".dockerignore").read_text().split():
        if fnmatch(path, rule.lstrip("!")):
            sent = rule.startswith("!")
    return sent


@pytest.mark.parametrize("name", ["Dockerfile.edge", "Dockerfile.cloud"])
def test_an_image_gets_every_package_and_nothing_that_is_not_there(name: str) -> None:
    sources = [
        source
        for word, rest in instructions(name)
        if word == "COPY"
        for source in [each for each in rest.split() if not each.startswith("--")][:-1]
    ]
    for source in sources:
        assert (ROOT / source).exists(), source
        assert sent_to_docker(source), f"{source} is kept out by .dockerignore"
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *(each.partition("/")[0] for each in wheel["force-include"])}
    assert needed | {"pyproject.toml", "constraints.txt", PROJECT["readme"]} <= set(sources)


@pytest.mark.parametrize("name", ["Dockerfile.edge", "Dockerfile.cloud"])
def test_an_image_installs_extras_that_exist_and_runs_as_nobody_in_particular(name: str) -> None:
    (install,) = [rest for word, rest in instructions(name) if "pip install" in rest]
    extras = re.search(r"'\.\[(.*)\]'", install)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])
    assert "-c " in install
    users = [rest for word, rest in instructions(name) if word == "USER"]
    assert users or "ray" in dict(instructions(name))["WORKDIR"]
    assert "root" not in users


def test_the_edge_image_starts_the_agent_with_keys_that_exist() -> None:
    found = dict(instructions("Dockerfile.edge"))
    assert found["ENTRYPOINT"] == '["edge-agent"]'
    environment = dict(each.split("=", 1) for each in found["ENV"].split())
    settings = load_config(AgentConfig, ROOT / "configs/laptop.yaml", environment)
    assert settings.socket == environment["SUTURE_SOCKET"]
    assert str(settings.cache_dir) == environment["SUTURE_CACHE_DIR"]


def test_the_cloud_image_has_the_ray_that_the_tests_run_on() -> None:
    (base,) = [rest for word, rest in instructions("Dockerfile.cloud") if rest.startswith("BASE=")]
    assert re.fullmatch(r"BASE=rayproject/ray:(.*)-py3\d+", base)[1] == CONSTRAINTS["ray"]  # type: ignore[index]


# Kubernetes


@pytest.fixture(scope="module")
def documents() -> tuple[dict[str, Any], dict[str, Any]]:
    service, network = yaml.safe_load_all((ROOT / "deploy/kuberay/rayservice.yaml").read_text())
    return service["spec"], network["spec"]


def groups(spec: dict[str, Any]) -> dict[str, Any]:
    return {group["groupName"]: group for group in spec["rayClusterConfig"]["workerGroupSpecs"]}


def cloud_config(spec: dict[str, Any]) -> CloudConfig:
    serve = yaml.safe_load(spec["serveConfigV2"])
    ServeDeploySchema.model_validate(serve)
    (application,) = serve["applications"]
    assert application["import_path"] == "cloud_cluster:app"
    return parse_config(CloudConfig, application["args"], "rayservice.yaml", {})


def test_kubernetes_serves_a_configuration_that_is_valid(
    documents: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    spec, _ = documents
    config = cloud_config(spec)
    assert not config.gateway.insecure
    assert spec["rayClusterConfig"]["rayVersion"] == CONSTRAINTS["ray"]


def test_the_service_leads_to_the_pods_that_hold_gateways(
    documents: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    spec, network = documents
    gateway = cloud_config(spec).gateway
    group = groups(spec)[network["selector"]["ray.io/group"]]
    assert group["replicas"] == gateway.replicas
    assert yaml.safe_load(yaml.safe_load(group["rayStartParams"]["resources"])) == gateway.resources
    (container,) = group["template"]["spec"]["containers"]
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["port"]: named[port["targetPort"]] for port in network["ports"]} == {
        gateway.device_port: gateway.device_port,
        gateway.load_port: gateway.load_port,
    }


def test_pods_hold_the_key_files_that_the_configuration_names(
    documents: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    spec, _ = documents
    keys = cloud_config(spec).gateway.keys
    assert keys is not None
    for group in groups(spec).values():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {str(keys.secret.parent), str(keys.replicas.parent), str(keys.devices)} == mounts
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            each["name"] for each in pod["volumes"]
        }
        assert pod["terminationGracePeriodSeconds"] >= 30


# Prometheus and Grafana


def exported() -> set[str]:
    """Every name that an agent's scrape holds."""
    model = {
        **{"name": "m", "where": {}, "errors": {}, "fallbacks": {}, "switches": 0, "uplink_bytes": 0},
        **{"energy_mj": 0.0, "prediction_error": 0.0, "latency_sum_ms": 0.0},
        "latency_buckets": [0] * (len(BOUNDS_MS) + 1),
        "plan": {
            "cut": 1,
            "predicted_ms": 1.0,
            "conditions": {"uplink_bps": 1.0, "rtt_ms": 1.0, "wait_ms": 0.0, "slowdown": 1.0},
        },
    }
    state = {"up_s": 1.0, "in_flight": 0, "link": {"state": "online"}, "models": [model]}
    names = set()
    for family in metrics_of(state):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(
            family.type, ("",)
        )
        names |= {f"{family.name}{suffix}" for suffix in suffixes}
    return names


def queried(text: str) -> set[str]:
    return set(re.findall(r"\bsuture_\w+", text))


def test_every_query_of_a_dashboard_names_a_metric_that_is_exported() -> None:
    dashboards = sorted((ROOT / "deploy/grafana").glob("*.json"))
    assert dashboards
    for path in dashboards:
        board = json.loads(path.read_text())
        expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
        expressions += [each["query"] for each in board["templating"]["list"] if each["type"] == "query"]
        for expression in expressions:
            assert queried(expression), expression
            assert queried(expression) <= exported(), expression
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
        assert len(set(places)) == len(places)
        assert len({panel["id"] for panel in board["panels"]}) == len(places)


def test_every_alert_names_a_metric_that_is_exported_and_the_next_step() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yaml").read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        assert queried(rule["expr"]) <= exported(), rule["alert"]
        assert queried(rule["expr"])
        assert rule["annotations"]["next"]
