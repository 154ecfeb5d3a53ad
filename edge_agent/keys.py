"""The device's keys on the sockets towards the gateway, and what a failed handshake means."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

import zmq

from edge_agent.listener import LinkState
from shared.config import LinkKeysConfig
from shared.errors import ConfigError
from shared.keys import KeyPair, read_secret, server_key

__all__ = ["HANDSHAKE_FAILURES", "LinkKeys", "refusal"]

HANDSHAKE_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
"""The events of a socket's monitor that :func:`refusal` explains."""


@dataclass(frozen=True, slots=True)
class LinkKeys:
    """This device's key pair and the gateway's public key."""

    pair: KeyPair
    server: str

    @classmethod
    def load(cls, config: LinkKeysConfig) -> LinkKeys:
        """Read the files that the configuration names.  Raises ConfigError."""
        keys = cls(read_secret(config.secret), server_key(config.server))
        if zmq.curve_public(keys.pair.secret.encode()).decode() != keys.pair.public:
            raise ConfigError(f"the two halves in {config.secret} are not of one pair; make a new one")
        return keys

    def apply(self, socket: zmq.Socket[Any]) -> None:
        """Talk to nobody but that gateway, encrypted.  Before connecting."""
        socket.setsockopt_string(zmq.CURVE_PUBLICKEY, self.pair.public)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, self.pair.secret)
        socket.setsockopt_string(zmq.CURVE_SERVERKEY, self.server)


def refusal(endpoint: str, event: int, value: int, keys: LinkKeys | None) -> tuple[LinkState, str]:
    """What a failed handshake says of the other side, and the next step for who reads it.

    ZeroMQ tells the connecting side little: a gateway with another key, or with keys against none, just
    closes the connection.
    """
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and keys is not None:
        return LinkState.REFUSED, (
            f"{endpoint} does not list this device's key {keys.pair.public}; put this device's .key file "
            "into the gateway's gateway.keys.devices"
        )
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and value == errno.ETIMEDOUT:
        return LinkState.OFFLINE, f"{endpoint} connects but does not finish the handshake"
    if keys is not None:
        return LinkState.REFUSED, (
            f"{endpoint} refused the handshake: it has no keys, or its public key is not {keys.server}; "
            "compare cloud.keys.server with what `edge-agent keys show` prints for the gateway's key file"
        )
    return LinkState.REFUSED, (
        f"{endpoint} refused the handshake: it serves nobody without keys, or is no gateway; make keys with "
        "`edge-agent keys new` and set cloud.keys"
    )
