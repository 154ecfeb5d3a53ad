"""The connection to the gateway: sessions one after the other, and what the agent asks of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import zmq

from edge_agent.keys import LinkKeys
from edge_agent.listener import LinkListener, LinkState
from edge_agent.session import Session
from shared.config import CloudLinkConfig
from shared.wire import Buffer, WireLimits, budget_from_ms, encode_message
from shared.wire.messages import Cancel, Goodbye, Hello, Infer

__all__ = ["CloudLink", "LinkListener", "LinkState"]


class CloudLink:
    """Keeps one session with the gateway alive; :meth:`run` is its only task.

    Raises ConfigError when the configured keys cannot be read.
    """

    def __init__(
        self,
        config: CloudLinkConfig,
        hello: Hello,
        listener: LinkListener,
        *,
        limits: WireLimits | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.state = LinkState.CONNECTING
        self.reason = "not tried yet"
        self.first_contact = asyncio.Event()
        """Set once it is known whether the gateway answers."""
        self._config = config
        self._keys = LinkKeys.load(config.keys) if config.keys is not None else None
        self._hello = hello
        self._listener = listener
        self._limits = limits or WireLimits()
        self._rng = rng or random.Random()
        self._context = zmq.Context()
        self._session: Session | None = None

    async def run(self) -> None:
        """Dial, serve and dial again until cancelled."""
        delay_ms = self._config.reconnect_min_ms
        try:
            while True:
                self._session = Session(
                    self._context,
                    self._config,
                    self._hello,
                    self._listener,
                    self._enter,
                    self._limits,
                    self._keys,
                )
                try:
                    was_online, state, reason = await self._session.run()
                finally:
                    self._session.close()
                    self._session = None
                self._enter(state, reason)
                delay_ms = (
                    self._config.reconnect_min_ms
                    if was_online
                    else min(delay_ms * 2, self._config.reconnect_max_ms)
                )
                await asyncio.sleep(delay_ms * self._rng.uniform(0.5, 1.0) / 1000.0)
        finally:
            self._enter(LinkState.CLOSED, "the agent is stopping")
            self._context.term()

    @property
    def online(self) -> bool:
        return self.state is LinkState.ONLINE

    def send_infer(
        self,
        request_id: int,
        header: Infer,
        payloads: Sequence[Buffer],
        *,
        model: int,
        cut: int,
        codec: int,
        budget_ms: float,
        result_bytes: int = 0,
    ) -> bool:
        """Announce and send the work now, or return False: there is no session, or its queue is full.

        ``result_bytes`` is the expected size of the answer.
        """
        session = self._session
        if session is None or not self.online:
            return False
        frames = encode_message(
            header,
            payloads,
            request_id=request_id,
            model=model,
            cut=cut,
            codec=codec,
            budget_ms=budget_from_ms(budget_ms),
        )
        return session.send_work(request_id, frames, payloads, result_bytes, budget_ms)

    def send_cancel(self, request_id: int) -> None:
        """Tell the gateway, if it is there, that nobody waits for this answer."""
        if self._session is not None and self.online:
            self._session.silence.forget(request_id)
            self._session.send(Cancel(), request_id=request_id)

    @property
    def unconfirmed_bytes(self) -> int:
        """Bytes handed to ZeroMQ that the gateway is not yet known to have."""
        return self._session.silence.unconfirmed_bytes if self._session else 0

    def close(self) -> None:
        """Say GOODBYE; the task then wants to be cancelled."""
        if self._session is not None and self.online:
            self._session.send(Goodbye(reason="the agent is stopping"))

    def _enter(self, state: LinkState, reason: str) -> None:
        if state is not LinkState.CONNECTING:
            self.first_contact.set()
        news = state is not self.state or (state is LinkState.REFUSED and reason != self.reason)
        self.state, self.reason = state, reason
        if news:
            self._listener.on_link_state(state, reason)
