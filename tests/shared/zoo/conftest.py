from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from shared import zoo
from shared.zoo import Network


@pytest.fixture(scope="session")
def network() -> Callable[[str], Network]:
    """Networks by name, each built once for all tests."""
    return cache(zoo.build)
