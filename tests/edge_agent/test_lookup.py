"""Names of gateways: looked up beside the loop, every address of them."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from edge_agent.lookup import Lookup, is_name


def infos(*hosts: str) -> list[tuple[Any, ...]]:
    return [(0, socket.SOCK_STREAM, 6, "", (host, 5555)) for host in hosts]


def test_what_is_a_name() -> None:
    assert is_name("tcp://gateways.example:5555")
    assert is_name("tcp://localhost:5555")
    for endpoint in ("tcp://10.0.0.1:5555", "tcp://[::1]:5555", "tcp://[fe80::1%25eth0]:5555", "ipc:///x"):
        assert not is_name(endpoint)


async def test_a_name_stands_for_all_of_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def getaddrinfo(host: str, port: int, **_: Any) -> Any:
        asked.append((host, port, threading.current_thread() is threading.main_thread()))
        return infos("10.0.0.1", "10.0.0.2", "10.0.0.1", "2001:db8::1")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    lookup = Lookup()
    assert await lookup.addresses("tcp://gateways.example:5555", 20.0) == [
        "tcp://10.0.0.1:5555",
        "tcp://10.0.0.2:5555",
        "tcp://[2001:db8::1]:5555",
    ]
    assert asked == [("gateways.example", 5555, False)]
    assert await lookup.addresses("tcp://10.0.0.9:5555", 20.0) == ["tcp://10.0.0.9:5555"]
    assert len(asked) == 1


async def test_an_unknown_name_is_an_error_and_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [socket.gaierror(-2, "Name or service not known"), infos("10.0.0.1")]

    def getaddrinfo(*_: Any, **__: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    lookup = Lookup()
    with pytest.raises(OSError, match="not known"):
        await lookup.addresses("tcp://gateways.example:5555", 20.0)
    assert await lookup.addresses("tcp://gateways.example:5555", 20.0) == ["tcp://10.0.0.1:5555"]


async def test_a_resolver_that_hangs_holds_nobody_up_and_is_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()
    asked = 0

    def getaddrinfo(*_: Any, **__: Any) -> Any:
        nonlocal asked
        asked += 1
        assert release.wait(20)
        return infos("10.0.0.1")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    lookup = Lookup()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await lookup.addresses("tcp://gateways.example:5555", 0.01)
    waiting = asyncio.ensure_future(lookup.addresses("tcp://gateways.example:5555", 20.0))
    await asyncio.sleep(0)
    release.set()
    assert await waiting == ["tcp://10.0.0.1:5555"]
    assert asked == 1
