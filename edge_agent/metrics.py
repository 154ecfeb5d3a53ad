"""What a Prometheus server scrapes of an agent: the state of :mod:`edge_agent.status` under stable names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from itertools import accumulate
from types import TracebackType
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from edge_agent.counters import BOUNDS_MS
from shared.errors import StartupError

if TYPE_CHECKING:
    from edge_agent.agent import EdgeAgent

__all__ = ["MetricsServer", "metrics_of"]

log = logging.getLogger("suture.agent")

_PATIENCE_S = 2.0
_COUNTERS = {
    "requests": "Requests that ended, by who computed the answer; errors are counted apart",
    "errors": "Requests that ended in an error, by its type",
    "fallbacks": "Answers that the device completed although the cloud was to give them, by the reason",
    "switches": "Answers that came by another cut or codec than the one before",
    "uplink_bytes": "Bytes of tensors that were handed to the link",
    "energy_joules": "Energy of the device for answered requests, by the agent's meter",
}


class MetricsServer:
    """Serves ``/metrics`` from a thread of its own while it is entered.

    Entering raises StartupError when the address cannot be bound.  ``port`` 0 takes a free one, which
    :attr:`port` then is.
    """

    def __init__(self, agent: EdgeAgent, host: str, port: int) -> None:
        self._agent = agent
        self._host = host
        self.port = port

    def __enter__(self) -> MetricsServer:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Scraped(self._agent, asyncio.get_running_loop()))
        try:
            self._server, self._thread = start_http_server(self.port, self._host, registry)
        except OSError as error:
            raise StartupError(
                f"metrics: cannot listen on {self._host}:{self.port}: {error.strerror}; choose another port"
            ) from error
        self.port = self._server.server_port
        log.info("metrics: http://%s:%d/metrics", self._host, self.port)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Scraped(Collector):
    """Asks the agent on its own event loop, so that nothing changes while it is read."""

    def __init__(self, agent: EdgeAgent, loop: asyncio.AbstractEventLoop) -> None:
        self._agent = agent
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        async def state() -> dict[str, Any]:
            return self._agent.status()

        asked = asyncio.run_coroutine_threadsafe(state(), self._loop)
        try:
            yield from metrics_of(asked.result(_PATIENCE_S))
        except TimeoutError:
            asked.cancel()  # the loop is stuck: a scrape without a metric says so


def metrics_of(state: Mapping[str, Any]) -> Iterator[Metric]:
    """Every metric of an agent's state; in seconds, bytes, joules, bits a second."""
    yield _gauge("up_seconds", "Since the agent started", state["up_s"])
    yield _gauge("in_flight", "Requests that have not ended", state["in_flight"])
    yield _gauge("online", "1 while the gateway answers", float(state["link"]["state"] == "online"))
    yield from _plans(state["models"])
    labels = {"requests": "where", "errors": "error", "fallbacks": "reason"}
    for name, text in _COUNTERS.items():
        label = labels.get(name)
        family = CounterMetricFamily(
            f"suture_agent_{name}", text, labels=["model", label] if label else ["model"]
        )
        for model in state["models"]:
            if label:
                for value, count in model["where" if name == "requests" else name].items():
                    family.add_metric([model["name"], value], count)
            else:
                family.add_metric([model["name"]], _total(model, name))
        yield family
    yield _latencies(state["models"])


def _total(model: Mapping[str, Any], name: str) -> float:
    return float(model["energy_mj"] / 1e3 if name == "energy_joules" else model[name])


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"suture_agent_{name}", text, value=value)


def _plans(models: list[Mapping[str, Any]]) -> Iterator[Metric]:
    """What plans rest on, and what they are; a value that is not known is left out."""
    texts = {
        "uplink_bps": "Estimated uplink, bits a second",
        "rtt_seconds": "Estimated round trip",
        "wait_seconds": "Expected wait in the cloud",
        "slowdown": "Of the cloud's compute against its profile",
        "units_on_device": "Of the plan; all units when nothing is sent",
        "predicted_seconds": "Latency that the plan expects",
        "prediction_error": "Median of |predicted - measured| / measured over the last requests",
    }
    families = {
        name: GaugeMetricFamily(f"suture_agent_{name}", text, labels=["model"])
        for name, text in texts.items()
    }
    for model in models:
        plan = model["plan"]
        now = plan["conditions"]
        values = {
            "uplink_bps": now["uplink_bps"],
            "rtt_seconds": now["rtt_ms"] / 1e3,
            "wait_seconds": now["wait_ms"] / 1e3,
            "slowdown": now["slowdown"],
            "units_on_device": plan["cut"] if plan["cut"] >= 0 else None,
            "predicted_seconds": None if plan["predicted_ms"] is None else plan["predicted_ms"] / 1e3,
            "prediction_error": model["prediction_error"],
        }
        for name, value in values.items():
            if value is not None:
                families[name].add_metric([model["name"]], value)
    yield from families.values()


def _latencies(models: list[Mapping[str, Any]]) -> Metric:
    family = HistogramMetricFamily(
        "suture_agent_latency_seconds", "From the request to its answer", labels=["model"]
    )
    bounds = [*(str(bound / 1e3) for bound in BOUNDS_MS), "+Inf"]
    for model in models:
        counts = accumulate(model["latency_buckets"])
        family.add_metric(
            [model["name"]], list(zip(bounds, counts, strict=True)), model["latency_sum_ms"] / 1e3
        )
    return family
