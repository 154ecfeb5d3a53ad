"""The token of the agent's TCP socket: who gets in, and what the others are told."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import stat
from pathlib import Path

import pytest
import zmq
from zmq.utils.monitor import parse_monitor_message

from edge_agent import Client
from edge_agent.local_token import default_token_file, find_token, made_token
from shared.errors import AuthError, ConfigError, StartupError, SutureError, UnavailableError
from shared.wire import encode_message
from shared.wire.messages import Ping
from tests.attacks.raw_zmtp import GREETING_BYTES, greeting
from tests.edge_agent.test_local_api import FakeAgent, serving

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"

LOOPBACK = "tcp://127.0.0.1:*"


@pytest.fixture(autouse=True)
def _no_token_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUTURE_TOKEN", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


async def test_agent_and_client_of_one_user_find_the_same_token_without_being_told() -> None:
    async with serving(LOOPBACK, FakeAgent()) as api:
        path = default_token_file()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        async with Client(api.endpoint) as client:
            assert (await client.infer("net")).uplink_bytes == 123


async def test_the_token_outlives_the_agent_and_is_another_one_elsewhere(tmp_path: Path) -> None:
    first = made_token(tmp_path / "a")
    assert made_token(tmp_path / "a") == first
    assert len(first) >= 40
    assert made_token(tmp_path / "b") != first


async def test_a_token_is_shown_by_argument_environment_or_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    async with serving(LOOPBACK, FakeAgent(), token_file=path) as api:
        token = path.read_text().strip()
        async with Client(api.endpoint, token=token):
            pass
        async with Client(api.endpoint, token_file=path):
            pass
        monkeypatch.setenv("SUTURE_TOKEN", token)
        async with Client(api.endpoint):
            pass


@pytest.mark.parametrize("wrong", ["", "x", "another token of the right length ", "a" * 200])
async def test_a_wrong_token_is_an_auth_error_and_reaches_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    agent, path = FakeAgent(), tmp_path / "token"
    path.touch(0o600)
    path.write_text("b" * 40)
    with caplog.at_level(logging.WARNING):
        async with serving(LOOPBACK, agent, token_file=path) as api:
            for token in (wrong or "b" * 39, "b" * 41):
                with pytest.raises(AuthError, match=r"another token.*socket_token_file"):
                    async with Client(api.endpoint, token=token, patience_s=20):
                        pass
            async with Client(api.endpoint, token="b" * 40) as client:
                await client.infer("net")
    assert len(agent.calls) == 1
    assert len([record for record in caplog.records if "turned away" in record.message]) == 1  # not a flood
    assert "b" * 39 not in caplog.text


async def test_without_a_token_the_client_says_where_it_looked(tmp_path: Path) -> None:
    async with serving(LOOPBACK, FakeAgent(), token_file=tmp_path / "token") as api:
        with pytest.raises(AuthError, match=r"state/suture/socket-token.*SUTURE_TOKEN"):
            async with Client(api.endpoint):
                pass


async def test_a_peer_that_shows_nothing_is_turned_away_in_the_handshake(tmp_path: Path) -> None:
    """Nothing that it sends is ever read: it does not get as far as a message."""
    agent = FakeAgent()
    context = zmq.Context()
    peer = context.socket(zmq.DEALER)
    monitor = peer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
    try:
        async with serving(LOOPBACK, agent, token_file=tmp_path / "token") as api:
            peer.connect(api.endpoint)
            await asyncio.to_thread(peer.send_multipart, encode_message(Ping(), request_id=1))
            told = await asyncio.to_thread(monitor.recv_multipart)
            assert parse_monitor_message(told)["event"] == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            assert not await asyncio.to_thread(peer.poll, 100)
    finally:
        peer.disable_monitor()
        monitor.close(linger=0)
        peer.close(linger=0)
        context.term()


async def shown(port: int, command: bytes) -> bytes:
    """What the agent says to a peer that greets as ZMTP 3.1 does, and sends this command."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(20):
            writer.write(greeting(b"PLAIN"))
            await reader.readexactly(GREETING_BYTES)
            writer.write(command)
            _, size = await reader.readexactly(2)
            return await reader.readexactly(size)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_the_bytes_of_the_document_open_the_door_and_others_do_not(tmp_path: Path) -> None:
    (block,) = re.findall(r"```hex local-token\n(.*?)```", PROTOCOL.read_text(encoding="utf-8"), re.S)
    command = bytes.fromhex("".join(line for line in block.splitlines() if not line.startswith("#")))
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text("a-token-of-forty-characters-for-examples")
    async with serving(LOOPBACK, FakeAgent(), token_file=path) as api:
        port = int(api.endpoint.rpartition(":")[2])
        assert await shown(port, command) == b"\x07WELCOME"
        for position in range(len(command) - 40, len(command), 13):
            other = bytearray(command)
            other[position] ^= 1
            refusal = await shown(port, bytes(other))
            assert refusal.endswith(b"ERROR\x03400"[1:])  # libzmq 4.3.5 garbles the length before the name


async def outcome(client: Client) -> Exception | None:
    try:
        await client.infer("net")
    except SutureError as error:
        return error
    return None


async def test_an_agent_that_comes_back_with_another_token_is_no_agent_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "token"
    async with serving(LOOPBACK, FakeAgent(), token_file=path) as api:
        endpoint = api.endpoint
        client = Client(endpoint, token_file=path)
        await client.__aenter__()
    try:
        path.unlink()
        async with serving(endpoint, FakeAgent(), token_file=path):
            outcomes: list[Exception | None] = []
            async with asyncio.timeout(30):
                while not outcomes or isinstance(outcomes[-1], UnavailableError):
                    outcomes.append(await outcome(client))
                    await asyncio.sleep(0.02)
            assert isinstance(outcomes[-1], AuthError)
            assert "another token" in str(outcomes[-1])
    finally:
        await client.__aexit__(None, None, None)


def test_a_file_that_is_no_secret_or_no_token_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    made_token(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=f"other users can use {path}.*remove it"):
        made_token(path)
    path.chmod(0o600)
    for text in ("", "short", "with a space in the middle", "x" * 300, "ümlaut" * 8):
        path.write_text(text)
        with pytest.raises(ConfigError, match="holds no token"):
            made_token(path)
    with pytest.raises(AuthError, match="holds no token"):
        find_token(path)


def test_a_place_where_no_token_can_be_made_is_a_startup_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="socket_token_file"):
        made_token(tmp_path / "file" / "token")


def test_no_umask_opens_the_token_to_others(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made_token(tmp_path / "token")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
