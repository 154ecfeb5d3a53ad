"""The Serve application: a Gateway deployment and one Tail deployment for each network and version.

Serve places, starts, checks, restarts, scales and upgrades them; no request passes through Serve.  What
their replicas do is in :mod:`cloud_cluster.hosts`.

What a changed configuration restarts, and what it reaches as it runs, is in :mod:`cloud_cluster.upgrades`.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import click
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from cloud_cluster.arguments import config_from_arguments
from cloud_cluster.hosts import DRAIN_S, GatewayHost, TailHost
from cloud_cluster.placement import GATEWAY, tail_name
from cloud_cluster.upgrades import (
    gateway_user_config,
    gateway_version,
    replica_config,
    replica_user_config,
    replica_version,
)
from shared.config import AutoscaleConfig, CloudConfig, ServedModelConfig
from shared.errors import ConfigError

__all__ = ["GatewayHost", "TailHost", "app", "build"]

_HEALTH_CHECK_PERIOD_S = 2.0
# Serve waits at least this long before it stops a replica, for requests that it does not route here.
_SHUTDOWN_WAIT_S = 0.1
# Serve's averages are taken over the latter; longer ones see a load later.
_METRICS_INTERVAL_S, _LOOK_BACK_S = 0.5, 2.0
# What the parts ask each other every second is not worth a line each.
_LOGGING = {"enable_access_log": False}
_SOFTWARE = version("suture")


def app(args: dict[str, Any]) -> Application:
    """Build the application; see :func:`cloud_cluster.arguments.config_from_arguments` for the arguments."""
    try:
        config = config_from_arguments(args)
    except ConfigError as error:
        raise _UsageError(str(error)) from error
    return build(config)


def build(config: CloudConfig, tail_host: type[TailHost] = TailHost) -> Application:
    """The application of a checked configuration; ``tail_host`` replaces what runs in its Tail replicas."""
    tails = [_tail(tail_host, model, config) for model in config.models if model.replicas > 0]
    gateway = _GATEWAY.options(
        num_replicas=config.gateway.replicas,
        max_replicas_per_node=1,
        ray_actor_options={"num_cpus": config.gateway.num_cpus, "resources": config.gateway.resources},
        user_config=gateway_user_config(config),
    )
    plain = config.model_dump(mode="json", exclude_unset=True)
    return _versioned(gateway, gateway_version(config, _SOFTWARE)).bind(plain, *tails)


class _UsageError(ConfigError, click.ClickException):
    """``serve run`` is a click command: it shows this as one line and no traceback."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        click.ClickException.__init__(self, message)


def _tail(host: type[TailHost], model: ServedModelConfig, config: CloudConfig) -> Application:
    replicas = (
        {"num_replicas": model.replicas}
        if model.autoscale is None
        else {"autoscaling_config": _autoscaling(model.autoscale)}
    )
    deployment = _TAIL.options(
        func_or_class=host,
        name=tail_name(model.label),
        ray_actor_options={"num_cpus": model.num_cpus, "num_gpus": model.num_gpus},
        user_config=replica_user_config(model, config),
        max_surge_percent=model.surge_percent,
        # Beyond it Serve ends the process.
        graceful_shutdown_timeout_s=model.handover_s + DRAIN_S + 2.0,
        **replicas,
    )
    versioned = _versioned(deployment, replica_version(model, config, _SOFTWARE))
    return versioned.bind(replica_config(model, config), model.label)


def _autoscaling(config: AutoscaleConfig) -> AutoscalingConfig:
    with warnings.catch_warnings():
        # Marked as deprecated, but what is to replace it is never read.
        warnings.filterwarnings("ignore", message=".*metrics_interval_s")
        return AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            metrics_interval_s=_METRICS_INTERVAL_S,
            look_back_period_s=_LOOK_BACK_S,
            # Those of the policy count.
            upscale_delay_s=0,
            downscale_delay_s=0,
            policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
                policy_function="cloud_cluster.autoscale:ServePolicy",
                policy_kwargs=config.model_dump(mode="json"),
            ),
        )


def _versioned(deployment: Deployment, version: str) -> Deployment:
    # Serve has no public option for this; without it every deploy would restart everything.
    pinned: Deployment = deployment.options(version=version, _internal=True)
    return pinned


_GATEWAY: Deployment = serve.deployment(
    name=GATEWAY,
    logging_config=_LOGGING,
    health_check_period_s=_HEALTH_CHECK_PERIOD_S,
    graceful_shutdown_wait_loop_s=_SHUTDOWN_WAIT_S,
    graceful_shutdown_timeout_s=DRAIN_S,
)(GatewayHost)

_TAIL: Deployment = serve.deployment(
    name="Tail",
    logging_config=_LOGGING,
    health_check_period_s=_HEALTH_CHECK_PERIOD_S,
    graceful_shutdown_wait_loop_s=_SHUTDOWN_WAIT_S,
)(TailHost)
