"""The list of devices, as a directory: what a look at it finds, and what it does when in doubt."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import pytest
import zmq
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloud_cluster.keys import DeviceList, Doorkeeper, ReplicaKeys
from shared.config import GatewayKeysConfig
from shared.errors import ConfigError
from shared.keys import KeyPair, public_text, write_pair


def new_key() -> str:
    return zmq.curve_keypair()[0].decode()


def put(directory: Path, name: str, text: str) -> None:
    unfinished = directory / f"{name}.part"
    unfinished.write_text(text)
    os.replace(unfinished, directory / name)


def test_only_public_files_list_devices(tmp_path: Path) -> None:
    key = new_key()
    put(tmp_path, "jetson.key", public_text("jetson", key))
    put(tmp_path, "README", "not a key")
    put(tmp_path, "jetson.key.bak", public_text("old", new_key()))
    (tmp_path / "dangling.key").symlink_to(tmp_path / "nowhere")
    devices = DeviceList(tmp_path)
    assert list(devices.listed) == [key]
    assert devices.listed[key].name == "jetson"


def test_a_wrong_file_keeps_out_its_device_and_nobody_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = new_key(), new_key()
    put(tmp_path, "good.key", public_text("good", good))
    put(tmp_path, "bad.key", public_text("bad", bad) + "    max_in_flight = 3\n    weight\n")
    with caplog.at_level(logging.ERROR):
        devices = DeviceList(tmp_path)
    assert set(devices.listed) == {good}
    assert f"{tmp_path / 'bad.key'}, line 6" in caplog.text
    assert devices.look() == [], "told once"
    put(tmp_path, "good.key", "half a fi")
    assert len(devices.look()) == 1
    assert set(devices.take()) == {good}
    assert devices.listed == {}
    put(tmp_path, "good.key", public_text("good", good))
    assert devices.look() == []
    devices.take()
    assert set(devices.listed) == {good}


def test_of_two_files_with_one_key_the_first_by_name_counts(tmp_path: Path) -> None:
    key = new_key()
    for name, weight in (("b", 2), ("a", 3), ("c", 4)):
        put(tmp_path, f"{name}.key", f"metadata\n    weight = {weight}\n" + public_text(name, key))
    devices = DeviceList(tmp_path)
    assert (devices.listed[key].name, devices.listed[key].weight) == ("a", 3)


def test_a_directory_that_cannot_be_read_is_an_error_at_the_start_and_changes_nothing_later(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "devices"
    with pytest.raises(ConfigError, match=r"cannot read the directory of devices .*devices: No such file"):
        DeviceList(directory)
    directory.mkdir()
    key = new_key()
    put(directory, "jetson.key", public_text("jetson", key))
    devices = DeviceList(directory)
    directory.rename(tmp_path / "away")
    assert len(devices.look()) == 1
    assert devices.look() == [], "told once"
    devices.take()
    assert set(devices.listed) == {key}
    (tmp_path / "away").rename(directory)
    (directory / "jetson.key").unlink()
    assert devices.look() == []
    devices.take()
    assert devices.listed == {}


@pytest.mark.parametrize("who", ["gateway", "replica"])
def test_halves_that_do_not_belong_together_are_refused(tmp_path: Path, who: str) -> None:
    (tmp_path / "devices").mkdir()
    for name in ("gateway", "replica"):
        public, secret = (half.decode() for half in zmq.curve_keypair())
        write_pair(tmp_path, name, KeyPair(new_key() if name == who else public, secret))
    config = GatewayKeysConfig(
        secret=tmp_path / "gateway.key_secret",
        devices=tmp_path / "devices",
        replicas=tmp_path / "replica.key_secret",
    )
    with pytest.raises(ConfigError, match=f"the two halves in .*{who}.key_secret are not of one pair"):
        (Doorkeeper if who == "gateway" else ReplicaKeys.load)(config)


class Directory(RuleBasedStateMachine):
    """Whatever is done to the directory, after a look the list is what a fresh start would read."""

    names = st.sampled_from(["a", "b", "c"])
    keys = st.sampled_from([new_key() for _ in range(3)])

    def __init__(self) -> None:
        super().__init__()
        self.home = tempfile.TemporaryDirectory()
        self.path = Path(self.home.name)
        self.devices = DeviceList(self.path)

    @rule(name=names, key=keys, weight=st.integers(1, 3))
    def list_one(self, name: str, key: str, weight: int) -> None:
        put(self.path, f"{name}.key", f"metadata\n    weight = {weight}\n" + public_text(name, key))

    @rule(name=names)
    def spoil(self, name: str) -> None:
        put(self.path, f"{name}.key", "spoilt")

    @rule(name=names)
    def remove(self, name: str) -> None:
        (self.path / f"{name}.key").unlink(missing_ok=True)

    @rule(name=names, other=names)
    def rename(self, name: str, other: str) -> None:
        if (self.path / f"{name}.key").exists():
            (self.path / f"{name}.key").rename(self.path / f"{other}.key")

    @invariant()
    def a_look_finds_what_a_fresh_start_finds(self) -> None:
        before = dict(self.devices.listed)
        self.devices.look()
        assert self.devices.take() == before
        assert self.devices.listed == DeviceList(self.path).listed

    def teardown(self) -> None:
        self.home.cleanup()


TestDirectory = Directory.TestCase
TestDirectory.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
