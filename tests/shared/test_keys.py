"""Key files: what is read, what is refused, and that ZeroMQ's own tools agree."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import zmq
import zmq.auth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zmq.utils import z85

from shared.errors import ConfigError
from shared.keys import (
    KeyPair,
    PublicKey,
    parse_key,
    read_public,
    read_public_of,
    read_secret,
    server_key,
    write_pair,
)

PUBLIC = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
SECRET = "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6"
PAIR = KeyPair(PUBLIC, SECRET)


def listing(path: Path, metadata: str = "", curve: str = f'    public-key = "{PUBLIC}"\n') -> Path:
    path.write_text(f"metadata\n{metadata}curve\n{curve}")
    return path


def test_a_pair_is_written_and_read_back(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path / "new" / "keys", "jetson-7", PAIR)
    assert (secret.name, public.name) == ("jetson-7.key_secret", "jetson-7.key")
    assert read_secret(secret) == PAIR
    assert read_public(public) == PublicKey("jetson-7", PUBLIC)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(secret.parent.stat().st_mode) == 0o700
    assert SECRET not in public.read_text()


def test_zeromqs_own_tools_read_these_files_and_write_such(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "jetson-7", PAIR)
    assert zmq.auth.load_certificate(secret) == (PUBLIC.encode(), SECRET.encode())
    assert zmq.auth.load_certificate(public) == (PUBLIC.encode(), None)
    theirs, _ = zmq.auth.create_certificates(tmp_path, "theirs", {"max_in_flight": "3"})
    Path(theirs + "_secret").chmod(0o600)
    pair = read_secret(Path(theirs + "_secret"))
    assert zmq.curve_public(pair.secret.encode()).decode() == pair.public == read_public(Path(theirs)).key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o666])
def test_a_secret_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    secret, _ = write_pair(tmp_path, "jetson-7", PAIR)
    secret.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*run: chmod 600 {secret}"):
        read_secret(secret)
    secret.chmod(0o400)
    assert read_secret(secret) == PAIR


@pytest.mark.parametrize(("mode", "taken"), [(0o440, True), (0o640, True), (0o460, False), (0o444, False)])
def test_a_secret_handed_over_by_another_user_may_be_the_groups_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, taken: bool
) -> None:
    """As systemd's credentials and mounted secrets are: root's, and readable by an access list or a group."""
    secret, _ = write_pair(tmp_path, "jetson-7", PAIR)
    secret.chmod(mode)
    monkeypatch.setattr(os, "geteuid", lambda: secret.stat().st_uid + 1)
    if taken:
        assert read_secret(secret) == PAIR
    else:
        with pytest.raises(ConfigError, match=f"mode {mode:04o}"):
            read_secret(secret)


def test_the_umask_does_not_matter(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        secret, _ = write_pair(tmp_path / "keys", "jetson-7", PAIR)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


@pytest.mark.parametrize("survivor", ["jetson-7.key", "jetson-7.key_secret"])
def test_a_key_is_never_overwritten(tmp_path: Path, survivor: str) -> None:
    (tmp_path / survivor).write_text("precious")
    with pytest.raises(ConfigError, match="exists already"):
        write_pair(tmp_path, "jetson-7", PAIR)
    assert [path.name for path in tmp_path.iterdir()] == [survivor]
    assert (tmp_path / survivor).read_text() == "precious"


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a b", "x" * 65])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no name for a key"):
        write_pair(tmp_path, name, PAIR)


def test_a_file_may_limit_its_device(tmp_path: Path) -> None:
    path = listing(
        tmp_path / "cam.key",
        "    name = a cam\n    max_in_flight = 8\n    max_in_flight_bytes = 16000000\n    weight = 2.5\n",
    )
    assert read_public(path) == PublicKey("cam", PUBLIC, 8, 16_000_000, 2.5)


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ("    max_inflight = 8\n", "unknown metadata max_inflight"),
        ("    max_in_flight = 0\n", "max_in_flight = 0 must be a whole number"),
        ("    max_in_flight = many\n", "must be a whole number"),
        ("    max_in_flight_bytes = 1.5\n", "must be a whole number"),
        ("    weight = 0\n", "must be a number above 0"),
        ("    weight = nan\n", "must be a number above 0"),
        ("    weight = 1\n    weight = 2\n", "line 3, gives weight again"),
        ("weight = 1\n", "line 2, is not an indented"),
        ("    what is this\n", "line 2, is neither"),
    ],
)
def test_a_mistake_in_a_listing_is_named(tmp_path: Path, metadata: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_public(listing(tmp_path / "cam.key", metadata))


@pytest.mark.parametrize(
    "text",
    ["", "too short", PUBLIC[:-1], PUBLIC + "0", "~" + PUBLIC[1:], "#" * 40, "é" * 40],
)
def test_what_is_no_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^here is no key; a key is 40 characters of Z85$"):
        parse_key(text, "here")


@given(st.binary(min_size=32, max_size=32))
def test_every_32_bytes_are_a_key(data: bytes) -> None:
    assert parse_key(z85.encode(data).decode(), "here") == z85.encode(data).decode()


def test_a_file_without_a_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no public-key in its section curve"):
        read_public(listing(tmp_path / "cam.key", curve=""))
    public = listing(tmp_path / "pub.key")
    public.chmod(0o600)
    with pytest.raises(ConfigError, match="has no secret-key"):
        read_secret(public)


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the public key file .*none\.key"):
        read_public(tmp_path / "none.key")
    (tmp_path / "big.key").write_bytes(b"#" * 70_000)
    with pytest.raises(ConfigError, match="larger than 65536 bytes"):
        read_public(tmp_path / "big.key")
    (tmp_path / "image.key").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_public(tmp_path / "image.key")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.binary(max_size=200))
def test_whatever_is_in_a_file_only_a_config_error_leaves(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "fuzz.key"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        read_public(path)


def test_the_public_half_is_found_from_either_file(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "gateway", PAIR)
    assert read_public_of(secret) == PublicKey("gateway", PUBLIC)
    secret.rename(tmp_path / "elsewhere")
    assert read_public_of(secret).key == PUBLIC
    public.unlink()
    (tmp_path / "elsewhere").rename(secret)
    assert read_public_of(secret).key == PUBLIC
    secret.unlink()
    with pytest.raises(ConfigError, match=r"neither .*gateway\.key nor .*gateway\.key_secret"):
        read_public_of(secret)


def test_the_servers_key_is_given_as_itself_or_as_a_file(tmp_path: Path) -> None:
    _, public = write_pair(tmp_path, "gateway", PAIR)
    assert server_key(PUBLIC) == server_key(str(public)) == PUBLIC
    with pytest.raises(ConfigError, match=r"cloud\.keys\.server is no key"):
        server_key("10.0.0.5")


def test_the_secret_half_is_in_no_text() -> None:
    assert SECRET not in repr(PAIR)
    assert SECRET not in str(PAIR)
