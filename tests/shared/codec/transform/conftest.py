"""Many short operators: on busy cores they are slow on several threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.codec.threads import one_thread


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
