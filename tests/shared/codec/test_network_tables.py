"""The tables of a network as one file: the same again, or an error that says what is wrong."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from shared.codec.network_tables import NetworkTables
from shared.errors import CodecError
from shared.tensor import DType, TensorSpec
from tests.shared.codec.transform.samples import maps, spec_of, tables_of_maps

TABLES = NetworkTables("sha256:net", {3: tables_of_maps(), 11: tables_of_maps()}, frozenset({"a", "b"}))
DATA = TABLES.to_bytes()
SPECS = {3: spec_of(maps(1)), 11: spec_of(maps(1)), 4: TensorSpec("x", DType.INT64, (1, 4), (0, 1))}


def test_what_is_read_is_what_was_written():
    read = NetworkTables.from_bytes(DATA)
    assert read.digest == TABLES.digest
    assert read.fitted_to == {"a", "b"}
    assert {slot: tables.digest for slot, tables in read.by_slot.items()} == {
        slot: tables.digest for slot, tables in TABLES.by_slot.items()
    }
    assert read.to_bytes() == DATA


def test_the_digest_is_of_all_that_decoding_depends_on():
    other = [
        NetworkTables("sha256:other", TABLES.by_slot),
        NetworkTables("sha256:net", {3: tables_of_maps()}),
        NetworkTables("sha256:net", {3: tables_of_maps(), 12: tables_of_maps()}),
    ]
    assert len({TABLES.digest, *(each.digest for each in other)}) == 4
    assert NetworkTables("sha256:net", TABLES.by_slot).digest == TABLES.digest


def test_tables_of_another_network_or_of_other_tensors_are_refused():
    TABLES.check("sha256:net", SPECS)
    with pytest.raises(CodecError, match="of the network sha256:net, not of sha256:mine"):
        TABLES.check("sha256:mine", SPECS)
    with pytest.raises(CodecError, match="slot 11"):
        TABLES.check("sha256:net", {3: SPECS[3]})
    with pytest.raises(CodecError, match="slot 3"):
        TABLES.check("sha256:net", {**SPECS, 3: spec_of(maps(1, features=4))})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"about": None}, "what network"),
        ({"about": {"format": 2, "network": "n", "fitted_to": []}}, "another format"),
        ({"about": {"format": 1, "network": 5, "fitted_to": []}}, "what network"),
        ({"about": {"format": 1, "network": "n", "fitted_to": [1]}}, "what network"),
        ({"about": {"format": 1, "network": "n", "fitted_to": ["x"] * 5000}}, "what network"),
        ({"slot.03": b"x"}, "'slot.03'"),
        ({"slot.-3": b"x"}, "slot.-3"),
        ({"slot.3": b"x"}, "cannot be read"),
        ({"slot.3": np.zeros(4, np.float32)}, "slot.3"),
    ],
)
def test_each_thing_that_can_be_wrong_is_an_error(changed, reason):
    arrays = load(DATA)
    for name, value in changed.items():
        if value is None:
            del arrays[name]
        elif isinstance(value, dict):
            arrays[name] = np.frombuffer(json.dumps(value).encode(), np.uint8)
        else:
            arrays[name] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    with pytest.raises(CodecError, match=reason):
        NetworkTables.from_bytes(save(arrays))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damage_is_an_error_or_changes_the_digest(data):
    damaged = bytearray(DATA)
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place] ^= data.draw(st.integers(1, 255))
    try:
        read = NetworkTables.from_bytes(bytes(damaged[: data.draw(st.sampled_from([None, place]))]))
    except CodecError:
        return
    same = read.fitted_to != TABLES.fitted_to
    assert read.digest != TABLES.digest or same
