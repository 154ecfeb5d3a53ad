"""The agent: its networks, its link and its local socket, from start to stop.

::

    async with EdgeAgent.from_config("jetson.yaml") as agent:
        result = await agent.infer("efficientnet-lite0", image, deadline_ms=200)
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch

from edge_agent.catching_up import CatchingUp
from edge_agent.controller import Controller
from edge_agent.counters import ModelCounters
from edge_agent.decision import Decision
from edge_agent.estimate import MIN_SPAN_BYTES
from edge_agent.goals import constraints_of, objective_of, power_of, requested_objective
from edge_agent.keys import LinkKeys
from edge_agent.link import CloudLink
from edge_agent.listener import LinkState
from edge_agent.local_api import LocalApi
from edge_agent.pipeline import Pipeline
from edge_agent.power import choose_meter
from edge_agent.registration import Progress, Registered, register
from edge_agent.requests import RequestTable
from edge_agent.result import Result
from edge_agent.runner import Runner
from edge_agent.served import Served
from edge_agent.status import agent_status
from edge_agent.widening import Widening
from shared.codec import Codec
from shared.config import AgentConfig, ModelConfig, load_config
from shared.errors import (
    ConfigError,
    InternalError,
    PlanError,
    StartupError,
    SutureError,
    UnknownModelError,
)
from shared.graph import Cut, Graph
from shared.models import Model
from shared.plan.explain import Explanation
from shared.wire.messages import Hello, ModelOffer

__all__ = ["EdgeAgent", "Progress"]

log = logging.getLogger("suture.agent")

_FIRST_CONTACT_S = 1.0
"""How long the start waits for the gateway, the first probe and the first load report, so that the first
request is planned on what was measured instead of what is assumed."""


class RunnerFactory(Protocol):
    def __call__(self, device: str, threads: int | None) -> Runner: ...


class EdgeAgent:
    """Entered, it has loaded and profiled its networks and serves requests; left, it has drained them: what
    comes while it leaves is refused, what is in flight has ``drain_s`` to end, and the gateway is told.

    On a machine that was calibrated, networks without a profile are planned on predicted times at once, and
    profiled while no request is in flight.  Lossy codecs that no plan was likely to choose are judged then
    too.

    Entering raises ConfigError or UnknownModelError for what the configuration names and does not exist,
    CaptureError or BundleError for a network, StartupError for a device or socket that cannot be used.  It
    does not fail without a cloud: requests are then computed here.  A defect in one of its loops cancels
    the body of the block and leaves it as an exception group.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        runner_factory: RunnerFactory = Runner,
        serve: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.config = config
        self.models: dict[str, Model] = {}
        self._constraints = {model.name: constraints_of(model) for model in config.models}
        self._power = power_of(config.power)
        self._runner_factory = runner_factory
        self._serve = serve
        self._progress = progress
        self._counters: dict[str, ModelCounters] = {}
        self._entered_s = 0.0
        self._group = asyncio.TaskGroup()
        self._stack = AsyncExitStack()
        self._pipeline: Pipeline
        self._widening: Widening
        self._catching_up: CatchingUp
        self._link: CloudLink
        self.runner: Runner

    @classmethod
    def from_config(
        cls,
        config: str | Path | AgentConfig,
        *,
        runner_factory: RunnerFactory = Runner,
        serve: bool = False,
        progress: Progress | None = None,
    ) -> EdgeAgent:
        """An agent from a YAML file or a checked configuration; nothing is loaded before it is entered.

        ``serve`` opens the local socket of the configuration for other processes.  ``runner_factory``
        replaces what computes.  Raises ConfigError.
        """
        if not isinstance(config, AgentConfig):
            config = load_config(AgentConfig, config)
        return cls(config, runner_factory=runner_factory, serve=serve, progress=progress)

    async def __aenter__(self) -> EdgeAgent:
        if self.config.cloud.keys is not None:
            LinkKeys.load(self.config.cloud.keys)  # a mistake in the keys shows before anything takes time
        self._entered_s = asyncio.get_running_loop().time()
        async with AsyncExitStack() as stack:
            self.runner = self._runner_factory(self.config.device, self.config.threads)
            stack.push_async_callback(self.runner.close)
            table = RequestTable(self.config.max_in_flight, self.config.max_in_flight_bytes)
            controller = Controller(self.config.cloud, patience_ms=self.config.cloud.patience_ms)
            choice = choose_meter(self.config.power.meter, self._power, self.config.power.rail)
            stack.callback(choice.meter.close)
            log.info("power: %s", choice.why)
            self._pipeline = Pipeline(self.runner, controller, table, self._spawn, choice.meter)
            self._catching_up = CatchingUp(self.runner, self.config, self._pipeline.idle, self._on_measured)
            self._widening = Widening(controller, self._pipeline.now_ms, self._catching_up.judge)
            self._pipeline.cloud.on_offer = self._widening.on_card
            for model in self.config.models:
                await self._load(model)
            self._link = CloudLink(self.config.cloud, self._hello(), self._pipeline.cloud)
            self._pipeline.cloud.link = self._link
            local = (
                await stack.enter_async_context(
                    LocalApi(
                        self.config.socket,
                        self,
                        mode=self.config.socket_mode,
                        token_file=self.config.socket_token_file,
                    )
                )
                if self._serve
                else None
            )
            await self._group.__aenter__()
            stack.push_async_exit(self._leave_group)
            loops = [
                self._spawn(self._link.run(), "link"),
                self._spawn(self._pipeline.run_timers(), "timers"),
                self._spawn(self._widening.run(), "wide cuts"),
                self._spawn(self._catching_up.run(), "catching up"),
            ]
            if local is not None:
                loops.append(self._spawn(local.run(), "local api"))
            stack.push_async_callback(self._stop, loops)
            try:
                await asyncio.wait_for(self._first_contact(), _FIRST_CONTACT_S)
            except TimeoutError:
                if not self._link.online:
                    log.warning(
                        "cloud: no answer from %s yet; going on without it", self.config.cloud.gateway
                    )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def infer(
        self,
        model: str,
        /,
        *args: Any,
        deadline_ms: float | None = None,
        objective: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Result:
        """Run a network on numpy arrays or torch tensors, wherever that is best now.

        ``args`` and ``kwargs`` are the call that the network was captured with, at any batch size it
        takes; they must not change before the answer.  ``objective`` says what is best, as a name or as
        the keys of ``objective:`` in the configuration; the model's own when None.  Ends by the deadline
        (the model's own when None) in a Result or in UnknownModelError, InputMismatchError, PlanError for
        an objective that is none or that sets a limit which cannot be kept now, OverloadedError,
        DeadlineError or InternalError.  Cancelling withdraws the work on the device and in the cloud.
        """
        served = self._served(model)
        counters = self._counters[served.name]
        try:
            wanted = None if objective is None else requested_objective(objective, self._power)
            result = await self._pipeline.infer(served, args, kwargs, deadline_ms, wanted)
        except SutureError as error:
            counters.on_error(error)
            raise
        counters.on_result(result)
        return result

    def decision(self, model: str) -> Decision:
        """What would be decided for a request now."""
        return self._pipeline.controller.decide(self._served(model).name, self._pipeline.now_ms())

    def explain(self, model: str) -> Explanation:
        """Why: every candidate stage by stage under the conditions of now, the optimum and the runner-up,
        what is excluded and the reason, and where the next switches lie.  Takes milliseconds."""
        return self._pipeline.controller.explain(self._served(model).name, self._pipeline.now_ms())

    def prediction_error(self, model: str) -> float | None:
        """The median of |predicted - measured| / measured latency over the network's last requests; None
        before the first."""
        return self._pipeline.controller.prediction_error(self._served(model).name)

    def pin(self, model: str, cut: int | Cut, codec: Codec | tuple[Codec, ...] = Codec.FLOAT32) -> None:
        """Use this cut and codec, or these for each of its tensors, whenever the cloud is there.  Raises
        PlanError when there is no such."""
        self._pipeline.controller.pin(self._served(model).name, cut, codec)

    def unpin(self, model: str) -> None:
        self._pipeline.controller.unpin(self._served(model).name)

    def counters(self, model: str) -> ModelCounters:
        """What became of the network's requests since the start."""
        return self._counters[self._served(model).name]

    def status(self, *, with_labels: bool = False) -> dict[str, Any]:
        """See :func:`edge_agent.status.agent_status`."""
        return agent_status(self, with_labels=with_labels)

    @property
    def up_s(self) -> float:
        """Since it was entered."""
        return asyncio.get_running_loop().time() - self._entered_s

    async def caught_up(self) -> None:
        """Returns once nothing is left to measure in the background, so that it disturbs no measurement of
        yours.  It is measured while no request is in flight: do not wait with one."""
        await self._catching_up.done()

    def graph(self, model: str) -> Graph:
        return self._served(model).graph

    @property
    def link_state(self) -> LinkState:
        return self._link.state

    @property
    def link_reason(self) -> str:
        """Why the link is in its state, for a person."""
        return self._link.reason

    @property
    def pipeline(self) -> Pipeline:
        """The running state, for those who measure it."""
        return self._pipeline

    def _served(self, name: str) -> Served:
        served = self._pipeline.models.get(name)
        if served is None:
            near = difflib.get_close_matches(name, self._pipeline.models, n=3)
            known = (
                f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(self._pipeline.models)}"
            )
            raise UnknownModelError(
                f"this agent has no network {name!r}; {known} Networks are listed under models: in its "
                "configuration"
            )
        return served

    # start and stop

    async def _first_contact(self) -> None:
        cloud = self.config.cloud
        await self._link.first_contact.wait()
        if self._link.online:
            await self._pipeline.cloud.timed.wait()
        if self._link.online and cloud.probe_bytes >= MIN_SPAN_BYTES:
            await self._pipeline.cloud.measured.wait()
        if self._link.online and (cloud.load_feed or self._pipeline.cloud.load_endpoint):
            await self._pipeline.cloud.loaded.wait()

    async def _load(self, config: ModelConfig) -> None:
        name, constraints = config.name, self._constraints[config.name]
        self._counters[name] = ModelCounters()
        try:
            registered = await register(self.runner, config, self.config, self._progress)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise StartupError(
                f"model {name}: {self.config.device} has no memory for it; free some, list fewer models, or "
                f"compute on the CPU (device: cpu): {error!r}"
            ) from error
        self.models[name] = registered.model
        tables = registered.model.tables
        digest = "" if tables is None else tables.digest
        self._pipeline.models[name] = Served(name, registered.graph, config.deadline_ms, digest)
        try:
            self._pipeline.controller.add_model(
                name,
                registered.graph,
                registered.profile,
                self._pipeline.now_ms(),
                hysteresis=config.hysteresis,
                objective=objective_of(config.objective, self._power),
                constraints=constraints,
                gate=registered.gate,
                power=self._power,
                tables=digest,
            )
        except PlanError as error:
            raise ConfigError(f"model {name}: {error}") from error
        self._widening.add(name, registered, constraints)
        self._catching_up.add(name, registered, constraints)

    def _on_measured(self, name: str, known: Registered) -> None:
        self._pipeline.controller.on_measured(
            name, self._pipeline.now_ms(), profile=known.profile, gate=known.gate
        )
        self._widening.on_measured(name, known)

    def _hello(self) -> Hello:
        offers = [
            ModelOffer(name=served.name, digest=served.graph.digest)
            for served in self._pipeline.models.values()
        ]
        return Hello(agent=self.config.name, software=f"suture {version('suture')}", models=offers)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str | None = None) -> asyncio.Task[None]:
        task = self._group.create_task(coroutine, name=name)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """A defect ends the agent; nobody may go on waiting for it."""
        if not task.cancelled() and task.exception() is not None:
            defect = task.exception()
            self._pipeline.table.drain()
            self._pipeline.abandon(InternalError(f"the agent ended by a defect, see its log: {defect!r}"))

    async def _leave_group(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """An error of the body leaves as it is; only a defect in a loop is raised as a group."""
        if isinstance(error, asyncio.CancelledError):
            await self._group.__aexit__(kind, error, trace)
        else:
            await self._group.__aexit__(None, None, None)

    async def _stop(self, loops: list[asyncio.Task[None]]) -> None:
        await self._pipeline.drain(self.config.drain_s)
        self._link.close()
        for loop in loops:
            loop.cancel()
