"""Profiles on disk: kept whole, found by key, and never the cause of a crash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.plan.profile import Profile, load_profile, save_profile, this_machine
from tests.shared.plan.builders import chain, profile_of

GRAPH = chain([1000, 20, 5])
PROFILE = profile_of(GRAPH, [3.0, 4.5])


def test_a_saved_profile_comes_back_equal(tmp_path: Path) -> None:
    directory = tmp_path / "cache" / "suture"
    assert save_profile(directory, PROFILE) is None
    assert load_profile(directory, PROFILE.key, 2) == (PROFILE, None)
    assert [path.name for path in directory.iterdir()] == [PROFILE.key.file_name]


def test_saving_replaces_the_old_one(tmp_path: Path) -> None:
    save_profile(tmp_path, PROFILE)
    newer = replace(PROFILE, unit_ms=(1.0, 2.0))
    save_profile(tmp_path, newer)
    assert load_profile(tmp_path, PROFILE.key) == (newer, None)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha256:" + "6" * 64},
        {"device": "cuda"},
        {"threads": 2},
        {"torch_version": "2.14.0"},
        {"machine": "other"},
        {"mode": "exact"},
        {"calibration": "folder"},
    ],
)
def test_another_key_has_another_file(tmp_path: Path, change: dict[str, object]) -> None:
    save_profile(tmp_path, PROFILE)
    assert load_profile(tmp_path, replace(PROFILE.key, **change)) == (None, None)  # type: ignore[arg-type]


@given(st.binary(max_size=60) | st.integers(1, 400).map(lambda cut: PROFILE.to_json().encode()[:-cut]))
def test_a_damaged_file_is_ignored_with_a_warning(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    directory = tmp_path_factory.mktemp("cache")
    (directory / PROFILE.key.file_name).write_bytes(data)
    profile, warning = load_profile(directory, PROFILE.key)
    assert profile is None
    assert warning is not None
    assert PROFILE.key.file_name in warning


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"unit_ms": [3.0', '"unit_ms": [NaN'),
        ('"unit_ms": [3.0', '"unit_ms": [-3.0'),
        ('"unit_ms": [3.0, 4.5]', '"unit_ms": [3.0]'),
        ('"format": 2', '"format": 1'),
        ('"float32": [', '"float33": ['),
        ('"threads": 1', '"fibres": 1'),
        ('"repeats": 5', '"repeats": null'),
    ],
)
def test_a_foreign_file_is_ignored_with_a_warning(tmp_path: Path, old: str, new: str) -> None:
    text = PROFILE.to_json()
    assert old in text
    (tmp_path / PROFILE.key.file_name).write_text(text.replace(old, new, 1))
    profile, warning = load_profile(tmp_path, PROFILE.key)
    assert profile is None
    assert warning is not None


def test_a_file_under_the_wrong_name_or_of_another_network_is_ignored(tmp_path: Path) -> None:
    other = replace(PROFILE, key=replace(PROFILE.key, device="cuda"))
    (tmp_path / PROFILE.key.file_name).write_text(other.to_json())
    assert "cuda" in (load_profile(tmp_path, PROFILE.key)[1] or "")
    save_profile(tmp_path, PROFILE)
    assert "2 units, the network has 3" in (load_profile(tmp_path, PROFILE.key, 3)[1] or "")


def test_a_directory_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    warning = save_profile(tmp_path / "file" / "cache", PROFILE)
    assert warning is not None
    assert "cannot write" in warning


def test_a_stretched_device_is_slower_in_everything_but_bytes() -> None:
    slow = PROFILE.stretched(3.0)
    assert slow.unit_ms == (9.0, 13.5)
    assert slow.whole_ms == pytest.approx(22.5)
    for slot, costs in PROFILE.payloads.items():
        for codec, cost in costs.items():
            stretched = slow.payloads[slot][codec]
            assert stretched.payload_bytes == cost.payload_bytes
            assert stretched.encode_ms == pytest.approx(3 * cost.encode_ms)
            assert stretched.decode_ms == pytest.approx(3 * cost.decode_ms)
    with pytest.raises(ValueError, match="slower"):
        PROFILE.stretched(0.0)


def test_the_sum_of_units_is_held_against_the_whole() -> None:
    assert replace(PROFILE, whole_ms=7.0).sum_over_whole == pytest.approx(7.5 / 7.0)
    assert Profile.from_json(PROFILE.to_json()).sum_over_whole == 1.0


def test_the_machine_has_a_name() -> None:
    assert this_machine().count("/") == 2
