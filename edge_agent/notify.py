"""What a service manager wants to hear, by the protocol of sd_notify(3): ready, stopping, still alive.

Nothing is sent where nobody listens, that is without NOTIFY_SOCKET in the environment.  The protocol is
datagrams of ``NAME=value`` lines on a Unix socket, which needs no library.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping

__all__ = ["ServiceManager"]

log = logging.getLogger("suture.agent")


class ServiceManager:
    """The service manager that started this process, if one did.

    ``environment`` is read once: NOTIFY_SOCKET is a path, or ``@`` and a name in the abstract namespace;
    WATCHDOG_USEC is the silence, in microseconds, after which the manager takes this process for stuck.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog_s = _seconds(environment)

    @property
    def watchdog_s(self) -> float | None:
        """After this silence the manager restarts the process; None when it does not watch."""
        return self._watchdog_s if self._address else None

    def ready(self, status: str) -> None:
        """The start is over and requests are served; ``status`` is what ``systemctl status`` shows."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        self._send(f"STATUS={status}")

    def stopping(self) -> None:
        """No new work is taken; the manager waits for the process to end."""
        self._send("STOPPING=1")

    async def keep_alive(self) -> None:
        """Say from this event loop that it turns, twice within the watchdog's time, until cancelled.

        Returns at once when nobody watches.  A loop that hangs says nothing, and is restarted.
        """
        if self.watchdog_s is None:
            return
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.setblocking(False)
            try:
                line.sendto(message.encode(), self._address)
            except OSError as error:
                # Serving goes on: the manager will act by its own rules on what it did not hear.
                log.warning("the service manager at NOTIFY_SOCKET does not listen: %s", error)


def _seconds(environment: Mapping[str, str]) -> float | None:
    """The watchdog's time when it is meant for this process: WATCHDOG_PID names another one in a child."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or not int(microseconds):
        return None
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1e6
