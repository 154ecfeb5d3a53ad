from __future__ import annotations

from pathlib import Path

import pytest

import cloud_cluster.handshakes
import cloud_cluster.keys
from tests.security.keyring import Keyring

_SOON_S = 0.05


@pytest.fixture
def keyring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keyring:
    """New keys for a gateway and its replicas; the gateway looks at its directory of devices very often."""
    monkeypatch.setattr(cloud_cluster.keys, "_LOOK_S", _SOON_S)
    monkeypatch.setattr(cloud_cluster.handshakes, "_REDIAL_S", _SOON_S)
    return Keyring(tmp_path)
