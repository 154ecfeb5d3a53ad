"""Key files in a temporary directory, and peers that hold them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import zmq

from cloud_cluster.gateway import Gateway
from edge_agent.link import CloudLink, LinkState
from shared.config import CloudLinkConfig, GatewayConfig, GatewayKeysConfig, LinkKeysConfig
from shared.errors import SutureError
from shared.keys import KeyPair, write_pair
from shared.wire import Message
from shared.wire.messages import Card, Hello, LoadReport, ModelOffer
from tests.cloud_cluster.cloud_peers import FakeDevice, FakeReplica, Peer, gateway_config, running_gateway

HELLO = Hello(agent="test", software="test", models=[ModelOffer(name="net", digest="sha256:a")])


class Keyring:
    """A gateway's, a replica's and any number of devices' key files, as they lie on their machines."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.devices = root / "gateway" / "devices"
        self.devices.mkdir(parents=True)
        self.pairs: dict[str, KeyPair] = {}
        for name in ("gateway", "replica"):
            self.new(name, root / "gateway")

    def new(self, name: str, directory: Path | None = None) -> KeyPair:
        public, secret = (half.decode() for half in zmq.curve_keypair())
        self.pairs[name] = pair = KeyPair(public, secret)
        write_pair(directory or self.root / name, name, pair)
        return pair

    def list(self, name: str, limits: str = "") -> KeyPair:
        """Make a device and list it, the way docs/security.md says: a whole file by one rename."""
        pair = self.pairs.get(name) or self.new(name)
        text = (self.root / name / f"{name}.key").read_text()
        unfinished = self.devices / f"{name}.part"
        unfinished.write_text(text.replace("metadata\n", f"metadata\n{limits}"))
        os.replace(unfinished, self.devices / f"{name}.key")
        return pair

    def revoke(self, name: str) -> None:
        (self.devices / f"{name}.key").unlink()

    @property
    def of_gateway(self) -> GatewayKeysConfig:
        home = self.root / "gateway"
        return GatewayKeysConfig(
            secret=home / "gateway.key_secret", devices=self.devices, replicas=home / "replica.key_secret"
        )

    def of_device(self, name: str, server: str | None = None) -> LinkKeysConfig:
        return LinkKeysConfig(
            secret=self.root / name / f"{name}.key_secret", server=server or self.pairs["gateway"].public
        )

    def gateway_config(self, **keys: Any) -> GatewayConfig:
        return gateway_config(keys=self.of_gateway, **keys)

    @contextlib.asynccontextmanager
    async def gateway(self, **keys: Any) -> AsyncIterator[Gateway]:
        async with running_gateway(config=self.gateway_config(**keys)) as gateway:
            yield gateway

    def peer(self, kind: type[Peer], endpoint: str, name: str, identity: bytes | None = None) -> Any:
        """A few lines of a peer that holds this key."""
        return kind(endpoint, identity, curve=(self.pairs[name], self.pairs["gateway"].public))

    def device(self, gateway: Gateway, name: str, identity: bytes | None = None) -> FakeDevice:
        return self.peer(FakeDevice, gateway.device_endpoint, name, identity)  # type: ignore[no-any-return]

    def replica(self, gateway: Gateway, name: str = "replica") -> FakeReplica:
        return self.peer(FakeReplica, gateway.replica_endpoint, name)  # type: ignore[no-any-return]


class Listener:
    """Keeps what a device's link reports."""

    def __init__(self) -> None:
        self.states: list[tuple[LinkState, str]] = []
        self.cards: list[Card] = []
        self.loads: list[LoadReport] = []

    def on_link_state(self, state: LinkState, reason: str) -> None:
        self.states.append((state, reason))

    def on_card(self, card: Card) -> None:
        self.cards.append(card)

    def on_answer(self, message: Message) -> None: ...

    def on_refusal(self, request_id: int, error: SutureError) -> None: ...

    def on_span(self, span_bytes: int, span_ms: float) -> None: ...

    def on_rtt(self, rtt_ms: float) -> None: ...

    def on_load(self, report: LoadReport) -> None:
        self.loads.append(report)

    def uplink_bps(self) -> float:
        return 1e9

    def probe_bytes(self) -> int:
        return 0

    def on_probe_sent(self, probe_bytes: int) -> None: ...


@contextlib.asynccontextmanager
async def linked(
    endpoint: str, keys: LinkKeysConfig | None, **values: Any
) -> AsyncIterator[tuple[CloudLink, Listener]]:
    """The agent's own link, running."""
    listener = Listener()
    config = CloudLinkConfig(
        gateway=endpoint, keys=keys, reconnect_min_ms=20, reconnect_max_ms=100, heartbeat_ms=50, **values
    )
    link = CloudLink(config, HELLO, listener)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(link.run())
        yield link, listener
        task.cancel()
