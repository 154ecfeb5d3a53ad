"""A peer that speaks ZMTP 3.1 (ZeroMQ RFC 37) by hand, and stops wherever an attack wants it to."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from types import TracebackType

__all__ = ["RawPeer", "frame", "greeting"]

GREETING_BYTES = 64
_MORE, _LONG, _COMMAND = 1, 2, 4


def greeting(mechanism: bytes = b"NULL", version: tuple[int, int] = (3, 1)) -> bytes:
    signature = b"\xff" + bytes(8) + b"\x7f"
    return (signature + bytes(version) + mechanism.ljust(20, b"\0")).ljust(GREETING_BYTES, b"\0")


def frame(body: bytes, more: bool = False, claimed: int | None = None) -> bytes:
    """``claimed`` is the length that it says it has, instead of the true one."""
    size = len(body) if claimed is None else claimed
    if size < 256:
        return bytes((_MORE if more else 0, size)) + body
    return bytes(((_MORE if more else 0) | _LONG,)) + struct.pack(">Q", size) + body


def _ready(identity: bytes) -> bytes:
    body = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    if identity:
        body += b"\x08Identity" + struct.pack(">I", len(identity)) + identity
    return bytes((_COMMAND, len(body))) + body


class RawPeer:
    """One TCP connection to a port of this machine."""

    def __init__(self, port: int, identity: bytes = b"") -> None:
        self._port = port
        self._identity = identity
        self.sent_bytes = 0
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> RawPeer:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.transport.abort()

    async def send(self, data: bytes) -> bool:
        """False when the other side has closed the connection."""
        if self._writer.transport.is_closing():
            return False
        self._writer.write(data)
        try:
            await self._writer.drain()
        except ConnectionError:
            return False
        self.sent_bytes += len(data)
        return True

    async def shake_hands(self) -> None:
        """Become a DEALER that the other side takes for one."""
        await self.send(greeting())
        await self._reader.readexactly(GREETING_BYTES)
        await self.send(_ready(self._identity))
        flags, size = await self._reader.readexactly(2)
        assert flags == _COMMAND
        assert (await self._reader.readexactly(size)).startswith(b"\x05READY")

    async def send_message(self, frames: list[bytes]) -> bool:
        parts = [frame(body, more=index < len(frames) - 1) for index, body in enumerate(frames)]
        return await self.send(b"".join(parts))

    async def flood(self, unit: bytes, most_bytes: int) -> bool:
        """The same bytes again and again; True when the connection was closed before all were out."""
        while self.sent_bytes < most_bytes:
            if not await self.send(unit):
                return True
            # A kernel that takes everything at once would keep the event loop from all else.
            await asyncio.sleep(0)
        return False

    @property
    def was_closed(self) -> bool:
        return self._reader.at_eof() or self._writer.transport.is_closing()

    async def messages(self) -> AsyncIterator[list[bytes]]:
        """What the other side sends, until it closes the connection; its heartbeats are left out."""
        frames: list[bytes] = []
        try:
            while True:
                (flags,) = await self._reader.readexactly(1)
                size = await self._reader.readexactly(8 if flags & _LONG else 1)
                body = await self._reader.readexactly(int.from_bytes(size, "big"))
                if flags & _COMMAND:
                    continue
                frames.append(body)
                if not flags & _MORE:
                    yield frames
                    frames = []
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    async def closed(self) -> None:
        """Returns once the other side has closed the connection; what it sends until then is thrown away."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            return
