"""A whole cloud in this process, without Ray: one gateway and the tails of every model.

For tests, measurements and demonstrations; what runs is what runs under Ray Serve.  One thing differs:
a process has one number of torch threads, and the model that is loaded last sets it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType

from cloud_cluster.executor import Executor
from cloud_cluster.gateway import Gateway
from cloud_cluster.tail import Tail
from shared.config import CloudConfig, ServedModelConfig

__all__ = ["InProcessCloud"]


class InProcessCloud:
    """``async with InProcessCloud(config) as cloud`` enters when every replica is taken in.

    Port 0 in the configuration takes a free port.  ``executor_for`` replaces what the replicas compute,
    by model.  Raises StartupError, or what loading a network raises.  A defect in the gateway or in a
    replica cancels the body of the block and leaves it as an exception group.
    """

    def __init__(
        self, config: CloudConfig, executor_for: Callable[[ServedModelConfig], Executor] | None = None
    ) -> None:
        self.config = config
        self.gateway = Gateway(config.gateway, config.models)
        self.tails: list[Tail] = []
        self._executor_for = executor_for
        self._tasks = asyncio.TaskGroup()
        self._stack = AsyncExitStack()

    @property
    def device_endpoint(self) -> str:
        return self.gateway.device_endpoint

    @property
    def replica_endpoint(self) -> str:
        return self.gateway.replica_endpoint

    @property
    def load_endpoint(self) -> str:
        return self.gateway.load_endpoint

    async def __aenter__(self) -> InProcessCloud:
        try:
            async with AsyncExitStack() as stack:
                await self.gateway.start()
                await stack.enter_async_context(self._tasks)
                self._run(self.gateway)
                stack.push_async_callback(self.gateway.stop)
                stack.push_async_callback(self._stop_tails)
                for model in self.config.models:
                    for _ in range(model.first_replicas):
                        await self.add_replica(model)
                self._stack = stack.pop_all()
        except BaseExceptionGroup as group:
            # The task group wraps what loading a network raised; nobody asked for that.
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._stack.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            # The body's own exception goes on as it is.
            if group.exceptions != (error,):
                raise

    async def add_replica(self, model: ServedModelConfig) -> Tail:
        """Start one more replica and wait until the gateway has taken it in."""
        gateway = self.config.gateway
        tail = Tail(
            model,
            [self.gateway.replica_endpoint],
            executor=self._executor_for(model) if self._executor_for else None,
            cache_dir=self.config.cache_dir,
            profile_repeats=self.config.profile_repeats,
            heartbeat_ms=gateway.heartbeat_ms,
            heartbeat_timeout_ms=gateway.heartbeat_timeout_ms,
            max_message_bytes=gateway.max_message_bytes,
            keys=gateway.keys,
        )
        try:
            await tail.start()
            self._run(tail)
            await tail.wait_ready()
        except BaseException:
            await tail.stop(drain_s=0)
            raise
        self.tails.append(tail)
        return tail

    async def remove_replica(self, tail: Tail, drain_s: float = 5.0) -> None:
        """Drain and stop a replica."""
        self.tails.remove(tail)
        await tail.stop(drain_s)

    def _run(self, part: Tail | Gateway) -> None:
        self._tasks.create_task(part.run(), name=f"run {type(part).__name__}")

    async def _stop_tails(self) -> None:
        for tail in self.tails:
            await tail.stop(drain_s=1.0)
