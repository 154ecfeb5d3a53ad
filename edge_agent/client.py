"""An application's way to an agent in another process on the same device.  numpy only, no torch."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from edge_agent.inbox import Inbox, send_now
from edge_agent.local_token import USERNAME, find_token
from edge_agent.local_wire import pack_tree, unpack_tree
from edge_agent.result import Result, Where
from shared.errors import (
    AuthError,
    DeadlineError,
    InternalError,
    ProtocolError,
    SutureError,
    UnavailableError,
)
from shared.wire import (
    SET_CUT,
    Message,
    MessageType,
    WireLimits,
    decode_message,
    encode_message,
    error_from_reply,
)
from shared.wire.messages import Cancel, LocalInfer, LocalResult, LocalState, LocalStatus

__all__ = ["Client"]

_LIMITS = WireLimits(max_message_bytes=256 * 2**20, max_decoded_bytes=512 * 2**20)
_QUEUE = 64
_LAST_WORDS_MS = 100
# A wrong token is the one or the other: libzmq does not always understand its own refusal.
_TURNED_AWAY = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_GRACE_MS = 50.0
"""What an agent that keeps its promise needs to say that the deadline has passed."""


class Client:
    """A connection to an agent::

        async with Client("ipc:///run/user/1000/suture-agent.sock") as client:
            result = await client.infer("efficientnet-lite0", image, deadline_ms=200)

    Entering waits up to ``patience_s`` for the agent and raises UnavailableError when there is none.  One
    client carries many requests at once; it belongs to one event loop.  When the agent goes away, requests
    in flight end in UnavailableError at once, and the client can be used again once it is back.

    Leaving takes no more requests and gives those in flight ``drain_s`` to end; leaving by an exception gives
    them no time.  What has not ended then is withdrawn from the agent and ends in UnavailableError.

    A ``tcp://`` endpoint asks for the agent's token: ``token``, else the environment's ``SUTURE_TOKEN``, else
    what ``token_file`` holds, which is the default of the agent's ``socket_token_file``.  Entering raises
    AuthError when there is none or the agent has another.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        patience_s: float = 2.0,
        drain_s: float = 5.0,
        token: str | None = None,
        token_file: str | Path | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._patience_s = patience_s
        self._drain_s = drain_s
        self._token = token
        self._token_file = None if token_file is None else Path(token_file)
        self._refusal = ""
        self._closing = True
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._connected = asyncio.Event()
        self._answered = asyncio.Event()
        self._context: zmq.Context[Any]
        self._socket: zmq.Socket[Any]
        self._monitor: zmq.Socket[Any]
        self._inboxes: list[Inbox] = []

    async def __aenter__(self) -> Client:
        token = None
        if self.endpoint.startswith("tcp://"):
            token = self._token or find_token(self._token_file)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, _LAST_WORDS_MS)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.SNDHWM, _QUEUE)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _LIMITS.max_message_bytes)
        # An agent that is stopped or stuck keeps its end of the connection but does not answer these.
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, 500)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 1500)
        if token is not None:
            self._socket.setsockopt_string(zmq.PLAIN_USERNAME, USERNAME)
            self._socket.setsockopt_string(zmq.PLAIN_PASSWORD, token)
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | _TURNED_AWAY | zmq.EVENT_DISCONNECTED
        )
        self._inboxes = [Inbox(self._socket, self._on_frames), Inbox(self._monitor, self._on_monitor)]
        for inbox in self._inboxes:
            inbox.failure.add_done_callback(self._on_defect)
        try:
            self._socket.connect(self.endpoint)
            await asyncio.wait_for(self._answered.wait(), self._patience_s)
            if self._refusal:
                raise AuthError(self._refusal)
            self._closing = False
        except (TimeoutError, zmq.ZMQError) as error:
            self._close()
            raise UnavailableError(
                f"no agent answers at {self.endpoint}; start one with: edge-agent --config FILE"
            ) from error
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
        self._closing = True
        try:
            if kind is None and self._waiting:
                await asyncio.wait(list(self._waiting.values()), timeout=self._drain_s)
        finally:
            for request_id, answer in self._waiting.items():
                if not answer.done():
                    self._send(Cancel(), (), request_id)
            self._fail_waiting("the client was closed before the answer came")
            self._close()

    async def infer(
        self,
        model: str,
        /,
        *args: Any,
        deadline_ms: float | None = None,
        objective: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Result:
        """As :meth:`edge_agent.EdgeAgent.infer`, through the agent's process.

        The result's latency is the one seen here; ``local_api`` in its breakdown is what the way to the
        agent and back took.  Raises what the agent's infer raises, or UnavailableError when the agent is
        gone.  Cancelling withdraws the request from the agent.
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        tree, tensors, payloads = pack_tree((args, kwargs))
        request_id = next(self._ids)
        header = LocalInfer(
            model=model,
            tensors=tensors,
            tree=tree,
            deadline_ms=deadline_ms,
            objective=dict(objective) if isinstance(objective, Mapping) else objective,
        )
        if self._closing:
            raise UnavailableError("this client is closed; open a new one")
        if self._refusal:
            raise AuthError(self._refusal)
        if not self._connected.is_set() or not self._send(header, payloads, request_id):
            raise UnavailableError(
                f"the agent at {self.endpoint} is gone or does not keep up; try again later"
            )
        timeout_s = None if deadline_ms is None else (deadline_ms + _GRACE_MS) / 1000.0
        try:
            async with asyncio.timeout(timeout_s):
                message = await self._answer(request_id)
        except TimeoutError:
            self._send(Cancel(), (), request_id)
            raise DeadlineError(
                f"the agent at {self.endpoint} did not answer by the deadline of {deadline_ms:g} ms; "
                "it may be stuck: see its log"
            ) from None
        except asyncio.CancelledError:
            self._send(Cancel(), (), request_id)
            raise
        return _result_of(message).seen_after((loop.time() - began_s) * 1000.0, "local_api")

    async def status(self, *, with_labels: bool = False) -> dict[str, Any]:
        """The agent's state: its link, and of each network the plan, what it takes and what became of its
        requests; the keys are those of :func:`edge_agent.status.agent_status`.

        Raises UnavailableError when the agent is gone or says nothing for ``patience_s``.  Cancel-safe.
        """
        gone = f"the agent at {self.endpoint} is gone or does not answer; see its log"
        request_id = next(self._ids)
        if not self._connected.is_set() or not self._send(
            LocalStatus(with_labels=with_labels), (), request_id
        ):
            raise UnavailableError(gone)
        try:
            async with asyncio.timeout(self._patience_s):
                message = await self._answer(request_id)
        except TimeoutError:
            raise UnavailableError(gone) from None
        if message.type is MessageType.ERROR:
            raise error_from_reply(message.header)
        if not isinstance(message.header, LocalState) or not isinstance(message.header.state, dict):
            raise InternalError(f"the agent answered with {message.type.name}; update the older of the two")
        return message.header.state

    async def _answer(self, request_id: int) -> Message:
        """What answers a request that was just sent."""
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        try:
            return await answer
        finally:
            del self._waiting[request_id]

    def _send(self, header: Any, payloads: Any, request_id: int) -> bool:
        if self._socket.closed:
            return False
        sent = send_now(self._socket, encode_message(header, payloads, request_id=request_id))
        self._inboxes[0].look_again()
        return sent

    def _on_monitor(self, frames: list[memoryview]) -> None:
        event = parse_monitor_message([bytes(frame) for frame in frames])["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._refusal = ""
            self._connected.set()
            self._answered.set()
        elif event & _TURNED_AWAY:
            self._refusal = (
                f"{self.endpoint} has another token, or is no agent; compare SUTURE_TOKEN or token_file with "
                "what the agent's socket_token_file holds"
            )
            self._answered.set()
        else:
            self._connected.clear()
            self._fail_waiting(f"the agent at {self.endpoint} went away; its requests went with it")

    def _on_frames(self, frames: list[memoryview]) -> None:
        try:
            message = decode_message(frames, _LIMITS)
        except ProtocolError as error:
            self._fail_waiting(f"{self.endpoint} does not speak as an agent does: {error}")
            return
        answer = self._waiting.get(message.request_id)
        if answer is not None and not answer.done():
            answer.set_result(message)

    def _on_defect(self, failure: asyncio.Future[None]) -> None:
        """A defect in a handler of this class must not leave callers waiting."""
        if not failure.cancelled():
            defect = failure.exception()
            self._connected.clear()
            self._fail_waiting(f"reading from {self.endpoint} failed: {defect!r}; open a new client")

    def _fail_waiting(self, why: str) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(UnavailableError(why))

    def _close(self) -> None:
        for inbox in self._inboxes:
            inbox.close()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
        self._context.term()


def _result_of(message: Message) -> Result:
    if message.type is MessageType.ERROR:
        raise error_from_reply(message.header)
    header = message.header
    if not isinstance(header, LocalResult):
        raise InternalError(f"the agent answered with {message.type.name}; update the older of the two")
    try:
        outputs = unpack_tree(message)
        where = Where(header.where)
    except (SutureError, ValueError) as error:
        raise InternalError(f"the agent's answer cannot be read: {error}") from error
    return Result(
        outputs=outputs,
        where=where,
        cut_index=-1 if header.cut == SET_CUT else header.cut,
        cut=header.cut_name,
        codec=header.codec,
        uplink_bytes=header.uplink_bytes,
        latency_ms=header.latency_ms,
        breakdown=header.breakdown,
        decision=header.decision or {},
        fallback=header.fallback or None,
        energy_mj=header.energy_mj,
        meter=header.meter,
    )
