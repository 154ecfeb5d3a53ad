"""The Serve application: one Gateway deployment and one Tail deployment for each model.

Serve places, starts, checks, restarts and upgrades them; no request passes through Serve.  The classes
here only run :class:`~cloud_cluster.gateway.Gateway` and :class:`~cloud_cluster.tail.Tail` in a replica.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import click
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cloud_cluster.arguments import config_from_arguments
from cloud_cluster.gateway import Gateway
from cloud_cluster.sockets import tcp_endpoint
from cloud_cluster.tail import Tail
from shared.config import CloudConfig, GatewayConfig, ServedModelConfig
from shared.errors import ConfigError

__all__ = ["app"]

_HEALTH_CHECK_PERIOD_S = 2.0
_DRAIN_S = 5.0
# Serve waits at least this long before it stops a replica, for requests that it does not route here.
_SHUTDOWN_WAIT_S = 0.1
# Where a replica on the gateway's own machine finds a gateway that is bound to every address.
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def app(args: dict[str, Any]) -> Application:
    """Build the application; see :func:`cloud_cluster.arguments.config_from_arguments` for the arguments."""
    try:
        config = config_from_arguments(args)
        endpoint = _replica_endpoint(config.gateway)
    except ConfigError as error:
        raise _UsageError(str(error)) from error
    plain = config.model_dump(mode="json", exclude_unset=True)
    tails = [_tail(model, config, plain, endpoint) for model in config.models if model.replicas > 0]
    gateway = _GATEWAY.options(ray_actor_options={"num_cpus": config.gateway.num_cpus})
    return gateway.bind(plain, *tails)


class _UsageError(ConfigError, click.ClickException):
    """``serve run`` is a click command: it shows this as one line and no traceback."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        click.ClickException.__init__(self, message)


def _tail(model: ServedModelConfig, config: CloudConfig, plain: dict[str, Any], endpoint: str) -> Application:
    deployment = _TAIL.options(
        name=f"Tail-{re.sub(r'[^A-Za-z0-9._-]', '-', model.name)}",
        num_replicas=model.replicas,
        ray_actor_options={"num_cpus": model.num_cpus, "num_gpus": model.num_gpus},
    )
    return deployment.bind(plain, model.name, [endpoint])


def _replica_endpoint(gateway: GatewayConfig) -> str:
    if gateway.replica_port == 0:
        raise ConfigError(
            "gateway.replica_port must be a fixed port under Ray Serve: the replicas connect to it"
        )
    return tcp_endpoint(_WILDCARDS.get(gateway.host, gateway.host), gateway.replica_port)


class _Running:
    """The task of a part's loops.  When it ends by itself, the health check says why."""

    def __init__(self, part: Gateway | Tail) -> None:
        self._task = asyncio.get_running_loop().create_task(part.run(), name=f"run {type(part).__name__}")

    def check(self) -> None:
        if self._task.done():
            self._task.result()
            raise RuntimeError(f"{self._task.get_name()} has ended")


class GatewayHost:
    """The gateway, and over HTTP ``/healthz`` and ``/status``.  ``tails`` ties those to this application."""

    # Serve awaits an async constructor, which mypy cannot know.
    async def __init__(self, config: dict[str, Any], *tails: DeploymentHandle[Any]) -> None:  # type: ignore[misc]
        self._running: _Running | None = None
        parsed = CloudConfig.model_validate(config)
        _log(parsed.log)
        self._gateway = Gateway(parsed.gateway, parsed.models)
        await self._gateway.start()
        self._running = _Running(self._gateway)

    async def check_health(self) -> None:
        if self._running is not None:
            self._running.check()

    async def __call__(self, request: Request) -> Response:
        await self.check_health()
        if request.url.path.endswith("/healthz"):
            return JSONResponse({"ok": True})
        if request.url.path.endswith("/status"):
            return JSONResponse(self._gateway.status())
        return JSONResponse({"error": "there are /healthz and /status"}, status_code=404)

    async def __del__(self) -> None:
        """Serve awaits this before it ends the replica."""
        if self._running is not None:
            await self._gateway.stop()


class TailHost:
    """One replica of one model; started when the network is loaded and profiled."""

    async def __init__(self, config: dict[str, Any], model: str, gateways: list[str]) -> None:  # type: ignore[misc]
        self._running: _Running | None = None
        parsed = CloudConfig.model_validate(config)
        _log(parsed.log)
        self._tail = Tail(
            next(served for served in parsed.models if served.name == model),
            gateways,
            cache_dir=parsed.cache_dir,
            profile_repeats=parsed.profile_repeats,
            heartbeat_ms=parsed.gateway.heartbeat_ms,
            heartbeat_timeout_ms=parsed.gateway.heartbeat_timeout_ms,
            max_message_bytes=parsed.gateway.max_message_bytes,
        )
        await self._tail.start()
        self._running = _Running(self._tail)

    async def check_health(self) -> None:
        if self._running is not None:
            self._running.check()

    async def __del__(self) -> None:
        """Serve awaits this before it ends the replica."""
        if self._running is not None:
            await self._tail.stop(_DRAIN_S)


_GATEWAY: Deployment = serve.deployment(
    name="Gateway",
    num_replicas=1,
    health_check_period_s=_HEALTH_CHECK_PERIOD_S,
    graceful_shutdown_wait_loop_s=_SHUTDOWN_WAIT_S,
    graceful_shutdown_timeout_s=_DRAIN_S,
)(GatewayHost)

_TAIL: Deployment = serve.deployment(
    name="Tail",
    health_check_period_s=_HEALTH_CHECK_PERIOD_S,
    graceful_shutdown_wait_loop_s=_SHUTDOWN_WAIT_S,
    graceful_shutdown_timeout_s=_DRAIN_S + 2.0,
)(TailHost)


def _log(level: str) -> None:
    """Our records to the replica's stderr, which Ray shows and keeps; Ray configures only its own."""
    logger = logging.getLogger("suture")
    logger.setLevel(level.upper())
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
