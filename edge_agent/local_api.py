"""The agent's socket for other processes on the device."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket as sockets
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import zmq

from edge_agent.inbox import Inbox, send_now
from edge_agent.local_token import TokenDoor, default_token_file, made_token
from edge_agent.local_wire import pack_tree, unpack_tree
from edge_agent.result import Result
from shared.errors import ConfigError, ProtocolError, StartupError, SutureError
from shared.wire import (
    SET_CUT,
    Message,
    MessageType,
    WireLimits,
    decode_message,
    encode_message,
    error_reply,
    peek,
)
from shared.wire.messages import Header, LocalResult, LocalState, Pong

__all__ = ["LocalApi"]

_LIMITS = WireLimits(max_message_bytes=256 * 2**20, max_decoded_bytes=512 * 2**20)
_QUEUE = 64
_LONGEST_PATH = 107  # sun_path less its closing zero


class _Agent(Protocol):
    async def infer(
        self,
        model: str,
        /,
        *args: Any,
        deadline_ms: float | None = None,
        objective: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Result: ...

    def status(self, *, with_labels: bool = False) -> dict[str, Any]: ...


class LocalApi:
    """Serves ``agent.infer`` on an ipc path with the permissions ``mode``, or on a loopback TCP port to
    programs that know the token in ``token_file`` (:func:`default_token_file` when None).

    Entering binds and raises StartupError when another agent holds the endpoint or it cannot be bound,
    ConfigError when it would be reachable from other machines, or anyone on this one could take its path.
    :meth:`run` serves until cancelled.
    """

    def __init__(
        self, endpoint: str, agent: _Agent, *, mode: int = 0o600, token_file: Path | None = None
    ) -> None:
        self.endpoint = endpoint
        self._agent = agent
        self._mode = mode
        self._token_file = token_file
        self._door: TokenDoor | None = None
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._inbox: Inbox
        self._tasks: dict[tuple[bytes, int], asyncio.Task[None]] = {}
        self._path: Path | None = None
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> LocalApi:
        self._socket.setsockopt(zmq.LINGER, 200)  # the last answers leave
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, _QUEUE)
        self._socket.setsockopt(zmq.RCVHWM, _QUEUE)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _LIMITS.max_message_bytes)
        try:
            self._bind()
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    @property
    def in_flight(self) -> int:
        """Requests of all clients that have no answer yet."""
        return len(self._tasks)

    async def run(self) -> None:
        self._inbox = Inbox(self._socket, self._on_frames)
        failures = [self._inbox.failure]
        if self._door is not None:
            failures.append(self._door.open().failure)
        try:
            async with self._group:
                await asyncio.gather(*failures)
        finally:
            self._inbox.close()

    def _close(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)  # ZeroMQ leaves it
        self._socket.close()
        if self._door is not None:
            self._door.close()
        self._context.term()

    # requests

    def _on_frames(self, frames: list[memoryview]) -> None:
        client, raw = bytes(frames[0]), frames[1:]
        try:
            self._on_message(client, decode_message(raw, _LIMITS))
        except SutureError as error:
            seen = peek(raw[0]) if raw else None
            self._reply(client, seen[2] if seen else 0, error_reply(error))

    def _on_message(self, client: bytes, message: Message) -> None:
        key = client, message.request_id
        if message.type is MessageType.LOCAL_INFER:
            if key in self._tasks:
                raise ProtocolError(f"request {message.request_id} of this client is already in flight")
            # The arrays are copied out of the message here, before the next one is read.
            args, kwargs = _call_of(unpack_tree(message))
            task = self._group.create_task(self._infer(key, message, args, kwargs))
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key, None))
        elif message.type is MessageType.CANCEL:
            if key in self._tasks:
                self._tasks[key].cancel()
        elif message.type is MessageType.LOCAL_STATUS:
            state = self._agent.status(with_labels=message.header.with_labels)
            self._reply(client, message.request_id, LocalState(state=state))
        elif message.type is MessageType.PING:
            self._reply(client, message.request_id, Pong())
        else:
            raise ProtocolError(f"{message.type.name} is not for an agent's local socket")

    async def _infer(
        self, key: tuple[bytes, int], message: Message, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        client, request_id = key
        header = message.header
        try:
            result = await self._agent.infer(
                header.model,
                *args,
                deadline_ms=header.deadline_ms,
                objective=header.objective,
                **kwargs,
            )
        except SutureError as error:
            self._reply(client, request_id, error_reply(error))
            return
        tree, tensors, payloads = pack_tree(result.outputs)
        self._reply(
            client,
            request_id,
            LocalResult(
                tensors=tensors,
                tree=tree,
                where=result.where,
                cut=SET_CUT if result.cut_index < 0 else result.cut_index,
                cut_name=result.cut,
                codec=result.codec,
                uplink_bytes=result.uplink_bytes,
                latency_ms=result.latency_ms,
                breakdown=dict(result.breakdown),
                decision=dict(result.decision),
                fallback=result.fallback or "",
                energy_mj=result.energy_mj,
                meter=result.meter,
            ),
            payloads,
        )

    def _reply(self, client: bytes, request_id: int, header: Header, payloads: Any = ()) -> None:
        frames = encode_message(header, payloads, request_id=request_id)
        send_now(self._socket, [client, *frames])  # a client that has gone, or does not read, gets nothing
        self._inbox.look_again()

    # binding

    def _bind(self) -> None:
        scheme, _, address = self.endpoint.partition("://")
        mask = None
        if scheme == "tcp":
            _require_loopback(self.endpoint, address)
            self._door = TokenDoor(self._context, made_token(self._token_file or default_token_file()))
            self._door.guard(self._socket)
        else:
            _claim(Path(address), self._mode)
            mask = os.umask(0o777 & ~self._mode)  # from its first moment it is nobody else's
        try:
            self._socket.bind(self.endpoint)
        except zmq.ZMQError as error:
            raise StartupError(
                f"cannot bind the local socket {self.endpoint}: {error.strerror}; another agent may hold it: "
                "stop that, or choose another address with socket: in the configuration"
            ) from error
        finally:
            if mask is not None:
                os.umask(mask)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        if scheme == "ipc":
            self._path = Path(address)


def _call_of(call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not isinstance(call, tuple) or len(call) != 2:
        raise ProtocolError("the tree of a call is a tuple of its arguments and keyword arguments")
    args, kwargs = call
    if not isinstance(args, tuple) or not isinstance(kwargs, dict) or "deadline_ms" in kwargs:
        raise ProtocolError("the tree of a call is a tuple of its arguments and keyword arguments")
    return args, kwargs


def _require_loopback(endpoint: str, address: str) -> None:
    host = address.rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    raise ConfigError(
        f"socket: {endpoint} would serve other machines; use an ipc:// path, or tcp://127.0.0.1 and a port"
    )


def _require_own_directory(directory: Path, socket_mode: int) -> None:
    """Make it where it is missing, for those who may use the socket; refuse one where others could replace
    the socket."""
    others = (0o050 if socket_mode & 0o060 else 0) | (0o005 if socket_mode & 0o006 else 0)
    try:
        directory.mkdir(mode=0o700 | others, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise StartupError(
            f"socket: cannot use the directory {directory}: {error.strerror}; create it, or choose another "
            "path"
        ) from error
    anyone = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    if anyone or status.st_uid not in (0, os.geteuid()):
        who = "anyone on this device" if anyone else f"another user (uid {status.st_uid})"
        raise ConfigError(
            f"socket: {who} could replace what is in {directory}; choose a directory that only this user can "
            "write"
        )


def _claim(path: Path, mode: int) -> None:
    """Make way for binding: ZeroMQ itself would take the path from an agent that is alive."""
    if os.fspath(path).startswith("@"):
        raise ConfigError(f"socket: {path} is an abstract name, which has no permissions; choose a path")
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ConfigError(
            f"socket: the path {path} is longer than {_LONGEST_PATH} bytes; choose a shorter one"
        )
    _require_own_directory(path.parent, mode)
    try:
        there = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(there):
        raise StartupError(f"socket: {path} exists and is no socket; remove it, or choose another path")
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()  # left behind by an agent that was killed
            return
        except OSError as error:
            raise StartupError(f"socket: cannot use {path}: {error.strerror}; choose another path") from error
        owner = probe.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, struct.calcsize("3i"))
    pid = struct.unpack("3i", owner)[0]
    raise StartupError(
        f"socket: {path} is in use by process {pid}, an agent that is running; stop it, or give this one "
        "another socket: in its configuration"
    )
