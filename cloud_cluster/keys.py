"""Who may connect to a gateway: its own key, and the keys of devices and replicas that it lists.

ZeroMQ asks the :class:`Doorkeeper` about every connection before a byte of it is read (ZAP, RFC 27).  The
directory of devices is looked at every second: a file that appears lists a device, one that goes or no
longer reads ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

from cloud_cluster.sockets import Inbox
from shared.config import GatewayKeysConfig
from shared.errors import ConfigError
from shared.keys import PUBLIC_SUFFIX, KeyPair, PublicKey, read_public, read_public_of, read_secret

__all__ = ["DeviceList", "Doorkeeper", "Port", "ReplicaKeys"]

log = logging.getLogger("suture.keys")

_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_VERSION = b"1.0"
_LOOK_S = 1.0
# Of so many keys it is remembered that their refusal was told; anyone can make up more.
_TOLD_KEYS = 256


class Port(Enum):
    """What a socket is for, and its ZAP domain."""

    DEVICES = b"devices"
    REPLICAS = b"replicas"


@dataclass(frozen=True, slots=True)
class ReplicaKeys:
    """What a replica shows to the gateways, and the key that they have in common."""

    pair: KeyPair
    server: str

    @classmethod
    def load(cls, config: GatewayKeysConfig) -> ReplicaKeys:
        """Read the replicas' pair and the gateway's public half.  Raises ConfigError."""
        return cls(_read_pair(config.replicas), read_public_of(config.secret).key)

    def apply(self, socket: zmq.Socket[Any]) -> None:
        """Talk to nobody but a gateway with that key, encrypted.  Before connecting."""
        socket.setsockopt_string(zmq.CURVE_PUBLICKEY, self.pair.public)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, self.pair.secret)
        socket.setsockopt_string(zmq.CURVE_SERVERKEY, self.server)


class DeviceList:
    """The public files of a directory, by key.

    :meth:`look` reads what has changed.  A file that cannot be read lists nobody: when in doubt, no access.
    A directory that cannot be read leaves the list as it was.
    """

    def __init__(self, directory: Path) -> None:
        """Raises ConfigError when there is no such directory."""
        self.directory = directory
        self._files: dict[str, tuple[tuple[int, ...], PublicKey | None]] = {}
        self._unreadable = False
        problems = self.look()
        if self._unreadable:
            raise ConfigError(problems[0])
        for problem in problems:
            log.error("%s", problem)
        self.listed = self._by_key()

    def look(self) -> list[str]:
        """Read what is new or has changed.  Returns what is wrong and was not wrong before."""
        try:
            found = self._signatures()
        except OSError as error:
            known, self._unreadable = self._unreadable, True
            problem = (
                f"cannot read the directory of devices {self.directory}: {error.strerror}; "
                f"create it, with one {PUBLIC_SUFFIX} file for each device"
            )
            return [] if known else [problem]
        self._unreadable = False
        problems = []
        files: dict[str, tuple[tuple[int, ...], PublicKey | None]] = {}
        for name, signature in sorted(found.items()):
            before = self._files.get(name)
            if before is not None and before[0] == signature:
                files[name] = before
                continue
            try:
                files[name] = signature, read_public(self.directory / name)
            except ConfigError as error:
                files[name] = signature, None
                problems.append(str(error))
        self._files = files
        return problems

    def take(self) -> Mapping[str, PublicKey]:
        """Make what was last read the list.  Returns the list that it replaces."""
        before, self.listed = self.listed, self._by_key()
        return before

    def _signatures(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.name.endswith(PUBLIC_SUFFIX):
                    with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                        status = entry.stat()
                        found[entry.name] = status.st_mtime_ns, status.st_size, status.st_ino
        return found

    def _by_key(self) -> Mapping[str, PublicKey]:
        # Of two files with one key the first by name counts.
        return {entry.key: entry for _, entry in reversed(self._files.values()) if entry is not None}


class Doorkeeper:
    """Answers for all sockets of one context.  Raises ConfigError when a key file is wrong.

    :meth:`open` before any of its sockets is bound; :meth:`close` after they are closed.
    """

    def __init__(self, config: GatewayKeysConfig) -> None:
        self._pair = _read_pair(config.secret)
        self._replicas = read_public_of(config.replicas).key
        self._devices = DeviceList(config.devices)
        self._told: dict[str, None] = {}
        self._socket: zmq.Socket[Any] | None = None
        self._inbox: Inbox | None = None

    @property
    def public(self) -> str:
        """The gateway's own key."""
        return self._pair.public

    def device(self, key: str) -> PublicKey | None:
        """What is listed under the key; None when nothing is, or no more."""
        return self._devices.listed.get(key)

    def open(self, context: zmq.Context[Any]) -> Inbox:
        """Begin to answer ZeroMQ's questions; a defect in that is the inbox's failure."""
        self._socket = context.socket(zmq.REP)
        self._socket.bind(_ZAP_ENDPOINT)
        self._inbox = Inbox(self._socket, self._on_question)
        return self._inbox

    def guard(self, socket: zmq.Socket[Any], port: Port) -> None:
        """Let only peers in that hold a listed key and know this gateway's.  Before it is bound."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, self._pair.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, port.value)

    async def watch(self, on_revoked: Callable[[str], None], on_new_limits: Callable[[], None]) -> None:
        """Look at the directory every second, for ever, and tell which keys it lost."""
        while True:
            await asyncio.sleep(_LOOK_S)
            for problem in await asyncio.to_thread(self._devices.look):
                log.error("%s", problem)
            before, now = self._devices.take(), self._devices.listed
            for key in before.keys() - now.keys():
                log.warning("device %s is revoked: its key %s is no longer listed", before[key].name, key)
                on_revoked(key)
            for key in now.keys() - before.keys():
                self._told.pop(key, None)
                log.info("device %s is listed, with key %s", now[key].name, key)
            if any(before[key] != now[key] for key in before.keys() & now.keys()):
                on_new_limits()

    def close(self) -> None:
        if self._inbox is not None and self._socket is not None:
            self._inbox.close()
            self._socket.close(linger=0)

    def status(self) -> dict[str, Any]:
        """For people: this gateway's key, and how many devices are listed."""
        return {"public_key": self.public, "listed": len(self._devices.listed)}

    def _on_question(self, frames: list[zmq.Frame]) -> None:
        question = [frame.bytes for frame in frames]
        version, request, domain, address, _, mechanism, *credentials = question
        if version != _ZAP_VERSION or mechanism != b"CURVE" or len(credentials) != 1:
            self._answer(request, b"500", b"not asked by CURVE")
            return
        key = z85.encode(credentials[0]).decode()
        for_replicas = domain == Port.REPLICAS.value
        if key == self._replicas if for_replicas else self.device(key) is not None:
            self._answer(request, b"200", b"OK", key.encode())
            return
        peer = address.decode(errors="replace")
        what = f"refused {peer} at the port for {domain.decode()}: key {key} is not listed"
        self._answer(request, b"400", b"this key is not listed")
        if for_replicas:
            self._tell(key, f"{what}; give gateway and replicas the same gateway.keys.replicas")
        else:
            self._tell(
                key, f"{what}; to serve it, put its {PUBLIC_SUFFIX} file into {self._devices.directory}"
            )

    def _answer(self, request: bytes, status: bytes, text: bytes, user: bytes = b"") -> None:
        assert self._socket is not None
        self._socket.send_multipart([_ZAP_VERSION, request, status, text, user, b""])
        assert self._inbox is not None
        self._inbox.nudge()

    def _tell(self, key: str, what: str) -> None:
        if key in self._told or len(self._told) >= _TOLD_KEYS:
            return
        self._told[key] = None
        log.warning("%s", what)
        if len(self._told) == _TOLD_KEYS:
            log.warning("%d unlisted keys were refused; further ones are only counted", _TOLD_KEYS)


def _read_pair(path: Path) -> KeyPair:
    pair = read_secret(path)
    if zmq.curve_public(pair.secret.encode()).decode() != pair.public:
        raise ConfigError(f"the two halves in {path} are not of one pair; make a new one")
    return pair
