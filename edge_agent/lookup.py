"""The addresses behind a gateway's name, looked up beside the loop.

ZeroMQ would look a name up in the thread that serves every socket, and take one address of several.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from urllib.parse import urlsplit

__all__ = ["Lookup", "is_name"]


def is_name(endpoint: str) -> bool:
    """Whether a tcp endpoint names its host instead of giving an address."""
    parts = urlsplit(endpoint)
    if parts.scheme != "tcp" or not parts.hostname:
        return False
    try:
        ipaddress.ip_address(parts.hostname.partition("%")[0])
    except ValueError:
        return True
    return False


class Lookup:
    """Looks names up, each in a thread that nobody waits for longer than he likes."""

    def __init__(self) -> None:
        self._pending: dict[str, asyncio.Future[list[str]]] = {}

    async def addresses(self, endpoint: str, patience_s: float) -> list[str]:
        """The endpoints that this one stands for: itself when it has no name in it, else one for each
        address.  Raises OSError when there is none, or not in time; cancel-safe."""
        if not is_name(endpoint):
            return [endpoint]
        pending = self._pending.get(endpoint)
        if pending is None:
            pending = self._pending[endpoint] = asyncio.get_running_loop().create_future()
            # A daemon, since a resolver may take half a minute, for which nobody wants to wait at the end.
            threading.Thread(target=_resolve, args=(endpoint, pending), name="lookup", daemon=True).start()
        done, _ = await asyncio.wait([pending], timeout=patience_s)
        if not done:
            raise TimeoutError(f"the name in {endpoint} is still being looked up")
        del self._pending[endpoint]
        return pending.result()


def _resolve(endpoint: str, outcome: asyncio.Future[list[str]]) -> None:
    parts = urlsplit(endpoint)
    found: list[str] | OSError
    try:
        infos = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
        hosts = dict.fromkeys(str(info[4][0]) for info in infos)
        found = [f"tcp://{_bracketed(host)}:{parts.port}" for host in hosts]
    except OSError as error:
        found = error
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile, and nobody asks any more
        outcome.get_loop().call_soon_threadsafe(_settle, outcome, found)


def _settle(outcome: asyncio.Future[list[str]], found: list[str] | OSError) -> None:
    if isinstance(found, OSError):
        outcome.set_exception(found)
        outcome.exception()  # seen, also where nobody asks any more
    else:
        outcome.set_result(found)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
