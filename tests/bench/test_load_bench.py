from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.load_serve import HttpClient
from shared.errors import InternalError, OverloadedError


@pytest.mark.slow
def test_loads_are_carried_and_overload_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    # In a process of its own, as the processors that it pins its children to are this one's as well.
    subprocess.run(
        [sys.executable, "-m", "bench.load", "--quick", "--without-serve", "--json", str(path)], check=True
    )
    document = json.loads(path.read_text())
    assert document["quick"] is True
    rows = {row["load"]: row for row in document["rows"]}
    assert all(row["answers_per_s"] > 0 and row["gateway_mb"] > 0 for row in rows.values())
    assert rows["closed loop, 16 devices"]["refused"] == 0
    assert rows["open loop, 300% of capacity"]["refused"] > 0.3
    alone = rows["closed loop, 1 devices"]["answers_per_s"]
    assert rows["nothing to compute, 16 devices"]["answers_per_s"] > alone
    assert len(document["targets"]) == 5
    assert all(speed > 0 for speed in document["config"]["torch_per_s"])


async def test_answers_over_http_are_told_apart_and_connections_are_used_again() -> None:
    ok = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone"
    busy = b"HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\n4\r\nlate\r\n0\r\n\r\n"
    broken = b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"
    replies = [ok, ok, busy, ok, broken, ok]
    seen: list[int] = []
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        while (await reader.readline()).startswith(b"POST /http"):
            while await reader.readline() != b"\r\n":
                pass
            assert await reader.readexactly(5) == b"image"
            seen.append(number)
            writer.write(replies[len(seen) - 1])
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = HttpClient(server.sockets[0].getsockname()[1], b"image")
    codes = [await client.ask() for _ in replies]
    assert codes == [0, 0, OverloadedError.code, 0, InternalError.code, 0]
    # After the refusal, whose end it does not look for, a new one.
    assert seen == [1, 1, 1, 2, 2, 2]
    client.close()
    server.close()
    await server.wait_closed()
