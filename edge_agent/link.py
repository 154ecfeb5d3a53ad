"""The connection to the cloud: sessions one after the other, and what the agent asks of them."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence

import zmq

from edge_agent.gateways import Gateways
from edge_agent.keys import LinkKeys
from edge_agent.listener import LinkListener, LinkState
from edge_agent.load_feed import reachable
from edge_agent.lookup import Lookup
from edge_agent.session import Session, now_ms
from shared.config import CloudLinkConfig
from shared.wire import Buffer, WireLimits, budget_from_ms, encode_message
from shared.wire.messages import Cancel, Card, Hello, Infer

__all__ = ["CloudLink", "LinkListener", "LinkState"]

_LOOKUP_S = 2.0
"""How long the next gateway waits for names to be looked up; the looking up goes on."""

_DIAL_MS = 200.0
"""From dialling a gateway to its card, until it was measured."""

_ANSWER_MS, _ANSWER_TIMEOUTS = 1_000.0, 3.0
"""How long a gateway may take to answer before another one is tried, and that in heartbeat timeouts."""


class CloudLink:
    """Keeps one session with one of the gateways alive; :meth:`run` is its only task.

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
        self._lookup = Lookup()
        self._addresses: dict[str, list[str]] = {}
        self._gateways = Gateways(self._rng, config.reconnect_min_ms, config.reconnect_max_ms)
        self._gateway_of: dict[str, str] = {}
        self._dial_ms = _DIAL_MS

    async def run(self) -> None:
        """Dial, serve and dial the next gateway until cancelled."""
        try:
            while True:
                endpoint = await self._choose()
                self._session = Session(
                    self._context,
                    self._config,
                    endpoint,
                    self._hello,
                    self._listener,
                    self,
                    self._limits,
                    self._keys,
                    patience_ms=self._patience_ms(endpoint),
                )
                try:
                    _, state, reason = await self._session.run()
                finally:
                    self._session.close()
                    self._session = None
                self._gateways.failed(endpoint, now_ms())
                self.enter(state, reason)
        finally:
            self.enter(LinkState.CLOSED, "the agent is stopping")
            self._context.term()

    async def _choose(self) -> str:
        """The gateway to dial, once it is time to."""
        while True:
            if self._gateways.all_failed:
                await self._look_up()
            choice = self._gateways.next(now_ms())
            if choice is None:
                await asyncio.sleep(self._config.reconnect_max_ms * self._rng.uniform(0.5, 1.0) / 1000.0)
                continue
            endpoint, when_ms = choice
            await asyncio.sleep(max(when_ms - now_ms(), 0.0) / 1000.0)
            return endpoint

    async def _look_up(self) -> None:
        """What the configuration's names stand for now; what cannot be looked up stays as it was."""
        for endpoint in self._config.gateways:
            try:
                found = await self._lookup.addresses(endpoint, _LOOKUP_S)
            except OSError as error:
                if endpoint not in self._addresses:
                    self.enter(LinkState.OFFLINE, f"cannot look up {endpoint}: {error}")
            else:
                self._addresses[endpoint] = found
        self._gateways.configure(each for found in self._addresses.values() for each in found)

    def _patience_ms(self, endpoint: str) -> float:
        """How long a gateway may take to answer while there are others: longer with every failure, since
        the link may be that slow."""
        if len(self._gateways) == 1:
            return math.inf
        first_ms = max(_ANSWER_MS, _ANSWER_TIMEOUTS * self._config.heartbeat_timeout_ms)
        return first_ms * (1 + self._gateways.failures(endpoint))

    # what the session tells

    def on_card(self, card: Card) -> None:
        session = self._session
        assert session is not None
        if not self.online:
            self._dial_ms = now_ms() - session.began_ms
        self._gateways.served(session.endpoint)
        gateways = [reachable(gateway, session.endpoint) for gateway in card.gateways]
        self._gateways.learn(gateways)
        feeds = [reachable(feed, session.endpoint) for feed in card.load_endpoints]
        self._gateway_of = dict(zip(feeds, gateways, strict=False))

    def on_feed(self, feed: str) -> None:
        gateway = self._gateway_of.get(feed)
        if gateway is not None:
            self._gateways.heard(gateway, now_ms())

    def enter(self, state: LinkState, reason: str) -> None:
        if state is not LinkState.CONNECTING:
            self.first_contact.set()
        news = state is not self.state or (state is LinkState.REFUSED and reason != self.reason)
        self.state, self.reason = state, reason
        if news:
            self._listener.on_link_state(state, reason)

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

    def want(self, index: int) -> None:
        """A request ran here because this network, by its index on the card, has no replica."""
        if self._session is not None and self.online:
            self._session.want(index)

    @property
    def unconfirmed_bytes(self) -> int:
        """Bytes handed to ZeroMQ that the gateway is not yet known to have."""
        return self._session.silence.unconfirmed_bytes if self._session else 0

    def moves_in_ms(self) -> float | None:
        """How long it should take until another gateway takes work, were the present one lost now; None
        when none is known that did not fail."""
        session = self._session
        if session is None or not self._gateways.has_spare(session.endpoint):
            return None
        return self._dial_ms

    def close(self) -> None:
        """Say GOODBYE; the task then wants to be cancelled."""
        if self._session is not None and self.online:
            self._session.say_goodbye("the agent is stopping")
