"""Processes of a bench: started in a group of their own, told what to do in JSON lines, ended for sure.

A controlled child reads one ``{"command": name, ...arguments}`` a line on its standard input and
answers each with one line, ``{"ok": value}`` or ``{"error": message}``; its first line is ``{"ready":
facts}``.  The end of its input is its order to leave, so that no child outlives a parent that was killed.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["Child", "ChildError", "answer", "free_ports", "run"]

_LINE_LIMIT_BYTES = 16 * 2**20
_LOG_LINES_SHOWN = 25


class ChildError(Exception):
    """A child refused a command, or ended; the message holds the last of what it wrote to its log."""


class Child:
    """A running process.  Its log, standard error and what it prints beside answers, is at ``log``."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._turn = asyncio.Lock()

    @classmethod
    async def start(
        cls,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        controlled: bool = True,
    ) -> Child:
        """Start ``argv``, with ``env`` beside the present environment.  OSError where it cannot run."""
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE if controlled else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if controlled else output,
                stderr=output,
                env={**os.environ, **(env or {})},
                # Its own group: Ctrl-C at the terminal reaches the parent alone, which ends all in order.
                start_new_session=True,
                limit=_LINE_LIMIT_BYTES,
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def ready(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """The facts of the child's first line.  Raises ChildError where it ends or is late."""
        async with self._turn:
            facts = (await self._line(timeout_s)).get("ready")
        if not isinstance(facts, dict):
            raise ChildError(f"{self.name} began with something else than its facts")
        return facts

    async def call(self, command: str, *, timeout_s: float = 60.0, **arguments: Any) -> Any:
        """Give one command and return its answer.  Not safe to cancel: the answer would be left over."""
        assert self._process.stdin is not None
        async with self._turn:
            try:
                self._process.stdin.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
                await self._process.stdin.drain()
            except ConnectionError as error:
                raise ChildError(f"{self.name} is gone{self.tail()}") from error
            reply = await self._line(timeout_s)
        if "error" in reply:
            raise ChildError(f"{self.name} refused {command}: {reply['error']}")
        return reply.get("ok")

    async def wait(self, timeout_s: float | None = None) -> int:
        """Its return code, once it has ended.  Raises TimeoutError."""
        return await asyncio.wait_for(self._process.wait(), timeout_s)

    async def stop(self, grace_s: float = 10.0) -> None:
        """Close its input, then ask, then end the whole group.  Fine to call again."""
        if self._process.stdin is not None:
            self._process.stdin.close()
            with suppress(TimeoutError):
                await self.wait(grace_s / 2)
        self._signal(signal.SIGTERM)
        with suppress(TimeoutError):
            await self.wait(grace_s)
        # Also when the child itself has ended: what it had started may still hold its ports.
        self._signal(signal.SIGKILL)
        await self._process.wait()

    def tail(self) -> str:
        """The last lines of its log, to be put behind a message."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
        return "".join(f"\n  {line}" for line in lines)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def _line(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        except TimeoutError as error:
            raise ChildError(f"{self.name} has not answered in {timeout_s:g} s{self.tail()}") from error
        if not line:
            code = await self._process.wait()
            raise ChildError(f"{self.name} ended with code {code}{self.tail()}")
        try:
            reply: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise ChildError(f"{self.name} printed {line[:80]!r} where its answer should be") from error
        return reply


async def answer(commands: Mapping[str, Callable[..., Any]], ready: Mapping[str, Any]) -> None:
    """The child's side: say ``ready``, then answer commands, in order, until the input ends.

    A command is called with the line's other keys and may be a coroutine function; what it raises is
    the answer ``error``.  What anyone prints from now on goes to standard error.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    reader = asyncio.StreamReader(limit=_LINE_LIMIT_BYTES)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        _say(replies, {"ready": dict(ready)})
        while line := await reader.readline():
            _say(replies, await _run(commands, json.loads(line)))
    except BrokenPipeError:
        # The parent died between its command and our answer, which ends the conversation just as well.
        pass
    finally:
        transport.close()


async def _run(commands: Mapping[str, Callable[..., Any]], request: dict[str, Any]) -> dict[str, Any]:
    name = request.pop("command")
    if name not in commands:
        return {"error": f"no command {name!r}; there are {', '.join(sorted(commands))}"}
    try:
        value = commands[name](**request)
        return {"ok": await value if inspect.isawaitable(value) else value}
    except Exception as error:  # noqa: BLE001 - it is handed to the parent, which raises it there.
        return {"error": f"{type(error).__name__}: {error}"}


def run(body: Coroutine[Any, Any, None]) -> None:
    """``asyncio.run``, in which only the first Ctrl-C or SIGTERM counts.

    It cancels ``body``, whose clean-up then runs to its end however impatient the person is.  Raises
    KeyboardInterrupt afterwards.
    """

    async def stopped_once() -> None:
        task = asyncio.current_task()
        assert task is not None
        told = False

        def stop() -> None:
            nonlocal told
            if not told:
                told = True
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        await body

    try:
        asyncio.run(stopped_once())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _say(replies: Any, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on at the moment, all different."""
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
