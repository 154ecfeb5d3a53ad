from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from shared.codec.transform import TransformTables, tables_from_bytes, tables_to_bytes
from shared.codec.transform.tables import MAX_TABLE_BYTES, STEPS, TOTAL
from shared.errors import CodecError
from tests.shared.codec.transform.samples import tables_of_maps


def test_tables_travel_as_bytes_and_keep_their_digest() -> None:
    tables = tables_of_maps()
    data = tables_to_bytes(tables)
    arrived = tables_from_bytes(memoryview(data))
    assert tables_to_bytes(arrived) == data
    assert arrived.digest == tables.digest
    assert arrived.geometry == tables.geometry
    assert np.array_equal(arrived.order, tables.order)


def test_every_number_is_part_of_the_digest() -> None:
    tables = tables_of_maps()
    digests = {tables.digest}
    for name in ("mean", "forward", "inverse", "weight", "offset", "expected_bits"):
        changed = np.array(getattr(tables, name))
        changed.flat[np.abs(changed).argmax()] *= np.float32(0.5)
        digests.add(dataclasses.replace(tables, **{name: changed}).digest)
    digests.add(dataclasses.replace(tables, finest=tables.finest + 1).digest)
    assert len(digests) == 8


def test_worth_decides_the_order() -> None:
    tables = tables_of_maps()
    assert sorted(tables.order) == list(range(tables.pairs))
    for step in (0, STEPS - 1):
        assert (np.diff(tables.classes(step)) <= 0).all()
    assert (tables.classes(0) >= tables.classes(9)).all()


def changed(name: str, change: Callable[[Any], Any]) -> bytes:
    arrays = load(tables_to_bytes(tables_of_maps()))
    about = json.loads(arrays["about"].tobytes())
    if name in about:
        about[name] = change(about[name])
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    else:
        arrays[name] = change(arrays[name])
    data: bytes = save(arrays)
    return data


def put(value: Any) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array = array.copy()
        array.flat[5] = value
        return array

    return change


BAD: list[tuple[str, Callable[[Any], Any]]] = [
    ("format", lambda _: 2),
    ("sample_shape", lambda _: [8, 14]),
    ("sample_shape", lambda _: "8"),
    ("feature", lambda _: 1.0),
    ("feature", lambda _: 2),
    ("block", lambda _: [7]),
    ("block", lambda _: [7, True]),
    ("dtype", lambda _: 9),
    ("dtype", lambda _: 99),
    ("finest", lambda _: 10**9),
    ("groups", lambda _: [0, 0]),
    ("groups", lambda _: [1]),
    ("groups", lambda _: []),
    ("groups", lambda groups: [*groups, 10**6]),
    ("mean", put(np.nan)),
    ("forward", put(np.inf)),
    ("inverse", lambda array: array[:, :-1]),
    ("weight", put(0.0)),
    ("weight", lambda array: array.astype(np.float64)),
    ("level", put(30000)),
    ("probability", put(0)),
    ("probability", put(TOTAL)),
    ("shift", put(40)),
    ("offset", put(2.0)),
    ("bounds", put(-1)),
    ("bounds", put(10**6)),
    ("bounds", lambda array: array[:, ::-1].copy()),
    ("expected_bits", lambda array: array[:-1]),
    ("extra", None),  # type: ignore[list-item]
]


@pytest.mark.parametrize(
    ("name", "change"), BAD, ids=[f"{index}-{name}" for index, (name, _) in enumerate(BAD)]
)
def test_what_could_not_be_coded_with_is_refused(name: str, change: Callable[[Any], Any] | None) -> None:
    if change is None:
        data = save({**load(tables_to_bytes(tables_of_maps())), name: np.zeros(1, np.uint8)})
    else:
        data = changed(name, change)
    with pytest.raises(CodecError):
        tables_from_bytes(data)


def test_tables_that_are_too_large_are_not_read() -> None:
    with pytest.raises(CodecError, match="at most"):
        tables_from_bytes(bytes(MAX_TABLE_BYTES + 1))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_are_refused_or_make_valid_tables(data: st.DataObject) -> None:
    damaged = bytearray(tables_to_bytes(tables_of_maps()))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1) | st.integers(0, 900))
        damaged[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(damaged), 0, 8, 900, len(damaged) - 1]))
    try:
        tables = tables_from_bytes(bytes(damaged[:end]))
    except CodecError:
        return
    assert isinstance(tables, TransformTables)
    assert tables_from_bytes(tables_to_bytes(tables)).digest == tables.digest
