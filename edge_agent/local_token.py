"""The token of an agent's TCP socket: a secret of the device that whoever connects must know.

An ipc path has permissions, a TCP port has none: every user of the device can connect to it.  Over TCP the
agent therefore asks for ZeroMQ's PLAIN mechanism (https://rfc.zeromq.org/spec/24/) with the token as the
password, so that a peer without it is turned away in the handshake, before any message of its is read.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import stat
from pathlib import Path
from typing import Any

import zmq

from edge_agent.inbox import Inbox, send_now
from shared.errors import AuthError, ConfigError, StartupError

__all__ = ["USERNAME", "TokenDoor", "default_token_file", "find_token", "made_token", "read_token"]

log = logging.getLogger("suture.agent")

USERNAME = "suture"

_VARIABLE = "SUTURE_TOKEN"
_TOKEN_BYTES = 32
_MOST_BYTES = 255  # what PLAIN has room for
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_VERSION = b"1.0"


def default_token_file() -> Path:
    """Where agent and clients of one user look unless they are told otherwise."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "suture" / "socket-token"


def made_token(path: Path) -> str:
    """The token in a file, which is made with a new one, for this user alone, where there is none.

    Raises ConfigError as :func:`read_token` does, StartupError when the file cannot be made.
    """
    if path.exists():
        return read_token(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError as error:
        raise StartupError(
            f"cannot make the token of the TCP socket in {path}: {error.strerror}; set socket_token_file to "
            "a path that this user can write, or use an ipc:// socket"
        ) from error
    with os.fdopen(made, "w", encoding="ascii") as file:
        file.write(f"{secrets.token_urlsafe(_TOKEN_BYTES)}\n")
    return read_token(path)


def read_token(path: Path) -> str:
    """Raises ConfigError for a file that cannot be read, that other users can, or that holds no token."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_MOST_BYTES + 2).strip()
    except OSError as error:
        raise ConfigError(f"cannot read the token in {path}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"other users can use {path}; remove it, and start the agent again for a new token")
    if not 16 <= len(text) <= _MOST_BYTES or not text.isascii() or any(byte <= 32 for byte in text):
        raise ConfigError(
            f"{path} holds no token of 16 to {_MOST_BYTES} printable characters; remove it, and start the "
            "agent again for a new one"
        )
    return text.decode("ascii")


def find_token(path: Path | None) -> str:
    """What a client shows: ``SUTURE_TOKEN``, else the token in ``path`` or in the default file.

    Raises AuthError that says where a token would have been found.
    """
    told = os.environ.get(_VARIABLE)
    if told:
        return told
    path = path or default_token_file()
    try:
        return read_token(path)
    except ConfigError as error:
        raise AuthError(
            f"an agent's TCP socket needs its token: {error}; set {_VARIABLE} to what the agent's "
            "socket_token_file holds, or let this user read that file"
        ) from error


class TokenDoor:
    """Answers ZeroMQ's question about each peer (https://rfc.zeromq.org/spec/27/) for one context.

    To be made before the guarded socket is bound, since a peer that finds no door is turned away, and
    closed before the context is.
    """

    def __init__(self, context: zmq.Context[Any], token: str) -> None:
        self._expected = token.encode("ascii")
        self._told = False
        self._socket: zmq.Socket[Any] = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_ZAP_ENDPOINT)
        self._inbox: Inbox | None = None

    def guard(self, socket: zmq.Socket[Any]) -> None:
        """Let only peers in that know the token.  Before it is bound."""
        socket.setsockopt(zmq.PLAIN_SERVER, 1)
        socket.setsockopt_string(zmq.ZAP_DOMAIN, USERNAME)

    def open(self) -> Inbox:
        """Answer from now on, on the running loop; a defect in that is the inbox's failure."""
        self._inbox = Inbox(self._socket, self._on_question)
        return self._inbox

    def close(self) -> None:
        if self._inbox is not None:
            self._inbox.close()
        self._socket.close()

    def _on_question(self, frames: list[memoryview]) -> None:
        _, request, _, address, _, mechanism, *credentials = [bytes(frame) for frame in frames]
        if mechanism == b"PLAIN" and hmac.compare_digest(credentials[1], self._expected):
            self._answer(request, b"200", b"OK")
            return
        if not self._told:
            self._told = True
            log.warning(
                "a program at %s has no token, or a wrong one, and is turned away, as all such are: it needs "
                "what socket_token_file holds",
                address.decode(errors="replace"),
            )
        self._answer(request, b"400", b"wrong token")

    def _answer(self, request: bytes, status: bytes, text: bytes) -> None:
        send_now(self._socket, [_ZAP_VERSION, request, status, text, b"", b""])
        assert self._inbox is not None
        self._inbox.look_again()
