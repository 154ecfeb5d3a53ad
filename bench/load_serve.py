"""The load bench's baselines: the same tail as an application would put it behind Ray Serve alone.

It computes one request at a time in one thread, and holds the next ones meanwhile.  Serve queues those
beyond, without deadlines; beyond ``MAX_QUEUED`` it refuses.

``python -m bench.load_serve ADDRESS HTTP_PORT FILE`` is a controlled child in the cluster at ADDRESS,
which asks either way.  FILE holds the activation as for ``bench/load_devices.py``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from ray import serve
from ray.serve.exceptions import BackPressureError
from starlette.requests import Request
from starlette.responses import Response

from bench.child import answer
from shared.config import ServedModelConfig
from shared.errors import InternalError, OverloadedError, UnavailableError
from shared.wire import Message
from shared.wire.frame import Frame0
from shared.wire.messages import Infer, MessageType

if TYPE_CHECKING:
    from ray.serve import Application

    from cloud_cluster.torch_executor import TorchExecutor

__all__ = ["HANDLE", "HTTP", "MAX_QUEUED", "HttpClient", "application", "pin_process"]

HANDLE, HTTP = "handle", "http"
MAX_QUEUED = 256
_ONGOING = 32
"""Requests that Serve hands to the replica at once, which takes them one after the other.  With few, Serve's
router backs off between two tries to place one, and the replica stands still meanwhile."""
_OK, _BUSY = 200, 503
_PATIENCE_S = 60.0


class LoadReplica:
    """Bytes in by handle or HTTP: the header as JSON, a new line, the payload.  The first output out."""

    def __init__(self, name: str, cut: int, cache_dir: str, core: int) -> None:
        from cloud_cluster.torch_executor import TorchExecutor

        pin_process(os.getpid(), core)
        self._thread = ThreadPoolExecutor(1, "tail")
        self._cut = cut
        config = ServedModelConfig(name=name, threads=1, max_batch=1)
        loading = self._thread.submit(TorchExecutor.load, config, Path(cache_dir), 3)
        self._executor: TorchExecutor = loading.result()

    async def infer(self, activation: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._compute, activation)

    async def __call__(self, request: Request) -> Response:
        return Response(await self.infer(await request.body()), media_type="application/octet-stream")

    def _compute(self, activation: bytes) -> bytes:
        header, _, payload = activation.partition(b"\n")
        infer = msgspec.json.decode(header, type=Infer)
        executor = self._executor
        frame0 = Frame0(MessageType.INFER, cut=self._cut)
        job = executor.accept(Message(frame0, infer, (memoryview(payload),)))
        executor.decode(job)
        work, _ = executor.run([job], [*job.lead, *range(job.cut, executor.curves.units)])
        (outcome,) = executor.finish(work, [job])
        return bytes(outcome.payloads[0])


def application(name: str, cut: int, cache_dir: Path, core: int) -> Application:
    deployment = serve.deployment(
        name="LoadReplica",
        max_ongoing_requests=_ONGOING,
        max_queued_requests=MAX_QUEUED,
        ray_actor_options={"num_cpus": 0.1},
        logging_config={"enable_access_log": False},
    )(LoadReplica)
    return deployment.bind(name, cut, str(cache_dir), core)


def pin_process(pid: int, core: int) -> None:
    """All threads of a process onto one core; those that it starts later follow."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


class _Clients:
    """As ``bench/load_devices.py``: requests at a rate, or a number of them under way all the time."""

    def __init__(self, ways: dict[str, Callable[[], Awaitable[int]]]) -> None:
        self._ways = ways
        self._answers: list[tuple[float, int]] = []

    async def closed(self, way: str, seconds: float, in_flight: int) -> dict[str, Any]:
        self._answers = []
        began_s, cpu_s = time.perf_counter(), time.process_time()

        async def client() -> None:
            while time.perf_counter() < began_s + seconds:
                await self._ask(self._ways[way])

        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(client())
            await asyncio.sleep(seconds)
            figures = self._figures(began_s, cpu_s)
        return figures

    async def open(self, way: str, seconds: float, rate_hz: float, seed: int) -> dict[str, Any]:
        self._answers = []
        draw = random.Random(seed)
        began_s, cpu_s = time.perf_counter(), time.process_time()
        due_s = began_s
        async with asyncio.TaskGroup() as group:
            while due_s < began_s + seconds:
                due_s += draw.expovariate(rate_hz)
                await asyncio.sleep(max(due_s - time.perf_counter(), 0.0))
                group.create_task(self._ask(self._ways[way]))
            figures = self._figures(began_s, cpu_s)
        # Latencies of all, the last ones included; the rate is that of the time of asking.
        return figures | {"answers": self._answers}

    async def _ask(self, way: Callable[[], Awaitable[int]]) -> None:
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                code = await way()
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError) as error:
            print(f"no answer: {error!r}", file=sys.stderr)
            code = int(UnavailableError.code)
        self._answers.append(((time.perf_counter() - began_s) * 1e3, code))

    def _figures(self, began_s: float, cpu_s: float) -> dict[str, Any]:
        elapsed_s = time.perf_counter() - began_s
        return {
            "seconds": elapsed_s,
            "per_s": sum(code == 0 for _, code in self._answers) / elapsed_s,
            "cpu_share": (time.process_time() - cpu_s) / elapsed_s,
            "answers": list(self._answers),
        }


class HttpClient:
    """Connections that are kept, as many as are needed at once."""

    def __init__(self, port: int, activation: bytes) -> None:
        self._port = port
        head = f"POST /http HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(activation)}\r\n\r\n"
        self._message = head.encode() + activation
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self) -> int:
        reader, writer = await self._connection()
        writer.write(self._message)
        await writer.drain()
        status_line = await reader.readline()
        if not status_line:
            raise ConnectionResetError("the proxy closed the connection instead of answering")
        status = int(status_line.split()[1])
        length: int | None = None
        while (line := (await reader.readline()).strip().lower()) != b"":
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        if length is None:
            # A body of unknown length, as Serve's refusals have, ends with the connection at the latest.
            writer.close()
        else:
            await reader.readexactly(length)
            self._idle.append((reader, writer))
        if status == _OK:
            return 0
        return int(OverloadedError.code if status == _BUSY else InternalError.code)

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """One that is idle and that the proxy has not closed meanwhile, or a new one."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)


async def _serve(address: str, port: int, activation: bytes) -> None:
    import ray

    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    handle = serve.get_app_handle(HANDLE)
    http = HttpClient(port, activation)

    async def by_handle() -> int:
        try:
            await handle.infer.remote(activation)
        except BackPressureError:
            return int(OverloadedError.code)
        return 0

    clients = _Clients({HANDLE: by_handle, HTTP: http.ask})
    try:
        await answer({"closed": clients.closed, "open": clients.open}, {})
    finally:
        http.close()
        ray.shutdown()


if __name__ == "__main__":
    where, http_port, file = sys.argv[1:]
    asyncio.run(_serve(where, int(http_port), Path(json.loads(file)).read_bytes()))
