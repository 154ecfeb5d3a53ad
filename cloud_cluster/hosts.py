"""What runs in Serve's replicas: a gateway or a tail, and what they need to know of each other and of Serve.

No request of a device passes through Serve.  About once a second a replica of a network asks all gateways
where they are and what waits there, and a gateway asks Serve how many replicas there are to be.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util import get_node_ip_address
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cloud_cluster.cluster_view import ClusterView, Demand, GatewayReport, WorkRate
from cloud_cluster.executor import BatchExecutor, Executor
from cloud_cluster.gateway import Gateway
from cloud_cluster.loops import Loops
from cloud_cluster.placement import GATEWAY, ReplicaCount, reachable_at, replica_counts, tail_name
from cloud_cluster.tail import Tail
from cloud_cluster.upgrades import changed_gateway
from shared.config import CloudConfig, ServedModelConfig

__all__ = ["DRAIN_S", "GatewayHost", "TailHost"]

log = logging.getLogger("suture.serve")

DRAIN_S = 5.0
"""How long a replica that leaves may take to finish."""

_ASK_S = 1.0
_ASK_SOON_S = 0.1
_PATIENCE_S = 3.0
# What Serve and Ray raise while a controller, a node or a replica starts or goes.
_OUTAGES = (RayError, RayServeException, TimeoutError)


class _Running:
    """The task of a part's loops.  When it ends by itself, the health check says why."""

    def __init__(self, name: str, *bodies: Coroutine[Any, Any, None]) -> None:
        async def together() -> None:
            async with asyncio.TaskGroup() as group:
                for body in bodies:
                    group.create_task(body)

        self._task = asyncio.get_running_loop().create_task(together(), name=f"run {name}")

    def check(self) -> None:
        if self._task.done():
            self._task.result()
            raise RuntimeError(f"{self._task.get_name()} has ended")


class GatewayHost:
    """A gateway, and over HTTP ``/healthz`` and ``/status``.  ``tails`` ties those to this application."""

    # Serve awaits an async constructor, which mypy cannot know.
    async def __init__(self, config: dict[str, Any], *tails: DeploymentHandle[Any]) -> None:  # type: ignore[misc]
        self._running: _Running | None = None
        self._loops = Loops()
        self._wanted: dict[str, asyncio.Event] = {}
        self._counts: dict[str, ReplicaCount] = {}
        parsed = CloudConfig.model_validate(config)
        _log(parsed.log)
        self._models = parsed.models
        self._config = parsed.gateway
        self._gateway = Gateway(parsed.gateway, parsed.models)
        self._gateway.on_unserved = self._on_unserved
        await self._gateway.start()
        loops = {"replica counts": self._follow_serve(), "other gateways": self._follow_gateways()}
        self._running = _Running("gateway", self._gateway.run(), self._loops.run(loops))

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve calls this at the start and after every change of
        :func:`cloud_cluster.upgrades.gateway_user_config`."""
        logging.getLogger("suture").setLevel(user_config["log"].upper())
        self._models = [ServedModelConfig.model_validate(model) for model in user_config["models"]]
        self._config = changed_gateway(self._config, user_config["limits"])
        self._gateway.reconfigure(self._models, self._config)

    async def report(self) -> GatewayReport:
        """Where this gateway is, and what it has to do; asked for by the replicas and the other gateways."""
        status = self._gateway.status()
        host = get_node_ip_address()  # type: ignore[no-untyped-call]
        return GatewayReport(
            gateway=self._gateway.name,
            device_endpoint=reachable_at(self._gateway.device_endpoint, host),
            replica_endpoint=reachable_at(self._gateway.replica_endpoint, host),
            load_endpoint=reachable_at(self._gateway.load_endpoint, host),
            models={label: _demand(state) for label, state in status["models"].items()},
        )

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
            await self._loops.stop()
            await self._gateway.stop()

    def _on_unserved(self, label: str) -> None:
        if label in self._wanted:
            self._wanted[label].set()

    async def _follow_serve(self) -> None:
        """Tell the devices how many replicas there are to be, and wake networks that have none."""
        while True:
            self._wake_where_needed()
            try:
                status = await asyncio.to_thread(serve.status)
            except _OUTAGES as error:
                log.info("Serve does not say how many replicas there are: %s", error)
            else:
                self._counts = replica_counts(status, [model.label for model in self._models])
                for label, count in self._counts.items():
                    self._gateway.set_target(label, count.target, count.starting)
            await asyncio.sleep(_ASK_S)

    def _wake_where_needed(self) -> None:
        """One loop for each network that may have no replica."""
        labels = {
            model.label
            for model in self._models
            if model.autoscale is not None and model.autoscale.min_replicas == 0
        }
        for label in labels - self._wanted.keys():
            self._wanted[label] = asyncio.Event()
            self._loops.add(f"wake {label}", self._wake(label, self._wanted[label]))
        for label in self._wanted.keys() - labels:
            del self._wanted[label]
            self._loops.remove(f"wake {label}")

    async def _wake(self, label: str, wanted: asyncio.Event) -> None:
        """A call that waits for a replica is what makes Serve start one where there is none."""
        while True:
            await wanted.wait()
            count = self._counts.get(label)
            if count is not None and not count.target:
                log.info("%s is wanted and has no replica: asking Serve for one", label)
                try:
                    handle = await _handle(tail_name(label), count.application)
                    await handle.wake.remote()
                except _OUTAGES as error:
                    log.warning("%s could not be woken: %s", label, error)
            await asyncio.sleep(_ASK_S)
            wanted.clear()

    async def _follow_gateways(self) -> None:
        """Tell the devices where else they may go."""
        view = ClusterView("")
        while True:
            if self._config.replicas > 1:
                await _ask_gateways(view)
            else:
                view = ClusterView("")
            self._gateway.set_gateways(
                [report["device_endpoint"] for report in view.reports],
                [report["load_endpoint"] for report in view.reports],
            )
            await asyncio.sleep(_ASK_S)


class TailHost:
    """One replica of one network; started when that is loaded, profiled and taken in by a gateway.

    So Serve does not stop what it replaces before it is there.  Where no gateway takes it in for some
    seconds, it counts as started all the same.
    """

    async def __init__(self, config: dict[str, Any], label: str) -> None:  # type: ignore[misc]
        self._running: _Running | None = None
        self._loops = Loops()
        parsed = CloudConfig.model_validate(config)
        _log(parsed.log)
        (model,) = (model for model in parsed.models if model.label == label)
        self._handover_s = model.handover_s
        self._tail = Tail(
            model,
            [],
            executor=await self.make_executor(model, parsed),
            cache_dir=parsed.cache_dir,
            profile_repeats=parsed.profile_repeats,
            heartbeat_ms=parsed.gateway.heartbeat_ms,
            heartbeat_timeout_ms=parsed.gateway.heartbeat_timeout_ms,
            max_message_bytes=parsed.gateway.max_message_bytes,
            keys=parsed.gateway.keys,
        )
        await self._tail.start()
        self._view = ClusterView(label)
        self._rate = WorkRate(time.monotonic())
        self._running = _Running(
            label, self._tail.run(), self._loops.run({"gateways": self._follow_gateways()})
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self._tail.wait_ready()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """As :meth:`GatewayHost.reconfigure`, with :func:`cloud_cluster.upgrades.replica_user_config`."""
        logging.getLogger("suture").setLevel(user_config["log"].upper())
        self._handover_s = user_config["handover_s"]
        self._tail.set_credits(user_config["credits"])

    async def make_executor(
        self, model: ServedModelConfig, config: CloudConfig
    ) -> Executor | BatchExecutor | None:
        """What computes in place of the network itself; None for that."""
        return None

    async def wake(self) -> None:
        """Returns at once; to wait for this is to wait for a replica."""

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks for this; see :class:`cloud_cluster.autoscale.ReplicaStats`."""
        busy, finished_per_s = self._rate.take(*self._tail.work_done, time.monotonic())
        if not self._view.reports:
            return {}
        return {
            "busy": busy,
            "finished_per_s": finished_per_s,
            "arriving_per_s": self._view.arriving_per_s(),
            "wait_ms": self._view.wait_ms(),
        }

    async def check_health(self) -> None:
        if self._running is not None:
            self._running.check()

    async def __del__(self) -> None:
        """Serve awaits this before it ends the replica."""
        if self._running is not None:
            await self._hand_over()
            await self._loops.stop()
            await self._tail.stop(DRAIN_S)

    async def _hand_over(self) -> None:
        """Serve on while devices hold a network that is replaced, until they have moved to the new one."""
        give_up = time.monotonic() + self._handover_s
        while self._tail.ready and time.monotonic() < give_up:
            await _ask_gateways(self._view)
            if not self._view.leans_on(self._tail.digest):
                return
            log.info("%s is replaced, but devices still hold it", self._tail.digest)
            await asyncio.sleep(_ASK_S)

    async def _follow_gateways(self) -> None:
        while True:
            await _ask_gateways(self._view)
            self._tail.set_gateways(self._view.replica_endpoints)
            await asyncio.sleep(_ASK_S if self._view.reports else _ASK_SOON_S)


def _demand(state: Mapping[str, Any]) -> Demand:
    # A device that has nothing waiting goes before what one greedy device has queued, but that is work too.
    backlog_ms = state["queue_ms"] * state["slowdown"] / max(state["ready"], 1)
    return Demand(
        admitted=state["admitted"],
        refused=state["refused"],
        wait_ms=max(state["wait_ms"], backlog_ms),
        held_past=[
            version["digest"]
            for version in state["versions"]
            if not version["current"] and version["replicas"] == 1 and version["devices"]
        ],
    )


async def _ask_gateways(view: ClusterView) -> None:
    """Ask every gateway of this application; without an answer the view stays as it is."""
    try:
        handle = await _handle(GATEWAY, serve.get_replica_context().app_name)
        answers = await handle.broadcast("report").results_async(
            timeout_s=_PATIENCE_S, return_exceptions=True
        )
    except _OUTAGES as error:
        log.info("no gateway answers: %s", error)
        return
    view.update([answer for answer in answers if not isinstance(answer, BaseException)], time.monotonic())


async def _handle(deployment: str, application: str) -> DeploymentHandle[Any]:
    """Raises RayServeException when there is no such deployment."""
    key = (deployment, application)
    if key not in _handles:
        # Asks the controller, and blocks meanwhile.
        _handles[key] = await asyncio.to_thread(serve.get_deployment_handle, deployment, application)
    return _handles[key]


_handles: dict[tuple[str, str], DeploymentHandle[Any]] = {}


def _log(level: str) -> None:
    """Our records to the replica's stderr, which Ray shows and keeps; Ray configures only its own."""
    logger = logging.getLogger("suture")
    logger.setLevel(level.upper())
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
