"""The agent: its networks, its link and its local socket, from start to stop.

::

    async with EdgeAgent.from_config("jetson.yaml") as agent:
        result = await agent.infer("efficientnet-lite0", image, deadline_ms=200)
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from edge_agent.controller import Controller
from edge_agent.decision import Decision
from edge_agent.link import CloudLink, LinkState
from edge_agent.local_api import LocalApi
from edge_agent.pipeline import Pipeline, Served
from edge_agent.requests import RequestTable
from edge_agent.result import Result
from edge_agent.runner import Runner
from shared.codec import Codec
from shared.config import AgentConfig, ModelConfig, load_config
from shared.errors import ConfigError, InternalError, UnknownModelError
from shared.graph import Graph
from shared.models import Model, resolve
from shared.wire.messages import Hello, ModelOffer

__all__ = ["EdgeAgent", "Progress"]

log = logging.getLogger("suture.agent")

_FIRST_CONTACT_S = 1.0
"""How long the start waits for the gateway's first word, so that the first request can already use it."""

_DRAIN_S = 2.0


class Progress(Protocol):
    """Told of slow steps while starting: ``done`` of ``total`` parts of ``step`` for ``model``."""

    def __call__(self, model: str, step: str, done: int, total: int) -> None: ...


class RunnerFactory(Protocol):
    def __call__(self, device: str, threads: int | None) -> Runner: ...


class EdgeAgent:
    """Entered, it has loaded and profiled its networks and serves requests; left, it has drained them.

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
        self._codecs = {model.name: _codecs(model) for model in config.models}
        self._runner_factory = runner_factory
        self._serve = serve
        self._progress = progress
        self._group = asyncio.TaskGroup()
        self._stack = AsyncExitStack()
        self._pipeline: Pipeline
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
        async with AsyncExitStack() as stack:
            self.runner = self._runner_factory(self.config.device, self.config.threads)
            stack.push_async_callback(self.runner.close)
            table = RequestTable(self.config.max_in_flight, self.config.max_in_flight_bytes)
            controller = Controller(self.config.cloud)
            self._pipeline = Pipeline(self.runner, controller, table, self._spawn)
            for model in self.config.models:
                await self._load(model)
            self._link = CloudLink(self.config.cloud, self._hello(), self._pipeline)
            self._pipeline.link = self._link
            local = (
                await stack.enter_async_context(LocalApi(self.config.socket, self)) if self._serve else None
            )
            await self._group.__aenter__()
            stack.push_async_exit(self._leave_group)
            loops = [
                self._spawn(self._link.run(), "link"),
                self._spawn(self._pipeline.run_timers(), "timers"),
            ]
            if local is not None:
                loops.append(self._spawn(local.run(), "local api"))
            stack.push_async_callback(self._stop, loops)
            try:
                await asyncio.wait_for(self._link.first_contact.wait(), _FIRST_CONTACT_S)
            except TimeoutError:
                log.warning("cloud: no answer from %s yet; going on without it", self.config.cloud.gateway)
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
        self, model: str, /, *args: Any, deadline_ms: float | None = None, **kwargs: Any
    ) -> Result:
        """Run a network on numpy arrays or torch tensors, wherever that is fastest now.

        ``args`` and ``kwargs`` are the call that the network was captured with, at any batch size it
        takes; they must not change before the answer.  Ends by the deadline (the model's own when None)
        in a Result or in UnknownModelError, InputMismatchError, OverloadedError, DeadlineError or
        InternalError.  Cancelling withdraws the work on the device and in the cloud.
        """
        return await self._pipeline.infer(self._served(model), args, kwargs, deadline_ms)

    def decision(self, model: str) -> Decision:
        """What would be decided for a request now."""
        return self._pipeline.controller.decide(self._served(model).name, self._pipeline.now_ms())

    def pin(self, model: str, cut: int, codec: Codec = Codec.FLOAT32) -> None:
        """Use this cut and codec whenever the cloud is there.  Raises PlanError when there is no such."""
        self._pipeline.controller.pin(self._served(model).name, cut, codec)

    def unpin(self, model: str) -> None:
        self._pipeline.controller.unpin(self._served(model).name)

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

    async def _load(self, config: ModelConfig) -> None:
        name = config.name
        self._report(name, "capture", 0, 1)
        model = await self.runner.call(partial(resolve, config, self.config.cache_dir))
        graph = await self.runner.load(name, model.captured)
        profile = await self.runner.profile(
            name,
            model.example,
            cache_dir=self.config.cache_dir,
            repeats=self.config.profile_repeats,
            progress=partial(self._report, name, "profile"),
        )
        self.models[name] = model
        self._pipeline.models[name] = Served(name, graph, config.deadline_ms)
        self._pipeline.controller.add_model(
            name,
            graph,
            profile,
            self._pipeline.now_ms(),
            codecs=self._codecs[name],
            hysteresis=config.hysteresis,
        )

    def _report(self, model: str, step: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(model, step, done, total)

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
        await self._pipeline.drain(_DRAIN_S)
        self._link.close()
        for loop in loops:
            loop.cancel()


def _codecs(config: ModelConfig) -> list[Codec] | None:
    if config.codecs is None:
        return None
    try:
        return [Codec.from_label(label) for label in config.codecs]
    except ValueError as error:
        raise ConfigError(f"model {config.name}: codecs: {error}") from None
